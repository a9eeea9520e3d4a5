"""What stands behind a row of the leaderboard beside its metrics: calibration, operating points, curves, subgroups.

All of it from predictions on disk: thresholds and temperatures are chosen on val, intervals come from the resamples of
patients that the leaderboard uses. Classes are held one against the rest, labels each by itself.

Axes: N row, R resample.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vitreous.core.predictions import Aggregate, Predictions
from vitreous.core.streams import numpy_stream
from vitreous.core.undefined import Undefined
from vitreous.evidence.abstention import AbstentionPoint, abstention_curve
from vitreous.evidence.calibration import (
    calibrated_error,
    calibration_intervals,
    fit_scored_temperature,
    mean_or_undefined,
    scale_predictions,
)
from vitreous.evidence.curves import Band, average_precision, precision_recall_band, roc_band
from vitreous.evidence.decision_curve import DecisionPoint, decision_curve
from vitreous.evidence.intervals import Interval, resample_weights
from vitreous.evidence.one_vs_rest import binary_of
from vitreous.evidence.operating_points import OperatingPoint, Rule, Threshold, apply_thresholds, choose_threshold
from vitreous.evidence.reliability import ReliabilityBin, reliability_curve
from vitreous.evidence.sample_groups import ColumnGroups, column_groups
from vitreous.reports.leaderboard import Leaderboard, RowPredictions

MAX_ROWS = 24  # rows with evidence, best first
MAX_CURVES = 8  # of them with ROC and precision-recall curves
FIXED = 0.9  # sensitivity, or specificity, that is asked for on val
RULES: tuple[tuple[Rule, float | None], ...] = (
    ("youden", None),
    ("at_specificity", FIXED),
    ("at_sensitivity", FIXED),
)
CURVE_RESAMPLES = 500  # the first of the leaderboard's; of bands and curves of many points
NUM_BINS = 10
THRESHOLDS = tuple(k / 20 for k in range(1, 20))
COVERAGES = tuple(k / 10 for k in range(1, 11))
_GRID = tuple(k / 50 for k in range(51))


@dataclass(frozen=True)
class OperatingSetting:
    """One rule, and what its thresholds, frozen on val, give on test."""

    rule: Rule
    target: float | None
    point: OperatingPoint | Undefined


@dataclass(frozen=True)
class TargetEvidence:
    """One class against the rest, or one label.

    Args:
        share: of test rows that are of the class, or have the label: the chance level of `average_precision`.
        roc, precision_recall: None where the row has no figures.
        decision: net benefit by threshold probability.
    """

    positive: str
    share: float
    average_precision: Interval
    operating: tuple[OperatingSetting, ...]
    decision: tuple[DecisionPoint, ...]
    roc: Band | Undefined | None
    precision_recall: Band | Undefined | None


@dataclass(frozen=True)
class CalibrationEvidence:
    """Whether probabilities mean what they say, of the predicted class or of one label.

    Args:
        of: ``predicted class`` or the label.
        bins: of equal mass.
        measures: ECE, Brier score and NLL on test; `scaled` after each seed's temperature, fitted on its val.
        chance_error: ECE to expect from a perfectly calibrated model on these rows and bins.
    """

    of: str
    temperature: float | Undefined
    bins: tuple[ReliabilityBin, ...] | Undefined
    measures: Mapping[str, Interval]
    chance_error: float | Undefined
    scaled: Mapping[str, Interval] | Undefined


@dataclass(frozen=True)
class AbstentionEvidence:
    """A metric on the most confident share of rows, of the whole decision or of one label at one half."""

    of: str
    metric: str
    points: tuple[AbstentionPoint, ...]


@dataclass(frozen=True)
class RowEvidence:
    """All of one row."""

    encoder: str
    recipe: str
    targets: tuple[TargetEvidence, ...]
    calibration: tuple[CalibrationEvidence, ...]
    abstention: tuple[AbstentionEvidence, ...]
    subgroups: tuple[ColumnGroups, ...]

    @property
    def name(self) -> str:
        """``encoder / recipe``."""
        return f"{self.encoder} / {self.recipe}"


def gather_evidence(
    rows: Sequence[RowPredictions],
    leaderboard: Leaderboard,
    columns: Mapping[str, Mapping[str, str]],
    *,
    seed: int = 0,
) -> tuple[RowEvidence, ...]:
    """Evidence of the best rows that are no floors, of all rows where there are only floors; best first.

    Args:
        rows: what the leaderboard was built from.
        columns: domain column → sample id → value.
        seed: of the resamples, as given to the leaderboard.
    """
    by_name = {row.name: row for row in rows}
    ranked = [by_name[row.name] for row in leaderboard.rows]
    wanted = [row for row in ranked if not row.is_floor] or ranked
    scored = next(iter(wanted[0].test.values())).scored(leaderboard.aggregate)
    weights_RN = resample_weights(
        scored.patient_id_N, num_resamples=leaderboard.num_resamples, rng=numpy_stream(seed, "bootstrap")
    )
    return tuple(
        _row_evidence(row, leaderboard, columns, weights_RN, seed, has_curves=place < MAX_CURVES)
        for place, row in enumerate(wanted[:MAX_ROWS])
    )


def _row_evidence(
    row: RowPredictions,
    leaderboard: Leaderboard,
    columns: Mapping[str, Mapping[str, str]],
    weights_RN: npt.NDArray[np.uint16],
    seed: int,
    *,
    has_curves: bool,
) -> RowEvidence:
    seeds, aggregate, level = sorted(row.test), leaderboard.aggregate, leaderboard.level
    raw_val, raw_test = [row.val[k] for k in seeds], [row.test[k] for k in seeds]
    val, test = ([one.scored(aggregate) for one in part] for part in (raw_val, raw_test))
    few_RN = weights_RN[:CURVE_RESAMPLES]
    if test[0].task == "multi_label":
        judged = {
            label: ([binary_of(one, label) for one in raw_val], [binary_of(one, label) for one in raw_test])
            for label in test[0].classes
        }
        abstaining = [
            AbstentionEvidence(label, "accuracy", tuple(abstention_curve(
                [binary_of(one, label) for one in test], "accuracy", few_RN, COVERAGES, level)))
            for label in test[0].classes
        ]  # fmt: skip
    else:
        judged = {"predicted class": (raw_val, raw_test)}
        points = abstention_curve(test, leaderboard.metric, few_RN, COVERAGES, level)
        abstaining = [AbstentionEvidence("predicted class", leaderboard.metric, tuple(points))]
    return RowEvidence(
        row.encoder,
        row.recipe,
        tuple(
            _target_evidence(val, test, positive, weights_RN, level, has_curves=has_curves)
            for positive in targets(test[0])
        ),
        tuple(
            _calibration_evidence(of, *parts, aggregate, weights_RN, level, seed) for of, parts in judged.items()
        ),
        tuple(abstaining),
        _subgroups(raw_test, test[0], leaderboard, columns, weights_RN),
    )  # fmt: skip


def targets(predictions: Predictions) -> tuple[str, ...]:
    """What curves are drawn of: every label, every class, and of two classes the second."""
    if predictions.task == "multi_class" and len(predictions.classes) == 2:
        return predictions.classes[1:]
    return predictions.classes


def _target_evidence(
    val: Sequence[Predictions],
    test: Sequence[Predictions],
    positive: str,
    weights_RN: npt.NDArray[np.uint16],
    level: float,
    *,
    has_curves: bool,
) -> TargetEvidence:
    c = test[0].classes.index(positive)
    few_RN = weights_RN[:CURVE_RESAMPLES]
    return TargetEvidence(
        positive,
        float(test[0].targets_NC[:, c].mean()),
        average_precision(test, positive, few_RN, level),
        tuple(
            OperatingSetting(rule, target, _operate(val, test, positive, rule, target, weights_RN, level))
            for rule, target in RULES
        ),
        tuple(decision_curve(test, positive, few_RN, THRESHOLDS, level)),
        roc_band(test, positive, few_RN, _GRID, level) if has_curves else None,
        precision_recall_band(test, positive, few_RN, _GRID[1:], level) if has_curves else None,
    )


def _operate(
    val: Sequence[Predictions],
    test: Sequence[Predictions],
    positive: str,
    rule: Rule,
    target: float | None,
    weights_RN: npt.NDArray[np.uint16],
    level: float,
) -> OperatingPoint | Undefined:
    frozen: list[Threshold] = []
    for one in val:
        threshold = choose_threshold(one, positive, rule, target)
        if isinstance(threshold, Undefined):
            return threshold
        frozen.append(threshold)
    return apply_thresholds(test, frozen, weights_RN, level)


def _calibration_evidence(
    of: str,
    val: Sequence[Predictions],
    test: Sequence[Predictions],
    aggregate: Aggregate,
    weights_RN: npt.NDArray[np.uint16],
    level: float,
    seed: int,
) -> CalibrationEvidence:
    scored = [one.scored(aggregate) for one in test]
    temperatures = [fit_scored_temperature(one, aggregate) for one in val]
    temperature = mean_or_undefined(temperatures)
    scaled: Mapping[str, Interval] | Undefined
    if isinstance(temperature, Undefined):
        scaled = temperature
    else:
        mended = [
            scale_predictions(one, warmth).scored(aggregate)
            for one, warmth in zip(test, temperatures, strict=True)
            if not isinstance(warmth, Undefined)
        ]
        scaled = calibration_intervals(mended, weights_RN, level, NUM_BINS)
    rng = numpy_stream(seed, "calibrated", of)
    bins = reliability_curve(scored, weights_RN[:CURVE_RESAMPLES], num_bins=NUM_BINS, level=level)
    return CalibrationEvidence(
        of,
        temperature,
        bins if isinstance(bins, Undefined) else tuple(bins),
        calibration_intervals(scored, weights_RN, level, NUM_BINS),
        mean_or_undefined([calibrated_error(one.probs_NC, rng, NUM_BINS) for one in scored]),
        scaled,
    )


def _subgroups(
    raw_test: Sequence[Predictions],
    scored: Predictions,
    leaderboard: Leaderboard,
    columns: Mapping[str, Mapping[str, str]],
    weights_RN: npt.NDArray[np.uint16],
) -> tuple[ColumnGroups, ...]:
    patients, first = np.unique(scored.patient_id_N, return_index=True)
    weights_of = {patient: weights_RN[:, n] for patient, n in zip(patients.tolist(), first.tolist(), strict=True)}
    share_right = "accuracy" if "accuracy" in leaderboard.scores.metrics else "exact_match"
    names = list(dict.fromkeys([leaderboard.metric, "auroc", share_right]))
    return tuple(
        column_groups(
            raw_test, column, value_of, weights_of, names, aggregate=leaderboard.aggregate, level=leaderboard.level
        )
        for column, value_of in columns.items()
    )
