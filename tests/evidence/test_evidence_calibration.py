"""Calibration against loops, closed forms, scikit-learn, and torch's optimiser for the temperature."""

import numpy as np
import pytest
import torch
from sklearn.metrics import brier_score_loss, log_loss

from vitreous.core.predictions import Predictions
from vitreous.core.undefined import Undefined
from vitreous.evidence.calibration import (
    assign_bins,
    brier_score,
    calibrated_error,
    calibration_intervals,
    divide_patients,
    expected_calibration_error,
    fit_scored_temperature,
    fit_temperature,
    negative_log_likelihood,
    restrict,
    scale_predictions,
)
from vitreous.evidence.intervals import resample_weights


def made_logits(rows: int = 200, sharpness: float = 3.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from softmax(logits / sharpness): the best temperature is near `sharpness`."""
    rng = np.random.default_rng(seed)
    logits_NC = rng.normal(size=(rows, 4)) * 1.5
    probs_NC = torch.softmax(torch.tensor(logits_NC), 1).numpy()
    y_N = np.array([rng.choice(4, p=p_C) for p_C in probs_NC])
    return logits_NC * sharpness, y_N


def softmax(logits_NC: np.ndarray) -> np.ndarray:
    return torch.softmax(torch.tensor(logits_NC), 1).numpy()


def loop_ece(probs_NC: np.ndarray, y_N: np.ndarray, num_bins: int) -> float:
    """Second implementation: sort, cut into equal parts, add up; confidences must differ."""
    rows = sorted(range(len(y_N)), key=lambda i: max(probs_NC[i]))
    bins: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        bins.setdefault(int(place * num_bins / len(rows)), []).append(row)
    total = 0.0
    for members in bins.values():
        confidence = sum(max(probs_NC[i]) for i in members) / len(members)
        accuracy = sum(list(probs_NC[i]).index(max(probs_NC[i])) == y_N[i] for i in members) / len(members)
        total += len(members) / len(rows) * abs(accuracy - confidence)
    return total


@pytest.mark.parametrize("num_bins", [1, 4, 15, 500])
def test_ece_equals_a_loop(num_bins):
    logits_NC, y_N = made_logits()
    probs_NC = softmax(logits_NC)
    assert expected_calibration_error(probs_NC, y_N, num_bins) == pytest.approx(loop_ece(probs_NC, y_N, num_bins))


def test_ece_in_closed_form():
    always_sure_NC = np.tile([1.0, 0.0], (10, 1))
    y_N = np.array([0] * 7 + [1] * 3)
    assert expected_calibration_error(always_sure_NC, y_N) == pytest.approx(0.3), "ties share one bin: |1 − 0.7|"
    assert expected_calibration_error(np.tile([0.7, 0.3], (10, 1)), y_N) == pytest.approx(0.0, abs=1e-12)
    two_NC = np.array([[0.6, 0.4]] * 5 + [[0.1, 0.9]] * 5)
    expected = 0.5 * abs(0.6 - 3 / 5) + 0.5 * abs(0.9 - 5 / 5)
    two_y_N = np.array([0, 0, 0, 1, 1, 1, 1, 1, 1, 1])
    assert expected_calibration_error(two_NC, two_y_N, 2) == pytest.approx(expected)


def test_bins_hold_equally_many_rows_in_any_order():
    confidence_N = np.random.default_rng(1).random(150)
    bins_N = assign_bins(confidence_N, 15)
    assert np.bincount(bins_N).tolist() == [10] * 15
    order = np.random.default_rng(2).permutation(150)
    assert np.array_equal(assign_bins(confidence_N[order], 15), bins_N[order])
    with pytest.raises(ValueError, match="at least 1; got 0"):
        assign_bins(confidence_N, 0)


def test_brier_and_nll_equal_scikit_learn():
    logits_NC, y_N = made_logits()
    probs_NC = softmax(logits_NC)
    assert negative_log_likelihood(probs_NC, y_N) == pytest.approx(log_loss(y_N, probs_NC, labels=range(4)))
    assert brier_score(probs_NC, y_N) == pytest.approx(
        brier_score_loss(y_N, probs_NC, labels=range(4), scale_by_half=False)
    )


def test_what_has_no_value_says_why():
    none_NC, no_N = np.zeros((0, 2)), np.zeros(0, dtype=np.int64)
    for measure in (expected_calibration_error, brier_score, negative_log_likelihood):
        assert measure(none_NC, no_N) == Undefined("there are no rows")
    assert calibrated_error(none_NC, np.random.default_rng(0)) == Undefined("there are no rows")
    sure_and_wrong = negative_log_likelihood(np.array([[1.0, 0.0], [0.5, 0.5]]), np.array([1, 1]))
    assert sure_and_wrong == Undefined("the true class of 1 rows has probability 0: the likelihood is 0")


def test_ece_of_a_calibrated_model_by_chance():
    """Oracle: E|Binomial(n, p)/n − p| of one bin, summed in closed form."""
    from scipy.stats import binom

    n, p = 20, 0.7
    exact = float(sum(binom.pmf(k, n, p) * abs(k / n - p) for k in range(n + 1)))
    drawn = calibrated_error(np.tile([p, 1 - p], (n, 1)), np.random.default_rng(0), num_draws=20_000)
    assert drawn == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 5.0])
def test_temperature_equals_torch_lbfgs(sharpness):
    logits_NC, y_N = made_logits(sharpness=sharpness)
    weights_N = np.random.default_rng(3).uniform(0.2, 1.0, len(y_N))
    inverse = torch.ones((), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([inverse], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14,
                                  line_search_fn="strong_wolfe")  # fmt: skip
    logits, y, weights = torch.tensor(logits_NC), torch.tensor(y_N), torch.tensor(weights_N)

    def closure():
        optimiser.zero_grad()
        loss = (torch.nn.functional.cross_entropy(inverse * logits, y, reduction="none") * weights).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    assert fit_temperature(logits_NC, y_N, weights_N) == pytest.approx(1 / inverse.item(), rel=1e-6)
    assert fit_temperature(logits_NC, y_N) == pytest.approx(sharpness, rel=0.35)


def test_temperature_is_no_worse_than_a_grid():
    logits_NC, y_N = made_logits(rows=60, seed=4)
    best = fit_temperature(logits_NC, y_N)
    grid = [negative_log_likelihood(softmax(logits_NC / t), y_N) for t in np.geomspace(0.05, 50, 2000)]
    assert negative_log_likelihood(softmax(logits_NC / best), y_N) <= min(grid) + 1e-12


def test_a_temperature_that_does_not_exist_says_why():
    right_NC = 3.0 * np.eye(3)
    assert "is right" in fit_temperature(right_NC, np.arange(3)).reason
    assert "say nothing true" in fit_temperature(right_NC, np.array([1, 2, 0])).reason
    assert "no rows" in fit_temperature(np.zeros((0, 3)), np.zeros(0, dtype=np.int64)).reason


def made_predictions(patients: int = 90) -> Predictions:
    """One or two samples a patient."""
    volumes_P = 1 + np.arange(patients) % 2
    logits_PC, y_P = made_logits(patients, seed=7)
    ids_P = np.array([f"P{n:03d}" for n in range(patients)])
    logits_NC = np.repeat(logits_PC, volumes_P, axis=0)
    logits_NC += np.random.default_rng(8).normal(size=logits_NC.shape)
    names_N = np.array([f"v{n}" for n in range(volumes_P.sum())])
    return Predictions(names_N, np.repeat(ids_P, volumes_P), np.repeat(y_P, volumes_P), logits_NC, tuple("abcd"))


def test_patients_weigh_the_same_whatever_their_samples():
    made = made_predictions()
    counts = {name: (made.patient_id_N == name).sum() for name in made.patient_id_N}
    weights_N = np.array([1 / counts[name] for name in made.patient_id_N])
    assert fit_scored_temperature(made) == fit_temperature(made.scores_NC, made.y_true_N, weights_N)
    assert fit_scored_temperature(made, "none") == fit_temperature(made.scores_NC, made.y_true_N)


def test_scaling_divides_logits_and_sharpens_probabilities():
    made = made_predictions()
    np.testing.assert_allclose(scale_predictions(made, 2.5).probs_NC, softmax(made.scores_NC / 2.5), atol=1e-14)
    patients = made.per_patient()
    scaled = scale_predictions(patients, 0.5)
    squared_NC = patients.probs_NC**2
    np.testing.assert_allclose(scaled.probs_NC, squared_NC / squared_NC.sum(1, keepdims=True), atol=1e-14)
    np.testing.assert_allclose(scale_predictions(patients, 1.0).probs_NC, patients.probs_NC, atol=1e-14)
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="a temperature is positive"):
            scale_predictions(made, bad)


def test_the_fitting_part_keeps_patients_whole_and_classes_in_proportion():
    made = made_predictions()
    part = divide_patients(made, 0.4, np.random.default_rng(0))
    assert not set(part.fit_P) & set(part.scored_P)
    assert set(part.fit_P) | set(part.scored_P) == set(made.patient_id_N)
    y_of = dict(zip(made.patient_id_N.tolist(), made.y_true_N.tolist()))
    for c in range(4):
        total = sum(y == c for y in y_of.values())
        assert sum(y_of[name] == c for name in part.fit_P.tolist()) == int(0.4 * total)
    order = np.random.default_rng(1).permutation(len(made.y_true_N))
    shuffled = Predictions(
        made.sample_id_N[order], made.patient_id_N[order], made.y_true_N[order], made.scores_NC[order], made.classes
    )
    again = divide_patients(shuffled, 0.4, np.random.default_rng(0))
    assert np.array_equal(part.fit_P, again.fit_P)
    with pytest.raises(ValueError, match="between 0 and 1; got 1"):
        divide_patients(made, 1.0, np.random.default_rng(0))


def test_intervals_equal_a_loop_over_repeated_rows():
    patients = made_predictions().per_patient()
    weights_RN = resample_weights(patients.patient_id_N, num_resamples=50, rng=np.random.default_rng(0))
    found = calibration_intervals([patients], weights_RN, num_bins=5)
    bins_N = assign_bins(patients.probs_NC.max(1), 5)
    slow: dict[str, list[float]] = {"ece": [], "brier": [], "nll": []}
    for weights_N in weights_RN:
        rows = np.repeat(np.arange(len(weights_N)), weights_N)
        probs_NC, y_N = patients.probs_NC[rows], patients.y_true_N[rows]
        slow["brier"].append(brier_score(probs_NC, y_N))
        slow["nll"].append(log_loss(y_N, probs_NC, labels=range(4)))
        ece = 0.0
        for b in range(5):
            members = bins_N[rows] == b
            if members.any():
                accuracy = (probs_NC[members].argmax(1) == y_N[members]).mean()
                ece += members.mean() * abs(accuracy - probs_NC[members].max(1).mean())
        slow["ece"].append(ece)
    for name, values in slow.items():
        low, high = np.percentile(values, [2.5, 97.5])
        assert (found[name].low, found[name].high) == (pytest.approx(low), pytest.approx(high)), name
    few = calibration_intervals([restrict(patients, patients.patient_id_N[:5])], weights_RN[:, :5])
    assert isinstance(few["brier"].low, Undefined)
    assert isinstance(few["brier"].value, float)
