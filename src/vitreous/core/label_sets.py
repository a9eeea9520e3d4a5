"""What a label says: one of several classes, or for each of several labels whether it is present.

The labels of one sample are one whole number either way, so that tables, seals, folds and fingerprints need not tell
the two apart: the class index, or the sum of 2^l over the labels l that are present.

Axes: N row, C class or label.
"""

from typing import Literal, assert_never

import numpy as np
import numpy.typing as npt

Task = Literal["multi_class", "multi_label"]
MAX_LABELS = 62  # bits of an int64, its sign and one to spare

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]


def encode_label_sets(present_NC: BoolArray) -> IntArray:
    """The number of each row's set of labels, shape (N,).

    Raises:
        ValueError: more labels than fit into a number.

    >>> encode_label_sets(np.array([[True, False, True], [False, False, False]])).tolist()
    [5, 0]
    """
    if present_NC.ndim != 2 or present_NC.shape[1] > MAX_LABELS:
        raise ValueError(f"label sets must be (rows, labels) with at most {MAX_LABELS} labels; got {present_NC.shape}")
    bits_C = np.left_shift(np.int64(1), np.arange(present_NC.shape[1], dtype=np.int64))
    numbers_N: IntArray = np.where(present_NC, bits_C, 0).sum(axis=1, dtype=np.int64)
    return numbers_N


def num_label_values(num_classes: int, task: Task) -> int:
    """How many numbers a row's label may be: C classes, or 2^C sets of labels."""
    match task:
        case "multi_class":
            return num_classes
        case "multi_label":
            return 1 << num_classes
    assert_never(task)


def memberships(y_N: npt.NDArray[np.integer], num_classes: int, task: Task) -> BoolArray:
    """Which classes or labels each row has, shape (N, C): one a row for classes, any number for labels.

    Raises:
        ValueError: a number that is no class or no set of labels, such as the -1 of a sealed row.

    >>> memberships(np.array([5, 0]), 3, "multi_label").tolist()
    [[True, False, True], [False, False, False]]
    """
    y_N = np.asarray(y_N, dtype=np.int64)
    limit = num_label_values(num_classes, task)
    if y_N.size and (y_N.min() < 0 or y_N.max() >= limit):
        raise ValueError(f"labels must lie in [0, {limit}); got values from {y_N.min()} to {y_N.max()}")
    classes_C = np.arange(num_classes, dtype=np.int64)
    if task == "multi_class":
        return np.asarray(y_N[:, None] == classes_C)
    return np.asarray((y_N[:, None] >> classes_C) & 1, dtype=np.bool_)


def name_label_set(y: int, classes: tuple[str, ...], task: Task) -> str:
    """``'healthy'`` of classes; of labels ``'C1 + C3'``, or ``'no label'``.

    >>> name_label_set(5, ("C1", "C2", "C3"), "multi_label")
    'C1 + C3'
    """
    present_C = memberships(np.array([y]), len(classes), task)[0]
    return " + ".join(name for name, is_present in zip(classes, present_C, strict=True) if is_present) or "no label"
