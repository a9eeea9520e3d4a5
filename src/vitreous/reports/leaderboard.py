"""The leaderboard: one row per encoder and recipe, from predictions alone.

Axes: C class, R resample, N row (one patient; or one sample, where samples are scored by themselves).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, assert_never

import numpy as np

from vitreous.core.finding import Finding
from vitreous.core.input_spec import Modality, item_noun
from vitreous.core.label_sets import Task
from vitreous.core.predictions import Aggregate, Predictions
from vitreous.core.streams import numpy_stream
from vitreous.core.undefined import Undefined
from vitreous.evidence.bca import bootstrap_intervals_with_bca, leave_one_out_weights
from vitreous.evidence.checks import (
    find_collapsed,
    find_flawless,
    find_identical,
    group_identical,
    group_same_decisions,
)
from vitreous.evidence.comparison import Comparison, Difference, compare_resampled, resamples_needed
from vitreous.evidence.intervals import (
    NUM_RESAMPLES,
    Interval,
    bootstrap_intervals,
    check_same_rows,
    find_few_patients,
    mean_over_seeds,
    mean_scores,
    percentile_interval,
    resample_weights,
)
from vitreous.evidence.leaderboard_reach import LeaderboardReach, leaderboard_reach
from vitreous.evidence.optimism import GridChoice, nested_optimism, weights_beside
from vitreous.evidence.paired_tests import Candidate, PairedTest, paired_tests
from vitreous.evidence.task_scores import TASK_SCORES, TaskScores, co_occurrence, score_rows

Method = Literal["percentile", "bca"]


@dataclass(frozen=True)
class RowPredictions:
    """What a row is made of.

    Args:
        encoder, recipe: together the row's name; ``floor`` and e.g. ``majority`` for a floor.
        val, test: seed → predictions, per sample or per patient; the same seeds in both. With folds, those of
            all folds of a seed together.
        is_floor: a row that the others must clear.
        is_constant: predicts one class by design, so that this is no finding.
        trainable_parameters: numbers learned by the recipe, if known.
        total_parameters: those of encoder and head together.
        notes: plain sentences to print with the row, such as an overridden InputSpec.
        choice: what choosing cost, as far as val alone tells it.
        best_of_grid: with K folds, seed → val predictions of the one setting that is best over all of them.
    """

    encoder: str
    recipe: str
    val: Mapping[int, Predictions]
    test: Mapping[int, Predictions]
    is_floor: bool = False
    is_constant: bool = False
    trainable_parameters: int | None = None
    total_parameters: int | None = None
    notes: tuple[str, ...] = ()
    choice: GridChoice = field(default_factory=GridChoice.of_one)
    best_of_grid: Mapping[int, Predictions] | None = None

    @property
    def name(self) -> str:
        """``encoder / recipe``."""
        return f"{self.encoder} / {self.recipe}"


@dataclass(frozen=True)
class LeaderboardRow:
    """One printed row; every number is a mean over seeds, of patients or of samples.

    Args:
        rank: 1 + the number of rows significantly better; None where the metric is undefined.
        letters: two rows share one exactly when they cannot be told apart.
        num_test_scored: rows that metrics count: as many as patients, or the samples.
        val: the metric on val.
        test: every metric on test, with its interval.
        seed_sd: standard deviation over seeds of the metric on test, undefined for one seed.
        to_best: this row minus the best one.
        optimism: the metric on val minus that on test, with bounds over patients: above 0, val promised too much.
        choice: what choosing among the settings of its grid cost.
        confusion_CC: test counts summed over seeds, rows the true class; of labels, how many rows with the one (row)
            are said to have the other (column).
        cleared, not_cleared: names of the floors it is, or is not, significantly above; empty for a floor.
        notes: plain sentences.
    """

    encoder: str
    recipe: str
    is_floor: bool
    rank: int | None
    letters: str
    seeds: tuple[int, ...]
    num_test_patients: int
    num_test_scored: int
    val: float | Undefined
    test: Mapping[str, Interval]
    seed_sd: float | Undefined
    to_best: Difference
    optimism: Interval
    choice: GridChoice
    confusion_CC: tuple[tuple[int, ...], ...]
    trainable_parameters: int | None
    total_parameters: int | None
    cleared: tuple[str, ...]
    not_cleared: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """``encoder / recipe``."""
        return f"{self.encoder} / {self.recipe}"


@dataclass(frozen=True)
class Leaderboard:
    """All rows, best first.

    Args:
        metric: the primary one, by which rows are compared and were chosen on val.
        classes: names of the classes, or with `task` multi_label of the labels.
        best: name of the row of the highest value; None where no row has one.
        level: of the intervals.
        alpha: of the adjusted tests.
        num_resamples: of the intervals; `num_compared` of the paired tests, where many rows need more.
        findings: about the rows and the size of the test split.
        paired: every pair of rows by every test, of the higher row minus the lower one.
        reach: the smallest difference that this cohort can show, and how many patients another one would take.
        method: of the intervals of values; those of differences are percentile, as the tests are.
        aggregate: what metrics count: patients, or with ``none`` samples, of which intervals and tests then draw those
            of one patient together.
        modality: what a sample is.
        baseline: name of the row that the study compares every other row with; None without one.
    """

    rows: tuple[LeaderboardRow, ...]
    metric: str
    classes: tuple[str, ...]
    task: Task
    best: str | None
    level: float
    alpha: float
    num_resamples: int
    num_compared: int
    findings: tuple[Finding, ...]
    comparison: Comparison
    paired: tuple[PairedTest, ...]
    reach: LeaderboardReach
    method: Method
    aggregate: Aggregate
    modality: Modality
    baseline: str | None = None

    @property
    def to_baseline(self) -> dict[str, Difference]:
        """Each other row minus the baseline, by name in the order of the rows; empty without a baseline."""
        if self.baseline is None:
            return {}
        return {
            row.name: self.comparison.difference(row.name, self.baseline)
            for row in self.rows
            if row.name != self.baseline
        }

    @property
    def banners(self) -> tuple[str, ...]:
        """What must be read before any number: patients or events too few to take intervals at their word."""
        return tuple(finding.title for finding in self.findings if finding.code == "few_patients")

    @property
    def scored(self) -> str:
        """What metrics count: ``patients``, ``images`` or ``volumes``."""
        return item_noun(self.modality) if self.aggregate == "none" else "patients"

    @property
    def test_size(self) -> str:
        """``48 test patients``, or ``90 test images of 48 patients``."""
        row = self.rows[0]
        if self.aggregate == "none":
            return f"{row.num_test_scored} test {self.scored} of {row.num_test_patients} patients"
        return f"{row.num_test_patients} test patients"

    @property
    def metric_title(self) -> str:
        """The primary metric in words."""
        return self.scores.metrics[self.metric].title

    @property
    def scores(self) -> TaskScores:
        """The metrics that go with the labels."""
        return TASK_SCORES[self.task]

    def row(self, name: str) -> LeaderboardRow:
        """The row of this name."""
        return next(row for row in self.rows if row.name == name)


def build_leaderboard(
    rows: Sequence[RowPredictions],
    *,
    metric: str = "balanced_accuracy",
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
    level: float = 0.95,
    alpha: float = 0.05,
    method: Method = "percentile",
    aggregate: Aggregate = "mean_probability",
    modality: Modality = "volume",
    baseline: str | None = None,
) -> Leaderboard:
    """Score, resample and compare all rows on the same patients.

    Args:
        metric: one of :data:`~vitreous.evidence.task_scores.TASK_SCORES` for the rows' kind of label.
        seed: of the resamples' random stream.
        num_resamples: of the intervals. The paired tests draw more where Holm's correction over all pairs
            needs them; the first `num_resamples` are the same ones.
        method: of the intervals of values.
        aggregate, modality, baseline: see :class:`Leaderboard`. Patients are resampled in either case.
    Raises:
        ValueError: no rows, two rows of one name, a baseline that is none of them, rows or seeds that are not about the
            same patients, seeds that differ between val and test.
    """
    _check_rows(rows, metric)
    if baseline is not None and baseline not in {row.name for row in rows}:
        raise ValueError(f"the baseline {baseline!r} is no row; rows are {[row.name for row in rows]}")
    val = {row.name: [row.val[k].scored(aggregate) for k in sorted(row.val)] for row in rows}
    test = {row.name: [row.test[k].scored(aggregate) for k in sorted(row.test)] for row in rows}
    check_same_rows({f"{row.name!r} seed {k}": one for row in rows for k, one in zip(sorted(row.test), test[row.name])})
    patient_id_N = test[rows[0].name][0].patient_id_N
    drawn = max(num_resamples, resamples_needed(len(rows), alpha))
    weights_RN = resample_weights(patient_id_N, num_resamples=drawn, rng=numpy_stream(seed, "bootstrap"))
    num_patients = len(np.unique(patient_id_N))
    values = {name: mean_scores(by_seed)[metric] for name, by_seed in test.items()}
    resampled = {name: mean_over_seeds(by_seed, weights_RN, [metric])[metric] for name, by_seed in test.items()}
    comparison = compare_resampled(metric, values, resampled, num_patients=num_patients, alpha=alpha, level=level)
    floors = [floor.name for floor in rows if floor.is_floor]
    notes = _notes(rows, test, comparison)
    val_weights = _ValWeights(patient_id_N, weights_RN[:num_resamples], seed)
    built = [
        _build_row(row, val[row.name], test[row.name], weights_RN[:num_resamples], level, method, comparison, floors,
                   notes[row.name], val_weights)
        for row in rows
    ]  # fmt: skip
    built.sort(key=lambda row: (row.rank is None, -_number(row.test[metric].value)))
    first = test[rows[0].name][0]
    findings = find_few_patients(first)
    findings += find_collapsed(test, [row.name for row in rows if row.is_constant])
    findings += find_flawless(test) + find_identical(test)
    left_out_PN = leave_one_out_weights(patient_id_N)
    candidates = {
        row.name: Candidate(
            dict(zip(row.seeds, test[row.name], strict=True)), _exported_seed(row.seeds, val[row.name], metric),
            resampled[row.name], mean_over_seeds(test[row.name], left_out_PN, [metric])[metric],
        )
        for row in built
    }  # fmt: skip
    return Leaderboard(
        tuple(built), metric, first.classes, first.task, comparison.best, level, alpha, num_resamples,
        drawn, tuple(findings), comparison, paired_tests(candidates, comparison, level),
        leaderboard_reach(comparison, resampled, floors, num_patients=num_patients, alpha=alpha), method, aggregate,
        modality, baseline,
    )  # fmt: skip


def _exported_seed(seeds: Sequence[int], val: Sequence[Predictions], metric: str) -> int:
    """The seed best on val, the lowest on a tie."""
    scores = [score_rows(one)[metric] for one in val]
    return max(zip(seeds, scores, strict=True), key=lambda pair: (_number(pair[1]), -pair[0]))[0]


def _check_rows(rows: Sequence[RowPredictions], metric: str) -> None:
    if not rows:
        raise ValueError("a leaderboard needs at least one row")
    names = [row.name for row in rows]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two rows of a leaderboard have the same name: {doubled}")
    for row in rows:
        if not row.test or set(row.val) != set(row.test):
            raise ValueError(f"{row.name}: val has the seeds {sorted(row.val)}, test {sorted(row.test)}")
    known = TASK_SCORES[next(iter(rows[0].test.values())).task].metrics
    if metric not in known:
        raise ValueError(f"no such metric: {metric!r}; known are {list(known)}")


def _build_row(
    row: RowPredictions,
    val: Sequence[Predictions],
    test: Sequence[Predictions],
    weights_RN: np.ndarray[tuple[int, int], np.dtype[np.uint16]],
    level: float,
    method: Method,
    comparison: Comparison,
    floors: Sequence[str],
    notes: tuple[str, ...],
    val_weights: "_ValWeights",
) -> LeaderboardRow:
    metric = comparison.metric
    confusion_CC = sum(co_occurrence(one) for one in test)
    no_best = Undefined(f"no row has a defined {metric}")
    return LeaderboardRow(
        encoder=row.encoder,
        recipe=row.recipe,
        is_floor=row.is_floor,
        rank=comparison.rank[row.name],
        letters=comparison.letters[row.name],
        seeds=tuple(sorted(row.test)),
        num_test_patients=len(np.unique(test[0].patient_id_N)),
        num_test_scored=len(test[0].patient_id_N),
        val=mean_scores(val)[metric],
        test=_intervals(test, weights_RN, level, method),
        seed_sd=_seed_sd(test, metric),
        to_best=comparison.difference_to_best(row.name) if comparison.best else Difference(*[no_best] * 5),
        optimism=_optimism(val, test, metric, weights_RN, val_weights, level),
        choice=_choice(row, test, metric, weights_RN, level),
        confusion_CC=tuple(tuple(int(count) for count in counts) for counts in np.asarray(confusion_CC)),
        trainable_parameters=row.trainable_parameters,
        total_parameters=row.total_parameters,
        cleared=() if row.is_floor else tuple(floor for floor in floors if comparison.is_better(row.name, floor)),
        not_cleared=() if row.is_floor else tuple(f for f in floors if not comparison.is_better(row.name, f)),
        notes=notes,
    )


class _ValWeights:
    """Weights of val rows beside those of test, drawn once for rows of the same val patients."""

    def __init__(self, tested_id_N: np.ndarray[Any, Any], weights_RN: np.ndarray[Any, Any], seed: int) -> None:
        self._tested, self._weights, self._seed = tested_id_N, weights_RN, seed
        self._drawn: dict[bytes, np.ndarray[Any, Any]] = {}

    def of(self, patient_id_N: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """(R, N) for val rows of these patients."""
        key = "\0".join(patient_id_N.tolist()).encode()
        if key not in self._drawn:
            rng = numpy_stream(self._seed, "bootstrap val")
            self._drawn[key] = weights_beside(patient_id_N, self._tested, self._weights, rng)
        return self._drawn[key]


def _optimism(
    val: Sequence[Predictions],
    test: Sequence[Predictions],
    metric: str,
    weights_RN: np.ndarray[Any, Any],
    val_weights: _ValWeights,
    level: float,
) -> Interval:
    val_R = mean_over_seeds(val, val_weights.of(val[0].patient_id_N), [metric])[metric]
    test_R = mean_over_seeds(test, weights_RN, [metric])[metric]
    promised, kept = mean_scores(val)[metric], mean_scores(test)[metric]
    lost = promised if isinstance(promised, Undefined) else kept if isinstance(kept, Undefined) else promised - kept
    fewest = min(len(np.unique(one[0].patient_id_N)) for one in (val, test))
    return percentile_interval(lost, val_R - test_R, level, num_patients=fewest)


def _choice(
    row: RowPredictions, test: Sequence[Predictions], metric: str, weights_RN: np.ndarray[Any, Any], level: float
) -> GridChoice:
    if row.best_of_grid is None:
        return row.choice
    best = [row.best_of_grid[seed] for seed in sorted(row.best_of_grid)]
    found = nested_optimism({"best": best}, test, metric, weights_RN, level)
    lost = found.optimism
    return GridChoice(
        row.choice.num_settings, found.val.value, found.test.value, lost.value, lost.low, lost.high, "folds"
    )


def _intervals(
    test: Sequence[Predictions],
    weights_RN: np.ndarray[tuple[int, int], np.dtype[np.uint16]],
    level: float,
    method: Method,
) -> dict[str, Interval]:
    match method:
        case "percentile":
            return bootstrap_intervals(test, weights_RN, level)
        case "bca":
            return {name: both.bca for name, both in bootstrap_intervals_with_bca(test, weights_RN, level).items()}
    assert_never(method)


def _seed_sd(test: Sequence[Predictions], metric: str) -> float | Undefined:
    if len(test) < 2:
        return Undefined("one seed has no spread")
    scores = [score_rows(one)[metric] for one in test]
    missing = [score for score in scores if isinstance(score, Undefined)]
    return missing[0] if missing else float(np.std([float(score) for score in scores], ddof=1))  # type: ignore[arg-type]


def _notes(
    rows: Sequence[RowPredictions], test: Mapping[str, Sequence[Predictions]], comparison: Comparison
) -> dict[str, tuple[str, ...]]:
    floors = [row.name for row in rows if row.is_floor]
    identical, same = group_identical(test), group_same_decisions(test)
    result = {}
    for row in rows:
        notes = list(row.notes)
        found = find_collapsed({row.name: test[row.name]}, [row.name] if row.is_constant else [])
        notes += [finding.title.removeprefix(f"{row.name} ") for finding in found]
        notes += [f"identical predictions to {_others(group, row.name)}" for group in identical if row.name in group]
        notes += [f"the same decisions as {_others(group, row.name)}" for group in same if row.name in group]
        missed = [] if row.is_floor else [floor for floor in floors if not comparison.is_better(row.name, floor)]
        notes += [f"does not clear the floor{'s' if len(missed) > 1 else ''} {', '.join(missed)}"] if missed else []
        result[row.name] = tuple(note.rstrip(".") for note in notes)
    return result


def _others(group: Sequence[str], name: str) -> str:
    return ", ".join(other for other in group if other != name)


def _number(value: float | Undefined) -> float:
    return -np.inf if isinstance(value, Undefined) else value
