"""`vitreous data verify STUDY`: every file opens, what the files hold, and which of them show the same thing.

    verify.json   statistics.csv   outliers.csv   duplicates.csv   unreadable.csv

The tables name samples and patients; verify.json names none.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitreous.config.compose import load_study
from vitreous.core.errors import InputError, StorageError
from vitreous.core.files import replacing, write_json
from vitreous.core.finding import Finding
from vitreous.core.progress import Advance, no_progress, progress_bar
from vitreous.core.threads import map_ahead
from vitreous.diagnosis.volumes import FEWEST_VOLUMES, ROBUST_Z
from vitreous.features.encode import Staged
from vitreous.inputs.near_duplicates import MAX_DISTANCE, digest_pixels, find_near_pairs, hash_picture
from vitreous.inputs.prepare import describe_decoded
from vitreous.study.data import OpenedData, open_data
from vitreous.study.data_findings import (
    VALUES,
    describe_cohort,
    describe_duplicates,
    describe_reading,
    describe_values,
)
from vitreous.study.doctor import print_findings

_MAD_TO_SD = 1.4826  # of a normal distribution
_PAIR_COLUMNS = (
    "kind", "bits", "first", "second", "first_split", "second_split", "first_patient", "second_patient",
    "first_class", "second_class",
)  # fmt: skip
Bits = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class LookedAt:
    """What one file turned out to be.

    Args:
        statistics: of the decoded values; None where it cannot be used.
        digest: name of the decoded values.
        bits: perceptual hash; None where there is nothing to hash.
        problem: why it cannot be used.
    """

    statistics: dict[str, Any] | None = None
    digest: str = ""
    bits: Bits | None = None
    problem: str = ""


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
    data: OpenedData, *, workers: int, max_distance: int = MAX_DISTANCE, progress: Advance = no_progress
) -> Verification:
    """Decode every file of a cohort once and compare what comes out.

    Args:
        workers: decoding threads.
        max_distance: bits of 256 in which near duplicates may differ; see
            :mod:`vitreous.inputs.near_duplicates` for how 18 was chosen.
        progress: called once per file.
    """
    looked_at = _look_at_all(data, workers, progress)
    samples = data.cohort.samples
    by_sample = [looked_at[file_id] for file_id in data.file_ids]
    problems = np.array([one.problem for one in by_sample], dtype=object)
    is_usable = problems == ""
    unreadable = samples.loc[~is_usable, ["sample_id", "relative"]].assign(reason=problems[~is_usable])
    usable = samples[is_usable].reset_index(drop=True)
    kept = [one for one in by_sample if not one.problem]
    rows = pd.DataFrame([one.statistics for one in kept], index=pd.Index(usable["sample_id"], name="sample_id"))
    duplicates = _find_duplicates(data, usable, kept, max_distance)
    outliers = _find_outliers(rows)
    counts = data.cohort.count_by(["split", "class"]).rename(columns={"volumes": "samples"})
    findings = (
        *describe_cohort(data.cohort, data.modality),
        *describe_reading(unreadable, len(samples)),
        *describe_values(rows, outliers),
        *describe_duplicates(
            duplicates,
            max_distance,
            has_splits=bool((samples["split"] != "").any()),
            knows_patients=bool((samples["patient_id"] != samples["sample_id"]).any()),
        ),
    )
    statistics = _summarise(rows, usable, data.cohort.domains)
    return Verification(findings, statistics, outliers, duplicates, unreadable, counts)


def _look_at_all(data: OpenedData, workers: int, progress: Advance) -> dict[str, LookedAt]:
    """Each content once, whatever samples it serves."""

    def look(staged: Staged) -> LookedAt:
        request, path = staged
        if isinstance(path, StorageError):
            return LookedAt(problem=str(path))
        try:
            decoded = data.load_input(request, path)
        except InputError as error:
            return LookedAt(problem=str(error))
        return LookedAt(describe_decoded(decoded), digest_pixels(decoded), hash_picture(decoded))

    ahead = 2 * workers
    found = {}
    results = map_ahead(look, data.stage(data.requests, in_use=ahead + 1), workers=workers, ahead=ahead)
    for request, one in zip(data.requests, results, strict=True):
        found[request.file_id] = one
        progress(1)
    return found


def _find_duplicates(
    data: OpenedData, samples: pd.DataFrame, looked_at: Sequence[LookedAt], max_distance: int
) -> pd.DataFrame:
    """Pairs of samples: of equal values, each with the first of its group; of near hashes, between such firsts."""
    first_of: dict[str, int] = {}
    pairs: list[tuple[str, int, int, int]] = []
    for row, one in enumerate(looked_at):
        first = first_of.setdefault(one.digest, row)
        if first != row:
            pairs.append(("exact", 0, first, row))
    hashed = [row for row in first_of.values() if looked_at[row].bits is not None]
    if hashed:
        near, distances = find_near_pairs(np.stack([_bits(looked_at[row]) for row in hashed]), max_distance)
        pairs += [("near", int(bits), hashed[i], hashed[j]) for (i, j), bits in zip(near, distances)]
    names = dict(enumerate(data.cohort.classes))
    known = samples["y"].map(names).fillna("").to_numpy()  # labels of test are sealed, and stay so
    table = pd.DataFrame(pairs, columns=["kind", "bits", "i", "j"])
    for side, column in (("first", "i"), ("second", "j")):
        rows = table[column].to_numpy(np.int64)
        table[side] = samples["sample_id"].to_numpy()[rows]
        table[f"{side}_split"] = samples["split"].to_numpy()[rows]
        table[f"{side}_patient"] = samples["patient_id"].to_numpy()[rows]
        table[f"{side}_class"] = known[rows]
    return table[list(_PAIR_COLUMNS)]


def _bits(one: LookedAt) -> Bits:
    assert one.bits is not None
    return one.bits


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
    with progress_bar(f"Decoding each {data.modality} once", len(data.requests)) as advance:
        verification = verify_data(data, workers=workers, max_distance=max_distance, progress=advance)
    folder = out or Path(config.runs).expanduser() / config.name / "verify"
    write_verification(folder, verification, config.name)
    is_wrong = print_findings(verification.findings)
    print_findings([Finding("written", "info", f"Tables are in {folder}.", "")])
    return is_wrong
