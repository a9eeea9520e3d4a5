"""PNG, JPEG, TIFF, BMP and GIF files as images of 8 or 16 bits, grey or colour, upright.

Axes: H row, W column, C channel.
"""

import struct
import sys
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.Image import DecompressionBombError
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from vitreous.core.errors import CircumstanceError, InputError
from vitreous.inputs.file_format import ImageFormat, recognise_image_format
from vitreous.inputs.image import Image, Pixels, check_declared_pixels, checked_image
from vitreous.inputs.library_messages import library_messages, silence_libtiff
from vitreous.inputs.png_chunks import check_png_chunks

#: Part of every feature key of images: rises whenever any image file could decode to other pixels.
IMAGE_DECODER_VERSION = 1

# the classes themselves, since PIL.Image.open has a limit of its own on the number of pixels
_READERS: dict[ImageFormat, type[ImageFile]] = {
    "png": PngImageFile,
    "jpeg": JpegImageFile,
    "tiff": TiffImageFile,
    "bmp": BmpImageFile,
    "gif": GifImageFile,
}
#: What Pillow raises on damaged files.
_DAMAGE = (
    OSError, SyntaxError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError, EOFError,
    OverflowError, ZeroDivisionError, RuntimeError, MemoryError, struct.error, zlib.error,
)  # fmt: skip

_GREY_16 = ("I;16", "I;16B", "I;16L", "I;16N")
_PALETTE = ("P", "PA")
_ALPHA = ("LA", "RGBA")
#: Pillow's modes that are read → channels of the image.
_CHANNELS = {"1": 1, "L": 1, "LA": 1, "P": 3, "PA": 3, "RGB": 3, "RGBA": 3, "CMYK": 3} | dict.fromkeys(_GREY_16, 1)
#: The grey value of 1 in samples of fewer than eight bits.
_GREY_STEPS = {"1": 255, "1;I": 255, "L;2": 85, "L;4": 17}


@dataclass(frozen=True)
class _Stored:
    """How the file stores a pixel.

    Args:
        mode: Pillow's, e.g. ``RGB``.
        layout: Pillow's raw mode, e.g. ``RGB;16B``: order and bits of the stored samples.
        bits: of one sample, 8 or 16.
    """

    mode: str
    layout: str
    bits: int


def decode_image(path: Path, *, max_bytes: int, accepts_one_colour: bool = False) -> Image:
    """Read one file as one image. The format is that of the content, whatever the name.

    EXIF orientation is applied; 1-bit images become 0 and 255; a palette becomes its colours; CMYK is converted
    without a colour profile. An alpha channel is left out where every pixel is opaque; the facts say so. A colour
    profile is never applied. Error messages name neither the path nor a tag of the file.

    Args:
        max_bytes: the most that the file and the decoded pixels (as float32) may take; checked on the declared
            size, before anything is allocated or inflated.
        accepts_one_colour: an image all of whose pixels are equal is none of its own, but a dark frame of a video is.
    Raises:
        InputError: the file cannot be used as one image; the message says why and what to do.
    """
    file_format = recognise_image_format(path)
    content = _read_whole(path, max_bytes)
    if file_format == "png":
        check_png_chunks(content)
    elif file_format == "tiff":
        silence_libtiff()
    name = file_format.upper()
    with library_messages() as messages:
        try:
            pixels_HWC, facts = _decode(file_format, content, max_bytes)
        except DecompressionBombError:
            raise CircumstanceError(f"the {name} image has more pixels than the reading library takes.") from None
        except _DAMAGE as error:
            how = "truncated" if "truncated" in str(error) else f"damaged or truncated ({type(error).__name__})"
            raise InputError(f"the {name} image is {how}.") from None
    facts = {"format": name, **facts, "warnings": "; ".join(messages)}
    pixels_HWC = pixels_HWC.copy(order="C")
    return Image(pixels_HWC, facts) if accepts_one_colour else checked_image(pixels_HWC, facts)


def _read_whole(path: Path, max_bytes: int) -> bytes:
    try:
        num_bytes = path.stat().st_size
        if num_bytes > max_bytes:
            raise CircumstanceError(
                f"the file has {num_bytes:,} bytes; at most {max_bytes:,} are allowed. Check the file, or allow more "
                "bytes per image (data.max_image_mb)."
            )
        return path.read_bytes()
    except OSError as error:
        raise CircumstanceError(f"the file cannot be read: {error.strerror or type(error).__name__}.") from None


def _decode(file_format: ImageFormat, content: bytes, max_bytes: int) -> tuple[Pixels, dict[str, Any]]:
    reader = _READERS[file_format](BytesIO(content))
    width, height = reader.size
    check_declared_pixels(height, width, _CHANNELS.get(reader.mode, 4), max_bytes=max_bytes)
    _check_one_picture(reader)
    stored = _stored(reader, file_format)
    # Pillow turns a TIFF upright itself, and forgets that it did
    orientation = _orientation(reader) if file_format == "tiff" else 1
    if stored.bits == 16 and stored.mode not in _GREY_16:
        pixels_HWC: Pixels = _sixteen_bit_colour(reader, _READERS[file_format](BytesIO(content)), stored)
    else:
        pixels_HWC = _pixels(reader)
    if isinstance(reader, TiffImageFile):
        if stored.mode in _GREY_16 and reader.tag_v2.get(ExifTags.Base.PhotometricInterpretation) == 0:
            pixels_HWC = np.iinfo(pixels_HWC.dtype).max - pixels_HWC  # zero is white, which Pillow heeds at 8 bits only
    else:
        orientation = _orientation(reader)
        pixels_HWC = _upright(pixels_HWC, orientation)
    pixels_HWC, alpha = _without_alpha(pixels_HWC, reader, stored)
    facts = {
        "stored_as": stored.mode,
        "bits": stored.bits,
        "orientation": orientation,
        "alpha": alpha,
        # a camera's JPEG may carry previews, a gain map or the other eye of a stereo pair behind the picture itself
        "pictures": "first of several" if "mp" in reader.info else "one",
        "colour_profile": "not applied" if reader.info.get("icc_profile") else "none",
    }
    return pixels_HWC, facts


