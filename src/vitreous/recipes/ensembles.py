"""Mean probabilities of several models, written as logits that give them back.

Axes: M member, N row, C class or label.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import log_expit, log_softmax, logsumexp

from vitreous.core.label_sets import Task

FloatArray = npt.NDArray[np.float64]
MAX_PICKS = 20  # of the greedy choice, a member picked twice counted twice


def average_logits(logits_MNC: Sequence[FloatArray], counts_M: npt.NDArray[np.int64], task: Task) -> FloatArray:
    """Logits (N, C) whose probabilities are the weighted mean of the members'.

    Args:
        counts_M: how often each member is taken, at least one of them.

    >>> average_logits([np.zeros((1, 2)), np.log([[3.0, 1.0]])], np.array([1, 1]), "multi_class").round(3).tolist()
    [[-0.47, -0.981]]
    """
    stacked_MNC = np.stack(logits_MNC)
    weight_M11 = (counts_M / counts_M.sum())[:, None, None]
    if task == "multi_class":
        mean_NC: FloatArray = logsumexp(log_softmax(stacked_MNC, axis=2), axis=0, b=weight_M11)
        return mean_NC
    present_NC = logsumexp(log_expit(stacked_MNC), axis=0, b=weight_M11)
    absent_NC = logsumexp(log_expit(-stacked_MNC), axis=0, b=weight_M11)
    difference_NC: FloatArray = present_NC - absent_NC
    return difference_NC


def choose_members(num_members: int, score: Callable[[npt.NDArray[np.int64]], float]) -> npt.NDArray[np.int64]:
    """How often each member is taken, shape (M,): the best one, then whichever raises the score most, while one does.

    Args:
        score: of the ensemble that these counts make, on val; of equal ones the member named first is taken.

    Source: Caruana et al. (2004), ensemble selection with replacement.
    """
    counts_M = np.zeros(num_members, np.int64)
    best = -np.inf
    for _ in range(MAX_PICKS):
        scores = [score(counts_M + (np.arange(num_members) == member)) for member in range(num_members)]
        picked = int(np.argmax(scores))
        if scores[picked] <= best:
            break
        best = scores[picked]
        counts_M[picked] += 1
    return counts_M
