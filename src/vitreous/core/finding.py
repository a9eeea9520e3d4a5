"""What the doctor and the reports say in words: a fact, its evidence and the next command."""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "info"]


@dataclass(frozen=True)
class Finding:
    """One finding.

    Args:
        code: stable short name, e.g. ``collapsed``.
        severity: ``error`` makes the doctor exit 1.
        title: one plain sentence.
        evidence: the numbers behind it.
        remedy: what to do or run next; empty if nothing needs doing.
    """

    code: str
    severity: Severity
    title: str
    evidence: str
    remedy: str = ""
