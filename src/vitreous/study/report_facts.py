"""What the report says of how a run was made: its study in plain values, and where each row's numbers lie."""

import html
import re
from collections.abc import Sequence
from typing import Any

import pandas as pd

from vitreous.config.study import EachDomain, KFolds, LeaveOut, StudyConfig
from vitreous.reports.answer import listed
from vitreous.reports.methods import RunFacts
from vitreous.reports.report import RowSource
from vitreous.study.heads import hash_model
from vitreous.study.leak_gate import LEAKS
from vitreous.study.rows import KeptRow
from vitreous.study.run_directory import RunDirectory

_BALANCING = {"class_weights": "class weights", "sampler": "sampler", "loss": "loss"}
_PLAIN = (None, "none", "cross_entropy", "uniform", "natural", "bce")
_ORDER = ("train", "val", "test")


def run_facts(directory: RunDirectory, config: StudyConfig) -> RunFacts:
    """The study's settings as clauses of a methods paragraph."""
    data = config.data
    where = getattr(data, "where", {})
    transfers = tuple(sorted(path.parent.name for path in (directory.root / "transfer").glob("*/gap.csv")))
    return RunFacts(
        source=data.kind,
        split=_split_words(config),
        label=_column_words(getattr(data, "label", None)) or "in the file",
        encoders={name: encoder.random is not None for name, encoder in config.encoders.items()},
        recipes={name: recipe.kind for name, recipe in config.recipes.items()},
        eligibility="; ".join(f"{column} is {_column_words(value)}" for column, value in where.items()),
        balancing=tuple(_balancing(config)),
        ensembles=tuple(config.ensembles),
        pooling=config.features.pooling,
        dtype=config.features.dtype,
        split_patients=_split_patients(directory),
        domains=tuple(getattr(data, "domains", ())),
        gate=(directory.root / LEAKS).exists(),
        accepted_leaks=tuple(str(code) for code in config.leaks.accept),
        folds=config.folds is not None,
        domain_rounds=config.folds.column if isinstance(config.folds, LeaveOut | EachDomain) else None,
        transfers=transfers,
        has_explanations=(directory.root / "explain").is_dir(),
    )


def row_sources(directory: RunDirectory, kept: Sequence[KeptRow]) -> tuple[RowSource, ...]:
    """Where the numbers of every row come from: files below the run directory, seeds, hashes of what predicts."""
    return tuple(
        RowSource(
            f"{row.encoder} / {row.recipe}",
            tuple(
                (
                    f"seed {seed}" if fold is None else f"fold {fold}, seed {seed}",
                    str(folder.relative_to(directory.root)),
                    hash_model(folder)[:12],
                )
                for fold in row.folds
                for seed in row.seeds
                for folder in [directory.unit(row.encoder, row.recipe, seed, fold)]
            ),
            None if row.features_of is None else f"receipts/{row.features_of}.json",
        )
        for row in kept
    )


def _split_words(config: StudyConfig) -> str:
    folds = config.folds
    match folds:
        case KFolds():
            nested = ", nested" if folds.nested else ""
            return f"patients were divided into {folds.k} stratified folds{nested} (seed {folds.seed})"
        case LeaveOut():
            return f"each {folds.column} was left out once; val was a share of {folds.val_fraction:g} of the others"
        case EachDomain():
            return f"models were trained within each {folds.column} and tested on all (seed {folds.seed})"
    split = getattr(config.data, "split", None)
    if split is None:
        return "splits came with the file"
    if isinstance(split, str):
        return f"splits came from the column {split}"
    if hasattr(split, "fractions"):
        shares = listed([f"{one:g}" for one in split.fractions])
        return f"patients were divided by {shares}, stratified (seed {split.seed})"
    return "splits came from lists of ids"


def _column_words(value: Any) -> str:
    if isinstance(value, list | tuple):
        return listed([str(one) for one in value])
    return "" if value is None else str(value)


def _balancing(config: StudyConfig) -> list[str]:
    """What each recipe does about rare classes."""
    said = []
    for name, recipe in config.recipes.items():
        chosen = {label: getattr(recipe, key, None) for key, label in _BALANCING.items()}
        chosen = {label: getattr(value, "kind", value) for label, value in chosen.items()}
        parts = [f"{label} {value}" for label, value in chosen.items() if value not in _PLAIN]
        said += [f"{name}: {listed(parts)}"] if parts else []
    return said


def _split_patients(directory: RunDirectory) -> dict[str, int]:
    """Patients with a usable sample in each split; nothing with folds."""
    manifest = pd.read_parquet(directory.manifest, columns=["patient_id", "split", "fate"])
    used = manifest[(manifest["fate"] == "encoded") & manifest["split"].isin(_ORDER)]
    counted = used.groupby("split")["patient_id"].nunique()
    return {split: int(counted[split]) for split in _ORDER if split in counted.index}


def kept_matrices(directory: RunDirectory) -> tuple[tuple[str, str], ...]:
    """Heat maps that the run directory keeps, of domains and of other cohorts: title and SVG text."""
    found = [*sorted((directory.root / "domains").glob("matrix*.svg")), directory.root / "transfer" / "heat_map.svg"]
    svgs = [path.read_text() for path in found if path.exists()]
    return tuple((_svg_title(svg), svg) for svg in svgs)


def _svg_title(svg: str) -> str:
    found = re.search(r"<title[^>]*>(.*?)</title>", svg, re.DOTALL)
    return html.unescape(found[1]) if found else ""
