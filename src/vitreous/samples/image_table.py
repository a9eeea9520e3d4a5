"""Cohorts of kind ``csv``: a table with one row an image or a clip, or one table for each split, and the files.

What a study must not go on with is refused, all problems at once; a row it can do without is left out, with its rule.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from vitreous.core.finding import Finding
from vitreous.core.label_sets import Task
from vitreous.samples.choices import Filter, choose_rows
from vitreous.samples.cohort import EXCLUDED_COLUMNS, SAMPLE_COLUMNS, Cohort, seal
from vitreous.samples.identifiers import match_spelling
from vitreous.samples.image_files import (
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    FoundImages,
    find_images,
    match_names,
    without_suffix,
)
from vitreous.samples.label_columns import read_label_sets
from vitreous.samples.patients import check_agreement, check_ids, patient_classes, patients_are_rows
from vitreous.samples.problems import Problems, examples
from vitreous.samples.selection import exclude
from vitreous.samples.splits import (
    FractionSplit,
    ValFraction,
    fraction_split,
    normal_split,
    read_split_files,
    val_split,
)
from vitreous.samples.stretches import (
    STRETCH_COLUMNS,
    StretchColumns,
    name_stretches,
    number_clips,
    read_stretches,
)
from vitreous.samples.tables import Table, check_columns, is_missing, read_table
from vitreous.storage.location import ObjectInfo

SplitSource = str | FractionSplit | ValFraction | Mapping[str, Path]
Listing = Sequence[ObjectInfo]
_WHOLE = re.compile(r"([+-]?\d+)(\.0*)?")
_UNKNOWN = "unknown"
_OWN_NAMES = {*SAMPLE_COLUMNS, *STRETCH_COLUMNS, "class", "rule", "detail", "image", "of_table"}
_PATIENT_REMEDY = "Give data.patient, the column of patient ids, if the table has one."


def load_image_table(
    tables: Path | Mapping[str, Path],
    listings: Listing | Mapping[str, Listing],
    *,
    image: str,
    label: str | Sequence[str],
    classes: Sequence[str],
    split: SplitSource | None,
    agreement: float | None = None,
    label_map: Mapping[str, str] | None = None,
    patient: str | None = None,
    where: Filter | None = None,
    domains: Sequence[str] = (),
    columns: Sequence[str] = (),
    table_names: str | Mapping[str, str] | None = None,
    one_label: bool = True,
    stretch: StretchColumns | None = None,
    accepts_spelling: bool = False,
) -> Cohort:
    """Join rows and files, check both, and seal the labels of the test split.

    ``relative`` is the path below the folder of the images; where there is a folder for each split, the split's name
    stands before it, so that files of one name stay different images (and, without `patient`, different people).

    Args:
        tables: one TSV or CSV, or one for each split.
        listings: what lies below the folder of the images, or below that of each split.
        image: the column of file names, with or without extension, maybe with folders.
        label: the column of labels; 0, 0.0 and 00 are one value. Several columns are one label each, 0 or 1 by row.
        classes: class names in index order, or the labels' names.
        agreement: with several columns, the share of annotators from which a label is present.
        split: a column holding train, val, test; fractions; one file of ids for each split; None where the tables say
            it or folds give it later; or, with tables for train and test, the share of train that becomes val.
        label_map: value of the label column → class; without it the values are the class names.
        patient: the column of patient ids; without it every image is a patient of its own, and a finding says so.
        where: column → value or values; other rows are left out.
        domains: columns of the table.
        columns: further ones, kept with the samples as they are; what is missing is empty.
        table_names: what the user calls the tables, where they are staged copies.
        one_label: all images of a patient must have the same label.
        stretch: rows are clips of video files; which part of them each row means. Without `patient` a video is one.
        accepts_spelling: ids that differ only in spelling are different patients'.
    Raises:
        SampleError: columns are missing, labels or splits unknown or contradictory, an id means two files, ids differ
            only in spelling, a split is empty, or a class has no training patient. All that can be told at once is.
    """
    read = _read_tables(tables, table_names)
    problems = Problems(", ".join(table.name for table in read.values()))
    further = [column for column in columns if column not in domains]
    labels = [label] if isinstance(label, str) else list(label)
    needed = {"images": [image], "labels": labels, "patients": [patient] if patient else [], "domains": domains}
    needed |= {"splits": [split] if isinstance(split, str) else [], "where": list(where or {}), "columns": further}
    needed["clips"] = stretch.names if stretch is not None else []
    for table in read.values():
        in_table = "" if len(read) == 1 else f" in {table.name}"
        for purpose, names in needed.items():
            check_columns(table, names, purpose + in_table, problems)
    _check_options(classes, labels, [*domains, *further], problems)
    problems.check_none()
    cells = _stack(read)
    rows = cells[[*domains, *further]].assign(image=cells[image], rule="", detail="")
    rows["of_table"] = [part for part, table in read.items() for _ in range(len(table.frame))]
    exclude(rows, ~choose_rows(cells, where or {}, "where", problems), "where", f"where: {dict(where or {})}")
    task: Task = "multi_class" if isinstance(label, str) else "multi_label"
    if isinstance(label, str):
        rows["y"] = class_indices(cells[label], rows["rule"] == "", label, classes, label_map, problems)
        exclude(rows, rows["y"].isna(), "missing label", f"no value in {label!r}")
    else:
        rows["y"] = read_label_sets(cells[labels], rows["rule"] == "", agreement, problems)
        exclude(rows, rows["y"].isna(), "missing label", f"no value in one of {labels}")
    findings = [finding for table in read.values() for finding in table.findings]
    if stretch is not None:
        rows = rows.join(read_stretches(cells, rows["rule"] == "", stretch, problems))
    findings += _add_files(rows, listings, problems, IMAGE_SUFFIXES if stretch is None else VIDEO_SUFFIXES)
    if stretch is not None:
        rows["sample_id"] = rows["sample_id"] + name_stretches(rows)
    if patient is None:
        rows["patient_id"] = rows["relative"]
        findings.append(patients_are_rows(", ".join(table.name for table in read.values()), _PATIENT_REMEDY))
    else:
        rows["patient_id"] = cells[patient].where(~is_missing(cells[patient]), "")
        check_ids(rows.loc[rows["rule"] == "", "patient_id"], problems, accepts_spelling=accepts_spelling)
    _add_splits(rows, cells, split, image, patient, problems)
    for domain in domains:
        rows[domain] = rows[domain].where(~is_missing(rows[domain]), _UNKNOWN)
    findings += _exclude_duplicates(rows, domains, problems)
    _draw_splits(rows, split, task, len(classes))
    check_agreement(rows.loc[rows["rule"] == ""], problems, one_label=one_label)
    problems.check_none()
    kept = rows.loc[rows["rule"] == ""].assign(item=-1, weight=1.0)
    if stretch is not None:
        kept, further = number_clips(kept, stretch.clips), [*further, *STRETCH_COLUMNS]
    return seal(
        kept[[*SAMPLE_COLUMNS, *domains, *further]],
        rows.loc[rows["rule"] != "", list(EXCLUDED_COLUMNS)],
        classes,
        findings + _left_out(rows),
        domains,
        (),
        where=", ".join(table.name for table in read.values()),
        task=task,
    )


def _read_tables(tables: Path | Mapping[str, Path], names: str | Mapping[str, str] | None) -> dict[str, Table]:
    """Each table under its split's name; a single one under the empty name."""
    paths = tables if isinstance(tables, Mapping) else {"": tables}
    called = names if isinstance(names, Mapping) else {"": names}
    return {part: read_table(path, called.get(part)) for part, path in paths.items()}


