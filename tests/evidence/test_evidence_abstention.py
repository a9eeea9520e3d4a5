"""Abstention against loops over the most confident rows, and over all orders of tied ones."""

from dataclasses import replace
from itertools import pairwise, permutations

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from vitreous.core.predictions import Predictions
from vitreous.core.undefined import Undefined
from vitreous.evidence.abstention import abstention_curve, kept_rows, risk_coverage_area, risk_coverage_interval
from vitreous.evidence.intervals import resample_weights


def made_predictions(patients: int, seed: int, rows_each: int = 1, digits: int = 1) -> Predictions:
    rng = np.random.default_rng(seed)
    ids_N = np.repeat([f"P{n:04d}" for n in range(patients)], rows_each)
    y_N = np.repeat(np.arange(patients) % 3, rows_each)
    logits_NC = np.round(rng.normal(size=(len(y_N), 3)) + 1.3 * np.eye(3)[y_N], digits)
    return Predictions(np.array([f"s{n}" for n in range(len(y_N))]), ids_N, y_N, logits_NC, ("a", "b", "c"))


def literal_area(confidence, wrong) -> float:
    """Mean over all orders that rising confidence allows, by brute force."""
    areas = []
    for order in permutations(range(len(confidence))):
        if all(confidence[i] >= confidence[j] for i, j in pairwise(order)):
            risks = np.cumsum([wrong[i] for i in order]) / np.arange(1, len(order) + 1)
            areas.append(risks.mean())
    return float(np.mean(areas))


@pytest.mark.parametrize("seed", range(20))
def test_risk_coverage_area_is_the_mean_over_orders_of_tied_rows(seed):
    rng = np.random.default_rng(seed)
    rows = 1 + seed % 6
    confidence_N, wrong_N = rng.integers(1, 4, rows) / 4, rng.random(rows) < 0.4
    assert risk_coverage_area(confidence_N, wrong_N) == pytest.approx(literal_area(confidence_N, wrong_N), abs=1e-12)


def test_risk_coverage_area_in_closed_form():
    wrong_N = np.array([True] * 3 + [False] * 7)
    assert risk_coverage_area(np.full(10, 0.5), wrong_N) == pytest.approx(0.3), "useless confidence: the error rate"
    best = sum((k - 7) / k for k in (8, 9, 10)) / 10
    assert risk_coverage_area(np.where(wrong_N, 0.4, 0.9), wrong_N) == pytest.approx(best)
    assert risk_coverage_area(np.linspace(0, 1, 10), wrong_N) == pytest.approx(best)
    assert risk_coverage_area(np.zeros(0), np.zeros(0, dtype=bool)) == Undefined("there are no rows")


def test_area_interval_equals_repeated_rows():
    by_seed = [made_predictions(24, seed, rows_each=2) for seed in (0, 1)]
    weights_RN = resample_weights(by_seed[0].patient_id_N, num_resamples=100, rng=np.random.default_rng(0))
    found = risk_coverage_interval(by_seed, weights_RN)
    rows = [np.repeat(np.arange(48), weights_N) for weights_N in weights_RN]
    areas = [
        np.mean([risk_coverage_area(p.probs_NC.max(1)[r], (p.y_pred_N != p.y_true_N)[r]) for p in by_seed])
        for r in rows
    ]
    assert (found.low, found.high) == (
        pytest.approx(np.percentile(areas, 2.5), abs=1e-12),
        pytest.approx(np.percentile(areas, 97.5), abs=1e-12),
    )


def test_curve_equals_a_loop_over_the_most_confident_rows():
    one = made_predictions(60, 3, rows_each=2, digits=2)
    weights_RN = resample_weights(one.patient_id_N, num_resamples=80, rng=np.random.default_rng(0))
    confidence_N = one.probs_NC.max(1)
    for point in abstention_curve([one], "balanced_accuracy", weights_RN, (0.6, 0.85, 1.0)):
        order = np.argsort(-confidence_N, kind="stable")
        last = confidence_N[order[int(np.ceil(point.asked * 120)) - 1]]
        kept = np.flatnonzero(confidence_N >= last)
        assert point.coverage == pytest.approx(len(kept) / 120)
        assert point.metric.value == pytest.approx(balanced_accuracy_score(one.y_true_N[kept], one.y_pred_N[kept]))
        resampled = []
        for weights_N in weights_RN:
            rows = np.repeat(kept, weights_N[kept])
            resampled.append(balanced_accuracy_score(one.y_true_N[rows], one.y_pred_N[rows]))
        assert point.metric.low == pytest.approx(np.percentile(resampled, 2.5), abs=1e-12)


def test_ties_are_kept_together_in_any_order():
    confidence_N = np.array([0.5, 0.9, 0.5, 0.5, 0.7])
    assert kept_rows(confidence_N, 0.2).tolist() == [False, True, False, False, False]
    assert kept_rows(confidence_N, 0.5).all(), "the third place is tied three times"
    order = [3, 1, 0, 4, 2]
    assert np.array_equal(kept_rows(confidence_N[order], 0.4), kept_rows(confidence_N, 0.4)[order])


def test_a_class_that_falls_silent_leaves_no_mean_over_classes():
    one = made_predictions(30, 0)
    confidence = np.where(one.y_true_N == 2, 0.0, 5.0)
    sure = replace(one, scores_NC=np.stack([confidence, np.zeros(30), np.zeros(30)], axis=1))
    weights_RN = resample_weights(one.patient_id_N, num_resamples=40, rng=np.random.default_rng(0))
    balanced, accuracy = (abstention_curve([sure], m, weights_RN, (0.5,))[0] for m in ("balanced_accuracy", "accuracy"))
    assert balanced.metric.value == balanced.metric.low == Undefined("no row of 'c' is answered")
    assert accuracy.metric.value == 0.5
    assert accuracy.coverage == pytest.approx(2 / 3)
    few = abstention_curve([made_predictions(30, 1, digits=6)], "accuracy", weights_RN, (0.2,))[0]
    assert few.metric.low == Undefined("6 patients; an interval needs at least 10")


def test_bad_coverages_and_metrics_are_refused():
    one = made_predictions(30, 0)
    for bad in (0.0, 1.2):
        with pytest.raises(ValueError, match=r"coverages lie in \(0, 1\]"):
            abstention_curve([one], "accuracy", np.ones((5, 30)), [bad])
    with pytest.raises(ValueError, match="no such metric"):
        abstention_curve([one], "acuracy", np.ones((5, 30)))
    nobody = Predictions(one.sample_id_N[:0], one.patient_id_N[:0], one.y_true_N[:0], one.scores_NC[:0], one.classes)
    assert abstention_curve([nobody], "accuracy", np.ones((5, 0)), [0.5])[0].metric.value == Undefined(
        "there are no rows"
    )
    assert risk_coverage_interval([nobody], np.ones((5, 0))).value == Undefined("there are no rows")
