"""`vitreous transfer RUN_DIR --on …`: trained models on other cohorts, and what they lose there.

Nothing is trained or chosen. Test predictions of the source are those of the run; the target is encoded by the same
encoders into the same store and judged by the heads as they lie in the run directory.
"""

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from rich.console import Console

from vitreous.config.pixel_recipes import PixelRecipe
from vitreous.config.study import StudyConfig
from vitreous.core.errors import RunError, StudyMismatchError, UserError
from vitreous.core.files import remove_partial_files, write_json, write_text
from vitreous.core.finding import Finding
from vitreous.core.predictions import Predictions
from vitreous.evidence.calibration_shift import FIT_SHARE
from vitreous.recipes.probe_outputs import head_reads_tokens, kept_logits
from vitreous.reports.transfer import TransferTarget
from vitreous.reports.transfer_tables import render_transfer
from vitreous.storage.locks import exclusive
from vitreous.study.account import NO_FILE
from vitreous.study.adapt_pixels import predict_row
from vitreous.study.data import OpenedData
from vitreous.study.encode import (
    StudyFeatures,
    check_usable,
    describe_encoding,
    encode_study,
    feature_store,
    token_stores,
    write_data_errors,
)
from vitreous.study.encoders import OpenedEncoder, open_encoders
from vitreous.study.heads import hash_model, read_model, read_tensors
from vitreous.study.ledger import Ledger
from vitreous.study.provenance import cohort_fingerprint
from vitreous.study.row import ENSEMBLE, is_on_tokens
from vitreous.study.rows import KeptRow, read_kept_rows
from vitreous.study.run_directory import RunDirectory, differing_keys, flatten_keys, kept_study
from vitreous.study.runtime import Runtime, resolve_runtime
from vitreous.study.transfer_cohort import (
    CohortOptions,
    TargetPlace,
    check_apart,
    check_names,
    open_target,
    parse_place,
    target_config,
)
from vitreous.study.transfer_report import TransferFolder, write_transfer

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Unit:
    """One trained model of a row: its folder in the run, and the file of its target predictions."""

    row: KeptRow
    seed: int
    folder: Path
    predictions: Path


def run_transfer(
    run_dir: Path,
    on: Sequence[str],
    *,
    options: CohortOptions | None = None,
    rows: Sequence[str] = (),
    ordered: bool = False,
    fit_share: float = FIT_SHARE,
    console: Console | None = None,
) -> list[TransferTarget]:
    """Transfer a finished run to other cohorts, or to what is left of them.

    Args:
        run_dir: of the run.
        on: ``NAME:TABLE:FILES`` or ``NAME:STUDY.yaml`` each.
        options: of all of them.
        rows: ``encoder/recipe`` each; all rows that are no floor and no ensemble, and the majority floor, if left
            out.
        ordered: the classes are grades; adds the quadratic weighted kappa.
        fit_share: of the target's patients, to fit a temperature on; in (0, 1).
        console: where progress is told; the error stream if left out.

    Returns:
        What stands for every cohort of the run so far, those of earlier commands included.

    Raises:
        VitreousError: the transfer failed; what is finished is kept.
    """
    console = console or Console(stderr=True, highlight=False, markup=False)
    options = options or CohortOptions()
    if not 0 < fit_share < 1:
        raise UserError(f"--fit-share must lie between 0 and 1; got {fit_share:g}.")
    directory = RunDirectory(run_dir)
    config = kept_study(directory)
    if ordered and config.data.task == "multi_label":
        raise UserError(
            "--ordered is for classes that are grades; the study has several labels a sample. Leave it out."
        )
    places = [parse_place(text) for text in on]
    check_names(places)
    chosen = _choose_rows(read_kept_rows(directory), rows, run_dir)
    opened = []
    for place in places:  # every cohort is opened before any is encoded
        target = target_config(config, place, options)
        data = open_target(target, options)
        _check_modality(directory, chosen, data, place.name)
        opened.append((place, target, data))
    runtime = resolve_runtime(config)
    encoders = _open_encoders(directory, config, runtime, opened[0][2], chosen)
    with exclusive(directory.root / ".lock"):
        for place, target, data in opened:
            _transfer_one(
                directory, config, runtime, encoders, chosen, place, target, data, options,
                ordered=ordered, fit_share=fit_share, console=console,
            )  # fmt: skip
        return write_transfer(directory, config)


