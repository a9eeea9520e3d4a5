"""Scores by round of a study with folds, from what the run left on disk."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitreous.config.study import StudyConfig
from vitreous.core.predictions import Predictions
from vitreous.core.undefined import Undefined
from vitreous.evidence.intervals import mean_scores
from vitreous.reports.folds import FoldScore, Scope
from vitreous.reports.leaderboard import RowPredictions
from vitreous.study.domains import read_rounds
from vitreous.study.heads import read_model
from vitreous.study.rows import KeptRow, read_kept_rows
from vitreous.study.run_directory import RunDirectory


def fold_scores(directory: RunDirectory, config: StudyConfig, rows: Sequence[RowPredictions]) -> list[FoldScore]:
    """For each row: every round and seed, then each seed with its rounds together, then the mean over the seeds.

    Args:
        rows: of the leaderboard, rounds of a seed put together.
    """
    rounds = read_rounds(directory)
    by_name = {row.name: row for row in rows}
    scores = []
    for kept in read_kept_rows(directory):
        for seed in kept.seeds:
            for fold in kept.folds:
                domain = None if rounds is None or fold is None else rounds.domains[fold]
                scores.append(_of_one(directory, config, kept, seed, fold, domain))
        row = by_name[f"{kept.encoder} / {kept.recipe}"]
        val, test = (
            {seed: by_seed[seed].scored(config.data.aggregate) for seed in kept.seeds}
            for by_seed in (row.val, row.test)
        )
        for seed in kept.seeds:
            scores.append(_of_all(config, kept, "pooled", seed, [val[seed]], [test[seed]]))
        scores.append(_of_all(config, kept, "mean", None, list(val.values()), list(test.values())))
    return scores


def _of_one(
    directory: RunDirectory, config: StudyConfig, kept: KeptRow, seed: int, fold: int | None, domain: str | None
) -> FoldScore:
    folder: Path = directory.unit(kept.encoder, kept.recipe, seed, fold)
    metrics = json.loads((folder / "metrics.json").read_text())
    return FoldScore(
        kept.encoder,
        kept.recipe,
        "fold",
        seed,
        fold,
        domain,
        metrics["n_val"],
        metrics["n_test"],
        read_model(folder)["setting"],
        _numbers(metrics["val"])[config.metric],
        _numbers(metrics["test"]),
    )


def _of_all(
    config: StudyConfig,
    kept: KeptRow,
    scope: Scope,
    seed: int | None,
    val: Sequence[Predictions],
    test: Sequence[Predictions],
) -> FoldScore:
    counts = len(val[0].y_true_N), len(test[0].y_true_N)
    return FoldScore(
        kept.encoder, kept.recipe, scope, seed, None, None, *counts, None, mean_scores(val)[config.metric],
        mean_scores(test),
    )  # fmt: skip


def _numbers(plain: Mapping[str, Any]) -> dict[str, float | Undefined]:
    """``metrics.json`` back as numbers; null comes with its reason beside it."""
    return {
        name: Undefined(plain[f"{name}_undefined"]) if value is None else float(value)
        for name, value in plain.items()
        if not name.endswith("_undefined")
    }
