"""Augmentation. Oracles: scipy's affine_transform, torchvision's operations and RandAugment, closed forms."""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from vitreous.config.pixel_recipes import Augment
from vitreous.core.input_spec import ImageSpec, InputSpec
from vitreous.core.streams import numpy_stream
from vitreous.core.torchvision_schema import declare_torchvision_schemas

declare_torchvision_schemas()

from torchvision.transforms import v2  # noqa: E402
from torchvision.transforms.v2 import functional as tv  # noqa: E402

from vitreous.inputs import color  # noqa: E402
from vitreous.inputs.augmentation import AugmentSettings, augment, check_augment  # noqa: E402
from vitreous.inputs.geometric import Geometry, apply_geometry, draw_box, draw_geometry  # noqa: E402

IMAGE = ImageSpec(size=(40, 32))
GREY = ImageSpec(size=(40, 32), channels=1, mean=(0.3,), std=(0.2,))
VOLUME = InputSpec(size=(9, 24, 20))
ALL_IMAGE = AugmentSettings(
    flip=0.5, flip_axes=("H", "W"), rotate=20, crop=0.3, scale=0.2, erase=1, color=0.3, hue=0.1, blur=1, randaugment=9
)
ALL_VOLUME = AugmentSettings(
    flip=0.5, flip_axes=("D", "H", "W"), rotate=10, crop=0.3, scale=0.1, erase=1, intensity=0.3, noise=0.1
)


def some_image(spec: ImageSpec = IMAGE, seed: int = 0) -> torch.Tensor:
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(spec.channels, 1, *spec.size)), 2)
    return torch.from_numpy((255 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.uint8))


def some_volume(seed: int = 0, channels: int = 1) -> torch.Tensor:
    volume = np.random.default_rng(seed).normal(size=(1, *VOLUME.size)).astype(np.float32)
    return torch.from_numpy(volume).repeat(channels, 1, 1, 1)


def by_scipy(x_DHW: np.ndarray, geometry: Geometry, fill: float) -> np.ndarray:
    """The same change by scipy: rims repeated inside the outermost voxels' boxes, `fill` outside."""
    size = np.array(x_DHW.shape)
    flipped = x_DHW[tuple(slice(None, None, -1 if axis in geometry.flips else 1) for axis in "DHW")]
    angle = math.radians(geometry.angle_deg)
    turn = np.array([[1, 0, 0], [0, math.cos(angle), math.sin(angle)], [0, -math.sin(angle), math.cos(angle)]])
    kept, place = np.array(geometry.kept_DHW), np.array(geometry.place_DHW)
    to_source = turn @ np.diag(kept) / geometry.scale
    middle = (size - 1) / 2
    offset = middle + turn @ ((place - 0.5) * (1 - kept) * size) / geometry.scale - to_source @ middle
    moved = ndimage.affine_transform(flipped.astype(np.float64), to_source, offset, order=1, mode="nearest")
    sources = np.einsum("ij,j...->i...", to_source, np.indices(size)) + offset[:, None, None, None]
    inside = ((sources >= -0.5) & (sources <= size[:, None, None, None] - 0.5)).all(0)
    return np.where(inside, moved, fill)


@pytest.mark.parametrize(
    "geometry",
    [
        Geometry(angle_deg=30),
        Geometry(flips=("W",), angle_deg=-7.5, scale=0.8),
        Geometry(scale=1.3),
        Geometry(kept_DHW=(0.7, 0.8, 0.6), place_DHW=(0.0, 1.0, 0.3)),
        Geometry(("D", "H"), 12.0, 0.9, (0.75, 0.6, 0.9), (0.9, 0.1, 0.5)),
    ],
)
def test_geometry_is_one_affine_of_scipy(geometry: Geometry) -> None:
    volume = some_volume().double()
    moved = apply_geometry(volume, geometry, fill=-9.0)
    np.testing.assert_allclose(moved[0].numpy(), by_scipy(volume[0].numpy(), geometry, -9.0), atol=1e-9)
    image = some_image().double()
    moved = apply_geometry(image, geometry, fill=0.0)
    flat = replace(geometry, kept_DHW=(1.0, *geometry.kept_DHW[1:]), flips=tuple(set(geometry.flips) - {"D"}))
    for channel in range(3):
        expected = by_scipy(np.repeat(image[channel].numpy(), 3, 0), flat, 0.0)[1]
        np.testing.assert_allclose(moved[channel, 0].numpy(), expected, atol=1e-9)


