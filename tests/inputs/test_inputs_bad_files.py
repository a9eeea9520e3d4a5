"""Each bad file ends in one InputError whose message says what is wrong, and names nobody."""

import gzip
import logging
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from inputs_dicom_files import (
    PATIENT_ID,
    PATIENT_NAME,
    group,
    image_dataset,
    jpeg_frame,
    plane_groups,
    smooth_volume,
    write_dicom,
)
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from vitreous.core.errors import InputError
from vitreous.inputs.decode import decode_volume
from vitreous.inputs.volume import DeclaredAxes

SHAPE = (4, 40, 33)
MAX_BYTES = 1 << 24
STORED = smooth_volume(SHAPE, "uint8", 8)


def refusal(path: Path, *, declared: DeclaredAxes | None = None, max_bytes: int = MAX_BYTES) -> str:
    """The message; it must not hold a value of the patient."""
    with pytest.raises(InputError) as caught:
        decode_volume(path, declared=declared or DeclaredAxes("DHW"), max_bytes=max_bytes)
    message = str(caught.value)
    for secret in (PATIENT_NAME, PATIENT_ID, "19470203", path.name):
        assert secret not in message
    return message


def written(tmp_path: Path, syntax: str = ExplicitVRLittleEndian, **elements: Any) -> Path:
    return write_dicom(tmp_path / "a.dcm", image_dataset(STORED.copy(), **elements), syntax)


# ---- any format ----


def test_an_absent_file(tmp_path: Path) -> None:
    assert refusal(tmp_path / "a.dcm") == "the file cannot be read: No such file or directory."


