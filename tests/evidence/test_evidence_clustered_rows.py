"""Samples scored by themselves, patients resampled. Oracle: a loop that puts drawn patients' rows together, scored by
scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

from vitreous.core.predictions import Predictions
from vitreous.evidence.comparison import compare_with_best
from vitreous.evidence.intervals import bootstrap_intervals, mean_over_seeds, resample_weights

CLASSES = ("none", "mild", "severe")


def made(*, patients: int = 60, noise: float = 1.0, seed: int = 0) -> Predictions:
    """One to four samples a patient, whose grades and errors go together but are not the same."""
    rng = np.random.default_rng(3)
    owner_N = np.repeat(np.arange(patients), 1 + np.arange(patients) % 4)
    base_N = rng.integers(0, 3, patients)[owner_N]
    y_N = np.clip(base_N + (rng.random(len(owner_N)) < 0.2), 0, 2)
    shared_PC = np.random.default_rng(seed).normal(size=(patients, 3))
    own_NC = np.random.default_rng(seed + 1).normal(size=(len(owner_N), 3))
    logits_NC = 1.5 * np.eye(3)[y_N] + noise * (shared_PC[owner_N] + 0.5 * own_NC)
    ids_N = np.array([f"p{number:03d}" for number in owner_N])
    names_N = np.array([f"s{row:03d}" for row in range(len(owner_N))])
    return Predictions(names_N, ids_N, y_N.astype(np.int64), logits_NC, CLASSES)


def rows_of_draw(one: Predictions, drawn: np.ndarray) -> np.ndarray:
    return np.concatenate([np.flatnonzero(one.patient_id_N == patient) for patient in drawn])


def test_the_samples_of_a_patient_carry_different_labels() -> None:
    one = made()
    labels = [set(one.y_true_N[one.patient_id_N == patient].tolist()) for patient in np.unique(one.patient_id_N)]
    assert sum(len(found) > 1 for found in labels) >= 10
    with pytest.raises(ValueError, match=r"different labels.*data\.aggregate: none"):
        one.scored("mean_probability")
    assert one.scored("none") is one


def test_each_resample_is_the_rows_of_its_patients_put_together() -> None:
    one = made().scored("none")
    weights_RN = resample_weights(one.patient_id_N, num_resamples=60, rng=np.random.default_rng(0))
    found = mean_over_seeds([one], weights_RN)
    patients, first = np.unique(one.patient_id_N, return_index=True)
    for resample, weight_N in enumerate(weights_RN):
        drawn = np.repeat(patients, weight_N[first])
        assert len(drawn) == len(patients)
        rows = rows_of_draw(one, drawn)
        y, probs = one.y_true_N[rows], one.probs_NC[rows]
        expected = {
            "balanced_accuracy": balanced_accuracy_score(y, probs.argmax(axis=1)),
            "macro_f1": f1_score(y, probs.argmax(axis=1), average="macro"),
            "auroc": roc_auc_score(y, probs, multi_class="ovr", average="macro"),
        }
        for name, value in expected.items():
            assert found[name][resample] == pytest.approx(value, abs=1e-12)


def test_bounds_agree_with_draws_of_another_generator() -> None:
    one = made()
    weights_RN = resample_weights(one.patient_id_N, num_resamples=4000, rng=np.random.default_rng(0))
    interval = bootstrap_intervals([one], weights_RN, names=["balanced_accuracy"])["balanced_accuracy"]
    rng, patients = np.random.default_rng(77), np.unique(one.patient_id_N)
    pred_N = one.y_pred_N
    by_patient = {patient: np.flatnonzero(one.patient_id_N == patient) for patient in patients}
    scores = []
    for _ in range(4000):
        rows = np.concatenate([by_patient[patient] for patient in rng.choice(patients, len(patients))])
        found = [np.mean(pred_N[rows][one.y_true_N[rows] == c] == c) for c in range(3)]
        scores.append(np.mean(found))
    low, high = np.quantile(scores, [0.025, 0.975])
    assert interval.low == pytest.approx(low, abs=0.01)
    assert interval.high == pytest.approx(high, abs=0.01)
    # rows drawn one by one would promise too much: errors of one patient go together
    alone_RN = resample_weights(one.sample_id_N, num_resamples=4000, rng=np.random.default_rng(0))
    alone = bootstrap_intervals([one], alone_RN, names=["balanced_accuracy"])["balanced_accuracy"]
    assert high - low > 1.15 * (alone.high - alone.low)  # type: ignore[operator]


def test_paired_tests_go_by_patient() -> None:
    """Ten copies of every row add no patient: p-values and bounds stay as they were."""
    rows = {"good": [made(noise=0.8)], "poor": [made(noise=1.6)]}
    copies = {name: [tenfold(one) for one in by_seed] for name, by_seed in rows.items()}
    found = []
    for each in (rows, copies):
        ids_N = each["good"][0].patient_id_N
        weights_RN = resample_weights(ids_N, num_resamples=1000, rng=np.random.default_rng(0))
        found.append(compare_with_best(each, "balanced_accuracy", weights_RN).difference("good", "poor"))
    assert found[0].p == found[1].p
    assert found[0].low == pytest.approx(found[1].low, abs=1e-12)


def tenfold(one: Predictions) -> Predictions:
    rows = np.repeat(np.arange(len(one.y_true_N)), 10)
    names = np.array([f"{one.sample_id_N[row]}/{copy}" for copy, row in enumerate(rows)])
    return Predictions(names, one.patient_id_N[rows], one.y_true_N[rows], one.scores_NC[rows], one.classes)
