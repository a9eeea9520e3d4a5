"""When a member has learned enough: its best epoch so far, and how long ago it last gained.

Axes: K member.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass
class EarlyStopping:
    """The state of K members, each judged alone.

    The best epoch is the first with the highest score. Patience counts the epochs since the score last rose
    by more than `min_delta` above the score of the last such rise (the first epoch counts as one), so that
    small gains are kept without prolonging the training.

    Args:
        num_members: K.
        patience: a member stops after this many epochs without a rise; None never stops one.
        min_delta: smallest gain that counts as a rise, ≥ 0, in the unit of the score.
    """

    num_members: int
    patience: int | None
    min_delta: float

    def __post_init__(self) -> None:
        self.best_score_K = np.full(self.num_members, -np.inf)
        self.best_epoch_K = np.zeros(self.num_members, dtype=np.int64)
        self._reference_K = np.full(self.num_members, -np.inf)
        self._rose_at_K = np.zeros(self.num_members, dtype=np.int64)

    def update(
        self, member_idx: npt.NDArray[np.int64], epoch: int, score_M: npt.NDArray[np.float64]
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Take the scores of some members after `epoch`.

        Returns:
            Per given member: is this its best epoch so far; should it stop now.
        """
        is_best_M = score_M > self.best_score_K[member_idx]
        self.best_score_K[member_idx[is_best_M]] = score_M[is_best_M]
        self.best_epoch_K[member_idx[is_best_M]] = epoch
        rose_M = score_M > self._reference_K[member_idx] + self.min_delta
        self._reference_K[member_idx[rose_M]] = score_M[rose_M]
        self._rose_at_K[member_idx[rose_M]] = epoch
        if self.patience is None:
            return is_best_M, np.zeros(len(member_idx), dtype=np.bool_)
        return is_best_M, epoch - self._rose_at_K[member_idx] >= self.patience
