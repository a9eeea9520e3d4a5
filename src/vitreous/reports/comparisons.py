"""``comparisons.csv``: every pair of rows by every test, written and read back.

One line a pair, test and metric; a difference is `row` minus `other`, `row` standing higher in the leaderboard. A cell
without a number is empty, and the column `undefined` says why.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import pandas as pd

from vitreous.core.errors import UserError
from vitreous.core.files import write_text
from vitreous.core.undefined import Undefined
from vitreous.evidence.paired_tests import PairedTest

SCHEMA_VERSION = 1
FILE = "comparisons.csv"
_NUMBERS = ("difference", "low", "high", "bca_low", "bca_high", "standard_error", "p", "p_holm")
_COUNTS = ("seed", "other_seed", "only_row", "only_other")
_BETWEEN = " | "  # reasons hold commas, colons and semicolons of their own
COLUMNS = ("row", "other", "test", "metric", *_NUMBERS, *_COUNTS, "undefined", "schema_version")


def write_comparisons(tests: Sequence[PairedTest], run_dir: Path) -> None:
    """Write ``comparisons.csv``; equal tests give equal bytes, a single row gives a header alone."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_line(test) for test in tests)
    write_text(run_dir / FILE, text.getvalue())


def read_comparisons(run_dir: Path) -> tuple[PairedTest, ...]:
    """What :func:`write_comparisons` wrote, to six decimals (p-values to six digits).

    Raises:
        UserError: the run has no such file.
    """
    path = run_dir / FILE
    if not path.exists():
        raise UserError(f"{run_dir}: no {FILE}; `vitreous report {run_dir}` writes it.")
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    return tuple(_test(dict(zip(table.columns, values, strict=True))) for values in table.to_numpy().tolist())


def _line(test: PairedTest) -> list[str]:
    numbers = {name: getattr(test, name) for name in _NUMBERS}
    reasons: dict[str, list[str]] = {}
    for name, value in numbers.items():
        if isinstance(value, Undefined):
            reasons.setdefault(value.reason, []).append(name)
    said = _BETWEEN.join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
    return [
        test.row, test.other, test.test, test.metric, *(_plain(name, value) for name, value in numbers.items()),
        *("" if getattr(test, name) is None else str(getattr(test, name)) for name in _COUNTS), said,
        str(SCHEMA_VERSION),
    ]  # fmt: skip


def _plain(name: str, value: float | Undefined) -> str:
    if isinstance(value, Undefined):
        return ""
    return f"{value:.6g}" if name in ("p", "p_holm") else f"{value:.6f}"


def _test(cells: dict[str, str]) -> PairedTest:
    reasons = {
        name: reason
        for part in cells["undefined"].split(_BETWEEN) if part
        for names, reason in [part.split(": ", 1)]
        for name in names.split(", ")
    }  # fmt: skip
    read: dict[str, object] = {
        name: float(cells[name]) if cells[name] else Undefined(reasons.get(name, "")) for name in _NUMBERS
    }
    read |= {name: int(cells[name]) if cells[name] else None for name in _COUNTS}
    read |= {name: cells[name] for name in ("row", "other", "test", "metric")}
    return PairedTest(**{field.name: read[field.name] for field in fields(PairedTest)})  # type: ignore[arg-type]
