"""Who trains, who chooses and who is scored: one partition, or one per fold.

Axes: N usable sample.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitreous.config.study import Folds
from vitreous.recipes.feature_set import FeatureSet
from vitreous.samples.folds import assign_folds

SEALED = -1


@dataclass(frozen=True)
class Partition:
    """The split of each usable sample, and the labels that may be seen before test is opened.

    Args:
        fold: number of the round, or None without folds.
        split_N: train, val or test.
        y_N: class indices; `SEALED` for test rows.
    """

    fold: int | None
    split_N: npt.NDArray[np.str_]
    y_N: npt.NDArray[np.int64]

    def rows(self, split: str) -> npt.NDArray[np.int64]:
        """Positions of the samples of one split."""
        return np.flatnonzero(self.split_N == split)


def make_partitions(samples: pd.DataFrame, folds: Folds | None) -> list[Partition]:
    """One partition as the cohort has it, or one per fold.

    Folds are drawn over the whole cohort before anything is encoded, so that a quarantined file moves nobody.

    Args:
        samples: the whole cohort.
    """
    if folds is None:
        return [Partition(None, samples["split"].to_numpy(np.str_), samples["y"].to_numpy(np.int64))]
    rounds = assign_folds(samples["patient_id"], samples["y"], num_folds=folds.k, seed=folds.seed)
    labels_N = samples["y"].to_numpy(np.int64)
    return [
        Partition(fold, split_N, np.where(split_N == "test", SEALED, labels_N)) for fold, split_N in enumerate(rounds)
    ]


def restrict(partition: Partition, sample_ids: pd.Series, usable: pd.Series) -> Partition:
    """The partition of the usable samples alone."""
    position: Mapping[str, int] = {name: row for row, name in enumerate(sample_ids)}
    rows_N = np.array([position[name] for name in usable], dtype=np.int64)
    return Partition(partition.fold, partition.split_N[rows_N], partition.y_N[rows_N])


def feature_set(partition: Partition, split: str, samples: pd.DataFrame,
                features_ND: npt.NDArray[np.float32]) -> FeatureSet:
    """The rows of one split, ready for a probe."""
    rows = partition.rows(split)
    return FeatureSet(
        features_ND[rows], partition.y_N[rows], samples["patient_id"].to_numpy(np.str_)[rows],
        samples["weight"].to_numpy(np.float64)[rows])
