"""An encoder: frozen pretrained weights with the input they were trained on.

Axes: B volume, C channel, D slice, H row, W column, N token, T·H·W tokens along the volume's axes.
"""

import hashlib
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import torch
from torch import nn

from vitreous.core.fingerprints import canonical_json
from vitreous.core.input_spec import AnySpec, Modality, modality_of
from vitreous.encoders.receipt import Receipt

# part of every feature key: rises whenever a change of the forward pass changes any encoder's tokens
FORWARD_VERSION = 1

Size3 = tuple[int, int, int]
Precision = Literal["fp32", "bf16"]

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Tokens:
    """Tokens of a batch of volumes or images.

    Args:
        tokens_BND: float32; N is the product of `grid`, in the order T, H, W.
        grid: tokens along (T, H, W) of the volume; an image has one along T, a clip's T is time.
        cls_BD: the class token, float32, where the encoder has one.
    """

    tokens_BND: torch.Tensor
    grid: Size3
    cls_BD: torch.Tensor | None = None


class Backbone(Protocol):
    """What a family's module offers besides being an `nn.Module`.

    It is a stem, `num_blocks` blocks and an end; training may freeze the stem and the first blocks, and then start at
    any block from what entered it. ``forward(x)`` equals ``finish(run_blocks(embed(x), 0, num_blocks))``. An image
    comes as a volume of one slice.

    Args:
        width: D of the tokens.
        num_blocks: what a study counts when it unfreezes "the last k blocks".
        num_prefix_tokens: tokens before those of the grid; the first of them is the class token.
    """

    width: int
    num_blocks: int
    num_prefix_tokens: int

    def __call__(self, x_BCDHW: torch.Tensor) -> torch.Tensor:
        """Tokens (B, prefix + N, D)."""

    def embed(self, x_BCDHW: torch.Tensor) -> torch.Tensor:
        """What enters block 0: one tensor whose first axis is B."""

    def run_blocks(self, hidden: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """What leaves block `stop` - 1, given what enters block `start`; unchanged where both are equal."""

    def finish(self, hidden: torch.Tensor) -> torch.Tensor:
        """Tokens (B, prefix + N, D) from what left the last block."""

    def depth_of(self, name: str) -> int:
        """Where the parameter or module `name` stands: 0 stem, i + 1 block i, num_blocks + 1 the end."""

    def truncate(self, layer: int) -> None:
        """Leave out the blocks after block number `layer`, counted from 1; ValueError where the end does not fit it."""

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
        weights_hash: see :func:`hash_weights`; of all blocks, whatever `layer`.
        layer: number of the block, from 1, that the tokens are made of; None is the last.
    """

    def __init__(
        self,
        backbone: nn.Module,
        grid: Size3,
        spec: AnySpec,
        receipt: Receipt,
        *,
        width: int,
        family: str,
        architecture: dict[str, Any],
        weights_hash: str,
        precision: Precision,
        layer: int | None = None,
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
        self.layer = layer

    def forward(self, x_BCDHW: torch.Tensor) -> Tokens:
        """Encode volumes (or images, as volumes of one slice) that were preprocessed by `self.spec`.

        Raises:
            ValueError: the input's channels or size are not those of the spec.
        """
        self.check_input(x_BCDHW)
        return self.split(self.backbone(x_BCDHW))

    def check_input(self, x_BCDHW: torch.Tensor) -> None:
        """Raise ValueError unless the input has the channels and size of the spec."""
        expected = (self.spec.channels, *self.spec.size_DHW)
        if x_BCDHW.ndim != 5 or tuple(x_BCDHW.shape[1:]) != expected:
            raise ValueError(
                f"this encoder takes volumes of shape (B, {', '.join(map(str, expected))}); got "
                f"{tuple(x_BCDHW.shape)}. Preprocess them by encoder.spec."
            )

    def split(self, tokens_BND: torch.Tensor) -> Tokens:
        """Prefix tokens apart from those of the grid, in float32 unless the backbone works in float64."""
        prefix = self.num_prefix_tokens
        tokens_BND = tokens_BND.to(torch.promote_types(tokens_BND.dtype, torch.float32))
        return Tokens(tokens_BND[:, prefix:], self.grid, tokens_BND[:, 0] if prefix else None)

    @property
    def modality(self) -> Modality:
        """What the encoder is given."""
        return modality_of(self.spec)

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before those of the grid; the first of them is the class token."""
        return cast(Backbone, self.backbone).num_prefix_tokens


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
