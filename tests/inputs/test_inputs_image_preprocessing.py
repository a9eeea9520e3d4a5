"""From image to encoder input. Oracles: timm's evaluation transform and PIL.ImageOps.

Axes: B batch, C channel, D slice (one), H row, W column.
"""

from collections.abc import Callable

import numpy as np
import PIL.Image
import pytest
import torch
from inputs_image_bytes import pattern, smooth
from PIL import ImageOps

from vitreous.core.errors import InputError
from vitreous.core.input_spec import ImageSpec
from vitreous.core.torchvision_schema import declare_torchvision_schemas
from vitreous.inputs.image import Image
from vitreous.inputs.image_preprocessing import normalise_image, prepare_image
from vitreous.inputs.prepare import finish_input, prepare_input

HALF = (0.5, 0.5, 0.5)


def prepared(pixels_HWC: np.ndarray, **spec: object) -> np.ndarray:
    """(H, W, C), as prepared."""
    return prepare_image(Image(pixels_HWC), ImageSpec(**spec))[:, 0].permute(1, 2, 0).numpy()


@pytest.fixture(scope="module")
def timm_transform() -> Callable[..., Callable[[PIL.Image.Image], torch.Tensor]]:
    declare_torchvision_schemas()
    from timm.data import create_transform

    return create_transform


