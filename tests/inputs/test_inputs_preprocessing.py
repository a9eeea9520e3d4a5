"""Preprocessing. Oracles: torch's interpolate, scipy's map_coordinates, numpy's percentile, closed forms."""

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from torch.nn import functional

from vitreous.core.errors import InputError
from vitreous.core.input_spec import (
    ClipRange,
    FixedMeanStd,
    InputSpec,
    Normalisation,
    PercentileMinMaxGamma,
    Unchanged,
    ZScore,
)
from vitreous.inputs.description import describe_volume, volume_statistics
from vitreous.inputs.preprocessing import _percentiles as percentiles_of
from vitreous.inputs.preprocessing import preprocess_volume
from vitreous.inputs.volume import Volume

NORMALISATIONS = [
    ZScore(),
    PercentileMinMaxGamma(),
    PercentileMinMaxGamma(lower_percentile=1, upper_percentile=98.5, gamma=0.8),
    ClipRange(low=-1.0, high=2.0),
    FixedMeanStd(value_range=(-3, 3), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)),
    Unchanged(),
]


def random_volume(shape: tuple[int, int, int] = (9, 20, 17), spacing=(2.0, 0.5, 0.25), seed: int = 0) -> Volume:
    voxels = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return Volume(voxels, spacing, {"format": "made"})


def unchanged(size: tuple[int, int, int], **options) -> InputSpec:
    return InputSpec(size=size, normalisation=Unchanged(), **options)


@pytest.mark.parametrize("size", [(4, 10, 8), (16, 32, 40), (9, 20, 17), (1, 1, 1)])
def test_plain_resize_is_torchs_trilinear(size: tuple[int, int, int]) -> None:
    volume = random_volume()
    tensor = preprocess_volume(volume, unchanged(size))
    expected = functional.interpolate(
        torch.from_numpy(volume.voxels_DHW)[None, None], size=size, mode="trilinear", align_corners=False
    )[0]
    assert torch.equal(tensor, expected)
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()


def test_nearest_takes_only_values_that_are_there() -> None:
    volume = random_volume()
    tensor = preprocess_volume(volume, unchanged((5, 41, 9), interpolation="nearest"))
    assert np.isin(tensor.numpy(), volume.voxels_DHW).all()


def _grid(num_in: int, num_out: int, step: float) -> np.ndarray:
    return (np.arange(num_out) - (num_out - 1) / 2) * step + (num_in - 1) / 2


