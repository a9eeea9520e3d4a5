"""Who trains, who chooses and who is scored: one partition, or one per fold.

Axes: N usable sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitreous.config.study import EachDomain, Folds, KFolds, LeaveOut
from vitreous.core.errors import RunError
from vitreous.core.label_sets import memberships
from vitreous.core.predictions import Aggregate
from vitreous.features.token_store import TokenRows
from vitreous.recipes.feature_set import FeatureSet
from vitreous.samples.cohort import Cohort
from vitreous.samples.folds import each_domain_cohorts, fold_cohorts, leave_one_out_cohorts


@dataclass(frozen=True)
class Partition:
    """The split of each usable sample, and the labels that may be seen before test is opened.

    Args:
        fold: number of the round, or None without folds.
        cohort: under the split of this round; its test labels are sealed.
        split_N: train, val or test; empty for who takes no part in this round.
        y_N: class indices or numbers of sets of labels; -1 for test rows.
    """

    fold: int | None
    cohort: Cohort
    split_N: npt.NDArray[np.str_]
    y_N: npt.NDArray[np.int64]

    def rows(self, split: str) -> npt.NDArray[np.int64]:
        """Positions of the samples of one split."""
        return np.flatnonzero(self.split_N == split)


def make_partitions(cohort: Cohort, folds: Folds | None, usable: pd.Series | None = None) -> list[Partition]:
    """One partition as the cohort has it, or one per fold.

    Folds are drawn over the whole cohort before anything is encoded, so that a quarantined file moves nobody.

    Args:
        usable: ids of the samples to restrict to, in the order wanted; all if left out.
    """
    match folds:
        case None:
            return [_partition(None, cohort, usable)]
        case KFolds():
            rounds = fold_cohorts(cohort, num_folds=folds.k, seed=folds.seed)
        case LeaveOut() | EachDomain():
            rounds = list(domain_cohorts(cohort, folds).values())
        case _:
            assert_never(folds)
    return [_partition(fold, of_fold, usable) for fold, of_fold in enumerate(rounds)]


def domain_cohorts(cohort: Cohort, folds: LeaveOut | EachDomain) -> dict[str, Cohort]:
    """Domain → the cohort under the split of its round, in the order of the rounds.

    Raises:
        SampleError: the domains cannot be rounds; says which and why.
    """
    if isinstance(folds, LeaveOut):
        return leave_one_out_cohorts(cohort, folds.column, val_fraction=folds.val_fraction, seed=folds.seed)
    return each_domain_cohorts(
        cohort, folds.column, val_fraction=folds.val_fraction, test_fraction=folds.test_fraction, seed=folds.seed
    )


def check_partitions(partitions: Sequence[Partition], classes: Sequence[str]) -> None:
    """After quarantine, every split must still have patients, and train and val every class.

    Raises:
        RunError: naming fold, split and class; nothing has been trained yet, and test is unopened.
    """
    problems = []
    for partition in partitions:
        where = "" if partition.fold is None else f"fold {partition.fold}: "
        for split in ("train", "val", "test"):
            rows = partition.rows(split)
            if len(rows) == 0:
                problems.append(f"{where}no usable file is left in {split}")
            elif split != "test":
                task = partition.cohort.task
                has_NC = memberships(partition.y_N[rows], len(classes), task)
                noun = "class" if task == "multi_class" else "label"
                gone = [name for name, has_N in zip(classes, has_NC.T, strict=True) if not has_N.any()]
                problems += [f"{where}no usable patient of {noun} {name!r} is left in {split}" for name in gone]
                full = [name for name, has_N in zip(classes, has_NC.T, strict=True) if has_N.all()]
                if task == "multi_label":
                    problems += [f"{where}every usable patient left in {split} has the label {name!r}" for name in full]
    if problems:
        raise RunError(
            f"{'; '.join(problems)}. Quarantined files took them away: see data_errors.csv, mend the files, or choose "
            "another split."
        )


def _partition(fold: int | None, cohort: Cohort, usable: pd.Series | None) -> Partition:
    samples = cohort.samples
    if usable is not None:
        samples = samples.set_index("sample_id").loc[usable.tolist()]
    return Partition(fold, cohort, samples["split"].to_numpy(np.str_), samples["y"].to_numpy(np.int64))


def feature_set(
    partition: Partition,
    split: str,
    samples: pd.DataFrame,
    features: npt.NDArray[np.float32] | TokenRows,
    aggregate: Aggregate,
) -> FeatureSet:
    """The rows of one split, ready for a probe."""
    rows = partition.rows(split)
    tokens = features.select(rows) if isinstance(features, TokenRows) else None
    return FeatureSet(
        np.zeros((len(rows), 1), np.float32) if isinstance(features, TokenRows) else features[rows],
        partition.y_N[rows],
        samples["patient_id"].to_numpy(np.str_)[rows],
        samples["weight"].to_numpy(np.float64)[rows],
        aggregate,
        partition.cohort.task,
        tokens,
    )
