"""One class against the rest, or with a label against without it, and the refusal of rows that a test cannot use.

Axes: N row.
"""

import numpy as np
import numpy.typing as npt

from vitreous.core.predictions import Predictions
from vitreous.evidence.scores import FloatArray


def one_vs_rest(predictions: Predictions, positive: str) -> tuple[npt.NDArray[np.bool_], FloatArray]:
    """Whether each row is of the class, or has the label (N), and the probability given to it (N).

    Raises:
        ValueError: there is no such class, or a probability is not finite.
    """
    if positive not in predictions.classes:
        raise ValueError(f"no class {positive!r} to hold against the rest; the classes are {predictions.classes}")
    c = predictions.classes.index(positive)
    return predictions.targets_NC[:, c], finite_probs(predictions)[:, c]


def finite_probs(predictions: Predictions) -> FloatArray:
    """Probabilities (N, C), refused where a comparison with a threshold would quietly be False.

    Raises:
        ValueError: a row holds NaN or infinity.
    """
    probs_NC = predictions.probs_NC
    bad = int((~np.isfinite(probs_NC)).any(axis=1).sum())
    if bad:
        raise ValueError(f"probabilities must be finite; {bad} of {len(probs_NC)} rows hold NaN or infinity")
    return probs_NC


def check_one_row_per_patient(predictions: Predictions, test: str) -> None:
    """Refuse rows that are not independent of each other.

    Args:
        test: what needs them to be, at the start of the sentence.
    Raises:
        ValueError: some patient has several rows.
    """
    rows, patients = len(predictions.patient_id_N), len(np.unique(predictions.patient_id_N))
    if rows != patients:
        raise ValueError(
            f"{test} needs one row per patient, since it takes rows as independent; got {rows} rows of {patients} "
            "patients. Use Predictions.per_patient(), or the paired bootstrap of compare_with_best."
        )
