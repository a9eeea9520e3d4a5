"""DICOM decoding. Oracles: the values that were written, python-gdcm as a second reader, closed forms."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inputs_dicom_files import gdcm_stored, group, image_dataset, plane_groups, smooth_volume, write_dicom
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from vitreous.core.errors import InputError
from vitreous.inputs.decode import decode_volume
from vitreous.inputs.volume import DeclaredAxes, Volume

SHAPE = (5, 40, 33)
AXIAL = (1, 0, 0, 0, 1, 0)
LOSSLESS = {
    "implicit": ImplicitVRLittleEndian,
    "explicit": ExplicitVRLittleEndian,
    "big endian": ExplicitVRBigEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
    "rle": RLELossless,
    "jpeg-ls": JPEGLSLossless,
    "jpeg 2000": JPEG2000Lossless,
}
STORED = {
    "8 bit": ("uint8", 8),
    "16 bit": ("uint16", 16),
    "12 of 16 bit": ("uint16", 12),
    "signed 16 bit": ("int16", 16),
    "signed 12 of 16 bit": ("int16", 12),
}


def decode(path: Path, declared: DeclaredAxes | None = None) -> Volume:
    return decode_volume(path, declared=declared or DeclaredAxes(), max_bytes=1 << 28)


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("syntax", LOSSLESS)
def test_values_are_those_written_and_those_of_gdcm(tmp_path: Path, syntax: str, stored: str) -> None:
    dtype, bits = STORED[stored]
    written = smooth_volume(SHAPE, dtype, bits)
    path = write_dicom(tmp_path / "a.dcm", image_dataset(written, bits_stored=bits), LOSSLESS[syntax])
    volume = decode(path)
    np.testing.assert_array_equal(volume.voxels_DHW, written.astype(np.float32))
    np.testing.assert_array_equal(gdcm_stored(path), written)
    assert volume.voxels_DHW.dtype == np.float32
    assert volume.spacing_mm is None
    assert volume.facts["transfer_syntax"] == LOSSLESS[syntax].name
    assert volume.facts["bits_stored"] == bits
    assert volume.facts["warnings"] == ""


def test_jpeg_baseline_equals_gdcm_up_to_the_rounding_of_the_inverse_transform(tmp_path: Path) -> None:
    written = smooth_volume(SHAPE, "uint8", 8)
    path = write_dicom(tmp_path / "a.dcm", image_dataset(written), JPEGBaseline8Bit)
    voxels = decode(path).voxels_DHW
    assert np.abs(voxels - gdcm_stored(path)).max() <= 1
    assert 0 < np.abs(voxels - written).mean() < 10


def test_near_lossless_jpeg_ls_keeps_its_bound(tmp_path: Path) -> None:
    written = smooth_volume(SHAPE, "uint16", 12)
    path = write_dicom(tmp_path / "a.dcm", image_dataset(written, bits_stored=12), JPEGLSNearLossless)
    voxels = decode(path).voxels_DHW
    assert 0 < np.abs(voxels - written).max() <= 2
    np.testing.assert_array_equal(voxels, gdcm_stored(path))


@pytest.mark.parametrize("stored", ["8 bit", "12 of 16 bit", "16 bit"])
def test_jpeg_lossless_is_decoded_by_gdcm_where_that_is_installed(tmp_path: Path, stored: str) -> None:
    gdcm = pytest.importorskip("gdcm")
    dtype, bits = STORED[stored]
    written = smooth_volume(SHAPE, dtype, bits)
    plain = write_dicom(tmp_path / "plain.dcm", image_dataset(written, bits_stored=bits))
    reader = gdcm.ImageReader()
    reader.SetFileName(str(plain))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(tmp_path / "a.dcm"))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    volume = decode(tmp_path / "a.dcm")
    np.testing.assert_array_equal(volume.voxels_DHW, written.astype(np.float32))
    assert volume.facts["transfer_syntax"] == JPEGLosslessSV1.name


def test_bits_beyond_those_stored_are_ignored(tmp_path: Path) -> None:
    written = smooth_volume(SHAPE, "uint16", 12)
    with_overlay = written | np.uint16(0xA000)
    path = write_dicom(tmp_path / "a.dcm", image_dataset(with_overlay, bits_stored=12))
    np.testing.assert_array_equal(decode(path).voxels_DHW, written.astype(np.float32))


def test_float_pixel_data(tmp_path: Path) -> None:
    written = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    dataset = image_dataset(smooth_volume(SHAPE, "uint16", 16))
    del dataset.PixelData, dataset.PixelRepresentation, dataset.BitsStored, dataset.HighBit
    dataset.BitsAllocated = 32
    dataset.FloatPixelData = written.tobytes()
    np.testing.assert_array_equal(decode(write_dicom(tmp_path / "a.dcm", dataset)).voxels_DHW, written)


def test_a_single_frame_file_is_one_slice(tmp_path: Path) -> None:
    written = smooth_volume((1, 40, 33), "uint8", 8)
    dataset = image_dataset(written, PixelSpacing=[0.5, 0.25], SliceThickness=2.0)
    del dataset.NumberOfFrames
    volume = decode(write_dicom(tmp_path / "a.dcm", dataset))
    assert volume.voxels_DHW.shape == (1, 40, 33)
    assert volume.spacing_mm == (2.0, 0.5, 0.25)


def test_a_dataset_without_preamble_is_read_if_it_parses(tmp_path: Path) -> None:
    written = smooth_volume(SHAPE, "uint16", 16)
    path = write_dicom(tmp_path / "a.dcm", image_dataset(written), ImplicitVRLittleEndian)
    path.write_bytes(path.read_bytes()[132:])
    np.testing.assert_array_equal(decode(path).voxels_DHW, written.astype(np.float32))


def test_the_name_needs_no_suffix(tmp_path: Path) -> None:
    written = smooth_volume(SHAPE, "uint8", 8)
    path = write_dicom(tmp_path / "0f3a", image_dataset(written))
    np.testing.assert_array_equal(decode(path).voxels_DHW, written.astype(np.float32))


# ---- values: rescale and MONOCHROME1 ----


def _rescaled(where: str, num_frames: int) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Elements that state a rescale at the given place, and the slope and intercept of each frame."""
    shared = {"RescaleSlope": 0.5, "RescaleIntercept": -100.0, "RescaleType": "US"}
    if where == "top":
        return (
            {"RescaleSlope": 0.5, "RescaleIntercept": -100.0},
            np.full(num_frames, 0.5),
            np.full(num_frames, -100.0),
        )
    if where == "shared":
        groups = {"SharedFunctionalGroupsSequence": [group(PixelValueTransformationSequence=shared)]}
        return groups, np.full(num_frames, 0.5), np.full(num_frames, -100.0)
    slopes, intercepts = 0.5 + np.arange(num_frames), 10.0 * np.arange(num_frames)
    per_frame = [
        group(PixelValueTransformationSequence={"RescaleSlope": s, "RescaleIntercept": i, "RescaleType": "US"})
        for s, i in zip(slopes, intercepts)
    ]
    return {"PerFrameFunctionalGroupsSequence": per_frame}, slopes, intercepts


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
@pytest.mark.parametrize("where", ["top", "shared", "per frame"])
@pytest.mark.parametrize("stored", ["8 bit", "12 of 16 bit", "signed 12 of 16 bit"])
def test_rescale_and_inversion(tmp_path: Path, stored: str, where: str, photometric: str) -> None:
    """Closed form: v = slope * x + intercept; MONOCHROME1: (lo + hi) - v over the stored range."""
    dtype, bits = STORED[stored]
    written = smooth_volume(SHAPE, dtype, bits)
    elements, slopes, intercepts = _rescaled(where, SHAPE[0])
    path = write_dicom(
        tmp_path / "a.dcm", image_dataset(written, bits_stored=bits, photometric=photometric, **elements)
    )
    expected = written * slopes[:, None, None] + intercepts[:, None, None]
    if photometric == "MONOCHROME1":
        least = -(1 << (bits - 1)) if dtype == "int16" else 0
        low = least * slopes + intercepts
        high = (least + (1 << bits) - 1) * slopes + intercepts
        expected = (low + high)[:, None, None] - expected
    np.testing.assert_allclose(decode(path).voxels_DHW, expected, rtol=1e-6)


