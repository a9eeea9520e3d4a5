"""How many directions features really span.

Axes: N sample, D feature, K singular value.
"""

import numpy as np
import numpy.typing as npt

_MOST_ROWS = 4096  # more rows change little and cost a lot
_TINY = 1e-7  # as RankMe has it


def effective_rank(features_ND: npt.NDArray[np.floating]) -> float:
    """RankMe of the centred features: the exponential of the entropy of their singular values; 1 … min(N, D).

    1 where all samples have the same features. Of more than 4096 rows, 4096 evenly spaced ones are taken.

    Source: Garrido et al. (2023), "RankMe", after Roy and Vetterli (2007); theirs is not centred, so that a mean far
    from 0 counts as one strong direction.
    """
    rows = np.unique(np.linspace(0, len(features_ND) - 1, _MOST_ROWS).astype(int))
    matrix_ND = np.asarray(features_ND, dtype=np.float64)[rows]
    matrix_ND = matrix_ND - matrix_ND.mean(axis=0)
    values_K = np.linalg.svd(matrix_ND, compute_uv=False)
    if values_K.sum() <= _TINY * max(1.0, float(np.abs(features_ND).max())):
        return 1.0
    shares_K = values_K / values_K.sum() + _TINY
    return float(np.exp(-(shares_K * np.log(shares_K)).sum()))
