"""Metrics of several labels a row. Oracle: scikit-learn, with repeated rows and with sample weights for resamples."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score, roc_auc_score

from vitreous.core.label_sets import encode_label_sets
from vitreous.core.predictions import Predictions, join_predictions
from vitreous.core.undefined import Undefined
from vitreous.evidence.checks import find_collapsed, find_flawless, group_identical
from vitreous.evidence.comparison import compare_with_best
from vitreous.evidence.intervals import bootstrap_intervals, resample_weights
from vitreous.evidence.label_scores import (
    choose_thresholds,
    label_metric_names,
    score_label_resamples,
    score_labels,
    weighted_average_precision,
)
from vitreous.evidence.task_scores import co_occurrence, score_rows, true_co_occurrence, with_chosen_thresholds

LABELS = ("C1", "C2", "C3")


def draw(rows: int = 90, seed: int = 0, ties: bool = True) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = rng.random((rows, 3)) < [0.5, 0.3, 0.15]
    targets[0], targets[1] = True, False
    probs = 1 / (1 + np.exp(-(1.5 * targets + rng.normal(size=targets.shape))))
    return targets, probs.round(1) if ties else probs


def predictions(seed: int = 0, patients: int = 30) -> Predictions:
    targets, probs = draw(seed=0)
    noise = np.random.default_rng(seed).normal(0, 0.3, probs.shape)
    logits = np.log(np.clip(probs, 0.05, 0.95) / np.clip(1 - probs, 0.05, 0.95)) + noise
    ids = np.array([f"s{n:03d}" for n in range(len(targets))])
    owner = np.array([f"p{n % patients:02d}" for n in range(len(targets))])
    return Predictions(ids, owner, encode_label_sets(targets), logits, LABELS, task="multi_label")


@pytest.mark.parametrize("ties", [True, False])
def test_every_metric_equals_scikit_learn(ties: bool) -> None:
    targets, probs = draw(ties=ties)
    found = score_labels(targets, probs, probs >= 0.4, LABELS)
    per_label = [average_precision_score(targets[:, c], probs[:, c]) for c in range(3)]
    areas = [roc_auc_score(targets[:, c], probs[:, c]) for c in range(3)]
    accuracies = [balanced_accuracy_score(targets[:, c], probs[:, c] >= 0.4) for c in range(3)]
    f1 = [f1_score(targets[:, c], probs[:, c] >= 0.4) for c in range(3)]
    for c, name in enumerate(LABELS):
        assert found[f"ap_{name}"] == pytest.approx(per_label[c], abs=1e-12)
        assert found[f"auroc_{name}"] == pytest.approx(areas[c], abs=1e-12)
        assert found[f"balanced_accuracy_{name}"] == pytest.approx(accuracies[c], abs=1e-12)
        assert found[f"f1_{name}"] == pytest.approx(f1[c], abs=1e-12)
    assert found["map"] == pytest.approx(np.mean(per_label), abs=1e-12)
    assert found["macro_f1"] == pytest.approx(np.mean(f1), abs=1e-12)
    assert found["balanced_accuracy"] == pytest.approx(np.mean(accuracies), abs=1e-12)
    assert found["exact_match"] == pytest.approx((targets == (probs >= 0.4)).all(axis=1).mean(), abs=1e-12)
    assert tuple(found) == label_metric_names(LABELS)


def test_resamples_equal_weighted_scikit_learn_and_repeated_rows() -> None:
    targets, probs = draw()
    weights = np.random.default_rng(1).integers(0, 4, size=(6, len(targets)))
    found = score_label_resamples(targets, probs, probs >= 0.5, LABELS, weights)
    for r, weight in enumerate(weights):
        repeated = np.repeat(np.arange(len(targets)), weight)
        again = score_labels(targets[repeated], probs[repeated], probs[repeated] >= 0.5, LABELS)
        for name, values in found.items():
            assert values[r] == pytest.approx(again[name], abs=1e-12), name
        expected = average_precision_score(targets[:, 1], probs[:, 1], sample_weight=weight)
        assert found["ap_C2"][r] == pytest.approx(expected, abs=1e-12)


def test_a_resample_without_a_kind_of_row_is_undefined() -> None:
    labels, scores = np.array([True, False, False]), np.array([0.9, 0.5, 0.2])
    weights = np.array([[1.0, 1.0, 1.0], [0.0, 1.0, 1.0], [2.0, 0.0, 0.0]]).T
    values = weighted_average_precision(labels, scores, weights)
    assert values[0] == 1.0
    assert np.isnan(values[1:]).all()


def test_a_constant_label_is_undefined_with_its_reason_and_left_out_of_the_mean() -> None:
    targets, probs = draw()
    targets[:, 2] = False
    found = score_labels(targets, probs, probs >= 0.5, LABELS)
    assert found["ap_C3"] == Undefined("no row has the label 'C3'")
    assert found["map"] == pytest.approx(np.mean([found["ap_C1"], found["ap_C2"]]))


def test_bad_scores_and_names_are_refused() -> None:
    targets, probs = draw()
    with pytest.raises(ValueError, match="1 of 90 rows hold NaN"):
        score_labels(targets, np.where(np.arange(90)[:, None] == 3, np.nan, probs), probs > 1, LABELS)
    with pytest.raises(ValueError, match="no such metric"):
        score_label_resamples(targets, probs, probs > 1, LABELS, np.ones((1, 90)), ["accuracy"])


def test_thresholds_maximise_f1_and_decide() -> None:
    targets, probs = draw(ties=False)
    chosen = choose_thresholds(targets, probs)
    for c in range(3):
        best = max(f1_score(targets[:, c], probs[:, c] >= t) for t in np.linspace(0, 1, 2001))
        assert f1_score(targets[:, c], probs[:, c] >= chosen[c]) == pytest.approx(best)
    one = with_chosen_thresholds(predictions(), predictions())
    assert (one.decisions_NC == (one.probs_NC >= one.thresholds_NC)).all()
    assert score_rows(one)["macro_f1"] >= score_rows(predictions())["macro_f1"]


def test_intervals_draw_patients_together_and_rows_are_told_apart() -> None:
    good, bad = predictions(0), predictions(1)
    bad = Predictions(
        bad.sample_id_N, bad.patient_id_N, bad.y_true_N, bad.scores_NC[::-1].copy(), LABELS, task="multi_label"
    )
    weights = resample_weights(good.patient_id_N, num_resamples=400, rng=np.random.default_rng(0))
    intervals, targets = bootstrap_intervals([good], weights), good.targets_NC
    drawn = [
        np.mean([average_precision_score(targets[:, c], good.probs_NC[:, c], sample_weight=w) for c in range(3)])
        for w in weights[:50]
    ]
    assert intervals["map"].value == pytest.approx(score_rows(good)["map"])
    assert intervals["map"].low < np.median(drawn) < intervals["map"].high
    compared = compare_with_best({"good": [good], "bad": [bad]}, "map", weights)
    assert compared.best == "good"
    assert compared.letters == {"good": "a", "bad": "b"}


def test_checks_speak_of_sets_of_labels() -> None:
    one = predictions()
    same = Predictions(
        one.sample_id_N, one.patient_id_N, one.y_true_N, np.full_like(one.scores_NC, 3.0), LABELS, task="multi_label"
    )
    assert "'C1 + C2 + C3' for all 90 test samples" in find_collapsed({"row": [same]})[0].title
    assert group_identical({"a": [one], "b": [one]}) == [["a", "b"]]
    right = Predictions(
        one.sample_id_N, one.patient_id_N, one.y_true_N, np.where(one.targets_NC, 1.0, -1.0), LABELS, task="multi_label"
    )
    assert find_flawless({"row": [right]})[0].code == "no_errors"


def test_co_occurrence_of_labels_and_of_predictions() -> None:
    one = predictions()
    table = true_co_occurrence(one)
    assert table[0, 1] == (one.targets_NC[:, 0] & one.targets_NC[:, 1]).sum()
    assert table[2, 2] == one.targets_NC[:, 2].sum()
    assert co_occurrence(one)[1, 0] == (one.targets_NC[:, 1] & one.decisions_NC[:, 0]).sum()


def test_predictions_of_labels_survive_their_file(tmp_path) -> None:
    one = with_chosen_thresholds(predictions(), predictions())
    one.write(tmp_path / "val.parquet")
    again = Predictions.read(tmp_path / "val.parquet", LABELS)
    assert again.task == "multi_label"
    for field in ("sample_id_N", "y_true_N", "scores_NC", "thresholds_NC", "y_pred_N"):
        np.testing.assert_array_equal(getattr(again, field), getattr(one, field))
    both = join_predictions([one, again])
    assert both.thresholds_NC.shape == (180, 3)
    with pytest.raises(ValueError, match="some have none"):
        join_predictions([one, predictions()])


def test_a_patient_has_the_mean_probability_and_one_set_of_labels(tmp_path) -> None:
    one = predictions()
    with pytest.raises(ValueError, match="carry different labels"):
        one.per_patient()
    agreed = Predictions(
        one.sample_id_N,
        one.patient_id_N,
        np.arange(90) % 30 % 8,
        one.scores_NC,
        LABELS,
        task="multi_label",
        thresholds_NC=np.full((90, 3), 0.3),
    )
    patients = agreed.scored("mean_probability")
    first = agreed.patient_id_N == "p00"
    np.testing.assert_allclose(patients.probs_NC[0], agreed.probs_NC[first].mean(axis=0), atol=1e-15)
    assert (patients.decisions_NC == (patients.probs_NC >= 0.3)).all()
    patients.write(tmp_path / "patients.parquet")
    np.testing.assert_array_equal(Predictions.read(tmp_path / "patients.parquet", LABELS).y_pred_N, patients.y_pred_N)
