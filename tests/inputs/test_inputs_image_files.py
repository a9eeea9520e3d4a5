"""Image files. Oracles: the arrays that OpenCV or Pillow wrote, and Pillow's own turning by EXIF.

Axes: H row, W column, C channel.
"""

import gzip
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
from inputs_image_bytes import by_opencv, by_pillow, pattern, smooth, tiff_bytes
from PIL import ImageOps

from vitreous.core.errors import CircumstanceError, InputError
from vitreous.inputs.decode import decode_volume
from vitreous.inputs.description import image_statistics
from vitreous.inputs.image import Image
from vitreous.inputs.image_files import decode_image
from vitreous.inputs.volume import DeclaredAxes

MAX_BYTES = 1 << 24


@pytest.fixture(autouse=True)
def _silent(capfd: pytest.CaptureFixture[str]):
    """Libraries in C write where no Python filter reaches."""
    yield
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def decoded(tmp_path: Path) -> Callable[..., Image]:
    def decode(content: bytes, name: str = "p-4711", max_bytes: int = MAX_BYTES) -> Image:
        (tmp_path / name).write_bytes(content)
        return decode_image(tmp_path / name, max_bytes=max_bytes)

    return decode


@pytest.fixture
def refusal(decoded: Callable[..., Image]) -> Callable[..., str]:
    def refuse(content: bytes, name: str = "p-4711", max_bytes: int = MAX_BYTES) -> str:
        with pytest.raises(InputError) as caught:
            decoded(content, name, max_bytes)
        assert "p-4711" not in str(caught.value)
        return str(caught.value)

    return refuse


# ---- what is read ----

LZW, PLAIN = (cv2.IMWRITE_TIFF_COMPRESSION, 5), (cv2.IMWRITE_TIFF_COMPRESSION, 1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("suffix", "parameters", "bits"),
    [
        (".png", (), 8), (".png", (), 16), (".tif", PLAIN, 8), (".tif", PLAIN, 16), (".tif", LZW, 8),
        (".tif", LZW, 16), (".bmp", (), 8),
    ],
)  # fmt: skip
def test_lossless_files_of_opencv(decoded, suffix: str, parameters: tuple[int, ...], bits: int, channels: int) -> None:
    pixels_HWC = pattern(channels=channels, bits=bits)
    image = decoded(by_opencv(pixels_HWC, suffix, *parameters))
    np.testing.assert_array_equal(image.pixels_HWC, pixels_HWC)
    assert image.pixels_HWC.dtype == pixels_HWC.dtype
    assert image.pixels_HWC.flags.c_contiguous
    assert image.facts["bits"] == bits
    assert image.facts["format"] == {".png": "PNG", ".tif": "TIFF", ".bmp": "BMP"}[suffix]
    assert image.facts["alpha"] == "none"
    assert image.facts["warnings"] == ""


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_tiff_in_both_byte_orders(decoded, order: str, bits: int, channels: int) -> None:
    pixels_HWC = pattern(channels=channels, bits=bits)
    image = decoded(tiff_bytes(pixels_HWC, order=order, photometric=2 if channels == 3 else 1))
    np.testing.assert_array_equal(image.pixels_HWC, pixels_HWC)


@pytest.mark.parametrize("bits", [8, 16])
def test_tiff_whose_zero_is_white(decoded, bits: int) -> None:
    pixels_HWC = pattern(channels=1, bits=bits)
    image = decoded(tiff_bytes(pixels_HWC, photometric=0))
    np.testing.assert_array_equal(image.pixels_HWC, (1 << bits) - 1 - pixels_HWC)


def test_jpeg_against_opencv(decoded) -> None:
    content = by_opencv(smooth(), ".jpg", cv2.IMWRITE_JPEG_QUALITY, 95)
    image = decoded(content)
    oracle_HWC = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert np.abs(image.pixels_HWC.astype(int) - oracle_HWC).max() <= 2  # two builds of libjpeg
    assert np.abs(image.pixels_HWC.astype(int) - smooth()).mean() < 3


def test_grey_jpeg_has_one_channel(decoded) -> None:
    assert decoded(by_pillow(smooth()[..., 0], "JPEG")).pixels_HWC.shape == (40, 56, 1)


