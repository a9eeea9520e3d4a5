"""Rows drawn so that rare classes, or rare labels, are seen as often as frequent ones.

Axes: N row of the set, M row drawn, G group, C label, S side of a label.
"""

import numpy as np
import numpy.typing as npt

from vitreous.core.label_sets import memberships
from vitreous.core.streams import numpy_stream
from vitreous.recipes.feature_set import FeatureSet

IntArray = npt.NDArray[np.int64]


def draw_balanced(labels: FeatureSet, num_classes: int, rng: np.random.Generator) -> IntArray:
    """As many rows as the set has, drawn with replacement, shape (M,).

    Of classes: a class, each as likely; a participant of the class, each as likely; a row that the participant has of
    the class, each as likely. Of labels: a label, each as likely; with it or without it, each as likely; then a
    participant and a row of that side.
    """
    num_rows = len(labels.y_N)
    y_G, group_N = labels.per_participant_and_class()
    if labels.task == "multi_class":
        class_M = rng.integers(len(np.unique(y_G)), size=num_rows)
        group_M = pick_members(np.unique(y_G, return_inverse=True)[1], class_M, rng)
        return pick_members(group_N, group_M, rng)
    has_NC = memberships(labels.y_N, num_classes, labels.task)
    participant_N = np.unique(labels.patient_id_N, return_inverse=True)[1]
    side_M = rng.integers(2 * num_classes, size=num_rows)
    drawn_M = np.empty(num_rows, dtype=np.int64)
    for side in range(2 * num_classes):
        wanted = np.flatnonzero(side_M == side)
        rows = np.flatnonzero(has_NC[:, side // 2] == bool(side % 2))
        if len(rows) == 0:
            raise ValueError(f"no row is on side {side % 2} of label {side // 2}")
        owner = np.unique(participant_N[rows], return_inverse=True)[1]
        owner_M = rng.integers(owner.max() + 1, size=len(wanted))
        drawn_M[wanted] = rows[pick_members(owner, owner_M, rng)]
    return drawn_M


def draw_balanced_order(labels: FeatureSet, num_classes: int, seed: int, epoch: int) -> IntArray:
    """The rows of an epoch of heads on features, from the stream (`seed`, "probe", "balanced", `epoch`)."""
    return draw_balanced(labels, num_classes, numpy_stream(seed, "probe", "balanced", epoch))


def pick_members(group_N: IntArray, wanted_M: IntArray, rng: np.random.Generator) -> IntArray:
    """For each wanted group, one of its members, each as likely."""
    members_N = np.argsort(group_N, kind="stable")
    count_G = np.bincount(group_N)
    start_G = np.cumsum(count_G) - count_G
    # at most the last member: the largest number below 1, times many, may round up
    place_M = np.minimum((rng.random(len(wanted_M)) * count_G[wanted_M]).astype(np.int64), count_G[wanted_M] - 1)
    picked_M: IntArray = members_N[start_G[wanted_M] + place_M]
    return picked_M
