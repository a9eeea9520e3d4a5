"""Where a map lies in space. Oracle: nibabel's own affine of the scan, for a voxel that is marked."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from vitreous.core.input_spec import InputSpec
from vitreous.inputs.nifti import decode_nifti, read_decoded_affine
from vitreous.inputs.preprocessing import preprocess_volume
from vitreous.inputs.volume import DeclaredAxes
from vitreous.study.explain_outputs import map_affine
from vitreous.study.explain_samples import LoadedSample

SHAPE_IJK, MARKED = (24, 20, 16), (5, 14, 9)


def write_scan(path: Path, axes: str) -> nibabel.Nifti1Image:
    """A scan with one bright voxel, its axes in the order and direction named."""
    rng = np.random.default_rng(0)
    values = rng.random(SHAPE_IJK, dtype=np.float32) * 0.1
    values[MARKED] = 100.0
    affine = np.array([[0.0, -1.5, 0, 40], [0.8, 0, 0, -20], [0, 0, 2.0, 5], [0, 0, 0, 1]])
    if axes == "flipped":
        affine[:, 0] *= -1
    image = nibabel.Nifti1Image(values, affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    return image


@pytest.mark.parametrize("axes", ["turned", "flipped"])
def test_decoded_voxels_lie_where_the_file_says(tmp_path: Path, axes: str) -> None:
    path = tmp_path / "scan.nii.gz"
    image = write_scan(path, axes)
    volume = decode_nifti(path, declared=DeclaredAxes(), max_bytes=10**8)
    d, h, w = np.unravel_index(volume.voxels_DHW.argmax(), volume.voxels_DHW.shape)
    expected = image.affine @ [*MARKED, 1]
    np.testing.assert_allclose(read_decoded_affine(path) @ [w, h, d, 1], expected, atol=1e-5)


@pytest.mark.parametrize("spacing_mm", [None, (2.0, 1.0, 1.0)])
def test_the_marked_cell_of_a_map_lies_on_the_marked_voxel(tmp_path: Path, spacing_mm) -> None:
    path = tmp_path / "scan.nii.gz"
    image = write_scan(path, "turned")
    volume = decode_nifti(path, declared=DeclaredAxes(), max_bytes=10**8)
    size = (16, 24, 20) if spacing_mm is None else (20, 30, 36)
    spec = InputSpec(size=size, spacing_mm=spacing_mm)
    x_CDHW = preprocess_volume(volume, spec)
    shape = volume.voxels_DHW.shape
    loaded = LoadedSample(x_CDHW[None], x_CDHW, shape, volume.spacing_mm, True, path)
    grid = tuple(extent // 2 for extent in size)
    map_THW = torch.nn.functional.adaptive_max_pool3d(x_CDHW, grid)[0].numpy()
    affine = map_affine(map_THW.shape, loaded, spec)
    t, h, w = np.unravel_index(map_THW.argmax(), map_THW.shape)
    cell_mm = np.linalg.norm(affine[:3, :3], axis=0)
    distance = np.abs(np.linalg.inv(affine[:3, :3]) @ ((image.affine @ [*MARKED, 1])[:3] - (affine @ [w, h, t, 1])[:3]))
    assert (distance <= 1.0).all(), (distance, cell_mm)
    # the whole map covers what the encoder saw
    expected_mm = np.array(volume.spacing_mm if spacing_mm is None else spacing_mm)
    count = np.array(shape if spacing_mm is None else size)
    np.testing.assert_allclose(cell_mm[[2, 1, 0]] * grid, expected_mm * count, rtol=1e-5)


def test_without_orientation_the_origin_is_the_first_voxel(tmp_path: Path) -> None:
    x_CDHW = torch.zeros(1, 8, 8, 8)
    loaded = LoadedSample(x_CDHW[None], x_CDHW, (16, 8, 8), (3.0, 0.5, 0.5), False, tmp_path)
    affine = map_affine((4, 4, 4), loaded, InputSpec(size=(8, 8, 8)))
    np.testing.assert_allclose(np.diag(affine), [-1.0, -1.0, 12.0, 1.0])
    # the centre of the first cell: half a cell less half a voxel from the first voxel's centre
    np.testing.assert_allclose(affine[:3, 3], [-(0.5 - 0.25), -(0.5 - 0.25), 6.0 - 1.5])
