"""Net benefit: whether acting on a model beats treating all patients, or none.

Axes: N row, R resample, T threshold.

A threshold probability t says how many needless treatments one is willing to take for a needed one: (1 − t) / t. Net
benefit counts needed treatments and subtracts needless ones at that rate; treating nobody has 0. It takes probabilities
at their word, so a badly calibrated model may do worse than treating all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vitreous.core.predictions import Predictions
from vitreous.core.undefined import Undefined
from vitreous.evidence.intervals import Interval, check_same_rows, percentile_interval
from vitreous.evidence.one_vs_rest import one_vs_rest
from vitreous.evidence.scores import FloatArray

THRESHOLDS = tuple(k / 100 for k in range(1, 100))


@dataclass(frozen=True)
class DecisionPoint:
    """Net benefits at one threshold probability, in true positives a row.

    Args:
        model: treat where the probability of the class is at least the threshold; mean over seeds.
        treat_all: treat everybody; treating nobody is 0.
        gain: model minus the better of treating all and treating none, chosen on the cohort itself.
    """

    threshold: float
    model: Interval
    treat_all: Interval
    gain: Interval


def net_benefit(called_N: npt.NDArray[np.bool_], is_positive_N: npt.NDArray[np.bool_], threshold: float) -> float:
    """True positives a row, minus false positives a row times threshold / (1 − threshold).

    Source: Vickers and Elkin (2006).

    >>> net_benefit(np.array([True, True, False]), np.array([True, False, True]), 0.5)
    0.0
    """
    true, false = (called_N & is_positive_N).sum(), (called_N & ~is_positive_N).sum()
    return float((true - false * threshold / (1 - threshold)) / len(called_N))


def decision_curve(
    predictions_by_seed: Sequence[Predictions],
    positive: str,
    weights_RN: npt.NDArray[np.generic],
    thresholds: Sequence[float] = THRESHOLDS,
    level: float = 0.95,
) -> list[DecisionPoint]:
    """Net benefit of a row of the leaderboard at each threshold, with percentile intervals over patients.

    Args:
        predictions_by_seed: on the same rows in the same order.
        thresholds: in (0, 1).
        weights_RN: of :func:`~vitreous.evidence.intervals.resample_weights`, for these rows.
    Raises:
        ValueError: no such class, rows that differ, or a threshold outside (0, 1).
    """
    if bad := [threshold for threshold in thresholds if not 0 < threshold < 1]:
        raise ValueError(f"threshold probabilities lie between 0 and 1; got {bad}")
    check_same_rows({f"seed {k}": one for k, one in enumerate(predictions_by_seed)})
    is_positive_N, _ = one_vs_rest(predictions_by_seed[0], positive)
    threshold_T = np.asarray(thresholds, dtype=np.float64)
    called_STN = np.stack(
        [one_vs_rest(one, positive)[1][None, :] >= threshold_T[:, None] for one in predictions_by_seed]
    )
    odds_T = threshold_T / (1 - threshold_T)
    # what treating a row is worth: 1 for a positive, −odds for another
    worth_TN = np.where(is_positive_N[None, :], 1.0, -odds_T[:, None])
    model_TN = called_STN.mean(axis=0) * worth_TN
    drawn_RN = np.asarray(weights_RN, dtype=np.float64)
    total_R = drawn_RN.sum(axis=1)
    mean_R = np.divide(1.0, total_R, out=np.full(len(total_R), np.nan), where=total_R > 0)
    model_TR, all_TR = (worth @ drawn_RN.T * mean_R for worth in (model_TN, worth_TN))
    num_patients = len(np.unique(predictions_by_seed[0].patient_id_N))

    def interval(value: float, resampled_R: FloatArray) -> Interval:
        shown: float | Undefined = value if len(is_positive_N) else Undefined("there are no rows")
        return percentile_interval(shown, resampled_R, level, num_patients=num_patients)

    points = []
    rows = max(len(is_positive_N), 1)
    for t, threshold in enumerate(threshold_T.tolist()):
        model, treat_all = float(model_TN[t].sum() / rows), float(worth_TN[t].sum() / rows)
        default_R = all_TR[t] if treat_all > 0 else np.zeros_like(total_R)
        points.append(
            DecisionPoint(
                threshold,
                interval(model, model_TR[t]),
                interval(treat_all, all_TR[t]),
                interval(model - max(treat_all, 0.0), model_TR[t] - default_R),
            )
        )
    return points
