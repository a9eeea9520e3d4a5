"""Whether probabilities mean what they say: ECE, Brier score, NLL, and the temperature that mends them.

Axes: N row, C class, R resample, B bin, P patient.

Temperatures act on the logits of samples, before these become the probabilities of a patient; what is measured is the
patient's probability, or the sample's where samples are scored by themselves.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq

from vitreous.core.predictions import Aggregate, Predictions
from vitreous.core.undefined import Undefined
from vitreous.evidence.intervals import Interval, percentile_interval
from vitreous.evidence.scores import FloatArray, IntArray

NUM_BINS = 15
MEASURES = {
    "ece": "expected calibration error",
    "brier": "Brier score",
    "nll": "negative log-likelihood",
}
_CALIBRATED_DRAWS = 200
_SMALLEST = np.finfo(np.float64).tiny


@dataclass(frozen=True)
class CalibrationPart:
    """Which patients a temperature is fitted on, and which it is scored on.

    Args:
        fit_P, scored_P: patient ids; together all of them, none in both.
    """

    fit_P: npt.NDArray[np.str_]
    scored_P: npt.NDArray[np.str_]


def brier_score(probs_NC: FloatArray, y_true_N: IntArray) -> float | Undefined:
    """Mean squared distance to the one-hot label; 0 best, 2 worst.

    Args:
        probs_NC: rows sum to 1; not logits.
    Source: Brier (1950), multi-class form.

    >>> brier_score(np.array([[0.75, 0.25]]), np.array([0]))
    0.125
    """
    return _mean(_squared_distance(probs_NC, y_true_N))


def negative_log_likelihood(probs_NC: FloatArray, y_true_N: IntArray) -> float | Undefined:
    """Mean of −log of the true class's probability, in nats; undefined where one such probability is 0.

    >>> negative_log_likelihood(np.array([[1.0, 0.0]]), np.array([0]))
    0.0
    """
    impossible = int((_of_true_class(probs_NC, y_true_N) <= 0).sum())
    if impossible:
        return Undefined(f"the true class of {impossible} rows has probability 0: the likelihood is 0")
    return _mean(_surprise(probs_NC, y_true_N))


def assign_bins(confidence_N: FloatArray, num_bins: int = NUM_BINS) -> IntArray:
    """The bin (N) of each row: bins hold equally many rows; equal confidences share a bin.

    Depends on no order of the rows. Ties make bins larger, and leave others empty.

    Raises:
        ValueError: fewer than one bin.

    >>> assign_bins(np.array([0.9, 0.4, 0.6, 0.4]), 2)
    array([1, 0, 1, 0])
    """
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1; got {num_bins}")
    lower_N = np.searchsorted(np.sort(confidence_N), confidence_N, side="left")
    bins_N: IntArray = lower_N * num_bins // max(len(confidence_N), 1)
    return bins_N


def expected_calibration_error(probs_NC: FloatArray, y_true_N: IntArray, num_bins: int = NUM_BINS) -> float | Undefined:
    """Mean over bins of |accuracy − confidence| of the predicted class, bins weighed by their rows; 0 best, 1 worst.

    Bins are of equal mass (:func:`assign_bins`). With few rows it is well above 0 for a calibrated model too: see
    :func:`calibrated_error`.

    Source: Guo et al. (2017); equal-mass bins as in Nixon et al. (2019).

    >>> round(expected_calibration_error(np.array([[0.9, 0.1], [0.9, 0.1]]), np.array([0, 1])), 3)
    0.4
    """
    if not len(y_true_N):
        return Undefined("there are no rows")
    confidence_N, correct_N = _top_label(probs_NC, y_true_N)
    bins_N = assign_bins(confidence_N, num_bins)
    difference_B = np.bincount(bins_N, weights=confidence_N - correct_N, minlength=num_bins)
    return float(np.abs(difference_B).sum() / len(y_true_N))


def calibrated_error(
    probs_NC: FloatArray, rng: np.random.Generator, num_bins: int = NUM_BINS, num_draws: int = _CALIBRATED_DRAWS
) -> float | Undefined:
    """The expected ECE if the model were perfectly calibrated: what chance alone gives for these rows and bins.

    Each draw calls a row correct with the probability that its confidence states.
    """
    if not len(probs_NC):
        return Undefined("there are no rows")
    confidence_N = probs_NC.max(axis=1)
    member_NB = np.eye(num_bins)[assign_bins(confidence_N, num_bins)]
    correct_RN = rng.random((num_draws, len(confidence_N))) < confidence_N
    return float(np.abs((confidence_N - correct_RN) @ member_NB).sum(axis=1).mean() / len(confidence_N))


def fit_temperature(
    logits_NC: FloatArray, y_true_N: IntArray, weights_N: FloatArray | None = None
) -> float | Undefined:
    """The temperature T > 0 of lowest NLL of softmax(logits / T), or why there is none.

    The NLL is convex in 1/T; T is the root of its derivative, to a relative 1e-10.

    Args:
        logits_NC: log-probabilities serve as well.
        weights_N: of the rows, > 0; 1 each if left out.
    Source: Guo et al. (2017), section 4.2.
    """
    logits_NC = np.asarray(logits_NC, dtype=np.float64)
    if not len(logits_NC):
        return Undefined("there are no rows to fit a temperature on")
    weights_N = np.ones(len(logits_NC)) if weights_N is None else weights_N
    true_N = np.take_along_axis(logits_NC, y_true_N[:, None], axis=1)[:, 0]
    if (true_N >= logits_NC.max(axis=1)).all():
        return Undefined("every row of the fitting part is right: the likelihood rises without end as T falls to 0")

    def slope(inverse: float) -> float:
        """Derivative of the summed NLL by 1/T; rises with 1/T."""
        shifted_NC = inverse * logits_NC
        probs_NC = np.exp(shifted_NC - shifted_NC.max(axis=1, keepdims=True))
        probs_NC /= probs_NC.sum(axis=1, keepdims=True)
        return float(weights_N @ ((probs_NC * logits_NC).sum(axis=1) - true_N))

    if slope(0.0) >= 0:
        return Undefined("the logits say nothing true of the fitting part: the likelihood rises as T grows without end")
    upper = 1.0
    while slope(upper) <= 0:
        upper *= 2.0
    return 1.0 / float(brentq(slope, 0.0, upper, xtol=1e-14, rtol=1e-12))


def fit_scored_temperature(predictions: Predictions, aggregate: Aggregate = "mean_probability") -> float | Undefined:
    """:func:`fit_temperature` on samples that weigh what they count: 1 / (samples of their patient), or 1 each."""
    if aggregate == "none":
        return fit_temperature(_logits(predictions), predictions.y_true_N)
    _, patient_N, counts_P = np.unique(predictions.patient_id_N, return_inverse=True, return_counts=True)
    return fit_temperature(_logits(predictions), predictions.y_true_N, 1.0 / counts_P[patient_N])


def scale_predictions(predictions: Predictions, temperature: float) -> Predictions:
    """The same rows with logits divided by the temperature; patient probabilities are taken as logits by their log.

    Raises:
        ValueError: the temperature is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"a temperature is positive; got {temperature}")
    scaled = replace(predictions, scores_NC=_logits(predictions) / temperature, is_per_patient=False)
    return replace(scaled, scores_NC=scaled.probs_NC, is_per_patient=True) if predictions.is_per_patient else scaled


