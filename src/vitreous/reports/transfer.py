"""What transferring trained models to one other cohort showed: every row with its gaps, compared with the others.

Axes: R resample, C class.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vitreous.core.finding import Finding
from vitreous.core.label_sets import Task
from vitreous.core.predictions import Aggregate
from vitreous.core.streams import numpy_stream
from vitreous.core.undefined import Undefined
from vitreous.evidence.calibration import NUM_BINS
from vitreous.evidence.calibration_shift import FIT_SHARE, CalibrationShift, measure_calibration_shift
from vitreous.evidence.comparison import Comparison, Difference, compare_with_best, resamples_needed
from vitreous.evidence.intervals import NUM_RESAMPLES, check_same_rows, find_few_patients, resample_weights
from vitreous.evidence.task_scores import TASK_SCORES, TaskScores
from vitreous.evidence.transfer import (
    Gap,
    ModelPredictions,
    compare_gaps,
    find_absent_classes,
    measure_gaps,
    source_by_seed,
    target_by_model,
)


@dataclass(frozen=True)
class TransferPredictions:
    """What a row is made of.

    Args:
        encoder, recipe: together the row's name.
        models: one per seed, with folds one per seed and fold.
        is_constant: predicts one class by design: it has nothing to lose, and its gap is not compared.
    """

    encoder: str
    recipe: str
    models: tuple[ModelPredictions, ...]
    is_floor: bool = False
    is_constant: bool = False

    @property
    def name(self) -> str:
        """``encoder / recipe``."""
        return f"{self.encoder} / {self.recipe}"


@dataclass(frozen=True)
class TransferRow:
    """One printed row; numbers are means over its models, of patients or of samples.

    Args:
        gaps: metric → its value on both cohorts and the gap.
        to_best: this row's metric on the target minus the best row's.
        letters: two rows share one exactly when their metric on the target cannot be told apart.
        gap_to_least: how much more of the metric this row loses than the row that loses least, at least 0.
        gap_letters: the same as `letters` of the gap; empty for a constant row.
    """

    encoder: str
    recipe: str
    is_floor: bool
    is_constant: bool
    seeds: tuple[int, ...]
    gaps: Mapping[str, Gap]
    calibration: CalibrationShift
    to_best: Difference
    letters: str
    gap_to_least: Difference
    gap_letters: str

    @property
    def name(self) -> str:
        """``encoder / recipe``."""
        return f"{self.encoder} / {self.recipe}"


@dataclass(frozen=True)
class TransferTarget:
    """All rows on one target cohort, the best on it first.

    Args:
        name: of the cohort.
        metric: the study's primary one.
        ordered: the classes are grades.
        num_source, num_target: patients.
        source_counts_C, target_counts_C: patients (or samples, as `aggregate` says) of each class.
        best: the row of the highest metric on the target; `least` the row that loses least of it.
        level: of the intervals, from `num_resamples` resamples; tests use `num_compared`.
        fit_share: of the target's patients, for the temperature.
    """

    name: str
    metric: str
    classes: tuple[str, ...]
    task: Task
    ordered: bool
    rows: tuple[TransferRow, ...]
    num_source: int
    num_target: int
    source_counts_C: tuple[int, ...]
    target_counts_C: tuple[int, ...]
    best: str | None
    least: str | None
    level: float
    alpha: float
    num_resamples: int
    num_compared: int
    fit_share: float
    aggregate: Aggregate
    findings: tuple[Finding, ...]

    @property
    def counted(self) -> str:
        """What metrics count: ``patients`` or ``samples``."""
        return "samples" if self.aggregate == "none" else "patients"

    @property
    def metric_title(self) -> str:
        """The primary metric in words."""
        return self.scores.metrics[self.metric].title

    @property
    def scores(self) -> TaskScores:
        """The metrics that go with the labels."""
        return TASK_SCORES[self.task]


def build_target(
    name: str,
    rows: Sequence[TransferPredictions],
    *,
    metric: str = "balanced_accuracy",
    ordered: bool = False,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
    level: float = 0.95,
    alpha: float = 0.05,
    fit_share: float = FIT_SHARE,
    num_bins: int = NUM_BINS,
    aggregate: Aggregate = "mean_probability",
    findings: Sequence[Finding] = (),
) -> TransferTarget:
    """Score, resample and compare all rows on one target cohort.

    The source's patients are drawn from the stream of the leaderboard, so that its intervals are the same here.

    Args:
        name: of the target; also names its random streams.
        metric: a name of :data:`~vitreous.evidence.task_scores.TASK_SCORES`.
        aggregate: what metrics count; patients are resampled in either case.
        findings: known beforehand.
    Raises:
        ValueError: no rows, two rows of one name, or rows that are not about the same patients.
    """
    if not rows:
        raise ValueError("a transfer needs at least one row")
    if len({row.name for row in rows}) < len(rows):
        raise ValueError(f"two rows have the same name: {sorted(row.name for row in rows)}")
    source = {row.name: source_by_seed(row.models, aggregate) for row in rows}
    target = {row.name: target_by_model(row.models, aggregate) for row in rows}
    for cohort in (source, target):
        check_same_rows({f"{row!r} model {k}": one for row, by_seed in cohort.items() for k, one in enumerate(by_seed)})
    some_source, some_target = source[rows[0].name][0], target[rows[0].name][0]
    compared = max(num_resamples, resamples_needed(len(rows), alpha))
    source_RN = resample_weights(some_source.patient_id_N, num_resamples=compared, rng=numpy_stream(seed, "bootstrap"))
    target_RN = resample_weights(
        some_target.patient_id_N, num_resamples=compared, rng=numpy_stream(seed, "transfer", name)
    )
    on_target = compare_with_best(target, metric, target_RN, alpha, level)
    losing = [row.name for row in rows if not row.is_constant]
    of_gap = (
        compare_gaps(
            {row: source[row] for row in losing}, {row: target[row] for row in losing}, metric, source_RN, target_RN,
            alpha, level,
        )
        if losing else None
    )  # fmt: skip
    built = [
        TransferRow(
            row.encoder,
            row.recipe,
            row.is_floor,
            row.is_constant,
            tuple(sorted({model.seed for model in row.models})),
            measure_gaps(
                source[row.name], target[row.name], source_RN[:num_resamples], target_RN[:num_resamples], level,
                ordered=ordered,
            ),
            measure_calibration_shift(
                row.models,
                part_rng=numpy_stream(seed, "temperature part", name),
                bootstrap_rng=numpy_stream(seed, "calibration", name),
                fit_share=fit_share,
                num_bins=num_bins,
                num_resamples=num_resamples,
                level=level,
                aggregate=aggregate,
            ),
            _to_best(on_target, row.name),
            on_target.letters[row.name],
            _more_lost(of_gap, row),
            "" if of_gap is None or row.is_constant else of_gap.letters[row.name],
        )
        for row in rows
    ]  # fmt: skip
    built.sort(key=lambda row: -_number(row.gaps[metric].target.value))
    return TransferTarget(
        name,
        metric,
        some_target.classes,
        some_target.task,
        ordered,
        tuple(built),
        len(np.unique(some_source.patient_id_N)),
        len(np.unique(some_target.patient_id_N)),
        tuple(some_source.targets_NC.sum(axis=0).tolist()),
        tuple(some_target.targets_NC.sum(axis=0).tolist()),
        on_target.best,
        None if of_gap is None else of_gap.best,
        level,
        alpha,
        num_resamples,
        compared,
        fit_share,
        aggregate,
        (
            *findings,
            *find_absent_classes(some_target, name),
            *find_few_patients(some_target, f"The cohort {name}", name),
        ),
    )


def _to_best(compared: Comparison, row: str) -> Difference:
    if compared.best is None:
        return Difference(*[Undefined(f"no row has a defined {compared.metric} on the target")] * 5)
    return compared.difference_to_best(row)


def _more_lost(compared: Comparison | None, row: TransferPredictions) -> Difference:
    """Gap of this row minus that of the row that loses least."""
    if row.is_constant:
        return Difference(*[Undefined("a row that always says the same has nothing to lose")] * 5)
    if compared is None or compared.best is None:
        return Difference(*[Undefined("no row has a defined gap")] * 5)
    return compared.difference(compared.best, row.name)


def _number(value: float | Undefined) -> float:
    return -np.inf if isinstance(value, Undefined) else value