def test_lossy_and_lossless_agree_on_inversion(tmp_path: Path) -> None:
    written = smooth_volume(SHAPE, "uint8", 8)
    path = write_dicom(tmp_path / "a.dcm", image_dataset(written, photometric="MONOCHROME1"), RLELossless)
    np.testing.assert_array_equal(decode(path).voxels_DHW, 255.0 - written)


# ---- spacing ----


@pytest.mark.parametrize("where", ["top", "shared", "per frame"])
def test_spacing_is_found_wherever_it_is_stated(tmp_path: Path, where: str) -> None:
    written = smooth_volume(SHAPE, "uint8", 8)
    measures = {"PixelSpacing": [0.004, 0.012], "SliceThickness": 0.12}
    elements: dict[str, Any] = dict(measures)
    if where == "shared":
        elements = {"SharedFunctionalGroupsSequence": [group(PixelMeasuresSequence=measures)]}
    if where == "per frame":
        elements = {"PerFrameFunctionalGroupsSequence": [group(PixelMeasuresSequence=measures)] * SHAPE[0]}
    volume = decode(write_dicom(tmp_path / "a.dcm", image_dataset(written, **elements)))
    assert volume.spacing_mm == pytest.approx((0.12, 0.004, 0.012))
    assert volume.facts["spacing_source"] == "SliceThickness"


