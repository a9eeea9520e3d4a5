"""Optimism against loops over drawn patients, and on grids whose true scores are known."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import accuracy_score

from vitreous.core.predictions import Predictions
from vitreous.core.undefined import Undefined
from vitreous.evidence.intervals import bootstrap_intervals, resample_weights
from vitreous.evidence.optimism import grid_optimism, nested_optimism, selection_optimism, weights_beside


def made_predictions(patients: int, seed: int, accuracy: float = 0.7, prefix: str = "v", rows_each: int = 1):
    rng = np.random.default_rng(seed)
    ids_N = np.repeat([f"{prefix}{n:04d}" for n in range(patients)], rows_each)
    y_N = np.repeat(np.arange(patients) % 2, rows_each)
    right_N = rng.random(len(y_N)) < accuracy
    names_N = np.array([f"{name}/{k}" for k, name in enumerate(ids_N)])
    return Predictions(names_N, ids_N, y_N, np.eye(2)[np.where(right_N, y_N, 1 - y_N)], ("a", "b"))


def drawn(one: Predictions, seed: int, num_resamples: int = 300) -> np.ndarray:
    return resample_weights(one.patient_id_N, num_resamples=num_resamples, rng=np.random.default_rng(seed))


def accuracy_of(one: Predictions, weights_N: np.ndarray) -> float:
    rows = np.repeat(np.arange(len(weights_N)), weights_N)
    return accuracy_score(one.y_true_N[rows], one.y_pred_N[rows])


def test_val_minus_test_equals_a_loop_over_independent_draws():
    val, test = made_predictions(40, 0, 0.8, rows_each=2), made_predictions(60, 1, 0.7, "t")
    val_RN, test_RN = drawn(val, 2), drawn(test, 3)
    found = selection_optimism([val], [test], "accuracy", val_weights_RN=val_RN, test_weights_RN=test_RN)
    lost = [accuracy_of(val, v) - accuracy_of(test, t) for v, t in zip(val_RN, test_RN)]
    low, high = np.percentile(lost, [2.5, 97.5])
    assert found.optimism.value == pytest.approx(
        accuracy_of(val, np.ones(80, int)) - accuracy_of(test, np.ones(60, int))
    )
    assert (found.optimism.low, found.optimism.high) == (pytest.approx(low), pytest.approx(high))
    assert found.val == bootstrap_intervals([val], val_RN, names=["accuracy"])["accuracy"]
    assert found.test == bootstrap_intervals([test], test_RN, names=["accuracy"])["accuracy"]


def test_what_makes_val_minus_test_meaningless_is_refused_or_undefined():
    val, test = made_predictions(40, 0), made_predictions(40, 1, prefix="t")
    val_RN, test_RN = drawn(val, 2, 50), drawn(test, 3, 50)
    with pytest.raises(ValueError, match="40 patients are in val and in test"):
        selection_optimism([val], [val], "accuracy", val_weights_RN=val_RN, test_weights_RN=val_RN)
    with pytest.raises(ValueError, match="equally many resamples; got 50, 9"):
        selection_optimism([val], [test], "accuracy", val_weights_RN=val_RN, test_weights_RN=test_RN[:9])
    other = replace(test, classes=("a", "x"))
    with pytest.raises(ValueError, match="differ in classes"):
        selection_optimism([val], [other], "accuracy", val_weights_RN=val_RN, test_weights_RN=test_RN)
    with pytest.raises(ValueError, match="no predictions to score"):
        selection_optimism([], [test], "accuracy", val_weights_RN=val_RN, test_weights_RN=test_RN)
    one_class = replace(test, y_true_N=np.zeros(40, dtype=np.int64))
    found = selection_optimism([val], [one_class], "auroc", val_weights_RN=val_RN, test_weights_RN=test_RN)
    assert isinstance(found.val.value, float)
    assert found.optimism.value == Undefined("only the class 'a' occurs; a mean over classes needs two")


def test_grid_optimism_equals_a_loop_over_members_and_resamples():
    members = {f"m{k}": made_predictions(50, k, 0.6 + 0.01 * k, rows_each=2) for k in range(6)}
    members = {name: replace(one, y_true_N=members["m0"].y_true_N) for name, one in members.items()}
    weights_RN = drawn(members["m0"], 9, 120)
    found = grid_optimism({name: [one] for name, one in members.items()}, "accuracy", weights_RN)
    scored, chosen = [], []
    for weights_N in weights_RN:
        scores = {name: accuracy_of(one, weights_N) for name, one in members.items()}
        best = max(scores, key=scores.get)
        chosen.append(best)
        scored.append(accuracy_of(members[best], (weights_N == 0).astype(int)))
    everyone = {name: accuracy_of(one, np.ones(100, dtype=int)) for name, one in members.items()}
    assert found.best == max(everyone, key=everyone.get)
    assert found.best_score == pytest.approx(max(everyone.values()))
    assert found.corrected.value == pytest.approx(np.mean(scored))
    assert found.corrected.low == pytest.approx(np.percentile(scored, 2.5))
    assert found.optimism == pytest.approx(max(everyone.values()) - np.mean(scored))
    assert found.share_chosen == {name: chosen.count(name) / 120 for name in members if name in chosen}
    assert found.num_members == 6


def test_a_grid_of_coin_tossers_looks_good_and_is_corrected():
    """Truth 0.5 for each of 40 members; the best of them scores well above it, the correction comes back to it."""
    corrected, best = [], []
    for study in range(12):
        members = {f"m{k}": [made_predictions(80, 1000 * study + k, 0.5)] for k in range(40)}
        found = grid_optimism(members, "accuracy", drawn(members["m0"][0], study, 200))
        corrected.append(found.corrected.value)
        best.append(found.best_score)
    assert np.mean(best) > 0.59
    assert np.mean(corrected) == pytest.approx(0.5, abs=0.03)
    one = grid_optimism({"only": [made_predictions(80, 1, 0.7)]}, "accuracy", drawn(members["m0"][0], 0, 500))
    assert one.optimism == pytest.approx(0.0, abs=0.015), "without a choice there is no optimism"


def test_nested_folds_against_best_of_grid():
    members = {f"m{k}": [made_predictions(50, k)] for k in range(5)}
    nested = made_predictions(50, 77)
    weights_RN = drawn(nested, 4, 80)
    found = nested_optimism(members, [nested], "accuracy", weights_RN)
    everyone = {name: accuracy_of(by_seed[0], np.ones(50, int)) for name, by_seed in members.items()}
    chosen = max(everyone, key=everyone.get)
    best = everyone[chosen]
    lost = [accuracy_of(members[chosen][0], w) - accuracy_of(nested, w) for w in weights_RN]
    assert found.val.value == pytest.approx(best)
    assert found.optimism.value == pytest.approx(best - accuracy_of(nested, np.ones(50, int)))
    assert found.optimism.high == pytest.approx(np.percentile(lost, 97.5))
    with pytest.raises(ValueError, match="no members to choose from"):
        nested_optimism({}, [nested], "accuracy", weights_RN)
    with pytest.raises(ValueError, match="not about the same rows"):
        nested_optimism({"m": [made_predictions(50, 0, prefix="x")]}, [nested], "accuracy", weights_RN)


def test_grids_without_a_score_say_why():
    one = made_predictions(40, 0)
    weights_RN = drawn(one, 1, 50)
    one_class = replace(one, y_true_N=np.zeros(40, dtype=np.int64))
    found = grid_optimism({"m": [one_class]}, "balanced_accuracy", weights_RN)
    assert found.best is None
    assert found.optimism == found.best_score == Undefined("only the class 'a' occurs; a mean over classes needs two")
    everybody = np.ones((30, 40), dtype=np.uint16)
    nobody_left = grid_optimism({"m": [one]}, "accuracy", everybody)
    assert nobody_left.optimism == Undefined("the patients left out of the resamples never have a score")
    with pytest.raises(ValueError, match="no members to choose from"):
        grid_optimism({}, "accuracy", weights_RN)


def test_weights_of_val_follow_those_of_test_where_a_patient_is_in_both():
    tested_N, rng = np.array(["a", "b", "b", "c"]), np.random.default_rng(0)
    weights_RN = resample_weights(tested_N, num_resamples=200, rng=rng)
    same = weights_beside(np.array(["c", "b", "a"]), tested_N, weights_RN, rng)
    np.testing.assert_array_equal(same, weights_RN[:, [3, 1, 0]])
    others = weights_beside(np.array(["x", "y", "x"]), tested_N, weights_RN, np.random.default_rng(5))
    np.testing.assert_array_equal(
        others, resample_weights(np.array(["x", "y", "x"]), num_resamples=200, rng=np.random.default_rng(5))
    )
    mixed = weights_beside(np.array(["x", "a"]), tested_N, weights_RN, rng)
    np.testing.assert_array_equal(mixed[:, 1], weights_RN[:, 0])
    assert (mixed[:, 0] == 1).all(), "one patient alone is drawn once every time"
