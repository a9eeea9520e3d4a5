"""``folds.csv``: scores of each round, and of all rounds together, written and read back.

How rounds differ is variance of training and of who was tested; it is no interval over patients, and stands apart.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import pandas as pd

from vitreous.core.errors import UserError
from vitreous.core.files import write_text
from vitreous.core.undefined import Undefined

SCHEMA_VERSION = 1
FILE = "folds.csv"
Scope = Literal["fold", "pooled", "mean"]
_HEAD = ("encoder", "recipe", "scope", "seed", "fold", "domain", "n_val", "n_test", "setting")
_BETWEEN = " | "


@dataclass(frozen=True)
class FoldScore:
    """Scores of one model, or of the models of all rounds together.

    Args:
        scope: ``fold``: the model of one round and seed; ``pooled``: test predictions of all rounds of a seed together;
            ``mean``: of ``pooled`` over the seeds.
        seed: None for the mean.
        fold: of ``fold`` alone, likewise `domain`, where rounds are by domain, and `setting`, what the round chose.
        num_val, num_test: patients, or samples where these are scored.
        val: the primary metric on val.
        test: every metric on test.
    """

    encoder: str
    recipe: str
    scope: Scope
    seed: int | None
    fold: int | None
    domain: str | None
    num_val: int
    num_test: int
    setting: Mapping[str, Any] | None
    val: float | Undefined
    test: Mapping[str, float | Undefined]


def write_folds(scores: Sequence[FoldScore], metric: str, run_dir: Path) -> None:
    """Write ``folds.csv``; equal scores give equal bytes.

    Raises:
        ValueError: no scores.
    """
    if not scores:
        raise ValueError("there are no rounds to write")
    names = list(scores[0].test)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_HEAD, f"val_{metric}", *(f"test_{name}" for name in names), "undefined", "schema_version"])
    for one in scores:
        numbers = {f"val_{metric}": one.val, **{f"test_{name}": one.test[name] for name in names}}
        head = [one.encoder, one.recipe, one.scope, one.seed, one.fold, one.domain, one.num_val, one.num_test]
        setting = "" if one.setting is None else json.dumps(one.setting, sort_keys=True)
        cells = ["" if isinstance(value, Undefined) else f"{value:.6f}" for value in numbers.values()]
        writer.writerow(
            ["" if cell is None else cell for cell in head] + [setting, *cells, _reasons(numbers), SCHEMA_VERSION]
        )
    write_text(run_dir / FILE, text.getvalue())


def read_folds(run_dir: Path) -> tuple[FoldScore, ...]:
    """What :func:`write_folds` wrote, to six decimals.

    Raises:
        UserError: the run has no such file: it has no folds, or was not finished.
    """
    path = run_dir / FILE
    if not path.exists():
        raise UserError(f"{run_dir}: no {FILE}; a study with folds has one, and `vitreous report {run_dir}` writes it.")
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    return tuple(_read(dict(zip(table.columns, values, strict=True))) for values in table.to_numpy().tolist())


def _read(cells: Mapping[str, str]) -> FoldScore:
    reasons = {
        name: reason
        for part in cells["undefined"].split(_BETWEEN) if part
        for names, reason in [part.split(": ", 1)]
        for name in names.split(", ")
    }  # fmt: skip

    def number(name: str) -> float | Undefined:
        return float(cells[name]) if cells[name] else Undefined(reasons.get(name, ""))

    val = next(name for name in cells if name.startswith("val_"))
    tests = [name for name in cells if name.startswith("test_")]
    return FoldScore(
        cells["encoder"],
        cells["recipe"],
        cast(Scope, cells["scope"]),
        int(cells["seed"]) if cells["seed"] else None,
        int(cells["fold"]) if cells["fold"] else None,
        cells["domain"] or None,
        int(cells["n_val"]),
        int(cells["n_test"]),
        json.loads(cells["setting"]) if cells["setting"] else None,
        number(val),
        {name.removeprefix("test_"): number(name) for name in tests},
    )


def _reasons(numbers: Mapping[str, float | Undefined]) -> str:
    reasons: dict[str, list[str]] = {}
    for name, value in numbers.items():
        if isinstance(value, Undefined):
            reasons.setdefault(value.reason, []).append(name)
    return _BETWEEN.join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
