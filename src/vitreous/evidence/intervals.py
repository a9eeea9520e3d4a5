"""Intervals by resampling patients, never rows: the rows of one patient are drawn together or not at all.

Axes: N row, C class, P patient, R resample, S seed.

The interval is the percentile bootstrap over patients (Efron and Tibshirani 1993, chapter 13). The same resamples
serve every row of a leaderboard, so that rows can be compared pair by pair, and every seed of a row: a row's
value is the mean over its seeds inside each resample. Seeds are not resampled; their spread stands apart.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vitreous.core.finding import Finding
from vitreous.core.label_sets import memberships
from vitreous.core.predictions import Predictions
from vitreous.core.undefined import Undefined
from vitreous.evidence.scores import FloatArray
from vitreous.evidence.task_scores import TASK_SCORES, metric_names_of, resample_rows, score_rows

NUM_RESAMPLES = 2000
MAX_UNDEFINED_SHARE = 0.05  # of the resamples; beyond it the rest no longer stands for all of them
MIN_PATIENTS = 10  # below it there is no interval
FEW_PATIENTS = 50  # below it, and
FEW_PATIENTS_PER_CLASS = 10  # below it in any class, the findings say that intervals are rough

_DRAWS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Interval:
    """A value with its bounds.

    Args:
        value: of the cohort itself, mean over seeds; not the mean of the resamples.
        low, high: bounds, or why there are none.
        num_resamples: drawn.
        num_undefined: of these, without a value.
    """

    value: float | Undefined
    low: float | Undefined
    high: float | Undefined
    num_resamples: int
    num_undefined: int


def resample_weights(
    patient_id_N: npt.NDArray[np.str_], *, num_resamples: int = NUM_RESAMPLES, rng: np.random.Generator
) -> npt.NDArray[np.uint16]:
    """How often each row's patient was drawn (R, N); in each resample as many patients are drawn as there are.

    A patient's count depends on the sorted ids and the stream, not on the order of the rows.

    Raises:
        ValueError: there are no patients, or fewer than one resample.
    """
    patients, patient_N = np.unique(patient_id_N, return_inverse=True)
    num_patients = len(patients)
    if num_patients == 0 or num_resamples < 1:
        raise ValueError(f"resampling needs patients and resamples; got {num_patients} and {num_resamples}")
    counts_RP = np.empty((num_resamples, num_patients), dtype=np.uint16)
    step = max(1, _DRAWS_AT_ONCE // num_patients)
    for start in range(0, num_resamples, step):
        size = min(step, num_resamples - start)
        drawn = rng.integers(num_patients, size=(size, num_patients))
        drawn += np.arange(size)[:, None] * num_patients
        counts = np.bincount(drawn.ravel(), minlength=size * num_patients)
        counts_RP[start : start + size] = counts.reshape(size, num_patients)
    return counts_RP if np.array_equal(patient_N, np.arange(num_patients)) else counts_RP[:, patient_N]


def mean_over_seeds(
    predictions_by_seed: Sequence[Predictions],
    weights_RN: npt.NDArray[np.generic],
    names: Collection[str] | None = None,
) -> dict[str, FloatArray]:
    """Each metric's mean over the seeds inside each resample (R); NaN where it is undefined for any seed.

    Raises:
        ValueError: no seed, or the seeds are not about the same rows.
    """
    check_same_rows({f"seed {k}": predictions for k, predictions in enumerate(predictions_by_seed)})
    by_seed = [resample_rows(one, weights_RN, names) for one in predictions_by_seed]
    return {name: np.mean([values[name] for values in by_seed], axis=0) for name in by_seed[0]}


def mean_scores(predictions_by_seed: Sequence[Predictions]) -> dict[str, float | Undefined]:
    """Each metric of the cohort itself, mean over the seeds; undefined where it is for any seed."""
    check_same_rows({f"seed {k}": predictions for k, predictions in enumerate(predictions_by_seed)})
    by_seed = [score_rows(one) for one in predictions_by_seed]
    result: dict[str, float | Undefined] = {}
    for name in metric_names_of(predictions_by_seed[0]):
        values = [scores[name] for scores in by_seed]
        defined = [value for value in values if not isinstance(value, Undefined)]
        missing = [value for value in values if isinstance(value, Undefined)]
        result[name] = missing[0] if missing else float(np.mean(defined))
    return result


def bootstrap_intervals(
    predictions_by_seed: Sequence[Predictions],
    weights_RN: npt.NDArray[np.generic],
    level: float = 0.95,
    names: Collection[str] | None = None,
) -> dict[str, Interval]:
    """Percentile intervals of every metric, or of the named ones, for one row of a leaderboard.

    Args:
        predictions_by_seed: one per seed, on the same rows in the same order.
        weights_RN: of :func:`resample_weights`, for these rows.
        level: in (0, 1).
    Raises:
        ValueError: the seeds are not about the same rows, the weights do not fit, or the level is no share.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1; got {level}")
    values = mean_scores(predictions_by_seed)
    resampled = mean_over_seeds(predictions_by_seed, weights_RN, names)
    num_patients = len(np.unique(predictions_by_seed[0].patient_id_N))
    return {
        name: percentile_interval(values[name], values_R, level, num_patients=num_patients)
        for name, values_R in resampled.items()
    }


