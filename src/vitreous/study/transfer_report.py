"""Tables, figures and report of every cohort a run was transferred to, from the predictions on disk."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from vitreous.config.study import StudyConfig
from vitreous.core.files import write_json, write_text
from vitreous.core.finding import Finding
from vitreous.core.predictions import Predictions
from vitreous.core.privacy import load_id_key
from vitreous.evidence.calibration import restrict
from vitreous.evidence.transfer import ModelPredictions
from vitreous.reports.quarantine import keyed_rows
from vitreous.reports.report import DataFlow
from vitreous.reports.transfer import TransferPredictions, TransferTarget, build_target
from vitreous.reports.transfer_report import TransferCohort, TransferReport, draw_transfer, render_transfer_report
from vitreous.reports.transfer_tables import gap_csv, scores_csv, shifts, transfer_csv, transfer_markdown
from vitreous.study.domains import read_rounds
from vitreous.study.ledger import Ledger
from vitreous.study.rows import KeptRow, read_kept_rows
from vitreous.study.run_directory import RunDirectory


@dataclass(frozen=True)
class TransferFolder:
    """Paths of one cohort: ``transfer/<name>/`` of a run directory."""

    root: Path

    @property
    def settings(self) -> Path:
        return self.root / "settings.yaml"

    @property
    def data_errors(self) -> Path:
        return self.root / "data_errors.csv"

    @property
    def account(self) -> Path:
        return self.root / "account.json"

    def predictions(self, encoder: str, recipe: str, seed: int, fold: int | None) -> Path:
        """Target predictions of one trained model."""
        middle = () if fold is None else (f"fold{fold}",)
        return self.root.joinpath(encoder, recipe, *middle, f"seed{seed}.parquet")

    def read_heads(self) -> dict[str, str]:
        """Folder of each transferred model below the run → hash of its weights; a cohort with any is finished."""
        path = self.root / "heads.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def write_heads(self, heads: dict[str, str]) -> None:
        """See :meth:`read_heads`."""
        write_json(self.root / "heads.json", heads)


def write_transfer(directory: RunDirectory, config: StudyConfig) -> list[TransferTarget]:
    """Score every finished cohort below ``transfer/`` and write all tables, figures and ``transfer.html``.

    Equal predictions give equal bytes.
    """
    root = directory.root / "transfer"
    folders = [TransferFolder(path.parent) for path in sorted(root.glob("*/heads.json"))]
    cohorts = [_score(directory, config, folder) for folder in folders]
    targets = [cohort.target for cohort in cohorts]
    write_text(root / "transfer.csv", transfer_csv(targets))
    write_text(root / "transfer.md", transfer_markdown(targets))
    figures = draw_transfer(targets)
    write_text(root / "heat_map.svg", figures.heat_map)
    write_text(root / "gap_against_source.svg", figures.gap_against_source)
    for name, svg in figures.class_f1.items():
        write_text(root / f"class_f1.{name.replace(' / ', '.')}.svg", svg)
    looks = tuple(vars(look) for look in Ledger(directory.ledger).looks())
    render_transfer_report(TransferReport(config.name, tuple(cohorts), figures, looks), root / "transfer.html")
    return targets


def _score(directory: RunDirectory, config: StudyConfig, folder: TransferFolder) -> TransferCohort:
    settings = yaml.safe_load(folder.settings.read_text())
    account: dict[str, Any] = json.loads(folder.account.read_text())
    heads = folder.read_heads()
    rows = [
        row
        for row in read_kept_rows(directory)
        if all(str(path.relative_to(directory.root)) in heads for path in _folders(directory, row))
    ]
    target = build_target(
        folder.root.name,
        [_read_row(directory, config, folder, row) for row in rows],
        metric=config.metric,
        ordered=settings["ordered"],
        seed=config.intervals.seed,
        num_resamples=config.intervals.resamples,
        level=config.intervals.level,
        fit_share=settings["fit_share"],
        aggregate=config.data.aggregate,
        findings=[Finding(**finding) for finding in account["findings"]],
    )
    write_text(folder.root / "scores.csv", scores_csv(target))
    write_text(folder.root / "gap.csv", gap_csv(target))
    write_json(folder.root / "shifts.json", shifts(target))
    quarantined = pd.read_csv(folder.data_errors, dtype=str, keep_default_na=False).rename(
        columns={"participant_id": "patient_id", "key": "relative"}
    )
    return TransferCohort(
        target,
        DataFlow(account["rows"], account["encoded"], account["quarantined"], account["excluded_by_rule"]),
        folder.settings.read_text(),
        keyed_rows(quarantined, load_id_key()),
    )


def _folders(directory: RunDirectory, row: KeptRow) -> list[Path]:
    return [directory.unit(row.encoder, row.recipe, seed, fold) for fold in row.folds for seed in row.seeds]


def _read_row(
    directory: RunDirectory, config: StudyConfig, folder: TransferFolder, row: KeptRow
) -> TransferPredictions:
    classes: Sequence[str] = config.data.classes
    rounds = read_rounds(directory)
    models = []
    for fold in row.folds:
        for seed in row.seeds:
            unit = directory.unit(row.encoder, row.recipe, seed, fold)
            source = Predictions.read(unit / "test_preds.parquet", classes)
            if rounds is not None and rounds.kind == "each" and fold is not None:
                # as in the leaderboard: each patient by the model of his own domain, so that nobody counts twice
                source = restrict(source, np.array(rounds.own_patients(fold), dtype=np.str_))
            models.append(
                ModelPredictions(
                    seed,
                    Predictions.read(unit / "val_preds.parquet", classes),
                    source,
                    Predictions.read(folder.predictions(row.encoder, row.recipe, seed, fold), classes),
                )
            )
    return TransferPredictions(row.encoder, row.recipe, tuple(models), row.is_floor, row.is_constant)
