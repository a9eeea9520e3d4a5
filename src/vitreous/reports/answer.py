"""The answer in words: which row is highest, what it cannot be told apart from, which floors it clears."""

from collections.abc import Sequence

from vitreous.core.undefined import Undefined
from vitreous.reports.leaderboard import Leaderboard, LeaderboardRow
from vitreous.reports.leaderboard_tables import Footnotes


def answer_sentences(leaderboard: Leaderboard) -> list[str]:
    """Two to four sentences; the first alone answers the study's question.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    title = leaderboard.metric_title
    if leaderboard.best is None:
        reasons = {str(value.reason) for value in leaderboard.comparison.value.values() if isinstance(value, Undefined)}
        return [f"No row has a defined {title}: {'; '.join(sorted(reasons))}."]
    best = leaderboard.row(leaderboard.best)
    candidates = [row for row in leaderboard.rows if not row.is_floor and row.rank is not None]
    if best.is_floor:
        return _floor_is_highest(leaderboard, best, candidates)
    others = [row for row in candidates if row.name != best.name]
    tied = [row.name for row in others if not leaderboard.comparison.is_better(best.name, row.name)]
    number = f"{_number(best, leaderboard)} on {leaderboard.test_size}."
    said = [f"{best.name} has the highest {title}, {number}" if tied else f"{best.name} is best: {title} {number}"]
    if tied:
        said.append(f"It cannot be told apart from {listed(tied)}: the difference may be chance.")
    elif others:
        said.append(f"It is told apart from {'the other row' if len(others) == 1 else f'all {len(others)} other rows'} "
                    f"(Holm-adjusted p < {leaderboard.alpha:g}).")  # fmt: skip
    return said + _about_floors(best, others)


def listed(names: Sequence[str]) -> str:
    """Names joined as a sentence joins them."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _floor_is_highest(
    leaderboard: Leaderboard, best: LeaderboardRow, candidates: Sequence[LeaderboardRow]
) -> list[str]:
    title = leaderboard.metric_title
    said = [f"No encoder beats the floors: {best.name} has the highest {title}, {_number(best, leaderboard)}."]
    if candidates:
        first = candidates[0]
        said.append(f"The highest encoder is {first.name} with {_number(first, leaderboard)}: "
                    "nothing can be concluded about which checkpoint is better.")  # fmt: skip
    return said


def _about_floors(best: LeaderboardRow, others: Sequence[LeaderboardRow]) -> list[str]:
    if not best.cleared and not best.not_cleared:
        return ["No floor was run: nothing says how much of this a trivial answer would reach."]
    said = []
    if best.cleared:
        said.append(f"It clears {_floors(best.cleared)}.")
    if best.not_cleared:
        said.append(f"It does not clear {_floors(best.not_cleared)}: it is not shown to know more than that.")
    short = [row.name for row in others if row.not_cleared]
    if short:
        said.append(f"Not every floor is cleared by {listed(short)}.")
    return said


def _floors(names: Sequence[str]) -> str:
    return f"the floor{'s' if len(names) > 1 else ''} {listed(names)}"


def _number(row: LeaderboardRow, leaderboard: Leaderboard) -> str:
    value, bounds, _ = Footnotes().parts(row.test[leaderboard.metric])
    return f"{value} {bounds or '(no interval)'}"