def test_rotation_turns_as_torchvisions() -> None:
    image = some_image().float() / 255
    ours = apply_geometry(image, Geometry(angle_deg=25), fill=0.0)
    theirs = tv.rotate(image[:, 0], 25, interpolation=v2.InterpolationMode.BILINEAR)[:, None]
    inner = (slice(None), slice(None), slice(10, 30), slice(8, 24))  # theirs darkens the rim
    torch.testing.assert_close(ours[inner], theirs[inner], atol=1e-4, rtol=0)


def test_whole_pixel_crop_of_half_a_side_keeps_its_pixels() -> None:
    """Resized to twice its size, a crop's values lie a quarter and three quarters of the way between its pixels."""
    ramp = torch.arange(16.0).reshape(1, 1, 1, 16).expand(1, 1, 4, 16)
    moved = apply_geometry(ramp, Geometry(kept_DHW=(1, 1, 0.5), place_DHW=(0.5, 0.5, 0.5)), fill=0.0)
    torch.testing.assert_close(moved[0, 0, 0], torch.arange(16) * 0.5 + 3.75)


def test_pure_flips_are_bit_equal_and_each_axis_goes_alone() -> None:
    volume, seen = some_volume(), set()
    settings = AugmentSettings(flip=0.5, flip_axes=("D", "H", "W"))
    flips = {axes: torch.flip(volume, axes) for axes in [(), (1,), (2,), (3,), (1, 2), (1, 3), (2, 3), (1, 2, 3)]}
    for seed in range(60):
        moved = augment(volume, settings, VOLUME, seed)
        matches = [axes for axes, flipped in flips.items() if torch.equal(moved, flipped)]
        assert len(matches) == 1
        seen.add(matches[0])
    assert seen == set(flips)
    image = some_image()
    flipped = augment(image, AugmentSettings(flip=1.0, flip_axes=("H",)), IMAGE, 0)
    assert torch.equal(flipped, torch.flip(image, [2]).float() / 255)


def test_draws_are_uniform_over_their_ranges() -> None:
    draws = [
        draw_geometry(seed, flip=0.3, flip_axes=("H", "W"), rotate=15, crop=0.4, scale=0.25) for seed in range(800)
    ]
    samples = {
        "angle": ([g.angle_deg for g in draws], -15, 30),
        "scale": ([g.scale for g in draws], 0.75, 0.5),
        **{f"kept {axis}": ([g.kept_DHW[axis] for g in draws], 0.6, 0.4) for axis in range(3)},
        **{f"place {axis}": ([g.place_DHW[axis] for g in draws], 0, 1) for axis in range(3)},
    }
    for name, (values, low, width) in samples.items():
        assert stats.kstest(values, stats.uniform(low, width).cdf).pvalue > 0.001, name
    for axis in ("H", "W"):
        assert stats.binomtest(sum(axis in g.flips for g in draws), 800, 0.3).pvalue > 0.001
    assert not any("D" in g.flips for g in draws)


def test_crop_of_a_constant_uncovers_nothing_and_rotation_does() -> None:
    white, ones = torch.full((3, 1, *IMAGE.size), 255, dtype=torch.uint8), torch.full((1, *VOLUME.size), 2.0)
    for seed in range(20):
        assert augment(white, AugmentSettings(crop=0.5), IMAGE, seed).min() > 1 - 1e-6
        filled = augment(ones, AugmentSettings(crop=0.5, rotate=30), VOLUME, seed)  # with its own minimum
        torch.testing.assert_close(filled, ones)
    turned = augment(white, AugmentSettings(rotate=30), IMAGE, 0)
    assert (turned == 0).any()
    assert ((turned == 0) | (turned > 1 - 1e-6)).all()


