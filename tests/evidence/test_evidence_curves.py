"""ROC and precision-recall curves against scikit-learn, with and without weights."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from vitreous.core.predictions import Predictions
from vitreous.core.undefined import Undefined
from vitreous.evidence.curves import average_precision, curve_points, precision_recall_band, roc_band
from vitreous.evidence.intervals import resample_weights


def made_predictions(patients: int, seed: int, rows_each: int = 1, digits: int = 1) -> Predictions:
    rng = np.random.default_rng(seed)
    ids_N = np.repeat([f"P{n:04d}" for n in range(patients)], rows_each)
    y_N = np.repeat(np.arange(patients) % 3, rows_each)
    logits_NC = np.round(rng.normal(size=(len(y_N), 3)) + np.eye(3)[y_N], digits)
    probs_NC = np.round(np.exp(logits_NC) / np.exp(logits_NC).sum(1, keepdims=True), digits + 1)
    return Predictions(ids_N, ids_N, y_N, probs_NC, ("a", "b", "c"), is_per_patient=True)


@pytest.mark.parametrize("seed", range(10))
def test_points_equal_scikit_learn(seed):
    one = made_predictions(15 + 9 * seed, seed, digits=1 + seed % 3)
    y_N, prob_N = one.y_true_N == 1, one.probs_NC[:, 1]
    points = curve_points(one, "b")
    fpr, tpr, thresholds = roc_curve(y_N, prob_N, drop_intermediate=False)
    np.testing.assert_allclose(points.false_positive_rate_K, fpr[1:], atol=1e-12)
    np.testing.assert_allclose(points.sensitivity_K, tpr[1:], atol=1e-12)
    np.testing.assert_array_equal(points.threshold_K, thresholds[1:])
    precision, recall, _ = precision_recall_curve(y_N, prob_N, drop_intermediate=False)
    np.testing.assert_allclose(points.precision_K, precision[-2::-1], atol=1e-12)
    np.testing.assert_allclose(points.sensitivity_K, recall[-2::-1], atol=1e-12)
    np.testing.assert_allclose(points.called_K, [(prob_N >= t).mean() for t in points.threshold_K])


def test_roc_band_equals_scikit_learn_on_weights():
    by_seed = [made_predictions(45, seed, rows_each=2) for seed in (0, 1)]
    weights_RN = resample_weights(by_seed[0].patient_id_N, num_resamples=60, rng=np.random.default_rng(0))
    grid = np.linspace(0, 1, 23)
    band = roc_band(by_seed, "b", weights_RN, grid.tolist())

    def curve(weights_N):
        curves = []
        for one in by_seed:
            rows = np.repeat(np.arange(90), weights_N)
            fpr, tpr, _ = roc_curve(one.y_true_N[rows] == 1, one.probs_NC[rows, 1], drop_intermediate=False)
            curves.append([max(tpr[fpr == x]) if (fpr == x).any() else np.interp(x, fpr, tpr) for x in grid])
        return np.mean(curves, axis=0)

    np.testing.assert_allclose(band.y_T, curve(np.ones(90, dtype=int)), atol=1e-12)
    resampled = np.array([curve(weights_N) for weights_N in weights_RN])
    low_T, high_T = np.percentile(resampled, [2.5, 97.5], axis=0)
    np.testing.assert_allclose([bound.low for bound in band.bounds], low_T, atol=1e-12)
    np.testing.assert_allclose([bound.high for bound in band.bounds], high_T, atol=1e-12)


def test_a_fine_grid_holds_the_area():
    one = made_predictions(90, 3, digits=2)
    band = roc_band([one], "a", np.ones((1, 90)), np.linspace(0, 1, 4001).tolist())
    assert auc(band.x_T, band.y_T) == pytest.approx(roc_auc_score(one.y_true_N == 0, one.probs_NC[:, 0]), abs=2e-3)


def test_precision_recall_band_and_average_precision_equal_scikit_learn_on_weights():
    one = made_predictions(45, 4, rows_each=2)
    weights_RN = resample_weights(one.patient_id_N, num_resamples=60, rng=np.random.default_rng(0))
    grid = np.linspace(0.05, 1, 17)
    band = precision_recall_band([one], "c", weights_RN, grid.tolist())
    interval = average_precision([one], "c", weights_RN)

    def curve(weights_N):
        rows = np.repeat(np.arange(90), weights_N)
        y, prob = one.y_true_N[rows] == 2, one.probs_NC[rows, 2]
        precision, recall, _ = precision_recall_curve(y, prob, drop_intermediate=False)
        # recall falls along scikit-learn's curve: the last point that still reaches x has the highest threshold
        at = [precision[np.flatnonzero(recall >= x - 1e-12)[-1]] for x in grid]
        return [*at, average_precision_score(y, prob)]

    own = curve(np.ones(90, dtype=int))
    np.testing.assert_allclose(band.y_T, own[:-1], atol=1e-12)
    assert interval.value == pytest.approx(own[-1], abs=1e-12)
    low, high = np.percentile([curve(weights_N) for weights_N in weights_RN], [2.5, 97.5], axis=0)
    np.testing.assert_allclose([bound.low for bound in band.bounds], low[:-1], atol=1e-12)
    np.testing.assert_allclose([bound.high for bound in band.bounds], high[:-1], atol=1e-12)
    assert (interval.low, interval.high) == (pytest.approx(low[-1]), pytest.approx(high[-1]))


def test_blocks_do_not_change_a_bit(monkeypatch):
    one = made_predictions(30, 5)
    weights_RN = resample_weights(one.patient_id_N, num_resamples=50, rng=np.random.default_rng(0))
    whole = roc_band([one], "b", weights_RN), average_precision([one], "b", weights_RN)
    monkeypatch.setattr("vitreous.evidence.curves._BLOCK_ELEMENTS", 210)
    pieces = roc_band([one], "b", weights_RN), average_precision([one], "b", weights_RN)
    assert whole[0].bounds == pieces[0].bounds
    assert whole[1] == pieces[1]


def test_one_sided_rows_have_no_curve():
    one = made_predictions(30, 0)
    weights_RN = np.ones((5, 30))
    none, every = (replace(one, y_true_N=np.full(30, c)) for c in (0, 1))
    assert curve_points(none, "b") == roc_band([none], "b", weights_RN) == Undefined("there are no rows of 'b'")
    assert average_precision([none], "b", weights_RN).value == Undefined("there are no rows of 'b'")
    assert precision_recall_band([every], "b", weights_RN) == Undefined("all rows are of 'b'; a curve needs others")
    with pytest.raises(ValueError, match=r"grid points lie in \[0, 1\]"):
        roc_band([one], "b", weights_RN, [0.5, 1.5])
    with pytest.raises(ValueError, match=r"recalls lie in \(0, 1\]"):
        precision_recall_band([one], "b", weights_RN, [0.0, 0.5])
    with pytest.raises(ValueError, match="no class 'x'"):
        curve_points(one, "x")
