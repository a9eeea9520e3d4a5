"""What is kept of a decoded file so that it need not be decoded again to be compared: digests, a hash, statistics.

Axes: D slice, H row, W column, B bit.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from vitreous.inputs.clip import Clip
from vitreous.inputs.image import Image
from vitreous.inputs.near_duplicates import digest_pixels, hash_picture
from vitreous.inputs.prepare import Decoded, describe_decoded
from vitreous.inputs.volume import Volume

SIGHTING_VERSION = 2  # raised when digest, hash or statistics of the same file change
MOST_FRAMES = 32  # of a clip whose frames are named; two cuts out of longer stretches hardly share those looked at
_AT_A_TIME = 16  # frames in memory
_FEWEST_VALUES = 16  # of a slice; one with fewer (blank, a mask) may be equal in two patients
_STEP = 4  # every fourth row and column is enough to count values


@dataclass(frozen=True)
class Sighting:
    """One file, as the leak gate remembers it.

    Args:
        digest: name of the decoded values; empty where the file cannot be used.
        bits_B: perceptual hash; None where there is nothing to hash.
        slices_D: names of the slices of a volume, or frames of a short clip, that show something, in no
            order.
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
    """Names of all slices of a volume, or frames of a short clip."""
    match decoded:
        case Image():
            slices: Iterable[npt.NDArray[Any]] = ()
        case Clip():
            slices = _frames_of(decoded)
        case Volume():
            slices = decoded.voxels_DHW if len(decoded.voxels_DHW) > 1 else ()
    names = {
        int.from_bytes(hashlib.blake2b(np.ascontiguousarray(one).data, digest_size=8).digest(), "little")
        for one in slices
        if len(np.unique(one[::_STEP, ::_STEP])) >= _FEWEST_VALUES
    }
    return np.array(sorted(names), dtype=np.uint64)


def _frames_of(clip: Clip) -> Iterator[npt.NDArray[Any]]:
    wanted = range(clip.start, clip.stop) if clip.num_frames <= MOST_FRAMES else range(0)
    for start in range(0, len(wanted), _AT_A_TIME):
        yield from clip.read(wanted[start : start + _AT_A_TIME])
        clip.forget()
