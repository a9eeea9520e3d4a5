"""One volume as read from a file: values, axes and spacing known, never guessed.

Axes: D slice, H row, W column. Spacing in millimetres in the order (D, H, W).

| format | D | H | W |
|---|---|---|---|
| DICOM | frame, by position along the normal where the file says it | row, down the image | column |
| NIfTI | inferior → superior | anterior → posterior | right → left, as axial DICOM slices lie |
| NPY, NPZ | as the study declares (`data.axes`) | | |
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

import numpy as np
import numpy.typing as npt

from vitreous.core.errors import CircumstanceError, ConfigError, InputError

#: Part of every feature key: rises whenever any file could decode to other values, axes or spacing.
DECODER_VERSION = 1

Spacing = tuple[float, float, float]
Facts = dict[str, str | float | int]

_FLOAT32_BYTES = 4
_AXES = "DHW"
_IMAGE_AXES = ("HW", "HWC")


@dataclass(frozen=True)
class Volume:
    """Values of one volume, with what the file says about them.

    Args:
        voxels_DHW: after rescale slope and intercept, MONOCHROME1 inverted; finite, not constant.
        spacing_mm: distance between neighbouring voxel centres along D, H, W; None where neither the file nor
            the study says it.
        facts: format, transfer syntax, bits, order of frames, where the spacing comes from, and the warnings
            of the reading libraries (an empty text if none). Never a patient tag.
    """

    voxels_DHW: npt.NDArray[np.float32]
    spacing_mm: Spacing | None
    facts: Mapping[str, str | float | int] = field(default_factory=dict)


@dataclass(frozen=True)
class DeclaredAxes:
    """What the study says where a file does not (`data.axes`, `data.spacing_mm`).

    Args:
        axes: order of the array's axes, a permutation of ``DHW``; needed for NPY and NPZ, and for NIfTI that
            states no orientation. Where the arrays of an NPZ file hold images, ``HW`` (grey) or ``HWC`` (the channel
            last).
        spacing_mm: along D, H, W whatever `axes`; used only where the file states no spacing.

    Raises:
        ConfigError: the axes are no permutation of ``DHW`` and not those of an image, or a spacing is not positive.
    """

    axes: str | None = None
    spacing_mm: Spacing | None = None

    def __post_init__(self) -> None:
        problems = []
        if self.axes is not None and self.axes not in _IMAGE_AXES and sorted(self.axes) != sorted(_AXES):
            problems.append(
                f"data.axes must be a permutation of 'DHW' such as 'HWD'; got {self.axes!r} (of images: 'HW' or 'HWC')."
            )
        if self.spacing_mm is not None and not (
            len(self.spacing_mm) == 3 and all(is_length(v) for v in self.spacing_mm)
        ):
            problems.append(f"data.spacing_mm must be three positive lengths along D, H, W; got {self.spacing_mm!r}.")
        if problems:
            raise ConfigError(problems)

    def transpose_to_DHW(self) -> tuple[int, int, int]:
        """Which axis of the array becomes D, H and W.

        Raises:
            InputError: the study declares no axes, or those of images.

        >>> DeclaredAxes("HWD").transpose_to_DHW()
        (2, 0, 1)
        """
        if self.axes is None:
            raise InputError(
                "the file does not say which of its axes is D, H and W; set the study key data.axes, e.g. "
                "`data.axes: DHW`."
            )
        if self.axes in _IMAGE_AXES:
            raise InputError(f"the study declares images (data.axes: {self.axes}), and a volume was asked for.")
        return self.axes.index("D"), self.axes.index("H"), self.axes.index("W")


def is_length(value: float) -> bool:
    """Whether a stated spacing can be one: finite and above zero."""
    return bool(np.isfinite(value)) and value > 0


def check_declared_size(shape: tuple[int, ...], *, bytes_per_value: int, max_bytes: int) -> None:
    """Refuse a declared shape before anything of that size is allocated.

    Args:
        shape: axis lengths as the header states them.
        bytes_per_value: bytes of one stored value; the float32 that it becomes counts at least 4.
    Raises:
        InputError: an axis is empty.
        CircumstanceError: the volume would take more than `max_bytes`.
    """
    if any(length < 1 for length in shape):
        raise InputError(f"the header declares an empty volume of {_by(shape)} voxels.")
    needed = prod(shape) * max(bytes_per_value, _FLOAT32_BYTES)
    if needed > max_bytes:
        raise CircumstanceError(
            f"the header declares {_by(shape)} voxels, which take {needed:,} bytes in memory; at most "
            f"{max_bytes:,} are allowed. Check the file, or allow more bytes per volume (data.max_volume_gb)."
        )


def checked_volume(voxels_DHW: npt.NDArray[np.float32], spacing_mm: Spacing | None, facts: Facts) -> Volume:
    """The volume, if its values can be used.

    Raises:
        InputError: a value is NaN or infinite, or all are equal.
    """
    low, high = float(voxels_DHW.min()), float(voxels_DHW.max())
    if not np.isfinite(low) or not np.isfinite(high):
        num_nan, num_infinite = int(np.isnan(voxels_DHW).sum()), int(np.isinf(voxels_DHW).sum())
        raise InputError(
            f"{num_nan} of {voxels_DHW.size} voxels are NaN and {num_infinite} infinite; a volume needs finite values."
        )
    if low == high:
        raise InputError(f"all {voxels_DHW.size} voxels have the same value {low:g}: the volume is of one colour.")
    return Volume(voxels_DHW, spacing_mm, facts)


def _by(shape: tuple[int, ...]) -> str:
    return " × ".join(str(length) for length in shape)