def divide_patients(predictions: Predictions, share: float, rng: np.random.Generator) -> CalibrationPart:
    """Draw the part a temperature is fitted on: patients whole, each class by its share, rounded down.

    A patient with samples of several classes stands in the last of them.

    Depends on the sorted ids and the stream, not on the order of rows.

    Raises:
        ValueError: the share is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise ValueError(f"the share to fit on must lie between 0 and 1; got {share}")
    patients_P, patient_N = np.unique(predictions.patient_id_N, return_inverse=True)
    y_P = np.zeros(len(patients_P), dtype=np.int64)
    np.maximum.at(y_P, patient_N, predictions.y_true_N)
    is_fit_P = np.zeros(len(patients_P), dtype=bool)
    for c in range(len(predictions.classes)):
        members = rng.permutation(np.flatnonzero(y_P == c))
        is_fit_P[members[: int(share * len(members) + 1e-9)]] = True
    return CalibrationPart(patients_P[is_fit_P], patients_P[~is_fit_P])


def restrict(predictions: Predictions, patients_P: npt.NDArray[np.str_]) -> Predictions:
    """The rows of these patients, in the order they stand in."""
    return predictions.select(np.isin(predictions.patient_id_N, patients_P))


def calibration_intervals(
    predictions_by_seed: Sequence[Predictions],
    weights_RN: npt.NDArray[np.generic],
    level: float = 0.95,
    num_bins: int = NUM_BINS,
) -> dict[str, Interval]:
    """Each of :data:`MEASURES` with its interval, mean over seeds inside each resample.

    In a resample the ECE keeps the bins of the cohort. Resampling adds spread inside the bins, so that its bounds
    lie high; compare them with bounds of the same number of patients only.

    Args:
        predictions_by_seed: as scored, on the same rows in the same order.
        weights_RN: of :func:`~vitreous.evidence.intervals.resample_weights`, for these rows.
    Raises:
        ValueError: there are no predictions.
    """
    if not predictions_by_seed:
        raise ValueError("there are no predictions to score")
    values: dict[str, list[float | Undefined]] = {name: [] for name in MEASURES}
    resampled: dict[str, list[FloatArray]] = {name: [] for name in MEASURES}
    drawn_RN = np.asarray(weights_RN, dtype=np.float64)
    total_R = drawn_RN.sum(axis=1)
    for one in predictions_by_seed:
        probs_NC, y_true_N = one.probs_NC, one.y_true_N
        values["ece"].append(expected_calibration_error(probs_NC, y_true_N, num_bins))
        values["brier"].append(brier_score(probs_NC, y_true_N))
        values["nll"].append(negative_log_likelihood(probs_NC, y_true_N))
        confidence_N, correct_N = _top_label(probs_NC, y_true_N)
        member_NB = np.eye(num_bins)[assign_bins(confidence_N, num_bins)]
        difference_RB = drawn_RN @ ((confidence_N - correct_N)[:, None] * member_NB)
        resampled["ece"].append(np.abs(difference_RB).sum(axis=1) / total_R)
        resampled["brier"].append(drawn_RN @ _squared_distance(probs_NC, y_true_N) / total_R)
        resampled["nll"].append(drawn_RN @ _surprise(probs_NC, y_true_N) / total_R)
    num_patients = len(np.unique(predictions_by_seed[0].patient_id_N))
    return {
        name: percentile_interval(
            mean_or_undefined(values[name]), np.mean(resampled[name], axis=0), level, num_patients=num_patients
        )
        for name in MEASURES
    }


def mean_or_undefined(values: Sequence[float | Undefined]) -> float | Undefined:
    """The mean; undefined, with the first reason, if any value is."""
    missing = [value for value in values if isinstance(value, Undefined)]
    if missing:
        return missing[0]
    return float(np.mean([value for value in values if not isinstance(value, Undefined)]))


def _logits(predictions: Predictions) -> FloatArray:
    if not predictions.is_per_patient:
        return predictions.scores_NC
    # a probability of 0 stays the least likely by far, without becoming −inf
    return np.log(np.maximum(predictions.scores_NC, _SMALLEST))


def _of_true_class(probs_NC: FloatArray, y_true_N: IntArray) -> FloatArray:
    result: FloatArray = np.take_along_axis(probs_NC, np.asarray(y_true_N)[:, None], axis=1)[:, 0]
    return result


def _surprise(probs_NC: FloatArray, y_true_N: IntArray) -> FloatArray:
    # 0.0 − log: without it a certain, right row would be −0.0
    return 0.0 - np.log(np.maximum(_of_true_class(probs_NC, y_true_N), _SMALLEST))


def _squared_distance(probs_NC: FloatArray, y_true_N: IntArray) -> FloatArray:
    result: FloatArray = ((probs_NC - np.eye(probs_NC.shape[1])[y_true_N]) ** 2).sum(axis=1)
    return result


def _top_label(probs_NC: FloatArray, y_true_N: IntArray) -> tuple[FloatArray, npt.NDArray[np.float64]]:
    return probs_NC.max(axis=1), (probs_NC.argmax(axis=1) == y_true_N).astype(np.float64)


def _mean(values_N: FloatArray) -> float | Undefined:
    return float(values_N.mean()) if len(values_N) else Undefined("there are no rows")
