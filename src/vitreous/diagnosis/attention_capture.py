"""Queries, keys and values of every attention that a forward pass runs, without changing what it computes.

Whatever model it is (timm, transformers, an encoder of ours), the product softmax(q·kᵀ)·v is one call of torch's
`scaled_dot_product_attention`, made when positions and norms are already in q and k. The call is watched, not
replaced. Attention inside windows that is written out as plain products (TinyViT, Swin) is not seen.

Axes: B batch, H head, N token, E width of one head.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class Attention:
    """One attention as it was computed.

    Args:
        out_BHNE: what left the heads.
        bias: added to the scores, broadcast against (B, H, N, N); None without.
        scale: of the scores.
    """

    q_BHNE: torch.Tensor
    k_BHNE: torch.Tensor
    v_BHNE: torch.Tensor
    out_BHNE: torch.Tensor
    bias: torch.Tensor | None
    scale: float

    @property
    def num_tokens(self) -> int:
        """Keys of each query."""
        return self.k_BHNE.shape[2]


class AttentionCapture(TorchFunctionMode):
    """While entered, hands each attention to `on_attention` in the order they run.

    Raises:
        ValueError: in the forward pass: an attention drops weights at random, looks only backwards, or shares keys
            between heads; what is said of its weights would not be what it used.
    """

    def __init__(self, on_attention: Callable[[Attention], None]) -> None:
        super().__init__()
        self.on_attention = on_attention

    def __torch_function__(
        self, func: Any, types: Iterable[Any], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            # torch enters a mode's own function without the mode, so what is computed in there is not seen
            self.on_attention(_read_call(args, kwargs, out))
        return out


_NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


def _read_call(args: tuple[Any, ...], kwargs: Mapping[str, Any], out: torch.Tensor) -> Attention:
    given = {**dict(zip(_NAMES, args)), **kwargs}
    for name in ("dropout_p", "is_causal", "enable_gqa"):
        if given.get(name):
            raise ValueError(f"attention with {name}={given[name]} cannot be captured")
    query = given["query"]
    scale = given.get("scale")
    bias = given.get("attn_mask")
    if bias is not None and bias.dtype == torch.bool:
        bias = torch.zeros_like(bias, dtype=query.dtype).masked_fill_(~bias, -torch.inf)
    return Attention(
        query, given["key"], given["value"], out, bias, query.shape[-1] ** -0.5 if scale is None else float(scale)
    )