def _stack(read: Mapping[str, Table]) -> pd.DataFrame:
    """All rows; the index names the line, with the split where there are several tables."""
    if len(read) == 1:
        return next(iter(read.values())).frame
    frames = [table.frame.set_axis([f"{part}:{line}" for line in table.frame.index]) for part, table in read.items()]
    return pd.concat(frames).fillna("").astype("str")


def _check_options(classes: Sequence[str], labels: Sequence[str], domains: Sequence[str], problems: Problems) -> None:
    if len(set(classes)) != len(classes) or len(classes) < 2:
        problems.add(f"classes must be two or more different names; got {list(classes)}.")
    for label in (label for label in labels if label in domains):
        problems.add(
            f"domains or columns hold the label {label!r}, which would show the labels of the test split; take it out.",
            leak="label_column",
        )
    if len(set(domains)) != len(domains):
        problems.add(f"domains lists a column twice: {list(domains)}.")
    if taken := sorted(_OWN_NAMES & set(domains)):
        problems.add(
            f"domains or columns: {examples(taken)} mean something of their own in a cohort; rename the column."
        )


def class_indices(
    cells: pd.Series,
    live: pd.Series,
    label: str,
    classes: Sequence[str],
    label_map: Mapping[str, str] | None,
    problems: Problems,
) -> pd.Series:
    """The class index of each row, missing where the label is; labels outside the classes are a problem."""
    index_of: dict[str, int] = {}
    for value, name in (label_map or {name: name for name in classes}).items():
        if name not in classes:
            problems.add(f"label_map: {name!r} is not among the classes {list(classes)}.")
        elif index_of.setdefault(_normal_value(value), classes.index(name)) != classes.index(name):
            problems.add(f"two classes for the label {value!r}, however it is written; got {dict(label_map or {})}.")
    values = cells.map(_normal_value)
    y = values.map(index_of).astype("Int64")
    unknown = live & y.isna() & ~is_missing(cells)
    for unread, lines in values[unknown].groupby(values[unknown]).groups.items():
        near = difflib.get_close_matches(str(unread), index_of, n=1, cutoff=0.6)
        hint = f" Nearest: {near[0]!r}." if near else ""
        known = (
            f"data.label_map knows {list(label_map)}" if label_map else f"without data.label_map it is {list(classes)}"
        )
        problems.add(
            f"unknown label {unread!r} in column {label!r}, {len(lines)} rows (lines {examples(lines)}); {known}.{hint}"
        )
    return y


