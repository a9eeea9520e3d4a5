"""Balanced accuracy per patient, or per row, for all members at once.

Axes: K member, C class, N row (volume or image), U what is scored: patient or row.
"""

import numpy as np
import numpy.typing as npt

from vitreous.recipes.feature_set import FeatureSet


class PatientScorer:
    """Turns the probabilities of volumes into one score per member.

    A patient's probability is the mean over the patient's volumes, its prediction the most probable class
    (the lowest index on a tie), and the score the mean over classes of the share of patients found. Where rows are
    scored by themselves (`rows.aggregate` is ``none``), each stands for itself.

    Args:
        rows: each class must have a patient, or a row.
    """

    def __init__(self, rows: FeatureSet, num_classes: int) -> None:
        self._y_U, unit_N = rows.scored()
        self._by_unit_N = np.argsort(unit_N, kind="stable")
        self._start_U = np.searchsorted(unit_N[self._by_unit_N], np.arange(len(self._y_U)))
        self._one_hot_UC = np.eye(num_classes)[self._y_U]

    def balanced_accuracy(self, probs_KCN: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """One score in [0, 1] per member, shape (K,); rows in the order of the given set."""
        # The sum decides as the mean does: a patient's classes share one number of volumes.
        sorted_KCN = probs_KCN[:, :, self._by_unit_N]
        sums_KCU = np.add.reduceat(sorted_KCN, self._start_U, axis=2, dtype=np.float64)
        correct_KU = (sums_KCU.argmax(axis=1) == self._y_U).astype(np.float64)
        recall_KC = (correct_KU @ self._one_hot_UC) / self._one_hot_UC.sum(axis=0)
        # Equal recalls in another order must tie, so that a best epoch is not decided by rounding.
        score_K: npt.NDArray[np.float64] = recall_KC.mean(axis=1).round(12)
        return score_K