def percentile_interval(
    value: float | Undefined, resampled_R: FloatArray, level: float, *, num_patients: int
) -> Interval:
    """The middle `level` of the defined resamples, or why there is no interval."""
    undefined = int(np.isnan(resampled_R).sum())
    total = len(resampled_R)
    missing: Undefined | None = None
    if isinstance(value, Undefined):
        missing = value
    elif num_patients < MIN_PATIENTS:
        missing = Undefined(f"{num_patients} patients; an interval needs at least {MIN_PATIENTS}")
    elif undefined > MAX_UNDEFINED_SHARE * total:
        missing = Undefined(
            f"undefined in {undefined} of {total} resamples: too few patients have, or are predicted as, a class"
        )
    if missing is not None:
        return Interval(value, missing, missing, total, undefined)
    tail = (1 - level) / 2
    low, high = np.quantile(resampled_R[~np.isnan(resampled_R)], [tail, 1 - tail])
    return Interval(value, float(low), float(high), total, undefined)


def check_same_rows(named: dict[str, Predictions]) -> None:
    """Predictions may be compared only on the same samples, patients, labels and classes, in the same order.

    Raises:
        ValueError: nothing to compare, or the name of the first one that differs, and in what.
    """
    if not named:
        raise ValueError("there are no predictions to score")
    (first_name, first), *others = named.items()
    for name, other in others:
        if other.task != first.task:
            raise ValueError(f"{name} and {first_name} differ in the kind of their labels: {other.task}, {first.task}")
        if other.classes != first.classes:
            raise ValueError(f"{name} and {first_name} differ in their classes: {other.classes} and {first.classes}")
        for field in ("sample_id_N", "patient_id_N", "y_true_N"):
            if not np.array_equal(getattr(other, field), getattr(first, field)):
                raise ValueError(f"{name} and {first_name} are not about the same rows: {field} differs")


def find_few_patients(predictions: Predictions, cohort: str = "The test split", short: str = "test") -> list[Finding]:
    """Say so where a cohort is too small for its intervals to be taken at their word.

    Args:
        cohort: its name at the start of a sentence; `short` before the word patients.
    """
    patients, patient_N = np.unique(predictions.patient_id_N, return_inverse=True)
    # a patient counts once for each class of his rows
    pairs_2M = np.unique(np.stack([patient_N, predictions.y_true_N]), axis=1)
    has_MC = memberships(pairs_2M[1], len(predictions.classes), predictions.task)
    counts_C = [len(np.unique(pairs_2M[0][has_M])) for has_M in has_MC.T]
    named = dict(zip(predictions.classes, counts_C, strict=True))
    few = [f"{name} {count}" for name, count in named.items() if count < FEW_PATIENTS_PER_CLASS]
    evidence = f"{len(patients)} patients: " + ", ".join(f"{name} {count}" for name, count in named.items())
    remedy = "Read every interval as a lower bound of the uncertainty; test on more patients or pool folds."
    if len(patients) < MIN_PATIENTS:
        title = f"{cohort} has {len(patients)} patients: too few for any interval (at least {MIN_PATIENTS})."
    elif len(patients) < FEW_PATIENTS:
        title = f"{cohort} has {len(patients)} patients: below {FEW_PATIENTS}, intervals come out too narrow."
    elif few:
        noun = {"class": "Classes", "label": "Labels"}[TASK_SCORES[predictions.task].noun]
        title = (
            f"{noun} with fewer than {FEW_PATIENTS_PER_CLASS} {short} patients ({', '.join(few)}): "
            "their intervals come out too narrow."
        )
    else:
        return []
    return [Finding("few_patients", "warning", title, evidence, remedy)]
