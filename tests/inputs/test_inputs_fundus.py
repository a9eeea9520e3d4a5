"""Fundus steps. Oracles: the disc that was drawn, the formula with scipy's Gaussian, OpenCV's CLAHE.

Axes: H row, W column, C channel.
"""

from pathlib import Path

import cv2
import numpy as np
import pytest
from inputs_image_bytes import pattern, smooth
from scipy import ndimage

from vitreous.core.errors import InputError
from vitreous.core.input_spec import ImageSpec
from vitreous.inputs.contrast import clahe
from vitreous.inputs.fundus import Disc, apply_fundus_steps, ben_graham, circle_crop, find_disc
from vitreous.inputs.image import Image
from vitreous.inputs.image_files import decode_image
from vitreous.inputs.image_preprocessing import prepare_image

IDRID = Path(__file__).parents[3] / "shared" / "data" / "idrid"
STEPS = ("circle_crop", "ben_graham", "clahe")


def photograph(
    height: int = 200, width: int = 300, disc: Disc | None = None, *, bits: int = 8, seed: int = 0
) -> np.ndarray:
    """A disc of retina colour with uneven light, vessels, grain and a dark surround, (H, W, 3)."""
    disc = disc or Disc(98.0, 155.0, 85.0)
    rng = np.random.default_rng(seed)
    row, column = np.mgrid[:height, :width]
    light = 0.35 + 0.5 * column / width + 0.1 * np.sin(row / 7) * (np.abs(np.sin(column / 11)) < 0.3)
    unit = light[..., None] * np.array([0.9, 0.5, 0.2]) + rng.normal(0, 0.02, (height, width, 3))
    unit[(row - disc.row) ** 2 + (column - disc.column) ** 2 > disc.radius**2] = 0
    unit += np.abs(rng.normal(0, 0.005, unit.shape))
    largest = (1 << bits) - 1
    return (unit.clip(0, 1) * largest).astype(np.uint8 if bits == 8 else np.uint16)


# ---- the disc ----


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(
    ("size", "disc"),
    [
        ((200, 300), Disc(98.0, 155.0, 85.0)),  # whole
        ((200, 300), Disc(100.0, 140.0, 125.0)),  # cut off above and below, as most cameras do
        ((260, 260), Disc(129.5, 129.5, 140.0)),  # four dark corners
        ((300, 200), Disc(150.0, 80.0, 95.0)),  # cut off on the left
        ((1200, 1600), Disc(590.0, 820.0, 500.0)),  # sought in a smaller copy
        ((28, 28), Disc(13.5, 13.5, 12.0)),  # MedMNIST
    ],
)
def test_the_disc_that_was_drawn_is_found(size: tuple[int, int], disc: Disc, bits: int) -> None:
    found = find_disc(photograph(*size, disc, bits=bits))
    tolerance = max(0.015 * disc.radius, 1.0)
    assert (found.row, found.column, found.radius) == pytest.approx((disc.row, disc.column, disc.radius), abs=tolerance)


