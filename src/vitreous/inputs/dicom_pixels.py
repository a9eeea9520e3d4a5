"""Pixel data of a DICOM file: found, checked against the header, and decoded one frame at a time.

Axes: H row, W column.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.encaps import generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEG2000TransferSyntaxes,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from vitreous.core.errors import CircumstanceError, InputError
from vitreous.inputs.dicom_header import DicomHeader

_NATIVE = (
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
)

#: Transfer syntax → pydicom's decoding plugins that may be used; the first one installed is named to it.
_PLUGINS: dict[UID, tuple[str, ...]] = {
    RLELossless: ("pylibjpeg",),
    JPEGBaseline8Bit: ("pillow",),
    JPEGExtended12Bit: ("pillow",),
    JPEGLossless: ("gdcm", "pylibjpeg"),
    JPEGLosslessSV1: ("gdcm", "pylibjpeg"),
    JPEGLSLossless: ("pyjpegls",),
    JPEGLSNearLossless: ("pyjpegls",),
    JPEG2000Lossless: ("pylibjpeg",),
    JPEG2000: ("pylibjpeg",),
    HTJ2KLossless: ("pylibjpeg",),
    HTJ2KLosslessRPCL: ("pylibjpeg",),
    HTJ2K: ("pylibjpeg",),
}
#: JPEG extended with 12 bits: only pylibjpeg-libjpeg (GPLv3) can; Vitreous uses it where the user has
#: installed it.
_PLUGINS_12BIT = ("pylibjpeg",)
_PACKAGES = {
    "gdcm": "python-gdcm",
    "pillow": "pillow",
    "pyjpegls": "pyjpegls",
    "pylibjpeg": "pylibjpeg with pylibjpeg-openjpeg and pylibjpeg-rle",
}
_PACKAGE_12BIT = "pylibjpeg-libjpeg (its licence is GPLv3)"

_KEYWORD_OF_TAG = {0x7FE00010: "PixelData", 0x7FE00009: "DoubleFloatPixelData", 0x7FE00008: "FloatPixelData"}
_VALUE_REPRESENTATIONS = (b"OB", b"OW", b"OF", b"OD", b"UN")
_UNDEFINED_LENGTH = 0xFFFFFFFF
_ITEM, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE0DD
_MAX_AXIS = 65535


@dataclass(frozen=True)
class PixelLayout:
    """How the header says the pixels are stored."""

    num_frames: int
    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    is_signed: bool
    photometric: str

    @property
    def stored_range(self) -> tuple[int, int]:
        """Least and greatest value that the stored bits can hold."""
        half = 1 << (self.bits_stored - 1)
        return (-half, half - 1) if self.is_signed else (0, 2 * half - 1)


@dataclass(frozen=True)
class PixelElement:
    """The pixel data element's value, still encoded, without a copy."""

    keyword: str
    representation: str
    value: memoryview
    is_encapsulated: bool


def pixel_layout(header: DicomHeader) -> PixelLayout:
    """The header's description of the pixels, checked.

    Raises:
        InputError: the image is not grey, or the description is incomplete or impossible.
    """
    elements = header.elements
    photometric = str(elements.get("PhotometricInterpretation", "")).strip()
    samples = _integer(elements, "SamplesPerPixel", default=1)
    if photometric not in ("MONOCHROME1", "MONOCHROME2") or samples != 1:
        raise InputError(
            f"the DICOM image is not grey: {samples} samples per pixel, photometric interpretation "
            f"{photometric or 'not stated'}; a volume is read from MONOCHROME1 or MONOCHROME2 with one "
            "sample."
        )
    if "ModalityLUTSequence" in elements:
        raise InputError(
            "the DICOM image maps its values by a Modality LUT; only rescale slope and intercept are read."
        )
    num_frames = _integer(elements, "NumberOfFrames", default=1)
    if num_frames < 1:
        raise InputError(f"the DICOM header declares {num_frames} frames.")
    rows, columns = _integer(elements, "Rows"), _integer(elements, "Columns")
    if not (0 < rows <= _MAX_AXIS and 0 < columns <= _MAX_AXIS):
        raise InputError(f"the DICOM header declares frames of {rows} rows and {columns} columns.")
    allocated = _integer(elements, "BitsAllocated")
    stored = _integer(elements, "BitsStored", default=allocated)
    if allocated not in (1, 8, 16, 32, 64) or not 1 <= stored <= allocated:
        raise InputError(f"the DICOM header declares {stored} bits stored in {allocated} allocated, which cannot be.")
    high_bit = _integer(elements, "HighBit", default=stored - 1)
    if high_bit != stored - 1:
        raise InputError(
            f"the DICOM header places {stored} bits below bit {high_bit}; only right-aligned bits are read."
        )
    is_signed = _integer(elements, "PixelRepresentation", default=0) == 1
    return PixelLayout(num_frames, rows, columns, allocated, stored, is_signed, photometric)


