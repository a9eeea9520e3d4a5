"""From a volume to the tensor that an encoder was trained on, exactly as its InputSpec says.

Axes: C channel, D slice, H row, W column. The same volume and spec give the same bits, whatever the number of
threads.
"""

from dataclasses import dataclass
from typing import assert_never

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from vitreous.core.errors import InputError
from vitreous.core.input_spec import (
    ClipRange,
    FixedMeanStd,
    InputSpec,
    PercentileMinMaxGamma,
    Unchanged,
    ZScore,
)
from vitreous.inputs.volume import Spacing, Volume

#: Part of every feature key: rises whenever any volume and spec could give another tensor.
PREPROCESSING_VERSION = 1

#: Values that bracket a rank before any is selected, and how far around the rank the bracket reaches in them.
_SAMPLE = 1 << 16
_MARGIN = 1 << 9


def preprocess_volume(volume: Volume, spec: InputSpec) -> torch.Tensor:
    """The input of an encoder: float32 (C, D, H, W), finite.

    1. With `spec.spacing_mm`, interpolation on a grid of that spacing and of `spec.size` points, whose centre
       is the volume's; points outside the volume take its minimum. Without, a plain resize to `spec.size`
       (`torch.nn.functional.interpolate`, `align_corners=False`; "nearest" is its nearest-exact). Neither
       smooths first (no antialias), since the encoders of this field were pretrained without.
    2. `spec.normalisation` over all voxels of the result, added padding included. `zscore` uses the
       population's standard deviation; a percentile lies linearly between the two nearest ranks.
    3. The grey channel repeated `spec.channels` times.

    Raises:
        InputError: the spec asks for a spacing that the volume does not have, or the resized values cannot be
            normalised.
    """
    if spec.spacing_mm is None:
        values_DHW = _resize(volume.voxels_DHW, spec)
    else:
        if volume.spacing_mm is None:
            raise InputError(
                f"the encoder needs a spacing of {spec.spacing_mm} mm, but neither the file nor the study "
                "says the volume's; set the study key data.spacing_mm."
            )
        with np.errstate(over="ignore", invalid="ignore"):
            values_DHW = _resample(volume.voxels_DHW, volume.spacing_mm, spec.spacing_mm, spec)
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused below
        tensor_CDHW = _normalise(values_DHW, spec)
    # minimum and maximum carry NaN and infinity along
    low, high = torch.aminmax(tensor_CDHW)
    if not torch.isfinite(low) or not torch.isfinite(high):
        raise InputError(f"normalisation {spec.normalisation.kind} gave values that are not finite.")
    return tensor_CDHW


def _resize(voxels_DHW: npt.NDArray[np.float32], spec: InputSpec) -> torch.Tensor:
    voxels_11DHW = torch.from_numpy(voxels_DHW)[None, None]
    if tuple(voxels_DHW.shape) == spec.size:
        return voxels_11DHW[0, 0].clone()
    if spec.interpolation == "nearest":
        return functional.interpolate(voxels_11DHW, size=spec.size, mode="nearest-exact")[0, 0]
    return functional.interpolate(voxels_11DHW, size=spec.size, mode="trilinear", align_corners=False)[0, 0]


@dataclass(frozen=True)
class _AxisGrid:
    """Where the points of one output axis lie on the input axis.

    Args:
        lower, upper: the two neighbours of each point.
        weight: of the upper one.
        inside: the output points that lie within the volume.
    """

    lower: npt.NDArray[np.int64]
    upper: npt.NDArray[np.int64]
    weight: npt.NDArray[np.float32]
    inside: slice


def _axis_grid(num_in: int, num_out: int, step: float, *, is_nearest: bool) -> _AxisGrid:
    at = (np.arange(num_out) + 0.5 - num_out / 2) * step + num_in / 2 - 0.5
    # a voxel reaches half a step beyond its centre; 1e-6 keeps a point on that edge inside despite rounding
    inside = np.flatnonzero((at >= -0.5 - 1e-6) & (at <= num_in - 0.5 + 1e-6))
    if len(inside) == 0:
        raise InputError(f"an axis of {num_in} voxels has no point on a grid whose step is {step:g} voxels.")
    start, stop = int(inside[0]), int(inside[-1]) + 1
    at = np.clip(at[start:stop], 0, num_in - 1)
    lower = np.floor(at + 0.5 if is_nearest else at).astype(np.int64).clip(max=num_in - 1)
    weight = np.zeros(len(at)) if is_nearest else at - lower
    return _AxisGrid(lower, (lower + 1).clip(max=num_in - 1), weight.astype(np.float32), slice(start, stop))