def _choose_rows(kept: Sequence[KeptRow], wanted: Sequence[str], run_dir: Path) -> list[KeptRow]:
    names = {f"{row.encoder}/{row.recipe}": row for row in kept}
    if not wanted:
        chosen = [row for row in kept if (not row.is_floor and row.encoder != ENSEMBLE) or row.is_constant]
        if all(row.is_constant for row in chosen):
            raise UserError(f"{run_dir}: every row is a floor; name those to transfer with --rows: {', '.join(names)}.")
        return chosen
    for name in wanted:
        if name.replace(" ", "") not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UserError(f"{run_dir}: no row {name!r}; the run has {', '.join(names)}.{hint}")
    asked = {name.replace(" ", "") for name in wanted}
    if unread := [
        name for name, row in names.items() if name in asked and row.features_of is None and not row.is_constant
    ]:
        raise UserError(
            f"--rows: {', '.join(unread)} reads no files (a floor on the run's own columns, or an ensemble of other "
            "rows); leave it out."
        )
    chosen = [row for name, row in names.items() if name in asked]
    if all(row.is_constant for row in chosen):
        raise UserError("--rows names no row with an encoder; the majority floor alone has nothing to transfer.")
    return chosen


def _open_encoders(
    directory: RunDirectory, config: StudyConfig, runtime: Runtime, data: OpenedData, rows: Sequence[KeptRow]
) -> list[OpenedEncoder]:
    """Those the rows need, with the weights that the run used."""
    needed = {row.features_of for row in rows if row.features_of is not None}
    if needed <= set(config.encoders):
        kept = {name: encoder for name, encoder in config.encoders.items() if name in needed}
        config = config.model_copy(update={"encoders": kept, "floors": ()})
    # else a random floor, whose name depends on all encoders before it
    opened = [one for one in open_encoders(config, runtime, data.cache, data.modality) if one.name in needed]
    kept_hashes = json.loads(directory.provenance.read_text())["hashes"]
    for one in opened:
        if kept_hashes.get(f"encoders.{one.name}.weights") != one.encoder.weights_hash:
            raise StudyMismatchError(
                f"encoders.{one.name}: the weights are not those of the run {directory.root}; put back the checkpoint "
                "that the run was made with, or run the study again under another name."
            )
    return opened


def _check_modality(directory: RunDirectory, rows: Sequence[KeptRow], data: OpenedData, name: str) -> None:
    row = next(row for row in rows if not row.is_constant)
    read = read_model(directory.unit(row.encoder, row.recipe, row.seeds[0], row.folds[0]))["modality"]
    if data.modality != read:
        raise UserError(
            f"{name}: the cohort holds {data.modality}s, and the run's encoders read {read}s; give a cohort of {read}s."
        )


def _transfer_one(
    directory: RunDirectory,
    config: StudyConfig,
    runtime: Runtime,
    encoders: Sequence[OpenedEncoder],
    rows: Sequence[KeptRow],
    place: TargetPlace,
    target: StudyConfig,
    data: OpenedData,
    options: CohortOptions,
    *,
    ordered: bool,
    fit_share: float,
    console: Console,
) -> None:
    folder = TransferFolder(directory.root / "transfer" / place.name)
    findings = [*data.cohort.findings, *check_apart(directory, data, place.name)]
    settings = _settings(target, options, data, ordered=ordered, fit_share=fit_share)
    _claim(folder, settings)
    for inside in [folder.root, *folder.root.glob("**/")]:
        remove_partial_files(inside)
    on_features = [row for row in rows if not row.on_pixels]
    frozen = {row.features_of for row in on_features if row.features_of and not _reads_tokens(target, row)}
    on_tokens = {row.features_of for row in on_features if row.features_of and _reads_tokens(target, row)}
    on_pixels = {row.encoder for row in rows if row.on_pixels}
    _check_feature_spaces(directory, target, runtime, data, encoders, rows)
    features = encode_study(
        target, runtime, data, encoders, frozen=frozen, on_tokens=on_tokens, with_views=False, on_pixels=on_pixels
    )
    write_data_errors(folder.data_errors, features.quarantined)
    check_usable(target, features, len(data.cohort.samples))
    console.print(f"{place.name}: {describe_encoding(data, features)}")
    _write_account(folder, data, features, [*findings, *_find_lost(data, features, place.name)])
    units = _units(directory, folder, rows)
    heads = {str(unit.folder.relative_to(directory.root)): hash_model(unit.folder) for unit in units}
    _check_heads(folder, heads)
    labels = Ledger(directory.ledger).open_test_labels(
        [data.cohort],
        features.samples["sample_id"].tolist(),
        purpose=f"transfer to {place.name}",
        choices={"transfer": place.name, "settings": settings, "heads": heads},
    )
    _predict_missing(config, runtime, encoders, features, units, heads, labels, folder)


