"""The structure of a PNG file, checked before its pixels are read: readers stop at the last pixel and check no sum."""

import zlib

from vitreous.core.errors import InputError

_SIGNATURE_BYTES = 8
_FRAME_BYTES = 12  # length, type and checksum around the data of each chunk


def check_png_chunks(content: bytes) -> None:
    """Every chunk is there up to the last one, IEND, and holds what its checksum says.

    Bytes after IEND belong to nobody and are allowed.

    Raises:
        InputError: the file ends early, or a checksum differs.

    Source: PNG specification, third edition (W3C 2025), sections 5.3 and 5.5.
    """
    at = _SIGNATURE_BYTES
    view = memoryview(content)
    while at + _FRAME_BYTES <= len(content):
        length = int.from_bytes(view[at : at + 4], "big")
        end = at + _FRAME_BYTES + length
        if end > len(content):
            break
        name = bytes(view[at + 4 : at + 8])
        if zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            raise InputError("the PNG image is damaged: the checksum of a chunk does not fit its content.")
        if name == b"IEND":
            return
        at = end
    raise InputError(f"the PNG image is truncated: it ends after {len(content):,} bytes without its end mark.")
