"""Stratified K-fold over patients: every patient is tested once."""

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.model_selection import StratifiedKFold

from vitreous.core.errors import SampleError
from vitreous.core.streams import stream_seed
from vitreous.samples.cohort import Cohort
from vitreous.samples.problems import examples


def assign_folds(labels: pd.Series, *, num_folds: int, seed: int) -> list[dict[str, str]]:
    """For each fold, patient → split: fold j is tested, fold j+1 chooses (val), the others train.

    Folds are drawn over patients, so that all volumes of one stay together, with the classes' shares kept. The labels
    of all patients must be known beforehand; every one of them is in some test split.

    Args:
        labels: class index by patient; order does not matter.
        num_folds: at least 3, since one fold tests and one chooses.
    Raises:
        SampleError: fewer than 3 folds, or a class with fewer patients than folds.
    """
    if num_folds < 3:
        raise SampleError(f"folds.k must be at least 3 (one tests, one chooses, the rest train); got {num_folds}.")
    counts = labels.value_counts()
    small = counts.index[counts < num_folds]
    if len(small):
        named = [f"class {y} ({counts[y]})" for y in sorted(small)]
        raise SampleError(f"{num_folds} folds need as many patients of every class; too few: {examples(named)}.")
    labels = labels.sort_index()
    splitter = StratifiedKFold(num_folds, shuffle=True, random_state=stream_seed(seed, "folds") % 2**32)
    fold_of = np.empty(len(labels), dtype=np.int64)
    for fold, (_, tested) in enumerate(splitter.split(np.zeros(len(labels)), labels.to_numpy())):
        fold_of[tested] = fold
    return [_roles(labels.index, (fold_of - fold) % num_folds) for fold in range(num_folds)]


def fold_cohorts(cohort: Cohort, *, num_folds: int, seed: int) -> list[Cohort]:
    """The cohort once for each fold, each with the labels of its own test split sealed.

    Raises:
        SampleError: see :func:`assign_folds`.
    """
    check_classes(cohort)
    folds = assign_folds(cohort.patient_labels(), num_folds=num_folds, seed=seed)
    return [cohort.resplit(split_of) for split_of in folds]


def check_classes(cohort: Cohort) -> None:
    """Every class has a patient somewhere.

    Raises:
        SampleError: naming the classes that have none.
    """
    present = set(cohort.patient_labels())
    if absent := [name for index, name in enumerate(cohort.classes) if index not in present]:
        raise SampleError(
            f"no patient with a file has the class {', '.join(map(repr, absent))}; remove it from classes."
        )


def _roles(patients: pd.Index, distance: npt.NDArray[np.int64]) -> dict[str, str]:
    roles = np.where(distance == 0, "test", np.where(distance == 1, "val", "train"))
    return dict(zip(patients.tolist(), roles.tolist(), strict=True))