def _settings(
    target: StudyConfig, options: CohortOptions, data: OpenedData, *, ordered: bool, fit_share: float
) -> dict[str, Any]:
    """All that decides the numbers of this cohort besides the models."""
    described = target.model_dump(mode="json")["data"]
    described.pop("refresh_listing", None)
    return {
        "schema_version": SCHEMA_VERSION,
        "data": described,
        "split": options.split,
        "ordered": ordered,
        "fit_share": fit_share,
        "content": {"cohort": cohort_fingerprint(data.cohort)},
    }


def _claim(folder: TransferFolder, settings: Mapping[str, Any]) -> None:
    """Make the folder this cohort's, or check that it already is."""
    if folder.settings.exists():
        kept = yaml.safe_load(folder.settings.read_text())
        if different := differing_keys(flatten_keys(kept), flatten_keys(settings)):
            raise StudyMismatchError(
                f"{folder.root}: this transfer was made by other settings; different: {', '.join(different)}. Give the "
                "cohort another name, or remove the folder to start over."
            )
    else:
        write_text(folder.settings, yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True))


def _check_feature_spaces(
    directory: RunDirectory,
    target: StudyConfig,
    runtime: Runtime,
    data: OpenedData,
    encoders: Sequence[OpenedEncoder],
    rows: Sequence[KeptRow],
) -> None:
    """A head is fed the kind of features it was trained on.

    What the data declare of themselves (axes, spacing) may differ: each cohort is read by its own.
    """
    by_name = {one.name: one for one in encoders}
    for row in rows:
        if row.is_constant or row.on_pixels:
            continue
        kept = dict(read_model(directory.unit(row.encoder, row.recipe, row.seeds[0], row.folds[0]))["feature_space"])
        source = by_name[row.features_of or ""]
        if kept["pooling"] == "tokens":
            now = token_stores(target, runtime, data, source, with_views=False)[0].space.describe()
        else:
            now = feature_store(target, runtime, data, source).space.describe()
        for values in (kept, now):
            values.pop("declared", None)
        if different := differing_keys(flatten_keys(kept), flatten_keys(now)):
            raise StudyMismatchError(
                f"{row.encoder} / {row.recipe}: was trained on other features; different: {', '.join(different)}. "
                "Use the device, the precision and the version of the run."
            )


def _find_lost(data: OpenedData, features: StudyFeatures, name: str) -> list[Finding]:
    patients = set(data.cohort.samples["patient_id"])
    if not (lost := patients - set(features.samples["patient_id"])):
        return []
    title = (
        f"{len(lost)} of {len(patients)} patients of {name} have no usable file, so no prediction was made for them."
    )
    return [Finding("lost_patients", "warning", title, f"transfer/{name}/data_errors.csv names the files", "")]


def _write_account(
    folder: TransferFolder, data: OpenedData, features: StudyFeatures, findings: Sequence[Finding]
) -> None:
    by_rule = {str(rule): int(count) for rule, count in data.cohort.excluded["rule"].value_counts().items()}
    if data.cohort.patients_without_files:
        by_rule[NO_FILE] = len(data.cohort.patients_without_files)
    write_json(
        folder.account,
        {
            "rows": len(data.cohort.samples) + sum(by_rule.values()),
            "encoded": len(features.samples),
            "quarantined": len(features.quarantined),
            "excluded_by_rule": by_rule,
            "findings": [vars(finding) for finding in findings],
        },
    )