def _resample(
    voxels_DHW: npt.NDArray[np.float32], spacing_mm: Spacing, target_mm: Spacing, spec: InputSpec
) -> torch.Tensor:
    """Interpolate along one axis after the other, only at the points that are kept."""
    grids = [
        _axis_grid(num_in, num_out, target / spacing, is_nearest=spec.interpolation == "nearest")
        for num_in, num_out, target, spacing in zip(voxels_DHW.shape, spec.size, target_mm, spacing_mm, strict=True)
    ]
    values = voxels_DHW
    # the axis that shrinks most goes first, so that the later ones have less to do
    for axis in sorted(range(3), key=lambda a: len(grids[a].lower) / voxels_DHW.shape[a]):
        grid = grids[axis]
        between = np.take(values, grid.lower, axis=axis)
        if grid.weight.any():
            slope = np.take(values, grid.upper, axis=axis)
            slope -= between
            slope *= grid.weight.reshape([-1 if a == axis else 1 for a in range(3)])
            between += slope
        values = between
    if values.shape == spec.size:
        return torch.from_numpy(values)
    padded_DHW = np.full(spec.size, voxels_DHW.min(), dtype=np.float32)
    padded_DHW[grids[0].inside, grids[1].inside, grids[2].inside] = values
    return torch.from_numpy(padded_DHW)


def _normalise(values_DHW: torch.Tensor, spec: InputSpec) -> torch.Tensor:
    """Normalised values, (C, D, H, W); may reuse the memory of `values_DHW`."""
    kind = spec.normalisation
    match kind:
        case ZScore():
            mean, std = mean_and_std(values_DHW.numpy())
            if std <= 0:
                raise InputError("the volume is constant after the resize: it has no standard deviation to divide by.")
            normalised_DHW = values_DHW.sub_(mean).div_(std)
        case PercentileMinMaxGamma():
            low, high = _percentiles(values_DHW.numpy(), kind.lower_percentile, kind.upper_percentile)
            if low >= high:
                raise InputError(
                    f"the percentiles {kind.lower_percentile:g} and {kind.upper_percentile:g} of the volume "
                    f"are both {low:g}: there is no range to bring to [0, 1]."
                )
            normalised_DHW = values_DHW.sub_(low).div_(high - low).clamp_(0, 1)
            # numpy's power, since torch's gives other bits where a thread's share of the voxels ends
            unit_DHW = normalised_DHW.numpy()
            np.power(unit_DHW, np.float32(kind.gamma), out=unit_DHW)
        case ClipRange():
            normalised_DHW = values_DHW.clamp_(kind.low, kind.high).sub_(kind.low).div_(kind.high - kind.low)
        case FixedMeanStd():
            start, stop = kind.value_range
            scaled_DHW = values_DHW.sub_(start).div_(stop - start)
            channels = [scaled_DHW.sub(mean).div_(std) for mean, std in zip(kind.mean, kind.std, strict=True)]
            return torch.stack(channels) if len(channels) > 1 else _repeat(channels[0], spec.channels)
        case Unchanged():
            normalised_DHW = values_DHW
        case _:
            assert_never(kind)
    return _repeat(normalised_DHW, spec.channels)


def _repeat(values_DHW: torch.Tensor, num_channels: int) -> torch.Tensor:
    return values_DHW[None].expand(num_channels, -1, -1, -1).contiguous()


def mean_and_std(values_DHW: npt.NDArray[np.float32]) -> tuple[float, float]:
    """Mean and population standard deviation of all voxels, summed in float64 in a fixed order."""
    count = values_DHW.size
    mean = sum(float(values_HW.sum(dtype=np.float64)) for values_HW in values_DHW) / count
    squares = 0.0
    for values_HW in values_DHW:
        off_HW = values_HW.astype(np.float64) - mean
        squares += float(np.square(off_HW, out=off_HW).sum())
    return mean, float(np.sqrt(squares / count))


def _percentiles(values_DHW: npt.NDArray[np.float32], *percentiles: float) -> list[float]:
    """Exact percentiles, linear between the nearest ranks: numpy's "linear", in float64."""
    values = values_DHW.reshape(-1)
    found = []
    for percentile in percentiles:
        rank = percentile / 100 * (values.size - 1)
        below, above = _at_ranks(values, int(rank), min(int(rank) + 1, values.size - 1))
        found.append(below + (above - below) * (rank - int(rank)))
    return found


def _at_ranks(values: npt.NDArray[np.float32], first: int, last: int) -> tuple[float, float]:
    """The values at two neighbouring ranks of the sorted values.

    A sorted sample brackets the ranks, and only what lies in the bracket is selected from.
    """
    sample = np.sort(values[:: max(1, values.size // _SAMPLE)])
    start = max(int(first / values.size * sample.size) - _MARGIN, 0)
    stop = min(int(last / values.size * sample.size) + _MARGIN, sample.size - 1)
    # at the ends of the sample the bracket is open
    low = sample[start] if start > 0 else np.float32(-np.inf)
    high = sample[stop] if stop < sample.size - 1 else np.float32(np.inf)
    num_below = int(np.count_nonzero(values < low))
    inside = values[(values >= low) & (values <= high)]
    if not num_below <= first <= last < num_below + inside.size:
        num_below, inside = 0, values.copy()  # an unlucky sample: select from all
    inside.partition(sorted({first - num_below, last - num_below}))
    return float(inside[first - num_below]), float(inside[last - num_below])
