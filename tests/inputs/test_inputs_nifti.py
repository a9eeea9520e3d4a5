"""NIfTI decoding. Oracles: nibabel's get_fdata of the closest canonical image, and what was written."""

from pathlib import Path

import nibabel
import numpy as np
import pytest

from vitreous.core.errors import InputError
from vitreous.inputs.decode import decode_volume
from vitreous.inputs.volume import DeclaredAxes, Volume

#: i to the left, j to posterior, k to superior, tilted a little; mm
_AFFINE = np.array([[-0.5, 0.02, 0.0, 30], [0.01, -0.75, 0.05, 40], [0.0, 0.03, 2.0, -50], [0, 0, 0, 1]])
_NIBABEL_DATA = Path(nibabel.__file__).parent / "tests" / "data"


def decode(path: Path, declared: DeclaredAxes | None = None) -> Volume:
    return decode_volume(path, declared=declared or DeclaredAxes(), max_bytes=1 << 28)


def values(shape: tuple[int, ...] = (7, 6, 5), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def save(
    path: Path, array: np.ndarray, affine: np.ndarray = _AFFINE, unit: str = "mm", kind=nibabel.Nifti1Image
) -> Path:
    image = kind(array, affine)
    image.header.set_xyzt_units(unit)
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "0f3a"])
def test_values_spacing_and_axes(tmp_path: Path, name: str, kind: type) -> None:
    array = values()
    source = save(tmp_path / (name if "." in name else "a.nii"), array, kind=kind)
    path = source.rename(tmp_path / name)
    volume = decode(path)
    # i runs to the left and j to posterior, as the columns and rows of an axial DICOM slice do
    np.testing.assert_array_equal(volume.voxels_DHW, array.transpose(2, 1, 0))
    assert volume.spacing_mm == pytest.approx(np.linalg.norm(_AFFINE[:3, :3], axis=0)[::-1], rel=1e-6)
    assert volume.facts["format"] == ("NIfTI-1" if kind is nibabel.Nifti1Image else "NIfTI-2")
    assert volume.facts["warnings"] == ""


@pytest.mark.parametrize("permutation", [(0, 1, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0), (0, 2, 1), (1, 0, 2)])
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (1, -1, -1), (-1, -1, -1)])
def test_flipped_and_permuted_copies_give_equal_volumes(
    tmp_path: Path, permutation: tuple[int, int, int], flips: tuple[int, int, int]
) -> None:
    array = values()
    original = decode(save(tmp_path / "a.nii", array))
    orientation = np.column_stack([permutation, flips])
    turned = nibabel.Nifti1Image(array, _AFFINE).as_reoriented(orientation)
    copy = decode(save(tmp_path / "b.nii", np.asarray(turned.dataobj), turned.affine))
    np.testing.assert_array_equal(copy.voxels_DHW, original.voxels_DHW)
    assert copy.spacing_mm == pytest.approx(original.spacing_mm)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_stored_types_and_scaling(tmp_path: Path, dtype: type) -> None:
    image = nibabel.Nifti1Image((values() * 50 + 100).astype(dtype), np.eye(4))
    image.header.set_xyzt_units("mm")
    image.header.set_slope_inter(0.25, -7.0)
    nibabel.save(image, tmp_path / "a.nii")
    expected = nibabel.load(tmp_path / "a.nii").get_fdata().transpose(2, 1, 0)[:, ::-1, ::-1]
    np.testing.assert_allclose(decode(tmp_path / "a.nii").voxels_DHW, expected, rtol=1e-6)


@pytest.mark.parametrize(("unit", "scale"), [("mm", 1.0), ("meter", 1000.0), ("micron", 0.001)])
def test_units_of_length(tmp_path: Path, unit: str, scale: float) -> None:
    path = save(tmp_path / "a.nii", values(), np.diag([2.0, 3.0, 4.0, 1.0]), unit)
    assert decode(path).spacing_mm == pytest.approx((4 * scale, 3 * scale, 2 * scale))


def test_an_unknown_unit_takes_the_spacing_of_the_study(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", values(), unit="unknown")
    volume = decode(path, DeclaredAxes(spacing_mm=(2.0, 0.75, 0.5)))
    assert volume.spacing_mm == (2.0, 0.75, 0.5)
    assert volume.facts["spacing_source"] == "study"
    with pytest.raises(InputError, match=r"does not say the unit of its spacing"):
        decode(path)


def test_without_orientation_the_study_says_the_axes(tmp_path: Path) -> None:
    array = values()
    image = nibabel.Nifti1Image(array, None)
    image.header.set_xyzt_units("mm")
    image.header.set_zooms((0.5, 0.75, 2.0))
    nibabel.save(image, tmp_path / "a.nii")
    volume = decode(tmp_path / "a.nii", DeclaredAxes("WHD"))
    np.testing.assert_array_equal(volume.voxels_DHW, array.transpose(2, 1, 0))
    assert volume.spacing_mm == (2.0, 0.75, 0.5)
    assert volume.facts["axes_source"] == "study"
    with pytest.raises(InputError, match=r"states no orientation"):
        decode(tmp_path / "a.nii")


def test_one_time_point_is_a_volume(tmp_path: Path) -> None:
    array = values((7, 6, 5, 1))
    volume = decode(save(tmp_path / "a.nii", array, np.eye(4)))
    np.testing.assert_array_equal(volume.voxels_DHW, array[..., 0].transpose(2, 1, 0)[:, ::-1, ::-1])


def test_a_plane_is_one_slice(tmp_path: Path) -> None:
    array = values((7, 6))
    volume = decode(save(tmp_path / "a.nii", array, np.eye(4)), DeclaredAxes(spacing_mm=(1, 1, 1)))
    np.testing.assert_array_equal(volume.voxels_DHW, array.T[None, ::-1, ::-1])


def test_a_header_that_nibabel_repairs_is_noted_and_not_printed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path / "a.nii", values(), np.eye(4))
    data = bytearray(path.read_bytes())
    data[76 + 4 : 76 + 8] = np.float32(-1.0).tobytes()  # pixdim[1]
    path.write_bytes(data)
    volume = decode(path)
    assert "pixdim" in str(volume.facts["warnings"])
    assert capfd.readouterr() == ("", "")


_REFUSED_IMAGES = {
    "example4d.nii.gz": r"holds 2 volumes \(shape \(128, 96, 24, 2\)\)",
    "example_nifti2.nii.gz": r"holds 2 volumes \(shape \(32, 20, 12, 2\)\)",
    "functional.nii": r"holds 20 volumes \(shape \(17, 21, 3, 20\)\)",
    "resampled_anat_moved.nii": r"153 of 1071 voxels are NaN",
    "row_major.dconn.nii": r"time points or channels",
    "standard.nii.gz": r"does not say the unit of its spacing",
}


@pytest.mark.parametrize("path", sorted(_NIBABEL_DATA.glob("*.nii*")), ids=lambda path: path.name)
def test_images_that_nibabel_ships(path: Path) -> None:
    if path.name in _REFUSED_IMAGES:
        with pytest.raises(InputError, match=_REFUSED_IMAGES[path.name]):
            decode(path)
        return
    image = nibabel.as_closest_canonical(nibabel.load(path))
    volume = decode(path)
    np.testing.assert_allclose(volume.voxels_DHW, image.get_fdata().transpose(2, 1, 0)[:, ::-1, ::-1], rtol=1e-6)
    assert volume.spacing_mm == pytest.approx(image.header.get_zooms()[::-1])


def test_nibabels_images_are_there() -> None:
    assert len(list(_NIBABEL_DATA.glob("*.nii*"))) > len(_REFUSED_IMAGES)
