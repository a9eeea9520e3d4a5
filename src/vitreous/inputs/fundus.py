"""Steps for fundus photographs that a study can ask for by name.

Axes: H row, W column, C channel, N point.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

import cv2
import numpy as np
import numpy.typing as npt

from vitreous.core.errors import InputError
from vitreous.core.input_spec import FundusStep
from vitreous.inputs.contrast import clahe

_Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

#: The disc is sought in a copy whose longer side has so many pixels.
_SEARCH_SIDE = 512
_SEARCH_BLUR = 1.0
#: The disc is brighter than this share of the image's bright end (99th percentile).
_THRESHOLD = 0.1
#: At least this share of the disc's edge must lie inside the image, and this share of its area must be bright.
_MIN_EDGE = 0.15
_MIN_OVERLAP = 0.85

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


def apply_fundus_steps(pixels_HWC: _Pixels, steps: Sequence[FundusStep]) -> _Pixels:
    """The image after the steps, one after the other.

    Raises:
        InputError: a step needs the disc, and none is found.
    """
    for step in steps:
        match step:
            case "circle_crop":
                pixels_HWC = circle_crop(pixels_HWC)
            case "ben_graham":
                pixels_HWC = ben_graham(pixels_HWC)
            case "clahe":
                pixels_HWC = clahe(pixels_HWC)
            case _:
                assert_never(step)
    return pixels_HWC


def circle_crop(pixels_HWC: _Pixels) -> _Pixels:
    """The square around the disc, black outside of it, also where the square leaves the image.

    Raises:
        InputError: no disc is found.
    """
    disc = find_disc(pixels_HWC)
    side = max(round(2 * disc.radius), 1)
    top, left = round(disc.row - (side - 1) / 2), round(disc.column - (side - 1) / 2)
    height, width, channels = pixels_HWC.shape
    rows, columns = slice(max(top, 0), min(top + side, height)), slice(max(left, 0), min(left + side, width))
    cropped_HWC = np.zeros((side, side, channels), dtype=pixels_HWC.dtype)
    cropped_HWC[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = pixels_HWC[
        rows, columns
    ]
    cropped_HWC[~_inside((side, side), Disc(disc.row - top, disc.column - left, disc.radius))] = 0
    return cropped_HWC


def ben_graham(pixels_HWC: _Pixels) -> _Pixels:
    """Four times the difference from the local mean, around mid-grey: evens out light and colour of the camera.

    ``4 · image − 4 · blurred + 128`` clipped to the range of the format (128 · 257 at 16 bits), where the blur is a
    Gaussian with the disc's radius / 30 as standard deviation; mid-grey outside the disc. Graham also cuts the disc
    at 0.9 of its radius; here it stays whole.

    Raises:
        InputError: no disc is found.

    Source: Graham (2015), Kaggle diabetic retinopathy detection competition report.
    """
    disc = find_disc(pixels_HWC)
    middle = 128 if pixels_HWC.dtype == np.uint8 else 128 * 257
    blurred_HWC = np.asarray(cv2.GaussianBlur(pixels_HWC, (0, 0), disc.radius / 30)).reshape(pixels_HWC.shape)
    scaled_HWC = 4 * (pixels_HWC.astype(np.int32) - blurred_HWC) + middle
    evened_HWC: _Pixels = scaled_HWC.clip(0, np.iinfo(pixels_HWC.dtype).max).astype(pixels_HWC.dtype)
    evened_HWC[~_inside(pixels_HWC.shape, disc)] = middle
    return evened_HWC


def find_disc(pixels_HWC: _Pixels) -> Disc:
    """The circle through the edge between the bright disc and its dark surround, by least squares.

    The brightest channel is thresholded after a slight blur; of its largest region, the edge points inside the
    image count, so that a disc cut off by the image's border keeps its true circle.

    Raises:
        InputError: there is no bright region, no dark surround, or the region is no disc.
    """
    brightest_HW = pixels_HWC.max(axis=-1).astype(np.float32)
    scale = max(max(brightest_HW.shape) / _SEARCH_SIDE, 1.0)
    height, width = (max(round(side / scale), 1) for side in brightest_HW.shape)
    small_HW = cv2.resize(brightest_HW, (width, height), interpolation=cv2.INTER_AREA)
    small_HW = cv2.GaussianBlur(small_HW, (0, 0), _SEARCH_BLUR)
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
    small = _circle_through(row_N[is_free_N], column_N[is_free_N])
    if small is None or is_free_N.sum() < _MIN_EDGE * 2 * np.pi * small.radius:
        raise InputError(_NO_DISC.format("too little of its edge lies inside the image"))
    inside_HW = _inside((height, width), small)
    overlap = (inside_HW & (filled_HW > 0)).sum() / max((inside_HW | (filled_HW > 0)).sum(), 1)
    if overlap < _MIN_OVERLAP:
        raise InputError(_NO_DISC.format("the bright region is not round"))
    row_scale, column_scale = brightest_HW.shape[0] / height, brightest_HW.shape[1] / width
    return Disc(
        (small.row + 0.5) * row_scale - 0.5, (small.column + 0.5) * column_scale - 0.5, small.radius * column_scale
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
