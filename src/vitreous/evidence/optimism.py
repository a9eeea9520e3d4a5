"""What choosing costs: how much of the score that won is luck of the patients it was chosen on.

Axes: N row, R resample, M member of a grid.

Two answers. The first holds the chosen member's val score against its test score; it needs one look at test, at the
chosen member alone. The second needs no test: in resamples of the val patients the best member is chosen anew and
scored on the patients that were not drawn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from vitreous.core.predictions import Predictions
from vitreous.core.undefined import Undefined
from vitreous.evidence.intervals import (
    Interval,
    check_same_rows,
    mean_over_seeds,
    mean_scores,
    percentile_interval,
    resample_weights,
)


@dataclass(frozen=True)
class SelectionOptimism:
    """One metric of the chosen member; higher is better.

    Args:
        val: on the patients it was chosen on.
        test: on others.
        optimism: val − test; above 0 the val score promised too much.
    """

    val: Interval
    test: Interval
    optimism: Interval


@dataclass(frozen=True)
class GridOptimism:
    """The best of a grid, and what choosing the best gives on patients it was not chosen on.

    Args:
        best: the member of the highest score, the first of them on a tie; None where no member has one.
        best_score: of the cohort itself: what "best of grid" would report.
        corrected: mean over resamples of the score of the member that the drawn patients chose, on those not drawn;
            with percentile bounds.
        optimism: best_score − corrected.
        share_chosen: member → share of resamples in which it was chosen, members that never were left out.
        num_members: compared.
    """

    best: str | None
    best_score: float | Undefined
    corrected: Interval
    optimism: float | Undefined
    share_chosen: Mapping[str, float]
    num_members: int


@dataclass(frozen=True)
class GridChoice:
    """What a row says of the choice among its settings; see `how`.

    Args:
        num_settings: compared.
        best_of_grid: val score of the best setting: what is reported where choosing is forgotten.
        corrected: what choosing by val gives on patients it was not made on.
        optimism: best_of_grid − corrected; `low`, `high` its bounds where patients are resampled together.
        how: ``resampled val``: :func:`grid_optimism` on the val split (with rounds by domain the mean over rounds);
            ``folds``: :func:`nested_optimism`, one setting for the whole cohort against the choice of each round.
    """

    num_settings: int
    best_of_grid: float | Undefined
    corrected: float | Undefined
    optimism: float | Undefined
    low: float | Undefined
    high: float | Undefined
    how: Literal["resampled val", "folds"] | None

    @classmethod
    def of_one(cls) -> "GridChoice":
        """Nothing was chosen."""
        none = Undefined("a single setting: nothing was chosen")
        return cls(1, none, none, none, none, none, None)


def weights_beside(
    patient_id_N: npt.NDArray[np.str_],
    tested_id_N: npt.NDArray[np.str_],
    weights_RN: npt.NDArray[np.generic],
    rng: np.random.Generator,
) -> npt.NDArray[np.generic]:
    """Weights (R, N) of val rows beside those of test rows.

    A patient who is tested too, in another round of a K-fold, is drawn as often there as here; all others are drawn
    among themselves, independently of test.

    Args:
        patient_id_N: of the val rows.
        tested_id_N, weights_RN: patients of the test rows, and their weights of
            :func:`~vitreous.evidence.intervals.resample_weights`.
    """
    patients, first = np.unique(tested_id_N, return_index=True)
    is_tested_N = np.isin(patient_id_N, patients)
    beside_RN = np.empty((len(weights_RN), len(patient_id_N)), dtype=weights_RN.dtype)
    if is_tested_N.any():
        beside_RN[:, is_tested_N] = weights_RN[:, first[np.searchsorted(patients, patient_id_N[is_tested_N])]]
    if not is_tested_N.all():
        beside_RN[:, ~is_tested_N] = resample_weights(
            patient_id_N[~is_tested_N], num_resamples=len(weights_RN), rng=rng
        )
    return beside_RN


def selection_optimism(
    val_by_seed: Sequence[Predictions],
    test_by_seed: Sequence[Predictions],
    metric: str,
    *,
    val_weights_RN: npt.NDArray[np.generic],
    test_weights_RN: npt.NDArray[np.generic],
    level: float = 0.95,
) -> SelectionOptimism:
    """Val score of the chosen member minus its test score; val and test patients are resampled independently.

    With nested folds, `val_by_seed` are the inner predictions of the members chosen and `test_by_seed` the outer ones.

    Args:
        val_weights_RN, test_weights_RN: of :func:`~vitreous.evidence.intervals.resample_weights`, equally many, from
            two streams or one after the other from one.
    Raises:
        ValueError: a patient in both, different classes, unequal numbers of resamples, or no such metric.
    """
    if not val_by_seed or not test_by_seed:
        raise ValueError("there are no predictions to score")
    if val_by_seed[0].classes != test_by_seed[0].classes:
        raise ValueError(f"val and test differ in classes: {val_by_seed[0].classes} and {test_by_seed[0].classes}")
    if len(val_weights_RN) != len(test_weights_RN):
        raise ValueError(f"val and test need equally many resamples; got {len(val_weights_RN)}, {len(test_weights_RN)}")
    shared = np.intersect1d(val_by_seed[0].patient_id_N, test_by_seed[0].patient_id_N)
    if len(shared):
        raise ValueError(f"{len(shared)} patients are in val and in test; resampling them independently would be wrong")
    val, test = mean_scores(val_by_seed)[metric], mean_scores(test_by_seed)[metric]
    val_R = mean_over_seeds(val_by_seed, val_weights_RN, [metric])[metric]
    test_R = mean_over_seeds(test_by_seed, test_weights_RN, [metric])[metric]
    num_val, num_test = (len(np.unique(one[0].patient_id_N)) for one in (val_by_seed, test_by_seed))
    lost = val if isinstance(val, Undefined) else test if isinstance(test, Undefined) else val - test
    return SelectionOptimism(
        percentile_interval(val, val_R, level, num_patients=num_val),
        percentile_interval(test, test_R, level, num_patients=num_test),
        percentile_interval(lost, val_R - test_R, level, num_patients=min(num_val, num_test)),
    )


def nested_optimism(
    members: Mapping[str, Sequence[Predictions]],
    test_by_seed: Sequence[Predictions],
    metric: str,
    weights_RN: npt.NDArray[np.generic],
    level: float = 0.95,
) -> SelectionOptimism:
    """Best of the grid on all folds minus the nested choice of each fold, on the same patients and resamples.

    The best member is that of the whole cohort in every resample: choosing anew in each would add the very luck that is
    measured. The interval therefore leaves out how uncertain the choice is; :func:`grid_optimism` has it in.

    Args:
        members: name → pooled out-of-fold predictions by seed of one setting throughout.
        test_by_seed: pooled out-of-fold predictions of whatever each fold chose without its test part.
    Raises:
        ValueError: rows that differ, no members, or no such metric.
    """
    if not members:
        raise ValueError("there are no members to choose from")
    check_same_rows({"nested": test_by_seed[0]} | {f"{name!r}": by_seed[0] for name, by_seed in members.items()})
    scores = {name: mean_scores(by_seed)[metric] for name, by_seed in members.items()}
    defined = {name: score for name, score in scores.items() if not isinstance(score, Undefined)}
    chosen = max(defined, key=lambda name: defined[name]) if defined else next(iter(members))
    best, nested = scores[chosen], mean_scores(test_by_seed)[metric]
    best_R = mean_over_seeds(members[chosen], weights_RN, [metric])[metric]
    nested_R = mean_over_seeds(test_by_seed, weights_RN, [metric])[metric]
    lost = best if isinstance(best, Undefined) else nested if isinstance(nested, Undefined) else best - nested
    patients = len(np.unique(test_by_seed[0].patient_id_N))
    return SelectionOptimism(
        percentile_interval(best, best_R, level, num_patients=patients),
        percentile_interval(nested, nested_R, level, num_patients=patients),
        percentile_interval(lost, best_R - nested_R, level, num_patients=patients),
    )


def grid_optimism(
    members: Mapping[str, Sequence[Predictions]],
    metric: str,
    weights_RN: npt.NDArray[np.generic],
    level: float = 0.95,
) -> GridOptimism:
    """How much "best of grid" exceeds what its choice gives on patients not drawn; reads val only.

    About 37 % of the patients are not drawn into a resample. A resample in which no member has a score, or the chosen
    one has none on the patients left, counts as undefined.

    Args:
        members: name → val predictions by seed, all on the same rows; those that diverged left out.
    Raises:
        ValueError: no members, rows that differ, or no such metric.
    Source: Tsamardinos, Greasidou and Borboudakis (2018), bootstrap bias corrected cross-validation.
    """
    if not members:
        raise ValueError("there are no members to choose from")
    check_same_rows({f"{name!r}": by_seed[0] for name, by_seed in members.items()})
    names = list(members)
    left_RN = np.asarray(weights_RN) == 0
    drawn_MR = np.stack([mean_over_seeds(by_seed, weights_RN, [metric])[metric] for by_seed in members.values()])
    left_MR = np.stack([mean_over_seeds(by_seed, left_RN, [metric])[metric] for by_seed in members.values()])
    chosen_R = np.argmax(np.where(np.isnan(drawn_MR), -np.inf, drawn_MR), axis=0)  # the first on a tie
    none_R = np.isnan(drawn_MR).all(axis=0)
    scored_R = np.where(none_R, np.nan, left_MR[chosen_R, np.arange(len(chosen_R))])
    scores = {name: mean_scores(by_seed)[metric] for name, by_seed in members.items()}
    defined = {name: score for name, score in scores.items() if not isinstance(score, Undefined)}
    num_patients = len(np.unique(next(iter(members.values()))[0].patient_id_N))
    count_M = np.bincount(chosen_R[~none_R], minlength=len(names))
    share = {name: count / len(chosen_R) for name, count in zip(names, count_M.tolist(), strict=True) if count}
    if not defined:
        missing = next(score for score in scores.values() if isinstance(score, Undefined))
        corrected = percentile_interval(missing, scored_R, level, num_patients=num_patients)
        return GridOptimism(None, missing, corrected, missing, share, len(names))
    best = max(defined, key=lambda name: defined[name])
    mean: float | Undefined
    if np.isnan(scored_R).all():
        mean = Undefined("the patients left out of the resamples never have a score")
    else:
        mean = float(np.nanmean(scored_R))
    corrected = percentile_interval(mean, scored_R, level, num_patients=num_patients)
    optimism = mean if isinstance(mean, Undefined) else defined[best] - mean
    if isinstance(corrected.low, Undefined):
        optimism = corrected.low
    return GridOptimism(best, defined[best], corrected, optimism, share, len(names))