def _units(directory: RunDirectory, folder: TransferFolder, rows: Sequence[KeptRow]) -> list[Unit]:
    return [
        Unit(
            row,
            seed,
            directory.unit(row.encoder, row.recipe, seed, fold),
            folder.predictions(row.encoder, row.recipe, seed, fold),
        )
        for row in rows
        for fold in row.folds
        for seed in row.seeds
    ]


def _check_heads(folder: TransferFolder, heads: Mapping[str, str]) -> None:
    kept = folder.read_heads()
    if changed := [unit for unit, digest in heads.items() if kept.get(unit, digest) != digest]:
        raise StudyMismatchError(
            f"{folder.root}: made by other models: {', '.join(changed)} changed since. Remove the folder to start over."
        )


def _predict_missing(
    config: StudyConfig,
    runtime: Runtime,
    encoders: Sequence[OpenedEncoder],
    features: StudyFeatures,
    units: Sequence[Unit],
    heads: Mapping[str, str],
    labels: Mapping[str, int],
    folder: TransferFolder,
) -> None:
    """Write what is not there yet; what is there must be of the same samples and labels."""
    samples = features.samples
    ids = samples["sample_id"].to_numpy(np.str_)
    y_N = np.array([labels[name] for name in ids], dtype=np.int64)
    classes = config.data.classes
    by_name = {one.name: one for one in encoders}
    for unit in units:
        if unit.predictions.exists():
            kept = Predictions.read(unit.predictions, classes)
            if not np.array_equal(kept.sample_id_N, ids) or not np.array_equal(kept.y_true_N, y_N):
                raise StudyMismatchError(
                    f"{unit.predictions}: is of other samples or labels than the cohort has now. Give the cohort "
                    "another name, or remove its folder to start over."
                )
            continue
        predicted = Predictions(
            ids,
            samples["patient_id"].to_numpy(np.str_),
            y_N,
            _predict_on_pixels(config, runtime, by_name[unit.row.encoder], unit, features)
            if unit.row.on_pixels
            else _predict_on_features(unit, features),
            classes,
            task=config.data.task,
        )
        thresholds = read_model(unit.folder).get("thresholds")
        if thresholds is not None:
            predicted = predicted.with_thresholds([thresholds[name] for name in classes])
        predicted.write(unit.predictions)
    folder.write_heads(folder.read_heads() | dict(heads))


def _predict_on_features(unit: Unit, features: StudyFeatures) -> npt.NDArray[np.float64]:
    tensors, source = read_tensors(unit.folder), unit.row.features_of
    if source is None:
        return kept_logits(tensors, np.zeros((len(features.samples), 1), np.float32))
    return kept_logits(tensors, (features.tokens if head_reads_tokens(tensors) else features.features)[source])


def _reads_tokens(config: StudyConfig, row: KeptRow) -> bool:
    return row.recipe in config.recipes and is_on_tokens(config.recipes[row.recipe])


def _predict_on_pixels(
    config: StudyConfig, runtime: Runtime, opened: OpenedEncoder, unit: Unit, features: StudyFeatures
) -> npt.NDArray[np.float64]:
    recipe = config.recipes[unit.row.recipe]
    if not isinstance(recipe, PixelRecipe):
        raise RunError(f"{unit.row.encoder} / {unit.row.recipe}: is no recipe on pixels; please report this.")
    return predict_row(config, runtime, opened, recipe, unit.seed, unit.folder, features)


def print_transfer(run_dir: Path, on: Sequence[str], **settings: Any) -> None:
    """Transfer, and show a table per cohort and where the report is."""
    console = Console()
    targets = run_transfer(run_dir, on, **settings)
    for target in targets:
        console.print(render_transfer(target))
        console.print()
    root = run_dir / "transfer"
    console.print(f"report  {root / 'transfer.html'}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"tables  {root / 'transfer.md'}", highlight=False, markup=False, soft_wrap=True)