@pytest.mark.parametrize("name", ["a.dcm", "a.nii", "a.nii.gz", "a.npy", "a.npz", "a"])
def test_an_empty_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert refusal(tmp_path / name) == "the file is empty (0 bytes)."


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (b"\x89PNG\r\n\x1a\n" + b"0" * 900, "a.dcm", "its name ends in .dcm, its content is a PNG image"),
        (b"<html><body>403 Forbidden" * 9, "a.dcm", "its name ends in .dcm, its content is an HTML or XML"),
        (b"\x93NUMPY\x01\x00" + b"0" * 900, "a.dcm", "its name ends in .dcm, its content is npy"),
        (b"\x00" * 128 + b"DICM" + b"0" * 900, "a.nii.gz", "its name ends in .nii.gz, its content is dicom"),
        (b"participant_id\tage\n" * 99, "a.npy", "its name ends in .npy, its content is plain text"),
        (b"\x00" * 900, "a.nii", "its name ends in .nii, its content is zeros"),
        (gzip.compress(b"no image " * 99), "a.nii.gz", "its content is gzipped content other than"),
        (bytes(range(255, 9, -1)) * 9, "volume-7", "the content is of an unknown format, which is no volume"),
        (b"\x00\x00\x00\x18ftypisom" + b"0" * 900, "a.mp4", "the content is an MP4 video, which is no"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_what_it_claims(tmp_path: Path, content: bytes, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert message in refusal(tmp_path / name)


# ---- DICOM ----


@pytest.mark.parametrize("share", [0.02, 0.05, 0.3, 0.9, 0.999])
@pytest.mark.parametrize(
    "syntax",
    [ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless, JPEGLSLossless, JPEG2000Lossless],
)
def test_truncated_dicom(tmp_path: Path, syntax: str, share: float) -> None:
    path = written(tmp_path, syntax)
    data = path.read_bytes()
    path.write_bytes(data[: 140 + int(share * (len(data) - 140))])
    message = refusal(path)
    assert "truncated" in message or "cut short" in message


def test_truncated_pixel_data_says_how_much_is_there(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_bytes(path.read_bytes()[:-1000])
    assert refusal(path) == "the DICOM pixel data is truncated: 4,280 of 5,280 bytes are there."


def test_less_pixel_data_than_declared(tmp_path: Path) -> None:
    path = written(tmp_path, NumberOfFrames=5)
    assert refusal(path) == "the DICOM pixel data is truncated: 5,280 bytes for the 6,600 that the header declares."


def test_more_frames_than_declared(tmp_path: Path) -> None:
    path = written(tmp_path, NumberOfFrames=3)
    assert (
        refusal(path) == "the DICOM pixel data is not what its header claims: 5,280 bytes, where 3 frames take 3,960."
    )


def test_missing_pixel_data(tmp_path: Path) -> None:
    dataset = image_dataset(STORED)
    del dataset.PixelData
    assert (
        refusal(write_dicom(tmp_path / "a.dcm", dataset))
        == "the DICOM file holds no pixel data, or is truncated before it."
    )


def test_zero_frames(tmp_path: Path) -> None:
    assert refusal(written(tmp_path, NumberOfFrames=0)) == "the DICOM header declares 0 frames."


def test_zero_rows(tmp_path: Path) -> None:
    assert refusal(written(tmp_path, Rows=0)) == "the DICOM header declares frames of 0 rows and 33 columns."


def test_missing_header_value(tmp_path: Path) -> None:
    dataset = image_dataset(STORED)
    del dataset.BitsAllocated
    assert refusal(write_dicom(tmp_path / "a.dcm", dataset)) == "the DICOM header lacks BitsAllocated."


def test_absurdly_large_dicom_is_refused_before_anything_is_allocated(tmp_path: Path) -> None:
    path = written(tmp_path, Rows=60000, Columns=60000, NumberOfFrames=900)
    message = refusal(path, max_bytes=1 << 33)
    assert "declares 900 × 60000 × 60000 voxels, which take 12,960,000,000,000 bytes in memory" in message
    assert "at most 8,589,934,592 are allowed" in message


def test_a_dicom_file_larger_than_allowed(tmp_path: Path) -> None:
    path = written(tmp_path)
    assert f"the file has {path.stat().st_size:,} bytes; at most 1,000 are allowed" in refusal(path, max_bytes=1000)


def test_a_deflate_bomb_is_not_inflated(tmp_path: Path) -> None:
    """A thousandth of what it asks for: nothing beyond the bound is inflated."""
    small = written(tmp_path, DeflatedExplicitVRLittleEndian)
    data = small.read_bytes()
    (length,) = struct.unpack_from("<L", data, 140)
    start = 144 + length
    dataset = zlib.decompress(data[start:], -zlib.MAX_WBITS)
    stream = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    parts = [stream.compress(dataset)]
    parts += [stream.compress(bytes(1 << 20)) for _ in range(100)]
    bomb = tmp_path / "bomb.dcm"
    bomb.write_bytes(data[:start] + b"".join(parts) + stream.flush())
    assert bomb.stat().st_size < 1 << 17
    tracemalloc.start()
    message = refusal(bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "the deflated DICOM dataset inflates beyond the 16,777,216 bytes allowed" in message
    assert peak < 3 * MAX_BYTES


@pytest.mark.parametrize("size", [(50000, 50000), (41, 33), (40, 32)])
def test_a_jpeg_frame_whose_own_size_is_not_the_headers(tmp_path: Path, size: tuple[int, int]) -> None:
    path = written(tmp_path, JPEGBaseline8Bit)
    dataset = pydicom.dcmread(path)
    frames = [jpeg_frame(frame) for frame in STORED]
    at = frames[2].index(b"\xff\xc0")
    frames[2] = frames[2][: at + 5] + struct.pack(">HH", *size) + frames[2][at + 9 :]
    dataset.PixelData = encapsulate(frames)
    dataset.save_as(path)
    expected = f"frame 3 of the DICOM pixel data says it has {size[0]} rows, {size[1]} columns and 1 components"
    assert expected in refusal(path)


def test_a_jpeg2000_frame_whose_own_size_is_not_the_headers(tmp_path: Path) -> None:
    path = written(tmp_path, JPEG2000Lossless)
    data = bytearray(path.read_bytes())
    at = data.index(b"\xff\x4f\xff\x51")
    data[at + 8 : at + 16] = struct.pack(">LL", 60000, 60000)
    path.write_bytes(data)
    assert "says it has 60000 rows, 60000 columns and 1 components" in refusal(path)


def test_fewer_encoded_frames_than_declared(tmp_path: Path) -> None:
    path = written(tmp_path, JPEGBaseline8Bit)
    dataset = pydicom.dcmread(path)
    dataset.PixelData = encapsulate([jpeg_frame(frame) for frame in STORED[:3]])
    dataset.save_as(path)
    assert refusal(path) == "the DICOM header declares 4 frames, its pixel data holds 3."


@pytest.mark.parametrize("syntax", [RLELossless, JPEGBaseline8Bit, JPEGLSLossless, JPEG2000Lossless])
def test_a_damaged_frame(tmp_path: Path, syntax: str, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path, syntax)
    data = bytearray(path.read_bytes())
    end = len(data) - 600
    # in RLE nearly all bytes mean something; a run of no-operations leaves the frame too short
    data[end - 400 : end] = (b"\x80\x80" if syntax == RLELossless else b"\xff\xd8") * 200
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        message = refusal(path)
    assert "the DICOM pixel data is damaged" in message or "what the transfer syntax" in message
    assert caplog.text == ""


def test_a_frame_that_is_not_of_its_transfer_syntax(tmp_path: Path) -> None:
    path = written(tmp_path, JPEGBaseline8Bit)
    dataset = pydicom.dcmread(path)
    dataset.PixelData = encapsulate([b"GIF89a" + bytes(100)] * 4)
    dataset.save_as(path)
    assert "frame 1 of the DICOM pixel data is not what the transfer syntax JPEG Baseline" in refusal(path)


@pytest.mark.parametrize(
    ("syntax", "message"),
    [
        ("1.2.840.10008.1.2.4.100", "the DICOM transfer syntax 1.2.840.10008.1.2.4.100 (MPEG2 Main Profile"),
        ("1.2.3.4.5", "the DICOM transfer syntax 1.2.3.4.5 (1.2.3.4.5) is not supported"),
    ],
)
def test_an_unsupported_transfer_syntax(tmp_path: Path, syntax: str, message: str) -> None:
    path = written(tmp_path, JPEGBaseline8Bit)
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    dataset.save_as(path, implicit_vr=False, little_endian=True)
    assert message in refusal(path)


def _with_syntax(tmp_path: Path, syntax: str, **elements: Any) -> Path:
    path = written(tmp_path, JPEGBaseline8Bit)
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)
    return path


def test_jpeg_lossless_without_gdcm_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pydicom.pixels.decoders.base import JPEGLosslessSV1Decoder

    monkeypatch.setattr(JPEGLosslessSV1Decoder, "_available", {})
    message = refusal(_with_syntax(tmp_path, JPEGLosslessSV1))
    assert "JPEG Lossless, Non-Hierarchical, First-Order Prediction (Process 14 [Selection Value 1])" in message
    assert message.endswith("needs a decoder that is not installed: install python-gdcm.")


def test_jpeg_extended_of_12_bits_names_the_package_and_its_licence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pydicom.pixels.decoders.base import JPEGExtended12BitDecoder

    monkeypatch.delitem(JPEGExtended12BitDecoder._available, "pylibjpeg", raising=False)
    path = _with_syntax(tmp_path, JPEGExtended12Bit, BitsAllocated=16, BitsStored=12, HighBit=11)
    assert refusal(path).endswith("install pylibjpeg-libjpeg (its licence is GPLv3).")


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "not grey: 1 samples per pixel, photometric interp"),
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, "3 samples per pixel, photometric"),
        ({"PhotometricInterpretation": "YBR_FULL_422", "SamplesPerPixel": 3}, "interpretation YBR_FULL_422"),
        ({"SamplesPerPixel": 2}, "not grey: 2 samples per pixel"),
        ({"HighBit": 9}, "places 8 bits below bit 9"),
        ({"BitsStored": 12}, "declares 12 bits stored in 8 allocated"),
        ({"RescaleSlope": 0, "RescaleIntercept": 0}, "rescale slope or intercept of the DICOM file is zero"),
        ({"ModalityLUTSequence": [group().__class__()]}, "by a Modality LUT"),
        ({"PerFrameFunctionalGroupsSequence": [group()] * 3}, "declares 4 frames and describes 3 in its"),
    ],
)  # fmt: skip
def test_an_image_that_is_no_grey_volume(tmp_path: Path, elements: dict[str, Any], message: str) -> None:
    assert message in refusal(written(tmp_path, **elements))


