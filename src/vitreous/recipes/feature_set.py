"""Features with their labels and owners, and what must hold before a probe is trained on them.

Axes: N row (volume or image), D feature, P participant, C class, U what is scored: participant or row, G group of rows.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from vitreous.core.errors import SampleError
from vitreous.core.label_sets import Task, memberships, num_label_values
from vitreous.core.predictions import Aggregate
from vitreous.core.streams import numpy_stream
from vitreous.features.token_store import TokenRows
from vitreous.recipes.class_weights import (
    ClassWeights,
    class_weight_vector,
    count_labels,
    count_participants,
    positive_weights,
)

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FeatureSet:
    """One row per volume.

    Args:
        features_ND: what a frozen encoder said about each volume.
        y_N: class indices, or numbers of sets of labels.
        patient_id_N: whose the volume is.
        weight_N: 1 / (volumes of its participant), so that participants weigh the same.
        aggregate: what scores and class counts go by: participants, or with ``none`` rows, of which those of one
            participant may then differ in their labels.
        task: whether a row has one class, or any number of labels.
        tokens: of the rows, for recipes that read them in place of the features.
    Raises:
        ValueError: the arrays do not fit together.
    """

    features_ND: npt.NDArray[np.float32]
    y_N: IntArray
    patient_id_N: npt.NDArray[np.str_]
    weight_N: FloatArray
    aggregate: Aggregate = "mean_probability"
    task: Task = "multi_class"
    tokens: TokenRows | None = None

    def __post_init__(self) -> None:
        if self.features_ND.ndim != 2:
            raise ValueError(f"features must have the axes (rows, features); got the shape {self.features_ND.shape}.")
        lengths = {"y": len(self.y_N), "patient_id": len(self.patient_id_N), "weight": len(self.weight_N)}
        if self.tokens is not None:
            lengths["tokens"] = len(self.tokens)
        if wrong := {name: length for name, length in lengths.items() if length != len(self.features_ND)}:
            raise ValueError(f"features have {len(self.features_ND)} rows, but {wrong}.")

    def per_participant(self) -> tuple[npt.NDArray[np.str_], IntArray, IntArray]:
        """Participants sorted by id, the class of each, and each row's index into them.

        Raises:
            SampleError: the volumes of one participant carry different labels.
        """
        ids_P, first_P, participant_N = np.unique(self.patient_id_N, return_index=True, return_inverse=True)
        y_P = np.asarray(self.y_N, dtype=np.int64)[first_P]
        differ_N = np.asarray(y_P[participant_N] != self.y_N)
        if differ_N.any():
            raise SampleError(
                f"volumes of {len(np.unique(participant_N[differ_N]))} participants carry different labels; "
                "a label belongs to a participant, unless rows are scored by themselves (data.aggregate: none)."
            )
        return ids_P, y_P, participant_N.astype(np.int64)

    def scored(self) -> tuple[IntArray, IntArray]:
        """The class of all that is scored, participants sorted by id or the rows, and each row's index into them.

        Raises:
            SampleError: participants are scored, and the volumes of one carry different labels.
        """
        if self.aggregate == "none":
            return np.asarray(self.y_N, dtype=np.int64), np.arange(len(self.y_N))
        _, y_P, participant_N = self.per_participant()
        return y_P, participant_N

    def per_participant_and_class(self) -> tuple[IntArray, IntArray]:
        """The class (or set of labels) of each group of rows of one participant and class, and each row's index there.

        Groups are sorted by participant, then class; where nobody's labels differ, they are the participants.
        """
        participant_N = np.unique(self.patient_id_N, return_inverse=True)[1]
        pairs_G2, group_N = np.unique(np.stack([participant_N, self.y_N], axis=1), axis=0, return_inverse=True)
        return pairs_G2[:, 1].astype(np.int64), group_N.astype(np.int64)


def check_feature_sets(train: FeatureSet, val: FeatureSet, num_classes: int) -> None:
    """Refuse what a probe could only be trained on by guessing.

    Raises:
        SampleError: no rows; labels outside [0, C); a class without a participant in train or in val; one
            participant with two labels or in both splits; features that are not finite.
        ValueError: fewer than two classes; train and val differ in width; weights that are not positive.
    """
    if num_classes < 2:
        raise ValueError(f"a classifier needs at least 2 classes; got num_classes={num_classes}.")
    if train.features_ND.shape[1] != val.features_ND.shape[1]:
        raise ValueError(
            f"train has {train.features_ND.shape[1]} features and val {val.features_ND.shape[1]}; "
            "both must come from one encoder, layer and pooling."
        )
    for split, rows in (("train", train), ("val", val)):
        _check_rows(split, rows, num_classes)
    if train.task != val.task:
        raise ValueError(f"train has labels of the kind {train.task} and val {val.task}.")
    if train.task == "multi_label":
        for split, rows in (("train", train), ("val", val)):
            count_labels(split, memberships(rows.scored()[0], num_classes, rows.task))
    else:
        _check_classes(train, val, num_classes)
    if shared := set(train.patient_id_N.tolist()) & set(val.patient_id_N.tolist()):
        raise SampleError(f"{len(shared)} participants lie in train and in val. Split by participant.")


def _check_classes(train: FeatureSet, val: FeatureSet, num_classes: int) -> None:
    count_participants(train.scored()[0], num_classes)
    counts_C = np.bincount(val.scored()[0], minlength=num_classes)
    if empty := np.flatnonzero(counts_C == 0).tolist():
        raise SampleError(
            f"val: no participant of class {', '.join(map(str, empty))}, so its balanced accuracy, on which "
            "members are chosen, is undefined. Leave the class out of `classes` or change the split."
        )


def class_weights_of(rows: FeatureSet, policy: ClassWeights, num_classes: int) -> FloatArray:
    """Weights of classes in the loss, or of labels the weights of rows that have them, counted over what is scored."""
    y_U = rows.scored()[0]
    if rows.task == "multi_class":
        return class_weight_vector(policy, y_U, num_classes)
    return positive_weights(policy, memberships(y_U, num_classes, rows.task))


def shuffled_labels(train: FeatureSet, seed: int) -> FeatureSet:
    """The same rows with the participants' labels permuted: a floor that only chance and leaks rise above.

    Whole participants change labels, so that the number of participants per class stays; the permutation
    is drawn from the stream (`seed`, "shuffled labels") over participants sorted by id. Where rows are scored by
    themselves, they change labels one by one.
    """
    y_U, unit_N = train.scored()
    return replace(train, y_N=numpy_stream(seed, "shuffled labels").permutation(y_U)[unit_N])


def _check_rows(split: str, rows: FeatureSet, num_classes: int) -> None:
    if len(rows.features_ND) == 0:
        raise SampleError(f"{split}: no rows. Check `split`, `where` and the quarantined samples.")
    if rows.features_ND.shape[1] == 0:
        raise ValueError(f"{split}: rows have no features.")
    low, high = int(rows.y_N.min()), int(rows.y_N.max())
    limit = num_label_values(num_classes, rows.task)
    if low < 0 or high >= limit:
        raise SampleError(f"{split}: labels must lie in 0…{limit - 1}; got {low}…{high}. Check `classes`.")
    num_broken = int((~np.isfinite(rows.features_ND)).any(axis=1).sum())
    if num_broken:
        raise SampleError(
            f"{split}: {num_broken} of {len(rows.y_N)} rows have NaN or infinite features. "
            "Quarantine these samples or encode again with precision fp32."
        )
    if not (np.isfinite(rows.weight_N) & (rows.weight_N > 0)).all():
        raise ValueError(f"{split}: weights must be positive and finite.")
