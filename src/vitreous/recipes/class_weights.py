"""Weights of the classes in the loss, counted over participants; over rows only where these are scored by themselves.

Axes: P participant, C class.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from vitreous.core.errors import SampleError

ClassWeights = Literal["none", "balanced"] | tuple[float, ...]


def class_weight_vector(
    policy: Literal["none", "balanced"] | Sequence[float],
    y_of_train_patients: npt.NDArray[np.int64],
    num_classes: int,
) -> npt.NDArray[np.float64]:
    """One positive factor per class, shape (C,).

    Args:
        policy: ``none`` is 1 for each class; ``balanced`` is participants / (C × participants of the class),
            so that the classes weigh the same together and a participant weighs 1 on average; a sequence
            is taken as it stands.
        y_of_train_patients: one class index per participant of the training split, or per row where rows are scored by
            themselves.
    Raises:
        SampleError: a class has no training participant.
        ValueError: an unknown policy, a wrong number of weights, or a weight that is not positive.
    Source: King and Zeng (2001), as scikit-learn's ``class_weight="balanced"``.

    >>> class_weight_vector("balanced", np.array([0, 0, 0, 1]), 2).tolist()
    [0.6666666666666666, 2.0]
    """
    counts_C = count_participants(y_of_train_patients, num_classes)
    if isinstance(policy, str):
        if policy == "none":
            return np.ones(num_classes)
        if policy == "balanced":
            balanced_C: npt.NDArray[np.float64] = counts_C.sum() / (num_classes * counts_C.astype(np.float64))
            return balanced_C
        raise ValueError(f"class_weights must be 'none', 'balanced' or {num_classes} numbers; got {policy!r}.")
    given_C = np.asarray(policy, dtype=np.float64)
    if given_C.shape != (num_classes,):
        raise ValueError(f"class_weights must hold one number for each of {num_classes} classes; got {list(policy)}.")
    if not (np.isfinite(given_C) & (given_C > 0)).all():
        raise ValueError(
            f"class_weights must be positive and finite; got {list(policy)}. "
            "Leave a class out of `classes` rather than giving it the weight 0."
        )
    return given_C


def count_participants(y_of_train_patients: npt.NDArray[np.int64], num_classes: int) -> npt.NDArray[np.int64]:
    """Training participants per class, shape (C,), each at least 1.

    Raises:
        SampleError: a class has none, or a label lies outside [0, C).
    """
    y = np.asarray(y_of_train_patients)
    if len(y) and (y.min() < 0 or y.max() >= num_classes):
        raise SampleError(
            f"train: labels must lie in 0…{num_classes - 1}; got {int(y.min())}…{int(y.max())}. Check `classes`."
        )
    counts_C = np.bincount(y, minlength=num_classes).astype(np.int64)
    if empty := np.flatnonzero(counts_C == 0).tolist():
        raise SampleError(
            f"train: no participant of class {', '.join(map(str, empty))}; participants per class are "
            f"{counts_C.tolist()}. Leave the class out of `classes` or change the split."
        )
    return counts_C


def positive_weights(
    policy: Literal["none", "balanced"] | Sequence[float], present_UC: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """How much more a row with the label counts in its loss than one without, shape (C,): torch's ``pos_weight``.

    Args:
        policy: ``none`` is 1 for each label; ``balanced`` is rows without / rows with, so that both weigh the same
            together; a sequence is taken as it stands.
        present_UC: labels of each participant of the training split, or of each row where rows are scored by
            themselves.
    Raises:
        SampleError: a label that nobody, or everybody, has.
        ValueError: an unknown policy, a wrong number of weights, or a weight that is not positive.

    >>> positive_weights("balanced", np.array([[True], [False], [False], [False]])).tolist()
    [3.0]
    """
    positive_C = count_labels("train", present_UC).astype(np.float64)
    if policy == "balanced":
        return (len(present_UC) - positive_C) / positive_C
    # the other policies, and what is wrong with them, are those of classes
    return class_weight_vector(policy, np.arange(present_UC.shape[1]), present_UC.shape[1])


def count_labels(split: str, present_UC: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Participants with each label, shape (C,).

    Raises:
        SampleError: a label that nobody, or everybody, of the split has.
    """
    counts_C: npt.NDArray[np.int64] = present_UC.sum(axis=0).astype(np.int64)
    if constant := np.flatnonzero((counts_C == 0) | (counts_C == len(present_UC))).tolist():
        raise SampleError(
            f"{split}: nobody or everybody has the label {', '.join(map(str, constant))}; participants with each label "
            f"are {counts_C.tolist()} of {len(present_UC)}. Leave the label out or change the split."
        )
    return counts_C
