"""`vitreous data verify STUDY`: every file opens, what the files hold, and which of them show the same thing.

    verify.json   statistics.csv   outliers.csv   duplicates.csv   unreadable.csv

The tables name samples and patients; verify.json names none.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from vitreous.config.compose import load_study
from vitreous.config.study import StudyConfig
from vitreous.core.files import replacing, write_json
from vitreous.core.finding import Finding
from vitreous.core.progress import Advance
from vitreous.diagnosis.volumes import FEWEST_VOLUMES, ROBUST_Z
from vitreous.inputs.near_duplicates import MAX_DISTANCE
from vitreous.study.clip_findings import check_masks
from vitreous.study.data import OpenedData, open_data
from vitreous.study.data_findings import (
    VALUES,
    describe_cohort,
    describe_leaks,
    describe_reading,
    describe_values,
)
from vitreous.study.doctor import print_findings
from vitreous.study.leak_gate import look_at_files, pixel_leaks, table_leaks

_MAD_TO_SD = 1.4826  # of a normal distribution


@dataclass(frozen=True)
class Verification:
    """What was found.

    Args:
        findings: the errors among them are problems.
        statistics: a row for each statistic of all samples, each split and each value of each domain.
        outliers: values far from the rest: sample_id, statistic, value, robust_z.
        duplicates: pairs that show the same thing.
        unreadable: sample_id, relative, reason.
        counts: patients and samples by split and class.
    """

    findings: tuple[Finding, ...]
    statistics: pd.DataFrame
    outliers: pd.DataFrame
    duplicates: pd.DataFrame
    unreadable: pd.DataFrame
    counts: pd.DataFrame


def verify_data(
    config: StudyConfig,
    data: OpenedData,
    *,
    workers: int,
    max_distance: int = MAX_DISTANCE,
    progress: Advance | None = None,
) -> Verification:
    """Decode every file of a cohort once and compare what comes out: all that the leak gate says before encoding.

    What was seen is kept for the gate of later runs.

    Args:
        workers: decoding threads.
        max_distance: bits of 256 in which near duplicates may differ; see
            :mod:`vitreous.inputs.near_duplicates` for how 18 was chosen.
        progress: called once per file.
    """
    sightings = look_at_files(config, data, workers, again=True, progress=progress)
    samples = data.cohort.samples
    by_sample = [sightings[file_id] for file_id in data.file_ids]
    is_usable = np.array([one.is_usable for one in by_sample], dtype=bool)
    unreadable = samples.loc[~is_usable, ["sample_id", "relative"]].assign(
        reason=[one.message for one in by_sample if not one.is_usable]
    )
    usable = samples[is_usable].reset_index(drop=True)
    statistics = [dict(one.statistics) for one in by_sample if one.is_usable]
    rows = pd.DataFrame(statistics, index=pd.Index(usable["sample_id"], name="sample_id"))
    pixels, duplicates = pixel_leaks(config, data, sightings, max_distance=max_distance)
    leaks = [*table_leaks(config, data), *pixels]
    outliers = _find_outliers(rows)
    counts = data.cohort.count_by(["split", "class"]).rename(columns={"volumes": "samples"})
    findings = (
        *describe_cohort(data.cohort, data.modality),
        *describe_reading(unreadable, len(samples)),
        *describe_values(rows, outliers),
        *check_masks(data, workers),
        *describe_leaks(leaks, duplicates, max_distance, frozenset(config.leaks.accept)),
    )
    return Verification(
        findings, _summarise(rows, usable, data.cohort.domains), outliers, duplicates, unreadable, counts
    )


def _find_outliers(rows: pd.DataFrame) -> pd.DataFrame:
    """Values far from the median, in robust standard deviations (1.4826 times the median absolute deviation)."""
    parts = []
    for column in [name for name in VALUES if name in rows.columns] if len(rows) >= FEWEST_VOLUMES else []:
        values = rows[column].astype("float64").dropna()
        scale = _MAD_TO_SD * float((values - values.median()).abs().median()) if len(values) else 0.0
        if scale > 0:
            z = (values - values.median()) / scale
            far = z[z.abs() > ROBUST_Z].sort_values(key=lambda column: -column.abs())
            parts.append(pd.DataFrame({"statistic": column, "value": values[far.index], "robust_z": far}).reset_index())
    empty = pd.DataFrame(columns=["sample_id", "statistic", "value", "robust_z"])
    return pd.concat(parts, ignore_index=True) if parts else empty


def _summarise(rows: pd.DataFrame, samples: pd.DataFrame, domains: Sequence[str]) -> pd.DataFrame:
    """n, mean, sd (of the sample), min and max of every number: over all, by split, and by each domain."""
    numeric = rows.select_dtypes("number").dropna(axis="columns", how="all").reset_index(drop=True)
    parts = []
    groups = {"all": pd.Series("all", samples.index)} | {name: samples[name] for name in ("split", *domains)}
    for column, values in groups.items():
        for value, group in numeric.groupby(values.to_numpy(), sort=True):
            table = group.agg(["count", "mean", "std", "min", "max"]).T.rename_axis("statistic").reset_index()
            table = table.rename(columns={"count": "n", "std": "sd"}).assign(column=column, value=value)
            parts.append(table)
    columns = ["column", "value", "statistic", "n", "mean", "sd", "min", "max"]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def write_verification(folder: Path, verification: Verification, study: str) -> None:
    """The tables, and verify.json last; without evidence there, which names samples."""
    tables = {
        "statistics": verification.statistics,
        "outliers": verification.outliers,
        "duplicates": verification.duplicates,
        "unreadable": verification.unreadable,
    }
    for name, table in tables.items():
        with replacing(folder / f"{name}.csv") as aside:
            table.to_csv(aside, index=False, float_format="%.8g")
    pairs = verification.duplicates
    across = pairs["first_split"] != pairs["second_split"]
    write_json(
        folder / "verify.json",
        {
            "schema_version": 1,
            "study": study,
            "is_clean": not any(finding.severity == "error" for finding in verification.findings),
            "counts": verification.counts.to_dict("records"),
            "unreadable": len(verification.unreadable),
            "outliers": int(verification.outliers["sample_id"].nunique()),
            "duplicates": {
                kind: {"pairs": int(of_kind.sum()), "across_splits": int((across & of_kind).sum())}
                for kind, of_kind in ((name, pairs["kind"] == name) for name in ("exact", "near"))
            },
            "findings": [
                {"code": finding.code, "severity": finding.severity, "title": finding.title, "remedy": finding.remedy}
                for finding in verification.findings
            ],
        },
    )


def print_verify(study: str, overrides: Sequence[str], out: Path | None, *, max_distance: int = MAX_DISTANCE) -> bool:
    """Verify a study's data, write the tables and say what was found; True if something is wrong.

    Args:
        out: folder of the tables; default ``<runs>/<name>/verify``.
    """
    config = load_study(study, overrides)
    workers = config.workers if config.workers != "auto" else max(1, min(8, os.cpu_count() or 1))
    data = open_data(config)
    verification = verify_data(config, data, workers=workers, max_distance=max_distance)
    folder = out or Path(config.runs).expanduser() / config.name / "verify"
    write_verification(folder, verification, config.name)
    is_wrong = print_findings(verification.findings)
    print_findings([Finding("written", "info", f"Tables are in {folder}.", "")])
    return is_wrong
