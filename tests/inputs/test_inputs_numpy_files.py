"""NPY and NPZ decoding. Oracle: the arrays that numpy wrote."""

import os
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from vitreous.core.errors import ConfigError, InputError
from vitreous.inputs.decode import decode_volume
from vitreous.inputs.numpy_files import NpzArrays
from vitreous.inputs.volume import DeclaredAxes

MAX_BYTES = 1 << 24


def volume_DHW(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (4, 5, 6), dtype=np.uint8)


@pytest.mark.parametrize("axes", ["".join(p) for p in permutations("DHW")])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_axes_are_those_declared(tmp_path: Path, axes: str, order: str) -> None:
    array = volume_DHW()
    stored = np.array(array.transpose(["DHW".index(axis) for axis in axes]), order=order)
    np.save(tmp_path / "a.npy", stored)
    volume = decode_volume(tmp_path / "a.npy", declared=DeclaredAxes(axes, (3, 2, 1)), max_bytes=MAX_BYTES)
    np.testing.assert_array_equal(volume.voxels_DHW, array)
    assert volume.voxels_DHW.flags.c_contiguous
    assert volume.spacing_mm == (3, 2, 1)


@pytest.mark.parametrize("dtype", ["bool", ">i2", "<u4", "f2", ">f8"])
def test_npy_types(tmp_path: Path, dtype: str) -> None:
    array = (volume_DHW() % 2).astype(dtype)
    np.save(tmp_path / "a.npy", array)
    volume = decode_volume(tmp_path / "a.npy", declared=DeclaredAxes("DHW"), max_bytes=MAX_BYTES)
    np.testing.assert_array_equal(volume.voxels_DHW, array.astype(np.float32))
    assert volume.spacing_mm is None


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_of_one_array_is_a_volume(tmp_path: Path, save) -> None:
    save(tmp_path / "a.npz", image=volume_DHW())
    volume = decode_volume(tmp_path / "a.npz", declared=DeclaredAxes("DHW"), max_bytes=MAX_BYTES)
    np.testing.assert_array_equal(volume.voxels_DHW, volume_DHW())


@pytest.mark.parametrize("axes", ["DHW", "HWD"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_stacks_as_medmnist_has_them(tmp_path: Path, save, axes: str) -> None:
    train = np.stack([volume_DHW(seed) for seed in range(8)])
    test = np.stack([volume_DHW(seed) for seed in range(20, 23)])
    save(tmp_path / "a.npz", train_images=train, train_labels=np.arange(8)[:, None], test_images=test)
    arrays = NpzArrays(tmp_path / "a.npz", DeclaredAxes(axes, (1, 1, 1)), max_bytes=MAX_BYTES)
    assert arrays.names == ("train_images", "train_labels", "test_images")
    assert arrays.shape("train_images") == (8, 4, 5, 6)
    order = [axes.index(axis) for axis in "DHW"]
    for index in (3, 0, 7):
        volume = arrays.volume("train_images", index)
        np.testing.assert_array_equal(volume.voxels_DHW, train[index].transpose(order))
        assert volume.spacing_mm == (1, 1, 1)
    np.testing.assert_array_equal(arrays.volume("test_images", 2).voxels_DHW, test[2].transpose(order))


def test_a_volume_is_no_window_into_the_stack(tmp_path: Path) -> None:
    stack = np.random.default_rng(0).normal(size=(2, 4, 5, 6)).astype(np.float32)
    np.savez(tmp_path / "a.npz", images=stack)
    arrays = NpzArrays(tmp_path / "a.npz", DeclaredAxes("DHW"), max_bytes=MAX_BYTES)
    arrays.volume("images", 0).voxels_DHW[:] = 0
    np.testing.assert_array_equal(arrays.volume("images", 0).voxels_DHW, stack[0])


def test_many_threads_read_one_archive(tmp_path: Path) -> None:
    stacks = {name: np.stack([volume_DHW(seed + k) for k in range(6)]) for name, seed in (("a", 0), ("b", 50))}
    np.savez_compressed(tmp_path / "a.npz", **stacks)
    arrays = NpzArrays(tmp_path / "a.npz", DeclaredAxes("DHW"), max_bytes=MAX_BYTES)
    wanted = [(name, index) for index in range(6) for name in stacks] * 4
    with ThreadPoolExecutor(8) as pool:
        volumes = list(pool.map(lambda item: arrays.volume(*item), wanted))
    for (name, index), volume in zip(wanted, volumes):
        np.testing.assert_array_equal(volume.voxels_DHW, stacks[name][index])


@pytest.mark.parametrize(
    ("name", "index", "message"),
    [
        ("images", 9, "the array images holds 2 volumes; there is none with index 9"),
        ("images", -1, r"the array has the shape \(2, 4, 5, 6\); a volume has three axes"),
        ("labels", 0, r"the array labels has the shape \(2, 1\); a stack of volumes has four axes"),
        ("image", 0, "the NPZ file holds no array image; it holds images, labels, flat"),
        ("flat", 1, "all 120 voxels have the same value 5: the volume is of one colour"),
    ],
)
def test_what_an_archive_does_not_hold(tmp_path: Path, name: str, index: int, message: str) -> None:
    stack = np.stack([volume_DHW(0), volume_DHW(1)])
    np.savez(tmp_path / "a.npz", images=stack, labels=np.zeros((2, 1)), flat=np.full_like(stack, 5))
    arrays = NpzArrays(tmp_path / "a.npz", DeclaredAxes("DHW"), max_bytes=MAX_BYTES)
    with pytest.raises(InputError, match=message):
        arrays.volume(name, index)


@pytest.mark.parametrize(
    ("axes", "spacing_mm", "message"),
    [
        ("DWW", None, "data.axes must be a permutation of 'DHW' such as 'HWD'; got 'DWW'"),
        ("NDHW", None, "data.axes must be a permutation"),
        (
            None,
            (1.0, 0.0, 1.0),
            r"data.spacing_mm must be three positive lengths along D, H, W; got \(1.0, 0.0, 1.0\)",
        ),
        (None, (1.0, float("nan"), 1.0), "data.spacing_mm must be three positive lengths"),
    ],
)
def test_declarations_are_checked(
    axes: str | None, spacing_mm: tuple[float, float, float] | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        DeclaredAxes(axes, spacing_mm)


_MEDMNIST = Path(os.environ.get("VITREOUS_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data")) / "medmnist"


@pytest.mark.real
@pytest.mark.skipif(not _MEDMNIST.is_dir(), reason="MedMNIST is not beside the project")
@pytest.mark.parametrize("path", sorted(_MEDMNIST.glob("*3d*.npz")), ids=lambda path: path.name)
def test_medmnist_volumes_are_those_of_numpy(path: Path) -> None:
    arrays = NpzArrays(path, DeclaredAxes("DHW"), max_bytes=1 << 31)
    for name in (name for name in arrays.names if name.endswith("_images")):
        with np.load(path) as archive:
            stack = archive[name]
        for index in (0, len(stack) // 2, len(stack) - 1):
            np.testing.assert_array_equal(arrays.volume(name, index).voxels_DHW, stack[index])