def test_one_bit_becomes_black_and_white(decoded) -> None:
    bits_HW = pattern(channels=1)[..., 0] > 127
    for file_format in ("PNG", "TIFF"):
        image = decoded(by_pillow(bits_HW, file_format))
        np.testing.assert_array_equal(image.pixels_HWC[..., 0], bits_HW * np.uint8(255))


@pytest.mark.parametrize("file_format", ["PNG", "GIF", "TIFF", "BMP"])
def test_a_palette_becomes_its_colours(decoded, file_format: str) -> None:
    image = PIL.Image.fromarray(smooth()).quantize(16)
    np.testing.assert_array_equal(decoded(by_pillow(image, file_format)).pixels_HWC, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("file_format", ["JPEG", "TIFF"])
def test_cmyk_is_converted_and_said(decoded, file_format: str) -> None:
    options = {"quality": 95} if file_format == "JPEG" else {}
    image = decoded(by_pillow(PIL.Image.fromarray(smooth()).convert("CMYK"), file_format, **options))
    assert image.facts["stored_as"] == "CMYK"
    assert np.abs(image.pixels_HWC.astype(int) - smooth()).mean() < 3


def test_a_colour_profile_is_not_applied_and_said(decoded) -> None:
    image = decoded(by_pillow(smooth(), "PNG", icc_profile=b"a profile"))
    np.testing.assert_array_equal(image.pixels_HWC, smooth())
    assert image.facts["colour_profile"] == "not applied"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF"])
def test_exif_orientation(decoded, file_format: str, orientation: int) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    content = by_pillow(smooth(), file_format, exif=exif)
    stored_HWC = smooth()
    if file_format == "JPEG":
        stored_HWC = decoded(by_pillow(smooth(), "JPEG")).pixels_HWC
    oracle = PIL.Image.fromarray(stored_HWC)
    oracle.getexif()[0x0112] = orientation
    image = decoded(content)
    np.testing.assert_array_equal(image.pixels_HWC, np.asarray(ImageOps.exif_transpose(oracle)))
    assert image.facts["orientation"] == orientation


@pytest.mark.parametrize("stated", [0, 9])
def test_an_orientation_that_says_nothing(decoded, stated: int) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = stated
    np.testing.assert_array_equal(decoded(by_pillow(smooth(), "PNG", exif=exif)).pixels_HWC, smooth())


def test_bytes_after_the_end_are_nobodys(decoded) -> None:
    for suffix in (".png", ".jpg"):
        content = by_opencv(smooth(), suffix)
        np.testing.assert_array_equal(decoded(content + b"vendor").pixels_HWC, decoded(content).pixels_HWC)


def test_of_a_jpeg_with_further_pictures_the_first_is_read_and_said(decoded) -> None:
    others = [PIL.Image.fromarray(255 - smooth())]
    image = decoded(by_pillow(smooth(), "MPO", save_all=True, append_images=others))
    assert np.abs(image.pixels_HWC.astype(int) - smooth()).mean() < 3
    assert image.facts["pictures"] == "first of several"
    assert decoded(by_pillow(smooth(), "JPEG")).facts["pictures"] == "one"


# ---- transparency ----


@pytest.mark.parametrize("bits", [8, 16])
def test_an_opaque_alpha_channel_is_left_out_and_said(decoded, refusal, bits: int) -> None:
    pixels_HWC = pattern(bits=bits)
    full = np.full((*pixels_HWC.shape[:2], 1), (1 << bits) - 1, dtype=pixels_HWC.dtype)

    def with_alpha(alpha_HW1: np.ndarray) -> bytes:
        done, content = cv2.imencode(".png", np.concatenate([pixels_HWC[..., ::-1], alpha_HW1], axis=-1))
        assert done
        return content.tobytes()

    image = decoded(with_alpha(full))
    np.testing.assert_array_equal(image.pixels_HWC, pixels_HWC)
    assert image.facts["alpha"] == "opaque, left out"
    full[3, 4] -= 1
    assert "1 of 713 pixels are transparent" in refusal(with_alpha(full))


def test_grey_with_alpha(decoded, refusal) -> None:
    grey_HW = pattern(channels=1)[..., 0]
    opaque = np.stack([grey_HW, np.full_like(grey_HW, 255)], axis=-1)
    np.testing.assert_array_equal(decoded(by_pillow(opaque, "PNG")).pixels_HWC[..., 0], grey_HW)
    opaque[0, 0, 1] = 0
    assert "1 of 713 pixels are transparent" in refusal(by_pillow(opaque, "PNG"))


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_colour_that_stands_for_transparent(decoded, refusal, mode: str) -> None:
    pixels = smooth() // 2 if mode == "RGB" else smooth()[..., 0] // 2
    absent, present = (255, 255, 255) if mode == "RGB" else 255, tuple(pixels[5, 5]) if mode == "RGB" else pixels[5, 5]
    image = decoded(by_pillow(pixels, "PNG", transparency=absent))
    np.testing.assert_array_equal(image.pixels_HWC.squeeze(), pixels)
    assert image.facts["alpha"] == "opaque, left out"
    present = tuple(int(v) for v in present) if mode == "RGB" else int(present)
    assert "pixels are transparent" in refusal(by_pillow(pixels, "PNG", transparency=present))


def test_a_transparent_entry_of_a_palette(decoded, refusal) -> None:
    image = PIL.Image.fromarray(smooth()).quantize(16)
    assert "pixels are transparent" in refusal(by_pillow(image, "GIF", transparency=int(np.asarray(image)[0, 0])))
    assert "pixels are transparent" in refusal(by_pillow(image, "PNG", transparency=bytes([255] * 8 + [0] * 8)))
    assert decoded(by_pillow(image, "PNG", transparency=bytes([255] * 16))).facts["alpha"] == "opaque, left out"


# ---- what is refused ----


def test_no_file_no_bytes(tmp_path: Path, refusal) -> None:
    assert refusal(b"") == "the file is empty (0 bytes)."
    with pytest.raises(CircumstanceError, match="cannot be read: No such file"):
        decode_image(tmp_path / "absent.png", max_bytes=MAX_BYTES)
    with pytest.raises(CircumstanceError, match="cannot be read: Is a directory"):
        decode_image(tmp_path, max_bytes=MAX_BYTES)


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (by_opencv(smooth(), ".png"), "a.jpg", "its name ends in .jpg, its content is a PNG image"),
        (by_opencv(smooth(), ".jpg"), "a.TIFF", "its name ends in .tiff, its content is a JPEG image"),
        (by_opencv(smooth(), ".png"), "a.dcm", "its name ends in .dcm, its content is a PNG image"),
        (b"<html><body>403 Forbidden" * 9, "a.png", "its name ends in .png, its content is an HTML or XML document"),
        (bytes(900), "a.jpeg", "its name ends in .jpeg, its content is zeros"),
        (b"BMI\tage\n" * 99, "a", "the content is plain text, which is not read as an image"),
        (b"\x00" * 128 + b"DICM" + b"0" * 900, "a", "the content is dicom, which is not read as an image"),
        (b"\x93NUMPY\x01\x00" + b"0" * 900, "a", "the content is npy, which is not read as an image"),
        (gzip.compress(b"no image" * 99), "a", "gzipped content other than NIfTI, which is not read as an image"),
        (b"\x89PNG\r\n" + b"0" * 900, "a.png", "a PNG image whose first bytes are damaged"),
    ],
)  # fmt: skip
def test_content_that_is_no_image_or_not_the_claimed_one(refusal, content: bytes, name: str, message: str) -> None:
    assert message in refusal(content, name)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp"])
