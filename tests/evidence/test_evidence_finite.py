"""A score that is NaN or infinite is refused by name wherever it would quietly be "below the threshold"."""

from dataclasses import replace

import numpy as np
import pytest

from vitreous.core.predictions import Predictions
from vitreous.evidence.abstention import abstention_curve, risk_coverage_interval
from vitreous.evidence.bca import bootstrap_intervals_with_bca
from vitreous.evidence.curves import average_precision, curve_points, precision_recall_band, roc_band
from vitreous.evidence.decision_curve import decision_curve
from vitreous.evidence.delong import delong_auroc
from vitreous.evidence.operating_points import Threshold, apply_thresholds, choose_threshold
from vitreous.evidence.reliability import reliability_curve
from vitreous.evidence.subgroups import subgroup_intervals

WEIGHTS = np.ones((10, 30))
POINT = Threshold(0.5, "b", "youden", None, 1.0, 1.0)
USES = {
    "abstention_curve": lambda one: abstention_curve([one], "accuracy", WEIGHTS),
    "risk_coverage": lambda one: risk_coverage_interval([one], WEIGHTS),
    "bca": lambda one: bootstrap_intervals_with_bca([one], WEIGHTS, names=["auroc"]),
    "points": lambda one: curve_points(one, "b"),
    "roc": lambda one: roc_band([one], "b", WEIGHTS),
    "precision_recall": lambda one: precision_recall_band([one], "b", WEIGHTS),
    "average_precision": lambda one: average_precision([one], "b", WEIGHTS),
    "decision_curve": lambda one: decision_curve([one], "b", WEIGHTS),
    "delong": lambda one: delong_auroc([one], "b"),
    "choose": lambda one: choose_threshold(one, "b", "youden"),
    "apply": lambda one: apply_thresholds([one], [POINT], WEIGHTS),
    "reliability": lambda one: reliability_curve([one], WEIGHTS),
    "reliability_of_class": lambda one: reliability_curve([one], WEIGHTS, positive="b"),
    "subgroups": lambda one: subgroup_intervals([one], np.full(30, "x"), WEIGHTS, ["accuracy"]),
}


@pytest.mark.parametrize("name", USES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_refused(name, bad):
    ids_N = np.array([f"P{n:02d}" for n in range(30)])
    prob_N = np.random.default_rng(0).random(30)
    one = Predictions(ids_N, ids_N, np.arange(30) % 2, np.stack([1 - prob_N, prob_N], axis=1), ("a", "b"), True)
    assert USES[name](one) is not None
    spoilt_NC = one.scores_NC.copy()
    spoilt_NC[7] = bad
    with pytest.raises(ValueError, match="must be finite; 1 of 30 rows"):
        USES[name](replace(one, scores_NC=spoilt_NC))