def _check_one_picture(reader: ImageFile) -> None:
    if getattr(reader, "is_animated", False):
        raise InputError(
            "the file holds several pictures (pages or an animation), and one image is needed; write the one that "
            "is meant to a file of its own."
        )


def _stored(reader: ImageFile, file_format: ImageFormat) -> _Stored:
    """How a pixel is stored, if it can be read without loss."""
    if not reader.tile:
        raise InputError(f"the {file_format.upper()} image is damaged: it holds no pixels.")
    args = reader.tile[0].args
    layout = str(args if isinstance(args, str) else args[0]) if args else reader.mode
    stored = _Stored(reader.mode, layout, 16 if ";16" in layout else 8)
    refused = ""
    if stored.mode not in _CHANNELS or layout == "I;12":
        refused = f"pixels of the kind {stored.mode} ({layout})"
    elif stored.bits == 16 and layout.startswith("LA"):
        refused = "16-bit grey with an alpha channel"
    elif stored.bits == 16 and layout.startswith(("CMYK", "RGBa")):
        refused = "16-bit CMYK or premultiplied colour"
    elif isinstance(reader, TiffImageFile) and _is_deep_in_planes(reader):
        refused = "16-bit colour in separate planes"
    if refused:
        raise InputError(
            f"the {file_format.upper()} image holds {refused}; grey, colour and palettes of up to 8 bits are read, and "
            "grey and colour of 16. Convert it, e.g. to a PNG of 16 bits."
        )
    return stored


def _is_deep_in_planes(reader: TiffImageFile) -> bool:
    """Colour of more than 8 bits, one plane after the other: Pillow would take it for one of 8 bits."""
    tags = reader.tag_v2
    bits = tags.get(ExifTags.Base.BitsPerSample, (8,))
    return bool(tags.get(ExifTags.Base.PlanarConfiguration, 1) == 2 and len(bits) > 1 and max(bits) > 8)


def _pixels(reader: ImageFile) -> Pixels:
    reader.load()
    mode = reader.mode
    if mode in _GREY_16:
        return np.asarray(reader).astype(np.uint16)[..., None]
    if mode in _PALETTE:
        mode = "RGBA" if "transparency" in reader.info or mode == "PA" else "RGB"
    elif mode == "1":
        mode = "L"
    elif mode == "CMYK":
        mode = "RGB"
    pixels = np.asarray(reader if mode == reader.mode else reader.convert(mode))
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _sixteen_bit_colour(high: ImageFile, low: ImageFile, stored: _Stored) -> npt.NDArray[np.uint16]:
    """Both bytes of every sample. Pillow keeps the upper one, and the lower if it takes the bytes to be swapped."""
    order = stored.layout[-1]
    if order == "N":
        order = "L" if sys.byteorder == "little" else "B"
    swapped = stored.layout[:-1] + {"L": "B", "B": "L"}[order]
    low.tile = [
        tile._replace(args=swapped if isinstance(tile.args, str) else (swapped, *(tile.args or ())[1:]))
        for tile in low.tile
    ]
    return np.asarray(_pixels(high).astype(np.uint16) << 8 | _pixels(low), dtype=np.uint16)


def _orientation(reader: ImageFile) -> int:
    stated = reader.getexif().get(ExifTags.Base.Orientation, 1)
    return stated if stated in range(1, 9) else 1


def _upright(pixels_HWC: Pixels, orientation: int) -> Pixels:
    """Source: Exif 2.32, tag 274, which says where the first row and column belong."""
    swapped_HWC = pixels_HWC.swapaxes(0, 1) if orientation >= 5 else pixels_HWC
    flip_rows = orientation in (3, 4, 7, 8)
    flip_columns = orientation in (2, 3, 6, 7)
    return swapped_HWC[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]


def _without_alpha(pixels_HWC: Pixels, reader: ImageFile, stored: _Stored) -> tuple[Pixels, str]:
    """The pixels without their alpha channel, and what became of it; only an opaque one may go."""
    num_channels = pixels_HWC.shape[-1]
    if num_channels in (2, 4):
        num_clear = int((pixels_HWC[..., -1] != np.iinfo(pixels_HWC.dtype).max).sum())
        pixels_HWC = pixels_HWC[..., :-1]
    elif stored.mode not in _PALETTE and "transparency" in reader.info:
        colour = np.atleast_1d(reader.info["transparency"]) * _GREY_STEPS.get(stored.layout, 1)
        num_clear = int((pixels_HWC == colour).all(-1).sum())
    else:
        return pixels_HWC, "none"
    if num_clear:
        raise InputError(
            f"{num_clear} of {pixels_HWC[..., 0].size} pixels are transparent, and what lies behind them is not "
            "said; save the image without transparency."
        )
    return pixels_HWC, "opaque, left out"
