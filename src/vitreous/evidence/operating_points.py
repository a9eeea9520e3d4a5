"""A threshold chosen on val and frozen, and what it gives on test.

Axes: N row, R resample, T candidate threshold.

A row is called positive where the probability of the class is at least the threshold. Sensitivity is the share of
positives called positive, specificity that of the rest called negative. Each seed has its own threshold, since each is
another model; values are means over seeds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, assert_never

import numpy as np
import numpy.typing as npt

from vitreous.core.predictions import Predictions
from vitreous.core.undefined import Undefined
from vitreous.evidence.calibration import mean_or_undefined
from vitreous.evidence.intervals import Interval, check_same_rows, percentile_interval
from vitreous.evidence.one_vs_rest import one_vs_rest
from vitreous.evidence.scores import FloatArray

Rule = Literal["youden", "at_specificity", "at_sensitivity"]
_SAME = 1e-12


@dataclass(frozen=True)
class Threshold:
    """Chosen on val; never on the rows it is applied to.

    Args:
        value: probability from which a row is called positive.
        rule, target: how it was chosen; `target` is None for ``youden``.
        val_sensitivity, val_specificity: what it gave there; optimistic.
    """

    value: float
    positive: str
    rule: Rule
    target: float | None
    val_sensitivity: float
    val_specificity: float


@dataclass(frozen=True)
class OperatingPoint:
    """What frozen thresholds give on other patients, mean over seeds; each in [0, 1].

    Args:
        thresholds: of each seed.
        ppv: share of those called positive who are; undefined where nobody is called.
        npv: share of those called negative who are; undefined where everybody is called.
        called: share of rows called positive.
    """

    thresholds: tuple[Threshold, ...]
    sensitivity: Interval
    specificity: Interval
    ppv: Interval
    npv: Interval
    called: Interval


def choose_threshold(val: Predictions, positive: str, rule: Rule, target: float | None = None) -> Threshold | Undefined:
    """The threshold, among the val probabilities of the class, that serves a rule best.

    - ``youden``: highest sensitivity + specificity; on a tie the one of higher sensitivity.
    - ``at_specificity``: highest sensitivity where specificity is at least `target`; on a tie the more specific one.
    - ``at_sensitivity``: highest specificity where sensitivity is at least `target`; on a tie the more sensitive one.

    Raises:
        ValueError: no such class, or a target that is missing, needless or outside (0, 1].
    Source: Youden (1950).
    """
    if rule == "youden":
        if target is not None:
            raise ValueError(f"the rule youden has no target; got {target}")
    elif target is None or not 0 < target <= 1:
        raise ValueError(f"the rule {rule} needs a target in (0, 1]; got {target}")
    is_positive_N, prob_N = one_vs_rest(val, positive)
    num_positive, num_negative = int(is_positive_N.sum()), int((~is_positive_N).sum())
    if not num_positive or not num_negative:
        return Undefined(
            f"a threshold needs val rows of {positive!r} and others; got {num_positive} and {num_negative}"
        )
    threshold_T = np.unique(prob_N)
    order = np.argsort(prob_N, kind="stable")
    first_T = np.searchsorted(prob_N[order], threshold_T, side="left")  # rows below each threshold
    positives_below = np.concatenate([[0], np.cumsum(is_positive_N[order])])[first_T]
    sensitivity_T = (num_positive - positives_below) / num_positive
    specificity_T = (first_T - positives_below) / num_negative
    match rule:
        case "youden":
            wanted_T, first, then = np.ones(len(threshold_T), dtype=bool), sensitivity_T + specificity_T, sensitivity_T
        case "at_specificity":
            wanted_T, first, then = specificity_T >= (target or 0) - _SAME, sensitivity_T, specificity_T
        case "at_sensitivity":
            wanted_T, first, then = sensitivity_T >= (target or 0) - _SAME, specificity_T, sensitivity_T
        case _:
            assert_never(rule)
    if not wanted_T.any():
        return Undefined(f"no val threshold reaches a specificity of {target:g} but one that calls nobody")
    first = np.where(wanted_T, np.round(first, 12), -np.inf)
    best = max(np.flatnonzero(first == first.max()).tolist(), key=lambda t: float(then[t]))
    return Threshold(
        float(threshold_T[best]), positive, rule, target, float(sensitivity_T[best]), float(specificity_T[best])
    )


def apply_thresholds(
    test_by_seed: Sequence[Predictions],
    thresholds: Sequence[Threshold],
    weights_RN: npt.NDArray[np.generic],
    level: float = 0.95,
) -> OperatingPoint:
    """What the thresholds give on test, with percentile intervals over patients.

    Args:
        test_by_seed: on the same rows in the same order.
        thresholds: one per seed, in the same order; all of one class and rule.
        weights_RN: of :func:`~vitreous.evidence.intervals.resample_weights`, for these rows.
    Raises:
        ValueError: seeds and thresholds do not match, or rows differ.
    """
    if len(test_by_seed) != len(thresholds):
        raise ValueError(f"each seed has its own threshold; got {len(thresholds)} for {len(test_by_seed)} seeds")
    check_same_rows({f"seed {k}": one for k, one in enumerate(test_by_seed)})
    if len({(one.positive, one.rule, one.target) for one in thresholds}) > 1:
        raise ValueError("the thresholds differ in class, rule or target; one operating point has one of each")
    positive = thresholds[0].positive
    called = [
        one_vs_rest(one, positive)[1] >= threshold.value
        for one, threshold in zip(test_by_seed, thresholds, strict=True)
    ]
    is_positive_N, _ = one_vs_rest(test_by_seed[0], positive)
    drawn_RN = np.asarray(weights_RN, dtype=np.float64)
    everyone_N = np.ones(len(is_positive_N), dtype=bool)
    num_patients = len(np.unique(test_by_seed[0].patient_id_N))

    def share(
        hits: Callable[[npt.NDArray[np.bool_]], npt.NDArray[np.bool_]],
        among: Callable[[npt.NDArray[np.bool_]], npt.NDArray[np.bool_]],
        reason: str,
    ) -> Interval:
        values: list[float | Undefined] = []
        resampled: list[FloatArray] = []
        for called_N in called:
            base_N = among(called_N)
            hit_N = hits(called_N) & base_N
            values.append(float(hit_N.sum() / base_N.sum()) if base_N.any() else Undefined(reason))
            total_R, hit_R = drawn_RN @ base_N, drawn_RN @ hit_N
            resampled.append(np.divide(hit_R, total_R, out=np.full(len(total_R), np.nan), where=total_R > 0))
        mean_R = np.mean(resampled, axis=0)
        return percentile_interval(mean_or_undefined(values), mean_R, level, num_patients=num_patients)

    return OperatingPoint(
        tuple(thresholds),
        share(lambda called_N: called_N, lambda _: is_positive_N, f"there are no rows of {positive!r}"),
        share(lambda called_N: ~called_N, lambda _: ~is_positive_N, f"all rows are of {positive!r}"),
        share(lambda _: is_positive_N, lambda called_N: called_N, "nobody is called positive"),
        share(lambda _: ~is_positive_N, lambda called_N: ~called_N, "everybody is called positive"),
        share(lambda called_N: called_N, lambda _: everyone_N, "there are no rows"),
    )
