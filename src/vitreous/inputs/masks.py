"""Class maps of frames (PNG), brought to where the encoder's picture lies.

Axes: H row, W column; h, w of what is asked for.
"""

import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL.PngImagePlugin import PngImageFile

from vitreous.core.errors import CircumstanceError, InputError
from vitreous.inputs.clip_preprocessing import Placement
from vitreous.inputs.image import check_declared_pixels

#: Of a prepared mask: pixels that say nothing, and what lies outside of the frame.
IGNORE_INDEX = 255
_MODES = ("1", "L", "P")  # Pillow's: one value a pixel, of a palette its place and not its colour
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)


def decode_mask(path: Path, *, num_classes: int, ignore: int | None, max_bytes: int) -> npt.NDArray[np.uint8]:
    """One class map (H, W): classes from 0, and `IGNORE_INDEX` where the file has `ignore`.

    Raises:
        InputError: the file is no PNG with one value of eight bits a pixel, is damaged, or holds an unknown class.
        CircumstanceError: it cannot be read, or declares more than `max_bytes` as float32.
    """
    try:
        with PngImageFile(path) as reader:
            check_declared_pixels(reader.height, reader.width, 1, max_bytes=max_bytes)
            if reader.mode not in _MODES:
                raise InputError(
                    f"a mask is a PNG with one value of eight bits a pixel; this one has the mode {reader.mode}. Save "
                    "class indices, in grey or with a palette."
                )
            values_HW = np.array(reader).astype(np.uint8)
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise CircumstanceError(f"the mask cannot be read: {error.strerror}.") from None
    except _DAMAGE as error:
        raise InputError(
            f"the mask is no PNG, damaged or truncated ({type(error).__name__}). Fetch it again."
        ) from None
    is_ignored_HW = np.zeros(values_HW.shape, bool) if ignore is None else values_HW == ignore
    unknown, counts = np.unique(values_HW[(values_HW >= num_classes) & ~is_ignored_HW], return_counts=True)
    if len(unknown):
        named = ", ".join(f"{value} ({count} pixels)" for value, count in zip(unknown[:5], counts[:5], strict=True))
        also = "" if ignore is None else f", and {ignore} for what is ignored"
        raise InputError(
            f"the mask holds an unknown class: {named}; data.masks.classes names 0…{num_classes - 1}{also}. Name the "
            "class, or set data.masks.ignore."
        )
    values_HW[is_ignored_HW] = IGNORE_INDEX
    return values_HW


def place_mask(mask_HW: npt.NDArray[np.uint8], placement: Placement, size: tuple[int, int]) -> torch.Tensor:
    """The mask as the encoder sees the frame, (h, w) int64, nearest neighbour; `IGNORE_INDEX` outside of the frame.

    Args:
        placement: of the frames, which have the mask's size.
        size: rows and columns that are asked for, over the whole of the encoder's picture.
    """
    box = placement.box
    places, inside = [], []
    for axis, (start, stop) in enumerate(((box.top, box.bottom), (box.left, box.right))):
        # centre of each asked pixel in the encoder's picture, then in the resized one, then in the frame
        at = (np.arange(size[axis]) + 0.5) * placement.size[axis] / size[axis]
        at = at - placement.offset[axis] if placement.is_padded else at + placement.offset[axis]
        at = at * (stop - start) / placement.resized[axis]
        inside.append((at >= 0) & (at < stop - start))
        places.append(start + np.floor(at).clip(0, stop - start - 1).astype(np.int64))
    picked_hw = mask_HW[np.ix_(*places)].astype(np.int64)
    picked_hw[~(inside[0][:, None] & inside[1][None])] = IGNORE_INDEX
    return torch.from_numpy(picked_hw)
