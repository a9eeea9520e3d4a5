"""Scores against scikit-learn (with sample weights), closed forms and degenerate cohorts."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from vitreous.core.undefined import Undefined
from vitreous.evidence.scores import confusion_matrix, metric_names, score_predictions, score_resamples, tally

CLASSES = ("healthy", "early", "late", "end")


def random_case(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[str, ...]]:
    """Labels that cover every class, probabilities with many ties (rounded), positive weights."""
    rng = np.random.default_rng(seed)
    num_classes = int(rng.integers(2, 5))
    rows = int(rng.integers(num_classes, 60))
    y_N = np.concatenate([np.arange(num_classes), rng.integers(0, num_classes, rows - num_classes)])
    probs_NC = np.round(rng.dirichlet(np.full(num_classes, 0.7), rows), int(rng.integers(1, 4)))
    return y_N, probs_NC, rng.integers(1, 5, rows).astype(float), CLASSES[:num_classes]


def sklearn_scores(y_N, probs_NC, weights_N, classes) -> dict[str, float]:
    """The same metrics by scikit-learn; precision of a class never predicted is left out."""
    num_classes = len(classes)
    y_pred_N = probs_NC.argmax(axis=1)
    labels = np.arange(num_classes)
    weighted = {"sample_weight": weights_N}
    averaged = {"labels": labels, "average": None, "zero_division": 0.0} | weighted
    recall_C = sk.recall_score(y_N, y_pred_N, **averaged)
    f1_C = sk.f1_score(y_N, y_pred_N, **averaged)
    precision_C = sk.precision_score(y_N, y_pred_N, **(averaged | {"zero_division": np.nan}))
    auroc_C = [sk.roc_auc_score(y_N == c, probs_NC[:, c], **weighted) for c in labels]
    expected = {
        "accuracy": sk.accuracy_score(y_N, y_pred_N, **weighted),
        "balanced_accuracy": sk.balanced_accuracy_score(y_N, y_pred_N, **weighted),
        "macro_recall": recall_C.mean(),
        "macro_f1": f1_C.mean(),
        "auroc": np.mean(auroc_C),
        "macro_precision": precision_C.mean(),
    }
    for c, name in enumerate(classes):
        expected |= {
            f"recall_{name}": recall_C[c],
            f"f1_{name}": f1_C[c],
            f"precision_{name}": precision_C[c],
            f"auroc_{name}": auroc_C[c],
        }
    return expected


@pytest.mark.parametrize("seed", range(200))
def test_every_metric_equals_scikit_learn_with_and_without_weights(seed):
    y_N, probs_NC, weights_N, classes = random_case(seed)
    for used_N in (np.ones(len(y_N)), weights_N):
        expected = sklearn_scores(y_N, probs_NC, used_N, classes)
        resampled = score_resamples(y_N, probs_NC, classes, used_N[None])
        assert set(resampled) == set(expected) == set(metric_names(classes))
        for name, value in expected.items():
            np.testing.assert_allclose(resampled[name], [value], atol=1e-9, rtol=0, err_msg=name)
    unweighted = score_predictions(y_N, probs_NC, classes)
    for name, value in sklearn_scores(y_N, probs_NC, None, classes).items():
        got = unweighted[name]
        assert isinstance(got, Undefined) if np.isnan(value) else got == pytest.approx(value, abs=1e-9), name


def test_auroc_agrees_with_scikit_learns_own_multiclass_form():
    rng = np.random.default_rng(3)
    y_N, probs_NC = rng.integers(0, 4, 300), rng.dirichlet(np.ones(4), 300)
    expected = sk.roc_auc_score(y_N, probs_NC, multi_class="ovr", average="macro")
    assert score_predictions(y_N, probs_NC, CLASSES)["auroc"] == pytest.approx(expected, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=14))
def test_weighted_auroc_equals_counting_all_pairs(rows):
    """Oracle: the definition, by a loop over repeated rows; ties one half; exact for whole-number weights."""
    y_N = np.array([label for label, _, _ in rows])
    score_N = np.array([score / 4 for _, score, _ in rows])
    weights_N = np.array([weight for _, _, weight in rows])
    pairs = [
        (1.0 if s > t else 0.5 if s == t else 0.0, v * w)
        for y, s, v in zip(y_N, score_N, weights_N)
        if y == 1
        for z, t, w in zip(y_N, score_N, weights_N)
        if z == 0
    ]
    total = sum(weight for _, weight in pairs)
    made = tally(y_N, np.stack([1 - score_N, score_N], axis=1), weights_N[None])
    assert made.auroc_CR is not None
    if total == 0:
        assert np.isnan(made.auroc_CR[1, 0])
    else:
        assert made.auroc_CR[1, 0] == sum(value * weight for value, weight in pairs) / total


def test_a_collapsed_head_has_balanced_accuracy_and_f1_but_no_precision():
    y_N = np.array([0, 0, 0, 1, 2])
    probs_NC = np.tile([0.6, 0.3, 0.1], (5, 1))
    scores = score_predictions(y_N, probs_NC, CLASSES[:3])
    assert scores["balanced_accuracy"] == pytest.approx(1 / 3)
    assert scores["macro_f1"] == pytest.approx((2 * 3 / (2 * 3 + 2)) / 3)
    assert scores["f1_early"] == 0.0
    assert scores["auroc"] == 0.5  # constant scores tie everywhere: computed, not assumed
    assert scores["precision_early"] == Undefined("the class 'early' is never predicted")
    assert scores["macro_precision"] == Undefined("never predicted: 'early', 'late'")


def test_one_class_present_has_accuracy_and_recall_but_no_means_over_classes():
    scores = score_predictions(np.zeros(4, dtype=int), np.tile([0.8, 0.2], (4, 1)), ("a", "b"))
    assert scores["accuracy"] == scores["recall_a"] == 1.0
    only = Undefined("only the class 'a' occurs; a mean over classes needs two")
    assert scores["balanced_accuracy"] == scores["auroc"] == scores["macro_f1"] == scores["macro_precision"] == only
    assert scores["auroc_a"] == Undefined("only the class 'a' occurs; AUROC needs another")
    assert scores["recall_b"] == scores["f1_b"] == scores["auroc_b"] == Undefined("the class 'b' does not occur")


def test_macro_means_are_over_the_classes_that_occur():
    y_N, y_pred_N = np.array([0, 0, 1, 1, 1]), np.array([0, 2, 1, 1, 0])
    probs_NC = np.eye(3)[y_pred_N]
    scores = score_predictions(y_N, probs_NC, CLASSES[:3])
    expected = sk.f1_score(y_N, y_pred_N, labels=[0, 1], average="macro")
    assert scores["macro_f1"] == pytest.approx(expected, abs=1e-12)
    with warnings.catch_warnings():  # scikit-learn warns that y_pred holds a class that y_true lacks
        warnings.simplefilter("ignore")
        assert scores["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(y_N, y_pred_N), abs=1e-12)
    assert scores["precision_late"] == 0.0  # predicted once, wrongly
    assert isinstance(scores["f1_late"], Undefined)


def test_no_rows_is_undefined_everywhere():
    scores = score_predictions(np.zeros(0, dtype=int), np.zeros((0, 2)), ("a", "b"))
    assert set(scores) == set(metric_names(("a", "b")))
    assert all(value == Undefined("there are no rows") for value in scores.values())


def test_a_resample_without_one_of_the_classes_is_undefined_for_macro_metrics():
    y_N, probs_NC = np.array([0, 1, 2]), np.eye(3)
    weights_RN = np.array([[1, 1, 1], [2, 1, 0], [0, 0, 0]], dtype=np.uint16)
    resampled = score_resamples(y_N, probs_NC, CLASSES[:3], weights_RN)
    np.testing.assert_array_equal(resampled["balanced_accuracy"], [1, np.nan, np.nan])
    np.testing.assert_array_equal(resampled["accuracy"], [1, 1, np.nan])
    np.testing.assert_array_equal(resampled["recall_late"], [1, np.nan, np.nan])


def test_blocks_do_not_change_a_bit(monkeypatch):
    rng = np.random.default_rng(5)
    y_N, probs_NC, weights_RN = rng.integers(0, 3, 40), rng.dirichlet(np.ones(3), 40), rng.integers(0, 4, (50, 40))
    whole = score_resamples(y_N, probs_NC, CLASSES[:3], weights_RN)
    monkeypatch.setattr("vitreous.evidence.scores._BLOCK_ELEMENTS", 280)
    pieces = score_resamples(y_N, probs_NC, CLASSES[:3], weights_RN)
    for name, values_R in whole.items():
        np.testing.assert_array_equal(pieces[name], values_R)


def test_named_metrics_only():
    y_N, probs_NC, weights_N, classes = random_case(1)
    named = score_resamples(y_N, probs_NC, classes, weights_N[None], ["accuracy", "recall_early"])
    assert set(named) == {"accuracy", "recall_early"}
    with pytest.raises(ValueError, match=r"no such metric: \['recal_early'\]; known are \['balanced_accuracy'"):
        score_resamples(y_N, probs_NC, classes, weights_N[None], ["recal_early"])


def test_confusion_matrix_equals_scikit_learn():
    rng = np.random.default_rng(0)
    y_N, y_pred_N = rng.integers(0, 4, 100), rng.integers(0, 4, 100)
    expected = sk.confusion_matrix(y_N, y_pred_N, labels=range(5))
    np.testing.assert_array_equal(confusion_matrix(y_N, y_pred_N, 5), expected)
    with pytest.raises(ValueError, match=r"y_pred must lie in \[0, 3\); got values from 0 to 3"):
        confusion_matrix(y_N % 3, y_pred_N, 3)
    with pytest.raises(ValueError, match="differ in length: 99 and 100"):
        confusion_matrix(y_N[1:], y_pred_N, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": [0, 3]}, r"y_true must lie in \[0, 2\); got values from 0 to 3"),
        ({"y": [0, -1]}, r"got values from -1 to 0"),
        ({"probs": [[np.nan, 1.0], [0.5, 0.5]]}, "probs must be finite; 1 of 2 rows"),
        ({"probs": [[1.0, 0.0]]}, r"probs must be \(rows, classes\) for 2 rows; got \(1, 2\)"),
        ({"weights": [[1.0]]}, r"weights must be \(resamples, 2 rows\); got \(1, 1\)"),
        ({"classes": ("a",)}, "1 class names for 2 columns"),
        ({"classes": ("a", "a")}, r"class names must differ; got \['a', 'a'\]"),
    ],
)
def test_bad_input_says_what_is_wrong(change, message):
    good = {"y": [0, 1], "probs": [[0.9, 0.1], [0.2, 0.8]], "weights": [[1.0, 1.0]], "classes": ("a", "b")}

    def score(y, probs, weights, classes):
        return score_resamples(np.array(y), np.array(probs), classes, np.array(weights))

    assert score(**good)["accuracy"] == [1.0]
    with pytest.raises(ValueError, match=message):
        score(**(good | change))
