"""Metrics within the groups of a column (site, device, sex, …), small cells left out.

Axes: N row, R resample.

Groups are described, not compared: an interval of one group that does not meet that of another is no test, and with
many groups some will stand out by chance. What a small group scores is neither reliable nor private, so it is never
computed: the cell says why it is empty, and holds no number.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vitreous.core.predictions import Predictions
from vitreous.core.undefined import Undefined
from vitreous.evidence.intervals import Interval, bootstrap_intervals, check_same_rows
from vitreous.evidence.task_scores import TASK_SCORES, metric_names_of

MIN_GROUP_PATIENTS = 20
MIN_CLASS_PATIENTS = 5
NOT_STATED = "(not stated)"


@dataclass(frozen=True)
class Subgroup:
    """One group.

    Args:
        num_patients: undefined where the group is too small to be shown.
        metrics: by name; a metric is undefined where too few patients stand behind it.
    """

    name: str
    num_patients: int | Undefined
    metrics: dict[str, Interval]


def subgroup_intervals(
    predictions_by_seed: Sequence[Predictions],
    group_N: npt.NDArray[np.str_],
    weights_RN: npt.NDArray[np.generic],
    names: Collection[str] | None = None,
    *,
    level: float = 0.95,
    min_patients: int = MIN_GROUP_PATIENTS,
    min_class_patients: int = MIN_CLASS_PATIENTS,
) -> list[Subgroup]:
    """Every metric, or the named ones, within each group, groups sorted by name; all from the cohort's own resamples.

    A group below `min_patients` has no number at all, not even its size. Within a larger one,

    - means over classes need `min_class_patients` of every class that occurs in the cohort,
    - recall, precision and F1 of a class need as many of it, its AUROC as many of the rest too.

    One group left out alone can be had by subtraction from the whole: show at least two, or join it to another.

    Args:
        predictions_by_seed: on the same rows in the same order.
        group_N: of each row; rows with an empty name form the group "(not stated)".
        weights_RN: of :func:`~vitreous.evidence.intervals.resample_weights`, for these rows.
    Raises:
        ValueError: rows that differ, as many groups as there are not rows, an unknown metric, or a bound below 1.
    """
    check_same_rows({f"seed {k}": one for k, one in enumerate(predictions_by_seed)})
    first = predictions_by_seed[0]
    if len(group_N) != len(first.y_true_N):
        raise ValueError(f"each row has a group; got {len(group_N)} for {len(first.y_true_N)} rows")
    if min_patients < 1 or min_class_patients < 1:
        raise ValueError(f"cells need at least 1 patient; got bounds {min_patients} and {min_class_patients}")
    known = metric_names_of(first)
    wanted = list(known if names is None else names)
    if unknown := [name for name in wanted if name not in known]:
        raise ValueError(f"no such metric: {unknown}; known are {list(known)}")
    named_N = np.array([str(name).strip() or NOT_STATED for name in group_N.tolist()], dtype=np.str_)
    occurring = np.flatnonzero(first.targets_NC.any(axis=0)).tolist()
    groups = []
    for name in np.unique(named_N).tolist():
        members_N = named_N == name
        by_seed = [one.select(members_N) for one in predictions_by_seed]
        num_patients = len(np.unique(by_seed[0].patient_id_N))
        if num_patients < min_patients:
            reason = Undefined(f"fewer than {min_patients} patients")
            hidden = {metric: Interval(reason, reason, reason, len(weights_RN), 0) for metric in wanted}
            groups.append(Subgroup(name, reason, hidden))
            continue
        missing = {metric: _too_few(metric, by_seed[0], occurring, min_class_patients) for metric in wanted}
        shown = [metric for metric in wanted if missing[metric] is None]
        found = bootstrap_intervals(by_seed, weights_RN[:, members_N], level, shown)
        cells = {}
        for metric in wanted:
            reason_or_none = missing[metric]
            cells[metric] = (
                found[metric]
                if reason_or_none is None
                else Interval(reason_or_none, reason_or_none, reason_or_none, len(weights_RN), 0)
            )
        groups.append(Subgroup(name, num_patients, cells))
    return groups


def _too_few(metric: str, one: Predictions, occurring: Sequence[int], least: int) -> Undefined | None:
    """Why a cell is left out; None where it is not."""

    def patients(rows_N: npt.NDArray[np.bool_]) -> int:
        return len(np.unique(one.patient_id_N[rows_N]))

    if metric in ("accuracy", "exact_match"):
        return None
    scores = TASK_SCORES[one.task]
    targets_NC = one.targets_NC
    if metric in scores.metrics:
        needed, needs_rest = occurring, one.task == "multi_label"
    else:
        kind, c = next(
            (kind, c)
            for kind in scores.class_metrics
            for c, name in enumerate(one.classes)
            if metric == f"{kind}_{name}"
        )
        needed, needs_rest = [c], kind == "auroc" or one.task == "multi_label"
    for c in needed if needs_rest else ():
        if patients(~targets_NC[:, c]) < least:
            other = "a class other than" if scores.noun == "class" else "rows without the label"
            return Undefined(f"fewer than {least} patients of {other} {one.classes[c]!r}")
    few = [one.classes[c] for c in needed if patients(targets_NC[:, c]) < least]
    return Undefined(f"fewer than {least} patients of {', '.join(map(repr, few))}") if few else None
