"""Which rows can be told apart: paired bootstrap tests of all pairs on the same resampled patients.

Axes: N row of the predictions (one participant), R resample, K row of the leaderboard.

All pairs form one family for Holm's correction. It is wider than the comparisons with the best row need, and buys
two things: the letters, the ranks and the adjusted p-values never contradict each other, and the correction covers
that the best row was picked by looking at the same patients.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
from statsmodels.stats.multitest import multipletests

from vitreous.core.predictions import Predictions
from vitreous.core.undefined import Undefined
from vitreous.evidence.intervals import check_same_rows, mean_over_seeds, mean_scores, percentile_interval
from vitreous.evidence.letters import compact_letters
from vitreous.evidence.scores import FloatArray


@dataclass(frozen=True)
class Difference:
    """One row's metric minus another's, on the same patients.

    Args:
        value: of the cohort itself.
        low, high: percentile bounds, not adjusted for the number of comparisons.
        p: two-sided bootstrap p-value, not adjusted; see :func:`bootstrap_p`.
        p_holm: adjusted for all pairs of the leaderboard.
    """

    value: float | Undefined
    low: float | Undefined
    high: float | Undefined
    p: float | Undefined
    p_holm: float | Undefined


@dataclass(frozen=True)
class Comparison:
    """All rows of a leaderboard on one metric.

    Args:
        metric: its name.
        alpha: adjusted p-values below it tell two rows apart.
        value: the metric of each row, mean over seeds.
        best: the row of the highest value, the first of them on a tie; None where no row has a value.
        letters: compact letter display; empty for a row whose metric is undefined.
        rank: 1 + the number of rows that are better and told apart from it; rows that cannot be told apart from
            any better one share rank 1. None where the metric is undefined.
    """

    metric: str
    alpha: float
    value: Mapping[str, float | Undefined]
    best: str | None
    letters: Mapping[str, str]
    rank: Mapping[str, int | None]
    _pairs: Mapping[tuple[str, str], Difference]

    def difference(self, row: str, other: str) -> Difference:
        """`row` minus `other`; of a row with itself 0, without a p-value."""
        if row == other:
            same = Undefined("a row is not compared with itself")
            value = self.value[row]
            return Difference(value if isinstance(value, Undefined) else 0.0, same, same, same, same)
        if (row, other) in self._pairs:
            return self._pairs[row, other]
        turned = self._pairs[other, row]
        return Difference(_minus(turned.value), _minus(turned.high), _minus(turned.low), turned.p, turned.p_holm)

    def difference_to_best(self, row: str) -> Difference:
        """`row` minus the best row: at most 0.

        Raises:
            ValueError: no row has a value.
        """
        if self.best is None:
            raise ValueError(f"no row has a defined {self.metric}; there is no best one")
        return self.difference(row, self.best)

    def is_better(self, row: str, other: str) -> bool:
        """Whether `row` is higher than `other` and told apart from it."""
        found = self.difference(row, other)
        if isinstance(found.value, Undefined) or isinstance(found.p_holm, Undefined):
            return False
        return found.value > 0 and found.p_holm < self.alpha


def resamples_needed(num_rows: int, alpha: float = 0.05) -> int:
    """The number of resamples from which Holm's correction over all pairs can reach `alpha` at all.

    The smallest p-value of R resamples is 2 / (R + 1), and the smallest adjusted one that times the number of pairs.
    Twice the bare minimum, so that a handful of contrary resamples does not decide.

    >>> resamples_needed(5)
    800
    """
    return math.ceil(4 * math.comb(num_rows, 2) / alpha)


def bootstrap_p(differences_R: FloatArray) -> float:
    """Two-sided p-value of "no difference": twice the smaller share of resamples on either side of 0, at most 1.

    A resample without any difference counts for both sides, and one is added to the counts, so that the value is
    never 0 and two rows of equal predictions have 1. It inverts the percentile interval: below 0.05 the 95 % interval
    does not hold 0.

    Source: Davison and Hinkley (1997), section 4.4; Efron and Tibshirani (1993), section 15.4.

    >>> bootstrap_p(np.array([0.1] * 39))
    0.05
    """
    contrary = min((differences_R <= 0).sum(), (differences_R >= 0).sum())
    return min(1.0, 2.0 * (float(contrary) + 1.0) / (len(differences_R) + 1.0))


def compare_with_best(
    rows: Mapping[str, Sequence[Predictions]],
    metric: str,
    weights_RN: npt.NDArray[np.generic],
    alpha: float = 0.05,
    level: float = 0.95,
) -> Comparison:
    """Compare all rows on `metric`, pair by pair, on the same resampled patients.

    Args:
        rows: name → predictions by seed; all on the same patients in the same order.
        metric: a name of :func:`~vitreous.evidence.scores.metric_names`.
        weights_RN: of :func:`~vitreous.evidence.intervals.resample_weights`.
        alpha: of the adjusted tests.
        level: of the intervals of the differences.
    Raises:
        ValueError: rows on different patients, or too few resamples for this many rows.
    """
    check_same_rows({f"{name!r}": one for name, by_seed in rows.items() for one in by_seed[:1]})
    check_enough_resamples(len(weights_RN), len(rows), alpha)
    value = {name: mean_scores(by_seed)[metric] for name, by_seed in rows.items()}
    resampled = {name: mean_over_seeds(by_seed, weights_RN, [metric])[metric] for name, by_seed in rows.items()}
    num_patients = len(np.unique(next(iter(rows.values()))[0].patient_id_N))
    return compare_resampled(metric, value, resampled, num_patients=num_patients, alpha=alpha, level=level)


def check_enough_resamples(num_resamples: int, num_rows: int, alpha: float) -> None:
    """Refuse a test that could not tell any two rows apart.

    Raises:
        ValueError: with the number to draw.
    """
    needed = resamples_needed(num_rows, alpha)
    if num_resamples < needed:
        raise ValueError(
            f"{num_resamples} resamples cannot tell {num_rows} rows apart at {alpha}: the smallest adjusted p-value "
            f"would be too large. Draw at least {needed} (resamples_needed)."
        )


def compare_resampled(
    metric: str,
    value: Mapping[str, float | Undefined],
    resampled: Mapping[str, FloatArray],
    *,
    num_patients: int,
    alpha: float = 0.05,
    level: float = 0.95,
) -> Comparison:
    """Compare rows by any number of theirs, higher being better, given it in every common resample.

    Args:
        metric: what the number is called.
        value: row → its number on the cohort itself.
        resampled: row → its number in each resample (R), NaN where undefined; resample r is the same patients for
            all rows.
        num_patients: of the smallest cohort that was resampled.
    """
    defined = {name: number for name, number in value.items() if not isinstance(number, Undefined)}
    ordered = sorted(defined, key=lambda name: -defined[name])  # stable: the first on a tie
    pairs = _adjusted(
        {
            (a, b): _difference(value[a], value[b], resampled[a], resampled[b], level, num_patients)
            for a, b in combinations(value, 2)
        }
    )
    unlettered = Comparison(metric, alpha, value, ordered[0] if ordered else None, {}, {}, pairs)
    apart = {frozenset((a, b)) for a, b in combinations(ordered, 2) if unlettered.is_better(a, b)}
    letters = dict.fromkeys(value, "") | compact_letters(ordered, apart)
    rank: dict[str, int | None] = dict.fromkeys(value)
    rank |= {name: 1 + sum(unlettered.is_better(other, name) for other in ordered) for name in ordered}
    return Comparison(metric, alpha, value, unlettered.best, letters, rank, pairs)


def _difference(
    a: float | Undefined, b: float | Undefined, a_R: FloatArray, b_R: FloatArray, level: float, num_patients: int
) -> Difference:
    """Without the adjustment, which needs all pairs: `p_holm` still holds `p`."""
    value = a if isinstance(a, Undefined) else b if isinstance(b, Undefined) else a - b
    interval = percentile_interval(value, a_R - b_R, level, num_patients=num_patients)
    if isinstance(interval.low, Undefined):
        return Difference(value, interval.low, interval.high, interval.low, interval.low)
    differences_R = (a_R - b_R)[~np.isnan(a_R - b_R)]
    p = bootstrap_p(differences_R)
    return Difference(value, interval.low, interval.high, p, p)


def _adjusted(pairs: Mapping[tuple[str, str], Difference]) -> dict[tuple[str, str], Difference]:
    tested = {pair: found.p for pair, found in pairs.items() if not isinstance(found.p, Undefined)}
    if not tested:
        return dict(pairs)
    adjusted = multipletests(list(tested.values()), method="holm")[1]
    by_pair = dict(zip(tested, adjusted.tolist(), strict=True))
    return {
        pair: Difference(found.value, found.low, found.high, found.p, by_pair.get(pair, found.p_holm))
        for pair, found in pairs.items()
    }


def _minus(value: float | Undefined) -> float | Undefined:
    return value if isinstance(value, Undefined) else 0.0 - value  # no negative zero