@pytest.mark.parametrize("spec", [IMAGE, GREY])
def test_color_is_torchvisions_in_the_stated_order(spec: ImageSpec) -> None:
    image = some_image(spec)
    has_hue = spec.channels == 3
    settings = AugmentSettings(color=0.4, hue=0.2 if has_hue else 0.0)
    for seed in range(10):
        rng = numpy_stream(seed, "color")
        brightness, contrast, saturation = rng.uniform(0.6, 1.4, size=3)
        expected = tv.adjust_brightness(image[:, 0].float() / 255, brightness)
        expected = tv.adjust_saturation(tv.adjust_contrast(expected, contrast), saturation)
        if has_hue:
            expected = tv.adjust_hue(expected, float(rng.uniform(-0.2, 0.2)))
        torch.testing.assert_close(augment(image, settings, spec, seed)[:, 0], expected, atol=2e-6, rtol=0)


def test_blur_is_scipys_gaussian_away_from_nothing() -> None:
    image = some_image(seed=3).float() / 255
    for sigma in (0.3, 1.0, 1.9):
        reach = math.ceil(3 * sigma)
        expected = ndimage.gaussian_filter(
            image[0, 0].double().numpy(), sigma, mode="mirror", radius=reach
        )  # scipy's mirror is torch's reflect
        np.testing.assert_allclose(color.blur(image, sigma=sigma)[0, 0].numpy(), expected, atol=1e-5)
    tiny = torch.rand(1, 1, 1, 1)
    assert torch.equal(color.blur(tiny, sigma=1.0), tiny)


class OneOperation(v2.RandAugment):
    """torchvision's RandAugment whose single operation is given."""

    def __init__(self, name: str, magnitude: int) -> None:
        super().__init__(num_ops=1, magnitude=magnitude)
        self._name = name

    def _get_random_item(self, space):
        return self._name, space[self._name]


@pytest.mark.parametrize("kind", ["uint8", "float"])
@pytest.mark.parametrize("name", sorted(v2.RandAugment._AUGMENTATION_SPACE))
def test_randaugment_operations_are_torchvisions(name: str, kind: str) -> None:
    image = some_image()[:, 0]
    image = image if kind == "uint8" else image.float() / 255
    for magnitude in (1, 9, 14, 30):
        theirs = []
        for seed in range(8):  # both signs
            torch.manual_seed(seed)
            theirs.append(OneOperation(name, magnitude)(image).double())
        for sign in (-1.0, 1.0):
            ours = color.OPERATIONS[name](image, magnitude / 30, sign)
            assert ours.dtype == image.dtype
            gap = min(float((ours.double() - other).abs().max()) for other in theirs)
            # torchvision rounds its factors to float32, which can tip a value over to the next whole one
            one_level = kind == "uint8" and name in ("Color", "Contrast")
            assert gap <= (1 if one_level else 0 if kind == "uint8" else 1e-6)


def test_randaugment_draws_two_of_all_operations() -> None:
    assert set(color.OPERATIONS) == set(v2.RandAugment._AUGMENTATION_SPACE)
    calls: list[str] = []
    original = dict(color.OPERATIONS)
    try:
        for name in original:
            color.OPERATIONS[name] = lambda x, level, sign, name=name: calls.append(name) or x
        for seed in range(700):
            augment(some_image(), AugmentSettings(randaugment=5), IMAGE, seed)
    finally:
        color.OPERATIONS.update(original)
    assert len(calls) == 1400
    assert stats.chisquare([calls.count(name) for name in original]).pvalue > 0.001


