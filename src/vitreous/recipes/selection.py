"""The choice of a setting on val, by rules that leave nothing to chance.

Axes: K fitted member.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from vitreous.core.errors import UserError
from vitreous.core.finding import Finding
from vitreous.core.undefined import Undefined

# Axes of which the best value should lie inside the grid, and what one calls them.
_SWEPT_AXES = {"learning_rate": "learning rate", "C": "C", "k": "number of neighbours"}


class Fitted(Protocol):
    """What selection needs of a fitted probe or reference."""

    @property
    def settings(self) -> dict[str, Any]: ...
    @property
    def seed(self) -> int: ...
    @property
    def diverged_epoch(self) -> int | None: ...


@dataclass(frozen=True)
class SettingScore:
    """One setting over its seeds.

    Args:
        settings: everything but the seed.
        member_idx: its members by rising seed, as positions in the list given.
        scores: theirs, in that order.
        mean_score: over the seeds; Undefined if a member diverged or a score is undefined, and then never
        chosen.
    """

    settings: dict[str, Any]
    member_idx: tuple[int, ...]
    scores: tuple[float | Undefined, ...]
    mean_score: float | Undefined


@dataclass(frozen=True)
class Selection:
    """The chosen setting.

    Args:
        settings: everything but the seed.
        seeds: rising.
        member_idx: the chosen members, one per seed, as positions in the list given.
        best_member_idx: of those, the one with the highest score (the lowest seed on a tie): the one to
        export.
        mean_score: over the seeds.
        margin: mean score less that of the runner-up, ≥ 0; Undefined with a single setting.
        runner_up: the second-best setting, if there is one.
        num_diverged: members that diverged, over all settings.
        ranking: every setting, best first; those that could not be chosen last.
        findings: a choice at the edge of the grid, members that diverged.
    """

    settings: dict[str, Any]
    seeds: tuple[int, ...]
    member_idx: tuple[int, ...]
    best_member_idx: int
    mean_score: float
    margin: float | Undefined
    runner_up: dict[str, Any] | None
    num_diverged: int
    ranking: tuple[SettingScore, ...]
    findings: tuple[Finding, ...]


def select_member(fitted: Sequence[Fitted], scores: Sequence[float | Undefined]) -> Selection:
    """Choose the setting with the highest mean score over its seeds.

    Ties (means equal to 1e-12) go to the setting that fits less: larger weight decay, smaller C, more
    neighbours, more dropout, smaller learning rate, fewer hidden units; what is still equal goes to the
    first in the list. A setting of which one member diverged, or one score is undefined, is not chosen: its
    row would stand on fewer seeds than the others.

    Args:
        fitted: probes of one grid, every setting with the same seeds; or references.
        scores: one val score per member, higher is better.
    Raises:
        ValueError: lengths differ, or settings differ in their seeds.
        UserError: no setting can be chosen.
    """
    if len(fitted) != len(scores) or not fitted:
        raise ValueError(
            f"select_member needs one score per member, at least one; got {len(fitted)} and {len(scores)}."
        )
    settings = _gather_settings(fitted, scores)
    seeds = tuple(fitted[position].seed for position in settings[0].member_idx)
    for setting in settings:
        if tuple(fitted[position].seed for position in setting.member_idx) != seeds:
            raise ValueError(f"every setting must have the seeds {list(seeds)}; {setting.settings} differs.")
    num_diverged = sum(member.diverged_epoch is not None for member in fitted)
    usable = [setting for setting in settings if not isinstance(setting.mean_score, Undefined)]
    if not usable:
        raise UserError(
            f"none of {len(settings)} settings can be chosen ({num_diverged} of {len(fitted)} members "
            f"diverged); the first: {settings[0].mean_score}. Lower the learning rate, or look at val."
        )
    ranked = sorted(usable, key=_rank_key)
    chosen, rest = ranked[0], ranked[1:]
    best = max(chosen.member_idx, key=lambda position: (_number(scores[position]), -fitted[position].seed))
    margin = (
        _number(chosen.mean_score) - _number(rest[0].mean_score) if rest else Undefined("the grid has a single setting")
    )
    return Selection(
        chosen.settings, seeds, chosen.member_idx, best, _number(chosen.mean_score), margin,
        rest[0].settings if rest else None, num_diverged,
        (*ranked, *(setting for setting in settings if isinstance(setting.mean_score, Undefined))),
        (*_find_edges(chosen.settings, settings), *_find_diverged(num_diverged, len(fitted))),
    )  # fmt: skip


def _gather_settings(fitted: Sequence[Fitted], scores: Sequence[float | Undefined]) -> list[SettingScore]:
    positions: dict[str, list[int]] = {}
    for position, member in enumerate(fitted):
        positions.setdefault(repr(sorted(member.settings.items())), []).append(position)
    gathered = []
    for same in positions.values():
        same.sort(key=lambda position: fitted[position].seed)
        of_seeds = tuple(scores[position] for position in same)
        mean: float | Undefined
        if diverged := [fitted[position].seed for position in same if fitted[position].diverged_epoch is not None]:
            mean = Undefined(f"training diverged with the seeds {diverged}")
        elif undefined := [score for score in of_seeds if isinstance(score, Undefined)]:
            mean = undefined[0]
        else:
            mean = float(np.mean([_number(score) for score in of_seeds]))
        gathered.append(SettingScore(fitted[same[0]].settings, tuple(same), of_seeds, mean))
    return gathered


def _rank_key(setting: SettingScore) -> tuple[float, ...]:
    values: Mapping[str, Any] = setting.settings
    return (
        -round(_number(setting.mean_score), 12),
        -values.get("weight_decay", 0.0),
        values.get("C", 0.0),
        -values.get("k", 0),
        -values.get("dropout", 0.0),
        values.get("learning_rate", 0.0),
        sum(values.get("hidden", ())),
    )


def _find_edges(chosen: Mapping[str, Any], settings: Sequence[SettingScore]) -> list[Finding]:
    findings = []
    for axis, name in _SWEPT_AXES.items():
        values = sorted({setting.settings[axis] for setting in settings if axis in setting.settings})
        if len(values) < 2 or chosen[axis] not in (values[0], values[-1]):
            continue
        edge, direction = ("smallest", "smaller") if chosen[axis] == values[0] else ("largest", "larger")
        findings.append(Finding(
            "edge_of_grid",
            "warning",
            f"The chosen {name} is the {edge} of the grid; a better one may lie outside.",
            f"{axis}={chosen[axis]:g} of {', '.join(f'{value:g}' for value in values)}",
            f"Add {direction} values of {axis} to the grid.",
        ))  # fmt: skip
    return findings


def _find_diverged(num_diverged: int, num_members: int) -> list[Finding]:
    if num_diverged == 0:
        return []
    return [Finding(
        "diverged", "warning", "Some members of the grid diverged and were not chosen from.",
        f"{num_diverged} of {num_members} members", "Lower the largest learning rate of the grid.",
    )]  # fmt: skip


def _number(score: float | Undefined) -> float:
    if isinstance(score, Undefined):
        raise ValueError(f"a score is undefined: {score.reason}")
    return score
