"""Geometric augmentation. Oracles: scipy's affine_transform, torchvision's rotation, closed forms."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from vitreous.core.input_spec import ImageSpec, InputSpec
from vitreous.core.torchvision_schema import declare_torchvision_schemas
from vitreous.inputs.augmentation import AugmentSettings, augment
from vitreous.inputs.geometric import Geometry, apply_geometry, draw_box, draw_geometry

declare_torchvision_schemas()

from torchvision.transforms import v2  # noqa: E402
from torchvision.transforms.v2 import functional as tv  # noqa: E402

IMAGE = ImageSpec(size=(40, 32))
VOLUME = InputSpec(size=(9, 24, 20))


def some_image(seed: int = 0) -> torch.Tensor:
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(3, 1, *IMAGE.size)), 2)
    return torch.from_numpy((255 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.uint8))


def some_volume(seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(1, *VOLUME.size)).astype(np.float32))


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
