"""MixUp and CutMix. Oracles: closed forms from the batch itself, timm's box, scipy's Beta distribution."""

import numpy as np
import pytest
import torch
from scipy import stats

from vitreous.core.torchvision_schema import declare_torchvision_schemas
from vitreous.inputs.mixing import cut_box, mix_batch

declare_torchvision_schemas()

from timm.data.mixup import rand_bbox  # noqa: E402

SHAPES = [(6, 3, 12, 10), (6, 3, 1, 12, 10), (6, 1, 5, 12, 10)]


def numbered_batch(shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Row b is b everywhere; its target is one-hot b: a mixture shows who was mixed, where and how much."""
    rows = torch.arange(shape[0], dtype=torch.float64)
    return rows.reshape(-1, *[1] * (len(shape) - 1)).expand(shape).clone(), torch.eye(shape[0], dtype=torch.float64)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(4))
def test_mixup_weighs_rows_as_targets_say(shape: tuple[int, ...], seed: int) -> None:
    x, targets = numbered_batch(shape)
    mixed, soft = mix_batch(x, targets, mixup=1.0, cutmix=0.0, generator=seeded(seed))
    row_numbers = torch.arange(shape[0], dtype=torch.float64)
    expected = (soft @ row_numbers).reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
    torch.testing.assert_close(mixed, expected)
    assert ((soft > 0).sum(1) <= 2).all()
    torch.testing.assert_close(soft.sum(1), torch.ones(shape[0], dtype=torch.float64))
    torch.testing.assert_close(soft.sum(0), torch.ones(shape[0], dtype=torch.float64))  # a permutation pairs the rows


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(8))
def test_cutmix_targets_are_the_share_of_pixels(shape: tuple[int, ...], seed: int) -> None:
    x, targets = numbered_batch(shape)
    mixed, soft = mix_batch(x, targets, mixup=0.0, cutmix=1.0, generator=seeded(seed))
    flat = mixed.flatten(1)
    counted = torch.stack([(flat == row).double().mean(1) for row in range(shape[0])], 1)
    torch.testing.assert_close(soft, counted, atol=1e-12, rtol=0)
    for row in range(shape[0]):
        foreign = (mixed[row, 0] != row).nonzero()
        if len(foreign):
            sides = foreign.amax(0) - foreign.amin(0) + 1
            assert int(sides.prod()) == len(foreign)  # one filled box


def test_box_is_timms_for_images() -> None:
    for seed, share in enumerate(np.linspace(0, 1, 41)):
        np.random.seed(seed)
        expected = rand_bbox((3, 37, 50), share)
        np.random.seed(seed)
        centre = (np.random.randint(0, 37), np.random.randint(0, 50))
        rows, columns = cut_box((37, 50), float(share), centre)
        assert (rows.start, rows.stop, columns.start, columns.stop) == tuple(int(x) for x in expected)


def test_box_of_a_volume_has_the_drawn_volume() -> None:
    box = cut_box((64, 96, 80), 1 - 0.125, (32, 48, 40))
    assert [side.stop - side.start for side in box] == [32, 48, 40]
    assert cut_box((1, 100, 100), 0.75, (0, 50, 50))[0] == slice(0, 1)


@pytest.mark.parametrize("parameter", [0.2, 1.0, 3.0])
def test_shares_follow_the_beta_distribution(parameter: float) -> None:
    x, targets = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1), torch.eye(2)
    generator, shares = seeded(0), []
    while len(shares) < 600:
        _, soft = mix_batch(x, targets, mixup=parameter, cutmix=0.0, generator=generator)
        if soft[0, 1] > 0:  # else the permutation paired each row with itself
            shares.append(float(soft[0, 0]))
    assert stats.kstest(shares, stats.beta(parameter, parameter).cdf).pvalue > 0.001


def test_with_both_on_each_is_taken_in_half_of_the_batches() -> None:
    x, targets = numbered_batch((8, 1, 16, 16))
    generator = seeded(1)
    mixed = (mix_batch(x, targets, mixup=1.0, cutmix=1.0, generator=generator)[0] for _ in range(400))
    cut = sum(bool((batch == batch.round()).all()) for batch in mixed)
    assert stats.binomtest(cut, 400, 0.5).pvalue > 0.001


def test_the_generator_alone_decides() -> None:
    x, targets = numbered_batch(SHAPES[0])
    torch.manual_seed(0)
    first = mix_batch(x, targets, mixup=0.4, cutmix=1.0, generator=seeded(7))
    before = torch.get_rng_state()
    torch.rand(5)
    second = mix_batch(x, targets, mixup=0.4, cutmix=1.0, generator=seeded(7))
    third = mix_batch(x, targets, mixup=0.4, cutmix=1.0, generator=seeded(8))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], third[0])
    torch.manual_seed(0)
    assert torch.equal(before, torch.get_rng_state())  # the first call drew nothing from torch's own stream


def test_off_returns_the_batch_and_draws_nothing() -> None:
    x, targets = numbered_batch(SHAPES[0])
    generator = seeded(3)
    state = generator.get_state()
    mixed, soft = mix_batch(x, targets, mixup=0.0, cutmix=0.0, generator=generator)
    assert mixed is x
    assert soft is targets
    assert torch.equal(generator.get_state(), state)


def test_input_is_not_modified() -> None:
    x, targets = numbered_batch(SHAPES[2])
    kept, kept_targets = x.clone(), targets.clone()
    mix_batch(x, targets, mixup=0.0, cutmix=1.0, generator=seeded(0))
    assert torch.equal(x, kept)
    assert torch.equal(targets, kept_targets)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mixup": -0.1}, "0 or more; got -0.1"),
        ({"x_BCDHW": torch.zeros(6, 3, 4, 4, dtype=torch.uint8)}, r"got torch\.uint8"),
        ({"targets_BC": torch.zeros(6, 6, dtype=torch.int64)}, r"torch\.int64"),
        ({"targets_BC": torch.zeros(5, 6)}, r"\(5, 6\)"),
        ({"x_BCDHW": torch.zeros(6, 3)}, r"got \(6, 3\)"),
    ],
)
def test_wrong_inputs_are_refused(change: dict, message: str) -> None:
    x, targets = numbered_batch(SHAPES[0])
    good = {"x_BCDHW": x, "targets_BC": targets, "mixup": 1.0, "cutmix": 0.0, "generator": seeded(0)}
    mix_batch(**good)
    with pytest.raises(ValueError, match=message):
        mix_batch(**{**good, **change})
