"""Power against statsmodels and against simulated studies."""

from dataclasses import replace

import numpy as np
import pytest
from statsmodels.stats.power import NormalIndPower

from vitreous.core.predictions import Predictions
from vitreous.core.undefined import Undefined
from vitreous.evidence.intervals import resample_weights
from vitreous.evidence.power import paired_reach, patients_needed, power_of, reach_of_resamples, smallest_difference


@pytest.mark.parametrize("alpha", [0.05, 0.01, 0.05 / 45])
@pytest.mark.parametrize("power", [0.3, 0.8, 0.95])
def test_power_and_smallest_difference_equal_statsmodels(alpha, power):
    """Oracle: a one-sample z test with n = 100 and deviation 1, so that the standard error is 0.1."""
    theirs = NormalIndPower(ddof=0)
    for difference in (0.0, 0.05, 0.3, -0.3):
        expected = theirs.power(difference, 100, alpha, ratio=0)
        assert power_of(difference, 0.1, alpha) == pytest.approx(expected, abs=1e-12)
    effect = theirs.solve_power(nobs1=100, alpha=alpha, power=power, ratio=0)
    assert smallest_difference(0.1, power=power, alpha=alpha) == pytest.approx(
        effect, rel=2e-5
    )  # their root finder stops there
    rows = theirs.solve_power(effect_size=0.2, alpha=alpha, power=power, ratio=0)
    assert patients_needed(-0.2, 0.1, 100, power=power, alpha=alpha) == pytest.approx(rows, abs=1.0, rel=1e-4)


def test_the_needed_number_is_just_enough():
    needed = patients_needed(0.03, 0.02, 150)
    error = 0.02 * np.sqrt(150 / needed)
    assert power_of(0.03, error) >= 0.8
    assert power_of(0.03, 0.02 * np.sqrt(150 / (needed - 1))) < 0.8
    assert smallest_difference(1.0) == pytest.approx(2.8016, abs=1e-4)


def made_pair(patients: int, seed: int, rows_each: int = 1, gain: float = 0.1) -> tuple[Predictions, Predictions]:
    """Two rows of accuracy 0.7 + gain and 0.7 right independently of each other; a patient's rows are alike."""
    rng = np.random.default_rng(seed)
    ids_P = np.array([f"P{n:04d}" for n in range(patients)])
    y_P = rng.integers(0, 2, patients)
    y_N, ids_N = np.repeat(y_P, rows_each), np.repeat(ids_P, rows_each)
    names_N = np.array([f"{name}/{k}" for k, name in enumerate(ids_N)])

    def row(accuracy: float) -> Predictions:
        correct_N = np.repeat(rng.random(patients) < accuracy, rows_each)
        return Predictions(names_N, ids_N, y_N, np.eye(2)[np.where(correct_N, y_N, 1 - y_N)], ("a", "b"))

    return row(0.7 + gain), row(0.7)


@pytest.mark.parametrize("rows_each", [1, 3])
def test_the_standard_error_is_that_of_patients(rows_each):
    first, second = made_pair(400, 0, rows_each)
    weights_RN = resample_weights(first.patient_id_N, num_resamples=3000, rng=np.random.default_rng(0))
    found = paired_reach([first], [second], "accuracy", weights_RN)
    difference_N = (first.y_pred_N == first.y_true_N).astype(float) - (second.y_pred_N == second.y_true_N)
    exact = difference_N[::rows_each].std() / np.sqrt(400)
    assert found.num_patients == 400
    assert found.standard_error == pytest.approx(exact, rel=0.05)
    assert found.smallest == pytest.approx(2.8016 * found.standard_error, rel=1e-4)
    assert found.needed_for_observed == pytest.approx(400 * (found.smallest / found.observed) ** 2, abs=1)


def test_what_has_no_reach_says_why():
    first, second = made_pair(40, 1)
    weights_RN = resample_weights(first.patient_id_N, num_resamples=200, rng=np.random.default_rng(0))
    same = paired_reach([first], [first], "accuracy", weights_RN)
    assert same.observed == 0.0
    assert same.smallest == Undefined("the difference is the same in every resample: its standard error is 0")
    equal = reach_of_resamples(0.0, np.linspace(-1, 1, 99), num_patients=40)
    assert isinstance(equal.smallest, float)
    assert equal.needed_for_observed == Undefined("no difference was observed")
    few = reach_of_resamples(0.1, np.linspace(-1, 1, 99), num_patients=9)
    assert few.smallest == Undefined("9 patients; an interval needs at least 10")
    one_class = replace(first, y_true_N=np.zeros(40, dtype=np.int64))
    missing = paired_reach([one_class], [one_class], "auroc", weights_RN)
    assert "only the class 'a' occurs" in missing.smallest.reason
    with pytest.raises(ValueError, match="not about the same rows"):
        paired_reach([first], [replace(second, y_true_N=1 - second.y_true_N)], "accuracy", weights_RN)


def test_bad_shares_and_numbers_are_refused():
    with pytest.raises(ValueError, match=r"alpha 0.05 and power 0.04"):
        smallest_difference(0.1, power=0.04)
    with pytest.raises(ValueError, match="standard_error must be positive and finite; got 0"):
        smallest_difference(0.0)
    with pytest.raises(ValueError, match="finite and not 0; got 0"):
        patients_needed(0.0, 0.1, 100)
    with pytest.raises(ValueError, match="num_patients must be positive"):
        patients_needed(0.1, 0.1, 0)


@pytest.mark.slow
def test_a_difference_of_the_smallest_size_is_found_in_80_percent_of_studies():
    """600 studies of 300 patients: three standard errors are 5 points."""
    from vitreous.evidence.comparison import compare_with_best

    # per patient the difference of two independent Bernoulli: variance 0.7·0.3 + p(1 − p)
    gain = 0.1
    error = np.sqrt((0.7 * 0.3 + 0.8 * 0.2) / 300)
    found = 0
    for study in range(600):
        first, second = made_pair(300, 100 + study, gain=gain)
        weights_RN = resample_weights(first.patient_id_N, num_resamples=400, rng=np.random.default_rng(study))
        found += compare_with_best({"x": [first], "y": [second]}, "accuracy", weights_RN).is_better("x", "y")
    assert found / 600 == pytest.approx(power_of(gain, error), abs=0.05)
