"""The ledger: test labels are read by one function, and each look is written down before it happens."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

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

    def open_test_labels(self, cohorts: Sequence[Cohort], *, purpose: str, choices: Any) -> dict[str, int]:
        """Sample id → class index of the test split; with folds, of the test splits of all rounds.

        A run that is continued after the same choices repeats its look and adds no line: nothing new could
        be decided from it.
        """
        looks = self.looks()
        seal = fingerprint(choices)
        if not any(look.choices == seal for look in looks):
            tested = [cohort.samples.loc[cohort.samples["split"] == "test", "patient_id"] for cohort in cohorts]
            look = Look(len(looks) + 1, purpose, seal, int(pd.concat(tested).nunique()))
            self._append(look)
        return {name: label for cohort in cohorts for name, label in cohort.open_test_labels().items()}

    def _append(self, look: Look) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = "".join(json.dumps(vars(entry), sort_keys=True) + "\n" for entry in self.looks())
        with self.path.open("r+" if self.path.exists() else "w") as file:
            file.truncate(len(whole))  # drops a last line that a crash cut short
            file.seek(0, os.SEEK_END)
            file.write(json.dumps(vars(look), sort_keys=True) + "\n")
            file.flush()
            os.fsync(file.fileno())
