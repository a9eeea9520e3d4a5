"""Images and volumes that show the same thing: equal values, or a perceptual hash that differs in few bits.

The hash is imagehash's pHash with 16 × 16 bits: signs, against their median, of the low frequencies of a grey 64 × 64
picture; of a volume, of its mean projection along D; of a clip, of the frame in its middle. How the threshold of 18
bits was chosen: on the 516 photographs of IDRiD (132,870 pairs) copies made by JPEG at quality 70, ±15 % brightness or
contrast, half size or 224 × 224 differ from their original in at most 14 bits, and different photographs in at least
26. In RetinaMNIST (28 × 28 pixels) the 21 pairs up to 18 bits all lie inside a split, as pictures of one eye do; the
nearest across splits differ in 20. 64 bits do not part the two: in IDRiD 378 pairs of different photographs lie within
4 bits, where copies reach 4.

Axes: N item, H row, W column, C channel, D slice; B bit of the hash.
"""

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from vitreous.inputs.clip import Clip
from vitreous.inputs.image import Image
from vitreous.inputs.prepare import Decoded
from vitreous.inputs.volume import Volume

MAX_DISTANCE = 18  # bits of 256
_HASH_SIDE = 16
_PICTURE_SIDE = 4 * _HASH_SIDE  # as imagehash has it: four times the frequencies kept
NUM_BITS = _HASH_SIDE**2
_BLOCK = 2048  # rows compared at a time


def digest_pixels(decoded: Decoded) -> str:
    """A name of the decoded values, their type and shape, whatever the file around them; 32 hex digits.

    Of a clip it is that of the frame in its middle, with the length of the stretch.
    """
    values: npt.NDArray[Any]
    match decoded:
        case Image():
            values, length = decoded.pixels_HWC, ""
        case Clip():
            values, length = decoded.read([decoded.middle])[0], f"{decoded.num_frames} frames"
        case _:
            values, length = decoded.voxels_DHW, ""
    digest = hashlib.blake2b(f"{length}{values.dtype}{values.shape}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def hash_picture(decoded: Decoded) -> npt.NDArray[np.bool_] | None:
    """The perceptual hash, 256 bits; None where the grey picture has one value and there is nothing to compare.

    It does not change with brightness or contrast as such, as the grey values are stretched to the full range first.
    """
    import imagehash
    from PIL import Image as pillow

    small_HW = np.asarray(
        pillow.fromarray(_grey(decoded)).resize((_PICTURE_SIDE, _PICTURE_SIDE), pillow.Resampling.LANCZOS)
    )
    low, high = float(small_HW.min()), float(small_HW.max())
    if low == high:
        return None
    stretched_HW = np.rint((small_HW - low) * (255 / (high - low))).astype(np.uint8)
    hashed = imagehash.phash(pillow.fromarray(stretched_HW), hash_size=_HASH_SIDE)  # its own resize finds 64 × 64
    bits: npt.NDArray[np.bool_] = hashed.hash.reshape(-1)
    return bits


def find_near_pairs(
    hashes_NB: npt.NDArray[np.bool_], max_distance: int = MAX_DISTANCE
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Every pair of rows that differ in at most `max_distance` bits; exact, by products of ±1 in blocks.

    Returns:
        pairs (number, 2) with the first index below the second, in ascending order, and their distances.

    >>> hashes_NB = np.array([[0, 0, 1, 1], [0, 0, 1, 0], [1, 1, 0, 0]], dtype=bool)
    >>> pairs, distances = find_near_pairs(hashes_NB, 1)
    >>> pairs.tolist(), distances.tolist()
    ([[0, 1]], [1])
    """
    num_rows, num_bits = hashes_NB.shape
    if not 0 <= max_distance <= num_bits:
        raise ValueError(f"max_distance of find_near_pairs must lie in 0…{num_bits} bits; got {max_distance}.")
    signs_NB = hashes_NB.astype(np.float32) * 2 - 1
    pairs, distances = [np.zeros((0, 2), np.int64)], [np.zeros(0, np.int64)]
    for start in range(0, num_rows, _BLOCK):
        rows_NB = signs_NB[start : start + _BLOCK]
        # whole numbers below 2^24, so float32 is exact
        distance_NN = (num_bits - rows_NB @ signs_NB[start:].T) / 2
        first_N, second_N = np.nonzero(np.triu(distance_NN <= max_distance, k=1))
        pairs.append(np.stack([first_N + start, second_N + start], axis=1))
        distances.append(distance_NN[first_N, second_N].astype(np.int64))
    return np.concatenate(pairs), np.concatenate(distances)


def _grey(decoded: Decoded) -> npt.NDArray[np.float32]:
    if isinstance(decoded, Volume):
        return np.ascontiguousarray(decoded.voxels_DHW.mean(axis=0), dtype=np.float32)
    pixels_HWC = decoded.pixels_HWC if isinstance(decoded, Image) else decoded.read([decoded.middle])[0]
    if pixels_HWC.shape[-1] == 1:
        return pixels_HWC[..., 0].astype(np.float32)
    weights_C = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow's "L"
    return pixels_HWC @ weights_C
