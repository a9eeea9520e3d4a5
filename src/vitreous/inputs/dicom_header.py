"""The part of a DICOM file before its pixel data, without the elements that name the patient."""

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from pydicom import dcmread
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from vitreous.core.errors import CircumstanceError, InputError
from vitreous.inputs.library_messages import without_values

#: The only elements that are kept; names, dates and ids of the patient are skipped over.
_KEYWORDS = (
    "SOPClassUID", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "RescaleSlope", "RescaleIntercept",
    "ModalityLUTSequence", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices",
    "ImageOrientationPatient", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
    "ExtendedOffsetTable", "ExtendedOffsetTableLengths",
)  # fmt: skip
_TAGS: list[BaseTag | int] = [Tag(tag_for_keyword(keyword) or 0) for keyword in _KEYWORDS]
_PIXEL_TAGS = (0x7FE00010, 0x7FE00009, 0x7FE00008)
_PIXEL_TAG_BYTES = tuple(struct.pack(order, 0x7FE0, tag & 0xFFFF) for order in ("<HH", ">HH") for tag in _PIXEL_TAGS)
_PREAMBLE_BYTES = 132
_UNDEFINED_LENGTH = 0xFFFFFFFF

#: What pydicom and its plugins raise on damaged bytes; for most of them they have no exception of their own.
DAMAGE = (
    InvalidDicomError, BytesLengthException, struct.error, zlib.error, ValueError, LookupError,
    AttributeError, TypeError, OSError, EOFError, RuntimeError, ArithmeticError,
)  # fmt: skip


@dataclass(frozen=True)
class DicomHeader:
    """A parsed header and where the pixel data element begins.

    Args:
        elements: those before the pixel data, restricted to what a volume needs.
        data: the whole file; for a deflated file its inflated dataset.
        pixel_offset: of the pixel data element in `data`.
        states_syntax: False where the file has no transfer syntax and the parser has seen its encoding.
    """

    elements: Dataset
    data: bytes
    pixel_offset: int
    transfer_syntax: UID
    states_syntax: bool


@contextmanager
def damage_as_input_error(what: str) -> Iterator[None]:
    """What pydicom raises on damaged bytes becomes one InputError, without values of the patient."""
    try:
        yield
    except DAMAGE as error:
        raise InputError(f"{what} ({without_values(str(error)) or type(error).__name__}).") from None


def read_header(data: bytes, *, is_headless: bool, max_bytes: int) -> DicomHeader:
    """Parse a file up to its pixel data; a deflated dataset is inflated first, to at most `max_bytes`.

    Raises:
        InputError: the file is damaged, ends early, or holds no pixel data.
    """
    if is_headless:
        return _read_headless(data)
    with damage_as_input_error("the DICOM header is damaged or truncated"):
        file = BytesIO(data)
        file.seek(_PREAMBLE_BYTES)
        meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: int(tag) >> 16 != 2)
        if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            return _read_deflated(data[file.tell() :], max_bytes)
        return _read_dataset(data, is_forced=False)


def _read_dataset(data: bytes, *, is_forced: bool) -> DicomHeader:
    file = BytesIO(data)
    elements = dcmread(file, stop_before_pixels=True, force=is_forced, specific_tags=list(_TAGS))
    _refuse_without_pixels(elements, data, file.tell())
    stated = elements.file_meta.get("TransferSyntaxUID")
    if stated is not None:
        return DicomHeader(elements, data, file.tell(), UID(str(stated)), states_syntax=True)
    match elements.original_encoding:
        case (True, _):
            seen = ImplicitVRLittleEndian
        case (False, True):
            seen = ExplicitVRLittleEndian
        case _:
            seen = ExplicitVRBigEndian
    return DicomHeader(elements, data, file.tell(), seen, states_syntax=False)


def _read_headless(data: bytes) -> DicomHeader:
    """A dataset without preamble: taken for DICOM only if it parses as an image with its own kind stated."""
    try:
        header = _read_dataset(data, is_forced=True)
        is_image = all(keyword in header.elements for keyword in ("SOPClassUID", "Rows", "Columns", "BitsAllocated"))
    except (*DAMAGE, InputError):
        is_image = False
    if not is_image:
        raise InputError(
            "the content is of an unknown format: it begins like a DICOM dataset without preamble, but "
            "does not "
            "parse as an image. It may be truncated."
        )
    return header


def _read_deflated(deflated: bytes, max_bytes: int) -> DicomHeader:
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    data = stream.decompress(deflated, max_bytes)
    if not stream.eof and len(data) < max_bytes:
        raise InputError("the deflated DICOM dataset is truncated: its stream has no end.")
    if not stream.eof:
        raise CircumstanceError(
            f"the deflated DICOM dataset inflates beyond the {max_bytes:,} bytes allowed. Check the file, or allow "
            "more bytes per volume (data.max_volume_gb)."
        )
    file = BytesIO(data)
    elements = read_dataset(file, False, True, stop_when=_is_pixel_data, specific_tags=list(_TAGS))
    _refuse_without_pixels(elements, data, file.tell())
    return DicomHeader(elements, data, file.tell(), DeflatedExplicitVRLittleEndian, states_syntax=True)


def _refuse_without_pixels(elements: Dataset, data: bytes, position: int) -> None:
    """Tell a header that is cut short from an object without pixel data."""
    if data[position : position + 4] in _PIXEL_TAG_BYTES:
        return
    kept = [elements.get_item(tag) for tag in elements._dict]
    if not kept:
        raise InputError(
            "the DICOM file holds no image: none of its elements describes one (it may be a DICOMDIR, or cut short)."
        )
    if position > len(data) or any(_is_cut(element) for element in kept):
        raise InputError("the DICOM file is truncated: it ends inside its header, before any pixel data.")
    raise InputError("the DICOM file holds no pixel data, or is truncated before it.")


def _is_cut(element: Any) -> bool:
    length, value = getattr(element, "length", _UNDEFINED_LENGTH), element.value
    return length != _UNDEFINED_LENGTH and isinstance(value, bytes) and len(value) < length


def _is_pixel_data(tag: BaseTag, vr: str | None, length: int) -> bool:
    return int(tag) in _PIXEL_TAGS
