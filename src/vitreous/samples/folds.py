"""Rounds in place of one split: stratified K-fold over patients, one domain left out, or each domain alone."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.model_selection import StratifiedKFold

from vitreous.core.errors import SampleError
from vitreous.core.label_sets import memberships
from vitreous.core.streams import numpy_stream, stream_seed
from vitreous.samples.cohort import Cohort
from vitreous.samples.label_strata import stratify_labels
from vitreous.samples.problems import Problems, examples


def assign_folds(
    labels: pd.Series, *, num_folds: int, seed: int, num_labels: int | None = None
) -> list[dict[str, str]]:
    """For each fold, patient → split: fold j is tested, fold j+1 chooses (val), the others train.

    Folds are drawn over patients, so that all volumes of one stay together, with the classes' shares kept. The labels
    of all patients must be known beforehand; every one of them is in some test split.

    Args:
        labels: class index by patient; order does not matter.
        num_folds: at least 3, since one fold tests and one chooses.
        num_labels: where `labels` are numbers of sets of labels, how many labels there are; each is then shared out.
    Raises:
        SampleError: fewer than 3 folds, or a class with fewer patients than folds.
    """
    if num_folds < 3:
        raise SampleError(f"folds.k must be at least 3 (one tests, one chooses, the rest train); got {num_folds}.")
    if num_labels is not None:
        return _label_folds(labels.sort_index(), num_folds, seed, num_labels)
    counts = labels.value_counts()
    small = counts.index[counts < num_folds]
    if len(small):
        named = [f"class {y} ({counts[y]})" for y in sorted(small)]
        raise SampleError(f"{num_folds} folds need as many patients of every class; too few: {examples(named)}.")
    labels = labels.sort_index()
    splitter = StratifiedKFold(num_folds, shuffle=True, random_state=stream_seed(seed, "folds") % 2**32)
    fold_of = np.empty(len(labels), dtype=np.int64)
    for fold, (_, tested) in enumerate(splitter.split(np.zeros(len(labels)), labels.to_numpy())):
        fold_of[tested] = fold
    return [_roles(labels.index, (fold_of - fold) % num_folds) for fold in range(num_folds)]


def _label_folds(labels: pd.Series, num_folds: int, seed: int, num_labels: int) -> list[dict[str, str]]:
    has_PC = memberships(labels.to_numpy(), num_labels, "multi_label")
    if few := [f"label {c} ({count})" for c, count in enumerate(has_PC.sum(axis=0).tolist()) if count < num_folds]:
        raise SampleError(f"{num_folds} folds need as many patients of every label; too few: {examples(few)}.")
    fold_of = stratify_labels(has_PC, [1 / num_folds] * num_folds, numpy_stream(seed, "folds"))
    return [_roles(labels.index, (fold_of - fold) % num_folds) for fold in range(num_folds)]


def fold_cohorts(cohort: Cohort, *, num_folds: int, seed: int) -> list[Cohort]:
    """The cohort once for each fold, each with the labels of its own test split sealed.

    Raises:
        SampleError: see :func:`assign_folds`.
    """
    check_classes(cohort)
    num_labels = len(cohort.classes) if cohort.task == "multi_label" else None
    folds = assign_folds(cohort.patient_labels(), num_folds=num_folds, seed=seed, num_labels=num_labels)
    return [cohort.resplit(split_of) for split_of in folds]


def leave_one_out_cohorts(cohort: Cohort, column: str, *, val_fraction: float, seed: int) -> dict[str, Cohort]:
    """Domain → the cohort with that domain as test; val is a seeded part of the other domains, stratified by class.

    Raises:
        SampleError: no or contradictory values in the column, fewer than two domains, or a class of which the other
            domains have too few patients to train and to choose.
    """
    check_classes(cohort)
    labels, domain_of = cohort.patient_labels().sort_index(), patient_domains(cohort, column)
    problems, rounds = Problems(f"folds.leave_out {column}"), {}
    for domain in sorted(set(domain_of)):
        rest = labels[domain_of != domain]
        split_of = dict.fromkeys(labels.index[domain_of == domain], "test")
        for y, name, members in _strata(cohort, rest):
            if len(members) < 2:
                problems.add(
                    f"without {domain!r}, class {name!r} has {len(members)} patients; training and val need one each."
                )
                continue
            drawn = _draw(members, {"val": val_fraction}, seed, "leave out", column, domain, y)
            split_of |= drawn
        rounds[domain] = split_of
    problems.check_none()
    return {domain: cohort.resplit(split_of) for domain, split_of in rounds.items()}


def each_domain_cohorts(
    cohort: Cohort, column: str, *, val_fraction: float, test_fraction: float, seed: int
) -> dict[str, Cohort]:
    """Domain → the cohort with that domain alone in train and val; test is a part of every domain, the same each time.

    Who is neither in the round's domain nor in a test part has the split ``""`` and takes no part.

    Raises:
        SampleError: no or contradictory values in the column, fewer than two domains, or a domain with fewer than three
            patients of a class.
    """
    check_classes(cohort)
    labels, domain_of = cohort.patient_labels().sort_index(), patient_domains(cohort, column)
    problems = Problems(f"folds.each {column}")
    split_of: dict[str, str] = {}
    for domain in sorted(set(domain_of)):
        own = labels[domain_of == domain]
        for y, name, members in _strata(cohort, own):
            if len(members) < 3:
                problems.add(
                    f"{domain!r} has {len(members)} patients of the class {name!r}; train, val and test need one each."
                )
                continue
            split_of |= _draw(members, {"test": test_fraction, "val": val_fraction}, seed, "each", column, domain, y)
    problems.check_none()
    return {
        domain: cohort.resplit(
            {
                patient: split if split == "test" or domain_of[patient] == domain else ""
                for patient, split in split_of.items()
            }
        )
        for domain in sorted(set(domain_of))
    }


def _strata(cohort: Cohort, labels: pd.Series) -> list[tuple[int, str, pd.Index]]:
    """Groups of patients of one class, with its number and name; with several labels a row all patients are one group.

    Whether every label is in every part is checked when the parts are made.
    """
    if cohort.task == "multi_label":
        return [(0, "any", labels.index)]
    return [(y, name, labels.index[labels == y]) for y, name in enumerate(cohort.classes)]


def patient_domains(cohort: Cohort, column: str) -> pd.Series:
    """The domain of each patient, sorted by patient.

    Raises:
        SampleError: the cohort has no such column, a patient has no value or two, or all have the same.
    """
    if column not in cohort.samples.columns:
        raise SampleError(f"folds: the cohort has no domain {column!r}; it has {list(cohort.domains)}.")
    values = cohort.samples.groupby("patient_id")[column].unique()
    problems = Problems(f"folds: domain {column}")
    if len(several := values.index[values.map(len) > 1]):
        problems.add(
            f"{len(several)} patients are in several domains: {examples(several)}; they would train and be tested. "
            "Leave them out with where, or choose another column."
        )
    domain_of = values.map(lambda found: str(found[0]))
    if len(missing := domain_of.index[domain_of.isin(("", "unknown"))]):
        problems.add(
            f"{len(missing)} patients have no value: {examples(missing)}; fill it in, or leave them out with where."
        )
    if domain_of.nunique() < 2:
        problems.add(f"all patients have the same value {domain_of.iloc[0]!r}; it takes two domains or more.")
    problems.check_none()
    return domain_of.sort_index()


def _draw(members: pd.Index, shares: Mapping[str, float], seed: int, *names: str | int) -> dict[str, str]:
    """Patient → split: the shares of the members, each rounded but at least one patient, and one left to train."""
    order = numpy_stream(seed, *names).permutation(len(members))
    sizes = {split: max(1, round(share * len(members))) for split, share in shares.items()}
    while sum(sizes.values()) >= len(members):
        sizes[max(sizes, key=lambda split: sizes[split])] -= 1
    roles = [split for split, size in sizes.items() for _ in range(size)]
    roles += ["train"] * (len(members) - len(roles))
    return dict(zip(members[order].tolist(), roles, strict=True))


def check_classes(cohort: Cohort) -> None:
    """Every class has a patient somewhere.

    Raises:
        SampleError: naming the classes that have none.
    """
    present = set(cohort.count_by(["class"])["class"])
    if absent := [name for name in cohort.classes if name not in present]:
        raise SampleError(
            f"no patient with a file has the class {', '.join(map(repr, absent))}; remove it from classes."
        )


def _roles(patients: pd.Index, distance: npt.NDArray[np.int64]) -> dict[str, str]:
    roles = np.where(distance == 0, "test", np.where(distance == 1, "val", "train"))
    return dict(zip(patients.tolist(), roles.tolist(), strict=True))
