"""A decoded image, before any encoder's spec. Axes: H row, W column, C channel."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from vitreous.core.errors import CircumstanceError, InputError

_FLOAT32_BYTES = 4

Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Image:
    """Pixels as a camera wrote them, turned upright.

    Args:
        pixels_HWC: uint8 or uint16; one channel (grey) or three (red, green, blue).
        facts: what the file says of itself (format, bit depth, orientation), plain values.
    """

    pixels_HWC: Pixels
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def largest(self) -> int:
        """The largest value of the format: 255 or 65535."""
        return int(np.iinfo(self.pixels_HWC.dtype).max)


def check_declared_pixels(height: int, width: int, channels: int, *, max_bytes: int) -> None:
    """Refuse a declared size before anything of it is allocated.

    Raises:
        InputError: a side is empty.
        CircumstanceError: the pixels would take more than `max_bytes` as float32.
    """
    if height < 1 or width < 1:
        raise InputError(f"the header declares an empty image of {height} × {width} pixels.")
    needed = height * width * channels * _FLOAT32_BYTES
    if needed > max_bytes:
        raise CircumstanceError(
            f"the header declares {height} × {width} pixels, which take {needed:,} bytes in memory; at most "
            f"{max_bytes:,} are allowed. Check the file, or allow more bytes per image (data.max_image_mb)."
        )


def checked_image(pixels_HWC: Pixels, facts: dict[str, Any]) -> Image:
    """The image, if it shows anything.

    Raises:
        InputError: all pixels are equal.
    """
    if (pixels_HWC == pixels_HWC[0, 0]).all():
        raise InputError(f"all {pixels_HWC[..., 0].size} pixels have the same value: the image is of one colour.")
    return Image(pixels_HWC, facts)
