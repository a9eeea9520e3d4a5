"""What the rows of a leaderboard could have been told apart by: the best one against each other row.

Axes: R resample.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vitreous.core.undefined import Undefined
from vitreous.evidence.comparison import Comparison
from vitreous.evidence.power import ALPHA, POWER, Reach, reach_of_resamples
from vitreous.evidence.scores import FloatArray


@dataclass(frozen=True)
class PairReach:
    """The best row against another.

    Args:
        alone: what would be found if these two were the only rows compared.
        among_all: after the first step of Holm's correction over all pairs, as the leaderboard tests.
        is_apart: whether the leaderboard told them apart.
    """

    row: str
    other: str
    alone: Reach
    among_all: Reach
    is_apart: bool


@dataclass(frozen=True)
class LeaderboardReach:
    """What this cohort can show on the primary metric.

    Args:
        best: the highest row that is no floor; None without one.
        runner_up: the next one that is no floor.
        num_pairs: of all rows, in Holm's correction.
        pairs: `best` against every other row, floors included.
    """

    metric: str
    num_patients: int
    power: float
    alpha: float
    num_pairs: int
    best: str | None
    runner_up: str | None
    pairs: tuple[PairReach, ...]

    def pair(self, other: str) -> PairReach | None:
        """`best` against `other`, if there is such a pair."""
        return next((pair for pair in self.pairs if pair.other == other), None)


def leaderboard_reach(
    comparison: Comparison,
    resampled: Mapping[str, FloatArray],
    floors: Sequence[str],
    *,
    num_patients: int,
    power: float = POWER,
    alpha: float = ALPHA,
) -> LeaderboardReach:
    """Smallest differences and numbers of patients, from the standard errors of the paired bootstrap.

    Args:
        resampled: row → the primary metric in each common resample (R), NaN where undefined.
        floors: names of rows that are neither best nor runner-up here.
        num_patients: tested.
    """
    values = {name: value for name, value in comparison.value.items() if not isinstance(value, Undefined)}
    ordered = sorted((name for name in values if name not in floors), key=lambda name: -values[name])
    num_pairs = len(resampled) * (len(resampled) - 1) // 2
    best = ordered[0] if ordered else None
    pairs = []
    for other in resampled if best is not None else ():
        if best is None or other == best:
            continue
        told = comparison.difference(best, other)
        alone, among_all = (
            reach_of_resamples(
                told.value, resampled[best] - resampled[other], num_patients=num_patients, power=power, alpha=level
            )
            for level in (alpha, alpha / num_pairs)
        )
        is_apart = not isinstance(told.p_holm, Undefined) and told.p_holm < comparison.alpha
        pairs.append(PairReach(best, other, alone, among_all, is_apart))
    runner_up = ordered[1] if len(ordered) > 1 else None
    return LeaderboardReach(comparison.metric, num_patients, power, alpha, num_pairs, best, runner_up, tuple(pairs))