def test_an_image_is_no_volume(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(by_opencv(smooth(), suffix))
    with pytest.raises(InputError, match=r"image, which is no volume; images are read where data\.kind is csv"):
        decode_volume(path, declared=DeclaredAxes("DHW"), max_bytes=MAX_BYTES)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp"])
def test_a_truncated_file(refusal, suffix: str, share: float) -> None:
    content = by_opencv(smooth(), suffix, *(PLAIN if suffix == ".tif" else ()))
    assert "truncated" in refusal(content[: int(share * len(content))])


def test_a_flipped_bit_in_a_png(refusal) -> None:
    content = bytearray(by_opencv(pattern(), ".png", cv2.IMWRITE_PNG_COMPRESSION, 0))  # stored: inflate sees nothing
    content[len(content) // 2] ^= 1
    assert refusal(bytes(content)) == "the PNG image is damaged: the checksum of a chunk does not fit its content."


@pytest.mark.parametrize("file_format", ["PNG", "GIF", "TIFF"])
def test_several_pictures(refusal, file_format: str) -> None:
    pictures = [PIL.Image.fromarray(smooth()), PIL.Image.fromarray(255 - smooth())]
    content = by_pillow(pictures[0], file_format, save_all=True, append_images=pictures[1:])
    assert "the file holds several pictures" in refusal(content)


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 3)])
def test_one_colour(refusal, shape: tuple[int, ...]) -> None:
    pixels = np.zeros(shape, dtype=np.uint8)
    pixels[...] = 7 if len(shape) == 2 else (7, 8, 9)
    assert refusal(by_pillow(pixels, "PNG")) == "all 600 pixels have the same value: the image is of one colour."


