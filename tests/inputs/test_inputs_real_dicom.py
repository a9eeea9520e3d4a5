"""All DICOM files that pydicom ships, and those of pydicom-data: values of python-gdcm, or a named refusal.

Axes: D frame, H row, W column.
"""

import importlib.util
from pathlib import Path

import numpy as np
import pydicom
import pytest
from inputs_dicom_files import gdcm_stored

from vitreous.core.errors import InputError
from vitreous.inputs.decode import decode_volume
from vitreous.inputs.volume import DeclaredAxes

_SHIPPED = Path(pydicom.__file__).parent / "data" / "test_files"
_EXTERNAL_SPEC = importlib.util.find_spec("data_store")
_EXTERNAL = Path(_EXTERNAL_SPEC.origin).parent / "data" if _EXTERNAL_SPEC and _EXTERNAL_SPEC.origin else None

_NO_PIXELS = "holds no pixel data"
_NOT_GREY = "the DICOM image is not grey"
_NO_FORMAT = "begins like a DICOM dataset without preamble, but does not parse as an image"
_NEEDS_LIBJPEG = "install pylibjpeg-libjpeg"

#: Files of pydicom that are no volume → part of the message. Every other one is compared.
_REFUSED = {
    "ExplVR_BigEnd.dcm": _NOT_GREY,
    "ExplVR_BigEndNoMeta.dcm": _NO_FORMAT,
    "ExplVR_LitEndNoMeta.dcm": _NO_FORMAT,
    "GDCMJ2K_TextGBR.dcm": _NOT_GREY,
    "JPEG-lossy.dcm": _NEEDS_LIBJPEG,
    "JPEG2000-embedded-sequence-delimiter.dcm": "says it has 1024 rows, 3722445056 columns",
    "JPGExtended.dcm": _NEEDS_LIBJPEG,
    "MR_truncated.dcm": "the DICOM pixel data is truncated: 8,130 of 8,192 bytes are there",
    "UN_sequence.dcm": "holds no image",
    "badVR.dcm": "the DICOM header is damaged",
    "empty_charset_LEI.dcm": _NO_PIXELS,
    "examples_jpeg2k.dcm": _NOT_GREY,
    "examples_palette.dcm": _NOT_GREY,
    "examples_rgb_color.dcm": _NOT_GREY,
    "examples_ybr_color.dcm": _NOT_GREY,
    "liver_1frame.dcm": "declares 1 frames and describes 3 in its per-frame groups",
    "liver_expb_1frame.dcm": "declares 1 frames and describes 3 in its per-frame groups",
    "meta_missing_tsyntax.dcm": "photometric interpretation not stated",
    "nested_priv_SQ.dcm": "photometric interpretation not stated",
    "no_meta.dcm": "its name ends in .dcm, its content is of an unknown format",
    "no_meta_group_length.dcm": "holds no image",
    "priv_SQ.dcm": "holds no image",
    "reportsi.dcm": _NO_PIXELS,
    "reportsi_with_empty_number_tags.dcm": _NO_PIXELS,
    "rtplan.dcm": _NO_PIXELS,
    "rtplan_truncated.dcm": "truncated",
    "rtstruct.dcm": _NO_FORMAT,
    "test-SR.dcm": _NO_PIXELS,
    "waveform_ecg.dcm": _NO_PIXELS,
}
#: The same for pydicom-data.
_REFUSED_EXTERNAL = {
    "OT-PAL-8-face.dcm": _NOT_GREY,
    "US1_J2KI.dcm": _NOT_GREY,
    "US1_J2KR.dcm": _NOT_GREY,
    "US1_UNCI.dcm": _NOT_GREY,
    "US1_UNCR.dcm": _NOT_GREY,
    "color-pl.dcm": _NOT_GREY,
    "color-px.dcm": _NOT_GREY,
    "color3d_jpeg_baseline.dcm": _NOT_GREY,
    "emri_small_jpeg_2k_lossless_too_short.dcm": "the DICOM pixel data is truncated",
    "gdcm-US-ALOKA-16.dcm": _NOT_GREY,
    "gdcm-US-ALOKA-16_big.dcm": _NOT_GREY,
    "mlut_18.dcm": "by a Modality LUT",
}