def read_pixel_element(header: DicomHeader) -> PixelElement:
    """Find the pixel data's bytes and check that they are whole.

    Raises:
        InputError: the element is no pixel data, or the file ends inside it.
    """
    data, start = header.data, header.pixel_offset
    order = ">" if header.transfer_syntax == ExplicitVRBigEndian else "<"
    group, number, representation = struct.unpack_from(f"{order}HH2s", data, start)
    keyword = _KEYWORD_OF_TAG.get(group << 16 | number)
    if keyword is None:
        raise InputError("the DICOM header is damaged: its elements end before the pixel data.")
    # an implicit length that spells one of these names would be odd, which lengths never are
    is_explicit = representation in _VALUE_REPRESENTATIONS
    start += 12 if is_explicit else 8
    (length,) = struct.unpack_from(f"{order}L", data, start - 4)
    name = representation.decode() if is_explicit else "OW"
    if length == _UNDEFINED_LENGTH:
        return PixelElement(keyword, name, memoryview(data)[start : _end_of_fragments(data, start)], True)
    if start + length > len(data):
        raise InputError(f"the DICOM pixel data is truncated: {len(data) - start:,} of {length:,} bytes are there.")
    return PixelElement(keyword, name, memoryview(data)[start : start + length], False)


def iterate_frames(
    element: PixelElement, layout: PixelLayout, header: DicomHeader
) -> Iterator[npt.NDArray[np.generic]]:
    """Decode the frames in stored order, each (H, W), holding one decoded frame at a time.

    Raises:
        InputError: the syntax cannot be decoded here, or bytes and header disagree on size or number of
            frames.
    """
    syntax = header.transfer_syntax
    if layout.photometric == "MONOCHROME1" and element.keyword != "PixelData":
        raise InputError("the DICOM image is MONOCHROME1 with floating-point values, which have no range to invert in.")
    options: dict[str, Any] = {
        "rows": layout.rows, "columns": layout.columns, "number_of_frames": layout.num_frames,
        "samples_per_pixel": 1,
        "bits_allocated": layout.bits_allocated, "bits_stored": layout.bits_stored,
        "pixel_representation": int(layout.is_signed), "photometric_interpretation": layout.photometric,
        "pixel_keyword": element.keyword, "pixel_vr": element.representation,
    }  # fmt: skip
    if syntax in _NATIVE:
        if element.is_encapsulated:
            raise InputError(f"the DICOM pixel data is in fragments, yet the transfer syntax is {syntax.name}.")
        _check_native_length(element, layout)
        decoded = get_decoder(syntax).iter_array(element.value, raw=True, validate=False, **options)
    else:
        plugin = _decoding_plugin(syntax, layout)
        if not element.is_encapsulated:
            raise InputError(f"the DICOM pixel data is not in fragments, yet the transfer syntax is {syntax.name}.")
        encoded = bytes(element.value)
        table = _extended_offsets(header)
        _check_encoded_frames(encoded, layout, syntax, table)
        if table is not None:
            options["extended_offsets"] = table
        decoded = get_decoder(syntax).iter_array(encoded, raw=True, validate=False, decoding_plugin=plugin, **options)
    for frame_HW, _ in decoded:
        yield frame_HW


def _decoding_plugin(syntax: UID, layout: PixelLayout) -> str:
    plugins = _PLUGINS.get(syntax)
    if plugins is None:
        raise InputError(f"the DICOM transfer syntax {syntax} ({syntax.name}) is not supported.")
    is_12bit = syntax == JPEGExtended12Bit and layout.bits_stored > 8
    if is_12bit:
        plugins = _PLUGINS_12BIT
    available = get_decoder(syntax).available_plugins
    for plugin in plugins:
        if plugin in available:
            return plugin
    package = _PACKAGE_12BIT if is_12bit else _PACKAGES[plugins[0]]
    raise CircumstanceError(
        f"the DICOM transfer syntax {syntax.name} needs a decoder that is not installed: install {package}."
    )


