"""Contrast-limited adaptive histogram equalisation (CLAHE) of images of 8 and 16 bits.

Axes: H row, W column, C channel.
"""

import cv2
import numpy as np
import numpy.typing as npt

from vitreous.inputs.image import Pixels

_CLIP_LIMIT = 2.0
_TILES = (8, 8)


def clahe(pixels_HWC: Pixels) -> Pixels:
    """Local contrast of the lightness L* raised on 8 × 8 tiles with clip limit 2; hue and chroma of CIELAB stay.

    At 16 bits the lightness keeps them, and the curve of each tile is that of the image at 8 bits.

    Source: Zuiderveld (1994), Graphics Gems IV; OpenCV's `createCLAHE`.
    """
    if pixels_HWC.dtype == np.uint8:
        if pixels_HWC.shape[-1] == 1:
            return _equalised(np.asarray(pixels_HWC[..., 0], dtype=np.uint8))[..., None]
        lab_HWC = cv2.cvtColor(pixels_HWC, cv2.COLOR_RGB2LAB)
        lab_HWC[..., 0] = _equalised(np.ascontiguousarray(lab_HWC[..., 0]))
        return np.asarray(cv2.cvtColor(lab_HWC, cv2.COLOR_LAB2RGB), dtype=np.uint8)
    if pixels_HWC.shape[-1] == 1:
        return _equalised_finely((pixels_HWC[..., 0] / 257).astype(np.float32))[..., None]
    # OpenCV's CIELAB of floats has L* from 0 to 100
    lab_HWC = cv2.cvtColor(pixels_HWC.astype(np.float32) / 65535, cv2.COLOR_RGB2LAB)
    lab_HWC[..., 0] = _equalised_finely(lab_HWC[..., 0] * 2.55).astype(np.float32) * np.float32(100 / 65535)
    unit_HWC = cv2.cvtColor(lab_HWC, cv2.COLOR_LAB2RGB)
    return np.asarray(np.rint(unit_HWC * 65535).clip(0, 65535), dtype=np.uint16)


def _equalised(light_HW: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return np.asarray(cv2.createCLAHE(_CLIP_LIMIT, _TILES).apply(light_HW), dtype=np.uint8)


def _equalised_finely(light_HW: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """CLAHE with the histograms of 256 values, applied to values between them; light from 0 to 255.

    OpenCV counts 65,536 values at 16 bits, so that no tile of a usual size ever meets the clip limit.
    """
    height, width = light_HW.shape
    rows, columns = _TILES
    # as OpenCV does: where one side does not divide, both grow to their next multiple
    divides = height % rows == 0 and width % columns == 0
    grow_h, grow_w = (0, 0) if divides else (rows - height % rows, columns - width % columns)
    padded_HW = np.pad(light_HW, ((0, grow_h), (0, grow_w)), mode="reflect")
    tile_h, tile_w = padded_HW.shape[0] // rows, padded_HW.shape[1] // columns
    curves_RCV = np.empty((rows, columns, 256), dtype=np.float32)
    level_HW = np.rint(padded_HW).astype(np.uint8)
    for r in range(rows):
        for c in range(columns):
            tile = level_HW[r * tile_h : (r + 1) * tile_h, c * tile_w : (c + 1) * tile_w]
            curves_RCV[r, c] = _tile_curve(np.bincount(tile.reshape(-1), minlength=256))
    below_HW = np.floor(light_HW).astype(np.int32).clip(0, 254)
    share_HW = light_HW - below_HW

    r0, r1, share_H1 = _neighbours(height, tile_h, rows)
    c0, c1, share_1W = _neighbours(width, tile_w, columns)

    def curve_at(r_H: npt.NDArray[np.int64], c_W: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        low_HW = curves_RCV[r_H[:, None], c_W[None], below_HW]
        high_HW = curves_RCV[r_H[:, None], c_W[None], below_HW + 1]
        mapped_HW: npt.NDArray[np.float32] = low_HW + (high_HW - low_HW) * share_HW
        return mapped_HW

    share_H1, share_1W = share_H1[:, None], share_1W[None]
    top_HW = curve_at(r0, c0) * (1 - share_1W) + curve_at(r0, c1) * share_1W
    bottom_HW = curve_at(r1, c0) * (1 - share_1W) + curve_at(r1, c1) * share_1W
    return np.asarray(np.rint((top_HW * (1 - share_H1) + bottom_HW * share_H1) * 257).clip(0, 65535), dtype=np.uint16)


def _tile_curve(counts_V: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """The new value of each of 256 values: the share of darker pixels, where no count exceeds the clip limit."""
    total = int(counts_V.sum())
    limit = max(int(_CLIP_LIMIT * total / 256), 1)
    excess = int((counts_V - limit).clip(min=0).sum())
    clipped_V = counts_V.clip(max=limit) + excess // 256
    left = excess % 256
    if left:
        clipped_V[:: max(256 // left, 1)][:left] += 1
    return np.asarray(np.cumsum(clipped_V) * (255 / total), dtype=np.float32)


def _neighbours(
    length: int, tile: int, num_tiles: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The tiles whose centres enclose each pixel, and the share of the later one."""
    at = np.arange(length) / tile - 0.5
    before = np.floor(at).astype(np.int64)
    share = (at - before).astype(np.float32)
    return before.clip(0, num_tiles - 1), (before + 1).clip(0, num_tiles - 1), share
