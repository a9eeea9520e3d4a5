"""Subgroups against the whole pipeline on the group alone; small cells hold no number anywhere."""

from dataclasses import asdict, replace

import numpy as np
import pytest

from vitreous.core.predictions import Predictions
from vitreous.core.undefined import Undefined
from vitreous.evidence.intervals import bootstrap_intervals, resample_weights
from vitreous.evidence.subgroups import NOT_STATED, subgroup_intervals

CLASSES = ("a", "b", "c")


def made_predictions(patients: int, seed: int, rows_each: int = 1) -> Predictions:
    rng = np.random.default_rng(seed)
    ids_N = np.repeat([f"P{n:04d}" for n in range(patients)], rows_each)
    y_N = np.repeat(np.random.default_rng(5).integers(0, 3, patients), rows_each)
    logits_NC = rng.normal(size=(len(y_N), 3)) + np.eye(3)[y_N]
    return Predictions(np.array([f"s{n}" for n in range(len(y_N))]), ids_N, y_N, logits_NC, CLASSES)


def taken(one: Predictions, rows: np.ndarray) -> Predictions:
    return Predictions(
        one.sample_id_N[rows], one.patient_id_N[rows], one.y_true_N[rows], one.scores_NC[rows], one.classes
    )


def test_each_group_equals_scoring_it_alone_on_the_same_draws():
    by_seed = [made_predictions(120, seed, rows_each=2) for seed in (0, 1)]
    group_N = np.repeat(np.array(["site B", "site A", "site A"])[np.arange(120) % 3], 2)
    weights_RN = resample_weights(by_seed[0].patient_id_N, num_resamples=300, rng=np.random.default_rng(0))
    groups = subgroup_intervals(by_seed, group_N, weights_RN)
    assert [(group.name, group.num_patients) for group in groups] == [("site A", 80), ("site B", 40)]
    for group in groups:
        rows = np.flatnonzero(group_N == group.name)
        expected = bootstrap_intervals([taken(one, rows) for one in by_seed], weights_RN[:, rows])
        assert group.metrics == expected
        assert isinstance(group.metrics["recall_b"].low, float)


def test_small_groups_show_no_number_at_all():
    one = made_predictions(100, 0)
    group_N = np.where(np.arange(100) < 19, "rare", "common")
    weights_RN = resample_weights(one.patient_id_N, num_resamples=100, rng=np.random.default_rng(0))
    common, rare = subgroup_intervals([one], group_N, weights_RN)
    hidden = Undefined("fewer than 20 patients")
    assert (common.name, common.num_patients, rare.num_patients) == ("common", 81, hidden)
    for interval in rare.metrics.values():
        assert (interval.value, interval.low, interval.high) == (hidden, hidden, hidden)
    assert "19" not in str(asdict(rare)), "not even the size"
    (_, shown) = subgroup_intervals([one], group_N, weights_RN, min_patients=19)
    assert shown.num_patients == 19


def test_cells_count_patients_not_rows():
    one = made_predictions(10, 0, rows_each=5)
    weights_RN = np.ones((20, 50))
    (group,) = subgroup_intervals([one], np.full(50, "x"), weights_RN)
    assert group.num_patients == Undefined("fewer than 20 patients")


def test_classes_with_few_patients_empty_their_own_cells_and_the_means():
    one = made_predictions(90, 1)
    y_N = np.where(np.arange(90) < 45, np.arange(90) % 3, np.arange(90) % 2)
    y_N[45:49] = 2
    one = replace(one, y_true_N=y_N)
    group_N = np.where(np.arange(90) < 45, "full", "thin")
    weights_RN = resample_weights(one.patient_id_N, num_resamples=200, rng=np.random.default_rng(0))
    full, thin = subgroup_intervals([one], group_N, weights_RN)
    assert isinstance(full.metrics["balanced_accuracy"].low, float)
    few = Undefined("fewer than 5 patients of 'c'")
    for name in ("balanced_accuracy", "auroc", "macro_f1", "recall_c", "precision_c", "f1_c", "auroc_c"):
        assert thin.metrics[name].value == thin.metrics[name].low == few, name
    for name in ("accuracy", "recall_a", "auroc_a"):
        assert isinstance(thin.metrics[name].low, float), name
    lone = replace(one, y_true_N=np.where(np.arange(90) < 4, 1, 0))
    (group,) = subgroup_intervals([lone], np.full(90, "x"), weights_RN, ["auroc_a", "auroc_b", "accuracy"])
    assert group.metrics["auroc_a"].value == Undefined("fewer than 5 patients of a class other than 'a'")
    assert group.metrics["auroc_b"].value == Undefined("fewer than 5 patients of 'b'")
    assert set(group.metrics) == {"auroc_a", "auroc_b", "accuracy"}


def test_rows_without_a_group_are_a_group_and_bad_input_is_refused():
    one = made_predictions(60, 0)
    group_N = np.where(np.arange(60) % 2 == 0, "  ", "x")
    weights_RN = np.ones((20, 60))
    assert [group.name for group in subgroup_intervals([one], group_N, weights_RN)] == [NOT_STATED, "x"]
    with pytest.raises(ValueError, match="got 59 for 60 rows"):
        subgroup_intervals([one], group_N[1:], weights_RN)
    with pytest.raises(ValueError, match="got bounds 0 and 5"):
        subgroup_intervals([one], group_N, weights_RN, min_patients=0)
    with pytest.raises(ValueError, match=r"no such metric: \['acuracy'\]"):
        subgroup_intervals([one], group_N, weights_RN, ["acuracy"])
