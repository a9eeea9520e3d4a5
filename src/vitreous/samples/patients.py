"""Whose each sample is: ids written one way, and no patient in two splits or with two labels."""

import numpy as np
import pandas as pd

from vitreous.core.finding import Finding
from vitreous.core.label_sets import Task
from vitreous.samples.identifiers import find_spelling_variants
from vitreous.samples.problems import Problems, examples


def check_ids(ids: pd.Series, problems: Problems, *, accepts_spelling: bool = False) -> None:
    """Note ids that are empty, and groups of ids that differ only in spelling.

    Args:
        ids: one a row; the index names the line.
        accepts_spelling: the study says that such ids are different patients'.
    """
    if len(empty := ids.index[ids == ""]):
        problems.add(f"lines {examples(empty)} have no patient id; fill it in or remove them.")
    lines = {identifier: str(line) for line, identifier in ids.drop_duplicates().items()}
    variants = find_spelling_variants(identifier for identifier in lines if identifier)
    if variants and not accepts_spelling:
        named = [" / ".join(f"{one} (line {lines[one]})" for one in group) for group in variants]
        problems.add(
            f"{len(variants)} groups of ids differ only in spelling and may be one patient: "
            f"{'; '.join(named[:10])}{' …' if len(named) > 10 else ''}. Write each patient's id one way.",
            leak="spelling_variants",
        )


def check_agreement(samples: pd.DataFrame, problems: Problems, *, one_label: bool = True) -> None:
    """Note patients whose items stand in different splits or have different labels.

    Args:
        samples: ``patient_id``, ``split``, ``y``; rows with an empty id are passed over.
        one_label: False where items are scored by themselves, so that a patient's may differ in their labels.
    """
    known = samples.loc[samples["patient_id"] != ""]
    remedies = {"split": "A patient is in one split: what is learned of one item helps with the others."}
    if one_label:
        remedies["y"] = (
            "Metrics are by patient, so all items of one need the same; set data.aggregate: none to score each item "
            "by itself."
        )
    for column, remedy in remedies.items():
        several = known.groupby("patient_id")[column].nunique()
        contradictory = several.index[several > 1]
        if len(contradictory):
            what = "splits" if column == "split" else "labels"
            problems.add(
                f"{len(contradictory)} patients have items with different {what}: {examples(contradictory)}. {remedy}",
                leak="patient_in_two_splits" if column == "split" else "",
            )


def patient_classes(samples: pd.DataFrame, task: Task = "multi_class") -> pd.Series:
    """Class index by patient, by which splits are stratified: the highest of the patient's items.

    Where the items of a patient differ, as two eyes may, classes in the order of severity make it the worse one. Such
    a patient stands for that class alone, so the shares of the other classes come out less even. With several labels a
    row, a patient has every label that any of the items has.

    Args:
        samples: ``patient_id`` and ``y``.
    """
    groups = samples.groupby("patient_id")["y"]
    if task == "multi_class":
        return groups.max()
    return groups.agg(lambda numbers: int(np.bitwise_or.reduce(numbers.to_numpy(np.int64)))).astype("int64")


def patients_are_rows(name: str, remedy: str) -> Finding:
    """What is said where there are no patient ids.

    Args:
        name: of the table or folder.
        remedy: how to give them.
    """
    return Finding(
        "patients_are_rows",
        "warning",
        "There are no patient ids: every item counts as a patient of its own, and every number carries a banner.",
        f"{name}: intervals are too narrow if patients have several items",
        remedy,
    )
