"""Labels that a probe on the features would not have given: a list for somebody to look at, not a verdict.

Confident learning (cleanlab) on out-of-fold probabilities, patients held out.

Axes: N sample, D feature, C class.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitreous.core.finding import Finding
from vitreous.diagnosis.held_out import (
    IntArray,
    StrArray,
    balanced_accuracy_interval,
    can_be_probed,
    out_of_fold_probs,
    some_samples,
)

ABOVE_CHANCE = 0.1  # of the balanced accuracy of the probe, at its lower bound
COLUMNS = ("sample_id", "patient_id", "given", "suggested", "confidence_in_given", "confidence_in_suggested")


def suspect_labels(
    features_ND: npt.NDArray[np.float32],
    y_N: IntArray,
    sample_id_N: StrArray,
    patient_id_N: StrArray,
    classes: Sequence[str],
) -> pd.DataFrame | None:
    """The suspected samples, most doubtful first; None where a class has too few patients for a probe,
    or the probe is hardly better than chance: it would doubt half of the labels.

    Args:
        y_N: class indices in [0, C), of samples of train and val.
    Source: Northcutt, Jiang and Chuang (2021), "Confident Learning"; cleanlab's `find_label_issues`, which prunes by
        noise rate.
    """  # fmt: skip
    from cleanlab.filter import find_label_issues

    chosen = some_samples(patient_id_N)
    if not can_be_probed(y_N[chosen], patient_id_N[chosen], len(classes)):
        return None
    y_N, ids = y_N[chosen], sample_id_N[chosen]
    probs_NC = out_of_fold_probs(features_ND[chosen], y_N, patient_id_N[chosen], len(classes), balanced=False)
    patients = patient_id_N[chosen]
    predicted_N = probs_NC.argmax(axis=1).astype(np.int64)
    if balanced_accuracy_interval(y_N, predicted_N, patients, len(classes))[1] <= 1 / len(classes) + ABOVE_CHANCE:
        return None
    rows = find_label_issues(y_N, probs_NC, return_indices_ranked_by="self_confidence", n_jobs=1)
    names = np.array(classes)
    return pd.DataFrame(
        {
            "sample_id": ids[rows],
            "patient_id": patients[rows],
            "given": names[y_N[rows]],
            "suggested": names[predicted_N[rows]],
            "confidence_in_given": probs_NC[rows, y_N[rows]].round(4),
            "confidence_in_suggested": probs_NC[rows, predicted_N[rows]].round(4),
        },
        columns=list(COLUMNS),
    )


def find_label_errors(suspects: pd.DataFrame, num_samples: int, encoder: str, where: str) -> list[Finding]:
    """One finding with the counts; who they are stands in the table."""
    if suspects.empty:
        return []
    counts = (suspects["given"] + " → " + suspects["suggested"]).value_counts()
    shown = ", ".join(f"{pair} {count}" for pair, count in counts.head(5).items())
    return [
        Finding(
            "suspected_label_errors",
            "warning" if len(suspects) > 0.1 * num_samples else "info",
            f"{len(suspects)} of {num_samples} train and val samples have a label that held-out probes doubt.",
            f"{shown}; features of {encoder}, confident learning",
            f"Look at the first rows of {where} with whoever labelled them; correct the table by their word alone.",
        )
    ]
