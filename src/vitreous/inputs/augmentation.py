"""Augmentation of one training input by name and strength. Validation and test never come here.

Axes: C channel, D slice, H row, W column; an image is a volume of one slice, a clip's slices are its frames.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from vitreous.core.input_spec import AnySpec, Modality, PictureSpec, modality_of
from vitreous.core.streams import numpy_stream
from vitreous.inputs.geometric import Axis, apply_geometry, draw_box, draw_geometry
from vitreous.inputs.intensity import add_noise, change_intensity, mean_of

_OF_IMAGES = ("color", "hue", "blur", "randaugment")
_OF_VOLUMES = ("intensity", "noise")


@dataclass(frozen=True)
class AugmentSettings:
    """Strength of each change; 0 is off.

    All frames of a clip change alike, and it counts as an image. For images and volumes: `flip` probability of each
    axis in `flip_axes`, each on its own; `rotate` largest angle in degrees (volumes: in the slice, in voxels); `crop`
    largest share of each side that a random crop cuts away before it is resized back, each side on its own; `scale`
    largest relative change of size, the same for all sides; `erase` probability of one blank box of 2 to 20 % of the
    area or volume. For images alone: `color` largest relative change of brightness, contrast and saturation; `hue`
    largest shift in turns; `blur` probability of a Gaussian blur of 0.1 to 2 pixels; `randaugment` magnitude 0 to 30 of
    two operations. For volumes alone: `intensity` largest relative change of contrast and largest shift in standard
    deviations; `noise` standard deviation of the added noise in standard deviations.
    """

    flip: float = 0.0
    flip_axes: tuple[Axis, ...] = ("W",)
    rotate: float = 0.0
    crop: float = 0.0
    scale: float = 0.0
    erase: float = 0.0
    color: float = 0.0
    hue: float = 0.0
    blur: float = 0.0
    randaugment: int = 0
    intensity: float = 0.0
    noise: float = 0.0

    @property
    def is_off(self) -> bool:
        """Whether nothing would change."""
        return not (self._moves or self.erase or any(getattr(self, name) for name in _OF_IMAGES + _OF_VOLUMES))

    @property
    def _moves(self) -> bool:
        return bool(self.flip or self.rotate or self.crop or self.scale)


def check_augment(settings: AugmentSettings, modality: Modality, *, channels: int | None = None) -> list[str]:
    """What in the settings could have no effect on such inputs, a sentence each; empty when all of it has.

    Args:
        channels: of the encoder's input, where it is known; an image of one channel has no hue.
    """
    foreign: tuple[str, ...]
    is_picture = modality != "volume"
    foreign, own = (_OF_VOLUMES, "volumes") if is_picture else (_OF_IMAGES, "images")
    problems = [
        f"augment.{name} is for {own} and has no effect on {modality}s; got {getattr(settings, name)}, leave it out."
        for name in foreign
        if getattr(settings, name)
    ]
    if is_picture and "D" in settings.flip_axes:
        what = "an image" if modality == "image" else "a clip"
        problems.append(f"augment.flip_axes names D, and {what} has no slices; use H and W.")
    if is_picture and settings.hue and channels == 1:
        problems.append(f"augment.hue has no effect on {modality}s of one channel; got {settings.hue}, leave it out.")
    return problems


def augment(prepared_CDHW: torch.Tensor, settings: AugmentSettings, spec: AnySpec, rng_seed: int) -> torch.Tensor:
    """The input changed at random; the seed alone decides how, whatever was drawn before and in whichever thread.

    The order is RandAugment, one geometric resample, colour or intensity, blur, noise, erasing. Each has a random
    stream of its own: switching one on does not change what another draws. What a rotation or a shrinking uncovers
    is 0 in an image and the minimum of a volume. An erased box takes the encoder's `mean` in an image, which is 0
    after normalisation, and the volume's mean.

    Args:
        prepared_CDHW: as `prepare_input` gives it: an image or a clip, uint8 or float32 in [0, 1]; a volume,
            normalised, float32. It is not modified.

    Returns:
        The same size, float32: an image in [0, 1], a volume of normalised values.

    Raises:
        ValueError: settings without effect on such inputs (see `check_augment`), or a tensor of another kind.
    """
    if problems := check_augment(settings, modality_of(spec), channels=spec.channels):
        raise ValueError(" ".join(problems))
    kinds = (torch.uint8, torch.float32) if isinstance(spec, PictureSpec) else (torch.float32,)
    if prepared_CDHW.ndim != 4 or prepared_CDHW.dtype not in kinds:
        raise ValueError(
            f"augment takes (C, D, H, W) of {' or '.join(str(kind) for kind in kinds)}; got "
            f"{tuple(prepared_CDHW.shape)} of {prepared_CDHW.dtype}. Give it what prepare_input returns."
        )
    if isinstance(spec, PictureSpec):
        return _augment_picture(prepared_CDHW, settings, spec, rng_seed)
    return _augment_volume(prepared_CDHW, settings, rng_seed)


def _augment_picture(
    image_CDHW: torch.Tensor, settings: AugmentSettings, spec: PictureSpec, rng_seed: int
) -> torch.Tensor:
    if settings.is_off:
        return image_CDHW.float() / 255 if image_CDHW.dtype == torch.uint8 else image_CDHW
    from vitreous.inputs import color  # torchvision takes over a second to import

    if settings.randaugment:
        image_CDHW = color.randaugment(image_CDHW, settings.randaugment, numpy_stream(rng_seed, "randaugment"))
    image_CDHW = image_CDHW.float() / 255 if image_CDHW.dtype == torch.uint8 else image_CDHW
    # frames as channels of one slice: time is neither moved nor cut, and every frame moves alike
    moved = _move(image_CDHW.flatten(0, 1)[:, None], settings, rng_seed, fill=0.0)
    image_CDHW = moved.reshape(image_CDHW.shape).clamp(0, 1)  # interpolation rounds past 1
    if settings.color or settings.hue:
        image_CDHW = color.jitter_color(image_CDHW, settings.color, settings.hue, numpy_stream(rng_seed, "color"))
    rng = numpy_stream(rng_seed, "blur")
    if settings.blur and rng.random() < settings.blur:
        image_CDHW = color.blur(image_CDHW, sigma=rng.uniform(0.1, 2.0))
    fill_C = torch.tensor(spec.mean, dtype=torch.float32).repeat_interleave(image_CDHW.shape[1])
    erased = _erase(image_CDHW.flatten(0, 1)[:, None], settings, rng_seed, fill_C)
    return erased.reshape(image_CDHW.shape)


def _augment_volume(volume_CDHW: torch.Tensor, settings: AugmentSettings, rng_seed: int) -> torch.Tensor:
    volume_CDHW = _move(volume_CDHW, settings, rng_seed, fill="minimum")
    if settings.intensity:
        volume_CDHW = change_intensity(volume_CDHW, settings.intensity, numpy_stream(rng_seed, "intensity"))
    if settings.noise:
        volume_CDHW = add_noise(volume_CDHW, settings.noise, numpy_stream(rng_seed, "noise"))
    return _erase(volume_CDHW, settings, rng_seed, fill_C=None)


def _move(
    x_CDHW: torch.Tensor, settings: AugmentSettings, rng_seed: int, *, fill: float | Literal["minimum"]
) -> torch.Tensor:
    if not settings._moves:
        return x_CDHW
    geometry = draw_geometry(
        rng_seed,
        flip=settings.flip,
        flip_axes=settings.flip_axes,
        rotate=settings.rotate,
        crop=settings.crop,
        scale=settings.scale,
    )
    return apply_geometry(x_CDHW, geometry, fill=float(x_CDHW.min()) if fill == "minimum" else fill)


def _erase(x_CDHW: torch.Tensor, settings: AugmentSettings, rng_seed: int, fill_C: torch.Tensor | None) -> torch.Tensor:
    rng: np.random.Generator = numpy_stream(rng_seed, "erase")
    if not settings.erase or rng.random() >= settings.erase:
        return x_CDHW
    fill = torch.tensor(mean_of(x_CDHW)) if fill_C is None else fill_C[:, None, None, None]
    erased_CDHW = x_CDHW.clone()
    erased_CDHW[(slice(None), *draw_box(rng, tuple(x_CDHW.shape[1:])))] = fill.to(x_CDHW.dtype)
    return erased_CDHW