def test_erased_box_takes_the_mean_and_leaves_the_rest() -> None:
    settings = AugmentSettings(erase=1.0)
    image, volume = some_image(), some_volume()
    for seed in range(30):
        change = augment(image, settings, IMAGE, seed) - image.float() / 255
        normal = (augment(image, settings, IMAGE, seed)[:, 0] - torch.tensor(IMAGE.mean)[:, None, None]).abs()
        box = draw_box_of(seed, (1, *IMAGE.size))
        assert normal[(slice(None), *box[1:])].max() == 0
        change[(slice(None), *box)] = 0
        assert change.abs().max() == 0
        erased = augment(volume, settings, VOLUME, seed)
        assert np.ptp(erased[(slice(None), *draw_box_of(seed, VOLUME.size))].numpy()) == 0
        assert (erased != volume).double().mean() > 0.01


def draw_box_of(seed: int, size_DHW: tuple[int, ...]) -> tuple[slice, ...]:
    rng = numpy_stream(seed, "erase")
    rng.random()
    return draw_box(rng, size_DHW)


@pytest.mark.parametrize("size_DHW", [(1, 200, 300), (120, 100, 140)])
def test_erased_share_is_2_to_20_percent(size_DHW: tuple[int, ...]) -> None:
    shares, starts = [], []
    for seed in range(300):
        box = draw_box(np.random.default_rng(seed), size_DHW)
        shares.append(np.prod([side.stop - side.start for side in box]) / np.prod(size_DHW))
        starts.append(box[2].start / (size_DHW[2] - (box[2].stop - box[2].start)))
        lengths = [(side.stop - side.start) / size for side, size in zip(box, size_DHW) if size > 1]
        assert max(lengths) / min(lengths) < 2.1
    assert stats.kstest(shares, stats.uniform(0.02, 0.18).cdf).pvalue > 0.001
    assert stats.kstest(starts, stats.uniform(0, 1).cdf).pvalue > 0.001


@pytest.mark.parametrize("name", ["erase", "blur"])
def test_probabilities_are_those_asked_for(name: str) -> None:
    image = some_image()
    plain = image.float() / 255
    changed = sum(
        not torch.equal(augment(image, AugmentSettings(**{name: 0.3}), IMAGE, seed), plain) for seed in range(300)
    )
    # a blur of less than a tenth of its range leaves whole values as they are; the interval is wide enough for it
    assert stats.binomtest(changed, 300, 0.3).pvalue > 0.001


def test_volume_intensity_and_noise_are_the_closed_forms() -> None:
    volume = some_volume(channels=3) * 2 + 1
    mean, sd = volume.double().mean(), volume.double().std(correction=0)
    factors, shifts = [], []
    for seed in range(200):
        changed = augment(volume, AugmentSettings(intensity=0.4), VOLUME, seed).double()
        factors.append(float(changed.std(correction=0) / sd))
        shifts.append(float((changed.mean() - mean) / sd))
        expected = (volume.double() - mean) * factors[-1] + mean + shifts[-1] * sd
        torch.testing.assert_close(changed, expected, atol=1e-5, rtol=0)
    assert stats.kstest(factors, stats.uniform(0.6, 0.8).cdf).pvalue > 0.001
    assert stats.kstest(shifts, stats.uniform(-0.4, 0.8).cdf).pvalue > 0.001
    noise = augment(volume, AugmentSettings(noise=0.1), VOLUME, 0) - volume
    torch.testing.assert_close(noise[0], noise[2], atol=1e-6, rtol=0)
    assert stats.kstest(noise[0].flatten().numpy() / (0.1 * float(sd)), "norm").pvalue > 0.001


@pytest.mark.parametrize(
    ("prepared", "settings", "spec"),
    [(some_image(), ALL_IMAGE, IMAGE), (some_volume(), ALL_VOLUME, VOLUME)],
    ids=["image", "volume"],
)
def test_the_seed_alone_decides(prepared: torch.Tensor, settings: AugmentSettings, spec) -> None:
    kept, global_state = prepared.clone(), torch.get_rng_state()
    first = [augment(prepared, settings, spec, seed) for seed in range(12)]
    assert torch.equal(torch.get_rng_state(), global_state)
    assert torch.equal(prepared, kept)
    torch.manual_seed(999)
    np.random.seed(5)
    with ThreadPoolExecutor(4) as pool:
        again = list(pool.map(lambda seed: augment(prepared, settings, spec, seed), reversed(range(12))))[::-1]
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert not any(torch.equal(first[0], other) for other in first[1:])
    assert all(x.dtype == torch.float32 and x.shape == prepared.shape and x.isfinite().all() for x in first)
    if isinstance(spec, ImageSpec):
        assert all(x.min() >= 0 and x.max() <= 1 for x in first)