@pytest.mark.parametrize("orientation", [(1, 0, 0, 1, 0, 0), (0, 0, 0, 0, 0, 0), (2, 0, 0, 0, 2, 0)])
def test_an_orientation_that_is_none(tmp_path: Path, orientation: tuple[int, ...]) -> None:
    groups = plane_groups([(0, 0, z) for z in range(4)], orientation)
    message = refusal(written(tmp_path, PerFrameFunctionalGroupsSequence=groups))
    assert message == "a frame's orientation in the DICOM file is not two perpendicular directions of length 1."


def test_a_rescale_that_only_some_frames_state(tmp_path: Path) -> None:
    transformation = {"RescaleSlope": 2, "RescaleIntercept": 0, "RescaleType": "US"}
    groups = [group(PixelValueTransformationSequence=transformation) if k else group() for k in range(4)]
    path = written(tmp_path, PerFrameFunctionalGroupsSequence=groups)
    assert refusal(path) == "only some frames of the DICOM file state a rescale slope."


def test_a_dicomdir(tmp_path: Path) -> None:
    dataset = image_dataset(STORED)
    for keyword in [element.keyword for element in dataset if element.keyword not in ("PatientName", "PatientID")]:
        if keyword not in ("SOPClassUID", "SOPInstanceUID"):
            delattr(dataset, keyword)
    path = write_dicom(tmp_path / "a.dcm", dataset)
    assert refusal(path) == "the DICOM file holds no pixel data, or is truncated before it."


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
def test_a_dicom_of_one_colour(tmp_path: Path, syntax: str) -> None:
    path = write_dicom(tmp_path / "a.dcm", image_dataset(np.full(SHAPE, 7, np.uint8)), syntax)
    assert refusal(path) == "all 5280 voxels have the same value 7: the volume is of one colour."


