"""From an image to the tensor that an encoder was trained on, exactly as its ImageSpec says.

Axes: C channel, D slice (one), H row, W column.
"""

from math import floor
from typing import assert_never

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image as PillowImage
from PIL.Image import Resampling

from vitreous.core.errors import InputError
from vitreous.core.input_spec import ImageSpec, PictureSpec
from vitreous.inputs.fundus import apply_fundus_steps
from vitreous.inputs.image import Image, Pixels

#: Part of every feature key of images: rises whenever any image and spec could give another tensor.
IMAGE_PREPROCESSING_VERSION = 1

_RESAMPLING = {
    "bicubic": Resampling.BICUBIC,
    "bilinear": Resampling.BILINEAR,
    "lanczos": Resampling.LANCZOS,
    "nearest": Resampling.NEAREST,
}
#: An image whose sides differ more is none, and its shorter side could not be enlarged within memory.
_MAX_ASPECT_RATIO = 100
#: Share of red, green and blue in the luma of ITU-R BT.601, in 1 / 65536, as Pillow has them.
LUMA_C = np.array([19595, 38470, 7471], dtype=np.uint32)


def prepare_image(image: Image, spec: ImageSpec) -> torch.Tensor:
    """Steps 1 to 3 of the spec: channels, fundus steps, size.

    One channel from three is the luma of ITU-R BT.601; three from one repeat it. The resize smooths first when it
    shrinks (Pillow's filters), and for `squash` and `shorter_side` gives the pixels of timm's evaluation transform.

    Returns:
        (C, 1, H, W): uint8 from 8 bits, or float32 in [0, 1] from 16.

    Raises:
        InputError: a fundus step cannot be done, or the sides are too unequal.
    """
    pixels_HWC = apply_fundus_steps(_with_channels(image.pixels_HWC, spec.channels), spec.fundus)
    resized_HWC = _resize(pixels_HWC, spec)
    return torch.from_numpy(np.ascontiguousarray(resized_HWC.transpose(2, 0, 1)))[:, None]


def normalise_image(prepared_CDHW: torch.Tensor, spec: PictureSpec) -> torch.Tensor:
    """Step 4 of the spec: values to [0, 1], minus the mean, divided by the standard deviation of each channel.

    Args:
        prepared_CDHW: uint8, or float32 in [0, 1]; leading batch axes are allowed.
    Returns:
        float32 of the same shape.

    Raises:
        InputError: a value is NaN or outside [0, 1].
        ValueError: another type or number of channels.
    """
    if prepared_CDHW.ndim < 4 or prepared_CDHW.shape[-4] != spec.channels:
        raise ValueError(f"expected (..., {spec.channels}, D, H, W); got {tuple(prepared_CDHW.shape)}")
    match prepared_CDHW.dtype:
        case torch.uint8:
            unit_CDHW = prepared_CDHW.to(torch.float32).div_(255)
        case torch.float32:
            low, high = torch.aminmax(prepared_CDHW)
            if not (low >= 0 and high <= 1):  # also where a value is NaN
                raise InputError(f"the prepared image has values from {low:g} to {high:g}; they must lie in [0, 1].")
            unit_CDHW = prepared_CDHW.clone()
        case other:
            raise ValueError(f"expected uint8 or float32; got {other}")
    mean_C111, std_C111 = (
        torch.tensor(values, dtype=torch.float32, device=unit_CDHW.device)[:, None, None, None]
        for values in (spec.mean, spec.std)
    )
    return unit_CDHW.sub_(mean_C111).div_(std_C111)


def _with_channels(pixels_HWC: Pixels, num_channels: int) -> Pixels:
    stored = pixels_HWC.shape[-1]
    if stored == num_channels:
        return pixels_HWC
    if stored == 1:
        return pixels_HWC.repeat(num_channels, axis=-1)
    luma_HW = ((pixels_HWC.astype(np.uint32) * LUMA_C).sum(-1, dtype=np.uint32) + 0x8000) >> 16
    luma_HWC: Pixels = luma_HW[..., None].astype(pixels_HWC.dtype)
    return luma_HWC


def _resize(pixels_HWC: Pixels, spec: ImageSpec) -> npt.NDArray[np.uint8] | npt.NDArray[np.float32]:
    height, width = spec.size
    match spec.resize:
        case "squash":
            return resample_pixels(pixels_HWC, (height, width), spec)
        case "shorter_side":
            resized_HWC = resample_pixels(pixels_HWC, shorter_side_size(pixels_HWC.shape, spec), spec)
            top, left = (round((have - want) / 2) for have, want in zip(resized_HWC.shape[:2], spec.size, strict=True))
            return resized_HWC[top : top + height, left : left + width]
        case "pad":
            resized_HWC = resample_pixels(pixels_HWC, longer_side_size(pixels_HWC.shape, spec), spec)
            top, left = (round((want - have) / 2) for have, want in zip(resized_HWC.shape[:2], spec.size, strict=True))
            padded_HWC = np.zeros((height, width, resized_HWC.shape[2]), dtype=resized_HWC.dtype)
            padded_HWC[top : top + resized_HWC.shape[0], left : left + resized_HWC.shape[1]] = resized_HWC
            return padded_HWC
        case _:
            assert_never(spec.resize)


def shorter_side_size(shape: tuple[int, ...], spec: PictureSpec) -> tuple[int, int]:
    """Rows and columns before the crop, rounded as torchvision does for squares and timm for other sizes."""
    height, width = shape[:2]
    if max(height, width) > _MAX_ASPECT_RATIO * min(height, width):
        raise InputError(
            f"the image has {height} × {width} pixels; sides that differ more than {_MAX_ASPECT_RATIO}-fold are not "
            "resized by the shorter one."
        )
    target_h, target_w = (floor(side / spec.crop_pct) for side in spec.size)
    if target_h == target_w:
        longer = int(target_h * max(height, width) / min(height, width))
        return (longer, target_w) if height > width else (target_h, longer)
    ratio = min(height / target_h, width / target_w)
    return max(round(height / ratio), spec.size[0]), max(round(width / ratio), spec.size[1])


def longer_side_size(shape: tuple[int, ...], spec: PictureSpec) -> tuple[int, int]:
    """Rows and columns inside the border, rounded as PIL.ImageOps.pad does; at least one."""
    height, width = shape[:2]
    target_h, target_w = spec.size
    if width / height > target_w / target_h:
        return max(round(height / width * target_w), 1), target_w
    return target_h, max(round(width / height * target_h), 1)


def resample_pixels(
    pixels_HWC: Pixels, size: tuple[int, int], spec: PictureSpec
) -> npt.NDArray[np.uint8] | npt.NDArray[np.float32]:
    """Pixels of another size: uint8 as Pillow rounds them, or float32 in [0, 1] where they have 16 bits."""
    filter_ = _RESAMPLING[spec.interpolation]
    width_height = (size[1], size[0])
    if pixels_HWC.dtype == np.uint8:
        squeezed = np.ascontiguousarray(pixels_HWC[..., 0] if pixels_HWC.shape[-1] == 1 else pixels_HWC)
        resized = np.array(PillowImage.fromarray(squeezed).resize(width_height, filter_))
        return resized.reshape(*size, pixels_HWC.shape[-1])
    unit_HWC = pixels_HWC.astype(np.float32) / np.float32(65535)
    planes = [
        np.array(PillowImage.fromarray(np.ascontiguousarray(unit_HWC[..., c])).resize(width_height, filter_))
        for c in range(unit_HWC.shape[-1])
    ]
    return np.stack(planes, axis=-1).clip(0, 1)  # bicubic and Lanczos overshoot at edges
