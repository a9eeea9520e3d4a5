"""What a finished run says of labels that stand alone and of training curves: two tables and their findings."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vitreous.config.study import StudyConfig
from vitreous.core.files import replacing
from vitreous.core.finding import Finding
from vitreous.core.streams import numpy_stream
from vitreous.core.undefined import Undefined
from vitreous.evidence.blindness import LabelAlone, alone_confusion, examine_alone, find_blindness, group_names
from vitreous.evidence.overfitting import TrainingFacts, describe_training, find_overfitting
from vitreous.reports.leaderboard import RowPredictions
from vitreous.study.heads import read_history, read_model
from vitreous.study.rows import KeptRow
from vitreous.study.run_directory import RunDirectory

SCHEMA_VERSION = 1
LABELS_ALONE, CONFUSION_ALONE, OVERFITTING = "labels_alone.csv", "labels_alone_confusion.csv", "overfitting.csv"


@dataclass(frozen=True)
class LookedInside:
    """Tables, and what stands out in them.

    Args:
        labels_alone: a row for each row of the leaderboard, label and group it is told from; empty for classes.
        confusion_alone: a row for each row of the leaderboard and pair of groups; empty for classes.
        overfitting: a row for each training.
    """

    labels_alone: pd.DataFrame
    confusion_alone: pd.DataFrame
    overfitting: pd.DataFrame
    findings: tuple[Finding, ...]


def look_inside(
    directory: RunDirectory, config: StudyConfig, rows: Sequence[RowPredictions], kept: Sequence[KeptRow]
) -> LookedInside:
    """Examine every row; floors stand in the tables and have no findings.

    Test predictions are those of the final evaluation, mean probability over seeds; nothing is chosen by them.
    """
    alone_rows: list[dict[str, Any]] = []
    confusion_rows: list[dict[str, Any]] = []
    findings: list[Finding] = []
    for row in rows:
        if config.data.task != "multi_label":
            break
        name = f"{row.encoder} / {row.recipe}"
        alone, confusion = _labels_alone(row, config)
        alone_rows += _alone_table(name, alone)
        confusion_rows += [{"row": name, **pair} for pair in confusion]
        findings += [] if row.is_floor else find_blindness(alone, name)
    facts = _training_facts(directory, kept)
    floors = {f"{row.encoder} / {row.recipe}" for row in kept if row.is_floor}
    findings += find_overfitting(
        {name: [one for _, one in trainings] for name, trainings in facts.items() if name not in floors}
    )
    overfitting = [
        {"row": name, **where, **vars(one), "gap_is_large": one.has_gap, "past_its_best": one.is_trained_past_its_best}
        for name, trainings in facts.items()
        for where, one in trainings
    ]
    return LookedInside(
        pd.DataFrame(alone_rows), pd.DataFrame(confusion_rows), pd.DataFrame(overfitting), tuple(findings)
    )


def write_looked_inside(looked: LookedInside, folder: Path) -> None:
    """``labels_alone.csv``, ``labels_alone_confusion.csv`` (of labels), ``overfitting.csv`` (if there are epochs)."""
    tables = {
        LABELS_ALONE: looked.labels_alone,
        CONFUSION_ALONE: looked.confusion_alone,
        OVERFITTING: looked.overfitting,
    }
    for name, table in tables.items():
        if len(table):
            with replacing(folder / name) as aside:
                table.assign(schema_version=SCHEMA_VERSION).to_csv(aside, index=False, float_format="%.6g")


def _labels_alone(row: RowPredictions, config: StudyConfig) -> tuple[list[LabelAlone], list[dict[str, Any]]]:
    scored = [one.scored(config.data.aggregate) for one in row.test.values()]
    first = scored[0]
    probs_NC = np.mean([one.probs_NC for one in scored], axis=0)
    # thresholds of the seeds (and folds) that the probabilities are the mean of
    thresholds_NC = np.mean(
        [np.full(probs_NC.shape, 0.5) if one.thresholds_NC is None else one.thresholds_NC for one in scored], axis=0
    )
    targets_NC = first.targets_NC
    alone = examine_alone(
        targets_NC,
        probs_NC,
        first.patient_id_N,
        first.classes,
        thresholds_NL=thresholds_NC,
        num_resamples=config.intervals.resamples,
        rng=numpy_stream(config.intervals.seed, "labels alone"),
    )
    counts_GG = alone_confusion(targets_NC, probs_NC >= thresholds_NC)
    names = group_names(first.classes)
    return alone, [
        {"true": true, "predicted": predicted, "count": int(counts_GG[t, p])}
        for t, true in enumerate(names)
        for p, predicted in enumerate(names)
    ]


def _alone_table(name: str, alone: Sequence[LabelAlone]) -> list[dict[str, Any]]:
    return [
        {
            "row": name,
            "label": one.label,
            "num_alone": one.num_alone,
            "participants_alone": one.num_patients_alone,
            "detected": one.detected,
            "against": group,
            "auroc": _number(interval.value),
            "auroc_low": _number(interval.low),
            "auroc_high": _number(interval.high),
            "blind": one.is_blind,
            "most_taken_for": "" if one.taken_for is None else one.taken_for[0],
            "taken_for_count": 0 if one.taken_for is None else one.taken_for[1],
        }
        for one in alone
        for group, interval in one.ranked.items()
    ]


def _number(value: float | Undefined) -> float | None:
    return None if isinstance(value, Undefined) else value


def _training_facts(
    directory: RunDirectory, kept: Sequence[KeptRow]
) -> dict[str, list[tuple[dict[str, Any], TrainingFacts]]]:
    """Name of a row → (seed and fold, facts) of each training that has epochs."""
    found: dict[str, list[tuple[dict[str, Any], TrainingFacts]]] = {}
    for row in kept:
        for fold in row.folds:
            for seed in row.seeds:
                folder = directory.unit(row.encoder, row.recipe, seed, fold)
                history = read_history(folder)
                if history.empty:
                    continue
                model = read_model(folder)
                rows = [dict(zip(history.columns, values, strict=True)) for values in history.to_numpy().tolist()]
                facts = describe_training(rows, model["best_epoch"], model.get("stage"))
                if facts is not None:
                    where = {"seed": seed, "fold": "" if fold is None else fold}
                    found.setdefault(f"{row.encoder} / {row.recipe}", []).append((where, facts))
    return found