def test_float_dicom_with_nan(tmp_path: Path) -> None:
    values = STORED.astype(np.float32)
    values[0, 0, :2] = np.nan, np.inf
    dataset = image_dataset(STORED)
    del dataset.PixelData
    dataset.BitsAllocated = 32
    dataset.BitsStored, dataset.HighBit = 32, 31
    dataset.FloatPixelData = values.tobytes()
    path = write_dicom(tmp_path / "a.dcm", dataset)
    assert refusal(path) == "1 of 5280 voxels are NaN and 1 infinite; a volume needs finite values."


def test_float_dicom_that_is_to_be_inverted(tmp_path: Path) -> None:
    dataset = image_dataset(STORED, photometric="MONOCHROME1")
    del dataset.PixelData
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 32, 32, 31
    dataset.FloatPixelData = STORED.astype(np.float32).tobytes()
    message = refusal(write_dicom(tmp_path / "a.dcm", dataset))
    assert message.startswith("the DICOM image is MONOCHROME1 with floating-point values")


def test_damaged_header_values_do_not_leak(tmp_path: Path) -> None:
    path = written(tmp_path, PixelSpacing=[0.25, 0.25])
    path.write_bytes(path.read_bytes().replace(b"0.25\\0.25 ", b"Quirin\\Zeb"))
    message = refusal(path)
    assert message.startswith("the DICOM header is damaged")
    assert "Quirin" not in message


# ---- NIfTI ----


def nifti(
    tmp_path: Path, values: np.ndarray, *, name: str = "a.nii", change: Callable[[Any], None] | None = None
) -> Path:
    import nibabel

    image = nibabel.Nifti1Image(values, np.eye(4))
    image.header.set_xyzt_units("mm")
    path = tmp_path / name
    nibabel.save(image, path)
    if change is not None:
        data = bytearray(path.read_bytes())
        header = nibabel.Nifti1Header(bytes(data[:348]), check=False)
        change(header)
        data[:348] = header.binaryblock
        path.write_bytes(data)
    return path


FLOATS = smooth_volume(SHAPE, "uint8", 8).astype(np.float32)


@pytest.mark.parametrize("num_bytes", [100, 347])
def test_truncated_nifti_header(tmp_path: Path, num_bytes: int) -> None:
    path = nifti(tmp_path, FLOATS)
    path.write_bytes(path.read_bytes()[:num_bytes])
    assert "its name ends in .nii, its content is" in refusal(path)


