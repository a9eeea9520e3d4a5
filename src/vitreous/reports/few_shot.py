"""``few_shot.csv``: the metric by number of training patients of each class, written and read back."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from vitreous.core.errors import UserError
from vitreous.core.files import write_text
from vitreous.core.undefined import Undefined

SCHEMA_VERSION = 1
FILE = "few_shot.csv"
_ALL, _MEAN = "all", "mean"
_NUMBERS = ("val", "test", "low", "high", "draw_sd")
_BETWEEN = " | "


@dataclass(frozen=True)
class FewShotScore:
    """A point of a curve.

    Args:
        metric: the primary one.
        patients: asked for of each class; None for the whole of train, the row's own result.
        draw: None for the mean over the draws (of the whole of train: over the seeds).
        num_train: patients trained on, on average where there are folds or draws.
        low, high: bounds of the mean over patients of test; a single draw has none.
        draw_sd: standard deviation of test over the draws (or seeds).
    """

    encoder: str
    recipe: str
    metric: str
    patients: int | None
    draw: int | None
    num_train: float
    val: float | Undefined
    test: float | Undefined
    low: float | Undefined
    high: float | Undefined
    draw_sd: float | Undefined

    @property
    def name(self) -> str:
        """``encoder / recipe``."""
        return f"{self.encoder} / {self.recipe}"


COLUMNS = (
    "encoder", "recipe", "metric", "patients_per_class", "draw", "n_train_patients", *_NUMBERS, "undefined",
    "schema_version",
)  # fmt: skip


def write_few_shot(scores: Sequence[FewShotScore], run_dir: Path) -> None:
    """Write ``few_shot.csv``; equal scores give equal bytes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in scores:
        numbers = {name: getattr(one, name) for name in _NUMBERS}
        reasons: dict[str, list[str]] = {}
        for name, value in numbers.items():
            if isinstance(value, Undefined):
                reasons.setdefault(value.reason, []).append(name)
        writer.writerow([
            one.encoder, one.recipe, one.metric, _ALL if one.patients is None else one.patients,
            _MEAN if one.draw is None else one.draw, f"{one.num_train:g}",
            *("" if isinstance(value, Undefined) else f"{value:.6f}" for value in numbers.values()),
            _BETWEEN.join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items()), SCHEMA_VERSION,
        ])  # fmt: skip
    write_text(run_dir / FILE, text.getvalue())


def read_few_shot_scores(run_dir: Path) -> tuple[FewShotScore, ...]:
    """What :func:`write_few_shot` wrote, to six decimals.

    Raises:
        UserError: the run has no such file: its study has no few_shot, or was not finished.
    """
    path = run_dir / FILE
    if not path.exists():
        raise UserError(
            f"{run_dir}: no {FILE}; a study with few_shot has one, and `vitreous report {run_dir}` writes it."
        )
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    return tuple(_read(dict(zip(table.columns, values, strict=True))) for values in table.to_numpy().tolist())


def _read(cells: dict[str, str]) -> FewShotScore:
    reasons = {
        name: reason
        for part in cells["undefined"].split(_BETWEEN) if part
        for names, reason in [part.split(": ", 1)]
        for name in names.split(", ")
    }  # fmt: skip
    numbers = {name: float(cells[name]) if cells[name] else Undefined(reasons.get(name, "")) for name in _NUMBERS}
    return FewShotScore(
        cells["encoder"],
        cells["recipe"],
        cells["metric"],
        None if cells["patients_per_class"] == _ALL else int(cells["patients_per_class"]),
        None if cells["draw"] == _MEAN else int(cells["draw"]),
        float(cells["n_train_patients"]),
        **numbers,
    )
