"""A leak: how test could help training, or the label reach the features by a way that no patient will offer.

Stages, each of which may refuse before the next begins: the table, the pixels, the features.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from vitreous.core.errors import LeakError
from vitreous.core.finding import Finding

LeakCode = Literal[
    "spelling_variants",
    "fellow_eye",
    "same_recording",
    "same_file",
    "conflicting_labels",
    "label_proxy",
    "domain_tells_label",
    "order_tells_label",
    "label_in_path",
    "exact_duplicates",
    "near_duplicates",
    "shared_slices",
    "scaler_of_test",
    "near_features",
]
# what `leaks.accept` may name
ACCEPTABLE: tuple[LeakCode, ...] = get_args(LeakCode)
# contradictions of a study: no run can go on with them, so that there is nothing to accept
NEVER_ACCEPTED = ("patient_in_two_splits", "label_column")
ACCEPTED = "Leak accepted by the study:"  # how the title of such a finding begins
_SHOWN = 20


@dataclass(frozen=True)
class Leak:
    """What a check found.

    Args:
        code: stable; one of :data:`ACCEPTABLE` for what refuses a run.
        refuses: a run stops, unless the study accepts the code; otherwise it is a warning.
        title: one sentence, without ids.
        rows: what it is about, each in words with its ids; shown in the terminal alone.
        remedy: what to change.
        evidence: numbers, without ids.
        severity: of a finding that does not refuse.
    """

    code: str
    refuses: bool
    title: str
    remedy: str
    rows: tuple[str, ...] = ()
    evidence: str = ""
    severity: Literal["warning", "info"] = "warning"

    def as_finding(self, *, accepted: bool = False, with_ids: bool = False) -> Finding:
        """The same for the terminal (with ids), or for files that name nobody."""
        evidence = "; ".join(part for part in (self.evidence, listed(self.rows) if with_ids else "") if part)
        if accepted:
            return Finding(self.code, "warning", f"{ACCEPTED} {self.title}", evidence, self.remedy)
        return Finding(self.code, "error" if self.refuses else self.severity, self.title, evidence, self.remedy)


def refuse_leaks(leaks: Sequence[Leak], accepted: Collection[str], *, stage: str) -> None:
    """Stop where a leak of this stage is not accepted; all of them are named at once.

    Args:
        stage: ``table``, ``pixels`` or ``features``.
    Raises:
        LeakError: with the rows, and how to accept each by name.
    """
    refused = [leak for leak in leaks if leak.refuses and leak.code not in accepted]
    if not refused:
        return
    told = [
        f"{leak.code}: {leak.title}{f' ({leak.evidence})' if leak.evidence else ''}"
        f"{f' Rows: {listed(leak.rows)}.' if leak.rows else ''} {leak.remedy}"
        for leak in refused
    ]
    codes = sorted({leak.code for leak in refused})
    head = f"the leak gate refuses the study on its {stage}, {len(refused)} findings:" if len(refused) > 1 else ""
    body = (
        f"{head}\n  - " + "\n  - ".join(told) if head else f"the leak gate refuses the study on its {stage}: {told[0]}"
    )
    raise LeakError(
        f"{body}\nTo run all the same, and have the report say so: leaks: {{accept: [{', '.join(codes)}]}}.", codes
    )


def listed(rows: Sequence[str], most: int = _SHOWN) -> str:
    """At most `most` of them, then how many more.

    >>> listed(["a", "b", "c"], most=2)
    'a; b and 1 more'
    """
    more = f" and {len(rows) - most} more" if len(rows) > most else ""
    return "; ".join(rows[:most]) + more
