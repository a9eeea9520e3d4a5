"""K heads that attend to the tokens of a frozen encoder, trained as one: parameters are stacked along the first axis.

Two kinds. With one block, learned queries attend to the tokens, and a norm and a linear layer or MLP follow. A query
meets a key as qᵀ(W·x) = (Wᵀq)ᵀ·x, and a value leaves as W·(Σ a·x): both matrices move to the query's side of the sum,
so that tokens are multiplied by one vector per head instead of by two matrices, for all members in one product. With
more blocks, self-attention blocks at the tokens' width come first, then a cross-attention block (Bardes et al., 2024;
Assran et al., 2025: the evaluation of V-JEPA 2); members then share the loaded tokens only.

Axes: K member, B row of a batch, T token, D width of a token, Q query, H head, E width of the attention, J query × head
of all members, C class or label.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from vitreous.core.streams import numpy_stream

EPSILON = 1e-5  # of every norm
_SPREAD = 0.02  # standard deviation of initial weights, cut at two of them
_HEAD_SPREAD = 0.01


@dataclass(frozen=True)
class AttentionShape:
    """One architecture.

    Args:
        width: D of the tokens.
        hidden: E of the attention, a multiple of `heads`; D where `blocks` is more than 1.
        queries: 1 for all outputs, or one for each of them.
        outputs: classes or labels.
        head_width: of a hidden layer (GELU) in the head, or None.
    Raises:
        ValueError: `hidden` is no multiple of `heads`, or queries are neither 1 nor as many as outputs.
    """

    width: int
    hidden: int
    heads: int
    queries: int
    outputs: int
    blocks: int = 1
    head_width: int | None = None

    def __post_init__(self) -> None:
        if self.hidden % self.heads:
            raise ValueError(f"the attention's width ({self.hidden}) must be a multiple of heads ({self.heads}).")
        if self.queries not in (1, self.outputs):
            raise ValueError(f"there is one query, or one for each of {self.outputs} outputs; got {self.queries}.")
        if self.blocks > 1 and self.hidden != self.width:
            raise ValueError(f"blocks have the tokens' width {self.width}; got {self.hidden}.")

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of every tensor of one member."""
        d, e = self.width, self.hidden
        shapes: dict[str, tuple[int, ...]] = {"attentive.query": (self.queries, e)}
        if self.blocks == 1:
            shapes |= {
                "norms.tokens.weight": (d,), "norms.tokens.bias": (d,), "layers.key.weight": (e, d),
                "layers.value.weight": (e, d), "layers.value.bias": (e,), "layers.out.weight": (e, e),
                "layers.out.bias": (e,),
            }  # fmt: skip
        for block in range(self.blocks - 1):
            shapes |= _block_shapes(f"self{block}", d, ("qkv", 3 * d), ("proj", d))
        if self.blocks > 1:
            shapes |= _block_shapes("cross", d, ("q", d), ("kv", 2 * d))
        shapes |= {"norms.pooled.weight": (e,), "norms.pooled.bias": (e,)} if self.blocks == 1 else {}
        last = e
        if self.head_width is not None:
            shapes |= {"layers.hidden.weight": (self.head_width, e), "layers.hidden.bias": (self.head_width,)}
            last = self.head_width
        return shapes | {"layers.head.weight": (self.outputs, last), "layers.head.bias": (self.outputs,)}

    @property
    def num_parameters(self) -> int:
        """Numbers of one member."""
        return sum(int(np.prod(shape)) for shape in self.parameter_shapes().values())


