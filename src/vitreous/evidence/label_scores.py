"""Metrics of several labels a row, as sums of weights: all bootstrap resamples are scored in one pass.

Axes: N row (one participant or sample), C label, R resample, K distinct score. A weight is how often a row was drawn.

Conventions, the same for the cohort and for every resample of it:

- A label is predicted where its probability reaches the label's threshold, which was chosen on val.
- Average precision is Σ (R_k − R_{k−1})·P_k over the distinct scores from above, rows of equal score together
  (scikit-learn's ``average_precision_score``); AUROC counts ties one half.
- All of these need rows with the label and rows without it. Without the ones average precision has no recall, without
  the others every order has the value 1.
- Means over labels are over those that some rows of the cohort have and some have not. A resample that lost one of the
  two is undefined for the mean: dropping the label instead would change what is estimated.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vitreous.core.label_sets import BoolArray
from vitreous.core.undefined import Undefined
from vitreous.evidence.scores import FloatArray, weighted_auroc, weighted_ratio

_BLOCK_ELEMENTS = 1 << 20  # weights held in float64 at once
_RANKS = ("map", "auroc", "ap_")  # metrics that need the scores sorted begin so
_BISECTIONS = 512  # thresholds tried for a label, at most


@dataclass(frozen=True)
class LabelTally:
    """The sums that every metric is made of.

    Args:
        hits_CR, false_CR, missed_CR, passed_CR: summed weights of rows with the label and found, found without having
            it, not found, rightly not found.
        ap_CR, auroc_CR: NaN where one of the two kinds of rows has no weight; None if not asked for.
        exact_R: summed weights of rows of which every label is right; `total_R` of all rows.
        positive_C, negative_C: rows of the cohort with and without the label, drawn or not.
    """

    hits_CR: FloatArray
    false_CR: FloatArray
    missed_CR: FloatArray
    passed_CR: FloatArray
    ap_CR: FloatArray | None
    auroc_CR: FloatArray | None
    exact_R: FloatArray
    total_R: FloatArray
    positive_C: npt.NDArray[np.int64]
    negative_C: npt.NDArray[np.int64]

    @property
    def varies_C(self) -> BoolArray:
        """Labels that some rows of the cohort have and some have not."""
        return np.asarray((self.positive_C > 0) & (self.negative_C > 0))


@dataclass(frozen=True)
class LabelMetric:
    """One row of :data:`LABEL_SET_METRICS` or :data:`LABEL_METRICS`.

    Args:
        title: as printed in tables.
        score: values per resample (R), or per label and resample (C, R); NaN where undefined.
    """

    title: str
    score: Callable[[LabelTally], FloatArray]


def _balanced_accuracy(tally: LabelTally) -> FloatArray:
    sensitivity_CR = weighted_ratio(tally.hits_CR, tally.hits_CR + tally.missed_CR)
    specificity_CR = weighted_ratio(tally.passed_CR, tally.passed_CR + tally.false_CR)
    return 0.5 * (sensitivity_CR + specificity_CR)


def _f1(tally: LabelTally) -> FloatArray:
    values_CR = weighted_ratio(2 * tally.hits_CR, 2 * tally.hits_CR + tally.false_CR + tally.missed_CR)
    has_both_CR = (tally.hits_CR + tally.missed_CR > 0) & (tally.passed_CR + tally.false_CR > 0)
    return np.where(has_both_CR, values_CR, np.nan)


def _ap(tally: LabelTally) -> FloatArray:
    return _asked_for(tally.ap_CR)


def _auroc(tally: LabelTally) -> FloatArray:
    return _asked_for(tally.auroc_CR)


def _asked_for(values_CR: FloatArray | None) -> FloatArray:
    if values_CR is None:
        raise ValueError("this tally was made without ranks; call tally_labels(..., with_ranks=True)")
    return values_CR


def _exact_match(tally: LabelTally) -> FloatArray:
    return weighted_ratio(tally.exact_R, tally.total_R)


def _mean(per_label: Callable[[LabelTally], FloatArray]) -> Callable[[LabelTally], FloatArray]:
    def score(tally: LabelTally) -> FloatArray:
        if not tally.varies_C.any():
            return np.full(tally.total_R.shape, np.nan)
        result: FloatArray = per_label(tally)[tally.varies_C].mean(axis=0)  # NaN in one label makes NaN
        return result

    return score


LABEL_SET_METRICS: dict[str, LabelMetric] = {
    "map": LabelMetric("mAP", _mean(_ap)),
    "auroc": LabelMetric("AUROC, mean over labels", _mean(_auroc)),
    "balanced_accuracy": LabelMetric("balanced accuracy, mean over labels", _mean(_balanced_accuracy)),
    "macro_f1": LabelMetric("macro F1", _mean(_f1)),
    "exact_match": LabelMetric("exact match", _exact_match),
}
LABEL_METRICS: dict[str, LabelMetric] = {
    "ap": LabelMetric("AP", _ap),
    "auroc": LabelMetric("AUROC", _auroc),
    "balanced_accuracy": LabelMetric("balanced accuracy", _balanced_accuracy),
    "f1": LabelMetric("F1", _f1),
}


def label_metric_names(labels: Sequence[str]) -> tuple[str, ...]:
    """All metrics for these labels: those of :data:`LABEL_SET_METRICS`, then ``ap_<label>``, ``auroc_<label>``, …"""
    return (*LABEL_SET_METRICS, *(f"{kind}_{name}" for name in labels for kind in LABEL_METRICS))


def tally_labels(
    targets_NC: BoolArray,
    probs_NC: FloatArray,
    decisions_NC: BoolArray,
    weights_RN: npt.NDArray[np.generic] | None = None,
    *,
    with_ranks: bool = True,
) -> LabelTally:
    """Sum the weights of all resamples; without weights, of the cohort itself (R = 1).

    Args:
        targets_NC: which labels each row has; `decisions_NC` which it is said to have.
        probs_NC: any scores that rank within a label; finite.
        weights_RN: any real type, ≥ 0.
    Raises:
        ValueError: shapes that do not fit, or a score that is not finite.
    """
    targets_NC, decisions_NC = np.asarray(targets_NC, dtype=np.bool_), np.asarray(decisions_NC, dtype=np.bool_)
    probs_NC = np.asarray(probs_NC, dtype=np.float64)
    if probs_NC.ndim != 2 or not targets_NC.shape == decisions_NC.shape == probs_NC.shape:
        raise ValueError(
            f"targets, decisions and probs must have one shape (rows, labels); got {targets_NC.shape}, "
            f"{decisions_NC.shape} and {probs_NC.shape}"
        )
    rows, num_labels = probs_NC.shape
    if not np.isfinite(probs_NC).all():
        bad = int((~np.isfinite(probs_NC)).any(axis=1).sum())
        raise ValueError(f"probs must be finite; {bad} of {rows} rows hold NaN or infinity")
    weights_RN = np.ones((1, rows)) if weights_RN is None else np.asarray(weights_RN)
    if weights_RN.ndim != 2 or weights_RN.shape[1] != rows:
        raise ValueError(f"weights must be (resamples, {rows} rows); got {weights_RN.shape}")
    is_exact_N = (targets_NC == decisions_NC).all(axis=1)
    # five sums of weights by one product: each label's four cells, then exact rows and all rows
    cells_NJ = np.concatenate(
        [
            targets_NC & decisions_NC,
            ~targets_NC & decisions_NC,
            targets_NC & ~decisions_NC,
            ~targets_NC & ~decisions_NC,
            is_exact_N[:, None],
            np.ones((rows, 1), dtype=np.bool_),
        ],
        axis=1,
    ).astype(np.float64)
    sums, precisions, areas = [], [], []
    step = max(1, _BLOCK_ELEMENTS // max(rows, 1))
    for start in range(0, len(weights_RN), step):
        weights_NR = np.ascontiguousarray(weights_RN[start : start + step].T, dtype=np.float64)
        sums.append(cells_NJ.T @ weights_NR)
        if with_ranks:
            columns = [(targets_NC[:, c], probs_NC[:, c], weights_NR) for c in range(num_labels)]
            precisions.append(np.stack([weighted_average_precision(*column) for column in columns]))
            areas.append(np.stack([weighted_auroc(*column) for column in columns]))
    sums_JR = np.concatenate(sums, axis=-1)
    hits, false, missed, passed = (sums_JR[k * num_labels : (k + 1) * num_labels] for k in range(4))
    return LabelTally(
        hits, false, missed, passed,
        np.concatenate(precisions, axis=-1) if with_ranks else None,
        np.concatenate(areas, axis=-1) if with_ranks else None,
        sums_JR[-2], sums_JR[-1], targets_NC.sum(axis=0), (~targets_NC).sum(axis=0),
    )  # fmt: skip


def weighted_average_precision(is_positive_N: BoolArray, scores_N: FloatArray, weights_NR: FloatArray) -> FloatArray:
    """Average precision in every resample (R); NaN where rows with or without the label have no weight.

    Whole-number weights give exact sums, whatever the order of the rows.

    >>> labels, scores = np.array([True, False, True]), np.array([0.9, 0.8, 0.8])
    >>> weighted_average_precision(labels, scores, np.ones((3, 1))).round(3)
    array([0.833])
    """
    order = np.argsort(-scores_N, kind="stable")
    sorted_N = scores_N[order]
    last_K = np.flatnonzero(np.append(sorted_N[1:] != sorted_N[:-1], True)) if len(order) else np.zeros(0, np.int64)
    weights_NR = weights_NR[order]
    found_KR = np.cumsum(weights_NR * is_positive_N[order, None], axis=0)[last_K]
    drawn_KR = np.cumsum(weights_NR, axis=0)[last_K]
    if not len(last_K):
        return np.full(weights_NR.shape[1], np.nan)
    gained_KR = np.diff(found_KR, axis=0, prepend=0.0)
    # no weight drawn so far means that nothing was gained either
    precision_KR = found_KR / np.where(drawn_KR > 0, drawn_KR, 1.0)
    values_R = weighted_ratio((gained_KR * precision_KR).sum(axis=0), found_KR[-1])
    return np.where(drawn_KR[-1] > found_KR[-1], values_R, np.nan)


def score_labels(
    targets_NC: BoolArray, probs_NC: FloatArray, decisions_NC: BoolArray, labels: Sequence[str]
) -> dict[str, float | Undefined]:
    """Every metric of :func:`label_metric_names`, in [0, 1], or the reason why it has no value."""
    cohort = tally_labels(targets_NC, probs_NC, decisions_NC)
    _check_labels(cohort, labels)
    no_rows = "" if len(targets_NC) else "there are no rows"
    result: dict[str, float | Undefined] = {}
    for name, metric in LABEL_SET_METRICS.items():
        value = float(metric.score(cohort)[0])
        constant = no_rows or "no label is there in some rows and missing in others"
        result[name] = Undefined(constant) if np.isnan(value) else value
    per_label = {kind: metric.score(cohort)[:, 0] for kind, metric in LABEL_METRICS.items()}
    for c, name in enumerate(labels):
        only = f"no row has the label {name!r}" if cohort.positive_C[c] == 0 else f"every row has the label {name!r}"
        for kind in LABEL_METRICS:
            value = float(per_label[kind][c])
            result[f"{kind}_{name}"] = Undefined(no_rows or only) if np.isnan(value) else value
    return result


def score_label_resamples(
    targets_NC: BoolArray,
    probs_NC: FloatArray,
    decisions_NC: BoolArray,
    labels: Sequence[str],
    weights_RN: npt.NDArray[np.generic],
    names: Collection[str] | None = None,
) -> dict[str, FloatArray]:
    """Values (R) of every metric in every resample, NaN where undefined; or of the named metrics only.

    Raises:
        ValueError: a name is no metric of these labels, or as for :func:`tally_labels`.
    """
    known = label_metric_names(labels)
    names = known if names is None else names
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"no such metric: {unknown}; known are {list(known)}")
    with_ranks = any(name.startswith(_RANKS) for name in names)
    resampled = tally_labels(targets_NC, probs_NC, decisions_NC, weights_RN, with_ranks=with_ranks)
    _check_labels(resampled, labels)
    result = {name: LABEL_SET_METRICS[name].score(resampled) for name in names if name in LABEL_SET_METRICS}
    for kind, metric in LABEL_METRICS.items():
        wanted = [c for c, name in enumerate(labels) if f"{kind}_{name}" in names]
        if wanted:
            values_CR = metric.score(resampled)
            result |= {f"{kind}_{labels[c]}": values_CR[c] for c in wanted}
    return result


def choose_thresholds(targets_NC: BoolArray, probs_NC: FloatArray) -> FloatArray:
    """The probability of each label (C) from which it is said to be present: that of the highest F1 on these rows.

    Tried are the middles between neighbouring distinct probabilities, at most 512 of them, evenly by rank; on a tie the
    one nearest to 0.5, then the lower. A label that no row or every row has keeps 0.5.

    >>> choose_thresholds(np.array([[True], [False], [True]]), np.array([[0.9], [0.1], [0.3]])).tolist()
    [0.2]
    """
    chosen_C = np.full(probs_NC.shape[1], 0.5)
    for c in range(probs_NC.shape[1]):
        is_positive_N, probs_N = np.asarray(targets_NC[:, c], np.bool_), probs_NC[:, c]
        distinct = np.unique(probs_N)
        if not is_positive_N.any() or is_positive_N.all() or len(distinct) < 2:
            continue
        middles = np.append(0.5 * (distinct[1:] + distinct[:-1]), 0.5)
        if len(middles) > _BISECTIONS:
            kept = np.linspace(0, len(middles) - 2, _BISECTIONS - 1).round().astype(np.int64)
            middles = np.append(middles[kept], 0.5)
        found_TN = probs_N >= middles[:, None]
        hits_T = (found_TN & is_positive_N).sum(axis=1)
        f1_T = 2.0 * hits_T / (found_TN.sum(axis=1) + is_positive_N.sum())
        best = sorted(
            range(len(middles)), key=lambda t: (-round(float(f1_T[t]), 12), abs(middles[t] - 0.5), middles[t])
        )
        chosen_C[c] = middles[best[0]]
    return chosen_C


def _check_labels(made: LabelTally, labels: Sequence[str]) -> None:
    if len(labels) != len(made.positive_C):
        raise ValueError(f"{len(labels)} label names for {len(made.positive_C)} columns of probs")
    if len(set(labels)) != len(labels):
        raise ValueError(f"label names must differ; got {list(labels)}")
