"""Family `pixels`: no network at all, the values of a small copy of the input. What an encoder must beat.

Axes: B batch, C channel, D slice, H row, W column.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn

from vitreous.core.errors import CheckpointError
from vitreous.core.input_spec import ClipSpec, ImageSpec, InputSpec, ZScore
from vitreous.encoders.encoder import Size3
from vitreous.encoders.family import Architecture, Family, Inferred

Positive = Annotated[int, Field(gt=0)]


class PixelsArchitecture(Architecture):
    """Size of the copy: (D, H, W) voxels of a volume, (H, W) of an image, (T, H, W) of a clip's frames."""

    volume_size: tuple[Positive, Positive, Positive] = (8, 24, 24)
    image_size: tuple[Positive, Positive] = (28, 28)
    clip_size: tuple[Positive, Positive, Positive] = (4, 16, 16)
    modality: str = "volume"


class Pixels(nn.Module):
    """Every value as one feature: one token of C·D·H·W numbers. It has no weights and no blocks."""

    num_blocks = 0
    num_prefix_tokens = 0

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def init_weights(self, generator: torch.Generator) -> None:
        """There are none."""

    def truncate(self, layer: int) -> None:
        """There are no blocks to leave out."""

    def set_precision(self, dtype: torch.dtype) -> None:
        """Nothing is computed, so nothing is cast."""

    def grid_of(self, size: Size3) -> Size3:
        """One token."""
        return (1, 1, 1)

    def embed(self, x_BCDHW: torch.Tensor) -> torch.Tensor:
        """(B, 1, C·D·H·W)."""
        return x_BCDHW.flatten(1)[:, None]

    def run_blocks(self, hidden: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Unchanged: there are no blocks."""
        return hidden

    def finish(self, hidden: torch.Tensor) -> torch.Tensor:
        """Unchanged."""
        return hidden

    def depth_of(self, name: str) -> int:
        """Everything is the stem."""
        return 0

    def forward(self, x_BCDHW: torch.Tensor) -> torch.Tensor:
        return self.embed(x_BCDHW)


def _infer(
    where: str, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], options: Mapping[str, Any]
) -> Inferred:
    raise CheckpointError(f"{where}: family pixels has no weights to read; take it with `random: {{}}`.")


def _build(architecture: PixelsArchitecture) -> Pixels:
    if architecture.modality == "image":
        rows, columns = architecture.image_size
        return Pixels(3 * rows * columns)
    if architecture.modality == "clip":
        frames, rows, columns = architecture.clip_size
        return Pixels(3 * frames * rows * columns)
    depth, rows, columns = architecture.volume_size
    return Pixels(depth * rows * columns)


def _volume_spec(architecture: PixelsArchitecture) -> InputSpec:
    """A small copy, brought to mean 0 and standard deviation 1 over its voxels, as scanners differ in scale."""
    return InputSpec(size=architecture.volume_size, normalisation=ZScore())


def _image_spec(architecture: PixelsArchitecture) -> ImageSpec:
    """A small copy in colour, values from 0 to 1."""
    return ImageSpec(size=architecture.image_size, interpolation="bilinear", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def _clip_spec(architecture: PixelsArchitecture) -> ClipSpec:
    """Small copies of neighbouring frames in colour, values from 0 to 1; a short clip repeats its ends, since the floor
    must not lose clips that encoders can use."""
    frames, rows, columns = architecture.clip_size
    return ClipSpec(
        size=(rows, columns), frames=frames, step=1, padding="repeat", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
    )


PIXELS = Family(
    architecture=PixelsArchitecture,
    build=_build,
    infer=_infer,
    default_specs={"volume": _volume_spec, "image": _image_spec, "clip": _clip_spec},
    anchor="",
    prefixes={"only": ("",)},
    rules={"only": {}},
    options=frozenset(PixelsArchitecture.model_fields),
    fixed={"volume": {"modality": "volume"}, "image": {"modality": "image"}, "clip": {"modality": "clip"}},
)
