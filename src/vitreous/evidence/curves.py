"""ROC and precision-recall curves, with bands from the resamples that serve everything else.

Axes: N row, R resample, T grid point, K distinct score.

The curve of a leaderboard row is the mean over its seeds, point by point on a grid. A band is pointwise: at each grid
point it holds the middle of the resamples; the whole curve lies in it less often.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vitreous.core.predictions import Predictions
from vitreous.core.undefined import Undefined
from vitreous.evidence.calibration import mean_or_undefined
from vitreous.evidence.intervals import Interval, check_same_rows, percentile_interval
from vitreous.evidence.one_vs_rest import one_vs_rest
from vitreous.evidence.scores import FloatArray

_ReadOff = Callable[[FloatArray, FloatArray, FloatArray], FloatArray]

GRID = tuple(k / 100 for k in range(101))

_BLOCK_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class CurvePoints:
    """Every point of one seed's curve, thresholds falling; a row is called positive at or above its threshold.

    Args:
        threshold_K: distinct scores.
        called_K: share of rows called positive.
        sensitivity_K: also called recall, or true positive rate.
        false_positive_rate_K: 1 − specificity.
        precision_K: share of those called who are positive.
    """

    threshold_K: FloatArray
    called_K: FloatArray
    sensitivity_K: FloatArray
    false_positive_rate_K: FloatArray
    precision_K: FloatArray


@dataclass(frozen=True)
class Band:
    """A curve over a grid with pointwise bounds.

    Args:
        x_T: the grid.
        y_T: mean over seeds.
        bounds: of each point.
    """

    x_T: FloatArray
    y_T: FloatArray
    bounds: tuple[Interval, ...]


def curve_points(predictions: Predictions, positive: str) -> CurvePoints | Undefined:
    """All points of the ROC and the precision-recall curve of one class against the rest.

    Raises:
        ValueError: no such class.
    """
    is_positive_N, prob_N = one_vs_rest(predictions, positive)
    missing = _one_sided(is_positive_N, positive)
    if missing is not None:
        return missing
    threshold_K, true_KR, false_KR = _counts(is_positive_N, prob_N, np.ones((1, len(prob_N))))
    true_K, false_K = true_KR[:, 0], false_KR[:, 0]
    called_K = true_K + false_K
    return CurvePoints(
        threshold_K, called_K / called_K[-1], true_K / true_K[-1], false_K / false_K[-1], true_K / called_K
    )


def roc_band(
    predictions_by_seed: Sequence[Predictions],
    positive: str,
    weights_RN: npt.NDArray[np.generic],
    grid: Sequence[float] = GRID,
    level: float = 0.95,
) -> Band | Undefined:
    """Sensitivity over the false positive rate, straight lines between points; the upper end where it jumps.

    Args:
        predictions_by_seed: on the same rows in the same order.
        grid: false positive rates in [0, 1].
        weights_RN: of :func:`~vitreous.evidence.intervals.resample_weights`, for these rows.
    Raises:
        ValueError: no such class, rows that differ, or a grid point outside [0, 1].
    """
    return _band(predictions_by_seed, positive, weights_RN, grid, level, _sensitivity_at)


def precision_recall_band(
    predictions_by_seed: Sequence[Predictions],
    positive: str,
    weights_RN: npt.NDArray[np.generic],
    grid: Sequence[float] = GRID[1:],
    level: float = 0.95,
) -> Band | Undefined:
    """Precision at the first threshold that reaches a recall, the highest one; never between two points.

    Lines between points of this curve would be too high (Davis and Goadrich 2006).

    Args:
        grid: recalls in (0, 1].
    Raises:
        ValueError: as for :func:`roc_band`.
    """
    if bad := [x for x in grid if not x > 0]:
        raise ValueError(f"recalls lie in (0, 1]; got {bad}")
    return _band(predictions_by_seed, positive, weights_RN, grid, level, _precision_at)


def average_precision(
    predictions_by_seed: Sequence[Predictions],
    positive: str,
    weights_RN: npt.NDArray[np.generic],
    level: float = 0.95,
) -> Interval:
    """Mean precision over the positives, in steps, with its percentile interval; mean over seeds.

    A useless score has the prevalence, not 0.5.

    Raises:
        ValueError: no such class, or rows that differ.
    """
    check_same_rows({f"seed {k}": one for k, one in enumerate(predictions_by_seed)})
    num_patients = len(np.unique(predictions_by_seed[0].patient_id_N))
    values: list[float | Undefined] = []
    resampled = []
    for one in predictions_by_seed:
        is_positive_N, prob_N = one_vs_rest(one, positive)
        if not is_positive_N.any():
            values.append(Undefined(f"there are no rows of {positive!r}"))
            resampled.append(np.full(len(weights_RN), np.nan))
            continue
        values.append(float(_average_precision(is_positive_N, prob_N, np.ones((1, len(prob_N))))[0]))
        resampled.append(_average_precision(is_positive_N, prob_N, weights_RN))
    return percentile_interval(mean_or_undefined(values), np.mean(resampled, axis=0), level, num_patients=num_patients)


def _counts(
    is_positive_N: npt.NDArray[np.bool_], prob_N: FloatArray, weights_RN: npt.NDArray[np.generic]
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Distinct scores (K) falling, and the weight of positives and of others at or above each (K, R)."""
    order = np.argsort(-prob_N, kind="stable")
    last_K = np.flatnonzero(np.append(np.diff(prob_N[order]) != 0, True))
    weights_NR = np.asarray(weights_RN, dtype=np.float64).T[order]
    positive_N1 = is_positive_N[order][:, None]
    true_KR = np.cumsum(weights_NR * positive_N1, axis=0)[last_K]
    false_KR = np.cumsum(weights_NR * ~positive_N1, axis=0)[last_K]
    return prob_N[order][last_K], true_KR, false_KR


