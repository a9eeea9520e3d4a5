"""One class against the rest, or with a label against without it, and the refusal of rows that a test cannot use.

Axes: N row.
"""

from dataclasses import replace

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


def binary_of(predictions: Predictions, label: str) -> Predictions:
    """One label by itself, as predictions of two classes: ``not <label>`` and the label.

    Probabilities stay what they are: the logits are 0 and that of the label, patient probabilities 1 − p and p. The
    predicted class is the label where its probability exceeds one half; thresholds chosen for labels play no part.

    Raises:
        ValueError: the predictions are of classes, or there is no such label.
    """
    if predictions.task != "multi_label" or label not in predictions.classes:
        raise ValueError(f"no label {label!r} to take by itself; {predictions.task} of {predictions.classes}")
    c = predictions.classes.index(label)
    score_N = predictions.scores_NC[:, c]
    rest_N = 1.0 - score_N if predictions.is_per_patient else np.zeros_like(score_N)
    return replace(
        predictions,
        y_true_N=predictions.targets_NC[:, c].astype(np.int64),
        scores_NC=np.stack([rest_N, score_N], axis=1),
        classes=(f"not {label}", label),
        task="multi_class",
        thresholds_NC=None,
    )
