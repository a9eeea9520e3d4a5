"""Cohorts of kind ``participants``: a table of people, and a manifest or a listing of their volumes.

Everything is checked before a volume is read. What a study must not go on with is refused, all problems at once; what
it can do without is left out, each row with its rule.
"""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from vitreous.core.errors import SampleError
from vitreous.core.finding import Finding
from vitreous.samples.choices import Filter, choose_rows
from vitreous.samples.cohort import EXCLUDED_COLUMNS, SAMPLE_COLUMNS, Cohort, seal
from vitreous.samples.identifiers import match_spelling
from vitreous.samples.label_columns import read_label_sets
from vitreous.samples.patients import check_ids
from vitreous.samples.problems import Problems, examples
from vitreous.samples.selection import VolumeChoice, exclude, exclude_by_choice, exclude_duplicates
from vitreous.samples.splits import FractionSplit, fraction_split, normal_split, read_split_files
from vitreous.samples.tables import Table, check_columns, is_missing, read_table
from vitreous.samples.volumes import (
    ALIASES,
    DEFAULT_PATTERN,
    Files,
    files_of_listing,
    files_of_manifest,
    find_patient_column,
)
from vitreous.storage.location import ObjectInfo

SplitSource = str | FractionSplit | Mapping[str, Path]
_KNOWN = ("laterality", *ALIASES)
_UNKNOWN = "unknown"
_OWN_NAMES = {*SAMPLE_COLUMNS, "rule", "detail", "has_object"}


def load_participants(
    table: Path,
    *,
    label: str | Sequence[str],
    classes: Sequence[str],
    split: SplitSource | None,
    agreement: float | None = None,
    manifest: Path | None = None,
    listing: Sequence[ObjectInfo] | None = None,
    pattern: str = DEFAULT_PATTERN,
    patient: str = "participant_id",
    where: Filter | None = None,
    volumes: VolumeChoice = "all",
    domains: Sequence[str] = (),
    columns: Sequence[str] = (),
    table_name: str | None = None,
    manifest_name: str | None = None,
    accepts_spelling: bool = False,
) -> Cohort:
    """Join people and volumes, check both, and seal the labels of the test split.

    Args:
        table: TSV or CSV, one row a participant, or several that agree.
        label: the column of class names. Several columns are one label each, 0 or 1 by row.
        classes: class names in index order, or the labels' names.
        agreement: with several columns, the share of annotators from which a label is present.
        split: a column holding train, val, test; fractions; one file of ids for each split; or None where folds
            give one later.
        manifest: TSV or CSV, one row a volume, with ``filepath`` below the root.
        listing: the objects below the root. Needed without a manifest, where `pattern` tells whose each is; with one
            it supplies sizes and tells which rows have no object.
        where: column → value or values; other participants are left out.
        volumes: ``all``, ``first`` (by path), ``one per eye``, or column → value or values on the files.
        domains: columns of the table, the manifest or the pattern.
        columns: further ones, kept with the samples as they are; what is missing is empty.
        table_name: what the user calls the table, where `table` is a staged copy; likewise `manifest_name`.
        accepts_spelling: ids that differ only in spelling are different patients'.
    Raises:
        SampleError: columns are missing, labels or splits unknown or contradictory, ids differ only in spelling, a
            split is empty, or a class has no training participant. All that can be told at once is told at once.
    """
    read = read_table(table, table_name)
    problems = Problems(read.name)
    further = [column for column in columns if column not in domains]
    shown = [*domains, *further]
    people = _read_people(
        read, label, agreement, classes, split, patient, where or {}, shown, problems, accepts_spelling
    )
    if manifest is not None:
        source = read_table(manifest, manifest_name)
        files = files_of_manifest(source, patient, listing)
        files = Files(files.frame, (*source.findings, *files.findings))
    elif listing is not None:
        files = files_of_listing(listing, pattern)
    else:
        raise SampleError(f"{people.name}: neither a manifest nor a listing; give data.manifest or data.files.")
    frame = files.frame.reset_index(drop=True).assign(rule="", detail="")
    findings = [*people.findings, *files.findings]
    findings += _join(frame, people.frame, problems)
    exclude(frame, ~frame["has_object"], "file missing", "in the manifest, not below the root")
    findings += exclude_duplicates(frame)
    exclude_by_choice(frame, volumes, problems)
    _add_domains(frame, people.frame, domains, problems)
    _add_columns(frame, people.frame, further, list(read.frame.columns), problems)
    problems.check_none()
    samples = frame.loc[frame["rule"] == ""].copy()
    samples["y"] = samples["patient_id"].map(people.frame["y"]).astype("int64")
    samples["split"] = _split_of_samples(samples, people.frame, split)
    usable = people.frame.index[people.frame["rule"] == ""]
    without_files = sorted(set(usable) - set(samples["patient_id"]))
    findings += _without_files(without_files, len(usable))
    return seal(
        _as_samples(samples, [*domains, *further]),
        frame.loc[frame["rule"] != ""].assign(sample_id=lambda left: left["relative"])[list(EXCLUDED_COLUMNS)],
        classes,
        findings,
        domains,
        without_files,
        where=people.name,
        task="multi_class" if isinstance(label, str) else "multi_label",
    )


