"""Random, truncated and altered bytes of image files decode or end in an InputError, never in anything else."""

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inputs_image_bytes import by_opencv, by_pillow, pattern, smooth, tiff_bytes

from vitreous.core.errors import InputError
from vitreous.inputs.image import Image
from vitreous.inputs.image_files import decode_image

FUZZ = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)


def _turned(file_format: str) -> bytes:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    return by_pillow(smooth(20, 24), file_format, exif=exif)


MAKERS: dict[str, Callable[[], bytes]] = {
    "png": lambda: _turned("PNG"),
    "png 16": lambda: by_opencv(pattern(12, 14, bits=16), ".png"),
    "png palette": lambda: by_pillow(
        PIL.Image.fromarray(smooth(20, 24)).quantize(16), "PNG", transparency=bytes([255] * 16)
    ),
    "jpeg": lambda: _turned("JPEG"),
    "progressive jpeg": lambda: by_pillow(smooth(20, 24), "JPEG", progressive=True),
    "cmyk jpeg": lambda: by_pillow(PIL.Image.fromarray(smooth(20, 24)).convert("CMYK"), "JPEG"),
    "tiff": lambda: tiff_bytes(pattern(12, 14), photometric=2),
    "tiff 16": lambda: tiff_bytes(pattern(12, 14, bits=16), order=">", photometric=2),
    "lzw tiff": lambda: by_opencv(pattern(12, 14, bits=16), ".tif", cv2.IMWRITE_TIFF_COMPRESSION, 5),
    "deflated tiff": lambda: _turned("TIFF"),
    "jpeg tiff": lambda: by_pillow(smooth(32, 32), "TIFF", compression="jpeg"),
    "fax tiff": lambda: by_pillow(smooth(32, 32)[..., 0] > 99, "TIFF", compression="group4"),
    "bmp": lambda: by_opencv(pattern(12, 14), ".bmp"),
    "gif": lambda: by_pillow(PIL.Image.fromarray(smooth(20, 24)).quantize(16), "GIF"),
}


@cache
def good_bytes(kind: str) -> bytes:
    return MAKERS[kind]()


@pytest.fixture(autouse=True)
def _silent(capfd: pytest.CaptureFixture[str]):
    """Libraries in C write where no Python filter reaches."""
    yield
    assert capfd.readouterr() == ("", "")


def decode_or_refuse(content: bytes) -> Image | str:
    """Decode, or the message of the InputError; any other exception or warning fails the test."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        path.write_bytes(content)
        try:
            image = decode_image(path, max_bytes=1 << 22)
        except InputError as error:
            return str(error)
    assert image.pixels_HWC.dtype in (np.uint8, np.uint16)
    assert image.pixels_HWC.shape[-1] in (1, 3)
    return image


@pytest.mark.parametrize("kind", MAKERS)
def test_the_untouched_file_decodes(kind: str) -> None:
    assert isinstance(decode_or_refuse(good_bytes(kind)), Image)


@pytest.mark.parametrize("kind", MAKERS)
@given(share=st.floats(0, 1, exclude_max=True))
@FUZZ
def test_a_truncated_file_is_refused_or_complete(kind: str, share: float) -> None:
    content = good_bytes(kind)
    kept = decode_or_refuse(content[: int(share * len(content))])
    if isinstance(kept, Image):  # what is cut off was no pixel: an end mark, a tag, padding
        whole = decode_or_refuse(content)
        assert isinstance(whole, Image)
        np.testing.assert_array_equal(kept.pixels_HWC, whole.pixels_HWC)


@pytest.mark.parametrize("kind", MAKERS)
@given(changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=12))
@FUZZ
def test_altered_bytes_decode_or_are_refused(kind: str, changes: list[tuple[float, int]]) -> None:
    content = bytearray(good_bytes(kind))
    for share, value in changes:
        content[int(share * len(content))] = value
    decode_or_refuse(bytes(content))


@pytest.mark.parametrize("kind", MAKERS)
@given(changes=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), min_size=1, max_size=6))
@FUZZ
def test_altered_headers_decode_or_are_refused(kind: str, changes: list[tuple[int, int]]) -> None:
    content = bytearray(good_bytes(kind))
    for at, value in changes:
        # a TIFF keeps its header at its end
        content[-1 - at % len(content) if "tiff" in kind else at % len(content)] = value
    decode_or_refuse(bytes(content))


MAGIC = {
    "png": b"\x89PNG\r\n\x1a\n",
    "png header": b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR",
    "jpeg": b"\xff\xd8\xff",
    "jpeg frame": b"\xff\xd8\xff\xc0\x00\x11\x08",
    "tiff": b"II*\x00\x08\x00\x00\x00",
    "big-endian tiff": b"MM\x00*\x00\x00\x00\x08",
    "bigtiff": b"II+\x00\x08\x00\x00\x00",
    "bmp": b"BM\x00\x00\x00\x00\x00\x00\x00\x00\x36\x00\x00\x00\x28\x00\x00\x00",
    "gif": b"GIF89a",
}


@pytest.mark.parametrize("start", MAGIC)
@given(rest=st.binary(max_size=600))
@FUZZ
def test_random_bytes_after_a_magic_decode_or_are_refused(start: str, rest: bytes) -> None:
    decode_or_refuse(MAGIC[start] + rest)
