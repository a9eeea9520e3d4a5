"""Groups of a cohort by a column of its samples: a patient scanned on two devices is scored on each by itself.

Axes: N sample, M row as scored within its group, R resample.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from vitreous.core.predictions import Aggregate, Predictions, join_predictions
from vitreous.core.undefined import Undefined
from vitreous.evidence.subgroups import MIN_GROUP_PATIENTS, NOT_STATED, Subgroup, subgroup_intervals

MAX_GROUPS = 50  # more values as text name rows rather than groups
NUM_PARTS = 3  # of a column of numbers
_FEW_NUMBERS = 10  # up to so many different numbers stay groups of their own


@dataclass(frozen=True)
class ColumnGroups:
    """One column.

    Args:
        groups: sorted by name; undefined where the column makes no groups.
        joined: names of groups that were put together, so that the one too small to be shown cannot be had by
            subtraction.
    """

    column: str
    groups: tuple[Subgroup, ...] | Undefined
    joined: tuple[str, ...] = ()


def group_numbers(values: Sequence[str]) -> list[str]:
    """Names of groups as they are; a column of more than ten different numbers in three parts of equal size.

    >>> group_numbers(["a", "b"])
    ['a', 'b']
    """
    stated = [value for value in values if value.strip()]
    try:
        numbers = np.array([float(value) for value in stated])
    except ValueError:
        return list(values)
    if len(np.unique(numbers)) <= _FEW_NUMBERS or not np.isfinite(numbers).all():
        return list(values)
    edges = np.unique(np.quantile(numbers, np.arange(1, NUM_PARTS) / NUM_PARTS)).tolist()
    names = [f"below {edges[0]:g}"]
    names += [f"{low:g} to below {high:g}" for low, high in pairwise(edges)]
    names += [f"{edges[-1]:g} and above"]
    return [
        names[int(np.searchsorted(edges, float(value), side="right"))] if value.strip() else value for value in values
    ]


def column_groups(
    predictions_by_seed: Sequence[Predictions],
    column: str,
    value_of: Mapping[str, str],
    weights_of: Mapping[str, npt.NDArray[np.generic]],
    names: Sequence[str],
    *,
    aggregate: Aggregate,
    level: float = 0.95,
) -> ColumnGroups:
    """Metrics within each group of a column, small ones hidden (:func:`subgroup_intervals`).

    Args:
        predictions_by_seed: samples as predicted, on the same rows in the same order.
        value_of: sample id → its value; a sample without one is in the group "(not stated)".
        weights_of: patient id → how often he was drawn (R).
        names: of the metrics.
    """
    first = predictions_by_seed[0]
    values = group_numbers([value_of.get(name, "") for name in first.sample_id_N.tolist()])
    group_N = np.array([value.strip() or NOT_STATED for value in values], dtype=np.str_)
    if len(np.unique(group_N)) > MAX_GROUPS:
        return ColumnGroups(column, Undefined(f"{len(np.unique(group_N))} values: more than {MAX_GROUPS}"))
    group_N, joined = _join_lone(group_N, first.patient_id_N)
    scored, group_M = [], np.array([], dtype=np.str_)
    for one in predictions_by_seed:
        parts = [(name, one.select(group_N == name).scored(aggregate)) for name in np.unique(group_N).tolist()]
        scored.append(join_predictions([part for _, part in parts]))
        group_M = np.concatenate([np.full(len(part.y_true_N), name) for name, part in parts])
    weights_RM = np.stack([weights_of[patient] for patient in scored[0].patient_id_N.tolist()], axis=1)
    groups = subgroup_intervals(scored, group_M, weights_RM, names, level=level)
    return ColumnGroups(column, tuple(groups), joined)


def _join_lone(
    group_N: npt.NDArray[np.str_], patient_id_N: npt.NDArray[np.str_]
) -> tuple[npt.NDArray[np.str_], tuple[str, ...]]:
    """With one group too small to be shown, the smallest other one joins it."""
    sizes = {name: len(np.unique(patient_id_N[group_N == name])) for name in np.unique(group_N).tolist()}
    small = [name for name, size in sizes.items() if size < MIN_GROUP_PATIENTS]
    if len(small) != 1 or len(sizes) < 3:
        return group_N, ()
    other = min((name for name in sizes if name != small[0]), key=lambda name: (sizes[name], name))
    together = " or ".join(sorted([small[0], other]))
    named = [together if name in (small[0], other) else name for name in group_N.tolist()]
    return np.array(named, dtype=np.str_), (together,)
