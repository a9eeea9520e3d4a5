"""What is kept of a decoded file so that it need not be decoded again to be compared: digests, a hash, statistics.

Axes: D slice, H row, W column, B bit.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from vitreous.inputs.image import Image
from vitreous.inputs.near_duplicates import digest_pixels, hash_picture
from vitreous.inputs.prepare import Decoded, describe_decoded

SIGHTING_VERSION = 1  # raised when digest, hash or statistics of the same file change
_FEWEST_VALUES = 16  # of a slice; one with fewer (blank, a mask) may be equal in two patients
_STEP = 4  # every fourth row and column is enough to count values


@dataclass(frozen=True)
class Sighting:
    """One file, as the leak gate remembers it.

    Args:
        digest: name of the decoded values; empty where the file cannot be used.
        bits_B: perceptual hash; None where there is nothing to hash.
        slices_D: names of the slices of a volume that show something, in no order.
        statistics: as of :func:`vitreous.inputs.prepare.describe_decoded`.
        exception, message: why the file cannot be used.
    """

    digest: str = ""
    bits_B: npt.NDArray[np.bool_] | None = None
    slices_D: npt.NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    statistics: Mapping[str, Any] = field(default_factory=dict)
    exception: str = ""
    message: str = ""

    @property
    def is_usable(self) -> bool:
        """Whether the file could be decoded."""
        return not self.exception


def sight(decoded: Decoded) -> Sighting:
    """Look at what was decoded."""
    return Sighting(digest_pixels(decoded), hash_picture(decoded), _name_slices(decoded), describe_decoded(decoded))


def _name_slices(decoded: Decoded) -> npt.NDArray[np.uint64]:
    if isinstance(decoded, Image) or len(decoded.voxels_DHW) < 2:
        return np.zeros(0, np.uint64)
    names = {
        int.from_bytes(hashlib.blake2b(np.ascontiguousarray(slice_HW).data, digest_size=8).digest(), "little")
        for slice_HW in decoded.voxels_DHW
        if len(np.unique(slice_HW[::_STEP, ::_STEP])) >= _FEWEST_VALUES
    }
    return np.array(sorted(names), dtype=np.uint64)
