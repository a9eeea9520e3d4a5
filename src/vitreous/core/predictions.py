"""Predictions: the only bridge from torch to statistics, kept as Parquet.

Axes: N row (sample or patient), C class or label.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, assert_never

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitreous.core.errors import UserError
from vitreous.core.files import replacing
from vitreous.core.label_sets import BoolArray, Task, encode_label_sets, memberships

SCHEMA_VERSION = 1

# how rows become what a metric counts: one row per patient, or every sample for itself
Aggregate = Literal["mean_probability", "none"]
DEFAULT_THRESHOLD = 0.5


@dataclass(frozen=True)
class Predictions:
    """One row per sample, or one per patient where `is_per_patient`.

    Args:
        sample_id_N: unique names; for patient rows the patient's id.
        patient_id_N: whose the row is.
        y_true_N: class indices in [0, C); with `task` multi_label the number of the row's set of labels
            (:mod:`vitreous.core.label_sets`).
        scores_NC: logits; for patient rows probabilities, which sum to 1 over classes; of labels each is in [0, 1].
        classes: names of the classes, or of the labels, in index order.
        task: whether a row has one class, or any number of labels.
        thresholds_NC: of labels, the probability from which a label is said to be present, chosen on val; 0.5 if left
            out. One row each, since folds choose their own.
    """

    sample_id_N: npt.NDArray[np.str_]
    patient_id_N: npt.NDArray[np.str_]
    y_true_N: npt.NDArray[np.int64]
    scores_NC: npt.NDArray[np.float64]
    classes: tuple[str, ...]
    is_per_patient: bool = False
    task: Task = "multi_class"
    thresholds_NC: npt.NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        rows = len(self.sample_id_N)
        if self.scores_NC.shape != (rows, len(self.classes)):
            raise ValueError(f"scores must be {(rows, len(self.classes))}; got {self.scores_NC.shape}")
        if self.thresholds_NC is not None and self.task == "multi_class":
            raise ValueError("thresholds are for labels; the class of the highest score needs none")
        if self.thresholds_NC is not None and self.thresholds_NC.shape != self.scores_NC.shape:
            raise ValueError(f"thresholds must be {self.scores_NC.shape}; got {self.thresholds_NC.shape}")
        if len(self.patient_id_N) != rows or len(self.y_true_N) != rows:
            raise ValueError("sample_id, patient_id and y_true differ in length")

    @property
    def y_pred_N(self) -> npt.NDArray[np.int64]:
        """The class of the highest score, the lowest index on a tie; or the number of the predicted set of labels."""
        if self.task == "multi_label":
            return encode_label_sets(self.decisions_NC)
        best_N: npt.NDArray[np.int64] = np.argmax(self.scores_NC, axis=1).astype(np.int64)
        return best_N

    @property
    def targets_NC(self) -> BoolArray:
        """Which classes or labels each row has."""
        return memberships(self.y_true_N, len(self.classes), self.task)

    @property
    def decisions_NC(self) -> BoolArray:
        """Which class each row is taken for, or which of its labels reach their threshold."""
        match self.task:
            case "multi_class":
                return memberships(self.y_pred_N, len(self.classes), self.task)
            case "multi_label":
                thresholds_NC = DEFAULT_THRESHOLD if self.thresholds_NC is None else self.thresholds_NC
                return np.asarray(self.probs_NC >= thresholds_NC)
        assert_never(self.task)

    @property
    def probs_NC(self) -> npt.NDArray[np.float64]:
        """Softmax (classes) or logistic function (labels) of the logits, or the stored patient probabilities."""
        if self.is_per_patient:
            return self.scores_NC
        if self.task == "multi_label":
            small_NC = np.exp(-np.abs(self.scores_NC))  # never overflows, and keeps small probabilities apart
            probs_NC: npt.NDArray[np.float64] = np.where(self.scores_NC >= 0, 1.0, small_NC) / (1.0 + small_NC)
            return probs_NC
        shifted = np.exp(self.scores_NC - self.scores_NC.max(axis=1, keepdims=True))
        result: npt.NDArray[np.float64] = shifted / shifted.sum(axis=1, keepdims=True)
        return result

    def with_thresholds(self, thresholds_C: Sequence[float]) -> "Predictions":
        """The same predictions of labels, each present from its threshold on."""
        return replace(self, thresholds_NC=np.tile(np.asarray(thresholds_C, np.float64), (len(self.scores_NC), 1)))

    def select(self, rows: npt.NDArray[np.generic]) -> "Predictions":
        """The rows at these positions, or where a mask is true."""
        return replace(
            self,
            sample_id_N=self.sample_id_N[rows],
            patient_id_N=self.patient_id_N[rows],
            y_true_N=self.y_true_N[rows],
            scores_NC=self.scores_NC[rows],
            thresholds_NC=None if self.thresholds_NC is None else self.thresholds_NC[rows],
        )

    def scored(self, aggregate: Aggregate) -> "Predictions":
        """The rows that metrics count: those of :meth:`per_patient`, or with ``none`` the samples as they are.

        Raises:
            ValueError: the samples of one patient carry different labels; or, with ``none``, the rows are patients
                already.
        """
        match aggregate:
            case "mean_probability":
                return self.per_patient()
            case "none":
                if self.is_per_patient:
                    raise ValueError("the rows are means over patients; their samples cannot be told any more")
                return self
        assert_never(aggregate)

    def per_patient(self) -> "Predictions":
        """Mean probability over each patient's samples, patients sorted by id.

        Raises:
            ValueError: the samples of one patient carry different labels.
        """
        patients, first, inverse = np.unique(self.patient_id_N, return_index=True, return_inverse=True)
        if not np.array_equal(self.y_true_N, self.y_true_N[first][inverse]):
            raise ValueError(
                "samples of one patient carry different labels, so the patient has none; score the samples themselves "
                "(data.aggregate: none)"
            )
        counts = np.bincount(inverse, minlength=len(patients)).astype(np.float64)
        # summed as differences to the patient's first sample: equal samples then give exactly their value, and a
        # constant score stays constant instead of being ranked by rounding
        first_PC = self.probs_NC[first]
        difference_PC = np.zeros_like(first_PC)
        np.add.at(difference_PC, inverse, self.probs_NC - first_PC[inverse])
        probs_PC = first_PC + difference_PC / counts[:, None]
        return replace(
            self.select(first), sample_id_N=patients, patient_id_N=patients, scores_NC=probs_PC, is_per_patient=True
        )

    def write(self, path: Path) -> None:
        """Write Parquet whole or not at all; equal predictions give equal bytes."""
        prefix = "prob" if self.is_per_patient else "logit"
        columns: dict[str, object] = {} if self.is_per_patient else {"sample_id": self.sample_id_N}
        columns |= {"patient_id": self.patient_id_N}
        if self.task == "multi_class":
            columns |= {"y_true": self.y_true_N, "y_pred": self.y_pred_N}
        else:
            columns |= _by_label("y", self.classes, self.targets_NC.astype(np.int64))
            columns |= _by_label("y_pred", self.classes, self.decisions_NC.astype(np.int64))
            if self.thresholds_NC is not None:
                columns |= _by_label("threshold", self.classes, self.thresholds_NC)
        columns |= _by_label(prefix, self.classes, self.scores_NC)
        frame = pd.DataFrame(columns)
        frame.attrs = {"schema_version": SCHEMA_VERSION}
        with replacing(path) as aside:
            frame.to_parquet(aside, index=False)

    @classmethod
    def read(cls, path: Path, classes: Sequence[str]) -> "Predictions":
        """Read what :meth:`write` wrote, or a file of the same columns made elsewhere.

        A file with columns ``y_<label>`` and none named ``y_true`` is of labels.

        Raises:
            UserError: a column is missing, or the labels are not 0 and 1.
        """
        frame = pd.read_parquet(path)
        is_per_patient = any(column.startswith("prob_") for column in frame.columns)
        prefix = "prob" if is_per_patient else "logit"
        by_label = [f"y_{name}" for name in classes]
        is_of_labels = "y_true" not in frame.columns and all(column in frame.columns for column in by_label)
        needed = ["patient_id", *(by_label if is_of_labels else ["y_true"]), *(f"{prefix}_{name}" for name in classes)]
        if missing := [column for column in needed if column not in frame.columns]:
            raise UserError(f"{path}: predictions lack the columns {missing}; found {list(frame.columns)}.")
        if is_of_labels and not frame[by_label].isin([0, 1]).all(axis=None):
            raise UserError(f"{path}: {', '.join(by_label)} must hold 0 and 1; take fractions to one of them first.")
        ids = frame["patient_id" if is_per_patient else "sample_id"]
        thresholds = [f"threshold_{name}" for name in classes]
        has_thresholds = is_of_labels and all(column in frame.columns for column in thresholds)
        return cls(
            ids.to_numpy(dtype=np.str_),
            frame["patient_id"].to_numpy(dtype=np.str_),
            encode_label_sets(frame[by_label].to_numpy(dtype=np.bool_))
            if is_of_labels
            else frame["y_true"].to_numpy(dtype=np.int64),
            frame[[f"{prefix}_{name}" for name in classes]].to_numpy(dtype=np.float64),
            tuple(classes),
            is_per_patient,
            "multi_label" if is_of_labels else "multi_class",
            frame[thresholds].to_numpy(dtype=np.float64) if has_thresholds else None,
        )


def _by_label(prefix: str, classes: Sequence[str], values_NC: npt.NDArray[np.generic]) -> dict[str, object]:
    return {f"{prefix}_{name}": values_NC[:, c] for c, name in enumerate(classes)}


def join_predictions(parts: Sequence[Predictions]) -> Predictions:
    """The rows of all parts, one after another, such as the test splits of all folds.

    Raises:
        ValueError: no parts, or parts of different classes or different kinds of row.
    """
    if not parts:
        raise ValueError("there are no predictions to join")
    first = parts[0]
    if any(
        (part.classes, part.is_per_patient, part.task) != (first.classes, first.is_per_patient, first.task)
        for part in parts
    ):
        raise ValueError("predictions to join differ in their classes, in being of labels, or in being per patient")
    thresholds = [part.thresholds_NC for part in parts if part.thresholds_NC is not None]
    if thresholds and len(thresholds) < len(parts):
        raise ValueError("some of the predictions to join have thresholds and some have none")
    return Predictions(
        np.concatenate([part.sample_id_N for part in parts]),
        np.concatenate([part.patient_id_N for part in parts]),
        np.concatenate([part.y_true_N for part in parts]),
        np.concatenate([part.scores_NC for part in parts]),
        first.classes,
        first.is_per_patient,
        first.task,
        np.concatenate(thresholds) if thresholds else None,
    )
