"""Train × test: models of each domain scored on every domain.

Axes: N row (one patient; or one sample, where samples are scored by themselves), R resample.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vitreous.core.predictions import Predictions
from vitreous.core.undefined import Undefined
from vitreous.evidence.calibration import restrict
from vitreous.evidence.intervals import (
    NUM_RESAMPLES,
    Interval,
    check_same_rows,
    mean_over_seeds,
    mean_scores,
    percentile_interval,
    resample_weights,
)
from vitreous.evidence.scores import FloatArray


@dataclass(frozen=True)
class DomainCell:
    """One model on one domain.

    Args:
        score: of the metric, mean over seeds.
        loss: the score of the domain's own model minus this one, on the same patients; above 0, training elsewhere
            costs something. Undefined where the domain has no model of its own.
        num_patients: scored.
    """

    score: Interval
    loss: Interval
    num_patients: int


@dataclass(frozen=True)
class DomainMatrix:
    """All models of one row of the leaderboard, train domains down, test domains across."""

    metric: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    cells: tuple[tuple[DomainCell, ...], ...]


def measure_domains(
    by_train: Mapping[str, Sequence[Predictions]],
    domain_of: Mapping[str, str],
    metric: str,
    *,
    stream_of: Callable[[str], np.random.Generator],
    num_resamples: int = NUM_RESAMPLES,
    level: float = 0.95,
) -> DomainMatrix:
    """Score each model on the tested patients of each domain.

    A column's models are scored in the same resamples of its patients.

    Args:
        by_train: what a model trained on (a domain's name: that domain) → its test predictions as scored, by seed.
        domain_of: patient → domain.
        metric: a name of :func:`~vitreous.evidence.scores.metric_names`.
        stream_of: the random stream that draws the patients of a domain.
    Raises:
        ValueError: no models, or models of one column that are not about the same patients.
    """
    if not by_train:
        raise ValueError("there are no models to score")
    test = tuple(sorted(set(domain_of.values())))
    columns = {
        domain: _column(by_train, domain_of, domain, metric, stream_of(domain), num_resamples, level) for domain in test
    }
    cells = tuple(tuple(columns[domain][train] for domain in test) for train in by_train)
    return DomainMatrix(metric, tuple(by_train), test, cells)


def _column(
    by_train: Mapping[str, Sequence[Predictions]],
    domain_of: Mapping[str, str],
    domain: str,
    metric: str,
    rng: np.random.Generator,
    num_resamples: int,
    level: float,
) -> dict[str, DomainCell]:
    patients_P = np.array(sorted(patient for patient, own in domain_of.items() if own == domain), dtype=np.str_)
    tested = {train: [restrict(one, patients_P) for one in by_seed] for train, by_seed in by_train.items()}
    having = {train: by_seed for train, by_seed in tested.items() if len(by_seed[0].y_true_N)}
    missing = Undefined(f"no patient of {domain} is tested by this model: they trained it")
    nothing = Interval(missing, missing, missing, num_resamples, num_resamples)
    cells = {train: DomainCell(nothing, nothing, 0) for train in by_train}
    if not having:
        return cells
    check_same_rows({f"{train!r} on {domain!r}": by_seed[0] for train, by_seed in having.items()})
    patient_id_N = next(iter(having.values()))[0].patient_id_N
    num_patients = len(np.unique(patient_id_N))
    weights_RN = resample_weights(patient_id_N, num_resamples=num_resamples, rng=rng)
    value = {train: mean_scores(by_seed)[metric] for train, by_seed in having.items()}
    resampled = {train: mean_over_seeds(by_seed, weights_RN, [metric])[metric] for train, by_seed in having.items()}
    for train in having:
        score = percentile_interval(value[train], resampled[train], level, num_patients=num_patients)
        loss = _loss(value, resampled, domain, train, level, num_patients)
        cells[train] = DomainCell(score, loss, num_patients)
    return cells


def _loss(
    value: Mapping[str, float | Undefined],
    resampled: Mapping[str, FloatArray],
    own: str,
    train: str,
    level: float,
    num_patients: int,
) -> Interval:
    num_resamples = len(resampled[train])
    if own not in value or own == train:
        reason = Undefined("a model is not compared with itself" if own == train else f"no model was trained on {own}")
        return Interval(reason, reason, reason, num_resamples, num_resamples)
    here, there = value[own], value[train]
    lost = here if isinstance(here, Undefined) else there if isinstance(there, Undefined) else here - there
    return percentile_interval(lost, resampled[own] - resampled[train], level, num_patients=num_patients)
