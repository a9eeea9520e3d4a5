"""Balanced accuracy or mAP per patient, or per row, for all members at once.

Axes: K member, C class or label, N row (volume or image), U what is scored: patient or row.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import expit, softmax

from vitreous.core.label_sets import memberships
from vitreous.recipes.feature_set import FeatureSet


class PatientScorer:
    """Turns the probabilities of volumes into one score per member.

    A patient's probability is the mean over the patient's volumes, its prediction the most probable class
    (the lowest index on a tie), and the score the mean over classes of the share of patients found. Where rows are
    scored by themselves (`rows.aggregate` is ``none``), each stands for itself.

    With several labels a row, a patient's label is predicted from a mean probability of 0.5 on, balanced accuracy is a
    mean over labels, and members are chosen by mAP.

    Args:
        rows: each class must have a patient, or a row; each label one with it and one without it.
    """

    def __init__(self, rows: FeatureSet, num_classes: int) -> None:
        self._y_U, unit_N = rows.scored()
        self._by_unit_N = np.argsort(unit_N, kind="stable")
        self._start_U = np.searchsorted(unit_N[self._by_unit_N], np.arange(len(self._y_U)))
        self._task = rows.task
        self._has_UC = memberships(self._y_U, num_classes, rows.task)
        self._one_hot_UC = self._has_UC.astype(np.float64)
        self._count_U = np.bincount(unit_N, minlength=len(self._y_U))

    @property
    def metric(self) -> Literal["balanced_accuracy", "map"]:
        """By which epochs are judged."""
        return "balanced_accuracy" if self._task == "multi_class" else "map"

    def score(self, probs_KCN: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """The metric of each member, shape (K,)."""
        return self.balanced_accuracy(probs_KCN) if self._task == "multi_class" else self.mean_precision(probs_KCN)

    def score_logits(self, logits_NC: npt.NDArray[np.float64]) -> float:
        """The metric of one member."""
        probs_NC = softmax(logits_NC, axis=1) if self._task == "multi_class" else expit(logits_NC)
        return float(self.score(probs_NC.T[None])[0])

    def mean_precision(self, probs_KCN: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """mAP of each member, shape (K,); see :mod:`vitreous.evidence.label_scores`."""
        mean_KCU = self._sums(probs_KCN) / self._count_U
        score_K: npt.NDArray[np.float64] = average_precisions(self._has_UC.T, mean_KCU).mean(axis=1).round(12)
        return score_K

    def balanced_accuracy(self, probs_KCN: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """One score in [0, 1] per member, shape (K,); rows in the order of the given set."""
        sums_KCU = self._sums(probs_KCN)
        if self._task == "multi_label":
            correct_KCU = ((sums_KCU >= 0.5 * self._count_U) == self._has_UC.T).astype(np.float64)
            with_KC = np.einsum("kcu,uc->kc", correct_KCU, self._one_hot_UC) / self._one_hot_UC.sum(axis=0)
            rest_UC = 1.0 - self._one_hot_UC
            without_KC = np.einsum("kcu,uc->kc", correct_KCU, rest_UC) / rest_UC.sum(axis=0)
            label_K: npt.NDArray[np.float64] = (0.5 * (with_KC + without_KC)).mean(axis=1).round(12)
            return label_K
        # The sum decides as the mean does: a patient's classes share one number of volumes.
        correct_KU = (sums_KCU.argmax(axis=1) == self._y_U).astype(np.float64)
        recall_KC = (correct_KU @ self._one_hot_UC) / self._one_hot_UC.sum(axis=0)
        # Equal recalls in another order must tie, so that a best epoch is not decided by rounding.
        score_K: npt.NDArray[np.float64] = recall_KC.mean(axis=1).round(12)
        return score_K

    def _sums(self, probs_KCN: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        sorted_KCN = probs_KCN[:, :, self._by_unit_N]
        sums_KCU: npt.NDArray[np.float64] = np.add.reduceat(sorted_KCN, self._start_U, axis=2, dtype=np.float64)
        return sums_KCU


def average_precisions(has_CU: npt.NDArray[np.bool_], scores_KCU: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Average precision of each label and member, (K, C), rows of equal score together.

    Args:
        has_CU: each label must have a row.
    """
    num_rows = scores_KCU.shape[2]
    order_KCU = np.argsort(-scores_KCU, axis=2, kind="stable")
    sorted_KCU = np.take_along_axis(scores_KCU, order_KCU, axis=2)
    has_KCU = np.take_along_axis(np.broadcast_to(has_CU, scores_KCU.shape), order_KCU, axis=2)
    place_U = np.arange(num_rows)
    ends = np.concatenate([sorted_KCU[:, :, 1:] != sorted_KCU[:, :, :-1], np.ones_like(has_KCU[:, :, :1])], axis=2)
    # of each row, the last place of an equal score
    end_KCU = np.minimum.accumulate(np.where(ends, place_U, num_rows)[:, :, ::-1], axis=2)[:, :, ::-1]
    precision_KCU = np.cumsum(has_KCU, axis=2) / (place_U + 1.0)
    found_KC: npt.NDArray[np.float64] = (np.take_along_axis(precision_KCU, end_KCU, axis=2) * has_KCU).sum(axis=2)
    result_KC: npt.NDArray[np.float64] = found_KC / has_CU.sum(axis=1)
    return result_KC