def _read_people(
    table: Table,
    label: str | Sequence[str],
    agreement: float | None,
    classes: Sequence[str],
    split: SplitSource | None,
    patient: str,
    where: Filter,
    domains: Sequence[str],
    problems: Problems,
    accepts_spelling: bool,
) -> Table:
    """One row a participant, indexed by id: ``y``, ``split``, ``rule``, ``detail`` and the table's domain columns."""
    column, findings = find_patient_column(table, patient)
    check_columns(table, [column or patient], "patients", problems)
    labels = [label] if isinstance(label, str) else list(label)
    check_columns(table, labels, "labels", problems)
    check_columns(table, [split] if isinstance(split, str) else [], "splits", problems)
    check_columns(table, list(where), "where", problems)
    if len(set(classes)) != len(classes) or len(classes) < 2:
        problems.add(f"classes must be two or more different names; got {list(classes)}.")
    for shown in (one for one in labels if one in domains):
        problems.add(
            f"domains or columns hold the label {shown!r}, which would show the labels of the test split; take it out.",
            leak="label_column",
        )
    problems.check_none()
    assert column is not None
    rows = table.frame.assign(patient_id=table.frame[column], rule="", detail="")
    check_ids(rows["patient_id"], problems, accepts_spelling=accepts_spelling)
    exclude(rows, ~choose_rows(rows, where, "where", problems), "where", f"where: {dict(where)}")
    if isinstance(label, str):
        rows["y"] = _class_indices(rows, label, classes, problems)
        exclude(rows, rows["y"].isna(), "missing label", f"no value in {label!r}")
    else:
        rows["y"] = read_label_sets(rows[labels], rows["rule"] == "", agreement, problems)
        exclude(rows, rows["y"].isna(), "missing label", f"no value in one of {labels}")
    _add_splits(rows, split, column, problems)
    own = [domain for domain in domains if domain in table.frame.columns]
    people = _one_row_each(rows, own, problems)
    findings = (*table.findings, *findings, *_left_out(people))
    return Table(table.name, people, findings)


def _class_indices(rows: pd.DataFrame, label: str, classes: Sequence[str], problems: Problems) -> pd.Series:
    """The class index of each row, missing where the label is; labels outside the classes are a problem."""
    index_of = {str(name): index for index, name in enumerate(classes)}
    y = rows[label].map(index_of).astype("Int64")
    live = (rows["rule"] == "") & y.isna() & ~is_missing(rows[label])
    for value, lines in rows.loc[live].groupby(label).groups.items():
        near = difflib.get_close_matches(str(value), index_of, n=1, cutoff=0.3)
        hint = f" Nearest class: {near[0]!r}." if near else ""
        problems.add(
            f"unknown label {value!r} in column {label!r} (lines {examples(lines)}); classes are {list(classes)}.{hint}"
        )
    return y


def _add_splits(rows: pd.DataFrame, split: SplitSource | None, column: str, problems: Problems) -> None:
    """Fill in ``split`` where the table or files tell it, and exclude who has none; fractions come later."""
    rows["split"] = ""
    if split is None or isinstance(split, FractionSplit):
        return
    live = rows["rule"] == ""
    if isinstance(split, str):
        rows.loc[live, "split"] = normal_split(rows.loc[live, split], split, problems)
        exclude(rows, rows["split"] == "", "missing split", f"no value in {split!r}")
        return
    split_of = read_split_files(split, column, problems)
    known = set(rows["patient_id"])
    if strangers := sorted(set(split_of) - known):
        pairs = [f"{one} (table: {other})" for one, other in match_spelling(strangers, sorted(known))]
        hint = f" Some differ only in spelling: {examples(pairs)}." if pairs else ""
        problems.add(f"{len(strangers)} ids of the split files are not in the table: {examples(strangers)}.{hint}")
    rows["split"] = _look_up(rows["patient_id"], split_of)
    exclude(rows, rows["split"] == "", "missing split", "in no split file")


def _one_row_each(rows: pd.DataFrame, domains: Sequence[str], problems: Problems) -> pd.DataFrame:
    """One row a participant; several rows must agree in label, split and domains.

    A row in use goes before one that was left out, so that a visit without a label does not hide one with it.
    """
    live = rows.loc[rows["rule"] == ""]
    agreeing = {"y": "labels", "split": "splits"} | {domain: f"values of {domain!r}" for domain in domains}
    for column, what in agreeing.items():
        several = live.groupby("patient_id")[column].nunique()
        contradictory = several.index[several > 1]
        if len(contradictory):
            lines = live.index[live["patient_id"].isin(contradictory)]
            remedy = "leave it out of domains and columns" if column in domains else "give each participant one"
            problems.add(
                f"{len(contradictory)} participants have rows with different {what}: {examples(contradictory)} "
                f"(lines {examples(lines)}); {remedy}.",
                leak="patient_in_two_splits" if column == "split" else "",
            )
    order = (rows["rule"] != "").sort_values(kind="stable").index
    first = rows.loc[order].drop_duplicates("patient_id").set_index("patient_id")
    return first[["y", "split", "rule", "detail", *domains]]