def _normal_value(text: str) -> str:
    """One way to write a whole number: 0, 0.0 and 00 are 0."""
    whole = _WHOLE.fullmatch(text)
    return str(int(whole[1])) if whole else text


def _add_files(
    rows: pd.DataFrame, listings: Listing | Mapping[str, Listing], problems: Problems, suffixes: frozenset[str]
) -> list[Finding]:
    """Fill in ``relative``, ``size``, ``etag`` and ``sample_id``; exclude rows without a file."""
    if len(empty := rows.index[(rows["image"] == "") & (rows["rule"] == "")]):
        problems.add(f"lines {examples(empty)} name no image; fill it in or remove them.")
    per_split = isinstance(listings, Mapping)
    folders = listings if isinstance(listings, Mapping) else {"": listings}
    relative = pd.Series("", index=rows.index, dtype="str")
    rows["size"], rows["etag"] = -1, ""
    has_file = pd.Series(False, index=rows.index)
    num_files, unused, renamed, nested = 0, 0, 0, 0
    for part, listing in folders.items():
        of_part = rows["of_table"] == part if per_split else pd.Series(True, index=rows.index)
        named = rows.loc[of_part & (rows["image"] != ""), "image"]
        found = find_images(named, listing, suffixes)
        infos = {info.relative: info for info in listing}
        paths = named.map(found.relative).dropna()
        rows.loc[paths.index, "size"] = paths.map(lambda path, infos=infos: infos[path].size)
        rows.loc[paths.index, "etag"] = paths.map(lambda path, infos=infos: infos[path].etag)
        has_file[paths.index] = True
        below = rows.loc[of_part, "image"].copy()
        below[paths.index] = paths
        relative[of_part] = f"{part}/" + below if per_split else below
        _check_files(rows.loc[named.index], found, listing, problems)
        num_files += len(infos)
        unused += len(found.unused)
        renamed += len(found.renamed)
        nested += len(found.nested)
    rows["relative"] = rows["sample_id"] = relative
    exclude(rows, ~has_file, "file missing", "in the table, not below data.files")
    findings = []
    if unused:
        title = f"{unused} image files have no row in the table and are not read."
        findings.append(Finding("files_without_row", "info", title, f"{num_files} files below data.files"))
    if renamed:
        title = f"{renamed} images have another extension than the table says."
        findings.append(Finding("other_extension", "info", title, "the only file of that name was taken"))
    if nested:
        title = f"{nested} images lie in folders that the table does not name."
        findings.append(
            Finding("found_in_folders", "info", title, "the only file of that name below data.files was taken")
        )
    return findings


def _check_files(rows: pd.DataFrame, found: FoundImages, listing: Listing, problems: Problems) -> None:
    """Note ids that mean several files, ids that differ from a file in spelling, and a folder that fits no row."""
    live = rows.loc[rows["rule"] == "", "image"]
    if several := {one: found.several[one] for one in live.unique() if one in found.several}:
        named = [f"{one} ({', '.join(files[:3])})" for one, files in several.items()]
        problems.add(
            f"{len(several)} ids mean several files: {examples(named)}. Write the path with its extension, or remove "
            f"the files that are not meant."
        )
    missing = [one for one in live.unique() if one not in found.relative and one not in found.several]
    if pairs := match_names(missing, found.unused):
        named = [f"{one} (file: {path})" for one, path in pairs]
        problems.add(
            f"{len(pairs)} ids differ from names of files only in spelling: {examples(named)}. Write them alike."
        )
    elif len(missing) == live.nunique() and missing:
        some = sorted(info.relative for info in listing)
        problems.add(
            f"none of the {len(missing)} images is below data.files; the table has {examples(missing, 3)}, the folder "
            f"{examples(some, 3)}. Check data.files and data.image."
        )


