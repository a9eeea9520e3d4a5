"""Net benefit against counts by scikit-learn's confusion matrix, and in closed form."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from vitreous.core.predictions import Predictions
from vitreous.core.undefined import Undefined
from vitreous.evidence.decision_curve import decision_curve, net_benefit
from vitreous.evidence.intervals import resample_weights


def made_predictions(patients: int, seed: int, rows_each: int = 1) -> Predictions:
    rng = np.random.default_rng(seed)
    ids_N = np.repeat([f"P{n:04d}" for n in range(patients)], rows_each)
    y_N = np.repeat(np.arange(patients) % 3 == 0, rows_each).astype(np.int64)
    prob_N = np.round(np.clip(0.35 + 0.3 * (y_N - 0.4) + 0.2 * rng.normal(size=len(y_N)), 0, 1), 2)
    probs_NC = np.stack([1 - prob_N, prob_N], axis=1)
    return Predictions(ids_N, ids_N, y_N, probs_NC, ("a", "b"), is_per_patient=True)


def counted(y, called, threshold) -> float:
    """Vickers and Elkin (2006): TP/n − FP/n · pt/(1 − pt)."""
    (_, false), (_, true) = confusion_matrix(y, called, labels=[False, True])
    return true / len(y) - false / len(y) * threshold / (1 - threshold)


def test_curve_equals_counting_on_repeated_rows():
    by_seed = [made_predictions(36, seed, rows_each=2) for seed in (0, 1)]
    thresholds = (0.05, 0.3, 0.5, 0.8)
    weights_RN = resample_weights(by_seed[0].patient_id_N, num_resamples=40, rng=np.random.default_rng(0))
    points = decision_curve(by_seed, "b", weights_RN, thresholds)
    y_N = by_seed[0].y_true_N == 1
    for point in points:
        t = point.threshold
        called = [one.probs_NC[:, 1] >= t for one in by_seed]
        assert point.model.value == pytest.approx(np.mean([counted(y_N, c, t) for c in called]), abs=1e-12)
        assert point.model.value == pytest.approx(np.mean([net_benefit(c, y_N, t) for c in called]), abs=1e-12)
        assert point.treat_all.value == pytest.approx(1 / 3 - 2 / 3 * t / (1 - t), abs=1e-12)
        rows = [np.repeat(np.arange(72), weights_N) for weights_N in weights_RN]
        model = np.array([np.mean([counted(y_N[r], c[r], t) for c in called]) for r in rows])
        everybody = np.array([counted(y_N[r], np.ones(len(r), dtype=bool), t) for r in rows])
        default = everybody if point.treat_all.value > 0 else 0.0
        for interval, values in ((point.model, model), (point.treat_all, everybody), (point.gain, model - default)):
            low, high = np.percentile(values, [2.5, 97.5])
            assert (interval.low, interval.high) == (pytest.approx(low, abs=1e-12), pytest.approx(high, abs=1e-12))


def test_a_perfect_model_gains_the_prevalence_and_a_constant_one_nothing():
    one = made_predictions(60, 2)
    weights_RN = resample_weights(one.patient_id_N, num_resamples=100, rng=np.random.default_rng(0))
    perfect = replace(one, scores_NC=np.eye(2)[one.y_true_N])
    assert [point.model.value for point in decision_curve([perfect], "b", weights_RN)] == pytest.approx([1 / 3] * 99)
    constant = replace(one, scores_NC=np.tile([2 / 3, 1 / 3], (60, 1)))
    for point in decision_curve([constant], "b", weights_RN, (0.2, 0.6)):
        assert point.gain.value == pytest.approx(0.0, abs=1e-12)


def test_bad_thresholds_are_refused_and_no_rows_undefined():
    one = made_predictions(30, 0)
    for bad in (0.0, 1.0, -0.5, float("nan")):
        with pytest.raises(ValueError, match="threshold probabilities lie between 0 and 1"):
            decision_curve([one], "b", np.ones((5, 30)), [bad])
    with pytest.raises(ValueError, match="no class 'x'"):
        decision_curve([one], "x", np.ones((5, 30)))
    nobody = Predictions(
        one.sample_id_N[:0], one.patient_id_N[:0], one.y_true_N[:0], one.scores_NC[:0], one.classes, True
    )
    (point,) = decision_curve([nobody], "b", np.ones((5, 0)), [0.5])
    assert point.model.value == point.gain.low == Undefined("there are no rows")
