"""A finished run, looked at: what its rows, their training, the files and the features say."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
import yaml

from vitreous.config.study import StudyConfig
from vitreous.core.finding import Finding
from vitreous.core.input_spec import item_noun
from vitreous.core.predictions import Predictions
from vitreous.core.undefined import Undefined
from vitreous.diagnosis.differences import ObservedDifference, find_no_better_than_random, find_within_noise
from vitreous.diagnosis.prevalence import find_never_predicted, find_prevalence_shifts
from vitreous.diagnosis.sameness import Decided, find_same_rows
from vitreous.diagnosis.thresholds import find_foreign_thresholds
from vitreous.diagnosis.training_ends import find_under_trained
from vitreous.evidence.overfitting import TrainingFacts, describe_training
from vitreous.reports.leaderboard import Leaderboard, RowPredictions
from vitreous.study.account import read_account
from vitreous.study.doctor_features import examine_features
from vitreous.study.doctor_study import describe_inputs
from vitreous.study.encoders import UNTRAINED
from vitreous.study.heads import read_history, read_model
from vitreous.study.leak_gate import read_leaks
from vitreous.study.looking_inside import look_inside
from vitreous.study.report import choice_findings, leaderboard_of
from vitreous.study.row import ENSEMBLE
from vitreous.study.rows import KeptRow, read_kept_rows, read_rows
from vitreous.study.run_directory import RunDirectory, kept_study

_CLOSEST = 3  # differences that are said in words; the leaderboard has all of them


def examine_run(directory: RunDirectory) -> Iterator[Finding]:
    """Account and files first, then predictions, training, and last what needs the features."""
    config = kept_study(directory)
    kept = read_kept_rows(directory)
    yield from _examine_account(directory, config)
    yield from read_leaks(directory)
    leaderboard = leaderboard_of(directory, config)
    yield from leaderboard.findings
    rows = read_rows(directory, config)
    yield from find_same_rows([decided(directory, config, one, row) for one, row in zip(kept, rows, strict=True)])
    yield from _examine_leaderboard(leaderboard, kept)
    yield from _examine_predictions(directory, config, kept, rows)
    yield from _examine_thresholds(directory, config, kept)
    yield from look_inside(directory, config, rows, kept).findings
    yield from _examine_training(directory, config, kept)
    yield from choice_findings(directory, kept)
    yield from examine_features(
        directory, config, kept, {row.name: _value(row.test[config.metric].value) for row in leaderboard.rows}
    )


def decided(directory: RunDirectory, config: StudyConfig, kept: KeptRow, row: RowPredictions) -> Decided:
    """What decides a row: recipe, weights, input and options of its encoder, and what is kept of the tokens."""
    recipe = config.ensembles[kept.recipe] if kept.encoder == ENSEMBLE else config.recipes.get(kept.recipe)
    settings: dict[str, Any] = {"recipe": None if recipe is None else recipe.model_dump(mode="json")}
    if kept.features_of is not None:
        receipt = json.loads(directory.receipt(kept.features_of).read_text())
        settings |= {name: receipt[name] for name in ("weights_hash", "input_spec", "options")}
    settings["features"] = None if kept.on_pixels else config.features.model_dump(mode="json")
    flat = {
        f"{key}.{name}": value
        for key, part in settings.items()
        if isinstance(part, dict)
        for name, value in part.items()
    }
    flat |= {key: value for key, value in settings.items() if not isinstance(value, dict)}
    return Decided(row.name, flat, row.test, kept.is_floor or kept.is_constant)


def observed_differences(leaderboard: Leaderboard) -> list[ObservedDifference]:
    """The highest row that is no floor against the others of that kind, the closest first."""
    best = leaderboard.reach.best
    if best is None or best != leaderboard.best:
        return []
    found = []
    for row in leaderboard.rows:
        pair = leaderboard.reach.pair(row.name)
        difference = row.to_best
        if row.is_floor or row.name == best or pair is None or isinstance(difference.value, Undefined):
            continue
        low, high = difference.high, difference.low  # of this row minus the best one
        found.append(
            ObservedDifference(
                best,
                row.name,
                -difference.value,
                low if isinstance(low, Undefined) else -low,
                high if isinstance(high, Undefined) else -high,
                difference.p_holm,
                pair.alone.smallest,
                pair.alone.needed_for_observed,
                leaderboard.reach.num_patients,
                leaderboard.comparison.is_better(best, row.name),
            )
        )
    return sorted(found, key=lambda one: one.value)


def _examine_account(directory: RunDirectory, config: StudyConfig) -> Iterator[Finding]:
    account = read_account(directory)
    yield Finding(
        "account",
        "info",
        f"{account['rows']} rows = {account['encoded']} encoded + {account['quarantined']} "
        f"quarantined + {account['excluded']} excluded by rule.",
        str(account["excluded_by_rule"]),
    )
    if account["patients_without_usable_volume"]:
        yield Finding(
            "lost_patients",
            "warning",
            f"Some participants have no usable {item_noun(config.data.modality, 1)} and are not scored.",
            str(account["patients_without_usable_volume"]),
            f"See {directory.data_errors}.",
        )
    statistics = statistics_of(directory)
    title = f"{len(statistics)} {item_noun(config.data.modality, len(statistics))}"
    yield from describe_inputs(statistics, title, config.data.modality)


def statistics_of(directory: RunDirectory) -> pd.DataFrame:
    """Statistics of every encoded volume or image of a run, by sample id."""
    manifest = pd.read_parquet(directory.manifest)
    encoded = manifest[manifest["fate"] == "encoded"].set_index("sample_id")
    columns = [column for column in encoded.columns if column.startswith("volume_")]
    return encoded[columns].rename(columns=lambda column: column.removeprefix("volume_"))


def _examine_leaderboard(leaderboard: Leaderboard, kept: Sequence[KeptRow]) -> Iterator[Finding]:
    untrained = [f"{one.encoder} / {one.recipe}" for one in kept if one.is_floor and one.encoder.startswith(UNTRAINED)]
    yield from find_no_better_than_random([(row.name, row.not_cleared) for row in leaderboard.rows], untrained)
    for row in leaderboard.rows:
        if others := [floor for floor in row.not_cleared if floor not in untrained]:
            yield Finding(
                "floor",
                "warning",
                f"{row.name} does not clear {', '.join(others)}.",
                f"letters {row.letters}",
                "More participants, or another encoder.",
            )
    yield from find_within_noise(observed_differences(leaderboard)[:_CLOSEST], leaderboard.metric_title)


def _examine_predictions(
    directory: RunDirectory, config: StudyConfig, kept: Sequence[KeptRow], rows: Sequence[RowPredictions]
) -> Iterator[Finding]:
    judged = [(one, row) for one, row in zip(kept, rows, strict=True) if not one.is_floor]
    scored = {
        row.name: [row.test[seed].scored(config.data.aggregate) for seed in sorted(row.test)] for _, row in judged
    }
    yield from find_never_predicted(scored)
    causes = {row.name: _what_moves_probabilities(directory, one) for one, row in judged}
    yield from find_prevalence_shifts(scored, causes)


def _examine_thresholds(directory: RunDirectory, config: StudyConfig, kept: Sequence[KeptRow]) -> Iterator[Finding]:
    """Of several labels: were the thresholds of every training chosen on val?"""
    if config.data.task == "multi_class":
        return
    for one in kept:
        for fold in one.folds:
            for seed in one.seeds:
                folder = directory.unit(one.encoder, one.recipe, seed, fold)
                val, test = (
                    Predictions.read(folder / name, config.data.classes)
                    for name in ("val_preds.parquet", "test_preds.parquet")
                )
                where = f"seed {seed}" if fold is None else f"fold {fold}, seed {seed}"
                name = f"{one.encoder} / {one.recipe}, {where}"
                yield from find_foreign_thresholds(val, test, config.data.aggregate, name)


def _what_moves_probabilities(directory: RunDirectory, kept: KeptRow) -> str:
    """Weights or a sampler of the chosen setting, in words; empty where there are none."""
    path = directory.unit(kept.encoder, kept.recipe, kept.seeds[0], kept.folds[0]) / "config.yaml"
    chosen = yaml.safe_load(path.read_text()) or {}
    named = [f"{key}: {chosen[key]}" for key in ("class_weights", "sampler", "pos_weight") if chosen.get(key)]
    return ", ".join(one for one in named if not one.endswith((": none", ": uniform", ": shuffle")))


def _examine_training(directory: RunDirectory, config: StudyConfig, kept: Sequence[KeptRow]) -> Iterator[Finding]:
    trainings: dict[str, list[TrainingFacts]] = {}
    allowed: dict[str, int] = {}
    for one in kept:
        if one.is_floor or one.encoder == ENSEMBLE:
            continue
        name = f"{one.encoder} / {one.recipe}"
        epochs = getattr(config.recipes[one.recipe], "epochs", None)
        if isinstance(epochs, int):
            allowed[name] = epochs
        for fold in one.folds:
            for seed in one.seeds:
                folder = directory.unit(one.encoder, one.recipe, seed, fold)
                history = [
                    {str(key): value for key, value in row.items()} for row in read_history(folder).to_dict("records")
                ]
                model = read_model(folder)
                facts = describe_training(history, model["best_epoch"], model.get("stage"))
                if facts is not None:
                    trainings.setdefault(name, []).append(facts)
    yield from find_under_trained(trainings, allowed)


def _value(value: float | Undefined) -> float | None:
    return None if isinstance(value, Undefined) else float(value)