@pytest.mark.parametrize("shape", [(67, 91), (91, 67), (64, 64), (20, 33)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos", "nearest"])
@pytest.mark.parametrize(
    ("size", "resize", "crop_pct"),
    [
        ((48, 48), "squash", 1.0), ((32, 56), "squash", 1.0), ((48, 48), "shorter_side", 0.875),
        ((49, 49), "shorter_side", 1.0), ((48, 48), "shorter_side", 0.95), ((32, 56), "shorter_side", 0.9),
    ],
)  # fmt: skip
def test_values_are_those_of_timm(
    timm_transform, shape: tuple[int, int], interpolation: str, size: tuple[int, int], resize: str, crop_pct: float
) -> None:
    pixels_HWC = pattern(*shape)
    spec = ImageSpec(size=size, resize=resize, crop_pct=crop_pct, interpolation=interpolation)
    oracle = timm_transform(
        input_size=(3, *size), crop_pct=crop_pct, crop_mode="squash" if resize == "squash" else "center",
        interpolation=interpolation, mean=spec.mean, std=spec.std, is_training=False,
    )(PIL.Image.fromarray(pixels_HWC))  # fmt: skip
    decoded = Image(pixels_HWC)
    kept_CDHW = prepare_input(decoded, spec)
    assert kept_CDHW.dtype == torch.uint8
    assert kept_CDHW.shape == (3, *spec.size_DHW)
    torch.testing.assert_close(finish_input(kept_CDHW, spec)[:, 0], oracle, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(67, 91), (91, 67), (64, 64), (20, 33)])
@pytest.mark.parametrize("size", [(48, 48), (32, 56), (90, 90)])
def test_pad_is_that_of_pillow(shape: tuple[int, int], size: tuple[int, int]) -> None:
    pixels_HWC = pattern(*shape)
    oracle = ImageOps.pad(PIL.Image.fromarray(pixels_HWC), size[::-1], method=PIL.Image.Resampling.BICUBIC, color=0)
    np.testing.assert_array_equal(prepared(pixels_HWC, size=size, resize="pad"), np.asarray(oracle))


def test_grey_from_colour_is_the_luma_of_pillow() -> None:
    pixels_HWC = pattern()
    grey_HWC = prepared(pixels_HWC, size=(23, 31), channels=1, mean=(0.5,), std=(0.5,))
    np.testing.assert_array_equal(grey_HWC[..., 0], np.asarray(PIL.Image.fromarray(pixels_HWC).convert("L")))


def test_grey_becomes_three_equal_channels() -> None:
    pixels_HWC = pattern(channels=1)
    np.testing.assert_array_equal(prepared(pixels_HWC, size=(23, 31)), pixels_HWC.repeat(3, axis=-1))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("resize", ["squash", "shorter_side", "pad"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos", "nearest"])
def test_sixteen_bits_are_the_eight_bits_but_finer(channels: int, resize: str, interpolation: str) -> None:
    pixels_HWC = smooth(67, 91)
    spec = {"size": (40, 40), "channels": channels, "resize": resize, "interpolation": interpolation}
    spec |= {"mean": (0.5,) * channels, "std": (0.5,) * channels}
    coarse_HWC = prepared(pixels_HWC, **spec)
    fine_HWC = prepared(pixels_HWC.astype(np.uint16) * 257, **spec)
    assert fine_HWC.dtype == np.float32
    assert fine_HWC.min() >= 0
    assert fine_HWC.max() <= 1
    # Pillow rounds after each of two passes, and the luma before them
    assert np.abs(fine_HWC * 255 - coarse_HWC).max() < (1.01 if channels == 3 else 1.51)
    assert np.abs(fine_HWC * 255 - coarse_HWC).mean() < 0.5


def test_sixteen_bits_keep_their_fine_steps() -> None:
    pixels_HWC = (30_000 + pattern(bits=16) % 100).astype(np.uint16)  # less than half a step of 8 bits
    np.testing.assert_allclose(prepared(pixels_HWC, size=(23, 31)), pixels_HWC / 65535, rtol=1e-6)


def test_sixteen_bits_at_a_sharp_edge_stay_within_the_range() -> None:
    pixels_HWC = np.zeros((32, 32, 1), dtype=np.uint16)
    pixels_HWC[:, 16:] = 65535
    resized_HWC = prepared(pixels_HWC, size=(48, 48))  # bicubic overshoots there
    assert (resized_HWC.min(), resized_HWC.max()) == (0, 1)


def test_normalisation_is_per_channel_and_takes_batches() -> None:
    spec = ImageSpec(size=(23, 31), mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    kept_CDHW = prepare_image(Image(pattern()), spec)
    kept_BCDHW = torch.stack([kept_CDHW, kept_CDHW.flip(-1)])
    whole = normalise_image(kept_BCDHW, spec)
    expected_CHW = (pattern().transpose(2, 0, 1) / 255 - np.array(spec.mean)[:, None, None]) / np.array(spec.std)[
        :, None, None
    ]
    np.testing.assert_allclose(whole[0, :, 0].numpy(), expected_CHW, atol=1e-6)
    torch.testing.assert_close(whole[1], normalise_image(kept_CDHW.flip(-1), spec), rtol=0, atol=0)
    floats = kept_BCDHW.float() / 255
    torch.testing.assert_close(normalise_image(floats, spec), whole, rtol=0, atol=0)
    assert floats.max() == 1  # not changed in place


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.01, 1.01, 255.0])
def test_values_outside_the_unit_range_are_refused(value: float) -> None:
    kept_CDHW = torch.full((3, 1, 4, 4), 0.5)
    spec = ImageSpec(size=(4, 4))
    assert normalise_image(kept_CDHW, spec).shape == (3, 1, 4, 4)
    kept_CDHW[1, 0, 2, 2] = value
    with pytest.raises(InputError, match=r"values from .* they must lie in \[0, 1\]"):
        normalise_image(kept_CDHW, spec)


@pytest.mark.parametrize("tensor", [torch.zeros(1, 1, 4, 4), torch.zeros(3, 4, 4), torch.zeros(3, 1, 4, 4).double()])
def test_what_prepare_image_never_gives_is_refused(tensor: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="expected"):
        normalise_image(tensor, ImageSpec(size=(4, 4)))


def test_a_line_is_not_resized_by_its_shorter_side() -> None:
    pixels_HWC = pattern(2, 201)
    assert prepared(pixels_HWC[:, :200], size=(8, 8), resize="shorter_side").shape == (8, 8, 3)
    with pytest.raises(InputError, match="2 × 201 pixels; sides that differ more than 100-fold"):
        prepared(pixels_HWC, size=(8, 8), resize="shorter_side")
    assert prepared(pixels_HWC, size=(8, 8), resize="pad").shape == (8, 8, 3)


def test_the_image_itself_is_not_changed() -> None:
    pixels_HWC = pattern()
    image = Image(pixels_HWC.copy())
    spec = ImageSpec(size=(23, 31), mean=HALF, std=HALF)
    kept_CDHW = prepare_image(image, spec)
    kept_CDHW.zero_()
    np.testing.assert_array_equal(image.pixels_HWC, pixels_HWC)
