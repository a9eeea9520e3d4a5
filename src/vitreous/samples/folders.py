"""Cohorts of kind ``folder``: images below folders named by class, below folders named by split or without them."""

import difflib
import posixpath
import re
from collections.abc import Sequence

import pandas as pd

from vitreous.core.finding import Finding
from vitreous.samples.cohort import EXCLUDED_COLUMNS, SAMPLE_COLUMNS, SPLITS, Cohort, seal
from vitreous.samples.image_files import is_image_name
from vitreous.samples.patients import check_agreement, check_ids, patient_classes, patients_are_rows
from vitreous.samples.problems import Problems, examples
from vitreous.samples.selection import exclude
from vitreous.samples.splits import FractionSplit, ValFraction, fraction_split, val_split
from vitreous.storage.location import ObjectInfo

_PATIENT_REMEDY = "Give data.patient_pattern, a regular expression on the file name, if the name tells the patient."


def load_image_folders(
    listing: Sequence[ObjectInfo],
    *,
    classes: Sequence[str],
    has_split_folders: bool,
    split: FractionSplit | ValFraction | None = None,
    patient_pattern: str | None = None,
    ignore: Sequence[str] = (),
    one_label: bool = True,
    accepts_spelling: bool = False,
    name: str,
) -> Cohort:
    """One sample for each image file: ``<split>/<class>/…`` or ``<class>/…``, with any folders below the class.

    Hidden files and files that are no image by their extension are left out by rule. A path below a folder that is
    neither a class nor in `ignore` is refused.

    Args:
        listing: what lies below the root.
        classes: names of the class folders, in index order.
        has_split_folders: the first folder is train, val or test.
        split: fractions, without folders for splits; or, with folders train and test alone, the share of train that
            becomes val. None where folders or folds give the split.
        patient_pattern: searched in the file name; its group ``patient`` is the id. Without it every image is a
            patient of its own, and a finding says so.
        ignore: class folders that are left out, by rule.
        one_label: all images of a patient must have the same label.
        accepts_spelling: ids that differ only in spelling are different patients'.
        name: of the root, for error texts.
    Raises:
        SampleError: a folder is no class or split, a name does not fit the pattern, a patient stands in two splits, a
            split is empty, or a class has no training patient. All that can be told at once is.
    """
    problems = Problems(name)
    paths = [info.relative for info in listing]
    rows = pd.DataFrame(
        {
            "sample_id": paths,
            "relative": paths,
            "item": -1,
            "size": [info.size for info in listing],
            "etag": [info.etag for info in listing],
            "weight": 1.0,
            "patient_id": "",
            "rule": "",
            "detail": "",
        }
    )
    names = rows["relative"].map(posixpath.basename)
    exclude(rows, rows["relative"].str.contains(r"(?:^|/)\.", regex=True), "hidden file", "the name begins with a dot")
    exclude(rows, ~rows["relative"].map(is_image_name), "not an image", "by its extension")
    folders = [posixpath.dirname(path).split("/") if "/" in path else [] for path in rows["relative"]]
    depth = 1 if has_split_folders else 0
    rows["split"] = [parts[0] if has_split_folders and parts else "" for parts in folders]
    rows["class"] = [parts[depth] if len(parts) > depth else "" for parts in folders]
    exclude(rows, rows["class"].isin(list(ignore)), "ignored folder", rows["class"])
    if unmatched := sorted(set(ignore) - set(rows["class"])):
        problems.add(f"ignore names {examples(unmatched)}, and no folder of that name holds a file; take it out.")
    _check_layout(rows, classes, has_split_folders, split, problems)
    problems.check_none()
    live = rows["rule"] == ""
    rows["y"] = rows["class"].map({class_name: index for index, class_name in enumerate(classes)})
    if patient_pattern is None:
        rows["patient_id"] = rows["sample_id"]
    else:
        rows.loc[live, "patient_id"] = _read_patients(
            names[live], patient_pattern, rows["relative"], problems, accepts_spelling
        )
    _draw_splits(rows, split)
    kept = rows.loc[rows["rule"] == ""]
    check_agreement(kept, problems, one_label=one_label)
    problems.check_none()
    findings = _left_out(rows)
    if patient_pattern is None:
        findings.append(patients_are_rows(name, _PATIENT_REMEDY))
    excluded = rows.loc[rows["rule"] != "", list(EXCLUDED_COLUMNS)]
    return seal(kept[list(SAMPLE_COLUMNS)], excluded, classes, findings, (), (), where=name)


