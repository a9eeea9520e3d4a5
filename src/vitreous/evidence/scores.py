"""Classification metrics as sums of weights, so that all bootstrap resamples are scored in one pass.

Axes: N row (one participant), C class, R resample; in a confusion tensor the first C is the true class, the
second the predicted one. A weight is how often a row was drawn into a resample.

Conventions, the same for the cohort and for every resample of it:

- The predicted class is the one of highest probability, the lowest index on a tie.
- Macro means are over the classes that occur among the true labels of the cohort, and need two of them. A
  resample that lost one of these classes is undefined for macro metrics: dropping the class instead would
  change what is being estimated from resample to resample.
- Recall and F1 of a class need rows of that class; F1 is 2TP / (2TP + FP + FN), so it is 0, not undefined, for a
  class that occurs and is never predicted. A collapsed head therefore has a balanced accuracy and a macro F1.
- Precision of a class that is never predicted is 0/0 and undefined, and so is the macro precision with it
  (scikit-learn's ``zero_division=0`` calls it 0).
- AUROC is one class against the rest, by its probability; ties count one half.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vitreous.core.undefined import Undefined

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

_BLOCK_ELEMENTS = 1 << 20  # weights held in float64 at once: 8 MiB, near the size of a core's cache


@dataclass(frozen=True)
class Tally:
    """The sums that every metric is made of.

    Args:
        confusion_CCR: summed weights per true class, predicted class and resample.
        auroc_CR: one-vs-rest area per class and resample, NaN where the class or the rest has no weight;
            None if it was not asked for.
        present_C: the classes that occur in the cohort, drawn or not.
    """

    confusion_CCR: FloatArray
    auroc_CR: FloatArray | None
    present_C: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Metric:
    """One row of :data:`METRICS`.

    Args:
        title: as printed in tables.
        score: values per resample (R) from a tally; NaN where undefined.
        reason: why the value is undefined, given the tally of the cohort itself and the class names.
    """

    title: str
    score: Callable[[Tally], FloatArray]
    reason: Callable[[Tally, Sequence[str]], str]


@dataclass(frozen=True)
class ClassMetric:
    """One row of :data:`CLASS_METRICS`: as :class:`Metric`, for all classes at once (C, R)."""

    title: str
    score: Callable[[Tally], FloatArray]
    reason: Callable[[Tally, Sequence[str], int], str]


def weighted_ratio(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """Quotient, NaN where the denominator is 0."""
    result = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), np.nan)
    np.divide(numerator, denominator, out=result, where=denominator > 0)
    return result


def _correct(tally: Tally) -> FloatArray:
    result: FloatArray = np.einsum("ccr->cr", tally.confusion_CCR)
    return result


def _actual(tally: Tally) -> FloatArray:
    result: FloatArray = tally.confusion_CCR.sum(axis=1)
    return result


def _predicted(tally: Tally) -> FloatArray:
    result: FloatArray = tally.confusion_CCR.sum(axis=0)
    return result


def _accuracy(tally: Tally) -> FloatArray:
    return weighted_ratio(_correct(tally).sum(axis=0), tally.confusion_CCR.sum(axis=(0, 1)))


def _recall(tally: Tally) -> FloatArray:
    return weighted_ratio(_correct(tally), _actual(tally))


def _precision(tally: Tally) -> FloatArray:
    return weighted_ratio(_correct(tally), _predicted(tally))


def _f1(tally: Tally) -> FloatArray:
    values_CR = weighted_ratio(2 * _correct(tally), _actual(tally) + _predicted(tally))
    return np.where(_actual(tally) > 0, values_CR, np.nan)


def _auroc(tally: Tally) -> FloatArray:
    if tally.auroc_CR is None:
        raise ValueError("this tally was made without AUROC; call tally(..., with_auroc=True)")
    return tally.auroc_CR


def _macro(per_class: Callable[[Tally], FloatArray]) -> Callable[[Tally], FloatArray]:
    def score(tally: Tally) -> FloatArray:
        if tally.present_C.sum() < 2:
            return np.full(tally.confusion_CCR.shape[-1], np.nan)
        result: FloatArray = per_class(tally)[tally.present_C].mean(axis=0)  # NaN in one class makes NaN
        return result

    return score


def _no_rows(tally: Tally) -> str:
    return "" if tally.present_C.any() else "there are no rows"


def _empty_reason(tally: Tally, classes: Sequence[str]) -> str:
    return _no_rows(tally)


def _macro_reason(tally: Tally, classes: Sequence[str]) -> str:
    only = [name for name, present in zip(classes, tally.present_C, strict=True) if present]
    return _no_rows(tally) or f"only the class {only[0]!r} occurs; a mean over classes needs two"


def _macro_precision_reason(tally: Tally, classes: Sequence[str]) -> str:
    if tally.present_C.sum() < 2:
        return _macro_reason(tally, classes)
    never_C = tally.present_C & (_predicted(tally)[:, 0] == 0)
    names = ", ".join(repr(name) for name, never in zip(classes, never_C, strict=True) if never)
    return f"never predicted: {names}"


def _rows_reason(tally: Tally, classes: Sequence[str], c: int) -> str:
    return _no_rows(tally) or f"the class {classes[c]!r} does not occur"


def _precision_reason(tally: Tally, classes: Sequence[str], c: int) -> str:
    return _no_rows(tally) or f"the class {classes[c]!r} is never predicted"


def _auroc_reason(tally: Tally, classes: Sequence[str], c: int) -> str:
    if not tally.present_C[c]:
        return _rows_reason(tally, classes, c)
    return f"only the class {classes[c]!r} occurs; AUROC needs another"


METRICS: dict[str, Metric] = {
    "balanced_accuracy": Metric("balanced accuracy", _macro(_recall), _macro_reason),
    "auroc": Metric("AUROC, macro one-vs-rest", _macro(_auroc), _macro_reason),
    "accuracy": Metric("accuracy", _accuracy, _empty_reason),
    "macro_f1": Metric("macro F1", _macro(_f1), _macro_reason),
    "macro_precision": Metric("macro precision", _macro(_precision), _macro_precision_reason),
    "macro_recall": Metric("macro recall", _macro(_recall), _macro_reason),
}
CLASS_METRICS: dict[str, ClassMetric] = {
    "recall": ClassMetric("recall", _recall, _rows_reason),
    "precision": ClassMetric("precision", _precision, _precision_reason),
    "f1": ClassMetric("F1", _f1, _rows_reason),
    "auroc": ClassMetric("AUROC", _auroc, _auroc_reason),
}


def metric_names(classes: Sequence[str]) -> tuple[str, ...]:
    """All metrics for these classes: those of :data:`METRICS`, then ``recall_<class>``, ``precision_<class>``, …"""
    return (*METRICS, *(f"{kind}_{name}" for name in classes for kind in CLASS_METRICS))


def confusion_matrix(y_true_N: IntArray, y_pred_N: IntArray, num_classes: int) -> IntArray:
    """Counts (C, C), rows the true class, columns the predicted one.

    Raises:
        ValueError: an index lies outside [0, num_classes), or the lengths differ.
    """
    for name, indices_N in (("y_true", y_true_N), ("y_pred", y_pred_N)):
        _check_indices(name, indices_N, num_classes)
    if len(y_true_N) != len(y_pred_N):
        raise ValueError(f"y_true and y_pred differ in length: {len(y_true_N)} and {len(y_pred_N)}")
    cells_N = np.asarray(y_true_N) * num_classes + np.asarray(y_pred_N)
    return np.bincount(cells_N, minlength=num_classes**2).reshape(num_classes, num_classes).astype(np.int64)


def quadratic_weighted_kappa(confusion_CCR: FloatArray) -> FloatArray:
    """Agreement of ordered classes beyond chance, by squared distance of the grades; 1 perfect, 0 chance.

    Args:
        confusion_CCR: summed weights per true class, predicted class and resample, classes in order of severity.
    Returns:
        Values (R) in [-1, 1]; NaN where truth and prediction are all of one and the same class.
    Source: Cohen (1968), weighted kappa.

    >>> quadratic_weighted_kappa(np.array([[2.0, 0.0], [0.0, 1.0]])[..., None])
    array([1.])
    """
    num_classes = len(confusion_CCR)
    grades_C = np.arange(num_classes)
    distance_CC = (grades_C[:, None] - grades_C[None, :]) ** 2.0
    observed_R = np.einsum("tp,tpr->r", distance_CC, confusion_CCR)
    chance_R = np.einsum("tp,tr,pr->r", distance_CC, confusion_CCR.sum(axis=1), confusion_CCR.sum(axis=0))
    return 1.0 - weighted_ratio(observed_R * confusion_CCR.sum(axis=(0, 1)), chance_R)


def tally(
    y_true_N: IntArray,
    probs_NC: FloatArray,
    weights_RN: npt.NDArray[np.generic] | None = None,
    *,
    with_auroc: bool = True,
) -> Tally:
    """Sum the weights of all resamples; without weights, of the cohort itself (R = 1).

    Args:
        y_true_N: class indices in [0, C).
        probs_NC: any scores that rank within a class; finite.
        weights_RN: any real type, ≥ 0.
    Raises:
        ValueError: shapes that do not fit, an index outside the classes, a score that is not finite.
    """
    y_true_N, probs_NC = np.asarray(y_true_N, dtype=np.int64), np.asarray(probs_NC, dtype=np.float64)
    if probs_NC.ndim != 2 or len(probs_NC) != len(y_true_N):
        raise ValueError(f"probs must be (rows, classes) for {len(y_true_N)} rows; got {probs_NC.shape}")
    rows, num_classes = probs_NC.shape
    _check_indices("y_true", y_true_N, num_classes)
    if not np.isfinite(probs_NC).all():
        bad = int((~np.isfinite(probs_NC)).any(axis=1).sum())
        raise ValueError(f"probs must be finite; {bad} of {rows} rows hold NaN or infinity")
    weights_RN = np.ones((1, rows)) if weights_RN is None else np.asarray(weights_RN)
    if weights_RN.ndim != 2 or weights_RN.shape[1] != rows:
        raise ValueError(f"weights must be (resamples, {rows} rows); got {weights_RN.shape}")
    present_C = np.bincount(y_true_N, minlength=num_classes) > 0
    y_pred_N = np.argmax(probs_NC, axis=1) if rows else np.zeros(0, dtype=np.int64)
    confusion, areas = [], []
    step = max(1, _BLOCK_ELEMENTS // max(rows, 1))
    for start in range(0, len(weights_RN), step):
        # rows first: the gathers and running sums below then work on contiguous memory
        weights_NR = np.ascontiguousarray(weights_RN[start : start + step].T, dtype=np.float64)
        confusion.append(_weighted_confusion(y_true_N, y_pred_N, num_classes, weights_NR))
        if with_auroc:
            areas.append(
                np.stack([weighted_auroc(y_true_N == c, probs_NC[:, c], weights_NR) for c in range(num_classes)])
            )
    return Tally(np.concatenate(confusion, axis=-1), np.concatenate(areas, axis=-1) if with_auroc else None, present_C)


def score_predictions(y_true_N: IntArray, probs_NC: FloatArray, classes: Sequence[str]) -> dict[str, float | Undefined]:
    """Every metric of :func:`metric_names`, in [0, 1], or the reason why it has no value.

    >>> scores = score_predictions(np.array([0, 1, 1]), np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]), ("a", "b"))
    >>> scores["balanced_accuracy"], scores["auroc"]
    (0.75, 1.0)
    """
    cohort = tally(y_true_N, probs_NC)
    _check_classes(cohort, classes)
    result: dict[str, float | Undefined] = {}
    for name, metric in METRICS.items():
        value = float(metric.score(cohort)[0])
        result[name] = Undefined(metric.reason(cohort, classes)) if np.isnan(value) else value
    per_class = {kind: metric.score(cohort)[:, 0] for kind, metric in CLASS_METRICS.items()}
    for c, name in enumerate(classes):
        for kind, class_metric in CLASS_METRICS.items():
            value = float(per_class[kind][c])
            result[f"{kind}_{name}"] = Undefined(class_metric.reason(cohort, classes, c)) if np.isnan(value) else value
    return result


def score_resamples(
    y_true_N: IntArray,
    probs_NC: FloatArray,
    classes: Sequence[str],
    weights_RN: npt.NDArray[np.generic],
    names: Collection[str] | None = None,
) -> dict[str, FloatArray]:
    """Values (R) of every metric in every resample, NaN where undefined; or of the named metrics only.

    Raises:
        ValueError: a name is no metric of these classes, or as for :func:`tally`.
    """
    known = metric_names(classes)
    names = known if names is None else names
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"no such metric: {unknown}; known are {list(known)}")
    resampled = tally(y_true_N, probs_NC, weights_RN, with_auroc=any(name.startswith("auroc") for name in names))
    _check_classes(resampled, classes)
    result = {name: METRICS[name].score(resampled) for name in names if name in METRICS}
    for kind, class_metric in CLASS_METRICS.items():
        wanted = [c for c, name in enumerate(classes) if f"{kind}_{name}" in names]
        if wanted:
            values_CR = class_metric.score(resampled)
            result |= {f"{kind}_{classes[c]}": values_CR[c] for c in wanted}
    return result


def _weighted_confusion(y_true_N: IntArray, y_pred_N: IntArray, num_classes: int, weights_NR: FloatArray) -> FloatArray:
    cells, cell_N = np.unique(y_true_N * num_classes + y_pred_N, return_inverse=True)
    membership_KN = (cell_N[None, :] == np.arange(len(cells))[:, None]).astype(np.float64)
    confusion = np.zeros((num_classes**2, weights_NR.shape[1]))
    confusion[cells] = membership_KN @ weights_NR
    return confusion.reshape(num_classes, num_classes, -1)


def weighted_auroc(is_positive_N: npt.NDArray[np.bool_], scores_N: FloatArray, weights_NR: FloatArray) -> FloatArray:
    """Share of weighted (positive, negative) pairs in the right order, ties one half; NaN without pairs.

    Whole-number weights give exact sums, whatever the order of the rows.
    """
    negative = np.flatnonzero(~is_positive_N)
    negative = negative[np.argsort(scores_N[negative], kind="stable")]
    positive = np.flatnonzero(is_positive_N)
    below_QR = np.zeros((len(negative) + 1, weights_NR.shape[1]))  # weight of the q lowest negatives
    np.cumsum(weights_NR[negative], axis=0, out=below_QR[1:])
    lower_P = np.searchsorted(scores_N[negative], scores_N[positive], side="left")
    upper_P = np.searchsorted(scores_N[negative], scores_N[positive], side="right")
    outranked_PR = below_QR[lower_P]
    outranked_PR += below_QR[upper_P]
    positive_PR = weights_NR[positive]
    doubled_R = np.einsum("pr,pr->r", positive_PR, outranked_PR)
    return weighted_ratio(0.5 * doubled_R, positive_PR.sum(axis=0) * below_QR[-1])


def _check_indices(name: str, indices_N: IntArray, num_classes: int) -> None:
    indices_N = np.asarray(indices_N)
    if indices_N.size and (indices_N.min() < 0 or indices_N.max() >= num_classes):
        raise ValueError(
            f"{name} must lie in [0, {num_classes}); got values from {indices_N.min()} to {indices_N.max()}"
        )


def _check_classes(made: Tally, classes: Sequence[str]) -> None:
    if len(classes) != len(made.present_C):
        raise ValueError(f"{len(classes)} class names for {len(made.present_C)} columns of probs")
    if len(set(classes)) != len(classes):
        raise ValueError(f"class names must differ; got {list(classes)}")