def test_truncated_nifti(tmp_path: Path) -> None:
    path = nifti(tmp_path, FLOATS)
    path.write_bytes(path.read_bytes()[:-120])
    assert refusal(path) == "the NIfTI file is truncated: 21,000 of 21,120 bytes of values are there."


@pytest.mark.parametrize("keep", [200, -4, -2000])
def test_truncated_gzipped_nifti(tmp_path: Path, keep: int) -> None:
    path = nifti(tmp_path, FLOATS, name="a.nii.gz")
    path.write_bytes(path.read_bytes()[:keep])
    assert "damaged or truncated" in refusal(path)


def test_gzipped_nifti_with_a_flipped_bit_fails_its_checksum(tmp_path: Path) -> None:
    path = nifti(tmp_path, FLOATS, name="a.nii.gz")
    data = bytearray(path.read_bytes())
    data[-6] ^= 1
    path.write_bytes(data)
    assert refusal(path) == "the gzip stream of the NIfTI file is damaged or truncated (BadGzipFile)."


def test_absurdly_large_nifti(tmp_path: Path) -> None:
    path = nifti(tmp_path, FLOATS, change=lambda header: header.set_data_shape((30000, 30000, 30000)))
    assert "declares 30000 × 30000 × 30000 voxels, which take 108,000,000,000,000 bytes" in refusal(path)


def test_a_gzip_bomb_is_refused_by_its_declared_size(tmp_path: Path) -> None:
    path = nifti(tmp_path, FLOATS, change=lambda header: header.set_data_shape((2000, 2000, 2000)))
    bomb = tmp_path / "bomb.nii.gz"
    bomb.write_bytes(gzip.compress(path.read_bytes() + bytes(1 << 26)))
    assert "which take 32,000,000,000 bytes in memory; at most 16,777,216 are allowed" in refusal(bomb)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            np.stack([FLOATS, FLOATS + 1], axis=-1),
            r"holds 2 volumes (shape (4, 40, 33, 2)): time points or channels",
        ),
        (FLOATS.astype(np.complex64), "holds values of type complex64"),
        (
            np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")]),
            "a volume needs one real number per voxel",
        ),
        (
            np.full(SHAPE, 3.0, np.float32),
            "all 5280 voxels have the same value 3: the volume is of one colour.",
        ),
        (np.where(FLOATS > 200, np.nan, FLOATS).astype(np.float32), "voxels are NaN and 0 infinite"),
        (np.where(FLOATS > 200, np.inf, FLOATS).astype(np.float32), "of 5280 voxels are NaN and"),
    ],
)
def test_a_nifti_that_is_no_volume(tmp_path: Path, values: np.ndarray, message: str) -> None:
    assert message in refusal(nifti(tmp_path, values))


def test_nifti_without_orientation_asks_for_axes(tmp_path: Path) -> None:
    def forget(header: Any) -> None:
        header["sform_code"] = header["qform_code"] = 0

    message = refusal(nifti(tmp_path, FLOATS, change=forget), declared=DeclaredAxes())
    assert "states no orientation (sform_code and qform_code are 0); set the study key data.axes" in message


def test_nifti_without_unit_asks_for_spacing(tmp_path: Path) -> None:
    message = refusal(nifti(tmp_path, FLOATS, change=lambda header: header.set_xyzt_units("unknown")))
    assert "does not say the unit of its spacing (xyzt_units is unknown); set the study key data.spacing_mm" in message


def test_nifti_with_a_unit_that_does_not_exist(tmp_path: Path) -> None:
    def spoil(header: Any) -> None:
        header["xyzt_units"] = 5

    assert "does not say the unit of its spacing" in refusal(nifti(tmp_path, FLOATS, change=spoil))


def test_nifti_with_a_singular_affine(tmp_path: Path) -> None:
    def flatten(header: Any) -> None:
        header["srow_z"] = header["srow_x"]

    assert "orientation (affine) is singular or not finite" in refusal(nifti(tmp_path, FLOATS, change=flatten))


def test_nifti_with_an_impossible_header(tmp_path: Path) -> None:
    def damage(header: Any) -> None:
        header["datatype"] = 9999

    assert refusal(nifti(tmp_path, FLOATS, change=damage)).startswith("the NIfTI header is damaged (")