#: gdcm aborts on these, or misreads 32 bits in big endian → the same image in a file that it reads.
_TWINS = {
    "rtdose_1frame.dcm": "rtdose.dcm",
    "rtdose_expb.dcm": "rtdose.dcm",
    "rtdose_expb_1frame.dcm": "rtdose.dcm",
    "rtdose_rle_1frame.dcm": "rtdose.dcm",
}


def _expected_refusal(path: Path, table: dict[str, str]) -> str | None:
    if path.name.startswith(("SC_", "OBXXXX1A")):  # secondary capture in colour, palette
        return _NOT_GREY
    return table.get(path.name)


def check_against_gdcm(path: Path, refusal: str | None) -> None:
    """Equal values, rescale and order being applied to what gdcm decodes; or the named refusal."""
    if refusal is not None:
        with pytest.raises(InputError) as caught:
            decode_volume(path, declared=DeclaredAxes(), max_bytes=1 << 28)
        assert refusal in str(caught.value)
        return
    volume = decode_volume(path, declared=DeclaredAxes(), max_bytes=1 << 28)
    header = pydicom.dcmread(path, stop_before_pixels=True)
    stored = gdcm_stored(path.with_name(_TWINS.get(path.name, path.name))).astype(np.float64)
    stored = stored[: int(header.get("NumberOfFrames", 1))]
    low = -(1 << (header.BitsStored - 1)) if header.PixelRepresentation else 0
    if header.PhotometricInterpretation == "MONOCHROME1":
        stored = 2 * low + (1 << header.BitsStored) - 1 - stored
    slope, intercept = _rescale(header)
    expected = stored * slope + intercept
    if volume.facts["frame_order"] != "stored":
        expected = expected[_order(header)]
    np.testing.assert_allclose(volume.voxels_DHW, expected, rtol=1e-6)


def _rescale(header: pydicom.Dataset) -> tuple[float, float]:
    if "PerFrameFunctionalGroupsSequence" not in header:
        return float(header.get("RescaleSlope", 1)), float(header.get("RescaleIntercept", 0))
    for group in (
        header.PerFrameFunctionalGroupsSequence[0],
        *header.get("SharedFunctionalGroupsSequence", []),
    ):
        if "PixelValueTransformationSequence" in group:
            item = group.PixelValueTransformationSequence[0]
            return float(item.RescaleSlope), float(item.RescaleIntercept)
    return 1.0, 0.0


def _order(header: pydicom.Dataset) -> list[int]:
    shared, frames = header.SharedFunctionalGroupsSequence[0], header.PerFrameFunctionalGroupsSequence
    plane = shared if "PlaneOrientationSequence" in shared else frames[0]
    axes = np.array(plane.PlaneOrientationSequence[0].ImageOrientationPatient, dtype=float).reshape(2, 3)
    normal = np.cross(*axes)
    return sorted(
        range(len(frames)),
        key=lambda k: float(np.dot(normal, frames[k].PlanePositionSequence[0].ImagePositionPatient)),
    )


@pytest.mark.parametrize("path", sorted(_SHIPPED.glob("*.dcm")), ids=lambda path: path.name)
@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")  # this test's own reading of the headers
def test_files_that_pydicom_ships(path: Path) -> None:
    check_against_gdcm(path, _expected_refusal(path, _REFUSED))


def test_most_of_the_shipped_grey_files_are_compared() -> None:
    names = [path for path in _SHIPPED.glob("*.dcm") if _expected_refusal(path, _REFUSED) is None]
    assert len(names) >= 22
    assert set(_REFUSED) <= {path.name for path in _SHIPPED.glob("*.dcm")}


@pytest.mark.real
@pytest.mark.skipif(_EXTERNAL is None, reason="pydicom-data is not installed")
@pytest.mark.parametrize("path", sorted(_EXTERNAL.glob("*.dcm")) if _EXTERNAL else [], ids=lambda path: path.name)
@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_files_of_pydicom_data(path: Path) -> None:
    check_against_gdcm(path, _expected_refusal(path, _REFUSED_EXTERNAL))
