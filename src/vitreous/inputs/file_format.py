"""Which format a file is, by its content; what its name says must not contradict it."""

import gzip
import zlib
from pathlib import Path
from typing import Literal, cast, get_args

from vitreous.core.errors import CircumstanceError, InputError

VolumeFormat = Literal["dicom", "dicom without preamble", "nifti", "gzipped nifti", "npy", "npz"]
ImageFormat = Literal["png", "jpeg", "tiff", "bmp", "gif"]
FileFormat = VolumeFormat | ImageFormat

_HEAD_BYTES = 1024
_NIFTI1_MAGIC = slice(344, 348)
_NIFTI2_MAGIC = slice(4, 12)

#: First bytes of image files.
_IMAGE_MAGIC: dict[bytes, ImageFormat] = {
    b"\x89PNG\r\n\x1a\n": "png",
    b"\xff\xd8\xff": "jpeg",
    b"II*\x00": "tiff",
    b"MM\x00*": "tiff",
    b"II+\x00\x08\x00": "tiff",
    b"MM\x00+\x00\x08": "tiff",
    b"GIF87a": "gif",
    b"GIF89a": "gif",
}
#: Lengths of the second header of a BMP file, at byte 14; "BM" alone also begins words.
_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)

#: Formats that a suffix promises; other suffixes and none promise nothing.
_PROMISES: dict[str, tuple[FileFormat, ...]] = {
    ".dcm": ("dicom", "dicom without preamble"),
    ".dicom": ("dicom", "dicom without preamble"),
    ".nii": ("nifti",),
    ".nii.gz": ("gzipped nifti",),
    ".npy": ("npy",),
    ".npz": ("npz",),
    ".png": ("png",),
    ".jpg": ("jpeg",),
    ".jpeg": ("jpeg",),
    ".tif": ("tiff",),
    ".tiff": ("tiff",),
    ".bmp": ("bmp",),
    ".gif": ("gif",),
}

#: Content that is met by mistake, to name it in the message: first bytes → name.
_OTHER_CONTENT = {
    b"\x89PNG": "a PNG image whose first bytes are damaged",
    b"\x00\x00\x00\x0cjP  \r\n\x87\n": "a JPEG 2000 image",
    b"%PDF": "a PDF document",
    b"\x89HDF": "an HDF5 file",
    b"BZh": "a bzip2 archive",
    b"\x28\xb5\x2f\xfd": "a Zstandard archive",
    b"7z\xbc\xaf": "a 7-Zip archive",
    b"\x1f\x8b": "gzipped content other than NIfTI",
    b"PK\x03\x04": "a ZIP archive without .npy members",
    b"NRRD": "an NRRD image",
    b"\x80\x02": "a Python pickle",
    b"\x80\x04": "a Python pickle",
    b"\x80\x05": "a Python pickle",
    b"<": "an HTML or XML document",
    b"{": "a JSON document",
}


def recognise_volume_format(path: Path) -> VolumeFormat:
    """The format of a volume's file, by its content.

    Raises:
        InputError: the file is absent, empty, of no supported format, an image, or not what its name says.
    """
    found, said = _recognise(path)
    if found in get_args(ImageFormat):
        raise InputError(
            f"the content is {said}, which is no volume; images are read where data.kind is csv, folder or npz."
        )
    if found is None:
        raise InputError(
            f"the content is {said}, which is no volume; supported are DICOM, NIfTI (.nii, .nii.gz), NPY and NPZ."
        )
    return cast(VolumeFormat, found)


def recognise_image_format(path: Path) -> ImageFormat:
    """The format of an image's file, by its content.

    Raises:
        InputError: the file is absent, empty, of no supported format, a volume, or not what its name says.
    """
    found, said = _recognise(path)
    if found not in get_args(ImageFormat):
        raise InputError(
            f"the content is {said}, which is not read as an image; supported are PNG, JPEG, TIFF, BMP and "
            "GIF files of one picture."
        )
    return cast(ImageFormat, found)


def _recognise(path: Path) -> tuple[FileFormat | None, str]:
    """The format, None if it is not supported, and what to call the content."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise CircumstanceError(f"the file cannot be read: {error.strerror or type(error).__name__}.") from None
    if not head:
        raise InputError("the file is empty (0 bytes).")
    found = _format_of(path, head)
    said = _describe(head) if found is None else f"a {found.upper()} image" if found in get_args(ImageFormat) else found
    suffix = next((s for s in sorted(_PROMISES, key=len, reverse=True) if path.name.lower().endswith(s)), None)
    if suffix is not None and found not in _PROMISES[suffix]:
        raise InputError(f"the file is not what it claims: its name ends in {suffix}, its content is {said}.")
    return found, said


def _format_of(path: Path, head: bytes) -> FileFormat | None:
    if head[128:132] == b"DICM":
        return "dicom"
    if head.startswith(b"\x93NUMPY"):
        return "npy"
    for magic, image_format in _IMAGE_MAGIC.items():
        if head.startswith(magic):
            return image_format
    if head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "bmp"
    if head.startswith(b"PK\x03\x04"):
        return "npz" if _holds_npy_members(path) else None
    if head.startswith(b"\x1f\x8b"):
        return "gzipped nifti" if _is_nifti(_inflated_head(path)) else None
    if _is_nifti(head):
        return "nifti"
    return "dicom without preamble" if _starts_like_a_dataset(head) else None


def _is_nifti(head: bytes) -> bool:
    if head[_NIFTI1_MAGIC] == b"ni1\x00":
        raise InputError("the content is the header of a two-file NIfTI (.hdr, .img); convert it to one .nii file.")
    if head[_NIFTI1_MAGIC] == b"n+1\x00" or head[_NIFTI2_MAGIC] == b"n+2\x00\r\n\x1a\n":
        return True
    if head[:4] in (b"\x5c\x01\x00\x00", b"\x00\x00\x01\x5c") and len(head) >= _NIFTI1_MAGIC.stop:
        raise InputError("the content is an Analyze 7.5 header, which states no orientation; convert it to NIfTI.")
    return False


def _inflated_head(path: Path) -> bytes:
    try:
        with gzip.open(path) as file:
            return file.read(_HEAD_BYTES)
    except (EOFError, OSError, zlib.error):
        raise InputError("the gzip stream is damaged or truncated: its first kilobyte cannot be inflated.") from None


def _holds_npy_members(path: Path) -> bool:
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".npy") for name in archive.namelist())
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError):
        raise InputError("the ZIP archive (NPZ) is damaged or truncated: its directory cannot be read.") from None


def _starts_like_a_dataset(head: bytes) -> bool:
    """Whether the first eight bytes can be the first element of a DICOM dataset that lacks the preamble.

    A dataset begins in group 0002 or 0008, with a small element number; then comes a value representation
    (explicit) or a length below the file's head (implicit). Whether it really is one, the parser decides.
    """
    if len(head) < 8:
        return False
    for byteorder in ("little", "big"):
        group, element = (int.from_bytes(head[i : i + 2], byteorder) for i in (0, 2))
        if group in (0x0002, 0x0008) and element < 0x0100:
            is_explicit = head[4:6].isalpha() and head[4:6].isupper()
            return is_explicit or int.from_bytes(head[4:8], byteorder) < _HEAD_BYTES
    return False


def _describe(head: bytes) -> str:
    for start, name in _OTHER_CONTENT.items():
        if head.startswith(start):
            return name
    if head[4:8] == b"ftyp":
        return "an MP4 video"
    if not head.strip(b"\x00"):
        return "zeros"
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        return "plain text"
    return "of an unknown format"
