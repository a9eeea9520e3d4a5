"""From a clip to the tensor that a video encoder was trained on, exactly as its ClipSpec says.

Axes: T frame, H row, W column, C channel.
"""

from dataclasses import dataclass
from typing import assert_never

import numpy as np
import torch
from torch.nn import functional

from vitreous.core.errors import InputError
from vitreous.core.input_spec import ClipSpec
from vitreous.inputs.clip import Clip, Frames
from vitreous.inputs.clip_sampling import Sampled, sample_frames
from vitreous.inputs.image_preprocessing import LUMA_C, longer_side_size, resample_pixels, shorter_side_size

#: Part of every feature key of clips: rises whenever any clip and spec could give another tensor.
CLIP_PREPROCESSING_VERSION = 1

_DARK = 24  # of 255: what no frame's channel exceeds there is the dark frame around the picture
_FEWEST = 0.02  # share of a row or column that must be brighter, so that a letter or a speck is none of the picture
_SMALLEST = 0.25  # of a side: less is no picture within a frame but a dark scene


@dataclass(frozen=True)
class Box:
    """Rows and columns [top, bottom) × [left, right) of the frames that are kept."""

    top: int
    bottom: int
    left: int
    right: int


@dataclass(frozen=True)
class Placement:
    """Where the picture that the encoder gets lies in the frames: cut to `box`, brought to `resized`, then to `size`.

    Args:
        offset: rows and columns by which the resized picture is cut (`shorter_side`), or moved inwards (`pad`).
    """

    box: Box
    resized: tuple[int, int]
    size: tuple[int, int]
    offset: tuple[int, int]
    is_padded: bool


def clip_frames(clip: Clip, spec: ClipSpec) -> Sampled:
    """Which frames of the clip the encoder gets.

    Raises:
        InputError: there are too few, and no padding rule is stated.
    """
    return sample_frames(spec, clip.source.times_s, clip.start, clip.stop, clip.centre)


def prepare_clip(clip: Clip, spec: ClipSpec) -> torch.Tensor:
    """Steps 1 to 4 of the spec: frames, channels, endoscope steps, size.

    The resize smooths first when it shrinks; bilinear and bicubic are torch's on whole clips of bytes, which is
    Pillow's arithmetic, the others Pillow's frame by frame.

    Returns:
        (C, T, H, W) uint8.

    Raises:
        InputError: frames are missing or damaged, too few without a padding rule, or an endoscope step cannot be done.
    """
    sampled = clip_frames(clip, spec)
    # the frame that statistics describe is decoded along, so that nobody has to seek for it
    clip.read(sorted({*sampled.indices, clip.middle}))
    frames_THWC = clip.read(sampled.indices)
    placement = place_picture(frames_THWC, spec)
    box = placement.box
    frames_THWC = frames_THWC[:, box.top : box.bottom, box.left : box.right]
    if spec.channels == 1:
        luma_THW = ((frames_THWC.astype(np.uint32) * LUMA_C).sum(-1, dtype=np.uint32) + 0x8000) >> 16
        frames_THWC = luma_THW[..., None].astype(np.uint8)
    resized_TCHW = _resample(frames_THWC, placement.resized, spec)
    height, width = placement.size
    top, left = placement.offset
    if placement.is_padded:
        out_TCHW = resized_TCHW.new_zeros(*resized_TCHW.shape[:2], height, width)
        out_TCHW[..., top : top + resized_TCHW.shape[2], left : left + resized_TCHW.shape[3]] = resized_TCHW
    else:
        out_TCHW = resized_TCHW[..., top : top + height, left : left + width]
    return out_TCHW.transpose(0, 1).contiguous()


def place_picture(frames_THWC: Frames, spec: ClipSpec) -> Placement:
    """Where the encoder's picture lies in these frames; masks of the frames go the same way.

    Raises:
        InputError: an endoscope step cannot be done, or the sides are too unequal.
    """
    box = Box(0, frames_THWC.shape[1], 0, frames_THWC.shape[2])
    for step in spec.endoscope:
        match step:
            case "border_crop":
                box = _bright_box(frames_THWC[:, box.top : box.bottom, box.left : box.right], box)
            case "centre_crop":
                box = _square(box)
            case _:
                assert_never(step)
    shape = (box.bottom - box.top, box.right - box.left)
    match spec.resize:
        case "squash":
            return Placement(box, spec.size, spec.size, (0, 0), False)
        case "shorter_side":
            resized = shorter_side_size(shape, spec)
            top, left = (round((have - want) / 2) for have, want in zip(resized, spec.size, strict=True))
            return Placement(box, resized, spec.size, (top, left), False)
        case "pad":
            resized = longer_side_size(shape, spec)
            top, left = (round((want - have) / 2) for have, want in zip(resized, spec.size, strict=True))
            return Placement(box, resized, spec.size, (top, left), True)
        case _:
            assert_never(spec.resize)


def _bright_box(frames_THWC: Frames, within: Box) -> Box:
    """The smallest box that holds every row and column with enough bright pixels in any frame."""
    bright_HW = frames_THWC.max(axis=(0, 3)) > _DARK
    height, width = bright_HW.shape
    rows = np.flatnonzero(bright_HW.mean(axis=1) >= _FEWEST)
    columns = np.flatnonzero(bright_HW.mean(axis=0) >= _FEWEST)
    if len(rows) < _SMALLEST * height or len(columns) < _SMALLEST * width:
        raise InputError(
            f"border_crop finds no picture in the dark frame: {len(rows)} of {height} rows and {len(columns)} of "
            f"{width} columns are brighter than {_DARK} of 255 in any of {len(frames_THWC)} frames. Leave the step "
            "out, or leave the clip out."
        )
    return Box(
        within.top + int(rows[0]),
        within.top + int(rows[-1]) + 1,
        within.left + int(columns[0]),
        within.left + int(columns[-1]) + 1,
    )


def _square(box: Box) -> Box:
    height, width = box.bottom - box.top, box.right - box.left
    side = min(height, width)
    top, left = box.top + (height - side) // 2, box.left + (width - side) // 2
    return Box(top, top + side, left, left + side)


def _resample(frames_THWC: Frames, size: tuple[int, int], spec: ClipSpec) -> torch.Tensor:
    """Frames of another size, (T, C, H, W) uint8."""
    if frames_THWC.shape[1:3] == size:
        return torch.from_numpy(np.ascontiguousarray(frames_THWC)).permute(0, 3, 1, 2)
    if spec.interpolation in ("bilinear", "bicubic"):
        frames_TCHW = torch.from_numpy(np.ascontiguousarray(frames_THWC)).permute(0, 3, 1, 2)
        return functional.interpolate(
            frames_TCHW, size=size, mode=spec.interpolation, antialias=True, align_corners=False
        )
    resized = [resample_pixels(frame_HWC, size, spec) for frame_HWC in frames_THWC]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)