def _join(frame: pd.DataFrame, people: pd.DataFrame, problems: Problems) -> list[Finding]:
    """Exclude files whose participant is unknown or left out; ids that differ only in spelling are a problem."""
    known = frame["patient_id"].isin(people.index)
    strangers = frame.loc[~known, "patient_id"].unique()
    pairs = match_spelling(strangers, list(people.index))
    if pairs:
        named = [f"{theirs} (table: {ours})" for theirs, ours in pairs]
        problems.add(
            f"{len(pairs)} ids of the files differ from ids of the table only in spelling: {examples(named)}. "
            f"Write them alike in the table and in the files."
        )
    exclude(frame, ~known, "no participant", "the id is not in the table")
    rules = _look_up(frame["patient_id"], people["rule"].to_dict())
    details = _look_up(frame["patient_id"], people["detail"].to_dict())
    for rule in sorted(set(rules) - {""}):
        exclude(frame, rules == rule, rule, details)
    if not known.any() and not pairs:
        problems.add(
            f"none of the {len(strangers)} ids of the files is in the table; files have "
            f"{examples(sorted(strangers), 3)}, the table {examples(sorted(people.index), 3)}. "
            f"Check data.patient and data.pattern."
        )
    if not len(strangers):
        return []
    return [
        Finding(
            "files_without_participant",
            "info",
            f"{int((~known).sum())} files belong to {len(strangers)} ids that are not in the table and were left out.",
            "rule: no participant",
        )
    ]


def _add_domains(frame: pd.DataFrame, people: pd.DataFrame, domains: Sequence[str], problems: Problems) -> None:
    for domain in domains:
        if domain in people.columns:
            frame[domain] = _look_up(frame["patient_id"], people[domain].to_dict())
        elif domain not in frame.columns or domain in ("rule", "detail", "has_object"):
            problems.add(
                f"domains: neither the table nor the files have {domain!r}; the files have "
                f"{[c for c in frame.columns if c not in ('rule', 'detail', 'has_object')]}."
            )
            continue
        frame[domain] = frame[domain].where(~is_missing(frame[domain]), _UNKNOWN)


def _add_columns(
    frame: pd.DataFrame, people: pd.DataFrame, columns: Sequence[str], of_table: Sequence[str], problems: Problems
) -> None:
    for column in columns:
        if column in _OWN_NAMES:
            problems.add(f"columns: {column!r} means something of its own in a cohort; rename the column.")
        elif column in people.columns:
            frame[column] = _look_up(frame["patient_id"], people[column].to_dict())
        elif column not in frame.columns:
            near = difflib.get_close_matches(column, [*of_table, *frame.columns], n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            problems.add(f"columns: neither the table nor the files have {column!r}.{hint}")


def _split_of_samples(samples: pd.DataFrame, people: pd.DataFrame, split: SplitSource | None) -> pd.Series:
    if isinstance(split, FractionSplit):
        drawn = fraction_split(samples.groupby("patient_id")["y"].first(), split)
        return samples["patient_id"].map(drawn)
    return samples["patient_id"].map(people["split"])


def _as_samples(samples: pd.DataFrame, domains: Sequence[str]) -> pd.DataFrame:
    columns = ["patient_id", "relative", "size", "etag", "split", "y", *domains]
    columns += [name for name in _KNOWN if name in samples.columns and name not in columns]
    return samples[columns].assign(sample_id=samples["relative"], item=-1, weight=1.0)


def _look_up(ids: pd.Series, values: Mapping[Any, str]) -> pd.Series:
    """The value of each id; empty for ids without one."""
    return pd.Series([values.get(identifier, "") for identifier in ids], index=ids.index, dtype="str")


def _left_out(people: pd.DataFrame) -> list[Finding]:
    """How many participants of the table each rule left out."""
    findings: list[Finding] = []
    for (rule, detail), group in people.loc[people["rule"] != ""].groupby(["rule", "detail"]):
        title = f"{len(group)} participants were left out by the rule {rule!r}."
        findings.append(Finding("participants_left_out", "info", title, str(detail)))
    return findings


def _without_files(without_files: Sequence[str], total: int) -> list[Finding]:
    if not without_files:
        return []
    return [
        Finding(
            "participants_without_files",
            "warning",
            f"{len(without_files)} of {total} labelled participants have no file that is read.",
            "the cohort's patients_without_files names them",
            "Check that all data have arrived, or that data.files and data.pattern are right.",
        )
    ]
