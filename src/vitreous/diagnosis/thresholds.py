"""Thresholds of labels that were not chosen on val.

Axes: C label.
"""

import numpy as np
import numpy.typing as npt

from vitreous.core.finding import Finding
from vitreous.core.predictions import Aggregate, Predictions
from vitreous.evidence.task_scores import with_chosen_thresholds

SAME = 1e-9


def find_foreign_thresholds(val: Predictions, test: Predictions, aggregate: Aggregate, name: str) -> list[Finding]:
    """An error where the thresholds kept with the test predictions are not those that val chooses.

    Args:
        val, test: of one training, per sample; those of classes have no thresholds, and pass.
    """
    if test.task == "multi_class" or test.thresholds_NC is None or not len(test.thresholds_NC):
        return []
    kept_C = test.thresholds_NC[0]
    of_val_C = _chosen(val, aggregate)
    if np.all(np.abs(kept_C - of_val_C) <= SAME):
        return []
    is_of_test = bool(np.all(np.abs(kept_C - _chosen(test, aggregate)) <= SAME))
    shown = ", ".join(
        f"{label} {kept:.3f} for {chosen:.3f}"
        for label, kept, chosen in zip(test.classes, kept_C, of_val_C, strict=True)
        if abs(kept - chosen) > SAME
    )
    return [
        Finding(
            "threshold_not_of_val",
            "error",
            f"{name}: its thresholds are not those that val chooses"
            + (", but those of test: its scores are too good." if is_of_test else "."),
            f"kept for chosen on val: {shown}",
            "Remove the head's folder and run the study again; if a script wrote it, choose thresholds on val.",
        )
    ]


def _chosen(one: Predictions, aggregate: Aggregate) -> npt.NDArray[np.float64]:
    scored = one.scored(aggregate)
    chosen = with_chosen_thresholds(scored, scored).thresholds_NC
    assert chosen is not None  # labels have thresholds
    return np.asarray(chosen[0], dtype=np.float64)
