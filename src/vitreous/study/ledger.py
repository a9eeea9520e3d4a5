"""The ledger: test labels are read by one function, and each look is written down before it happens."""

import json
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitreous.core.fingerprints import fingerprint
from vitreous.samples.cohort import Cohort


@dataclass(frozen=True)
class Look:
    """One look at the test labels.

    Args:
        number: counts from 1 within the run directory.
        purpose: why test was opened.
        choices: fingerprint of everything chosen before the look.
        num_patients: patients whose labels were read.
    """

    number: int
    purpose: str
    choices: str
    num_patients: int


class Ledger:
    """Looks at test, one JSON line each, appended and flushed before the labels are handed out.

    Args:
        path: ``ledger.jsonl`` of a run directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def looks(self) -> list[Look]:
        """All looks so far; a last line cut short by a crash was no look and is left out."""
        if not self.path.exists():
            return []
        lines = self.path.read_text().split("\n")
        return [Look(**json.loads(line)) for line in lines[:-1]]

    def open_test_labels(
        self, cohorts: Sequence[Cohort], usable: Collection[str], *, purpose: str, choices: Any
    ) -> dict[str, int]:
        """Sample id → class index of the test split; with folds, of the test splits of all rounds.

        Args:
            cohorts: one, or one for each fold.
            usable: ids of the samples that have features; labels of others stay sealed.
            purpose: why, in words.
            choices: plain values that name everything chosen before the look.

        A run that is continued after the same choices repeats its look and adds no line: nothing new could
        be decided from it.
        """
        looks = self.looks()
        seal, wanted = fingerprint(choices), set(usable)
        if not any(look.choices == seal for look in looks):
            patients: set[str] = set()
            for cohort in cohorts:
                is_opened = (cohort.samples["split"] == "test") & cohort.samples["sample_id"].isin(wanted)
                patients |= set(cohort.samples.loc[is_opened, "patient_id"])
            self._append(Look(len(looks) + 1, purpose, seal, len(patients)))
        opened = {name: label for cohort in cohorts for name, label in cohort.open_test_labels().items()}
        return {name: label for name, label in opened.items() if name in wanted}

    def _append(self, look: Look) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            file.seek(0)
            whole_lines = file.read().rfind(b"\n") + 1
            file.truncate(whole_lines)  # drops a last line that a crash cut short
            file.write(json.dumps(vars(look), sort_keys=True).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
