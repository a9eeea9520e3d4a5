"""Augmentation. Oracles: torchvision's operations and RandAugment, scipy, closed forms."""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields

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
from vitreous.inputs.geometric import draw_box  # noqa: E402

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
