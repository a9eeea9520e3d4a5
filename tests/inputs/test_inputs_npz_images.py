"""Images in NPZ files. Oracle: the arrays that numpy wrote. Axes: N image, H row, W column, C channel."""

from pathlib import Path

import numpy as np
import pytest
from inputs_image_bytes import pattern

from vitreous.core.errors import ConfigError, InputError
from vitreous.inputs.numpy_files import NpzArrays
from vitreous.inputs.volume import DeclaredAxes

MAX_BYTES = 1 << 24


def opened(path: Path, axes: str, **arrays: np.ndarray) -> NpzArrays:
    np.savez_compressed(path / "a.npz", **arrays)
    return NpzArrays(path / "a.npz", DeclaredAxes(axes), max_bytes=MAX_BYTES)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("axes", ["HW", "HWC"])
def test_stacks_as_medmnist_has_them(tmp_path: Path, axes: str, bits: int) -> None:
    channels = 3 if axes == "HWC" else 1
    train = np.stack([pattern(28, 30, channels, bits=bits, seed=seed) for seed in range(5)])
    stored = train if axes == "HWC" else train[..., 0]
    arrays = opened(tmp_path, axes, train_images=stored, train_labels=np.arange(5)[:, None])
    for index in (3, 0, 4):
        image = arrays.image("train_images", index)
        np.testing.assert_array_equal(image.pixels_HWC, train[index])
        assert image.pixels_HWC.dtype == train.dtype
        assert image.facts["bits"] == bits
        image.pixels_HWC[:] = 0  # not a window into the stack
    np.testing.assert_array_equal(arrays.image("train_images", 3).pixels_HWC, train[3])


@pytest.mark.parametrize("stored", ["C", "F", ">u2"])
def test_one_image_in_any_memory_order(tmp_path: Path, stored: str) -> None:
    pixels_HWC = pattern(bits=16)
    array = np.asfortranarray(pixels_HWC) if stored == "F" else pixels_HWC.astype("u2" if stored == "C" else stored)
    image = opened(tmp_path, "HWC", image=array).image("image")
    np.testing.assert_array_equal(image.pixels_HWC, pixels_HWC)
    assert image.pixels_HWC.dtype == np.uint16
    assert image.pixels_HWC.flags.c_contiguous


@pytest.mark.parametrize(
    ("axes", "array", "index", "message"),
    [
        ("HW", pattern(), -1, "with data.axes: HW its axes are H, W"),
        ("HWC", pattern(), 0, r"has the shape \(23, 31, 3\); with data.axes: HWC its axes are N and H, W, C"),
        ("HWC", np.stack([pattern()] * 2), -1, r"with data.axes: HWC its axes are H, W, C"),
        ("HWC", np.stack([pattern()] * 2), 2, "holds 2 images; there is none with index 2"),
        ("HWC", pattern(channels=4), -1, "has 4 channels on its last axis"),
        ("HWC", pattern().transpose(2, 0, 1), -1, "has 31 channels on its last axis"),
        ("HWC", pattern().astype(np.float32), -1, "holds values of type float32; an image needs uint8 or uint16"),
        ("HWC", pattern().astype(np.int16), -1, "holds values of type int16"),
        ("HW", pattern().astype(np.uint32)[..., 0], -1, "holds values of type uint32"),
        ("HW", pattern()[..., 0] > 3, -1, "holds values of type bool"),
        ("HW", np.full((4, 5), 9, dtype=np.uint8), -1, "all 20 pixels have the same value"),
        ("DHW", pattern(), -1, "images have the axes HW or HWC; the study declares data.axes: DHW"),
    ],
)  # fmt: skip
def test_what_is_no_image(tmp_path: Path, axes: str, array: np.ndarray, index: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        opened(tmp_path, axes, image=array).image("image", index)


def test_an_image_beyond_the_limit(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", image=pattern())
    size = 23 * 31 * 3 * 4
    assert NpzArrays(tmp_path / "a.npz", DeclaredAxes("HWC"), max_bytes=size).image("image").pixels_HWC.size * 4 == size
    with pytest.raises(InputError, match=f"which take {size:,} bytes"):
        NpzArrays(tmp_path / "a.npz", DeclaredAxes("HWC"), max_bytes=size - 1).image("image")


@pytest.mark.parametrize("axes", ["HW", "HWC"])
def test_images_are_not_taken_for_volumes(tmp_path: Path, axes: str) -> None:
    with pytest.raises(InputError, match=f"declares images \\(data.axes: {axes}\\), and a volume was asked for"):
        opened(tmp_path, axes, image=pattern()).volume("image")


@pytest.mark.parametrize("axes", ["WH", "CHW", "HWCC", "HWc"])
def test_axes_of_nothing(axes: str) -> None:
    with pytest.raises(ConfigError, match="of images: 'HW' or 'HWC'"):
        DeclaredAxes(axes)