def _sensitivity_at(true_K: FloatArray, false_K: FloatArray, grid_T: FloatArray) -> FloatArray:
    if not true_K[-1] or not false_K[-1]:
        return np.full(len(grid_T), np.nan)
    rate_K = np.concatenate([[0.0], false_K / false_K[-1]])
    sensitivity_K = np.concatenate([[0.0], true_K / true_K[-1]])
    # of several points at one rate the last, which is the highest; a grid point may miss it by rounding
    left_T = np.searchsorted(rate_K, grid_T + 1e-12, side="right") - 1
    right_T = np.minimum(left_T + 1, len(rate_K) - 1)
    width_T = rate_K[right_T] - rate_K[left_T]
    part_T = np.zeros(len(grid_T))
    np.divide(np.maximum(grid_T - rate_K[left_T], 0.0), width_T, out=part_T, where=width_T > 0)
    result: FloatArray = sensitivity_K[left_T] + part_T * (sensitivity_K[right_T] - sensitivity_K[left_T])
    return result


def _precision_at(true_K: FloatArray, false_K: FloatArray, grid_T: FloatArray) -> FloatArray:
    if not true_K[-1] or not false_K[-1]:
        return np.full(len(grid_T), np.nan)
    first_T = np.searchsorted(true_K / true_K[-1], grid_T - 1e-12, side="left")
    result: FloatArray = true_K[first_T] / (true_K[first_T] + false_K[first_T])
    return result


def _average_precision(
    is_positive_N: npt.NDArray[np.bool_], prob_N: FloatArray, weights_RN: npt.NDArray[np.generic]
) -> FloatArray:
    blocks = []
    for block_RN in _blocks(weights_RN):
        _, true_KR, false_KR = _counts(is_positive_N, prob_N, block_RN)
        called_KR = true_KR + false_KR
        precision_KR = np.divide(true_KR, called_KR, out=np.zeros_like(true_KR), where=called_KR > 0)
        sum_R = (np.diff(true_KR, axis=0, prepend=0.0) * precision_KR).sum(axis=0)
        blocks.append(np.divide(sum_R, true_KR[-1], out=np.full(len(sum_R), np.nan), where=true_KR[-1] > 0))
    return np.concatenate(blocks)


def _band(
    predictions_by_seed: Sequence[Predictions],
    positive: str,
    weights_RN: npt.NDArray[np.generic],
    grid: Sequence[float],
    level: float,
    read_off: _ReadOff,
) -> Band | Undefined:
    grid_T = np.asarray(grid, dtype=np.float64)
    if not len(grid_T) or grid_T.min() < 0 or grid_T.max() > 1:
        raise ValueError(f"grid points lie in [0, 1]; got {list(grid)}")
    check_same_rows({f"seed {k}": one for k, one in enumerate(predictions_by_seed)})
    is_positive_N, _ = one_vs_rest(predictions_by_seed[0], positive)
    missing = _one_sided(is_positive_N, positive)
    if missing is not None:
        return missing
    own = np.zeros(len(grid_T))
    resampled_RT = np.zeros((len(weights_RN), len(grid_T)))
    for one in predictions_by_seed:
        _, prob_N = one_vs_rest(one, positive)
        curves = []
        for block_RN in (np.ones((1, len(prob_N))), *_blocks(weights_RN)):
            _, true_KR, false_KR = _counts(is_positive_N, prob_N, block_RN)
            curves += [read_off(true_K, false_K, grid_T) for true_K, false_K in zip(true_KR.T, false_KR.T)]
        own += curves[0] / len(predictions_by_seed)
        resampled_RT += np.stack(curves[1:]) / len(predictions_by_seed)
    num_patients = len(np.unique(predictions_by_seed[0].patient_id_N))
    bounds = tuple(
        percentile_interval(float(y), resampled_RT[:, t], level, num_patients=num_patients) for t, y in enumerate(own)
    )
    return Band(grid_T, own, bounds)


def _blocks(weights_RN: npt.NDArray[np.generic]) -> list[npt.NDArray[np.generic]]:
    """The resamples in parts that take little memory as float64."""
    step = max(1, _BLOCK_ELEMENTS // max(weights_RN.shape[1], 1))
    return [weights_RN[start : start + step] for start in range(0, len(weights_RN), step)]


def _one_sided(is_positive_N: npt.NDArray[np.bool_], positive: str) -> Undefined | None:
    if not len(is_positive_N):
        return Undefined("there are no rows")
    if is_positive_N.all():
        return Undefined(f"all rows are of {positive!r}; a curve needs others")
    return None if is_positive_N.any() else Undefined(f"there are no rows of {positive!r}")
