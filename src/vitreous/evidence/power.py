"""What a cohort can show: the smallest difference it would find, and how many patients a smaller one would take.

Axes: R resample.

Normal approximation around the standard error of a paired difference that the bootstrap observed: a test of level
`alpha` finds a true difference d with probability Φ(d/SE − z(1−alpha/2)) + Φ(−d/SE − z(1−alpha/2)), and SE² falls with
the number of patients. The standard error is itself an estimate, of these two rows: read the results as rough. They are
no power of what was observed ("post hoc power"), which says no more than the p-value does.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.stats import norm

from vitreous.core.predictions import Predictions
from vitreous.core.undefined import Undefined
from vitreous.evidence.intervals import check_same_rows, mean_over_seeds, mean_scores, percentile_interval
from vitreous.evidence.scores import FloatArray

POWER = 0.8
ALPHA = 0.05
_SAME = 1e-12


@dataclass(frozen=True)
class Reach:
    """What a comparison of two rows on this cohort can show.

    Args:
        num_patients: compared.
        observed: the difference of the cohort.
        standard_error: of the paired difference, over patients.
        smallest: true difference found with probability `power` at two-sided level `alpha`.
        needed_for_observed: patients, about, for which a true difference as large as the observed one would be found
            with that probability; undefined where none was observed.
    """

    num_patients: int
    observed: float | Undefined
    standard_error: float | Undefined
    smallest: float | Undefined
    needed_for_observed: int | Undefined
    power: float
    alpha: float


def paired_reach(
    predictions_by_seed: Sequence[Predictions],
    other_by_seed: Sequence[Predictions],
    metric: str,
    weights_RN: npt.NDArray[np.generic],
    *,
    power: float = POWER,
    alpha: float = ALPHA,
) -> Reach:
    """What the paired comparison of two rows of a leaderboard on this cohort can show.

    Args:
        weights_RN: of :func:`~vitreous.evidence.intervals.resample_weights`, for these rows.
        alpha: of one comparison; for the first step of Holm's correction over m pairs give alpha / m.
    Raises:
        ValueError: rows on different patients, no such metric, or shares that are none.
    """
    check_same_rows({"the second row": other_by_seed[0], "the first row": predictions_by_seed[0]})
    first, other = mean_scores(predictions_by_seed)[metric], mean_scores(other_by_seed)[metric]
    value = first if isinstance(first, Undefined) else other if isinstance(other, Undefined) else first - other
    differences_R = (
        mean_over_seeds(predictions_by_seed, weights_RN, [metric])[metric]
        - mean_over_seeds(other_by_seed, weights_RN, [metric])[metric]
    )
    num_patients = len(np.unique(predictions_by_seed[0].patient_id_N))
    return reach_of_resamples(value, differences_R, num_patients=num_patients, power=power, alpha=alpha)


def reach_of_resamples(
    value: float | Undefined,
    differences_R: FloatArray,
    *,
    num_patients: int,
    power: float = POWER,
    alpha: float = ALPHA,
) -> Reach:
    """As :func:`paired_reach`, from the difference in each common resample (R), NaN where undefined."""
    _check_shares(power, alpha)
    interval = percentile_interval(value, differences_R, 1 - alpha, num_patients=num_patients)
    if isinstance(interval.low, Undefined):
        missing = interval.low
        return Reach(num_patients, value, missing, missing, missing, power, alpha)
    standard_error = float(np.std(differences_R[~np.isnan(differences_R)], ddof=1))
    if standard_error <= _SAME:
        missing = Undefined("the difference is the same in every resample: its standard error is 0")
        return Reach(num_patients, value, missing, missing, missing, power, alpha)
    assert not isinstance(value, Undefined)
    needed: int | Undefined = Undefined("no difference was observed")
    if abs(value) > _SAME:
        needed = patients_needed(value, standard_error, num_patients, power=power, alpha=alpha)
    smallest = smallest_difference(standard_error, power=power, alpha=alpha)
    return Reach(num_patients, value, standard_error, smallest, needed, power, alpha)


def power_of(difference: float, standard_error: float, alpha: float = ALPHA) -> float:
    """Probability that a two-sided test finds this true difference.

    >>> round(power_of(0.0, 0.02), 3), round(power_of(0.056, 0.02), 2)
    (0.05, 0.8)
    """
    _check_positive("standard_error", standard_error)
    bound, effect = norm.isf(alpha / 2), difference / standard_error
    return float(norm.sf(bound - effect) + norm.cdf(-bound - effect))


def smallest_difference(standard_error: float, *, power: float = POWER, alpha: float = ALPHA) -> float:
    """The true difference that a two-sided test finds with this probability: 2.80 standard errors at 80 % and 5 %.

    Raises:
        ValueError: alpha < power < 1 does not hold, or the standard error is not positive.
    """
    _check_shares(power, alpha)
    _check_positive("standard_error", standard_error)
    # without the other tail the difference is a little larger: an upper bound of the root
    upper = float(norm.isf(alpha / 2) + norm.ppf(power)) if power > 0.5 else float(norm.isf(alpha / 2))
    effect = brentq(lambda x: power_of(x, 1.0, alpha) - power, 0.0, upper + 1.0, xtol=1e-13)
    return float(effect) * standard_error


def patients_needed(
    difference: float, standard_error: float, num_patients: int, *, power: float = POWER, alpha: float = ALPHA
) -> int:
    """About how many patients of the same kind a true difference would take.

    Args:
        standard_error: observed with `num_patients`; its square falls with their number.
    Raises:
        ValueError: the difference is 0, or as for :func:`smallest_difference`.

    >>> patients_needed(0.05, 0.02, 300)
    377
    """
    if difference == 0 or not math.isfinite(difference):
        raise ValueError(f"a difference to find is finite and not 0; got {difference}")
    _check_positive("num_patients", num_patients)
    ratio = smallest_difference(standard_error, power=power, alpha=alpha) / abs(difference)
    return math.ceil(num_patients * ratio**2)


def _check_shares(power: float, alpha: float) -> None:
    if not 0 < alpha < power < 1:
        raise ValueError(f"0 < alpha < power < 1 must hold; got alpha {alpha} and power {power}")


def _check_positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be positive and finite; got {value}")
