"""Flips, rotation, crop and change of size as one resample, and boxes to erase.

Axes: C channel, D slice, H row, W column. Angles are counter-clockwise as one looks at the slice, rows downwards.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch.nn import functional

from vitreous.core.streams import numpy_stream

Axis = Literal["D", "H", "W"]
_DIMS: dict[Axis, int] = {"D": 1, "H": 2, "W": 3}

_ERASED_SHARE = (0.02, 0.2)
_LOG_ASPECT = 0.35  # a square of area a becomes at most twice as long as wide; no side outgrows the input


@dataclass(frozen=True)
class Geometry:
    """One drawn change: flipped, then turned, then enlarged about the centre, then cropped and resized back.

    Args:
        flips: axes that are reversed.
        angle_deg: of the rotation in the slice, in pixels.
        scale: above 1 the content grows.
        kept_DHW: share of each side that the crop keeps, in (0, 1].
        place_DHW: where the kept window lies in what is left: 0 at the start of the side, 1 at its end.
    """

    flips: tuple[Axis, ...] = ()
    angle_deg: float = 0.0
    scale: float = 1.0
    kept_DHW: tuple[float, float, float] = (1.0, 1.0, 1.0)
    place_DHW: tuple[float, float, float] = (0.5, 0.5, 0.5)


def draw_geometry(
    rng_seed: int, *, flip: float, flip_axes: Sequence[Axis], rotate: float, crop: float, scale: float
) -> Geometry:
    """Uniform draws: angle in ±rotate, size in 1±scale, each side's kept share in [1 - crop, 1], its place anywhere.

    Args:
        flip: probability of each axis in `flip_axes`, independent of the others.
    """
    flips_rng, crop_rng = numpy_stream(rng_seed, "flip"), numpy_stream(rng_seed, "crop")
    kept, place = crop_rng.uniform(1 - crop, 1, size=3), crop_rng.uniform(size=3)
    return Geometry(
        flips=tuple(axis for axis in ("D", "H", "W") if flips_rng.random() < flip and axis in flip_axes),
        angle_deg=float(numpy_stream(rng_seed, "rotate").uniform(-rotate, rotate)),
        scale=float(numpy_stream(rng_seed, "scale").uniform(1 - scale, 1 + scale)),
        kept_DHW=(float(kept[0]), float(kept[1]), float(kept[2])),
        place_DHW=(float(place[0]), float(place[1]), float(place[2])),
    )


def apply_geometry(x_CDHW: torch.Tensor, geometry: Geometry, *, fill: float) -> torch.Tensor:
    """The change as one linear resample to the same size, without antialias; flips alone move values unchanged.

    A voxel is a box: what comes from inside the outermost boxes is interpolated, with the outermost values repeated
    to their rim; what comes from outside is `fill`.
    """
    if geometry.flips:
        x_CDHW = torch.flip(x_CDHW, [_DIMS[axis] for axis in geometry.flips])
    kept_D, kept_H, kept_W = geometry.kept_DHW
    if (kept_D != 1 or geometry.scale != 1) and x_CDHW.shape[1] > 1:  # nothing turns the slice axis into another
        x_CDHW = _resample_slices(x_CDHW, geometry, fill)
    if geometry.angle_deg or geometry.scale != 1 or kept_H != 1 or kept_W != 1:
        x_CDHW = _resample_rows_columns(x_CDHW, geometry, fill)
    return x_CDHW


def _offset(geometry: Geometry, axis: int, x_CDHW: torch.Tensor) -> float:
    """Centre of the kept window, in voxels from the centre of the side, before any enlargement."""
    size = x_CDHW.shape[1 + axis]
    return (geometry.place_DHW[axis] - 0.5) * (1 - geometry.kept_DHW[axis]) * size


def _centred(size: int) -> torch.Tensor:
    return torch.arange(size, dtype=torch.float64) - (size - 1) / 2


def _resample_slices(x_CDHW: torch.Tensor, geometry: Geometry, fill: float) -> torch.Tensor:
    size = x_CDHW.shape[1]
    source_D = (_centred(size) * geometry.kept_DHW[0] + _offset(geometry, 0, x_CDHW)) / geometry.scale
    inside_D = source_D.abs() <= size / 2
    idx_D = (source_D + (size - 1) / 2).clamp(0, size - 1)
    lower_D = idx_D.floor().long().clamp(max=size - 2)
    weight_D = (idx_D - lower_D).to(x_CDHW.dtype)[:, None, None]
    mixed_CDHW = torch.lerp(x_CDHW[:, lower_D], x_CDHW[:, lower_D + 1], weight_D)
    return torch.where(inside_D[:, None, None], mixed_CDHW, fill)


def _resample_rows_columns(x_CDHW: torch.Tensor, geometry: Geometry, fill: float) -> torch.Tensor:
    channels, slices, height, width = x_CDHW.shape
    y_H1 = (_centred(height) * geometry.kept_DHW[1] + _offset(geometry, 1, x_CDHW))[:, None]
    x_1W = (_centred(width) * geometry.kept_DHW[2] + _offset(geometry, 2, x_CDHW))[None]
    cos, sin = (f(math.radians(geometry.angle_deg)) / geometry.scale for f in (math.cos, math.sin))
    # grid_sample counts from -1 to 1 over the side, rim to rim
    grid_HW2 = torch.stack([(cos * x_1W - sin * y_H1) * (2 / width), (sin * x_1W + cos * y_H1) * (2 / height)], -1)
    inside_HW = (grid_HW2.abs() <= 1).all(-1)
    sampled = functional.grid_sample(
        x_CDHW.reshape(1, channels * slices, height, width),
        grid_HW2[None].to(x_CDHW.dtype),
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
    return torch.where(inside_HW, sampled.reshape(x_CDHW.shape), fill)


def draw_box(rng: np.random.Generator, size_DHW: tuple[int, ...]) -> tuple[slice, ...]:
    """A box of 2 to 20 % of the input, uniform, its sides at most about twice one another as shares; over all of a
    side of one voxel, at least one voxel of every other."""
    wide = [axis for axis, size in enumerate(size_DHW) if size > 1]
    logs = rng.uniform(-_LOG_ASPECT, _LOG_ASPECT, size=len(wide))
    shares = rng.uniform(*_ERASED_SHARE) ** (1 / len(wide)) * np.exp(logs - logs.mean())
    box = [slice(0, size) for size in size_DHW]
    for axis, share in zip(wide, shares):
        length = min(max(1, round(size_DHW[axis] * float(share))), size_DHW[axis])
        start = int(rng.integers(size_DHW[axis] - length + 1))
        box[axis] = slice(start, start + length)
    return tuple(box)