def _block_shapes(name: str, width: int, *linear: tuple[str, int]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for norm in ("1", "2"):
        shapes |= {f"norms.{name}.{norm}.weight": (width,), f"norms.{name}.{norm}.bias": (width,)}
    for part, out in (*linear, ("fc1", 4 * width)):
        shapes |= {f"layers.{name}.{part}.weight": (out, width), f"layers.{name}.{part}.bias": (out,)}
    return shapes | {f"layers.{name}.fc2.weight": (width, 4 * width), f"layers.{name}.fc2.bias": (width,)}


def draw_parameters(shape: AttentionShape, seed: int) -> dict[str, npt.NDArray[np.float64]]:
    """Initial tensors of one member, each from the stream (`seed`, "attentive", "init", name).

    Weights and queries are normal with standard deviation 0.02, cut at two of them, those of the last layer 0.01 as in
    linear probing; biases 0, norms 1 and 0.
    """
    drawn = {}
    for name, size in shape.parameter_shapes().items():
        if name.startswith("norms.") and name.endswith(".weight"):
            drawn[name] = np.ones(size)
        elif name.endswith(".bias"):
            drawn[name] = np.zeros(size)
        else:
            spread = _HEAD_SPREAD if name == "layers.head.weight" else _SPREAD
            values = numpy_stream(seed, "attentive", "init", name).normal(0.0, 1.0, size)
            drawn[name] = spread * values.clip(-2.0, 2.0)
    return drawn


class AttentiveHeads:
    """Members of one architecture.

    Args:
        seeds: one per member; members of one seed begin with the same weights.
    """

    def __init__(
        self, shape: AttentionShape, seeds: Sequence[int], *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.shape = shape
        self.buffers: dict[str, Tensor] = {}
        drawn = {seed: draw_parameters(shape, seed) for seed in sorted(set(seeds))}
        self.parameters = {
            name: torch.stack([torch.from_numpy(drawn[seed][name]) for seed in seeds])
            .to(dtype=dtype, device=device)
            .requires_grad_(True)
            for name in shape.parameter_shapes()
        }

    def logits(self, tokens_BTD: Tensor, *, keep_KBQE: Tensor | None = None) -> Tensor:
        """Logits of shape (K, C, B).

        Args:
            keep_KBQE: what dropout multiplies the pooled vectors with, in training.
        """
        return attentive_logits(self.shape, self.parameters, tokens_BTD, keep_KBQE)

    def select(self, member_idx: Tensor) -> None:
        """Keep only these members, in this order. Parameters become new tensors."""
        for name, parameter in self.parameters.items():
            self.parameters[name] = parameter.detach()[member_idx].requires_grad_(True)


def attentive_logits(
    shape: AttentionShape, parameters: Mapping[str, Tensor], tokens_BTD: Tensor, keep_KBQE: Tensor | None = None
) -> Tensor:
    """Logits (K, C, B) of stacked parameters; see :class:`AttentiveHeads`."""
    if shape.blocks == 1:
        pooled_KBQE, _ = _attend(shape, parameters, tokens_BTD)
    else:
        num_members = len(parameters["attentive.query"])
        pooled_KBQE = torch.stack(
            [_run_blocks(shape, _member(parameters, k), tokens_BTD)[0] for k in range(num_members)]
        )
    if keep_KBQE is not None:
        pooled_KBQE = pooled_KBQE * keep_KBQE
    return _classify(shape, parameters, pooled_KBQE)


def attention_maps(shape: AttentionShape, parameters: Mapping[str, Tensor], tokens_BTD: Tensor) -> Tensor:
    """How much each query and head of the cross-attention looks at each token, (K, B, Q, H, T); sums to 1 over T."""
    if shape.blocks == 1:
        return _attend(shape, parameters, tokens_BTD)[1]
    num_members = len(parameters["attentive.query"])
    return torch.stack([_run_blocks(shape, _member(parameters, k), tokens_BTD)[1] for k in range(num_members)])


def _attend(shape: AttentionShape, parameters: Mapping[str, Tensor], tokens_BTD: Tensor) -> tuple[Tensor, Tensor]:
    num_members, heads, each = len(parameters["attentive.query"]), shape.heads, shape.hidden // shape.heads
    num_rows, _, width = tokens_BTD.shape
    x_BTD = F.layer_norm(tokens_BTD, (width,), eps=EPSILON)
    gain_K1D, shift_KD = parameters["norms.tokens.weight"][:, None], parameters["norms.tokens.bias"]
    query_KQHE = parameters["attentive.query"].view(num_members, -1, heads, each)
    key_KHED = parameters["layers.key.weight"].view(num_members, heads, each, width)
    # a shift of all tokens changes no attention, nor would a bias of the keys: neither has one
    toward_KQHD = torch.einsum("kqhe,khed->kqhd", query_KQHE, key_KHED) * gain_K1D[:, None] * each**-0.5
    toward_JD = toward_KQHD.reshape(-1, width)
    attention_BJT = (toward_JD @ x_BTD.transpose(1, 2)).softmax(dim=2)
    seen_BJD = attention_BJT @ x_BTD
    seen_BKQHD = seen_BJD.view(num_rows, num_members, -1, heads, width)
    seen_BKQHD = seen_BKQHD * gain_K1D[:, None] + shift_KD[:, None, None]
    value_KHED = parameters["layers.value.weight"].view(num_members, heads, each, width)
    value_KBQE = torch.einsum("bkqhd,khed->kbqhe", seen_BKQHD, value_KHED).flatten(3)
    value_KBQE = value_KBQE + parameters["layers.value.bias"][:, None, None]
    out_KBQE = torch.einsum("kbqe,kfe->kbqf", value_KBQE, parameters["layers.out.weight"])
    out_KBQE = out_KBQE + parameters["layers.out.bias"][:, None, None]
    pooled_KBQE = F.layer_norm(out_KBQE, (shape.hidden,), eps=EPSILON)
    pooled_KBQE = pooled_KBQE * parameters["norms.pooled.weight"][:, None, None]
    pooled_KBQE = pooled_KBQE + parameters["norms.pooled.bias"][:, None, None]
    maps_KBQHT = attention_BJT.view(num_rows, num_members, -1, heads, attention_BJT.shape[2]).transpose(0, 1)
    return pooled_KBQE, maps_KBQHT


def _classify(shape: AttentionShape, parameters: Mapping[str, Tensor], pooled_KBQE: Tensor) -> Tensor:
    if shape.head_width is not None:
        hidden_KBQE = torch.einsum("kbqe,kfe->kbqf", pooled_KBQE, parameters["layers.hidden.weight"])
        pooled_KBQE = F.gelu(hidden_KBQE + parameters["layers.hidden.bias"][:, None, None])
    weight_KCE, bias_KC1 = parameters["layers.head.weight"], parameters["layers.head.bias"][:, :, None]
    if shape.queries == 1:
        return torch.einsum("kbe,kce->kcb", pooled_KBQE[:, :, 0], weight_KCE) + bias_KC1
    return torch.einsum("kbce,kce->kcb", pooled_KBQE, weight_KCE) + bias_KC1


def _member(parameters: Mapping[str, Tensor], k: int) -> dict[str, Tensor]:
    return {name: value[k] for name, value in parameters.items()}


def _run_blocks(shape: AttentionShape, member: Mapping[str, Tensor], tokens_BTD: Tensor) -> tuple[Tensor, Tensor]:
    """Pooled vectors (B, Q, D) and cross-attention (B, Q, H, T) of one member."""
    x_BTD = tokens_BTD
    for block in range(shape.blocks - 1):
        if torch.is_grad_enabled():
            # kept for the backward pass are the blocks' inputs alone: T is thousands
            x_BTD = checkpoint(_self_block, shape.heads, member, f"self{block}", x_BTD, use_reentrant=False)
        else:
            x_BTD = _self_block(shape.heads, member, f"self{block}", x_BTD)
    key_BHTE, value_BHTE = _split(_linear(member, "cross.kv", _norm(member, "cross.1", x_BTD)), 2, shape.heads)
    query_BQD = member["attentive.query"].expand(len(x_BTD), -1, -1)
    (query_BHQE,) = _split(_linear(member, "cross.q", query_BQD), 1, shape.heads)
    scale = (shape.hidden // shape.heads) ** -0.5
    attention_BHQT = (scale * query_BHQE @ key_BHTE.transpose(2, 3)).softmax(dim=3)
    pooled_BQD = query_BQD + (attention_BHQT @ value_BHTE).transpose(1, 2).flatten(2)
    pooled_BQD = pooled_BQD + _mlp(member, "cross", _norm(member, "cross.2", pooled_BQD))
    return pooled_BQD, attention_BHQT.transpose(1, 2)


def _self_block(heads: int, member: Mapping[str, Tensor], name: str, x_BTD: Tensor) -> Tensor:
    query, key, value = _split(_linear(member, f"{name}.qkv", _norm(member, f"{name}.1", x_BTD)), 3, heads)
    attended_BTD = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    x_BTD = x_BTD + _linear(member, f"{name}.proj", attended_BTD)
    return x_BTD + _mlp(member, name, _norm(member, f"{name}.2", x_BTD))


def _split(x_BTF: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """Queries, keys and values (B, H, T, E) out of one product."""
    rows, tokens, width = x_BTF.shape
    split_BTPHE = x_BTF.view(rows, tokens, parts, heads, width // (parts * heads))
    return tuple(split_BTPHE[:, :, part].transpose(1, 2) for part in range(parts))


def _linear(member: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, member[f"layers.{name}.weight"], member[f"layers.{name}.bias"])


def _norm(member: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    weight = member[f"norms.{name}.weight"]
    return F.layer_norm(x, weight.shape, weight, member[f"norms.{name}.bias"], EPSILON)


def _mlp(member: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return _linear(member, f"{name}.fc2", F.gelu(_linear(member, f"{name}.fc1", x)))


def read_shape(tensors: Mapping[str, npt.NDArray[Any]]) -> AttentionShape:
    """The architecture of a kept head."""
    queries, hidden = tensors["attentive.query"].shape
    blocks = 1 + sum(name.startswith("layers.self") and name.endswith(".qkv.weight") for name in tensors)
    width = hidden if "layers.key.weight" not in tensors else tensors["layers.key.weight"].shape[1]
    head_width = tensors["layers.hidden.weight"].shape[0] if "layers.hidden.weight" in tensors else None
    outputs = tensors["layers.head.weight"].shape[0]
    return AttentionShape(width, hidden, int(tensors["attentive.heads"][0]), queries, outputs, blocks, head_width)