def _stacked(positions_z: list[float], **measures: Any) -> dict[str, Any]:
    return {
        "PerFrameFunctionalGroupsSequence": plane_groups([(1, 2, z) for z in positions_z], AXIAL),
        "SharedFunctionalGroupsSequence": [group(PixelMeasuresSequence={"PixelSpacing": [0.5, 0.25], **measures})],
    }


@pytest.mark.parametrize(
    ("measures", "expected", "source"),
    [
        ({"SpacingBetweenSlices": 3.0, "SliceThickness": 9.0}, 3.0, "SpacingBetweenSlices"),
        ({"SliceThickness": 9.0}, 2.0, "frame positions"),
        ({}, 2.0, "frame positions"),
    ],
)
def test_which_slice_distance_counts(tmp_path: Path, measures: dict[str, float], expected: float, source: str) -> None:
    written = smooth_volume(SHAPE, "uint8", 8)
    volume = decode(write_dicom(tmp_path / "a.dcm", image_dataset(written, **_stacked([0, 2, 4, 6, 8], **measures))))
    assert volume.spacing_mm == pytest.approx((expected, 0.5, 0.25))
    assert volume.facts["spacing_source"] == source
    contradiction = "SpacingBetweenSlices is 3 mm, the frames lie 2 mm apart"
    assert volume.facts["warnings"] == (contradiction if expected == 3.0 else "")


def test_uneven_slices_have_no_spacing_and_say_so(tmp_path: Path) -> None:
    written = smooth_volume(SHAPE, "uint8", 8)
    path = write_dicom(tmp_path / "a.dcm", image_dataset(written, **_stacked([0, 2, 4, 9, 11], SliceThickness=2.0)))
    volume = decode(path)
    assert volume.spacing_mm is None
    assert "slice distances are uneven, 2 to 5 mm" in str(volume.facts["warnings"])
    declared = decode(path, DeclaredAxes(spacing_mm=(2.0, 0.5, 0.25)))
    assert declared.spacing_mm == (2.0, 0.5, 0.25)
    assert declared.facts["spacing_source"] == "study"


