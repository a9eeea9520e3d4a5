"""Order, batches and weights of an epoch against what they promise."""

import numpy as np
import pytest
from pixel_training_cases import make_set
from scipy.stats import chisquare

from vitreous.recipes.feature_set import FeatureSet
from vitreous.recipes.pixel_sampling import count_steps, draw_rows, row_weights, split_epoch


def uneven_labels() -> FeatureSet:
    """Class 0 has one participant with one row, class 1 one with one and one with five."""
    ids_N = np.array(["a", "b", "c", "c", "c", "c", "c"])
    weight_N = np.array([1, 1, 0.2, 0.2, 0.2, 0.2, 0.2])
    return FeatureSet(np.zeros((7, 1), np.float32), np.array([0, 1, 1, 1, 1, 1, 1]), ids_N, weight_N)


def test_the_natural_order_is_a_permutation_of_its_own_name() -> None:
    labels = make_set("train").labels
    orders = [
        draw_rows("natural", labels, seed=seed, stage=stage, epoch=epoch)
        for seed, stage, epoch in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    ]
    for order in orders:
        assert sorted(order) == list(range(len(labels.y_N)))
    assert len({tuple(order) for order in orders}) == 4
    np.testing.assert_array_equal(orders[0], draw_rows("natural", labels, seed=0, stage=0, epoch=0))


def test_the_balanced_sampler_draws_class_then_participant_then_row() -> None:
    labels = uneven_labels()
    drawn = np.concatenate([draw_rows("balanced", labels, seed=3, stage=0, epoch=epoch) for epoch in range(600)])
    assert len(drawn) == 600 * 7
    share_N = np.array([1 / 2, 1 / 4, *[1 / 20] * 5])
    assert chisquare(np.bincount(drawn, minlength=7), share_N * len(drawn)).pvalue > 1e-3
    natural = np.concatenate([draw_rows("natural", labels, seed=3, stage=0, epoch=epoch) for epoch in range(600)])
    assert chisquare(np.bincount(natural, minlength=7), share_N * len(natural)).pvalue < 1e-12


def test_weights_count_participants_once() -> None:
    labels, class_weight_C = uneven_labels(), np.array([3.0, 1.0])
    natural_N = row_weights("natural", labels.weight_N, class_weight_C, labels.y_N)
    assert natural_N.tolist() == pytest.approx([3.0, 1.0, *[0.2] * 5])
    balanced_N = row_weights("balanced", labels.weight_N, class_weight_C, labels.y_N)
    assert balanced_N.tolist() == [3.0, *[1.0] * 6], "participants are balanced by the draw already"


@pytest.mark.parametrize(("rows", "size", "accumulate"), [(10, 3, 2), (9, 4, 1), (7, 7, 3), (13, 2, 3)])
def test_batches_tile_the_epoch_and_average_over_a_step(rows: int, size: int, accumulate: int) -> None:
    weight_N = np.random.default_rng(0).uniform(0.1, 1.0, rows)
    order = np.random.default_rng(1).permutation(rows)
    batches = split_epoch(order, weight_N, batch_size=size, accumulate=accumulate)
    np.testing.assert_array_equal(np.concatenate([batch.rows_B for batch in batches]), order)
    assert min(len(batch.rows_B) for batch in batches) > 1, "batch norm cannot learn from one row"
    assert [batch.index for batch in batches] == list(range(len(batches)))
    assert sum(batch.ends_step for batch in batches) == count_steps(rows, size, accumulate) == batches[-1].step + 1
    for step in range(batches[-1].step + 1):
        total = sum(weight_N[batch.rows_B].sum() * batch.scale for batch in batches if batch.step == step)
        assert total == pytest.approx(1.0)
