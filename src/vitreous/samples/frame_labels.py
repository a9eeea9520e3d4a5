"""From the labels of frames to the label of a clip, and how well neighbouring frames agree.

Axes: N frame, C class or label.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, assert_never

import numpy as np
import pandas as pd

from vitreous.core.label_sets import IntArray, Task, encode_label_sets, memberships
from vitreous.samples.selection import exclude

LENGTHS = (1, 3, 5, 7, 9, 11, 15, 21, 31)


@dataclass(frozen=True)
class FrameLabels:
    """How the labels of frames become that of a clip.

    Args:
        rule: ``centre``: that of the labelled frame; ``majority``: what more than half of the labelled frames among the
            `frames` around it say, on a tie what it says itself; ``unanimous``: clips whose frames differ are left out.
        frames: an odd number.
    """

    rule: Literal["centre", "majority", "unanimous"] = "centre"
    frames: int = 1


def label_clips(rows: pd.DataFrame, labels: FrameLabels, every: int, num_classes: int, task: Task) -> None:
    """Replace ``y`` of each live row by that of its clip; leave out, by rule, clips whose frames differ.

    Args:
        rows: ``video``, ``frame``, ``y``, ``rule``, ``detail``.
        every: distance of the numbers of neighbouring frames.
    """
    if labels.rule == "centre":
        return
    live = rows.loc[rows["rule"] == ""]
    around = _labels_around(live, labels.frames, every)
    match labels.rule:
        case "majority":
            voted = [_vote(own, others, num_classes, task) for own, others in zip(live["y"], around, strict=True)]
            rows.loc[live.index, "y"] = pd.Series(voted, index=live.index, dtype="Int64")
        case "unanimous":
            differs = pd.Series([len(set(others.tolist())) > 1 for others in around], index=live.index)
            detail = f"label_rule: unanimous over {labels.frames} frames"
            exclude(rows, differs.reindex(rows.index, fill_value=False), "labels differ", detail)
        case _:
            assert_never(labels.rule)


def count_agreement(rows: pd.DataFrame, every: int, num_classes: int, task: Task) -> pd.DataFrame:
    """How many clips of each length have frames that all have the same label.

    Args:
        rows: labelled frames: ``video``, ``frame``, ``y``; those of the test split must not be among them.

    Returns:
        a row for each odd length of which there is a clip: ``frames``; ``clips``, stretches of so many neighbouring
        frames that all have a label; ``agreeing``, those whose frames have the same labels, and ``share``; of several
        labels also ``share_<number>`` for each.
    """
    found = []
    for length in LENGTHS:
        around = [others for others in _labels_around(rows, length, every) if len(others) == length]
        if not around:
            break
        has_NLC = memberships(np.concatenate(around), num_classes, task).reshape(len(around), length, num_classes)
        same_NC = (has_NLC == has_NLC[:, :1]).all(axis=1)
        agreeing = int(same_NC.all(axis=1).sum())
        row = {"frames": length, "clips": len(around), "agreeing": agreeing, "share": agreeing / len(around)}
        if task == "multi_label":
            row |= {f"share_{label}": float(same_NC[:, label].mean()) for label in range(num_classes)}
        found.append(row)
    return pd.DataFrame(found, columns=None if found else ["frames", "clips", "agreeing", "share"])


def _labels_around(rows: pd.DataFrame, frames: int, every: int) -> list[IntArray]:
    """For each row the labels of the labelled frames among the `frames` around it."""
    at: Mapping[tuple[str, int], int] = {
        (video, frame): int(y) for video, frame, y in zip(rows["video"], rows["frame"], rows["y"], strict=True)
    }
    offsets = [(k - frames // 2) * every for k in range(frames)]
    return [
        np.array([at[key] for offset in offsets if (key := (video, frame + offset)) in at], dtype=np.int64)
        for video, frame in zip(rows["video"], rows["frame"], strict=True)
    ]


def _vote(own: int, around: IntArray, num_classes: int, task: Task) -> int:
    """What more than half say: of classes the most frequent one, of labels each by itself."""
    votes_C = memberships(around, num_classes, task).sum(axis=0)
    has_C = memberships(np.array([own]), num_classes, task)[0]
    if task == "multi_class":
        best = np.flatnonzero(votes_C == votes_C.max())
        return int(own) if own in best else int(best[0])
    doubled_C = 2 * votes_C
    present_C = np.where(doubled_C == len(around), has_C, doubled_C > len(around))
    return int(encode_label_sets(present_C[None])[0])
