"""Steps for fundus photographs that a study can ask for by name.

Axes: H row, W column, C channel, N point.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import assert_never

import cv2
import numpy as np
import numpy.typing as npt

from vitreous.core.errors import InputError
from vitreous.core.input_spec import FundusStep
from vitreous.inputs.contrast import clahe
from vitreous.inputs.image import Pixels

#: The disc is sought in a copy whose longer side has so many pixels.
_SEARCH_SIDE = 512
_SEARCH_BLUR = 1.0
#: The disc is brighter than this share of the image's bright end (99th percentile).
_THRESHOLD = 0.1
#: At least this share of the disc's edge must lie inside the image, and this share of its area must be bright.
_MIN_EDGE = 0.1
_MIN_OVERLAP = 0.85

_NEED_DISC: set[FundusStep] = {"circle_crop", "ben_graham"}
#: A Gaussian of this standard deviation in pixels is still sampled finely.
_SMALL_SIGMA = 8.0

_NO_DISC = (
    "no fundus disc was found: {}. Leave out the fundus steps circle_crop and ben_graham, or give photographs that "
    "show the bright disc on its dark surround."
)


@dataclass(frozen=True)
class Disc:
    """The bright disc of a fundus photograph, in pixels; its edge may leave the image.

    Args:
        row, column: of the centre; pixel centres lie at whole numbers.
    """

    row: float
    column: float
    radius: float


def apply_fundus_steps(pixels_HWC: Pixels, steps: Sequence[FundusStep]) -> Pixels:
    """The image after the steps, one after the other. The disc is that of the image before any step.

    Raises:
        InputError: a step needs the disc, and none is found.
    """
    disc = find_disc(pixels_HWC) if _NEED_DISC.intersection(steps) else Disc(0, 0, 0)
    for step in steps:
        match step:
            case "circle_crop":
                pixels_HWC, disc = circle_crop(pixels_HWC, disc)
            case "ben_graham":
                pixels_HWC = ben_graham(pixels_HWC, disc)
            case "clahe":
                pixels_HWC = clahe(pixels_HWC)
            case _:
                assert_never(step)
    return pixels_HWC


def circle_crop(pixels_HWC: Pixels, disc: Disc) -> tuple[Pixels, Disc]:
    """The square around the disc, black outside of it, also where the square leaves the image; and the disc there."""
    side = max(round(2 * disc.radius), 1)
    top, left = round(disc.row - (side - 1) / 2), round(disc.column - (side - 1) / 2)
    height, width, channels = pixels_HWC.shape
    rows, columns = slice(max(top, 0), min(top + side, height)), slice(max(left, 0), min(left + side, width))
    cropped_HWC = np.zeros((side, side, channels), dtype=pixels_HWC.dtype)
    cropped_HWC[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = pixels_HWC[
        rows, columns
    ]
    moved = Disc(disc.row - top, disc.column - left, disc.radius)
    cropped_HWC[~_inside(cropped_HWC.shape, moved)] = 0
    return cropped_HWC, moved


def ben_graham(pixels_HWC: Pixels, disc: Disc) -> Pixels:
    """Four times the difference from the local mean, around mid-grey: evens out light and colour of the camera.

    ``4 · image − 4 · blurred + 128`` clipped to the range of the format (128 · 257 at 16 bits), where the blur is a
    Gaussian with the disc's radius / 30 as standard deviation; mid-grey outside the disc. Graham also cuts the disc
    at 0.9 of its radius and blurs whole numbers; here it stays whole, and the blur is rounded with the result.

    Source: Graham (2015), Kaggle diabetic retinopathy detection competition report.
    """
    middle, largest = (128, 255) if pixels_HWC.dtype == np.uint8 else (128 * 257, 65535)
    difference_HWC = pixels_HWC - _wide_blur(pixels_HWC.astype(np.float32), disc.radius / 30)
    scaled_HWC = np.rint(4 * difference_HWC + middle).clip(0, largest)
    scaled_HWC[~_inside(pixels_HWC.shape, disc)] = middle
    evened_HWC: Pixels = scaled_HWC.astype(pixels_HWC.dtype)
    return evened_HWC


def _wide_blur(values_HWC: npt.NDArray[np.float32], sigma: float) -> npt.NDArray[np.float32]:
    """Gaussian blur; a wide one on a smaller copy, whose reduction and enlargement blur their part of it."""
    height, width, channels = values_HWC.shape
    factor = max(int(sigma // _SMALL_SIGMA), 1)
    # the variance of a box of `factor` pixels, and of the triangle of linear interpolation
    variance = sigma**2 - (factor**2 - 1) / 12 - (factor**2 / 6 if factor > 1 else 0)
    # whole blocks, and the mirrored border goes on beyond them as far as the blur reaches
    reach = factor * ceil(4 * sigma / factor) if factor > 1 else 0
    below, right = -height % factor + reach, -width % factor + reach
    padded = cv2.copyMakeBorder(values_HWC, 0, below, 0, right, cv2.BORDER_REFLECT)
    small_size = padded.shape[1] // factor, padded.shape[0] // factor
    small = cv2.resize(padded, small_size, interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), max(variance, 0.0) ** 0.5 / factor, borderType=cv2.BORDER_REFLECT)
    blurred = cv2.resize(small, (padded.shape[1], padded.shape[0]), interpolation=cv2.INTER_LINEAR)
    return np.asarray(blurred, dtype=np.float32).reshape(*padded.shape[:2], channels)[:height, :width]


def find_disc(pixels_HWC: Pixels) -> Disc:
    """The circle through the edge between the bright disc and its dark surround, by least squares.

    The brightest channel is thresholded after a slight blur; of its largest region, the edge points inside the
    image count, so that a disc cut off by the image's border keeps its true circle.

    Raises:
        InputError: there is no bright region, no dark surround, or the region is no disc.
    """
    full_height, full_width = pixels_HWC.shape[:2]
    scale = max(max(full_height, full_width) / _SEARCH_SIDE, 1.0)
    height, width = (max(round(side / scale), 1) for side in (full_height, full_width))
    small = cv2.resize(pixels_HWC, (width, height), interpolation=cv2.INTER_AREA)
    brightest_HW = small.reshape(height, width, -1).max(axis=-1).astype(np.float32)
    # a blur moves the edge outwards, so that small images get less of it
    sigma = _SEARCH_BLUR * max(height, width) / _SEARCH_SIDE
    small_HW = cv2.GaussianBlur(brightest_HW, (0, 0), sigma)
    is_bright_HW = (small_HW > _THRESHOLD * np.percentile(small_HW, 99)).astype(np.uint8)
    num_regions, region_HW, stats, _ = cv2.connectedComponentsWithStats(is_bright_HW, connectivity=4)
    if num_regions < 2:
        raise InputError(_NO_DISC.format("nothing in the image is bright"))
    largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    contours, _ = cv2.findContours((region_HW == largest).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    outline = max(contours, key=len)
    filled_HW = np.zeros((height, width), dtype=np.uint8)
    cv2.drawContours(filled_HW, [outline], -1, 1, thickness=-1)
    column_N, row_N = outline[:, 0, 0].astype(np.float64), outline[:, 0, 1].astype(np.float64)
    is_free_N = (column_N > 1) & (column_N < width - 2) & (row_N > 1) & (row_N < height - 2)
    if is_free_N.sum() < 16:
        raise InputError(_NO_DISC.format("the image has no dark surround"))
    found = _circle_through(row_N[is_free_N], column_N[is_free_N])
    if found is None or is_free_N.sum() < _MIN_EDGE * 2 * np.pi * found.radius:
        raise InputError(_NO_DISC.format("too little of its edge lies inside the image"))
    inside_HW = _inside((height, width), found)
    overlap = (inside_HW & (filled_HW > 0)).sum() / max((inside_HW | (filled_HW > 0)).sum(), 1)
    if overlap < _MIN_OVERLAP:
        raise InputError(_NO_DISC.format("the bright region is not round"))
    row_scale, column_scale = full_height / height, full_width / width
    return Disc(
        float((found.row + 0.5) * row_scale - 0.5),
        float((found.column + 0.5) * column_scale - 0.5),
        float(found.radius * max(row_scale, column_scale)),
    )


def _circle_through(row_N: npt.NDArray[np.float64], column_N: npt.NDArray[np.float64]) -> Disc | None:
    """Least-squares circle, fitted again without the points that lie far off (notches, glare); None if there is none.

    Source: Kåsa (1976), IEEE Trans. Instrumentation and Measurement 25(1): the algebraic fit.
    """
    for _ in range(4):
        design_N3 = np.stack([row_N, column_N, np.ones_like(row_N)], axis=1)
        (a, b, c), _, rank, _ = np.linalg.lstsq(design_N3, row_N**2 + column_N**2, rcond=None)
        squared = c + (a / 2) ** 2 + (b / 2) ** 2
        if rank < 3 or squared <= 0:
            return None
        disc = Disc(a / 2, b / 2, float(np.sqrt(squared)))
        off_N = np.abs(np.hypot(row_N - disc.row, column_N - disc.column) - disc.radius)
        is_near_N = off_N <= max(1.5, 2.5 * float(np.median(off_N)))
        if is_near_N.all():
            break
        row_N, column_N = row_N[is_near_N], column_N[is_near_N]
    # outline points are the centres of the outermost pixels, half a pixel inside the edge
    return Disc(disc.row, disc.column, disc.radius + 0.5)


def _inside(shape: tuple[int, ...], disc: Disc) -> npt.NDArray[np.bool_]:
    row_H1, column_1W = np.ogrid[: shape[0], : shape[1]]
    inside: npt.NDArray[np.bool_] = (row_H1 - disc.row) ** 2 + (column_1W - disc.column) ** 2 <= disc.radius**2
    return inside
