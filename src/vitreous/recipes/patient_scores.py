"""Balanced accuracy per patient, for all members at once.

Axes: K member, C class, N row (volume), P patient.
"""

import numpy as np
import numpy.typing as npt

from vitreous.recipes.feature_set import FeatureSet


class PatientScorer:
    """Turns the probabilities of volumes into one score per member.

    A patient's probability is the mean over the patient's volumes, its prediction the most probable class
    (the lowest index on a tie), and the score the mean over classes of the share of patients found.

    Args:
        rows: each class must have a patient.
    """

    def __init__(self, rows: FeatureSet, num_classes: int) -> None:
        _, self._y_P, participant_N = rows.per_participant()
        self._by_patient_N = np.argsort(participant_N, kind="stable")
        self._start_P = np.searchsorted(participant_N[self._by_patient_N], np.arange(len(self._y_P)))
        self._one_hot_PC = np.eye(num_classes)[self._y_P]

    def balanced_accuracy(self, probs_KCN: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """One score in [0, 1] per member, shape (K,); rows in the order of the given set."""
        # The sum decides as the mean does: a patient's classes share one number of volumes.
        sorted_KCN = probs_KCN[:, :, self._by_patient_N]
        sums_KCP = np.add.reduceat(sorted_KCN, self._start_P, axis=2, dtype=np.float64)
        correct_KP = (sums_KCP.argmax(axis=1) == self._y_P).astype(np.float64)
        recall_KC = (correct_KP @ self._one_hot_PC) / self._one_hot_PC.sum(axis=0)
        # Equal recalls in another order must tie, so that a best epoch is not decided by rounding.
        score_K: npt.NDArray[np.float64] = recall_KC.mean(axis=1).round(12)
        return score_K
