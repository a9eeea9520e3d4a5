"""BCa against SciPy on one row per patient, and against a loop over drawn patients on several."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import balanced_accuracy_score

from vitreous.core.predictions import Predictions
from vitreous.core.undefined import Undefined
from vitreous.evidence.bca import (
    bca_interval,
    bootstrap_intervals_with_bca,
    jackknife_acceleration,
    leave_one_out_weights,
)
from vitreous.evidence.intervals import bootstrap_intervals, resample_weights

CLASSES = ("a", "b", "c")


def made_predictions(patients: int, seed: int, *, skill: float = 1.5, most_rows: int = 1) -> Predictions:
    rng = np.random.default_rng(seed)
    label_P = np.arange(patients) % 3
    rows_P = rng.integers(1, most_rows + 1, patients)
    y_N = np.repeat(label_P, rows_P)
    ids_N = np.repeat([f"P{p:03d}" for p in range(patients)], rows_P)
    logits_NC = rng.normal(size=(len(y_N), 3)) + skill * np.eye(3)[y_N]
    return Predictions(np.array([f"s{n}" for n in range(len(y_N))]), ids_N, y_N, logits_NC, CLASSES)


@pytest.mark.parametrize(("seed", "skill", "level"), [(0, 0.5, 0.95), (1, 1.5, 0.9), (2, 3.0, 0.95), (3, 2.5, 0.8)])
def test_bca_equals_scipy_where_each_patient_has_one_row(seed, skill, level):
    one = made_predictions(60, seed, skill=skill)
    weights_RN = resample_weights(one.patient_id_N, num_resamples=999, rng=np.random.default_rng(seed))
    found = bootstrap_intervals_with_bca([one], weights_RN, level, ["accuracy"])["accuracy"]
    correct_N = (one.y_pred_N == one.y_true_N).astype(float)
    # SciPy counts ties with == : its mean and our resamples must be the same numbers, so both are made of whole counts
    distribution = SimpleNamespace(bootstrap_distribution=(weights_RN @ correct_N.astype(int)) / 60)
    expected = stats.bootstrap(
        (correct_N,),
        lambda x, axis: x.sum(axis) / x.shape[axis],
        n_resamples=0,
        confidence_level=level,
        method="BCa",
        bootstrap_result=distribution,
    ).confidence_interval
    assert (found.bca.low, found.bca.high) == (
        pytest.approx(expected.low, abs=1e-12),
        pytest.approx(expected.high, abs=1e-12),
    )
    assert found.percentile == bootstrap_intervals([one], weights_RN, level, ["accuracy"])["accuracy"]


def test_a_skewed_mean_equals_scipy_and_the_two_intervals_differ():
    values_N = np.random.default_rng(0).lognormal(sigma=1.2, size=40)
    result = stats.bootstrap((values_N,), np.mean, n_resamples=2000, method="BCa", rng=np.random.default_rng(1))
    jackknife_P = np.array([np.delete(values_N, n).mean() for n in range(40)])
    found = bca_interval(values_N.mean(), result.bootstrap_distribution, jackknife_P)
    assert found.bca.low == pytest.approx(result.confidence_interval.low, rel=1e-12)
    assert found.bca.high == pytest.approx(result.confidence_interval.high, rel=1e-12)
    assert found.bca.low > found.percentile.low
    assert found.bca.high > found.percentile.high, "a right-skewed mean: both bounds move up"


def test_bca_of_several_rows_and_seeds_equals_a_loop_over_patients():
    by_seed = [made_predictions(24, 5, most_rows=4), made_predictions(24, 5, most_rows=4, skill=0.8)]
    one = by_seed[0]
    weights_RN = resample_weights(one.patient_id_N, num_resamples=200, rng=np.random.default_rng(3))
    found = bootstrap_intervals_with_bca(by_seed, weights_RN, names=["balanced_accuracy"])["balanced_accuracy"]

    def score(rows):
        return np.mean([balanced_accuracy_score(p.y_true_N[rows], p.y_pred_N[rows]) for p in by_seed])

    value = score(np.arange(len(one.y_true_N)))
    resampled = np.array([score(np.repeat(np.arange(len(w)), w)) for w in weights_RN])
    left_out = np.array([score(np.flatnonzero(one.patient_id_N != p)) for p in sorted(set(one.patient_id_N))])
    below = np.sum(resampled < value - 1e-9) + 0.5 * np.sum(np.abs(resampled - value) <= 1e-9)
    z0 = stats.norm.ppf(below / 200)
    d = left_out.mean() - left_out
    a = np.mean(d**3) / (6 * np.mean(d**2) ** 1.5 * np.sqrt(len(d)))
    assert found.bias == pytest.approx(z0, abs=1e-12)
    assert found.acceleration == pytest.approx(a, abs=1e-12)
    for bound, q in ((found.bca.low, 0.025), (found.bca.high, 0.975)):
        z = z0 + stats.norm.ppf(q)
        assert bound == pytest.approx(np.percentile(resampled, 100 * stats.norm.cdf(z0 + z / (1 - a * z))), abs=1e-12)


def test_leaving_out_a_patient_leaves_out_all_rows():
    ids_N = np.array(["b", "a", "b", "c"])
    np.testing.assert_array_equal(leave_one_out_weights(ids_N), [[1, 0, 1, 1], [0, 1, 0, 1], [1, 1, 1, 0]])
    assert leave_one_out_weights(ids_N[:0]).shape == (0, 0)


def test_without_errors_the_percentile_interval_stands_alone():
    one = made_predictions(30, 0)
    one = replace(one, scores_NC=10 * np.eye(3)[one.y_true_N])
    weights_RN = resample_weights(one.patient_id_N, num_resamples=100, rng=np.random.default_rng(0))
    found = bootstrap_intervals_with_bca([one], weights_RN, names=["accuracy"])["accuracy"]
    assert (found.percentile.low, found.percentile.high) == (1.0, 1.0)
    assert found.bca.value == 1.0
    assert found.bca.low == Undefined("the value is the same whichever patient is left out: no acceleration")


def test_what_has_no_bca_interval_says_why():
    values_R, jackknife_P = np.linspace(0, 1, 100), np.linspace(0.4, 0.6, 20)
    assert isinstance(bca_interval(0.5, values_R, jackknife_P).bca.low, float)
    beyond = bca_interval(2.0, values_R, jackknife_P)
    assert (
        beyond.bca.low
        == beyond.bias
        == Undefined("all resamples lie on one side of the value: its bias cannot be told")
    )
    lost = bca_interval(0.5, values_R, np.r_[np.nan, jackknife_P]).bca.high
    assert lost == Undefined("without any one of 1 patients the metric is undefined: no acceleration")
    few = bca_interval(0.5, values_R, jackknife_P[:9])
    assert few.bca.low == few.percentile.low == Undefined("9 patients; an interval needs at least 10")
    none = Undefined("there are no rows")
    assert bca_interval(none, np.full(5, np.nan), jackknife_P).bca.value == none
    one_rules_P = np.r_[np.zeros(400), -1.0]
    assert jackknife_acceleration(one_rules_P) == pytest.approx(1 / 6, rel=0.01)  # as far as skewness goes
    strong = bca_interval(0.99995, np.linspace(0, 1, 10_000), one_rules_P, 0.99999).bca.high
    assert isinstance(strong, Undefined)
    assert strong.reason == "an acceleration of 0.17 is too strong for a BCa interval"
    with pytest.raises(ValueError, match="between 0 and 1; got 95"):
        bca_interval(0.5, values_R, jackknife_P, 95)
