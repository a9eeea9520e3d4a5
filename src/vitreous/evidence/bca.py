"""BCa intervals: percentile bounds moved for the bias and the skewness of the resamples.

Axes: N row, P patient, R resample.

The percentile interval assumes that resamples spread around the truth as evenly as around the cohort. Near 0 and 1, or
where a metric is biased in small cohorts, they do not; BCa (bias-corrected and accelerated) then picks other quantiles
of the same resamples. Both are given, side by side; where BCa is undefined the percentile interval may still stand.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

from vitreous.core.predictions import Predictions
from vitreous.core.undefined import Undefined
from vitreous.evidence.intervals import Interval, mean_over_seeds, mean_scores, percentile_interval
from vitreous.evidence.scores import FloatArray

_SAME = 1e-12  # values this close are one: resamples add the same numbers in another order


@dataclass(frozen=True)
class BootstrapInterval:
    """Two intervals of one value from the same resamples.

    Args:
        percentile: the middle of the resamples.
        bca: quantiles moved by `bias` and `acceleration`.
        bias: z0, the normal quantile of the share of resamples below the cohort's value; 0 without bias.
        acceleration: a, a sixth of the skewness of leave-one-patient-out values; 0 without skewness.
    """

    percentile: Interval
    bca: Interval
    bias: float | Undefined
    acceleration: float | Undefined


def leave_one_out_weights(patient_id_N: npt.NDArray[np.str_]) -> npt.NDArray[np.uint8]:
    """Weights (P, N) that leave out one patient each, with all rows; patients sorted by id.

    >>> leave_one_out_weights(np.array(["b", "a", "b"]))
    array([[1, 0, 1],
           [0, 1, 0]], dtype=uint8)
    """
    patients, patient_N = np.unique(patient_id_N, return_inverse=True)
    result: npt.NDArray[np.uint8] = (patient_N[None, :] != np.arange(len(patients))[:, None]).astype(np.uint8)
    return result


def bootstrap_intervals_with_bca(
    predictions_by_seed: Sequence[Predictions],
    weights_RN: npt.NDArray[np.generic],
    level: float = 0.95,
    names: Collection[str] | None = None,
) -> dict[str, BootstrapInterval]:
    """Percentile and BCa intervals of every metric, or of the named ones, for one row of a leaderboard.

    Costs one scored resample more for each patient.

    Args:
        predictions_by_seed: one per seed, on the same rows in the same order.
        weights_RN: of :func:`~vitreous.evidence.intervals.resample_weights`, for these rows.
        level: in (0, 1).
    Raises:
        ValueError: the seeds are not about the same rows, the weights do not fit, or the level is no share.
    """
    values = mean_scores(predictions_by_seed)
    resampled = mean_over_seeds(predictions_by_seed, weights_RN, names)
    left_out_PN = leave_one_out_weights(predictions_by_seed[0].patient_id_N)
    jackknife = mean_over_seeds(predictions_by_seed, left_out_PN, list(resampled))
    return {name: bca_interval(values[name], resampled[name], jackknife[name], level) for name in resampled}


def bca_interval(
    value: float | Undefined, resampled_R: FloatArray, jackknife_P: FloatArray, level: float = 0.95
) -> BootstrapInterval:
    """Both intervals of any number.

    Args:
        value: of the cohort itself.
        resampled_R: in each resample, NaN where undefined.
        jackknife_P: with one patient left out, NaN where undefined.
    Raises:
        ValueError: the level is no share.
    Source: Efron (1987); Efron and Tibshirani (1993), sections 14.3 and 15.4. Resamples equal to the value count half.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1; got {level}")
    percentile = percentile_interval(value, resampled_R, level, num_patients=len(jackknife_P))
    if isinstance(value, Undefined) or isinstance(percentile.low, Undefined):
        missing = value if isinstance(value, Undefined) else percentile.low
        assert isinstance(missing, Undefined)
        return BootstrapInterval(percentile, percentile, missing, missing)
    defined_R = resampled_R[~np.isnan(resampled_R)]
    bias, acceleration = bias_correction(value, defined_R), jackknife_acceleration(jackknife_P)
    for part in (bias, acceleration):
        if isinstance(part, Undefined):
            return BootstrapInterval(percentile, replace(percentile, low=part, high=part), bias, acceleration)
    assert not isinstance(bias, Undefined)
    assert not isinstance(acceleration, Undefined)
    shifted = bias + ndtri(np.array([(1 - level) / 2, (1 + level) / 2]))
    if (acceleration * shifted >= 1).any():
        missing = Undefined(f"an acceleration of {acceleration:.2f} is too strong for a BCa interval")
        return BootstrapInterval(percentile, replace(percentile, low=missing, high=missing), bias, acceleration)
    low, high = np.quantile(defined_R, ndtr(bias + shifted / (1 - acceleration * shifted)))
    return BootstrapInterval(percentile, replace(percentile, low=float(low), high=float(high)), bias, acceleration)


def bias_correction(value: float, resampled_R: FloatArray) -> float | Undefined:
    """z0: the normal quantile of the share of resamples below the value, ties one half.

    >>> bias_correction(0.5, np.array([0.4, 0.5, 0.6]))
    0.0
    """
    share = ((resampled_R < value - _SAME).mean() + (resampled_R <= value + _SAME).mean()) / 2
    if not 0 < share < 1:
        return Undefined("all resamples lie on one side of the value: its bias cannot be told")
    return float(ndtri(share))


def jackknife_acceleration(jackknife_P: FloatArray) -> float | Undefined:
    """a: Σ d³ / (6 (Σ d²)^1.5), d the mean of the leave-one-patient-out values minus each of them."""
    undefined = int(np.isnan(jackknife_P).sum())
    if undefined:
        return Undefined(f"without any one of {undefined} patients the metric is undefined: no acceleration")
    if not len(jackknife_P) or np.ptp(jackknife_P) <= _SAME:
        return Undefined("the value is the same whichever patient is left out: no acceleration")
    difference_P = jackknife_P.mean() - jackknife_P
    return float((difference_P**3).sum() / (6 * (difference_P**2).sum() ** 1.5))
