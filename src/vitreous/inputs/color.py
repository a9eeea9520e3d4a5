"""Changes of an image's colours and sharpness: jitter, blur, RandAugment.

Axes: C channel (one or three), D slice (one of an image, the frames of a clip), H row, W column. What is drawn holds
for all frames alike.
"""

import math
from collections.abc import Callable

import numpy as np
import torch

from vitreous.core.torchvision_schema import declare_torchvision_schemas

declare_torchvision_schemas()

from torchvision.transforms.v2 import functional as tv  # noqa: E402

from vitreous.inputs.intensity import mean_of  # noqa: E402

_MAGNITUDES = 31


def jitter_color(image_CDHW: torch.Tensor, strength: float, hue: float, rng: np.random.Generator) -> torch.Tensor:
    """Brightness, contrast and saturation times 1±strength, then hue shifted by ±hue turns; uniform, in this order.

    Args:
        image_CDHW: float in [0, 1]; saturation leaves one channel as it is.
    """
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, size=3)
    turns = float(rng.uniform(-hue, hue))
    frames_DCHW = image_CDHW.transpose(0, 1)
    if strength:
        frames_DCHW = tv.adjust_brightness(frames_DCHW, float(brightness))
        frames_DCHW = adjust_contrast(frames_DCHW, float(contrast))
        frames_DCHW = tv.adjust_saturation(frames_DCHW, float(saturation))
    if hue:
        frames_DCHW = tv.adjust_hue(frames_DCHW, turns)
    return frames_DCHW.transpose(0, 1)


def adjust_contrast(image_CHW: torch.Tensor, factor: float) -> torch.Tensor:
    """Times `factor` about the mean of the grey image, as torchvision's, with a mean that does not depend on the
    number of threads; of several frames it is that of all."""
    whole = image_CHW.dtype == torch.uint8
    grey_1HW = tv.rgb_to_grayscale(image_CHW.float()) if image_CHW.shape[-3] == 3 else image_CHW.float()
    mean = mean_of(grey_1HW.floor() if whole else grey_1HW)
    changed_CHW = (image_CHW * factor + mean * (1 - factor)).clamp(0, 255 if whole else 1)
    return changed_CHW.to(image_CHW.dtype)


def blur(image_CDHW: torch.Tensor, *, sigma: float) -> torch.Tensor:
    """Gaussian of `sigma` pixels, cut at three of them or at the image's side, mirrored at the rim."""
    height, width = image_CDHW.shape[-2:]
    reach = min(math.ceil(3 * sigma), height - 1, width - 1)
    if reach < 1:
        return image_CDHW
    blurred_DCHW: torch.Tensor = tv.gaussian_blur(image_CDHW.transpose(0, 1), [2 * reach + 1] * 2, [sigma, sigma])
    return blurred_DCHW.transpose(0, 1).clamp(0, 1)


def randaugment(
    image_CDHW: torch.Tensor, magnitude: int, rng: np.random.Generator, *, num_ops: int = 2
) -> torch.Tensor:
    """`num_ops` operations of RandAugment in a row, drawn with replacement.

    Args:
        image_CDHW: uint8, or float in [0, 1] where the file has 16 bits.
        magnitude: 0 to 30, torchvision's strengths of each operation; the sign is drawn.

    Source: Cubuk et al. (2019); operations and strengths as torchvision.transforms.v2.RandAugment, nearest
    neighbour, uncovered pixels 0.
    """
    names = list(OPERATIONS)
    frames_DCHW = image_CDHW.transpose(0, 1)
    for _ in range(num_ops):
        name, sign = names[int(rng.integers(len(names)))], float(rng.choice([-1.0, 1.0]))
        frames_DCHW = OPERATIONS[name](frames_DCHW, magnitude / (_MAGNITUDES - 1), sign)
    return frames_DCHW.transpose(0, 1)


def _affine(
    image_CHW: torch.Tensor, *, translate: tuple[float, float] = (0, 0), shear: tuple[float, float] = (0, 0)
) -> torch.Tensor:
    centre = [0, 0] if any(shear) else None  # torchvision shears about the corner
    degrees = [math.degrees(math.atan(x)) for x in shear]
    moved: torch.Tensor = tv.affine(image_CHW, 0.0, [int(x) for x in translate], 1.0, degrees, center=centre)
    return moved


def _posterize(image_CHW: torch.Tensor, level: float) -> torch.Tensor:
    posterized: torch.Tensor = tv.posterize(image_CHW, 8 - round(4 * level))
    return posterized


def _solarize(image_CHW: torch.Tensor, level: float) -> torch.Tensor:
    largest = 255 if image_CHW.dtype == torch.uint8 else 1.0
    solarized: torch.Tensor = tv.solarize(image_CHW, largest * (1 - level))
    return solarized


#: Each takes the image, the level from 0 to 1, and a sign.
OPERATIONS: dict[str, Callable[[torch.Tensor, float, float], torch.Tensor]] = {
    "Identity": lambda x, level, sign: x,
    "ShearX": lambda x, level, sign: _affine(x, shear=(0.3 * level * sign, 0)),
    "ShearY": lambda x, level, sign: _affine(x, shear=(0, 0.3 * level * sign)),
    "TranslateX": lambda x, level, sign: _affine(x, translate=(150 / 331 * x.shape[-1] * level * sign, 0)),
    "TranslateY": lambda x, level, sign: _affine(x, translate=(0, 150 / 331 * x.shape[-2] * level * sign)),
    "Rotate": lambda x, level, sign: tv.rotate(x, 30 * level * sign),
    "Brightness": lambda x, level, sign: tv.adjust_brightness(x, 1 + 0.9 * level * sign),
    "Color": lambda x, level, sign: tv.adjust_saturation(x, 1 + 0.9 * level * sign),
    "Contrast": lambda x, level, sign: adjust_contrast(x, 1 + 0.9 * level * sign),
    "Sharpness": lambda x, level, sign: tv.adjust_sharpness(x, 1 + 0.9 * level * sign),
    "Posterize": lambda x, level, sign: _posterize(x, level),
    "Solarize": lambda x, level, sign: _solarize(x, level),
    "AutoContrast": lambda x, level, sign: tv.autocontrast(x),
    "Equalize": lambda x, level, sign: tv.equalize(x),
}
