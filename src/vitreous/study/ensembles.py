"""Rows that average other rows: members chosen on val, test probabilities averaged after the look.

Axes: M member, N row, C class or label.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitreous.config.ensembles import Ensemble
from vitreous.config.study import StudyConfig
from vitreous.core.errors import RunError
from vitreous.core.files import replacing, write_json
from vitreous.core.fingerprints import fingerprint
from vitreous.core.predictions import Predictions
from vitreous.core.undefined import Undefined
from vitreous.evidence.task_scores import score_rows, with_chosen_thresholds
from vitreous.recipes.ensembles import average_logits, choose_members
from vitreous.study.heads import Head, hash_model, is_finished, read_model, read_tensors, write_head, write_tensors
from vitreous.study.partitions import Partition
from vitreous.study.row import Row
from vitreous.study.run_directory import RunDirectory

VERSION = 1
"""Raised when the same members give other numbers."""


def adapt_ensembles(
    config: StudyConfig, directory: RunDirectory, rows: Sequence[Row], partitions: Sequence[Partition]
) -> None:
    """Choose the members of every ensemble that is not finished; all other rows are."""
    for row in rows:
        if row.ensemble is None:
            continue
        for partition in partitions:
            folders = {}
            for seed in row.seeds:
                folder = directory.unit(row.encoder, row.recipe_name, seed, partition.fold)
                folders[seed] = folder
                _choose(config, row.ensemble, member_folders(directory, rows, row.ensemble, seed, partition.fold),
                        folder, seed)  # fmt: skip
            _write_selection(row.ensemble, folders)


def member_folders(
    directory: RunDirectory, rows: Sequence[Row], ensemble: Ensemble, seed: int, fold: int | None
) -> list[Path]:
    """Folders of the members for one seed; a row without chance has one seed, which stands for all."""
    by_name = {f"{row.encoder}/{row.recipe_name}": row for row in rows}
    members = [by_name[name] for name in ensemble.members]
    return [
        directory.unit(row.encoder, row.recipe_name, seed if seed in row.seeds else row.seeds[0], fold)
        for row in members
    ]


def average_test_logits(folder: Path, members: Sequence[Path], classes: Sequence[str]) -> npt.NDArray[np.float64]:
    """Logits (N, C) on test; the members' own test predictions are written already."""
    tests = [Predictions.read(member / "test_preds.parquet", classes) for member in members]
    counts_M = read_tensors(folder)["counts"]
    return average_logits([test.scores_NC for test in tests], counts_M, tests[0].task)


def _choose(config: StudyConfig, ensemble: Ensemble, members: Sequence[Path], folder: Path, seed: int) -> None:
    unit = fingerprint(
        {
            "version": VERSION,
            "ensemble": ensemble.model_dump(mode="json"),
            "members": [hash_model(member) for member in members],
            "metric": config.metric,
        }
    )
    if is_finished(folder, unit):
        return
    vals = [Predictions.read(member / "val_preds.parquet", config.data.classes) for member in members]

    def averaged(counts_M: npt.NDArray[np.int64]) -> Predictions:
        first = vals[0]
        logits_NC = average_logits([val.scores_NC for val in vals], counts_M, first.task)
        joint = Predictions(
            first.sample_id_N, first.patient_id_N, first.y_true_N, logits_NC, first.classes, task=first.task
        )
        return with_chosen_thresholds(joint, joint.scored(config.data.aggregate))

    score = _scorer(config, averaged)
    counts_M = np.ones(len(vals), np.int64) if ensemble.choose == "all" else choose_members(len(vals), score)
    counts: Mapping[str, int] = dict(zip(ensemble.members, counts_M.tolist(), strict=True))
    head = Head(
        seed=seed,
        setting={"counts": dict(counts)},
        write_weights=partial(write_tensors, {"counts": counts_M}),
        history=[],
        best_epoch=0,
        val_score=score(counts_M),
        val=averaged(counts_M),
    )
    write_head(
        folder, head, unit=unit, model={"ensemble": dict(counts)}, recipe={"kind": "ensemble", **ensemble.model_dump()}
    )


def _scorer(
    config: StudyConfig, averaged: Callable[[npt.NDArray[np.int64]], Predictions]
) -> Callable[[npt.NDArray[np.int64]], float]:
    def score(counts_M: npt.NDArray[np.int64]) -> float:
        value = score_rows(averaged(counts_M).scored(config.data.aggregate))[config.metric]
        if isinstance(value, Undefined):
            raise RunError(f"the ensemble has no {config.metric} on val: {value.reason}.")
        return round(float(value), 12)  # equal values summed in another order must tie

    return score


def _write_selection(ensemble: Ensemble, folders: Mapping[int, Path]) -> None:
    """``grid.csv`` and ``selection.json`` as for other rows: how often each member is taken, by seed."""
    parent = next(iter(folders.values())).parent
    models = {seed: float(read_model(folder)["val_score"]) for seed, folder in folders.items()}
    counts = {seed: read_tensors(folder)["counts"].tolist() for seed, folder in folders.items()}
    table = pd.DataFrame(
        [
            {"seed": seed, **dict(zip(ensemble.members, counts[seed], strict=True)), "val_score": models[seed],
             "chosen": True}
            for seed in folders
        ]
    )  # fmt: skip
    with replacing(parent / "grid.csv") as aside:
        table.to_csv(aside, index=False)
    write_json(
        parent / "selection.json",
        {
            "setting": {"choose": ensemble.choose},
            "mean_val_score": float(np.mean(list(models.values()))),
            "num_settings": 1,
            "margin": None,
            "runner_up": None,
            "num_diverged": 0,
            "findings": [],
            "best_seed": max(models, key=lambda seed: (models[seed], -seed)),
        },
    )
