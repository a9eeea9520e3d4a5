"""How far probabilities that fit the source miss the target, and what one temperature mends.

Axes: R resample.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from vitreous.core.predictions import Aggregate
from vitreous.core.undefined import Undefined
from vitreous.evidence.calibration import (
    MEASURES,
    NUM_BINS,
    calibrated_error,
    calibration_intervals,
    divide_patients,
    fit_scored_temperature,
    mean_or_undefined,
    restrict,
    scale_predictions,
)
from vitreous.evidence.intervals import NUM_RESAMPLES, Interval, resample_weights
from vitreous.evidence.transfer import ModelPredictions, source_by_seed

FIT_SHARE = 0.5
Measures = Mapping[str, Interval]


@dataclass(frozen=True)
class CalibrationShift:
    """ECE, Brier score and NLL of one row, means over its models; each mapping is by name of the measure.

    Args:
        num_fit_patients: target patients on which temperatures were fitted; never scored here.
        num_scored_patients: target patients behind `target`, `target_source_scaled` and `target_scaled`.
        num_bins: of the ECE.
        source_temperatures: of each model, fitted on its val split of the source.
        target_temperatures: of each model, fitted on the fitting part of the target.
        source, source_scaled: the source's test set as the model gives it, and with the source's temperature.
        target, target_source_scaled, target_scaled: the scored part of the target as the model gives it, with the
            source's temperature, and with the target's.
        source_by_chance, target_by_chance: ECE that a perfectly calibrated model of the same confidences would show.
    """

    num_fit_patients: int
    num_scored_patients: int
    num_bins: int
    source_temperatures: tuple[float | Undefined, ...]
    target_temperatures: tuple[float | Undefined, ...]
    source: Measures
    source_scaled: Measures
    target: Measures
    target_source_scaled: Measures
    target_scaled: Measures
    source_by_chance: float | Undefined
    target_by_chance: float | Undefined


def measure_calibration_shift(
    models: Sequence[ModelPredictions],
    *,
    part_rng: np.random.Generator,
    bootstrap_rng: np.random.Generator,
    fit_share: float = FIT_SHARE,
    num_bins: int = NUM_BINS,
    num_resamples: int = NUM_RESAMPLES,
    level: float = 0.95,
    aggregate: Aggregate = "mean_probability",
) -> CalibrationShift:
    """Measure calibration on the source and on a part of the target that no temperature has seen.

    Args:
        models: of one row.
        part_rng: draws the fitting part; give every row the same stream, so that all are scored on the same patients.
        bootstrap_rng: draws patients, then calibrated labels.
        fit_share: of the target's patients of each class, to fit on.
    Raises:
        ValueError: no models, or the share is none.
    """
    if models and models[0].target.task == "multi_label":
        return _not_measured(len(models), num_bins, num_resamples)
    part = divide_patients(models[0].target.scored(aggregate), fit_share, part_rng)
    own = [fit_scored_temperature(model.val, aggregate) for model in models]
    fitted = [fit_scored_temperature(restrict(model.target, part.fit_P), aggregate) for model in models]
    scored = [replace(model, target=restrict(model.target, part.scored_P)) for model in models]
    source_weights_RN = _weights(source_by_seed(models, aggregate)[0].patient_id_N, num_resamples, bootstrap_rng)
    target_weights_RN = _weights(scored[0].target.scored(aggregate).patient_id_N, num_resamples, bootstrap_rng)

    def source(temperatures: Sequence[float | Undefined]) -> Measures:
        missing = _first_missing(temperatures)
        if missing is not None:
            return _undefined(missing, num_resamples)
        scaled = [
            replace(model, source=scale_predictions(model.source, float(temperature)))  # type: ignore[arg-type]
            for model, temperature in zip(models, temperatures, strict=True)
        ]
        return calibration_intervals(source_by_seed(scaled, aggregate), source_weights_RN, level, num_bins)

    def target(temperatures: Sequence[float | Undefined]) -> Measures:
        missing = _first_missing(temperatures)
        if not len(part.scored_P):
            missing = Undefined("no target patient is left to score a temperature on")
        if missing is not None:
            return _undefined(missing, num_resamples)
        scaled = [
            scale_predictions(model.target, float(temperature)).scored(aggregate)  # type: ignore[arg-type]
            for model, temperature in zip(scored, temperatures, strict=True)
        ]
        return calibration_intervals(scaled, target_weights_RN, level, num_bins)

    plain = [1.0] * len(models)
    return CalibrationShift(
        len(part.fit_P),
        len(part.scored_P),
        num_bins,
        tuple(own),
        tuple(fitted),
        source(plain),
        source(own),
        target(plain),
        target(own),
        target(fitted),
        mean_or_undefined(
            [calibrated_error(one.probs_NC, bootstrap_rng, num_bins) for one in source_by_seed(models, aggregate)]
        ),
        mean_or_undefined(
            [calibrated_error(model.target.scored(aggregate).probs_NC, bootstrap_rng, num_bins) for model in scored]
        ),
    )


def _not_measured(num_models: int, num_bins: int, num_resamples: int) -> CalibrationShift:
    """Temperatures and these measures are of one choice among classes."""
    missing = Undefined("calibration is measured of one class a row, not of several labels")
    nothing = _undefined(missing, num_resamples)
    each = (missing,) * num_models
    return CalibrationShift(
        0, 0, num_bins, each, each, nothing, nothing, nothing, nothing, nothing, missing, missing
    )  # fmt: skip


def _weights(
    patient_id_N: npt.NDArray[np.str_], num_resamples: int, rng: np.random.Generator
) -> npt.NDArray[np.uint16]:
    if not len(patient_id_N):
        return np.zeros((num_resamples, 0), dtype=np.uint16)
    return resample_weights(patient_id_N, num_resamples=num_resamples, rng=rng)


def _first_missing(temperatures: Sequence[float | Undefined]) -> Undefined | None:
    return next((one for one in temperatures if isinstance(one, Undefined)), None)


def _undefined(missing: Undefined, num_resamples: int) -> Measures:
    return {name: Interval(missing, missing, missing, num_resamples, num_resamples) for name in MEASURES}
