"""Image files made on the spot, by OpenCV, Pillow or byte by byte. Axes: H row, W column, C channel."""

import struct
from io import BytesIO

import cv2
import numpy as np
import PIL.Image


def pattern(height: int = 23, width: int = 31, channels: int = 3, *, bits: int = 8, seed: int = 0) -> np.ndarray:
    """Random pixels, (H, W, C): every byte of every sample counts."""
    dtype = np.uint8 if bits == 8 else np.uint16
    return np.random.default_rng(seed).integers(0, 1 << bits, (height, width, channels), dtype=dtype)


def smooth(height: int = 40, width: int = 56) -> np.ndarray:
    """Slow colours that JPEG keeps well, (H, W, 3) uint8."""
    row, column = np.mgrid[:height, :width]
    red, green, blue = row * 255 / height, column * 255 / width, 128 + 100 * np.sin(row / 9)
    return np.stack([red, green, blue], axis=-1).astype(np.uint8)


def by_opencv(pixels_HWC: np.ndarray, suffix: str, *parameters: int) -> bytes:
    done, content = cv2.imencode(suffix, pixels_HWC[..., ::-1], list(parameters))
    assert done
    return content.tobytes()


def by_pillow(image: PIL.Image.Image | np.ndarray, file_format: str, **options: object) -> bytes:
    buffer = BytesIO()
    image = PIL.Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def tiff_bytes(
    samples_HWC: np.ndarray, *, order: str = "<", photometric: int, planar: bool = False, bits: int | None = None
) -> bytes:
    """An uncompressed TIFF of one strip (or one a plane), in either byte order.

    Source: TIFF 6.0, sections 2, 6 and "PlanarConfiguration".
    """
    height, width, channels = samples_HWC.shape
    itemsize = samples_HWC.dtype.itemsize
    planes = samples_HWC.transpose(2, 0, 1) if planar else samples_HWC[None]
    strips = [plane.astype(samples_HWC.dtype.newbyteorder(order)).tobytes() for plane in planes]
    offsets = [8 + sum(map(len, strips[:i])) for i in range(len(strips))]
    end = 8 + sum(map(len, strips))
    entries = [
        (256, 4, [width]), (257, 4, [height]), (258, 3, [bits or 8 * itemsize] * channels), (259, 3, [1]),
        (262, 3, [photometric]), (273, 4, offsets), (277, 3, [channels]), (278, 4, [height]),
        (279, 4, [len(strip) for strip in strips]), (284, 3, [2 if planar else 1]),
    ]  # fmt: skip
    body, extra = b"", b""
    extra_at = end + 2 + 12 * len(entries) + 4
    for tag, kind, values in entries:
        packed = struct.pack(f"{order}{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if len(packed) > 4:
            where, extra = struct.pack(f"{order}I", extra_at + len(extra)), extra + packed
        else:
            where = packed.ljust(4, b"\x00")
        body += struct.pack(f"{order}HHI", tag, kind, len(values)) + where
    magic = b"II*\x00" if order == "<" else b"MM\x00*"
    head = magic + struct.pack(f"{order}I", end)
    return head + b"".join(strips) + struct.pack(f"{order}H", len(entries)) + body + bytes(4) + extra