def _check_layout(
    rows: pd.DataFrame,
    classes: Sequence[str],
    has_split_folders: bool,
    split: FractionSplit | ValFraction | None,
    problems: Problems,
) -> None:
    """Note folders that are no split or no class, and images that lie in none."""
    live = rows.loc[rows["rule"] == ""]
    if has_split_folders:
        wrong = sorted(set(live["split"]) - set(SPLITS) - {""})
        if wrong:
            layout = (
                "Set split: {fractions: […]} if these are the classes" if set(wrong) & set(classes) else "Rename them"
            )
            problems.add(f"folders of splits are train, val and test; found {examples(wrong)}. {layout}.")
            return
        taken = isinstance(split, ValFraction)
        if taken and "val" in set(live["split"]):
            problems.add("split.val_fraction takes val out of train, and there is a folder val; leave one of them out.")
        if not taken and "val" not in set(live["split"]):
            problems.add("there is no folder val; set split: {val_fraction: 0.2, seed: 0} to take it out of train.")
    loose = live.loc[live["class"] == "", "relative"]
    if len(loose):
        layout = "<split>/<class>/" if has_split_folders else "<class>/"
        problems.add(f"{len(loose)} images lie in no folder of a class ({layout}…): {examples(loose)}.")
    found = live.loc[live["class"] != "", "class"].value_counts()
    for folder in sorted(set(found.index) - set(classes)):
        if not has_split_folders and folder in SPLITS:
            problems.add(f"the folder {folder!r} is a split, not a class; leave split and folds out to read it so.")
            continue
        near = difflib.get_close_matches(folder, classes, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        problems.add(
            f"the folder {folder!r} with {found[folder]} images is none of the classes {list(classes)}; add it, or "
            f"list it under ignore.{hint}"
        )
    if absent := [class_name for class_name in classes if class_name not in found.index]:
        problems.add(f"no folder with images for the class {', '.join(map(repr, absent))}; found {list(found.index)}.")


def _read_patients(
    names: pd.Series, pattern: str, relative: pd.Series, problems: Problems, accepts_spelling: bool
) -> pd.Series:
    compiled = re.compile(pattern)
    ids = pd.Series(
        [(match["patient"] or "") if (match := compiled.search(name)) else "" for name in names],
        index=names.index,
        dtype="str",
    )
    if len(unmatched := ids.index[ids == ""]):
        problems.add(
            f"patient_pattern {pattern!r} finds no patient in {len(unmatched)} of {len(ids)} names: "
            f"{examples(relative[unmatched])}."
        )
    check_ids(ids[ids != ""].set_axis(names[ids != ""]), problems, accepts_spelling=accepts_spelling)
    return ids


def _draw_splits(rows: pd.DataFrame, split: FractionSplit | ValFraction | None) -> None:
    if split is None:
        return
    live = rows.loc[rows["rule"] == ""]
    part = live if isinstance(split, FractionSplit) else live.loc[live["split"] == "train"]
    labels = patient_classes(part)
    drawn = fraction_split(labels, split) if isinstance(split, FractionSplit) else val_split(labels, split)
    rows.loc[part.index, "split"] = part["patient_id"].map(drawn)


def _left_out(rows: pd.DataFrame) -> list[Finding]:
    counts = rows.loc[rows["rule"] != "", "rule"].value_counts()
    return [
        Finding("files_left_out", "info", f"{count} of {len(rows)} files were left out by the rule {rule!r}.", name)
        for rule, count in counts.items()
        for name in [", ".join(sorted(rows.loc[rows["rule"] == rule, "detail"].unique())[:10])]
    ]