@pytest.mark.parametrize("size", [(6, 8, 8), (12, 30, 24), (5, 11, 40)])
@pytest.mark.parametrize("target_mm", [(2.0, 0.5, 0.25), (1.0, 0.8, 0.3), (3.7, 0.21, 0.5)])
def test_resampling_is_linear_on_a_centred_grid_of_that_spacing(
    size: tuple[int, int, int], target_mm: tuple[float, float, float]
) -> None:
    volume = random_volume()
    tensor = preprocess_volume(volume, unchanged(size, spacing_mm=target_mm))[0].numpy()
    axes = [_grid(n, m, t / s) for n, m, t, s in zip(volume.voxels_DHW.shape, size, target_mm, volume.spacing_mm)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"))
    lengths = np.array(volume.voxels_DHW.shape)[:, None, None, None]
    expected = map_coordinates(volume.voxels_DHW.astype(np.float64), points, order=1, mode="nearest")
    is_outside = ((points < -0.5 - 1e-6) | (points > lengths - 0.5 + 1e-6)).any(axis=0)
    expected[is_outside] = volume.voxels_DHW.min()
    np.testing.assert_allclose(tensor, expected, atol=1e-5)


def test_the_same_spacing_crops_and_pads_exactly() -> None:
    volume = random_volume((9, 20, 16))
    spacing_mm = volume.spacing_mm
    assert spacing_mm is not None
    tensor = preprocess_volume(volume, unchanged((13, 10, 16), spacing_mm=spacing_mm))[0].numpy()
    np.testing.assert_array_equal(tensor[2:11], volume.voxels_DHW[:, 5:15])
    np.testing.assert_array_equal(tensor[[0, 1, 11, 12]], volume.voxels_DHW.min())


def test_halving_the_resolution_equals_torchs_resize() -> None:
    volume = random_volume((8, 20, 16), (1.0, 1.0, 1.0))
    tensor = preprocess_volume(volume, unchanged((4, 10, 8), spacing_mm=(2.0, 2.0, 2.0)))
    expected = preprocess_volume(volume, unchanged((4, 10, 8)))
    torch.testing.assert_close(tensor, expected, atol=1e-6, rtol=1e-6)


def test_a_spacing_that_the_volume_lacks_is_refused() -> None:
    volume = random_volume(spacing=None)
    with pytest.raises(InputError, match=r"needs a spacing of \(1.0, 1.0, 1.0\) mm.*set the study key data.spacing_mm"):
        preprocess_volume(volume, unchanged((4, 4, 4), spacing_mm=(1.0, 1.0, 1.0)))


def test_a_grid_that_misses_the_volume_is_refused() -> None:
    volume = random_volume((2, 20, 17), (0.001, 1.0, 1.0))
    with pytest.raises(InputError, match=r"an axis of 2 voxels has no point on a grid whose step is 1000 voxels"):
        preprocess_volume(volume, unchanged((4, 4, 4), spacing_mm=(1.0, 1.0, 1.0)))


def test_zscore_uses_the_population_over_all_voxels() -> None:
    volume = random_volume()
    tensor = preprocess_volume(volume, InputSpec(size=(8, 16, 16)))
    resized = preprocess_volume(volume, unchanged((8, 16, 16))).double()
    expected = (resized - resized.mean()) / resized.std(correction=0)
    torch.testing.assert_close(tensor.double(), expected, atol=1e-6, rtol=1e-6)
    assert abs(float(tensor.double().mean())) < 1e-6
    assert float(tensor.double().std(correction=0)) == pytest.approx(1, abs=1e-6)


def test_zscore_of_large_values_keeps_its_precision() -> None:
    volume = random_volume((8, 16, 16))
    far = Volume(volume.voxels_DHW + np.float32(30000), None)
    tensor = preprocess_volume(far, InputSpec(size=(8, 16, 16)))
    exact = far.voxels_DHW.astype(np.float64)
    np.testing.assert_allclose(tensor[0].numpy(), (exact - exact.mean()) / exact.std(), atol=2e-3)
    assert abs(float(tensor.double().mean())) < 1e-3


@pytest.mark.parametrize(("low", "high", "gamma"), [(0, 99, 0.8), (1, 98.5, 1.0), (12.5, 50, 2.2), (0, 100, 0.5)])
def test_percentiles_are_numpys(low: float, high: float, gamma: float) -> None:
    volume = random_volume()
    spec = PercentileMinMaxGamma(lower_percentile=low, upper_percentile=high, gamma=gamma)
    tensor = preprocess_volume(volume, InputSpec(size=(9, 20, 17), normalisation=spec))
    values = volume.voxels_DHW.astype(np.float64)
    start, stop = np.percentile(values, [low, high])
    expected = ((np.clip(values, start, stop) - start) / (stop - start)) ** gamma
    np.testing.assert_allclose(tensor[0].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["normal", "ties", "sorted", "periodic", "two values"])
def test_percentiles_of_many_values_are_exact(kind: str) -> None:
    """More values than the sample that brackets the rank, some of them made to mislead it."""
    rng = np.random.default_rng(1)
    size = (8, 200, 250)
    values = {
        "normal": lambda: rng.normal(size=size),
        "ties": lambda: rng.integers(0, 5, size=size),
        "sorted": lambda: np.arange(400_000).reshape(size),
        "periodic": lambda: np.tile(np.arange(6), 66_667)[:400_000].reshape(size),
        "two values": lambda: (rng.random(size) < 0.02).astype(float),
    }[kind]().astype(np.float32)
    for percentile in (0, 0.5, 37, 98.5, 99, 100):
        expected = np.percentile(values.astype(np.float64), percentile)
        assert percentiles_of(values, percentile) == pytest.approx([expected], rel=1e-12, abs=1e-12)


def test_window_and_fixed() -> None:
    volume = random_volume()
    size = (9, 20, 17)
    window = preprocess_volume(volume, InputSpec(size=size, normalisation=ClipRange(low=-1, high=2)))
    np.testing.assert_allclose(window[0].numpy(), (np.clip(volume.voxels_DHW, -1, 2) + 1) / 3, atol=1e-6)
    normalisation = FixedMeanStd(value_range=(-4, 4), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    fixed = preprocess_volume(volume, InputSpec(size=size, channels=3, normalisation=normalisation))
    unit = (volume.voxels_DHW.astype(np.float64) + 4) / 8
    for channel, (mean, std) in enumerate(zip((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))):
        np.testing.assert_allclose(fixed[channel].numpy(), (unit - mean) / std, atol=1e-5)


def test_one_grey_channel_is_repeated() -> None:
    tensor = preprocess_volume(random_volume(), InputSpec(size=(4, 8, 8), channels=3))
    assert tensor.shape == (3, 4, 8, 8)
    assert torch.equal(tensor[0], tensor[1])
    assert torch.equal(tensor[0], tensor[2])
    fixed = FixedMeanStd(value_range=(-4, 4), mean=(0.5,), std=(0.5,))
    assert preprocess_volume(random_volume(), InputSpec(size=(4, 8, 8), channels=3, normalisation=fixed)).shape[0] == 3


@pytest.mark.parametrize("normalisation", NORMALISATIONS, ids=lambda n: n.kind)
@pytest.mark.parametrize("spacing_mm", [None, (1.0, 0.7, 0.3)])
def test_the_volume_stays_as_it_was_and_the_bits_do_not_depend_on_threads(
    normalisation: Normalisation, spacing_mm: tuple[float, float, float] | None
) -> None:
    volume = random_volume((16, 61, 83))
    before = volume.voxels_DHW.copy()
    # as large as the volume too: no resize must not mean the volume's own memory
    for size in ((16, 61, 83), (31, 67, 101)):
        spec = InputSpec(size=size, channels=3, normalisation=normalisation, spacing_mm=spacing_mm)
        num_threads = torch.get_num_threads()
        tensors = []
        try:
            for count in (1, 2, 2):
                torch.set_num_threads(count)
                tensors.append(preprocess_volume(volume, spec))
        finally:
            torch.set_num_threads(num_threads)
        assert torch.equal(tensors[0], tensors[1])
        assert torch.equal(tensors[1], tensors[2])
        assert torch.isfinite(tensors[0]).all()
    np.testing.assert_array_equal(volume.voxels_DHW, before)


def test_values_that_cannot_be_normalised() -> None:
    rare = np.zeros((8, 8, 8), np.float32)
    rare[0, 0, 0] = 1
    with pytest.raises(InputError, match=r"percentiles 0 and 99 of the volume are both 0: there is no range"):
        preprocess_volume(Volume(rare, None), InputSpec(size=(8, 8, 8), normalisation=PercentileMinMaxGamma()))
    with pytest.raises(InputError, match=r"constant after the resize"):
        preprocess_volume(Volume(rare, None), InputSpec(size=(1, 1, 1)))


def test_values_that_overflow_are_refused() -> None:
    huge = random_volume().voxels_DHW * np.float32(3e38 / 5)
    narrow = FixedMeanStd(value_range=(0, 1e-3), mean=(0.0,), std=(1.0,))
    with pytest.raises(InputError, match="normalisation fixed gave values that are not finite"):
        preprocess_volume(Volume(huge, None), InputSpec(size=(9, 20, 17), normalisation=narrow))


def test_statistics_and_description() -> None:
    volume = random_volume()
    row = volume_statistics(volume)
    exact = volume.voxels_DHW.astype(np.float64)
    assert (row["depth"], row["height"], row["width"]) == (9, 20, 17)
    assert (row["spacing_d_mm"], row["spacing_h_mm"], row["spacing_w_mm"]) == (2.0, 0.5, 0.25)
    assert row["mean"] == pytest.approx(exact.mean(), rel=1e-12)
    assert row["std"] == pytest.approx(exact.std(), rel=1e-12)
    assert (row["min"], row["max"]) == (exact.min(), exact.max())
    assert volume_statistics(random_volume(spacing=None))["spacing_d_mm"] is None
    description = describe_volume(volume, preprocess_volume(volume, InputSpec(size=(8, 16, 16))))
    assert description["file"]["shape"] == (9, 20, 17)
    assert description["file"]["mean"] == row["mean"]
    assert description["file"]["facts"] == {"format": "made"}
    assert description["encoder"]["shape"] == (1, 8, 16, 16)
    assert description["encoder"]["mean"] == pytest.approx(0, abs=1e-6)
    assert description["encoder"]["std"] == pytest.approx(1, abs=1e-6)
