"""Parts of a cohort that hold each label in the same share, where a patient may have several labels.

Axes: P patient, C label, S part.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vitreous.core.label_sets import BoolArray

_TIE = 1e-9


def stratify_labels(has_PC: BoolArray, fractions: Sequence[float], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """The part of each patient (P), indices into `fractions`, by iterative stratification.

    The rarest label is dealt out first: each patient who has it goes to the part that lacks it most, on a tie to the
    part that lacks patients most, then by chance. Patients without any label fill up what is left.

    Args:
        has_PC: labels of each patient, in an order that does not depend on the table's.
        fractions: positive, sum 1.
        rng: decides ties.
    Source: Sechidis, Tsoumakas and Vlahavas (2011), algorithm 1.

    >>> stratify_labels(np.array([[True], [True], [False], [False]]), [0.5, 0.5], np.random.default_rng(0)).tolist()
    [1, 0, 0, 1]
    """
    shares_S = np.asarray(fractions, dtype=np.float64)
    part_P = np.full(len(has_PC), -1, dtype=np.int64)
    wanted_S = shares_S * len(has_PC)
    wanted_SC = shares_S[:, None] * has_PC.sum(axis=0)
    while (left := part_P < 0).any():
        counts_C = has_PC[left].sum(axis=0)
        if not (counts_C > 0).any():
            label = None
            members = np.flatnonzero(left)
        else:
            label = int(np.argmin(np.where(counts_C > 0, counts_C, len(has_PC) + 1)))
            members = np.flatnonzero(left & has_PC[:, label])
        for patient in rng.permutation(members):
            lacking_S = wanted_S if label is None else wanted_SC[:, label]
            candidates = np.flatnonzero(lacking_S >= lacking_S.max() - _TIE)
            candidates = candidates[wanted_S[candidates] >= wanted_S[candidates].max() - _TIE]
            chosen = int(rng.choice(candidates))
            part_P[patient] = chosen
            wanted_S[chosen] -= 1.0
            wanted_SC[chosen] -= has_PC[patient]
    return part_P
