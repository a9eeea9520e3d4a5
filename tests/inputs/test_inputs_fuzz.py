"""Random, truncated and altered bytes decode or end in an InputError, never in anything else."""

import gzip
import tempfile
from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inputs_dicom_files import group, image_dataset, plane_groups, smooth_volume, write_dicom
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from vitreous.core.errors import InputError
from vitreous.inputs.decode import decode_volume
from vitreous.inputs.volume import DeclaredAxes, Volume

STORED = smooth_volume((3, 34, 33), "uint8", 8)
FUZZ = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def _dicom(syntax: str) -> Callable[[], bytes]:
    def make() -> bytes:
        measures = group(PixelMeasuresSequence={"PixelSpacing": [0.5, 0.25], "SliceThickness": 1.0})
        dataset = image_dataset(
            STORED.copy(),
            SharedFunctionalGroupsSequence=[measures],
            PerFrameFunctionalGroupsSequence=plane_groups([(0, 0, z) for z in range(3)], (1, 0, 0, 0, 1, 0)),
        )
        with tempfile.TemporaryDirectory() as folder:
            return write_dicom(Path(folder) / "a", dataset, syntax).read_bytes()

    return make


def _nifti() -> bytes:
    image = nibabel.Nifti1Image(STORED.astype(np.float32), np.eye(4))
    image.header.set_xyzt_units("mm")
    return bytes(image.to_bytes())


def _npy() -> bytes:
    buffer = BytesIO()
    np.save(buffer, STORED)
    return buffer.getvalue()


def _npz() -> bytes:
    buffer = BytesIO()
    np.savez_compressed(buffer, image=STORED)
    return buffer.getvalue()


MAKERS: dict[str, Callable[[], bytes]] = {
    "implicit": _dicom(ImplicitVRLittleEndian),
    "explicit": _dicom(ExplicitVRLittleEndian),
    "big endian": _dicom(ExplicitVRBigEndian),
    "deflated": _dicom(DeflatedExplicitVRLittleEndian),
    "rle": _dicom(RLELossless),
    "jpeg": _dicom(JPEGBaseline8Bit),
    "jpeg-ls": _dicom(JPEGLSLossless),
    "jpeg 2000": _dicom(JPEG2000Lossless),
    "without preamble": lambda: _dicom(ImplicitVRLittleEndian)()[132:],
    "nifti": _nifti,
    "gzipped nifti": lambda: gzip.compress(_nifti(), mtime=0),
    "npy": _npy,
    "npz": _npz,
}


@cache
def good_bytes(kind: str) -> bytes:
    return MAKERS[kind]()


def decode_or_refuse(data: bytes) -> Volume | str:
    """Decode, or the message of the InputError; any other exception or warning fails the test."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        path.write_bytes(data)
        try:
            return decode_volume(path, declared=DeclaredAxes("DHW", (1, 1, 1)), max_bytes=1 << 22)
        except InputError as error:
            return str(error)


@pytest.mark.parametrize("kind", MAKERS)
def test_the_untouched_file_decodes(kind: str) -> None:
    volume = decode_or_refuse(good_bytes(kind))
    assert isinstance(volume, Volume)
    assert volume.voxels_DHW.size == STORED.size


@pytest.mark.parametrize("kind", MAKERS)
@given(share=st.floats(0, 1, exclude_max=True))
@FUZZ
def test_a_truncated_file_is_refused(kind: str, share: float) -> None:
    data = good_bytes(kind)
    refused = decode_or_refuse(data[: int(share * len(data))])
    # a deflated file may lose its pad byte, and every file its trailing padding
    assert isinstance(refused, str) or share * len(data) > len(data) - 3


@pytest.mark.parametrize("kind", MAKERS)
@given(changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=12))
@FUZZ
def test_altered_bytes_decode_or_are_refused(kind: str, changes: list[tuple[float, int]]) -> None:
    data = bytearray(good_bytes(kind))
    for share, value in changes:
        data[int(share * len(data))] = value
    decode_or_refuse(bytes(data))


@pytest.mark.parametrize("kind", MAKERS)
@given(changes=st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), min_size=1, max_size=6))
@FUZZ
def test_altered_headers_decode_or_are_refused(kind: str, changes: list[tuple[int, int]]) -> None:
    data = bytearray(good_bytes(kind))
    for at, value in changes:
        data[at % len(data)] = value
    decode_or_refuse(bytes(data))


@pytest.mark.parametrize("start", ["", "preamble", "element", "nifti", "gzip", "npy", "zip"])
@given(rest=st.binary(max_size=600))
@FUZZ
def test_random_bytes_are_refused(start: str, rest: bytes) -> None:
    head = {
        "": b"",
        "preamble": bytes(128) + b"DICM",
        "element": b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100",
        "nifti": b"\x5c\x01\x00\x00" + bytes(340) + b"n+1\x00",
        "gzip": b"\x1f\x8b\x08\x00",
        "npy": b"\x93NUMPY\x01\x00",
        "zip": b"PK\x03\x04",
    }[start]
    assert isinstance(decode_or_refuse(head + rest), str)
