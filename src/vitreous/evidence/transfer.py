"""The generalisation gap: what a model loses on another cohort, and how much of it is the other mix of classes.

Axes: N row (one patient; or one sample, where samples are scored by themselves), C class, R resample, K model.

Source test set and target cohort are different patients. Both are resampled, independently of each other; the gap is
computed in each pair of resamples, and its interval is the percentile interval of these differences.

Prevalence: a metric is recomputed on the target with each patient weighed by (share of the class in the source) /
(share in the target), in every pair of resamples anew. What remains of the gap is not due to the mix of classes, if
patients of one class are alike in both (label shift; Saerens et al. 2002, Lipton et al. 2018).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vitreous.core.finding import Finding
from vitreous.core.label_sets import Task, name_label_set
from vitreous.core.predictions import Aggregate, Predictions, join_predictions
from vitreous.core.undefined import Undefined
from vitreous.evidence.comparison import Comparison, check_enough_resamples, compare_resampled
from vitreous.evidence.intervals import Interval, check_same_rows, mean_scores, percentile_interval
from vitreous.evidence.scores import FloatArray, IntArray, quadratic_weighted_kappa, tally
from vitreous.evidence.task_scores import TASK_SCORES, resample_rows

KAPPA = "quadratic_weighted_kappa"
_MEANS_OVER_CLASSES = frozenset(name for one in TASK_SCORES.values() for name in one.metrics) - {
    "accuracy",
    "exact_match",
}
Weights = npt.NDArray[np.generic]
_Seeds = Sequence[Predictions]


@dataclass(frozen=True)
class ModelPredictions:
    """What one trained model said of every cohort, per sample.

    Args:
        seed: of its training; models of the same seed are those of the folds.
        val, source: its own val and test samples of the source cohort.
        target: samples of the target cohort, the same ones in the same order for every model.
    """

    seed: int
    val: Predictions
    source: Predictions
    target: Predictions


def source_by_seed(models: Sequence[ModelPredictions], aggregate: Aggregate = "mean_probability") -> list[Predictions]:
    """Source test predictions as they are scored, those of all folds of a seed together, by rising seed."""
    seeds = sorted({model.seed for model in models})
    parts = {seed: [model.source for model in models if model.seed == seed] for seed in seeds}
    return [join_predictions(parts[seed]).scored(aggregate) for seed in seeds]


def target_by_model(models: Sequence[ModelPredictions], aggregate: Aggregate = "mean_probability") -> list[Predictions]:
    """Target predictions as they are scored, one for each model."""
    return [model.target.scored(aggregate) for model in models]


@dataclass(frozen=True)
class Gap:
    """One metric of one model on two cohorts; values are means over seeds.

    Args:
        source: on the source's test patients.
        target: on the target's patients.
        gap: source − target; above 0 something is lost.
        at_source_mix: on the target, its patients weighed to the source's mix of classes.
        gap_at_source_mix: source − at_source_mix: the loss that the mix of classes does not explain.
        due_to_mix: at_source_mix − target: the loss that it does.
    """

    source: Interval
    target: Interval
    gap: Interval
    at_source_mix: Interval
    gap_at_source_mix: Interval
    due_to_mix: Interval


@dataclass(frozen=True)
class _Resampled:
    """A metric on the cohort itself and in every resample."""

    value: float | Undefined
    values_R: FloatArray

    def minus(self, other: "_Resampled") -> "_Resampled":
        missing = next((one.value for one in (self, other) if isinstance(one.value, Undefined)), None)
        if missing is not None:
            return _Resampled(missing, self.values_R - other.values_R)
        return _Resampled(self.value - other.value, self.values_R - other.values_R)  # type: ignore[operator]


def transfer_metrics(classes: Sequence[str], *, ordered: bool, task: Task = "multi_class") -> tuple[str, ...]:
    """All metrics of these classes or labels; of ordered classes (grades) the quadratic weighted kappa as well."""
    return (*TASK_SCORES[task].names(classes), *((KAPPA,) if ordered else ()))


def measure_gaps(
    source_by_seed: _Seeds,
    target_by_model: _Seeds,
    source_weights_RN: Weights,
    target_weights_RN: Weights,
    level: float = 0.95,
    *,
    ordered: bool = False,
) -> dict[str, Gap]:
    """Every metric on both cohorts, and the gap between them.

    Args:
        source_by_seed: test predictions as scored, one per seed, on the same rows.
        target_by_model: predictions as scored, one per trained model (seed, or fold and seed), on the same rows.
        source_weights_RN, target_weights_RN: of :func:`~vitreous.evidence.intervals.resample_weights`, drawn from
            different streams, equally many.
        ordered: the classes are grades; adds the quadratic weighted kappa.
    Raises:
        ValueError: the cohorts differ in their classes, or the weights in their number of resamples.
    """
    _check_cohorts(source_by_seed, target_by_model, source_weights_RN, target_weights_RN)
    first = source_by_seed[0]
    if ordered and first.task == "multi_label":
        raise ValueError("grades are classes; of several labels a row there is no kappa of them")
    names = transfer_metrics(first.classes, ordered=ordered, task=first.task)
    source = _resample(source_by_seed, source_weights_RN, names)
    target = _resample(target_by_model, target_weights_RN, names)
    mixed = _resample_at_mix(first.y_true_N, source_weights_RN, target_by_model, target_weights_RN, names)
    other_classes = _other_classes(source_by_seed[0], target_by_model[0])
    num_source, num_target = (len(np.unique(one[0].patient_id_N)) for one in (source_by_seed, target_by_model))

    def interval(found: _Resampled, num_patients: int) -> Interval:
        return percentile_interval(found.value, found.values_R, level, num_patients=num_patients)

    smaller = min(num_source, num_target)
    return {
        name: Gap(
            interval(source[name], num_source),
            interval(target[name], num_target),
            interval(_difference(name, source[name], target[name], other_classes), smaller),
            interval(mixed[name], num_target),
            interval(source[name].minus(mixed[name]), smaller),
            interval(mixed[name].minus(target[name]), num_target),
        )
        for name in names
    }


def compare_gaps(
    source: Mapping[str, _Seeds],
    target: Mapping[str, _Seeds],
    metric: str,
    source_weights_RN: Weights,
    target_weights_RN: Weights,
    alpha: float = 0.05,
    level: float = 0.95,
) -> Comparison:
    """Which models lose more: paired on the source's resamples and on the target's.

    The number compared is target − source, so that higher is better, as in every comparison: the best row is the one
    that loses least.

    Args:
        source, target: row → predictions as scored; each on the same rows for all models.
    Raises:
        ValueError: rows on different patients, rows of one cohort only, or too few resamples for this many rows.
    """
    if list(source) != list(target):
        raise ValueError(f"the source has the rows {list(source)}, the target {list(target)}")
    for cohort in (source, target):
        check_same_rows({f"{name!r}": one for name, by_seed in cohort.items() for one in by_seed[:1]})
    check_enough_resamples(len(source_weights_RN), len(source), alpha)
    other_classes = _other_classes(next(iter(source.values()))[0], next(iter(target.values()))[0])
    change = {
        name: _difference(
            metric,
            _resample(target[name], target_weights_RN, [metric])[metric],
            _resample(source[name], source_weights_RN, [metric])[metric],
            other_classes,
        )
        for name in source
    }
    smaller = min(len(np.unique(next(iter(cohort.values()))[0].patient_id_N)) for cohort in (source, target))
    return compare_resampled(
        metric,
        {name: one.value for name, one in change.items()},
        {name: one.values_R for name, one in change.items()},
        num_patients=smaller,
        alpha=alpha,
        level=level,
    )


def mix_weights(y_true_N: IntArray, weights_RN: Weights, wanted_RC: FloatArray) -> FloatArray:
    """Weights (R, N) under which the classes of each resample have the wanted shares; they sum to 1.

    A resample that lacks a wanted class is all 0, so that every metric of it is undefined.

    Args:
        y_true_N: class indices.
        weights_RN: how often each row was drawn.
        wanted_RC: shares or counts, > 0 in some class.
    """
    drawn_RN = np.asarray(weights_RN, dtype=np.float64)
    wanted_RC = wanted_RC / wanted_RC.sum(axis=1, keepdims=True)
    present_RC = drawn_RN @ np.eye(wanted_RC.shape[1])[y_true_N]
    ratio_RC = np.zeros_like(wanted_RC)
    np.divide(wanted_RC, present_RC, out=ratio_RC, where=present_RC > 0)
    ratio_RC[((wanted_RC > 0) & (present_RC == 0)).any(axis=1)] = 0.0
    result: FloatArray = drawn_RN * ratio_RC[:, y_true_N]
    return result


def find_absent_classes(target: Predictions, name: str) -> list[Finding]:
    """Say which classes the target cohort lacks, since that leaves per-class and mix metrics without a value."""
    noun = TASK_SCORES[target.task].noun
    plural = {"class": "classes", "label": "labels"}[noun]
    absent = [label for label, has_N in zip(target.classes, target.targets_NC.T, strict=True) if not has_N.any()]
    if not absent:
        return []
    return [
        Finding(
            "class_absent",
            "warning",
            f"The cohort {name} has no patient of {len(absent)} {'class(es)' if noun == 'class' else 'label(s)'}.",
            f"{', '.join(absent)}: metrics of these {plural} and every metric at the source's mix are undefined on it, "
            f"and so is the gap of means over {plural}, which would compare means over different {plural}",
            f"Compare the {plural} that both cohorts have, one by one.",
        )
    ]


def _other_classes(source: Predictions, target: Predictions) -> Undefined | None:
    """Why a mean over the source's classes cannot be held against one over the target's; None where it can."""
    classes = source.classes
    only_source, only_target = (
        sorted(_counted(one) - _counted(other)) for one, other in ((source, target), (target, source))
    )
    if not only_source and not only_target:
        return None
    where = [("source", only_source), ("target", only_target)]
    told = [f"{', '.join(repr(classes[c]) for c in only)} only in the {name}" for name, only in where if only]
    plural = {"class": "classes", "label": "labels"}[TASK_SCORES[source.task].noun]
    return Undefined(f"means over different {plural}: {'; '.join(told)}")


def _counted(one: Predictions) -> set[int]:
    """What a mean is over: classes that occur, or labels that some rows have and some have not."""
    has_NC = one.targets_NC
    is_counted_C = has_NC.any(axis=0) & (~has_NC.all(axis=0) if one.task == "multi_label" else True)
    return set(np.flatnonzero(is_counted_C).tolist())


def _difference(name: str, a: _Resampled, b: _Resampled, other_classes: Undefined | None) -> _Resampled:
    if other_classes is not None and name in _MEANS_OVER_CLASSES:
        return _Resampled(other_classes, np.full(len(a.values_R), np.nan))
    return a.minus(b)


def _resample(by_seed: _Seeds, weights_RN: Weights, names: Sequence[str]) -> dict[str, _Resampled]:
    """Means over seeds; where any seed is undefined, so is the mean."""
    check_same_rows({f"seed {k}": one for k, one in enumerate(by_seed)})
    return _averaged(by_seed, np.ones((1, len(by_seed[0].y_true_N))), weights_RN, names)


def _averaged(by_seed: _Seeds, own_1N: FloatArray, weights_RN: Weights, names: Sequence[str]) -> dict[str, _Resampled]:
    own = [_score(one, own_1N, names) for one in by_seed]
    resampled = [_score(one, weights_RN, names) for one in by_seed]
    reasons = mean_scores(by_seed)
    return {
        name: _Resampled(
            _number(float(np.mean([values[name][0] for values in own])), reasons.get(name)),
            np.mean([values[name] for values in resampled], axis=0),
        )
        for name in names
    }


def _resample_at_mix(
    source_y_N: IntArray, source_weights_RN: Weights, target: _Seeds, target_weights_RN: Weights, names: Sequence[str]
) -> dict[str, _Resampled]:
    """Target metrics at the source's mix. Patients of classes that the source lacks weigh nothing, and are left out.

    With several labels a row, the mix is that of the sets of labels.
    """
    classes, task = target[0].classes, target[0].task
    kinds_C, target_kind_N = np.arange(len(classes)), target[0].y_true_N
    if task == "multi_label":
        kinds_C = np.unique(np.concatenate([source_y_N, target_kind_N]))
        source_y_N, target_kind_N = np.searchsorted(kinds_C, source_y_N), np.searchsorted(kinds_C, target_kind_N)
    one_hot_NC = np.eye(len(kinds_C))[source_y_N]
    counts_C = one_hot_NC.sum(axis=0)
    absent = [
        name_label_set(int(kind), classes, task)
        for c, kind in enumerate(kinds_C)
        if counts_C[c] and not (target_kind_N == c).any()
    ]
    if absent:
        kind = "class" if task == "multi_class" else "set of labels"
        missing = Undefined(
            f"the source's {kind} {', '.join(map(repr, absent))} does not occur in the target: its mix cannot be made"
        )
        return {name: _Resampled(missing, np.full(len(source_weights_RN), np.nan)) for name in names}
    kept_N = counts_C[target_kind_N] > 0
    target = [one.select(kept_N) for one in target]
    y_true_N = target_kind_N[kept_N]
    own_1N = mix_weights(y_true_N, np.ones((1, len(y_true_N))), counts_C[None])
    wanted_RC = np.asarray(source_weights_RN, dtype=np.float64) @ one_hot_NC
    drawn_RN = mix_weights(y_true_N, target_weights_RN[:, kept_N], wanted_RC)
    return _averaged(target, own_1N, drawn_RN, names)


def _score(one: Predictions, weights_RN: Weights, names: Sequence[str]) -> dict[str, FloatArray]:
    found = resample_rows(one, weights_RN, [name for name in names if name != KAPPA])
    if KAPPA in names:
        counted = tally(one.y_true_N, one.probs_NC, weights_RN, with_auroc=False)
        found[KAPPA] = quadratic_weighted_kappa(counted.confusion_CCR)
    return found


def _number(value: float, otherwise: float | Undefined | None) -> float | Undefined:
    """The value, or why it is NaN."""
    if not np.isnan(value):
        return value
    if isinstance(otherwise, Undefined):
        return otherwise
    return Undefined("truth and prediction are all of one and the same class")


def _check_cohorts(source: _Seeds, target: _Seeds, source_weights_RN: Weights, target_weights_RN: Weights) -> None:
    if not source or not target:
        raise ValueError("there are no predictions to score")
    if source[0].classes != target[0].classes:
        raise ValueError(f"source and target differ in their classes: {source[0].classes} and {target[0].classes}")
    if len(source_weights_RN) != len(target_weights_RN):
        raise ValueError(
            f"source and target need equally many resamples; got {len(source_weights_RN)} and {len(target_weights_RN)}"
        )