def test_text_and_glare_beside_the_disc_do_not_move_it() -> None:
    pixels_HWC = photograph()
    cv2.putText(pixels_HWC, "OD 12", (5, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1)
    cv2.circle(pixels_HWC, (238, 98), 8, (255, 255, 255), -1)  # a notch on the rim
    found = find_disc(pixels_HWC)
    assert (found.row, found.column, found.radius) == pytest.approx((98, 155, 85), abs=1.5)


def test_a_grey_photograph() -> None:
    found = find_disc(photograph()[..., :1])
    assert (found.row, found.column, found.radius) == pytest.approx((98, 155, 85), abs=1.5)


def _square() -> np.ndarray:
    pixels_HWC = np.zeros((200, 300, 3), dtype=np.uint8)
    pixels_HWC[60:140, 20:280] = 180
    return pixels_HWC


@pytest.mark.parametrize("step", ["circle_crop", "ben_graham"])
@pytest.mark.parametrize(
    ("pixels_HWC", "message"),
    [
        (smooth(100, 120) // 2 + 100, "the image has no dark surround"),
        (_square(), "the bright region is not round"),
        (pattern(120, 120), "no fundus disc was found"),
        (photograph(200, 300, Disc(100.0, 150.0, 170.0)), "too little of its edge lies inside the image"),
        (np.zeros((50, 60, 3), dtype=np.uint8), "nothing in the image is bright"),
    ],
)  # fmt: skip
def test_an_image_without_a_disc(pixels_HWC: np.ndarray, message: str, step: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        apply_fundus_steps(pixels_HWC, [step])
    assert "Leave out the fundus steps" in str(caught.value)
    assert apply_fundus_steps(pixels_HWC, ["clahe"]).shape == pixels_HWC.shape


# ---- circle_crop ----


@pytest.mark.parametrize("bits", [8, 16])
def test_circle_crop_keeps_the_disc_and_nothing_else(bits: int) -> None:
    pixels_HWC = photograph(bits=bits)
    disc = Disc(98.0, 155.0, 85.0)
    cropped_HWC, moved = circle_crop(pixels_HWC, disc)
    assert cropped_HWC.shape == (170, 170, 3)
    assert cropped_HWC.dtype == pixels_HWC.dtype
    row, column = np.mgrid[:170, :170]
    is_inside_HW = np.hypot(row - moved.row, column - moved.column) <= 85
    window_HWC = pixels_HWC[98 - round(moved.row) :, 155 - round(moved.column) :][:170, :170]
    np.testing.assert_array_equal(cropped_HWC, window_HWC * is_inside_HW[..., None])


def test_circle_crop_of_a_disc_that_leaves_the_image_is_square_and_round() -> None:
    disc = Disc(100.0, 140.0, 125.0)
    cropped_HWC = apply_fundus_steps(photograph(disc=disc), ["circle_crop"])
    assert cropped_HWC.shape[0] == cropped_HWC.shape[1] == pytest.approx(250, abs=3)
    assert not cropped_HWC[:20].any()  # above the image
    bright_HW = cropped_HWC.max(axis=-1) > 40
    columns = np.flatnonzero(bright_HW.any(axis=0))
    assert columns[-1] - columns[0] == pytest.approx(250, abs=4)


# ---- ben_graham ----


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("radius", [85.0, 500.0, 800.0])
def test_ben_graham_is_its_formula(bits: int, radius: float) -> None:
    pixels_HWC = cv2.resize(photograph(bits=bits), (450, 300))
    middle, largest, step = (128, 255, 1) if bits == 8 else (128 * 257, 65535, 257)
    disc = Disc(150.0, 225.0, radius)
    blurred_HWC = ndimage.gaussian_filter(
        pixels_HWC.astype(np.float64), (radius / 30, radius / 30, 0), mode="reflect", truncate=6
    )
    expected_HWC = (4 * pixels_HWC.astype(np.float64) - 4 * blurred_HWC + middle).clip(0, largest)
    row, column = np.mgrid[:300, :450]
    expected_HWC[np.hypot(row - 150, column - 225) > radius] = middle
    evened_HWC = ben_graham(pixels_HWC, disc)
    assert evened_HWC.dtype == pixels_HWC.dtype
    off_HWC = np.abs(evened_HWC - expected_HWC) / step
    assert off_HWC.max() < 1.6  # the blur of a smaller copy is within 0.25, times four, and rounding
    assert off_HWC.mean() < 0.3


def test_ben_graham_evens_out_the_light() -> None:
    pixels_HWC = photograph()
    evened_HWC = apply_fundus_steps(pixels_HWC, ["ben_graham"])
    left, right = np.s_[80:120, 100:120], np.s_[80:120, 190:210]
    assert abs(pixels_HWC[left].mean() - pixels_HWC[right].mean()) > 15
    assert abs(evened_HWC[left].mean() - evened_HWC[right].mean()) < 3
    assert (evened_HWC[:5] == 128).all()


# ---- clahe ----


def test_clahe_is_that_of_opencv_on_lightness() -> None:
    pixels_HWC = photograph()
    lab_HWC = cv2.cvtColor(pixels_HWC, cv2.COLOR_RGB2Lab)
    light_HW = cv2.createCLAHE(clipLimit=2.0, tileGridSize=(8, 8)).apply(lab_HWC[..., 0].copy())
    expected_HWC = cv2.cvtColor(np.dstack([light_HW, lab_HWC[..., 1:]]), cv2.COLOR_Lab2RGB)
    np.testing.assert_array_equal(clahe(pixels_HWC), expected_HWC)


@pytest.mark.parametrize("shape", [(200, 304), (200, 300), (201, 303), (64, 64), (9, 11)])
def test_clahe_of_sixteen_bits_is_that_of_eight_but_finer(shape: tuple[int, int]) -> None:
    grey_HWC = photograph(*shape, Disc(shape[0] / 2, shape[1] / 2, min(shape) * 0.45))[..., :1]
    fine_HWC = clahe(grey_HWC.astype(np.uint16) * 257)
    assert fine_HWC.dtype == np.uint16
    assert np.abs(fine_HWC / 257 - clahe(grey_HWC)).max() <= 1  # OpenCV rounds each curve to whole numbers


def test_clahe_of_sixteen_bits_in_colour() -> None:
    pixels_HWC = photograph()
    off_HWC = np.abs(clahe(pixels_HWC.astype(np.uint16) * 257) / 257 - clahe(pixels_HWC))
    assert off_HWC.mean() < 2  # at 8 bits, CIELAB itself is rounded


def test_clahe_of_sixteen_bits_keeps_fine_steps() -> None:
    ramp_HW = np.linspace(20_000, 30_000, 256 * 256).astype(np.uint16).reshape(256, 256)
    equalised_HW = clahe(ramp_HW[..., None])[..., 0]
    assert len(np.unique(equalised_HW)) > 2_000


# ---- the steps together ----


@pytest.mark.parametrize("bits", [8, 16])
def test_steps_are_taken_in_the_order_given(bits: int) -> None:
    pixels_HWC = photograph(bits=bits)
    disc = find_disc(pixels_HWC)
    cropped_HWC, moved = circle_crop(pixels_HWC, disc)
    np.testing.assert_array_equal(apply_fundus_steps(pixels_HWC, STEPS), clahe(ben_graham(cropped_HWC, moved)))
    # the disc is that of the photograph, though no dark surround is left to find it by
    evened_first_HWC = apply_fundus_steps(pixels_HWC, ["ben_graham", "circle_crop"])
    np.testing.assert_array_equal(evened_first_HWC, circle_crop(ben_graham(pixels_HWC, disc), disc)[0])
    np.testing.assert_array_equal(apply_fundus_steps(pixels_HWC, []), pixels_HWC)


def test_the_same_pixels_give_the_same_bits_with_any_number_of_threads() -> None:
    pixels_HWC = photograph(900, 1300, Disc(450.0, 640.0, 430.0))
    before_HWC, num_threads = pixels_HWC.copy(), cv2.getNumThreads()
    try:
        results = []
        for count in (1, 3):
            cv2.setNumThreads(count)
            results.append(apply_fundus_steps(pixels_HWC, STEPS))
    finally:
        cv2.setNumThreads(num_threads)
    np.testing.assert_array_equal(*results)
    np.testing.assert_array_equal(pixels_HWC, before_HWC)


def test_a_spec_asks_for_them_by_name() -> None:
    image = Image(photograph())
    plain = prepare_image(image, ImageSpec(size=(64, 64)))
    steps = prepare_image(image, ImageSpec(size=(64, 64), fundus=STEPS))
    assert steps.shape == plain.shape
    cropped = prepare_image(image, ImageSpec(size=(64, 64), fundus=("circle_crop",)))
    assert not cropped[:, 0, :8, :8].any()  # a corner outside the circle
    assert cropped[:, 0, 32, 1:].float().mean() > plain[:, 0, 32].float().mean()


@pytest.mark.real
@pytest.mark.skipif(not IDRID.is_dir(), reason=f"needs {IDRID}")
def test_real_photographs() -> None:
    for path in sorted(IDRID.glob("*/*.jpg"))[::40]:
        image = decode_image(path, max_bytes=1 << 30)
        disc = find_disc(image.pixels_HWC)
        # one camera took them all; 448 × 674 pixels
        assert (disc.row, disc.column, disc.radius) == pytest.approx((223, 311, 270), abs=8)
        assert apply_fundus_steps(image.pixels_HWC, STEPS).shape[0] == pytest.approx(540, abs=12)
