"""Everything is accounted for: each row of the table and each file, and what became of it."""

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd

from vitreous.core.errors import UserError
from vitreous.core.files import replacing, write_json
from vitreous.core.finding import Finding
from vitreous.samples.cohort import Cohort
from vitreous.study.data import OpenedData
from vitreous.study.encode import StudyFeatures
from vitreous.study.run_directory import RunDirectory

NO_FILE = "participant without a file"
DOMAIN_PREFIX = "domain_"  # of the manifest's columns
_KEPT = ["sample_id", "patient_id", "relative", "item", "size", "etag", "split"]


def write_account(
    directory: RunDirectory, data: OpenedData, features: StudyFeatures, findings: Sequence[Finding] = ()
) -> None:
    """Write manifest.parquet, counts.csv and account.json.

    Args:
        findings: kept beside those of the cohort.

    The manifest has one row per sample with its fate (encoded, quarantined or excluded), the rule or error, its
    domains (``domain_<column>``) and the statistics of its volume. Labels are not in it: those of test are sealed.
    """
    manifest = _manifest(data, features)
    with replacing(directory.manifest) as aside:
        manifest.to_parquet(aside, index=False)
    with replacing(directory.root / "counts.csv") as aside:
        count_participants(data.cohort).to_csv(aside, index=False)
    fates = manifest["fate"].value_counts()
    write_json(
        directory.root / "account.json",
        {
            "rows": len(manifest),
            "encoded": int(fates.get("encoded", 0)),
            "quarantined": int(fates.get("quarantined", 0)),
            "excluded": int(fates.get("excluded", 0)),
            "excluded_by_rule": {
                str(rule): int(count)
                for rule, count in manifest.loc[manifest["fate"] == "excluded", "why"].value_counts().items()
            },
            "patients_without_usable_volume": _patients_lost(data, features),
            "findings": [vars(finding) for finding in (*data.cohort.findings, *findings)],
        },
    )


def pivot_counts(counts: pd.DataFrame) -> list[tuple[list[str], list[list[str]]]]:
    """For each column of :func:`count_participants`, heads and rows of a table: value, then patients (volumes)."""
    tables = []
    for column in counts["column"].unique():
        part = counts[counts["column"] == column]
        splits = [split for split in ("train", "val", "test", "") if split in set(part["split"])]
        cells = {
            (value, split): f"{patients} ({volumes})"
            for value, split, patients, volumes in zip(
                part["value"], part["split"], part["patients"], part["volumes"], strict=True
            )
        }
        rows = [
            [str(value), *(cells.get((value, split), "0 (0)") for split in splits)] for value in part["value"].unique()
        ]
        tables.append(([str(column), *(split or "all" for split in splits)], rows))
    return tables


def count_participants(cohort: Cohort) -> pd.DataFrame:
    """Participants and volumes per split, by class and by each domain: column, value, split, patients, volumes.

    Test labels appear as counts only.
    """
    parts = []
    for column in ("class", *cohort.domains):
        table = cohort.count_by(["split", column]).rename(columns={column: "value"})
        parts.append(table.assign(column=column)[["column", "value", "split", "patients", "volumes"]])
    return pd.concat(parts, ignore_index=True)


def _manifest(data: OpenedData, features: StudyFeatures) -> pd.DataFrame:
    samples = data.cohort.samples
    named = {column: f"{DOMAIN_PREFIX}{column}" for column in data.cohort.domains}
    columns = [*_KEPT, *named]
    is_encoded = samples["sample_id"].isin(features.samples["sample_id"])
    encoded = samples.loc[is_encoded, columns].rename(columns=named).assign(fate="encoded", why="")
    statistics = features.statistics.reset_index(drop=True).add_prefix("volume_")
    encoded = pd.concat([encoded.reset_index(drop=True), statistics], axis=1)
    is_quarantined = samples["sample_id"].isin(features.quarantined["sample_id"])
    quarantined = (
        samples.loc[is_quarantined, columns]
        .rename(columns=named)
        .assign(fate="quarantined", why=features.quarantined["message"].to_numpy())
    )
    excluded = data.cohort.excluded.assign(fate="excluded", why=data.cohort.excluded["rule"])
    excluded = excluded[["sample_id", "patient_id", "relative", "fate", "why"]]
    # a participant without a file is a row that came to nothing, and is counted like any other
    fileless = pd.DataFrame({"patient_id": data.cohort.patients_without_files, "sample_id": "", "relative": ""})
    fileless = fileless.assign(fate="excluded", why=NO_FILE)
    parts = [part for part in (encoded, quarantined, excluded, fileless) if len(part)]
    # a column that is a list (shape, spacing) is kept as JSON text: one type in every run
    manifest: pd.DataFrame = pd.concat(parts, ignore_index=True)
    for column in manifest.columns:
        if manifest[column].map(lambda value: isinstance(value, list | tuple | dict)).any():
            manifest[column] = manifest[column].map(_as_json)
    return manifest


def _as_json(value: Any) -> str | None:
    return json.dumps(value) if isinstance(value, list | tuple | dict) else None


def _patients_lost(data: OpenedData, features: StudyFeatures) -> dict[str, int]:
    """Patients of each split who have no usable volume, so that no prediction is made for them."""
    samples = data.cohort.samples
    kept = set(features.samples["patient_id"])
    lost = samples.loc[~samples["patient_id"].isin(kept)].groupby("split")["patient_id"].nunique()
    return {str(split): int(count) for split, count in lost.items()}


def read_domains(directory: RunDirectory) -> dict[str, dict[str, str]]:
    """Domain column → sample id → value, of the samples that were encoded; empty for a run without domains."""
    manifest = pd.read_parquet(directory.manifest)
    encoded = manifest[manifest["fate"] == "encoded"]
    ids = encoded["sample_id"].tolist()
    return {
        column.removeprefix(DOMAIN_PREFIX): dict(
            zip(ids, encoded[column].map(lambda value: "" if pd.isna(value) else str(value)).tolist(), strict=True)
        )
        for column in manifest.columns
        if column.startswith(DOMAIN_PREFIX)
    }


def read_account(directory: RunDirectory) -> dict[str, Any]:
    """``account.json`` of a run."""
    path = directory.root / "account.json"
    if not path.exists():
        raise UserError(f"{directory.root}: the run is not finished (no account.json); run the same study again.")
    account: dict[str, Any] = json.loads(path.read_text())
    return account
