"""The rows of a finished run, read back from its folder: predictions on disk are all a leaderboard needs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from vitreous.config.probe_recipes import Knn
from vitreous.config.study import StudyConfig
from vitreous.core.errors import UserError
from vitreous.core.files import write_json
from vitreous.core.predictions import Predictions, join_predictions
from vitreous.core.undefined import Undefined
from vitreous.evidence.calibration import restrict
from vitreous.evidence.optimism import GridChoice
from vitreous.reports.leaderboard import RowPredictions
from vitreous.study.domains import Rounds, read_rounds
from vitreous.study.encoders import OpenedEncoder
from vitreous.study.grid_choice import read_best_of_grid
from vitreous.study.heads import read_model
from vitreous.study.row import MAJORITY, Row, is_on_pixels
from vitreous.study.run_directory import RunDirectory

_LEARNED = ("layers.", "norms.", "attentive.query")
_NOT_LEARNED = ("running_mean", "running_var")


@dataclass(frozen=True)
class KeptRow:
    """What ``rows.json`` says of one row.

    Args:
        features_of: the encoder whose features or inputs it reads; None for the floors `majority` and `columns`.
    """

    encoder: str
    recipe: str
    seeds: tuple[int, ...]
    folds: tuple[int | None, ...]
    is_floor: bool
    is_constant: bool
    counts_parameters: bool
    encoder_parameters: int
    on_pixels: bool
    features_of: str | None
    notes: tuple[str, ...]


def write_rows(
    directory: RunDirectory, rows: Sequence[Row], encoders: Sequence[OpenedEncoder], num_folds: int | None
) -> None:
    """Write ``rows.json``: which folders make up which row."""
    by_name = {opened.name: opened for opened in encoders}
    folds = [None] if num_folds is None else list(range(num_folds))
    write_json(
        directory.root / "rows.json",
        [
            {
                "encoder": row.encoder,
                "recipe": row.recipe_name,
                "seeds": list(row.seeds),
                "folds": folds,
                "is_floor": _is_floor(row, by_name),
                "is_constant": row.recipe is None and row.recipe_name == MAJORITY,
                "counts_parameters": row.recipe is not None and not isinstance(row.recipe, Knn),
                "encoder_parameters": by_name[row.features_of].encoder.receipt.parameters if row.features_of else 0,
                "on_pixels": is_on_pixels(row.recipe),
                "features_of": row.features_of,
                "notes": [*row.notes, *(_notes(by_name[row.features_of]) if row.features_of else [])],
            }
            for row in rows
        ],
    )


def _is_floor(row: Row, by_name: Mapping[str, OpenedEncoder]) -> bool:
    """Rows that look at no encoder, and random weights that stay as they are; trained ones are a result."""
    if row.ensemble is not None:
        return False
    return row.encoder not in by_name or (by_name[row.encoder].is_floor and not is_on_pixels(row.recipe))


def _notes(opened: OpenedEncoder) -> list[str]:
    if not opened.overridden:
        return []
    return [f"input overridden by the study: {', '.join(opened.overridden)}"]


def read_kept_rows(directory: RunDirectory) -> list[KeptRow]:
    """``rows.json`` of a run.

    Raises:
        UserError: the run never came so far, or was made by an earlier version.
    """
    path = directory.root / "rows.json"
    if not path.exists():
        raise UserError(f"{directory.root}: the run is not finished (no rows.json); run the same study again.")
    kept = json.loads(path.read_text())
    if any("features_of" not in row for row in kept):
        raise UserError(f"{path}: was written by an earlier version of Vitreous; use that one, or run the study again.")
    return [
        KeptRow(
            row["encoder"],
            row["recipe"],
            tuple(row["seeds"]),
            tuple(row["folds"]),
            row["is_floor"],
            row["is_constant"],
            row["counts_parameters"],
            row["encoder_parameters"],
            row["on_pixels"],
            row["features_of"],
            tuple(row["notes"]),
        )
        for row in kept
    ]


def read_rows(directory: RunDirectory, config: StudyConfig) -> list[RowPredictions]:
    """Predictions of every row, folds of a seed put together.

    With `folds: {each: …}` every patient is judged by the model of his own domain; see :func:`read_tests_by_round`.

    Raises:
        UserError: a head has no test predictions yet.
    """
    rounds = read_rounds(directory)
    own = rounds if rounds is not None and rounds.kind == "each" else None
    return [_read_row(directory, kept, config.data.classes, own) for kept in read_kept_rows(directory)]


def read_tests_by_round(directory: RunDirectory, config: StudyConfig) -> dict[str, dict[int, list[Predictions]]]:
    """Row → round → test predictions of the round, by seed.

    Raises:
        UserError: a head has no test predictions yet.
    """
    return {
        f"{kept.encoder} / {kept.recipe}": {
            fold: [
                _read_predictions(
                    directory.unit(kept.encoder, kept.recipe, seed, fold), "test_preds.parquet", config.data.classes
                )
                for seed in kept.seeds
            ]
            for fold in kept.folds
            if fold is not None
        }
        for kept in read_kept_rows(directory)
    }


def _read_predictions(folder: Path, name: str, classes: tuple[str, ...]) -> Predictions:
    if not (folder / name).exists():
        raise UserError(f"{folder}: no {name}; the run is not finished, run the same study again.")
    return Predictions.read(folder / name, classes)


def _read_row(directory: RunDirectory, kept: KeptRow, classes: tuple[str, ...], own: Rounds | None) -> RowPredictions:
    val, test = {}, {}
    for seed in kept.seeds:
        parts = []
        for fold in kept.folds:
            folder = directory.unit(kept.encoder, kept.recipe, seed, fold)
            tested = _read_predictions(folder, "test_preds.parquet", classes)
            if own is not None and fold is not None:
                tested = restrict(tested, np.array(own.own_patients(fold), dtype=np.str_))
            parts.append((_read_predictions(folder, "val_preds.parquet", classes), tested))
        val[seed] = join_predictions([part for part, _ in parts])
        test[seed] = join_predictions([part for _, part in parts])
    first = directory.unit(kept.encoder, kept.recipe, kept.seeds[0], kept.folds[0])
    trained, total = _count_parameters(first, kept)
    best = read_best_of_grid(directory.best_of_grid(kept.encoder, kept.recipe), classes)
    return RowPredictions(
        kept.encoder,
        kept.recipe,
        val,
        test,
        kept.is_floor,
        kept.is_constant,
        trained,
        total,
        kept.notes,
        _read_choice(directory, kept),
        None if best is None else best.by_seed,
    )


def _read_choice(directory: RunDirectory, kept: KeptRow) -> GridChoice:
    """What val tells of choosing; with rounds by domain the mean over rounds."""
    found = []
    for fold in kept.folds:
        folder = directory.unit(kept.encoder, kept.recipe, kept.seeds[0], fold).parent
        found.append(json.loads((folder / "selection.json").read_text()))
    num_settings = max(one["num_settings"] for one in found)
    if num_settings == 1:
        return GridChoice.of_one()
    untold = Undefined("told by the folds")
    if any("optimism" not in one for one in found):
        return GridChoice(num_settings, untold, untold, untold, untold, untold, "folds")
    luck = [one["optimism"] for one in found]
    best, corrected, lost = (_mean_of(luck, name) for name in ("best_of_grid", "corrected", "optimism"))
    none = Undefined("only the mean over resamples of val is known")
    return GridChoice(num_settings, best, corrected, lost, none, none, "resampled val")


def _mean_of(plain: Sequence[Mapping[str, Any]], name: str) -> float | Undefined:
    missing = [one for one in plain if one[name] is None]
    return Undefined(missing[0][f"{name}_undefined"]) if missing else float(np.mean([one[name] for one in plain]))


def _count_parameters(folder: Path, kept: KeptRow) -> tuple[int | None, int | None]:
    """Numbers that the recipe learned, and those of encoder and head together."""
    if kept.on_pixels:
        counted = read_model(folder)["parameters"]
        return counted["trainable"], counted["total"]
    if not kept.counts_parameters:
        return None, None
    learned = _count_learned(folder)
    return learned, kept.encoder_parameters + learned


def _count_learned(folder: Path) -> int:
    with safe_open(f"{folder}/best.safetensors", "numpy") as file:
        return sum(
            int(np.prod(file.get_slice(name).get_shape()))
            for name in file.keys()  # noqa: SIM118
            if name.startswith(_LEARNED) and not name.endswith(_NOT_LEARNED)
        )
