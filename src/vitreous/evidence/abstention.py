"""What a row would score if it kept silent where it is least sure.

Axes: N row, R resample, G group of equal confidence.

Confidence is the highest class probability. Rows of equal confidence are kept or left out together, so that nothing
depends on the order of rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vitreous.core.predictions import Predictions
from vitreous.core.undefined import Undefined
from vitreous.evidence.calibration import mean_or_undefined
from vitreous.evidence.intervals import Interval, check_same_rows, percentile_interval
from vitreous.evidence.one_vs_rest import finite_probs
from vitreous.evidence.scores import FloatArray
from vitreous.evidence.task_scores import resample_rows

COVERAGES = tuple(k / 20 for k in range(2, 21))
_BLOCK_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class AbstentionPoint:
    """The metric on the rows answered, mean over seeds.

    Args:
        asked: the share of rows to answer at least.
        coverage: the share answered, ties included.
    """

    asked: float
    coverage: float
    metric: Interval


def kept_rows(confidence_N: FloatArray, coverage: float) -> npt.NDArray[np.bool_]:
    """The most confident rows (N), at least this share of them, those tied with the last one included.

    >>> kept_rows(np.array([0.9, 0.5, 0.7, 0.7]), 0.5)
    array([ True, False,  True,  True])
    """
    if not len(confidence_N):
        return np.zeros(0, dtype=bool)
    wanted = max(1, int(np.ceil(coverage * len(confidence_N) - 1e-9)))
    result: npt.NDArray[np.bool_] = confidence_N >= np.sort(confidence_N)[-wanted]
    return result


def abstention_curve(
    predictions_by_seed: Sequence[Predictions],
    metric: str,
    weights_RN: npt.NDArray[np.generic],
    coverages: Sequence[float] = COVERAGES,
    level: float = 0.95,
) -> list[AbstentionPoint]:
    """A metric against the share of rows answered, with percentile intervals over patients.

    Which rows are answered is decided on the cohort and kept in its resamples. A metric over classes is undefined once
    a class of the cohort has no row left: leaving it out would change what is measured along the curve.

    Args:
        predictions_by_seed: on the same rows in the same order; each seed keeps its own most confident rows.
        coverages: in (0, 1].
    Raises:
        ValueError: a coverage outside (0, 1], rows that differ, or no such metric.
    """
    if bad := [coverage for coverage in coverages if not 0 < coverage <= 1]:
        raise ValueError(f"coverages lie in (0, 1]; got {bad}")
    check_same_rows({f"seed {k}": one for k, one in enumerate(predictions_by_seed)})
    patient_id_N = predictions_by_seed[0].patient_id_N
    drawn_RN = np.asarray(weights_RN, dtype=np.float64)
    points = []
    for asked in coverages:
        values: list[float | Undefined] = []
        resampled, shares = [], []
        answered_N = np.zeros(len(patient_id_N), dtype=bool)
        for one in predictions_by_seed:
            kept_N = kept_rows(finite_probs(one).max(axis=1), asked)
            answered_N = answered_N | kept_N
            weights = np.concatenate([np.ones((1, len(kept_N))), drawn_RN]) * kept_N
            scored = resample_rows(one, weights, [metric])[metric]
            values.append(_value(scored[0], one, kept_N, metric))
            resampled.append(scored[1:])
            shares.append(float(kept_N.mean()) if len(kept_N) else 0.0)
        num_patients = len(np.unique(patient_id_N[answered_N]))
        interval = percentile_interval(
            mean_or_undefined(values), np.mean(resampled, axis=0), level, num_patients=num_patients
        )
        points.append(AbstentionPoint(asked, float(np.mean(shares)), interval))
    return points


def risk_coverage_area(confidence_N: FloatArray, is_wrong_N: npt.NDArray[np.bool_]) -> float | Undefined:
    """Mean, over all numbers of rows answered, of the share wrong among the most confident ones; 0 best, 1 worst.

    Among equal confidences it is the mean over all orders. A model of useless confidence has its error rate.

    Source: Geifman and El-Yaniv (2017), AURC as in Geifman, Uziel and El-Yaniv (2019).

    >>> risk_coverage_area(np.array([0.9, 0.6]), np.array([False, True]))
    0.25
    """
    if not len(confidence_N):
        return Undefined("there are no rows")
    return float(_areas(confidence_N, is_wrong_N, np.ones((1, len(confidence_N)), dtype=np.int64))[0])


def risk_coverage_interval(
    predictions_by_seed: Sequence[Predictions], weights_RN: npt.NDArray[np.generic], level: float = 0.95
) -> Interval:
    """:func:`risk_coverage_area` with its percentile interval over patients, mean over seeds.

    Raises:
        ValueError: rows that differ.
    """
    check_same_rows({f"seed {k}": one for k, one in enumerate(predictions_by_seed)})
    values, resampled = [], []
    for one in predictions_by_seed:
        confidence_N, is_wrong_N = finite_probs(one).max(axis=1), one.y_pred_N != one.y_true_N
        values.append(risk_coverage_area(confidence_N, is_wrong_N))
        resampled.append(_areas(confidence_N, is_wrong_N, np.asarray(weights_RN, dtype=np.int64)))
    num_patients = len(np.unique(predictions_by_seed[0].patient_id_N))
    return percentile_interval(mean_or_undefined(values), np.mean(resampled, axis=0), level, num_patients=num_patients)


def _areas(confidence_N: FloatArray, is_wrong_N: npt.NDArray[np.bool_], counts_RN: npt.NDArray[np.int64]) -> FloatArray:
    """The area of each resample (R), rows repeated by whole numbers; NaN for an empty one.

    Inside a group of g rows of equal confidence, of which a share e is wrong, after k rows with w wrong, the expected
    risk of the j-th is (w + j e) / (k + j) = e + (w − k e) / (k + j); its sum needs harmonic numbers only.
    """
    if not len(confidence_N):
        return np.full(len(counts_RN), np.nan)
    order = np.argsort(-confidence_N, kind="stable")
    first_G = np.flatnonzero(np.append(True, np.diff(confidence_N[order]) != 0))
    areas = []
    step = max(1, _BLOCK_ELEMENTS // len(order))
    for start in range(0, len(counts_RN), step):
        counts = counts_RN[start : start + step, order]
        rows_RG = np.add.reduceat(counts, first_G, axis=1)
        wrong_RG = np.add.reduceat(counts * is_wrong_N[order], first_G, axis=1)
        upto_RG, wrong_upto_RG = np.cumsum(rows_RG, axis=1), np.cumsum(wrong_RG, axis=1)
        before_RG, wrong_before_RG = upto_RG - rows_RG, wrong_upto_RG - wrong_RG
        share_RG = np.divide(wrong_RG, rows_RG, out=np.zeros(rows_RG.shape), where=rows_RG > 0)
        total_R = upto_RG[:, -1]
        harmonic_K = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, int(total_R.max()) + 1))])
        steps_RG = harmonic_K[upto_RG] - harmonic_K[before_RG]
        sum_R = (wrong_RG + (wrong_before_RG - before_RG * share_RG) * steps_RG).sum(axis=1)
        areas.append(np.divide(sum_R, total_R, out=np.full(len(total_R), np.nan), where=total_R > 0))
    return np.concatenate(areas)


def _value(scored: float, one: Predictions, kept_N: npt.NDArray[np.bool_], metric: str) -> float | Undefined:
    if not np.isnan(scored):
        return float(scored)
    if not kept_N.any():
        return Undefined("there are no rows")
    lost = sorted(set(one.y_true_N.tolist()) - set(one.y_true_N[kept_N].tolist()))
    if lost:
        return Undefined(f"no row of {', '.join(repr(one.classes[c]) for c in lost)} is answered")
    return Undefined(f"{metric} has no value on the {int(kept_N.sum())} rows answered")
