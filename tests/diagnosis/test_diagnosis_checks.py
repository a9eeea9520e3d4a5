"""The doctor's checks, a bad case beside each good one. Oracles: planted flaws, closed forms, scikit-learn."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score

from vitreous.core.predictions import Predictions
from vitreous.core.undefined import Undefined
from vitreous.diagnosis.differences import ObservedDifference, find_no_better_than_random, find_within_noise
from vitreous.diagnosis.feature_health import find_foreign_standardiser, find_poor_features
from vitreous.diagnosis.held_out import balanced_accuracy_interval, out_of_fold_probs, patient_folds
from vitreous.diagnosis.input_statistics import find_off_spec
from vitreous.diagnosis.label_errors import find_label_errors, suspect_labels
from vitreous.diagnosis.prevalence import find_never_predicted, find_prevalence_shifts
from vitreous.diagnosis.sameness import Decided, find_option_without_effect, find_same_rows
from vitreous.diagnosis.shortcuts import examine_shortcut, find_shortcuts
from vitreous.diagnosis.thresholds import find_foreign_thresholds
from vitreous.diagnosis.training_ends import find_under_trained
from vitreous.evidence.overfitting import describe_training
from vitreous.evidence.task_scores import with_chosen_thresholds

CLASSES = ("a", "b", "c")


def predictions(
    logits_NC: np.ndarray, y_N: np.ndarray, classes: tuple[str, ...] = CLASSES, **more: object
) -> Predictions:
    ids = np.array([f"s{n}" for n in range(len(y_N))])
    return Predictions(ids, ids, y_N.astype(np.int64), logits_NC.astype(np.float64), classes, **more)  # type: ignore[arg-type]


def test_features_that_say_little() -> None:
    rng = np.random.default_rng(0)
    healthy = rng.normal(size=(200, 64)).astype(np.float32)
    assert [finding.code for finding in find_poor_features(healthy, "x")] == ["features_spread"]
    alike = (100 + 1e-3 * rng.normal(size=(200, 64))).astype(np.float32)
    [finding] = find_poor_features(alike, "x")
    assert (finding.code, finding.severity) == ("features_alike", "error")
    flat = (rng.normal(size=(200, 2)) @ rng.normal(size=(2, 64))).astype(np.float32)
    assert find_poor_features(flat, "x")[0].code == "low_effective_rank"
    assert find_poor_features(healthy[:5], "x") == []


def test_a_standardiser_that_knows_of_test() -> None:
    rng = np.random.default_rng(1)
    train, test = rng.normal(size=(60, 8)).astype(np.float32), rng.normal(1, 1, (40, 8)).astype(np.float32)
    weight_N = rng.uniform(0.5, 1, 60)
    of_train_D = np.average(train.astype(np.float64), axis=0, weights=weight_N)
    assert find_foreign_standardiser(of_train_D, train, weight_N, test, "x") == []
    of_all_D = np.concatenate([train, test]).mean(axis=0).astype(np.float64)
    [finding] = find_foreign_standardiser(of_all_D, train, weight_N, test, "x")
    assert "that of all rows, test among them" in finding.title


def test_folds_keep_patients_whole_and_classes_even() -> None:
    rng = np.random.default_rng(2)
    patient_N = np.repeat([f"p{n}" for n in range(50)], 3).astype(np.str_)
    y_N = np.repeat(rng.integers(0, 3, 50), 3)
    fold_N = patient_folds(y_N, patient_N)
    assert pd.Series(fold_N).groupby(patient_N).nunique().max() == 1
    for c in range(3):
        counts = np.bincount(fold_N[y_N == c], minlength=5) / 3
        assert np.ptp(counts) <= 1


def test_held_out_probabilities_and_their_interval() -> None:
    rng = np.random.default_rng(3)
    patient_N = np.repeat([f"p{n}" for n in range(120)], 2).astype(np.str_)
    y_N = np.repeat(np.arange(120) % 2, 2).astype(np.int64)
    noise = rng.normal(size=(240, 12)).astype(np.float32)
    nothing = out_of_fold_probs(noise, y_N, patient_N, 2, balanced=True)
    value, low, high = balanced_accuracy_interval(y_N, nothing.argmax(1), patient_N, 2)
    assert value == pytest.approx(balanced_accuracy_score(y_N, nothing.argmax(1)), abs=1e-12)
    assert low < 0.5 < high, "a patient's twin sample is held out with it"
    signal = noise + 1.5 * y_N[:, None].astype(np.float32)
    assert (
        balanced_accuracy_interval(
            y_N, out_of_fold_probs(signal, y_N, patient_N, 2, balanced=True).argmax(1), patient_N, 2
        )[1]
        > 0.8
    )


def test_shortcuts() -> None:
    rng = np.random.default_rng(4)
    patient_N = np.array([f"p{n}" for n in range(160)])
    y_N = np.arange(160) % 2
    site = np.where(rng.random(160) < 0.85, y_N, 1 - y_N)
    features = rng.normal(size=(160, 16)).astype(np.float32)
    features[:, 0] += 4 * site
    cells = pd.Series([f"s{value}" for value in site])
    one = examine_shortcut(features, cells, patient_N, {"": y_N}, 2, column="site", encoder="x")
    assert one is not None
    assert one.is_readable
    [finding] = find_shortcuts([one], 2, {"x": 0.9})
    assert (finding.code, finding.severity) == ("shortcut", "warning")
    assert "the encoder's best row has 0.90" in finding.evidence
    other = pd.Series(rng.choice(["left", "right"], 160))
    features[:, 1] += 4 * (other == "left")
    harmless = examine_shortcut(features, other, patient_N, {"": y_N}, 2, column="laterality", encoder="x")
    assert harmless is not None
    assert [found.code for found in find_shortcuts([harmless], 2, {})] == ["readable_column"]
    hidden = examine_shortcut(
        features, pd.Series(rng.normal(60, 9, 160)), patient_N, {"": y_N}, 2, column="age", encoder="x"
    )
    assert hidden is not None
    assert hidden.num_values == 2
    assert find_shortcuts([hidden], 2, {}) == []
    assert (
        examine_shortcut(features, pd.Series(["one"] * 160), patient_N, {"": y_N}, 2, column="site", encoder="x")
        is None
    )


def test_of_several_labels_the_one_that_a_column_tells_best() -> None:
    rng = np.random.default_rng(8)
    patient_N = np.array([f"p{n}" for n in range(120)])
    labels = {"P": rng.integers(0, 2, 120), "Q": np.arange(120) % 2}
    site = pd.Series([f"s{value}" for value in labels["Q"]])
    features = (rng.normal(size=(120, 8)) + 3 * labels["Q"][:, None]).astype(np.float32)
    one = examine_shortcut(features, site, patient_N, labels, 2, column="site", encoder="x")
    assert one is not None
    assert one.label == "Q"
    assert "site alone predicts Q with 1.00" in find_shortcuts([one], 2, {})[0].evidence


def test_thresholds_that_know_of_test() -> None:
    rng = np.random.default_rng(9)

    def drawn(count: int) -> Predictions:
        y_N = rng.integers(0, 4, count)
        logits = np.stack([(y_N >> c) & 1 for c in range(2)], axis=1) * 2 - 1 + rng.normal(0, 1.5, (count, 2))
        return predictions(logits, y_N, ("P", "Q"), task="multi_label")

    val, test = drawn(80), drawn(90)
    honest = with_chosen_thresholds(test, val.scored("mean_probability"))
    assert find_foreign_thresholds(val, honest, "mean_probability", "x") == []
    leaking = with_chosen_thresholds(test, test.scored("mean_probability"))
    [finding] = find_foreign_thresholds(val, leaking, "mean_probability", "x")
    assert finding.severity == "error"
    assert "those of test" in finding.title
    classes = predictions(rng.normal(size=(9, 3)), np.arange(9) % 3)
    assert find_foreign_thresholds(classes, classes, "mean_probability", "x") == []


def test_label_errors() -> None:
    rng = np.random.default_rng(5)
    true_N = np.arange(180) % 3
    features = rng.normal(size=(180, 10)).astype(np.float32)
    features[np.arange(180), true_N] += 5
    given_N = true_N.copy()
    given_N[[4, 40, 90]] = (true_N[[4, 40, 90]] + 1) % 3
    ids = np.array([f"s{n}" for n in range(180)])
    suspects = suspect_labels(features, given_N, ids, np.char.add("p", ids), CLASSES)
    assert suspects is not None
    assert len({"s4", "s40", "s90"} & set(suspects["sample_id"])) >= 2, "a noise rate is estimated, and pruned by"
    assert len(suspects) <= 5
    row = suspects.set_index("sample_id").loc["s4"]
    assert (row["given"], row["suggested"]) == (CLASSES[given_N[4]], CLASSES[true_N[4]])
    [finding] = find_label_errors(suspects, 180, "x", "label_review.csv")
    assert "s4" not in finding.evidence + finding.title
    blind = rng.normal(size=(180, 10)).astype(np.float32)
    assert suspect_labels(blind, given_N, ids, ids, CLASSES) is None, "a probe that sees nothing doubts nothing"
    assert suspect_labels(features[:12], given_N[:12], ids[:12], ids[:12], CLASSES) is None
    assert find_label_errors(suspects.head(0), 180, "x", "label_review.csv") == []


def test_prevalence() -> None:
    rng = np.random.default_rng(6)
    y_N = (rng.random(200) < 0.15).astype(np.int64)
    share = y_N.mean()
    honest = np.tile(np.log([1 - share, share]), (200, 1)) + rng.normal(0, 0.1, (200, 2))
    assert find_prevalence_shifts({"x": [predictions(honest, y_N, ("no", "yes"))]}, {}) == []
    balanced = np.zeros((200, 2)) + rng.normal(0, 0.1, (200, 2))
    [finding] = find_prevalence_shifts(
        {"x": [predictions(balanced, y_N, ("no", "yes"))]}, {"x": "class_weights: balanced"}
    )
    assert "as class_weights: balanced does" in finding.title
    assert f"yes 50% for {share:.0%}" in finding.evidence


def test_a_class_that_is_never_given() -> None:
    y_N = np.arange(60) % 3
    logits = np.eye(3)[np.where(y_N == 2, 1, y_N)]
    [finding] = find_never_predicted({"x": [predictions(logits, y_N)]})
    assert finding.evidence == "c (0 of 20)"
    assert find_never_predicted({"x": [predictions(np.eye(3)[y_N], y_N)]}) == []
    one = np.tile([9.0, 0, 0], (60, 1))
    assert find_never_predicted({"x": [predictions(one, y_N)]}) == [], "collapse has a finding of its own"
    labels = predictions(np.tile([4.0, -4.0], (60, 1)), np.arange(60) % 4, ("P", "Q"), task="multi_label")
    [unseen] = find_never_predicted({"x": [labels]})
    assert unseen.evidence == "Q (0 of 30)"


def curves(val_loss: list[float]) -> list[dict[str, float]]:
    return [
        {"epoch": n + 1, "train_loss": 1 / (n + 1), "val_loss": loss, "val_balanced_accuracy": 1 - loss}
        for n, loss in enumerate(val_loss)
    ]


def test_training_that_ended_too_early() -> None:
    falling = describe_training(curves([0.9 - 0.02 * n for n in range(20)]), 20)
    settled = describe_training(curves([abs(0.5 - 0.05 * n) + 0.1 for n in range(20)]), 11)
    assert falling is not None
    assert settled is not None
    [finding] = find_under_trained({"x / linear": [falling, falling, settled]}, {"x / linear": 20})
    assert "2 of 3 trainings" in finding.evidence
    assert finding.remedy.endswith("recipes.linear.epochs=40.")
    assert find_under_trained({"x / linear": [settled, settled, falling]}, {"x / linear": 20}) == []
    assert find_under_trained({"x / linear": [falling]}, {"x / linear": 50}) == [], "patience stopped it"


def test_differences_in_words() -> None:
    undefined = Undefined("none")
    small = ObservedDifference("A", "B", 0.0008, -0.03, 0.034, 0.96, 0.045, 800_000, 65, False)
    [finding] = find_within_noise([small], "accuracy")
    assert finding.title == "A lies +0.08 points above B: within noise, not a finding."
    assert "[-3.00, +3.40]" in finding.evidence
    assert "800,000 patients" in finding.evidence
    apart = ObservedDifference("A", "B", 0.2, 0.1, 0.3, 0.001, 0.045, 20, 65, True)
    assert find_within_noise([apart], "accuracy") == []
    bare = ObservedDifference("A", "B", 0.0008, undefined, undefined, undefined, undefined, undefined, 65, False)
    assert find_within_noise([bare], "accuracy")[0].evidence == "+0.08 points of accuracy on 65 test patients"
    found = find_no_better_than_random([("A", ("untrained / x",)), ("B", ("floor / majority",))], ["untrained / x"])
    assert [one.title.split()[0] for one in found] == ["A"]


def row(name: str, seed: int, *, is_floor: bool = False, **settings: object) -> Decided:
    logits = np.random.default_rng(seed).normal(size=(12, 3))
    return Decided(name, settings, {0: predictions(logits, np.arange(12) % 3)}, is_floor)


def test_rows_that_are_the_same() -> None:
    found = find_same_rows([row("A", 1, lr=1), row("B", 1, lr=1), row("C", 2, lr=2), row("F", 1, lr=1, is_floor=True)])
    assert [one.code for one in found] == ["same_settings"]
    [ineffective] = find_same_rows([row("A", 1, lr=1), row("B", 1, lr=2)])
    assert (ineffective.code, ineffective.severity) == ("option_without_effect", "error")
    assert find_same_rows([row("A", 1, lr=1), row("B", 2, lr=2)]) == []
    runs = ("one", "two")
    assert find_option_without_effect([row("A", 1)], [row("A", 1)], [], runs)[0].code == "same_settings"
    assert (
        find_option_without_effect([row("A", 1)], [row("A", 1)], ["lr (1 and 2)"], runs)[0].code
        == "option_without_effect"
    )
    assert find_option_without_effect([row("A", 1)], [row("A", 2)], ["lr (1 and 2)"], runs)[0].severity == "info"


def test_inputs_off_the_spec() -> None:
    inputs = [torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(k)) for k in range(4)]
    assert find_off_spec(inputs, "x", is_normalised=True)[0].code == "input_on_spec"
    bright = [one * 60 + 500 for one in inputs]
    assert find_off_spec(bright, "x", is_normalised=True)[0].code == "input_off_spec"
    assert find_off_spec([one * 0.01 for one in inputs], "x", is_normalised=True)[0].code == "input_off_spec"
    assert find_off_spec(bright, "x", is_normalised=False)[0].code == "input_on_spec"