def _add_splits(
    rows: pd.DataFrame,
    cells: pd.DataFrame,
    split: SplitSource | None,
    image: str,
    patient: str | None,
    problems: Problems,
) -> None:
    """Fill in ``split`` where tables, a column or files of ids tell it, and exclude who has none."""
    rows["split"] = rows["of_table"]
    live = rows["rule"] == ""
    if isinstance(split, str):
        rows.loc[live, "split"] = normal_split(cells.loc[live, split], split, problems)
        exclude(rows, rows["split"] == "", "missing split", f"no value in {split!r}")
    elif isinstance(split, Mapping):
        rows["split"] = _split_of_ids(rows, read_split_files(split, image, problems), patient is not None, problems)
        exclude(rows, rows["split"] == "", "missing split", "in no split file")


def _split_of_ids(rows: pd.DataFrame, split_of: Mapping[str, str], has_patients: bool, problems: Problems) -> pd.Series:
    """Ids of images, with or without extension; or of patients, if every id is one."""
    ids = rows["image"].map(without_suffix)
    by_image = {without_suffix(identifier): split for identifier, split in split_of.items()}
    strangers = sorted(set(by_image) - set(ids))
    if strangers and has_patients and set(split_of) <= set(rows["patient_id"]):
        return rows["patient_id"].map(split_of).fillna("").astype("str")
    if strangers:
        pairs = [f"{one} (table: {other})" for one, other in match_spelling(strangers, sorted(set(ids)))]
        hint = f" Some differ only in spelling: {examples(pairs)}." if pairs else ""
        what = "neither images nor patients" if has_patients else "no images"
        problems.add(f"{len(strangers)} ids of the split files are {what} of the table: {examples(strangers)}.{hint}")
    return ids.map(by_image).fillna("").astype("str")


def _exclude_duplicates(rows: pd.DataFrame, domains: Sequence[str], problems: Problems) -> list[Finding]:
    """Keep the first of the rows of one file; rows that contradict each other are a problem."""
    live = rows.loc[rows["rule"] == ""]
    agreeing = {"y": "labels", "patient_id": "patients", "split": "splits"} | {
        domain: f"values of {domain!r}" for domain in domains
    }
    for column, what in agreeing.items():
        # clips of one video may have different labels, but not different patients
        key = "relative" if column in ("patient_id", "split") else "sample_id"
        several = live.groupby(key)[column].nunique()
        contradictory = several.index[several > 1]
        if len(contradictory):
            lines = live.index[live[key].isin(contradictory)]
            problems.add(
                f"{len(contradictory)} images have rows with different {what}: {examples(contradictory)} "
                f"(lines {examples(lines)}); keep one row of each."
            )
    repeated = live["sample_id"].duplicated().reindex(rows.index, fill_value=False)
    exclude(rows, repeated, "duplicate", "an earlier row names the same file")
    if not repeated.any():
        return []
    return [
        Finding("duplicates", "info", f"{int(repeated.sum())} rows repeat an earlier row's image.", "one of each stays")
    ]


def _draw_splits(rows: pd.DataFrame, split: SplitSource | None, task: Task, num_classes: int) -> None:
    live = rows.loc[rows["rule"] == ""]
    num_labels = num_classes if task == "multi_label" else None
    if isinstance(split, FractionSplit):
        drawn = fraction_split(patient_classes(live, task), split, num_labels)
        rows.loc[live.index, "split"] = live["patient_id"].map(drawn)
    elif isinstance(split, ValFraction):
        train = live.loc[live["split"] == "train"]
        drawn = val_split(patient_classes(train, task), split, num_labels)
        rows.loc[train.index, "split"] = train["patient_id"].map(drawn)


def _left_out(rows: pd.DataFrame) -> list[Finding]:
    """How many rows each rule left out; a missing file is a warning."""
    findings: list[Finding] = []
    for (rule, detail), group in rows.loc[~rows["rule"].isin(["", "duplicate"])].groupby(["rule", "detail"]):
        title = f"{len(group)} of {len(rows)} rows were left out by the rule {rule!r}."
        if rule == "file missing":
            remedy = "Check that all images have arrived, or that data.files is right."
            findings.append(Finding("images_without_files", "warning", title, str(detail), remedy))
        else:
            findings.append(Finding("rows_left_out", "info", title, str(detail)))
    return findings
