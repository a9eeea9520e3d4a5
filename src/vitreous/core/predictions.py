"""Predictions: the only bridge from torch to statistics, kept as Parquet.

Axes: N row (sample or patient), C class.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, assert_never

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitreous.core.errors import UserError
from vitreous.core.files import replacing

SCHEMA_VERSION = 1

# how rows become what a metric counts: one row per patient, or every sample for itself
Aggregate = Literal["mean_probability", "none"]


@dataclass(frozen=True)
class Predictions:
    """One row per sample, or one per patient where `is_per_patient`.

    Args:
        sample_id_N: unique names; for patient rows the patient's id.
        patient_id_N: whose the row is.
        y_true_N: class indices in [0, C).
        scores_NC: logits; for patient rows probabilities that sum to 1.
        classes: class names in index order.
    """

    sample_id_N: npt.NDArray[np.str_]
    patient_id_N: npt.NDArray[np.str_]
    y_true_N: npt.NDArray[np.int64]
    scores_NC: npt.NDArray[np.float64]
    classes: tuple[str, ...]
    is_per_patient: bool = False

    def __post_init__(self) -> None:
        rows = len(self.sample_id_N)
        if self.scores_NC.shape != (rows, len(self.classes)):
            raise ValueError(f"scores must be {(rows, len(self.classes))}; got {self.scores_NC.shape}")
        if len(self.patient_id_N) != rows or len(self.y_true_N) != rows:
            raise ValueError("sample_id, patient_id and y_true differ in length")

    @property
    def y_pred_N(self) -> npt.NDArray[np.int64]:
        """The class of the highest score; the lowest index on a tie."""
        best_N: npt.NDArray[np.int64] = np.argmax(self.scores_NC, axis=1).astype(np.int64)
        return best_N

    @property
    def probs_NC(self) -> npt.NDArray[np.float64]:
        """Rows sum to 1: the softmax of the logits, or the stored patient probabilities."""
        if self.is_per_patient:
            return self.scores_NC
        shifted = np.exp(self.scores_NC - self.scores_NC.max(axis=1, keepdims=True))
        result: npt.NDArray[np.float64] = shifted / shifted.sum(axis=1, keepdims=True)
        return result

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
        return Predictions(patients, patients, self.y_true_N[first], probs_PC, self.classes, is_per_patient=True)

    def write(self, path: Path) -> None:
        """Write Parquet whole or not at all; equal predictions give equal bytes."""
        prefix = "prob" if self.is_per_patient else "logit"
        columns: dict[str, object] = {} if self.is_per_patient else {"sample_id": self.sample_id_N}
        columns |= {"patient_id": self.patient_id_N, "y_true": self.y_true_N, "y_pred": self.y_pred_N}
        columns |= {f"{prefix}_{name}": self.scores_NC[:, c] for c, name in enumerate(self.classes)}
        frame = pd.DataFrame(columns)
        frame.attrs = {"schema_version": SCHEMA_VERSION}
        with replacing(path) as aside:
            frame.to_parquet(aside, index=False)

    @classmethod
    def read(cls, path: Path, classes: Sequence[str]) -> "Predictions":
        """Read what :meth:`write` wrote, or a file of the same columns made elsewhere.

        Raises:
            UserError: a column is missing.
        """
        frame = pd.read_parquet(path)
        is_per_patient = any(column.startswith("prob_") for column in frame.columns)
        prefix = "prob" if is_per_patient else "logit"
        needed = ["patient_id", "y_true", *(f"{prefix}_{name}" for name in classes)]
        if missing := [column for column in needed if column not in frame.columns]:
            raise UserError(f"{path}: predictions lack the columns {missing}; found {list(frame.columns)}.")
        ids = frame["patient_id" if is_per_patient else "sample_id"]
        return cls(
            ids.to_numpy(dtype=np.str_),
            frame["patient_id"].to_numpy(dtype=np.str_),
            frame["y_true"].to_numpy(dtype=np.int64),
            frame[[f"{prefix}_{name}" for name in classes]].to_numpy(dtype=np.float64),
            tuple(classes),
            is_per_patient,
        )


def join_predictions(parts: Sequence[Predictions]) -> Predictions:
    """The rows of all parts, one after another, such as the test splits of all folds.

    Raises:
        ValueError: no parts, or parts of different classes or different kinds of row.
    """
    if not parts:
        raise ValueError("there are no predictions to join")
    first = parts[0]
    if any((part.classes, part.is_per_patient) != (first.classes, first.is_per_patient) for part in parts):
        raise ValueError("predictions to join differ in their classes, or in being per patient")
    return Predictions(
        np.concatenate([part.sample_id_N for part in parts]),
        np.concatenate([part.patient_id_N for part in parts]),
        np.concatenate([part.y_true_N for part in parts]),
        np.concatenate([part.scores_NC for part in parts]),
        first.classes,
        first.is_per_patient,
    )
