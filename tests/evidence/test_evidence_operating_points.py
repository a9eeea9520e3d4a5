"""Operating points against scikit-learn's ROC points and loops over repeated rows."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import precision_score, recall_score, roc_curve

from vitreous.core.predictions import Predictions
from vitreous.core.undefined import Undefined
from vitreous.evidence.intervals import resample_weights
from vitreous.evidence.operating_points import Threshold, apply_thresholds, choose_threshold


def made_predictions(patients: int, seed: int, *, classes: int = 2, digits: int = 2, rows_each: int = 1) -> Predictions:
    rng = np.random.default_rng(seed)
    ids_N = np.repeat([f"P{n:04d}" for n in range(patients)], rows_each)
    y_N = np.repeat(np.arange(patients) % classes, rows_each)
    logits = rng.normal(size=(len(y_N), classes)) + 1.2 * np.eye(classes)[y_N]
    probs_NC = np.round(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), digits)
    return Predictions(ids_N, ids_N, y_N, probs_NC, ("a", "b", "c")[:classes], is_per_patient=True)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("classes", [2, 3])
def test_thresholds_are_the_best_of_scikit_learns_roc_points(seed, classes):
    val = made_predictions(20 + 7 * seed, seed, classes=classes, digits=1 + seed % 3)
    fpr, tpr, thresholds = roc_curve(val.y_true_N == 1, val.probs_NC[:, 1], drop_intermediate=False)
    fpr, tpr, thresholds = fpr[1:], tpr[1:], thresholds[1:]  # the first calls nobody
    youden = choose_threshold(val, "b", "youden")
    assert youden.val_sensitivity + youden.val_specificity == pytest.approx((tpr - fpr).max() + 1, abs=1e-12)
    assert youden.value == min(thresholds[np.isclose(tpr - fpr, (tpr - fpr).max(), atol=1e-12, rtol=0)])
    for target in (0.7, 0.8, 0.95):
        at = choose_threshold(val, "b", "at_specificity", target)
        allowed = 1 - fpr >= target - 1e-12
        if allowed.any():
            assert at.val_sensitivity == pytest.approx(tpr[allowed].max())
            best = allowed & np.isclose(tpr, tpr[allowed].max(), atol=1e-12, rtol=0)
            assert at.value == thresholds[best].max()
        else:
            assert isinstance(at, Undefined)
        at = choose_threshold(val, "b", "at_sensitivity", target)
        allowed = tpr >= target - 1e-12
        assert at.val_specificity == pytest.approx(1 - fpr[allowed].min())
        best = allowed & np.isclose(fpr, fpr[allowed].min(), atol=1e-12, rtol=0)
        assert at.value == thresholds[best].min()


def test_frozen_thresholds_on_test_equal_scikit_learn_on_repeated_rows():
    by_seed = [made_predictions(40, seed, rows_each=2) for seed in (3, 4)]
    thresholds = [choose_threshold(made_predictions(60, seed), "b", "youden") for seed in (5, 6)]
    weights_RN = resample_weights(by_seed[0].patient_id_N, num_resamples=50, rng=np.random.default_rng(0))
    found = apply_thresholds(by_seed, thresholds, weights_RN)

    def scores(rows):
        values = []
        for one, threshold in zip(by_seed, thresholds):
            y, called = one.y_true_N[rows] == 1, one.probs_NC[rows, 1] >= threshold.value
            values.append(
                [
                    recall_score(y, called),
                    recall_score(~y, ~called),
                    precision_score(y, called),
                    precision_score(~y, ~called),
                    called.mean(),
                ]
            )
        return np.mean(values, axis=0)

    own = scores(np.arange(80))
    resampled = np.array([scores(np.repeat(np.arange(80), weights_N)) for weights_N in weights_RN])
    shown = [found.sensitivity, found.specificity, found.ppv, found.npv, found.called]
    for k, interval in enumerate(shown):
        low, high = np.percentile(resampled[:, k], [2.5, 97.5])
        assert interval.value == pytest.approx(own[k], abs=1e-12)
        assert (interval.low, interval.high) == (pytest.approx(low, abs=1e-12), pytest.approx(high, abs=1e-12))


def test_cells_without_rows_say_why():
    test = made_predictions(30, 0)
    weights_RN = resample_weights(test.patient_id_N, num_resamples=50, rng=np.random.default_rng(0))
    never = Threshold(2.0, "b", "youden", None, 1.0, 1.0)
    found = apply_thresholds([test], [never], weights_RN)
    assert found.ppv.value == found.ppv.low == Undefined("nobody is called positive")
    assert (found.sensitivity.value, found.specificity.value, found.called.value) == (0.0, 1.0, 0.0)
    always = apply_thresholds([test], [replace(never, value=0.0)], weights_RN)
    assert always.npv.value == Undefined("everybody is called positive")
    healthy = replace(test, y_true_N=np.zeros(30, dtype=np.int64))
    assert apply_thresholds([healthy], [never], weights_RN).sensitivity.value == Undefined("there are no rows of 'b'")
    assert choose_threshold(healthy, "b", "youden") == Undefined(
        "a threshold needs val rows of 'b' and others; got 0 and 30"
    )
    same = replace(test, scores_NC=np.tile([0.4, 0.6], (30, 1)))
    assert choose_threshold(same, "b", "youden").value == 0.6
    assert "one that calls nobody" in choose_threshold(same, "b", "at_specificity", 0.9).reason


def test_bad_rules_and_rows_are_refused():
    one = made_predictions(30, 0)
    weights_RN = np.ones((5, 30))
    point = choose_threshold(one, "b", "youden")
    with pytest.raises(ValueError, match=r"the rule youden has no target; got 0.9"):
        choose_threshold(one, "b", "youden", 0.9)
    for target in (None, 0.0, 90):
        with pytest.raises(ValueError, match=r"needs a target in \(0, 1\]"):
            choose_threshold(one, "b", "at_specificity", target)
    with pytest.raises(ValueError, match="no class 'c'"):
        choose_threshold(one, "c", "youden")
    with pytest.raises(ValueError, match="got 1 for 2 seeds"):
        apply_thresholds([one, one], [point], weights_RN)
    with pytest.raises(ValueError, match="differ in class, rule or target"):
        apply_thresholds([one, one], [point, replace(point, positive="a")], weights_RN)
