"""Settings without effect: two rows, or two runs, that are the same in all that decides them, or in what they predict.

Axes: N row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitreous.core.finding import Finding
from vitreous.core.predictions import Predictions
from vitreous.evidence.checks import SAME_PROBABILITY


@dataclass(frozen=True)
class Decided:
    """One row, by what decides it.

    Args:
        name: ``encoder / recipe``, for two runs with the run's name.
        settings: flat: recipe, weights hash, input spec, options.
        test: predictions by seed.
        is_floor: by design the same as others may be.
    """

    name: str
    settings: Mapping[str, Any]
    test: Mapping[int, Predictions]
    is_floor: bool = False


def find_same_rows(rows: Sequence[Decided]) -> list[Finding]:
    """Pairs of rows of equal effective settings; and of different settings but identical predictions."""
    findings = []
    for i, one in enumerate(rows):
        for other in rows[i + 1 :]:
            if one.is_floor or other.is_floor:
                continue
            findings += _compare(one, other)
    return findings


def find_option_without_effect(
    first: Sequence[Decided], second: Sequence[Decided], different: Sequence[str], names: tuple[str, str]
) -> list[Finding]:
    """Two runs of one question: which keys differ, and whether any row of the same name does.

    Args:
        different: keys of the two studies that differ, with their values, apart from names and places.
        names: of the runs.
    """
    others = {row.name: row for row in second}
    shared = [(row, others[row.name]) for row in first if row.name in others and not row.is_floor]
    if not different:
        title = f"{names[0]} and {names[1]} have the same settings: whatever was meant to differ was not read."
        remedy = "Look at both study.yaml for the key that was meant; unknown keys are refused."
        return [Finding("same_settings", "error", title, "no key differs but names and places", remedy)]
    findings = []
    for row, other in shared:
        if _is_identical(row, other):
            findings.append(
                Finding(
                    "option_without_effect",
                    "warning",
                    f"{row.name} predicts the same in {names[0]} and {names[1]}: what differs had no effect on it.",
                    f"different: {', '.join(different)}; all probabilities agree within {SAME_PROBABILITY:g}",
                    "Check that the key belongs to this row's encoder or recipe.",
                )
            )
    if shared and not findings:
        title = f"{names[0]} and {names[1]} differ, and so do their predictions."
        findings.append(Finding("options_take_effect", "info", title, f"different: {', '.join(different)}"))
    return findings


def _compare(one: Decided, other: Decided) -> list[Finding]:
    is_identical = _is_identical(one, other)
    different = sorted(
        key for key in one.settings.keys() | other.settings.keys() if one.settings.get(key) != other.settings.get(key)
    )
    if not different:
        return [
            Finding(
                "same_settings",
                "error",
                f"{one.name} and {other.name} are one experiment under two names: nothing that decides them differs.",
                "equal recipe, weights, input and options"
                + ("; and identical predictions" if is_identical else "; their predictions differ by rounding alone"),
                "Find the key that was meant to differ; a study refuses unknown keys, so it stands elsewhere.",
            )
        ]
    if is_identical:
        return [
            Finding(
                "option_without_effect",
                "error",
                f"{one.name} and {other.name} predict the same, though their settings differ: no effect.",
                f"different: {', '.join(different)}; all probabilities agree within {SAME_PROBABILITY:g}",
                "Do not report the two as an experiment; look whether the option belongs to this kind of recipe.",
            )
        ]
    return []


def _is_identical(one: Decided, other: Decided) -> bool:
    seeds = sorted(set(one.test) & set(other.test))
    return bool(seeds) and all(
        one.test[seed].scores_NC.shape == other.test[seed].scores_NC.shape
        and np.array_equal(one.test[seed].sample_id_N, other.test[seed].sample_id_N)
        and bool(np.all(np.abs(one.test[seed].probs_NC - other.test[seed].probs_NC) <= SAME_PROBABILITY))
        for seed in seeds
    )
