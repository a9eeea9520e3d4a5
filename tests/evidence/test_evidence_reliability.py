"""Reliability curves against scikit-learn's calibration_curve and loops over repeated rows."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from vitreous.core.predictions import Predictions
from vitreous.core.undefined import Undefined
from vitreous.evidence.calibration import expected_calibration_error
from vitreous.evidence.intervals import resample_weights
from vitreous.evidence.reliability import assign_width_bins, reliability_curve


def made_predictions(patients: int, seed: int, rows_each: int = 1, digits: int = 6) -> Predictions:
    rng = np.random.default_rng(seed)
    ids_N = np.repeat([f"P{n:04d}" for n in range(patients)], rows_each)
    y_N = np.repeat(np.arange(patients) % 2, rows_each)
    prob_N = np.round(1 / (1 + np.exp(-(1.5 * (y_N - 0.5) + rng.normal(size=len(y_N))))), digits)
    return Predictions(ids_N, ids_N, y_N, np.stack([1 - prob_N, prob_N], axis=1), ("a", "b"), is_per_patient=True)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("binning", "strategy"), [("equal_width", "uniform"), ("equal_mass", "quantile")])
def test_curve_equals_scikit_learn(seed, binning, strategy):
    one = made_predictions(200, seed, digits=2 if binning == "equal_width" else 9)
    weights_RN = np.ones((20, 200))
    curve = reliability_curve([one], weights_RN, positive="b", binning=binning, num_bins=8)
    observed_B, mean_B = calibration_curve(one.y_true_N, one.probs_NC[:, 1], n_bins=8, strategy=strategy)
    assert [point.observed.value for point in curve] == pytest.approx(observed_B.tolist(), abs=1e-12)
    assert [point.mean_probability for point in curve] == pytest.approx(mean_B.tolist(), abs=1e-12)
    assert sum(point.num_rows for point in curve) == 200
    assert all(point.low <= point.mean_probability <= point.high for point in curve)


def test_bins_of_the_predicted_class_add_up_to_the_ece():
    one = made_predictions(150, 7)
    curve = reliability_curve([one], np.ones((20, 150)), num_bins=10)
    total = sum(point.num_rows * abs(point.observed.value - point.mean_probability) for point in curve) / 150
    assert total == pytest.approx(expected_calibration_error(one.probs_NC, one.y_true_N, 10), abs=1e-12)


def test_seeds_are_pooled_and_patients_drawn_whole():
    by_seed = [made_predictions(40, seed, rows_each=2) for seed in (0, 1)]
    weights_RN = resample_weights(by_seed[0].patient_id_N, num_resamples=200, rng=np.random.default_rng(0))
    curve = reliability_curve(by_seed, weights_RN, positive="b", binning="equal_width", num_bins=3)
    prob_N, y_N = np.concatenate([one.probs_NC[:, 1] for one in by_seed]), np.tile(by_seed[0].y_true_N, 2)
    assert len(curve) == 3
    for b, point in enumerate(curve):
        members = np.flatnonzero((prob_N > b / 3) & (prob_N <= (b + 1) / 3))
        resampled = []
        for weights_N in weights_RN:
            rows = [n for n in members for _ in range(int(weights_N[n % 80]))]
            resampled.append(np.mean(y_N[rows]))
        assert point.num_rows == len(members)
        assert point.num_patients == len({by_seed[0].patient_id_N[n % 80] for n in members.tolist()})
        assert point.observed.low == pytest.approx(np.percentile(resampled, 2.5), abs=1e-12)


def test_thin_bins_have_no_bounds_and_bounds_belong_below():
    one = made_predictions(30, 0)
    curve = reliability_curve([one], np.ones((20, 30)), binning="equal_mass", num_bins=5)
    assert {point.observed.low for point in curve} == {Undefined("6 patients; an interval needs at least 10")}
    assert assign_width_bins(np.array([0.0, 0.25, 0.26, 0.5, 1.0]), 4).tolist() == [0, 0, 1, 1, 3]


def test_bad_bins_are_refused_and_no_rows_undefined():
    one = made_predictions(30, 0)
    for binning in ("equal_mass", "equal_width"):
        with pytest.raises(ValueError, match="num_bins must be at least 1; got 0"):
            reliability_curve([one], np.ones((5, 30)), binning=binning, num_bins=0)
    with pytest.raises(ValueError, match=r"probabilities lie in \[0, 1\]"):
        assign_width_bins(np.array([0.5, 1.5]), 4)
    with pytest.raises(ValueError, match="no class 'x'"):
        reliability_curve([one], np.ones((5, 30)), positive="x")
    with pytest.raises(ValueError, match="not about the same rows"):
        reliability_curve([one, replace(one, y_true_N=1 - one.y_true_N)], np.ones((5, 30)))
    nobody = Predictions(
        one.sample_id_N[:0], one.patient_id_N[:0], one.y_true_N[:0], one.scores_NC[:0], one.classes, True
    )
    assert reliability_curve([nobody], np.ones((5, 0))) == Undefined("there are no rows")
