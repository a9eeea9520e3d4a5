"""Features with their labels and owners, and what must hold before a probe is trained on them.

Axes: N row (volume), D feature, P participant, C class.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from vitreous.core.errors import SampleError
from vitreous.core.streams import numpy_stream
from vitreous.recipes.class_weights import count_participants

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FeatureSet:
    """One row per volume.

    Args:
        features_ND: what a frozen encoder said about each volume.
        y_N: class indices.
        patient_id_N: whose the volume is.
        weight_N: 1 / (volumes of its participant), so that participants weigh the same.
    Raises:
        ValueError: the arrays do not fit together.
    """

    features_ND: npt.NDArray[np.float32]
    y_N: IntArray
    patient_id_N: npt.NDArray[np.str_]
    weight_N: FloatArray

    def __post_init__(self) -> None:
        if self.features_ND.ndim != 2:
            raise ValueError(f"features must have the axes (rows, features); got the shape {self.features_ND.shape}.")
        lengths = {"y": len(self.y_N), "patient_id": len(self.patient_id_N), "weight": len(self.weight_N)}
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
                "a label belongs to a participant."
            )
        return ids_P, y_P, participant_N.astype(np.int64)


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
    count_participants(train.per_participant()[1], num_classes)
    counts_C = np.bincount(val.per_participant()[1], minlength=num_classes)
    if empty := np.flatnonzero(counts_C == 0).tolist():
        raise SampleError(
            f"val: no participant of class {', '.join(map(str, empty))}, so its balanced accuracy, on which "
            "members are chosen, is undefined. Leave the class out of `classes` or change the split."
        )
    if shared := set(train.patient_id_N.tolist()) & set(val.patient_id_N.tolist()):
        raise SampleError(f"{len(shared)} participants lie in train and in val. Split by participant.")


def shuffled_labels(train: FeatureSet, seed: int) -> FeatureSet:
    """The same rows with the participants' labels permuted: a floor that only chance and leaks rise above.

    Whole participants change labels, so that the number of participants per class stays; the permutation
    is drawn from the stream (`seed`, "shuffled labels") over participants sorted by id.
    """
    _, y_P, participant_N = train.per_participant()
    return replace(train, y_N=numpy_stream(seed, "shuffled labels").permutation(y_P)[participant_N])


def _check_rows(split: str, rows: FeatureSet, num_classes: int) -> None:
    if len(rows.features_ND) == 0:
        raise SampleError(f"{split}: no rows. Check `split`, `where` and the quarantined samples.")
    if rows.features_ND.shape[1] == 0:
        raise ValueError(f"{split}: rows have no features.")
    low, high = int(rows.y_N.min()), int(rows.y_N.max())
    if low < 0 or high >= num_classes:
        raise SampleError(f"{split}: labels must lie in 0…{num_classes - 1}; got {low}…{high}. Check `classes`.")
    num_broken = int((~np.isfinite(rows.features_ND)).any(axis=1).sum())
    if num_broken:
        raise SampleError(
            f"{split}: {num_broken} of {len(rows.y_N)} rows have NaN or infinite features. "
            "Quarantine these samples or encode again with precision fp32."
        )
    if not (np.isfinite(rows.weight_N) & (rows.weight_N > 0)).all():
        raise ValueError(f"{split}: weights must be positive and finite.")
