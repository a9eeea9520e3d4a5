"""DeLong's variance of the AUROC and the paired test that follows from it, for one row per patient.

Axes: N row (one patient), P positive row, Q negative row, K score.

A check on the bootstrap that needs no resamples: both estimate the same standard error, by different means. A row of a
leaderboard is the mean of its seeds, so the test is of a weighted sum of correlated AUROCs, which DeLong's covariance
serves as well. A difference is the first minus the second: z > 0 where the first is better.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import norm, rankdata

from vitreous.core.predictions import Predictions
from vitreous.core.undefined import Undefined
from vitreous.evidence.intervals import check_same_rows
from vitreous.evidence.one_vs_rest import check_one_row_per_patient, one_vs_rest
from vitreous.evidence.scores import FloatArray


@dataclass(frozen=True)
class DelongEstimate:
    """An AUROC, or a difference of two, under the normal approximation.

    Args:
        value: of the cohort; mean over seeds.
        standard_error: may be 0, where every positive outranks every negative.
        low, high: value ± quantile × standard error; those of an AUROC end at 0 and 1.
        z, p: against 0, two-sided; undefined for an AUROC alone.
    """

    value: float | Undefined
    standard_error: float | Undefined
    low: float | Undefined
    high: float | Undefined
    z: float | Undefined
    p: float | Undefined


def delong_covariance(is_positive_N: npt.NDArray[np.bool_], scores_KN: FloatArray) -> tuple[FloatArray, FloatArray]:
    """AUROCs (K), ties one half, and their covariance (K, K) over patients, by midranks in O(N log N).

    Raises:
        ValueError: fewer than two positives or two negatives, or a score that is not finite.
    Source: DeLong, DeLong and Clarke-Pearson (1988); midranks: Sun and Xu (2014).
    """
    if not np.isfinite(scores_KN).all():
        raise ValueError("scores must be finite; got NaN or infinity")
    num_positive, num_negative = int(is_positive_N.sum()), int((~is_positive_N).sum())
    if min(num_positive, num_negative) < 2:
        raise ValueError(
            f"DeLong's variance needs two positives and two negatives; got {num_positive} and {num_negative}"
        )
    positive_KP, negative_KQ = scores_KN[:, is_positive_N], scores_KN[:, ~is_positive_N]
    ranks_KN = rankdata(np.concatenate([positive_KP, negative_KQ], axis=1), axis=1)
    # how many of the other group a row outranks: its rank among all, less its rank in its own group
    outranked_KP = ranks_KN[:, :num_positive] - rankdata(positive_KP, axis=1)
    outranked_KQ = ranks_KN[:, num_positive:] - rankdata(negative_KQ, axis=1)
    structure_KP = outranked_KP / num_negative
    structure_KQ = 1.0 - outranked_KQ / num_positive
    covariance_KK = np.cov(structure_KP) / num_positive + np.cov(structure_KQ) / num_negative
    return structure_KP.mean(axis=1), np.atleast_2d(covariance_KK)


def delong_auroc(predictions_by_seed: Sequence[Predictions], positive: str, level: float = 0.95) -> DelongEstimate:
    """The AUROC of one class against the rest, mean over seeds, with DeLong's interval.

    Args:
        predictions_by_seed: on the same patients in the same order.
        positive: class name; with two classes either gives the same.
    Raises:
        ValueError: several rows per patient, no such class, seeds on different rows, or a level that is no share.
    """
    share = np.full(len(predictions_by_seed), 1 / max(len(predictions_by_seed), 1))
    found = _contrast(predictions_by_seed, share, positive, level)
    alone = Undefined("an AUROC alone is not tested")
    if isinstance(found.low, Undefined) or isinstance(found.high, Undefined):
        return DelongEstimate(found.value, found.standard_error, found.low, found.high, alone, alone)
    low, high = max(0.0, found.low), min(1.0, found.high)
    return DelongEstimate(found.value, found.standard_error, low, high, alone, alone)


def delong_test(
    predictions_by_seed: Sequence[Predictions],
    other_by_seed: Sequence[Predictions],
    positive: str,
    level: float = 0.95,
) -> DelongEstimate:
    """The difference of two rows' AUROCs on the same patients; z > 0 where the first row is better.

    Raises:
        ValueError: as for :func:`delong_auroc`, or rows on different patients.
    """
    if not predictions_by_seed or not other_by_seed:
        raise ValueError("there are no predictions to score")
    share = [1 / len(predictions_by_seed)] * len(predictions_by_seed) + [-1 / len(other_by_seed)] * len(other_by_seed)
    return _contrast([*predictions_by_seed, *other_by_seed], np.array(share), positive, level)


def _contrast(
    all_predictions: Sequence[Predictions], share_K: FloatArray, positive: str, level: float
) -> DelongEstimate:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1; got {level}")
    check_same_rows({f"predictions {k}": one for k, one in enumerate(all_predictions)})
    check_one_row_per_patient(all_predictions[0], "DeLong's variance")
    is_positive_N, _ = one_vs_rest(all_predictions[0], positive)
    scores_KN = np.stack([one_vs_rest(one, positive)[1] for one in all_predictions])
    num_positive, num_negative = int(is_positive_N.sum()), int((~is_positive_N).sum())
    if min(num_positive, num_negative) < 2:
        missing = Undefined(
            f"DeLong's variance needs two patients of {positive!r} and two others; got {num_positive} and "
            f"{num_negative}"
        )
        return DelongEstimate(missing, missing, missing, missing, missing, missing)
    auroc_K, covariance_KK = delong_covariance(is_positive_N, scores_KN)
    value = float(share_K @ auroc_K)
    # rounding may leave a variance of 0 a hair below it
    standard_error = float(np.sqrt(max(0.0, float(share_K @ covariance_KK @ share_K))))
    if standard_error < 1e-12:
        missing = Undefined("nothing varies between patients: the standard error is 0")
        return DelongEstimate(value, 0.0, missing, missing, missing, missing)
    half = float(norm.ppf((1 + level) / 2)) * standard_error
    z = value / standard_error
    return DelongEstimate(value, standard_error, value - half, value + half, z, float(2 * norm.sf(abs(z))))