def test_two_file_nifti_and_analyze(tmp_path: Path) -> None:
    path = nifti(tmp_path, FLOATS)
    data = path.read_bytes()
    path.write_bytes(data[:344] + b"ni1\x00" + data[348:])
    assert "header of a two-file NIfTI" in refusal(path)
    path.write_bytes(data[:344] + b"\x00" * 4 + data[348:])
    assert "Analyze 7.5 header, which states no orientation" in refusal(path)


# ---- NPY and NPZ ----


def npy(path: Path, values: np.ndarray) -> Path:
    np.save(path, values, allow_pickle=True)
    return path


def test_npy_without_declared_axes(tmp_path: Path) -> None:
    message = refusal(npy(tmp_path / "a.npy", FLOATS), declared=DeclaredAxes())
    assert "set the study key data.axes, e.g. `data.axes: DHW`" in message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([{"a": 1}], dtype=object).reshape(1, 1, 1), "holds values of type object"),
        (np.zeros(SHAPE, np.complex128), "holds values of type complex128"),
        (np.zeros(SHAPE, "S4"), "holds values of type |S4"),
        (np.zeros((2, 3, 4, 5)), "the array has the shape (2, 3, 4, 5); a volume has three axes"),
        (np.zeros((40, 33)), "the array has the shape (40, 33); a volume has three axes"),
        (np.zeros((0, 40, 33)), "the array is empty: its shape is (0, 40, 33)"),
        (np.ones(SHAPE), "all 5280 voxels have the same value 1: the volume is of one colour."),
        (np.where(FLOATS > 254, np.nan, FLOATS), "of 5280 voxels are NaN"),
        (np.where(FLOATS > 254, 1e300, FLOATS.astype(np.float64)), "infinite; a volume needs finite values"),
    ],
)
def test_an_npy_that_is_no_volume(tmp_path: Path, values: np.ndarray, message: str) -> None:
    assert message in refusal(npy(tmp_path / "a.npy", values))


@pytest.mark.parametrize(
    ("num_bytes", "message"), [(40, "NPY header is damaged"), (-7, "array is truncated: 21,113 of")]
)
def test_truncated_npy(tmp_path: Path, num_bytes: int, message: str) -> None:
    path = npy(tmp_path / "a.npy", FLOATS)
    path.write_bytes(path.read_bytes()[:num_bytes])
    assert message in refusal(path)


def test_npy_with_more_than_one_array(tmp_path: Path) -> None:
    path = npy(tmp_path / "a.npy", FLOATS)
    path.write_bytes(path.read_bytes() * 2)
    assert "holds more than one array" in refusal(path)


def test_absurdly_large_npy(tmp_path: Path) -> None:
    path = npy(tmp_path / "a.npy", FLOATS)
    path.write_bytes(path.read_bytes().replace(b"(4, 40, 33)", b"(9999999, 40, 33)")[:128])
    assert "declares 9999999 × 40 × 33 voxels, which take 52,799,994,720 bytes" in refusal(path)


def test_npz_with_several_arrays(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, left=FLOATS, right=FLOATS)
    assert refusal(path) == "the NPZ file holds 2 arrays (left, right); say which one is the volume."


def test_truncated_npz(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, left=FLOATS)
    path.write_bytes(path.read_bytes()[:-50])
    assert refusal(path) == "the ZIP archive (NPZ) is damaged or truncated: its directory cannot be read."


def test_npz_with_a_flipped_bit_fails_its_checksum(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, left=FLOATS)
    data = bytearray(path.read_bytes())
    data[3000] ^= 1
    path.write_bytes(data)
    assert "an array of the NPZ file is damaged, truncated or encrypted" in refusal(path)


def test_a_zip_bomb_is_refused_by_its_declared_size(tmp_path: Path) -> None:
    header = tmp_path / "h.npy"
    npy(header, FLOATS)
    start = header.read_bytes()[:128].replace(b"(4, 40, 33), ", b"(400, 400, 400)")
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("left.npy", start + bytes(1 << 26))
    assert "the array left declares 256,000,000 bytes; at most 16,777,216 are allowed" in refusal(tmp_path / "a.npz")


def test_a_zip_without_arrays(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("notes.txt", "no arrays")
    assert "its name ends in .npz, its content is a ZIP archive without .npy members" in refusal(tmp_path / "a.npz")