def _check_native_length(element: PixelElement, layout: PixelLayout) -> None:
    bits = {"PixelData": layout.bits_allocated, "FloatPixelData": 32, "DoubleFloatPixelData": 64}[element.keyword]
    bits_per_frame = layout.rows * layout.columns * bits
    expected, actual = -(-layout.num_frames * bits_per_frame // 8), len(element.value)
    if actual < expected:
        raise InputError(
            f"the DICOM pixel data is truncated: {actual:,} bytes for the {expected:,} that the header declares."
        )
    # a pad byte or some rest is harmless; a whole frame more is not what the header claims
    if (actual - expected) * 8 >= max(bits_per_frame, 16):
        raise InputError(
            f"the DICOM pixel data is not what its header claims: {actual:,} bytes, where "
            f"{layout.num_frames} frames take "
            f"{expected:,}."
        )


def _check_encoded_frames(
    encoded: bytes, layout: PixelLayout, syntax: UID, extended_offsets: tuple[bytes, bytes] | None
) -> None:
    """A compressed frame states its own size, which a decoder would allocate: it must be the header's."""
    num_frames = 0
    for frame in generate_frames(encoded, number_of_frames=layout.num_frames, extended_offsets=extended_offsets):
        num_frames += 1
        if syntax == RLELossless or num_frames > layout.num_frames:
            continue
        size = _j2k_size(frame) if syntax in JPEG2000TransferSyntaxes else _jpeg_size(frame)
        if size is None:
            raise InputError(
                f"frame {num_frames} of the DICOM pixel data is not what the transfer syntax {syntax.name} claims."
            )
        if size != (layout.rows, layout.columns, 1):
            raise InputError(
                f"frame {num_frames} of the DICOM pixel data says it has {size[0]} rows, {size[1]} columns "
                f"and {size[2]} "
                f"components; the header says {layout.rows} rows, {layout.columns} columns and 1."
            )
    if num_frames != layout.num_frames:
        raise InputError(f"the DICOM header declares {layout.num_frames} frames, its pixel data holds {num_frames}.")


def _jpeg_size(frame: bytes) -> tuple[int, int, int] | None:
    """Rows, columns and components of a JPEG or JPEG-LS stream, from its frame header (SOF)."""
    if frame[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 4 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        # SOF0…SOF15 without DHT, JPG and DAC; SOF55 is JPEG-LS
        if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            if at + 10 > len(frame):
                return None
            rows, columns, components = struct.unpack_from(">HHB", frame, at + 5)
            return rows, columns, components
        at += 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    return None


def _j2k_size(frame: bytes) -> tuple[int, int, int] | None:
    """Rows, columns and components of a JPEG 2000 codestream, bare or in a JP2 box, from its SIZ segment."""
    at = 0 if frame[:4] == b"\xff\x4f\xff\x51" else frame.find(b"\xff\x4f\xff\x51", 0, 1024)
    if at < 0 or at + 42 > len(frame):
        return None
    x_end, y_end, x_start, y_start = struct.unpack_from(">4L", frame, at + 8)
    (components,) = struct.unpack_from(">H", frame, at + 40)
    return y_end - y_start, x_end - x_start, components


def _end_of_fragments(data: bytes, start: int) -> int:
    """Where the sequence of fragments ends, its delimiter included."""
    at = start
    while at + 8 <= len(data):
        group, number, length = struct.unpack_from("<HHL", data, at)
        tag, at = group << 16 | number, at + 8
        if tag == _SEQUENCE_END:
            return at
        if tag != _ITEM or length == _UNDEFINED_LENGTH:
            raise InputError("the DICOM pixel data is damaged: its fragments are not a sequence of items.")
        at += length
    raise InputError("the DICOM pixel data is truncated: the file ends inside its fragments.")


def _extended_offsets(header: DicomHeader) -> tuple[bytes, bytes] | None:
    offsets, lengths = (
        header.elements.get("ExtendedOffsetTable"),
        header.elements.get("ExtendedOffsetTableLengths"),
    )
    return (offsets, lengths) if offsets and lengths and len(offsets) == len(lengths) else None


def _integer(elements: Any, keyword: str, default: int | None = None) -> int:
    value = elements.get(keyword)
    if value is None or value == "":
        if default is None:
            raise InputError(f"the DICOM header lacks {keyword}.")
        return default
    return int(value)