def _png_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(99999))) + chunk(b"IEND", b"")


def test_a_declared_size_beyond_the_limit_is_refused_before_allocation(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(_png_header(60_000, 50_000))
    tracemalloc.start()
    with pytest.raises(CircumstanceError, match=r"declares 50000 × 60000 pixels, which take 36,000,000,000 bytes"):
        decode_image(tmp_path / "a.png", max_bytes=1 << 30)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_the_limit_is_that_of_the_study_not_of_pillow(decoded, refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    content = by_opencv(smooth(), ".png")
    assert decoded(content, max_bytes=40 * 56 * 3 * 4).pixels_HWC.shape == (40, 56, 3)
    assert "40 × 56 pixels, which take 26,880 bytes in memory; at most 26,879" in refusal(content, max_bytes=26_879)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 10)
    for suffix in (".png", ".jpg", ".bmp"):
        assert decoded(by_opencv(smooth(), suffix)).pixels_HWC.shape == (40, 56, 3)
    assert "more pixels than the reading library takes" in refusal(by_opencv(smooth(), ".tif"))


def test_a_file_beyond_the_limit(refusal) -> None:
    content = by_opencv(smooth(), ".png") + bytes(99_999)
    assert "at most 90,000 are allowed" in refusal(content, max_bytes=90_000)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tiff_bytes(pattern(bits=16), photometric=2, planar=True), "16-bit colour in separate planes"),
        (tiff_bytes(pattern(channels=1, bits=16), photometric=1, bits=12), "pixels of the kind I;16 (I;12)"),
        (by_pillow(np.linspace(0, 1, 600, dtype=np.float32).reshape(20, 30), "TIFF"), "pixels of the kind F"),
        (by_pillow(np.arange(600, dtype=np.int32).reshape(20, 30), "TIFF"), "pixels of the kind I"),
    ],
)
def test_pixels_that_cannot_be_read_without_loss(refusal, content: bytes, message: str) -> None:
    assert message in refusal(content)


def test_eight_bit_planes_are_read(decoded) -> None:
    pixels_HWC = pattern()
    np.testing.assert_array_equal(decoded(tiff_bytes(pixels_HWC, photometric=2, planar=True)).pixels_HWC, pixels_HWC)


# ---- statistics ----


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_statistics_are_those_of_numpy(bits: int, channels: int) -> None:
    pixels_HWC = pattern(channels=channels, bits=bits) // 3
    row = image_statistics(Image(pixels_HWC))
    expected = {
        "height": 23, "width": 31, "channels": channels, "bits": bits, "min": pixels_HWC.min(),
        "mean": pixels_HWC.mean(), "max": pixels_HWC.max(), "std": pixels_HWC.std(),
    }  # fmt: skip
    if channels == 3:
        expected |= dict(zip(("mean_r", "mean_g", "mean_b"), pixels_HWC.mean(axis=(0, 1)), strict=True))
    assert row == pytest.approx(expected, rel=1e-12)