@pytest.mark.parametrize("modality", ["image", "volume"])
def test_bits_do_not_depend_on_the_number_of_threads(modality: str) -> None:
    if modality == "image":
        spec, settings = ImageSpec(size=(256, 256)), ALL_IMAGE
        prepared = some_image(spec)
    else:
        spec, settings = InputSpec(size=(16, 96, 96)), ALL_VOLUME
        prepared = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 16, 96, 96)).astype(np.float32))
    threads = torch.get_num_threads()
    results = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            results.append([augment(prepared, settings, spec, seed) for seed in range(10)])
    finally:
        torch.set_num_threads(threads)
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others))


def test_switching_one_on_leaves_the_others_draws() -> None:
    image = some_image()
    flipped = augment(image, AugmentSettings(flip=0.5), IMAGE, 4)
    both = augment(image, AugmentSettings(flip=0.5, erase=1.0), IMAGE, 4)
    assert (flipped == both).double().mean() > 0.75


def test_off_is_only_the_change_of_range() -> None:
    image, volume = some_image(), some_volume()
    assert AugmentSettings().is_off
    assert torch.equal(augment(image, AugmentSettings(), IMAGE, 0), image.float() / 255)
    sixteen = image.float() / 255
    assert torch.equal(augment(sixteen, AugmentSettings(), IMAGE, 0), sixteen)
    assert torch.equal(augment(volume, AugmentSettings(), VOLUME, 0), volume)


def test_settings_are_the_fields_of_the_study_file() -> None:
    ours = {field.name: field.default for field in fields(AugmentSettings)}
    assert ours == {name: field.default for name, field in Augment.model_fields.items()}
    for name in set(ours) - {"flip_axes"}:
        assert not AugmentSettings(**{name: 1}).is_off, name


@pytest.mark.parametrize(
    ("settings", "modality", "channels", "named"),
    [
        (AugmentSettings(hue=0.1, color=0.2), "volume", None, ["augment.color", "augment.hue"]),
        (AugmentSettings(blur=0.5, randaugment=9), "volume", None, ["augment.blur", "augment.randaugment"]),
        (AugmentSettings(intensity=0.1, noise=0.2), "image", 3, ["augment.intensity", "augment.noise"]),
        (AugmentSettings(flip=0.5, flip_axes=("D", "W")), "image", 3, ["augment.flip_axes"]),
        (AugmentSettings(hue=0.1), "image", 1, ["augment.hue"]),
        (ALL_IMAGE, "image", 3, []),
        (ALL_IMAGE, "image", None, []),
        (ALL_VOLUME, "volume", 1, []),
    ],
)
def test_options_without_effect_are_named(settings, modality, channels, named) -> None:
    problems = check_augment(settings, modality, channels=channels)
    assert [problem.split()[0] for problem in problems] == named


def test_augment_refuses_what_has_no_effect_and_what_it_cannot_take() -> None:
    with pytest.raises(ValueError, match=r"augment\.hue has no effect on images of one channel"):
        augment(some_image(GREY), AugmentSettings(hue=0.1), GREY, 0)
    with pytest.raises(ValueError, match=r"augment\.noise is for volumes"):
        augment(some_image(), AugmentSettings(noise=0.1), IMAGE, 0)
    with pytest.raises(ValueError, match=r"torch\.uint8\. Give it what prepare_input returns"):
        augment(some_image(), AugmentSettings(), VOLUME, 0)
    with pytest.raises(ValueError, match=r"got \(3, 40, 32\)"):
        augment(some_image()[:, 0], AugmentSettings(), IMAGE, 0)