def test_the_files_spacing_wins_over_the_studys(tmp_path: Path) -> None:
    written = smooth_volume(SHAPE, "uint8", 8)
    path = write_dicom(tmp_path / "a.dcm", image_dataset(written, PixelSpacing=[0.5, 0.25], SliceThickness=1))
    assert decode(path, DeclaredAxes(spacing_mm=(9, 9, 9))).spacing_mm == (1.0, 0.5, 0.25)


def test_frames_of_different_spacing_are_refused(tmp_path: Path) -> None:
    written = smooth_volume(SHAPE, "uint8", 8)
    groups = [group(PixelMeasuresSequence={"PixelSpacing": [0.1 * (k + 1), 0.1]}) for k in range(SHAPE[0])]
    path = write_dicom(tmp_path / "a.dcm", image_dataset(written, PerFrameFunctionalGroupsSequence=groups))
    with pytest.raises(InputError, match=r"frames differ in PixelSpacing: from 0.1 to 0.5 mm"):
        decode(path)


# ---- order of the frames ----


def test_frames_are_ordered_along_the_normal(tmp_path: Path) -> None:
    written = smooth_volume(SHAPE, "uint8", 8)
    positions = [4.0, -2.0, 0.0, 2.0, 6.0]
    volume = decode(write_dicom(tmp_path / "a.dcm", image_dataset(written, **_stacked(positions))))
    np.testing.assert_array_equal(volume.voxels_DHW, written[np.argsort(positions)].astype(np.float32))
    assert volume.facts["frame_order"] == "plane position"
    assert volume.spacing_mm == pytest.approx((2.0, 0.5, 0.25))


def test_the_order_follows_an_oblique_normal_and_each_frame_its_own_rescale(tmp_path: Path) -> None:
    written = smooth_volume(SHAPE, "uint8", 8)
    cosine = np.sqrt(0.5)
    orientation = (1, 0, 0, 0, cosine, cosine)  # normal (0, -cosine, cosine)
    places = np.array([3, 1, 4, 0, 2])
    groups = plane_groups([(5, -1.5 * cosine * p, 1.5 * cosine * p) for p in places], orientation)
    for k, item in enumerate(groups):
        transformation = {"RescaleSlope": k + 1, "RescaleIntercept": 0, "RescaleType": "US"}
        item.PixelValueTransformationSequence = [_item(transformation)]
    path = write_dicom(
        tmp_path / "a.dcm",
        image_dataset(written, PerFrameFunctionalGroupsSequence=groups, PixelSpacing=[1, 1]),
    )
    volume = decode(path)
    expected = (written * np.arange(1, 6)[:, None, None])[np.argsort(places)]
    np.testing.assert_array_equal(volume.voxels_DHW, expected.astype(np.float32))
    assert volume.spacing_mm == pytest.approx((1.5, 1, 1), rel=1e-4)


def _item(elements: dict[str, Any]) -> Dataset:
    item = Dataset()
    for keyword, value in elements.items():
        setattr(item, keyword, value)
    return item


def test_frames_are_ordered_by_position_in_the_stack(tmp_path: Path) -> None:
    written = smooth_volume(SHAPE, "uint8", 8)
    numbers = [2, 5, 1, 4, 3]
    groups = [group(FrameContentSequence={"StackID": "1", "InStackPositionNumber": n}) for n in numbers]
    volume = decode(write_dicom(tmp_path / "a.dcm", image_dataset(written, PerFrameFunctionalGroupsSequence=groups)))
    np.testing.assert_array_equal(volume.voxels_DHW, written[np.argsort(numbers)].astype(np.float32))
    assert volume.facts["frame_order"] == "in-stack position"


