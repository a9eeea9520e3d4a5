"""Reliability curve: of the rows that were given a probability of about p, how many were right.

Axes: N row, B bin, R resample.

The seeds of a leaderboard row are pooled: each row counts once for every seed, and a patient's rows of all seeds are
drawn together. Bins are made on the cohort and kept in its resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, assert_never

import numpy as np
import numpy.typing as npt

from vitreous.core.predictions import Predictions
from vitreous.core.undefined import Undefined
from vitreous.evidence.calibration import NUM_BINS, assign_bins
from vitreous.evidence.intervals import Interval, check_same_rows, percentile_interval
from vitreous.evidence.one_vs_rest import finite_probs, one_vs_rest
from vitreous.evidence.scores import FloatArray, IntArray

Binning = Literal["equal_mass", "equal_width"]


@dataclass(frozen=True)
class ReliabilityBin:
    """One point of the curve.

    Args:
        low, high: the lowest and highest probability in the bin.
        num_rows, num_patients: behind it; rows of all seeds count.
        mean_probability: what was said.
        observed: share that was so; undefined bounds below ten patients.
    """

    low: float
    high: float
    num_rows: int
    num_patients: int
    mean_probability: float
    observed: Interval


def assign_width_bins(prob_N: FloatArray, num_bins: int = NUM_BINS) -> IntArray:
    """The bin (N) of each probability; bins are equally wide from 0 to 1, a bound belongs to the bin below it.

    Raises:
        ValueError: fewer than one bin, or a value outside [0, 1].

    >>> assign_width_bins(np.array([0.0, 0.5, 0.51, 1.0]), 2)
    array([0, 0, 1, 1])
    """
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1; got {num_bins}")
    if len(prob_N) and not (prob_N.min() >= 0 and prob_N.max() <= 1 + 1e-9):
        raise ValueError(f"probabilities lie in [0, 1]; got values from {prob_N.min()} to {prob_N.max()}")
    bins_N: IntArray = np.searchsorted(np.linspace(0, 1, num_bins + 1)[1:-1], prob_N, side="left").astype(np.int64)
    return bins_N


def reliability_curve(
    predictions_by_seed: Sequence[Predictions],
    weights_RN: npt.NDArray[np.generic],
    *,
    positive: str | None = None,
    binning: Binning = "equal_mass",
    num_bins: int = NUM_BINS,
    level: float = 0.95,
) -> list[ReliabilityBin] | Undefined:
    """The bins that hold rows, by rising probability, each with its percentile interval over patients.

    Args:
        predictions_by_seed: on the same rows in the same order.
        weights_RN: of :func:`~vitreous.evidence.intervals.resample_weights`, for these rows.
        positive: the class whose probability is judged; None for that of the predicted class, as in the ECE.
        binning: ``equal_mass``: as many rows in each, equal probabilities together; ``equal_width``: from 0 to 1.
    Raises:
        ValueError: rows that differ, no such class, or fewer than one bin.
    """
    check_same_rows({f"seed {k}": one for k, one in enumerate(predictions_by_seed)})
    judged = [_judged(one, positive) for one in predictions_by_seed]
    prob_N = np.concatenate([prob for prob, _ in judged])
    is_so_N = np.concatenate([is_so for _, is_so in judged])
    if not len(prob_N):
        return Undefined("there are no rows")
    match binning:
        case "equal_mass":
            bins_N = assign_bins(prob_N, num_bins)
        case "equal_width":
            bins_N = assign_width_bins(prob_N, num_bins)
        case _:
            assert_never(binning)
    patient_id_N = np.tile(predictions_by_seed[0].patient_id_N, len(judged))
    drawn_RN = np.asarray(weights_RN, dtype=np.float64)
    curve = []
    for b in np.unique(bins_N).tolist():
        in_bin_SN = (bins_N == b).reshape(len(judged), -1)
        so_R = drawn_RN @ (in_bin_SN & is_so_N.reshape(len(judged), -1)).sum(axis=0)
        total_R = drawn_RN @ in_bin_SN.sum(axis=0)
        share_R = np.divide(so_R, total_R, out=np.full(len(total_R), np.nan), where=total_R > 0)
        members = bins_N == b
        num_patients = len(np.unique(patient_id_N[members]))
        observed = percentile_interval(float(is_so_N[members].mean()), share_R, level, num_patients=num_patients)
        probs = prob_N[members]
        low, high, mean = float(probs.min()), float(probs.max()), float(probs.mean())
        curve.append(ReliabilityBin(low, high, int(members.sum()), num_patients, mean, observed))
    return curve


def _judged(one: Predictions, positive: str | None) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """Probability and whether it came true."""
    if positive is not None:
        is_positive_N, prob_N = one_vs_rest(one, positive)
        return prob_N, is_positive_N
    best_N: FloatArray = finite_probs(one).max(axis=1)
    return best_N, one.y_pred_N == one.y_true_N
