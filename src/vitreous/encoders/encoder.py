"""An encoder: frozen pretrained weights with the input they were trained on.

Axes: B volume, C channel, D slice, H row, W column, N token, T·H·W tokens along the volume's axes.
"""

import hashlib
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import nn

from vitreous.core.fingerprints import canonical_json
from vitreous.core.input_spec import InputSpec
from vitreous.encoders.receipt import Receipt

# part of every feature key: rises whenever a change of the forward pass changes any encoder's tokens
FORWARD_VERSION = 1

Size3 = tuple[int, int, int]
Precision = Literal["fp32", "bf16"]

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Tokens:
    """Tokens of a batch of volumes.

    Args:
        tokens_BND: float32; N is the product of `grid`, in the order T, H, W.
        grid: tokens along (T, H, W) of the volume.
    """

    tokens_BND: torch.Tensor
    grid: Size3


class Backbone(Protocol):
    """What a family's module offers besides being an `nn.Module`."""

    width: int

    def __call__(self, x_BCDHW: torch.Tensor) -> torch.Tensor:
        """Tokens (B, N, D)."""

    def init_weights(self, generator: torch.Generator) -> None:
        """Initialise every weight from `generator` alone."""

    def set_precision(self, dtype: torch.dtype) -> None:
        """Prepare for inference with matrix products in `dtype`."""

    def grid_of(self, size: Size3) -> Size3:
        """Tokens along each axis for an input of `size`; ValueError where the backbone cannot take it."""


class Encoder(nn.Module):
    """A frozen backbone that knows its input; made by `load_encoder` or `build_random_encoder`.

    Args:
        architecture: plain values that rebuild the backbone.
        weights_hash: see :func:`hash_weights`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        grid: Size3,
        spec: InputSpec,
        receipt: Receipt,
        *,
        width: int,
        family: str,
        architecture: dict[str, Any],
        weights_hash: str,
        precision: Precision,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.grid = grid
        self.spec = spec
        self.receipt = receipt
        self.width = width
        self.family = family
        self.architecture = architecture
        self.weights_hash = weights_hash
        self.precision = precision

    def forward(self, x_BCDHW: torch.Tensor) -> Tokens:
        """Encode volumes that were preprocessed by `self.spec`.

        Raises:
            ValueError: the input's channels or size are not those of the InputSpec.
        """
        expected = (self.spec.channels, *self.spec.size)
        if x_BCDHW.ndim != 5 or tuple(x_BCDHW.shape[1:]) != expected:
            raise ValueError(
                f"this encoder takes volumes of shape (B, {', '.join(map(str, expected))}); got "
                f"{tuple(x_BCDHW.shape)}. Preprocess them by encoder.spec."
            )
        return Tokens(self.backbone(x_BCDHW).float(), self.grid)


def hash_weights(family: str, architecture: dict[str, Any], weights: dict[str, torch.Tensor]) -> str:
    """SHA-256 over family, architecture and every tensor's name, shape, dtype and bytes, names sorted.

    The architecture is part of it since it changes features without changing weights (number of heads, epsilon).
    """
    digest = hashlib.sha256(canonical_json({"family": family, "architecture": architecture}).encode())
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(canonical_json([name, list(tensor.shape), str(tensor.dtype)]).encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
