"""Differences that are within noise, and rows that are no better than random weights: said in words, with numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

from vitreous.core.finding import Finding
from vitreous.core.undefined import Undefined


@dataclass(frozen=True)
class ObservedDifference:
    """The highest row less another, on the same patients.

    Args:
        value, low, high: of the metric, with the interval of the paired bootstrap.
        p_holm: adjusted for all pairs of the leaderboard.
        smallest: true difference that this cohort would find four times in five.
        needed: patients for which one as large as the observed would be found as often.
        is_separated: whether the leaderboard tells the two apart.
    """

    higher: str
    lower: str
    value: float
    low: float | Undefined
    high: float | Undefined
    p_holm: float | Undefined
    smallest: float | Undefined
    needed: int | Undefined
    num_patients: int
    is_separated: bool


def find_within_noise(differences: Sequence[ObservedDifference], metric: str) -> list[Finding]:
    """One finding for each difference that must not be discussed as real."""
    findings = []
    for one in differences:
        if one.is_separated or one.value == 0:
            continue
        interval = (
            "" if isinstance(one.low, Undefined) or isinstance(one.high, Undefined)
            else f" [{_points(one.low)}, {_points(one.high)}]"
        )  # fmt: skip
        said = [f"{_points(one.value)} points of {metric}{interval} on {one.num_patients} test patients"]
        if not isinstance(one.p_holm, Undefined):
            said.append(f"p {one.p_holm:.2g} after Holm")
        if not isinstance(one.smallest, Undefined):
            said.append(f"four times in five these patients would show a true difference of {_points(one.smallest)}")
        if not isinstance(one.needed, Undefined):
            said.append(f"for one as small as this about {one.needed:,} patients would be needed")
        findings.append(
            Finding(
                "within_noise",
                "warning",
                f"{one.higher} lies {_points(one.value)} points above {one.lower}: within noise, not a finding.",
                "; ".join(said),
                "Report them as not told apart; more patients, or folds={k: 5}, would say more than more seeds.",
            )
        )
    return findings


def find_no_better_than_random(rows: Sequence[tuple[str, tuple[str, ...]]], untrained: Sequence[str]) -> list[Finding]:
    """Rows of pretrained encoders that are not told apart from random weights.

    Args:
        rows: name and the floors that it does not clear.
        untrained: names of the rows of random weights.
    """
    return [
        Finding(
            "no_better_than_random",
            "warning",
            f"{name} is not told apart from random weights: this cohort does not show what pretraining gave.",
            f"does not clear {', '.join(floor for floor in not_cleared if floor in untrained)}",
            "vitreous inspect CHECKPOINT (were its tensors loaded?); more participants, or another layer or pooling.",
        )
        for name, not_cleared in rows
        if any(floor in untrained for floor in not_cleared)
    ]


def _points(share: float) -> str:
    return f"{100 * share:+.2f}"
