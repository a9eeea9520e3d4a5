"""The one place that knows which metrics go with which kind of label: classes, or several labels a row.

Axes: N row, C class or label, R resample.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from vitreous.core.label_sets import Task
from vitreous.core.predictions import Predictions
from vitreous.core.undefined import Undefined
from vitreous.evidence.label_scores import (
    LABEL_METRICS,
    LABEL_SET_METRICS,
    choose_thresholds,
    label_metric_names,
    score_label_resamples,
    score_labels,
)
from vitreous.evidence.scores import (
    CLASS_METRICS,
    METRICS,
    FloatArray,
    metric_names,
    score_predictions,
    score_resamples,
)

_Weights = npt.NDArray[np.generic]


class Titled(Protocol):
    """What tables need of a metric."""

    @property
    def title(self) -> str: ...


@dataclass(frozen=True)
class TaskScores:
    """The metrics of one kind of label.

    Args:
        metrics: of a whole cohort, the primary one by default first.
        class_metrics: of each class or label; their names are ``<kind>_<class>``.
        beside: metrics that tables show beside the primary one.
        noun: what a column of the probabilities is.
        names: all metrics for these classes.
        score: of the cohort itself.
        resample: of every resample.
    """

    metrics: Mapping[str, Titled]
    class_metrics: Mapping[str, Titled]
    beside: tuple[str, ...]
    noun: Literal["class", "label"]
    names: Callable[[Sequence[str]], tuple[str, ...]]
    score: Callable[[Predictions], dict[str, float | Undefined]]
    resample: Callable[[Predictions, _Weights, Collection[str] | None], dict[str, FloatArray]]


TASK_SCORES: dict[Task, TaskScores] = {
    "multi_class": TaskScores(
        METRICS,
        CLASS_METRICS,
        ("balanced_accuracy", "auroc", "accuracy", "macro_f1"),
        "class",
        metric_names,
        lambda one: score_predictions(one.y_true_N, one.probs_NC, one.classes),
        lambda one, weights_RN, names: score_resamples(one.y_true_N, one.probs_NC, one.classes, weights_RN, names),
    ),
    "multi_label": TaskScores(
        LABEL_SET_METRICS,
        LABEL_METRICS,
        ("map", "auroc", "balanced_accuracy", "macro_f1", "exact_match"),
        "label",
        label_metric_names,
        lambda one: score_labels(one.targets_NC, one.probs_NC, one.decisions_NC, one.classes),
        lambda one, weights_RN, names: score_label_resamples(
            one.targets_NC, one.probs_NC, one.decisions_NC, one.classes, weights_RN, names
        ),
    ),
}


def score_rows(predictions: Predictions) -> dict[str, float | Undefined]:
    """Every metric of the rows, in [0, 1], or the reason why it has no value."""
    return TASK_SCORES[predictions.task].score(predictions)


def resample_rows(
    predictions: Predictions, weights_RN: _Weights, names: Collection[str] | None = None
) -> dict[str, FloatArray]:
    """Values (R) of every metric, or of the named ones, in every resample; NaN where undefined."""
    return TASK_SCORES[predictions.task].resample(predictions, weights_RN, names)


def metric_names_of(predictions: Predictions) -> tuple[str, ...]:
    """All metrics of predictions like these."""
    return TASK_SCORES[predictions.task].names(predictions.classes)


def co_occurrence(predictions: Predictions) -> npt.NDArray[np.int64]:
    """Rows with true class or label a (first axis) that are said to have b: of classes, the confusion matrix."""
    table_CC: npt.NDArray[np.int64] = predictions.targets_NC.astype(np.int64).T @ predictions.decisions_NC.astype(
        np.int64
    )
    return table_CC


def true_co_occurrence(predictions: Predictions) -> npt.NDArray[np.int64]:
    """Rows that have both label a and label b; on the diagonal those that have a."""
    has_NC = predictions.targets_NC.astype(np.int64)
    table_CC: npt.NDArray[np.int64] = has_NC.T @ has_NC
    return table_CC


def with_chosen_thresholds(predictions: Predictions, scored_val: Predictions) -> Predictions:
    """Predictions of labels with the thresholds of highest F1 on val; those of classes need none and stay as they are.

    Args:
        scored_val: as metrics count them (patients, or samples).
    """
    if predictions.task == "multi_class":
        return predictions
    return predictions.with_thresholds(choose_thresholds(scored_val.targets_NC, scored_val.probs_NC).tolist())