def _scan_lines(lines: list[tuple[float, float, float, float]]) -> list[Dataset]:
    return [group(OphthalmicFrameLocationSequence={"ReferenceCoordinates": list(line)}) for line in lines]


def test_horizontal_scan_lines_are_ordered_from_the_top_of_the_reference_image(tmp_path: Path) -> None:
    written = smooth_volume(SHAPE, "uint8", 8)
    rows = [400.0, 300.0, 200.0, 100.0, 50.0]  # stored from the bottom up
    groups = _scan_lines([(row, 10, row, 500) for row in rows])
    volume = decode(write_dicom(tmp_path / "a.dcm", image_dataset(written, PerFrameFunctionalGroupsSequence=groups)))
    np.testing.assert_array_equal(volume.voxels_DHW, written[::-1].astype(np.float32))
    assert volume.facts["frame_order"] == "ophthalmic frame location"


def test_radial_scan_lines_keep_the_stored_order_and_say_so(tmp_path: Path) -> None:
    written = smooth_volume(SHAPE, "uint8", 8)
    angles = np.linspace(0, 3, SHAPE[0])
    groups = _scan_lines(
        [(256 - 99 * np.sin(a), 256 - 99 * np.cos(a), 256 + 99 * np.sin(a), 256 + 99 * np.cos(a)) for a in angles]
    )
    volume = decode(write_dicom(tmp_path / "a.dcm", image_dataset(written, PerFrameFunctionalGroupsSequence=groups)))
    np.testing.assert_array_equal(volume.voxels_DHW, written.astype(np.float32))
    assert volume.facts["frame_order"] == "stored"
    assert volume.facts["warnings"] == "the scan lines are not parallel: frames are kept as stored"


def test_positions_that_are_all_the_same_say_nothing(tmp_path: Path) -> None:
    written = smooth_volume(SHAPE, "uint8", 8)
    volume = decode(write_dicom(tmp_path / "a.dcm", image_dataset(written, **_stacked([0.0] * 5, SliceThickness=3))))
    np.testing.assert_array_equal(volume.voxels_DHW, written.astype(np.float32))
    assert volume.facts["frame_order"] == "stored"
    assert volume.spacing_mm == (3.0, 0.5, 0.25)


def test_two_volumes_in_one_file_are_refused(tmp_path: Path) -> None:
    written = smooth_volume((6, 40, 33), "uint8", 8)
    path = write_dicom(tmp_path / "a.dcm", image_dataset(written, **_stacked([0, 2, 4, 0, 2, 4])))
    with pytest.raises(InputError, match=r"the 6 frames lie at 3 places \(plane position\).*more than one volume"):
        decode(path)


def test_two_stacks_in_one_file_are_refused(tmp_path: Path) -> None:
    written = smooth_volume((2, 40, 33), "uint8", 8)
    groups = [group(FrameContentSequence={"StackID": name, "InStackPositionNumber": 1}) for name in "AB"]
    path = write_dicom(tmp_path / "a.dcm", image_dataset(written, PerFrameFunctionalGroupsSequence=groups))
    with pytest.raises(InputError, match="holds 2 stacks of frames"):
        decode(path)


# ---- many threads ----


def test_decoding_in_a_thread_pool_gives_each_file_its_own_values_and_warnings(tmp_path: Path) -> None:
    syntaxes = list(LOSSLESS.values())
    written = [smooth_volume(SHAPE, "uint16", 12, seed) for seed in range(len(syntaxes))]
    paths = [
        write_dicom(tmp_path / f"{k}.dcm", image_dataset(values, bits_stored=12), syntax)
        for k, (values, syntax) in enumerate(zip(written, syntaxes))
    ]
    with ThreadPoolExecutor(8) as pool:
        volumes = list(pool.map(decode, paths * 6))
    for k, volume in enumerate(volumes):
        np.testing.assert_array_equal(volume.voxels_DHW, written[k % len(paths)].astype(np.float32))
        assert volume.facts["warnings"] == ""
