"""Predictions to be wary of: one class for everybody, constant scores, no error at all, two equal rows.

Axes: N row (one participant), C class.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from vitreous.core.finding import Finding
from vitreous.core.label_sets import name_label_set
from vitreous.core.predictions import Predictions

SAME_PROBABILITY = 1e-12  # two rows whose probabilities are nowhere further apart are identical
FLAT_PROBABILITY = 1e-3  # a row whose probabilities move less than this over all participants is constant

_Seeds = Sequence[Predictions]


def find_collapsed(
    rows: Mapping[str, Sequence[Predictions]], constant_by_design: Collection[str] = ()
) -> list[Finding]:
    """Rows that predict one class for all participants, or almost the same probabilities, in any seed.

    Args:
        rows: name → predictions by seed.
        constant_by_design: rows that are meant to (the majority floor).
    """
    findings = []
    for name, by_seed in rows.items():
        if name in constant_by_design:
            continue
        collapsed = {k: int(one.y_pred_N[0]) for k, one in enumerate(by_seed) if _is_collapsed(one)}
        flat = [k for k, one in enumerate(by_seed) if k not in collapsed and _is_flat(one)]
        if collapsed:
            findings.append(_collapsed_finding(name, by_seed, collapsed))
        if flat:
            widest = max(_spread(by_seed[k]) for k in flat)
            findings.append(
                Finding(
                    "flat_scores",
                    "warning",
                    f"{name} gives almost the same probabilities to all {_counted(by_seed[0])}"
                    f"{_in_seeds(len(flat), len(by_seed))}: its decisions hang on rounding.",
                    f"no class probability varies by more than {widest:.1e}",
                    "Look at the training curves; try higher learning rates.",
                )
            )
    return findings


def find_flawless(rows: Mapping[str, _Seeds]) -> list[Finding]:
    """Rows without a single error in any seed: nothing varies between resamples, so the interval has no width.

    The error rate that is still compatible with n patients and no error is 3 / n at 95 % ("rule of three").
    """
    findings = []
    for name, by_seed in rows.items():
        count = len(np.unique(by_seed[0].patient_id_N))
        if count and all(np.array_equal(one.y_pred_N, one.y_true_N) for one in by_seed):
            findings.append(
                Finding(
                    "no_errors",
                    "warning",
                    f"{name} makes no error on {count} test patients: its interval has no width and must not be taken "
                    f"at its word; an error rate of up to {min(1.0, 3 / count):.1%} is compatible with this.",
                    f"{count} of {count} correct in each of {len(by_seed)} seeds",
                    "Look for a leak between train and test, or for a label that can be read off the image.",
                )
            )
    return findings


def find_identical(rows: Mapping[str, Sequence[Predictions]]) -> list[Finding]:
    """Groups of rows with identical probabilities, and groups of rows with the same decisions.

    A row of one seed is compared with every seed of the other, since a recipe without chance is run once.
    """
    findings = []
    groups = group_identical(rows)
    for group in groups:
        findings.append(
            Finding(
                "identical_predictions",
                "warning",
                f"{_listed(group)} have identical predictions: nothing can be said about what differs between them.",
                f"the probabilities of all {_counted(rows[group[0]][0])} agree within {SAME_PROBABILITY:g}",
                "Check that the checkpoints differ (weights_hash in the receipts) and that each was loaded.",
            )
        )
    for group in group_same_decisions(rows):
        findings.append(
            Finding(
                "same_decisions",
                "info",
                f"{_listed(group)} predict the same class for every test {_unit(rows[group[0]][0])}; only their "
                "probabilities differ.",
                f"{len(rows[group[0]][0].y_true_N)} equal decisions",
            )
        )
    return findings


def group_identical(rows: Mapping[str, _Seeds]) -> list[list[str]]:
    """Groups of rows whose probabilities agree within :data:`SAME_PROBABILITY`, each of two rows or more."""
    return _groups(rows, _is_identical)


def group_same_decisions(rows: Mapping[str, _Seeds]) -> list[list[str]]:
    """Groups of rows with the same decisions that are not identical as a whole."""
    identical = [set(group) for group in group_identical(rows)]
    return [group for group in _groups(rows, _has_same_decisions) if not any(set(group) <= one for one in identical)]


def _unit(one: Predictions) -> str:
    return "participant" if one.is_per_patient else "sample"


def _counted(one: Predictions) -> str:
    """``48 test participants``, or ``90 test samples`` where these are scored by themselves."""
    return f"{len(one.y_true_N)} test {_unit(one)}s"


def _is_collapsed(one: Predictions) -> bool:
    """One class predicted although several occur and several participants are there."""
    return len(np.unique(one.y_true_N)) > 1 and len(np.unique(one.y_pred_N)) == 1


def _spread(one: Predictions) -> float:
    return float(np.ptp(one.probs_NC, axis=0).max())


def _is_flat(one: Predictions) -> bool:
    return len(np.unique(one.y_true_N)) > 1 and _spread(one) < FLAT_PROBABILITY


def _collapsed_finding(name: str, by_seed: Sequence[Predictions], collapsed: Mapping[int, int]) -> Finding:
    classes = by_seed[0].classes
    task = by_seed[0].task
    predicted = " or ".join(repr(name_label_set(y, classes, task)) for y in sorted(set(collapsed.values())))
    rows, counted = len(by_seed[0].y_true_N), _counted(by_seed[0])
    spread = max(_spread(by_seed[k]) for k in collapsed)
    return Finding(
        "collapsed",
        "warning",
        f"{name} predicts {predicted} for all {counted}{_in_seeds(len(collapsed), len(by_seed))}: "
        "a collapsed head, no finding about the checkpoint.",
        f"{rows} of {rows} predictions are one class; class probabilities vary by at most {spread:.2g}",
        "Look at the training curves and the feature statistics; widen the learning-rate grid, check the "
        "normalisation against the checkpoint's InputSpec.",
    )


def _in_seeds(some: int, total: int) -> str:
    if total == 1:
        return ""
    return f" in all {total} seeds" if some == total else f" in {some} of {total} seeds"


def _pairs_of_seeds(a: _Seeds, b: _Seeds) -> list[tuple[Predictions, Predictions]]:
    if len(a) == len(b):
        return list(zip(a, b, strict=True))
    return [(one, other) for one in a for other in b] if min(len(a), len(b)) == 1 else []


def _is_identical(a: _Seeds, b: _Seeds) -> bool:
    pairs = _pairs_of_seeds(a, b)
    return bool(pairs) and all(
        one.probs_NC.shape == other.probs_NC.shape
        and np.array_equal(one.y_pred_N, other.y_pred_N)
        and bool(np.all(np.abs(one.probs_NC - other.probs_NC) <= SAME_PROBABILITY))
        for one, other in pairs
    )


def _has_same_decisions(a: _Seeds, b: _Seeds) -> bool:
    pairs = _pairs_of_seeds(a, b)
    return bool(pairs) and all(np.array_equal(one.y_pred_N, other.y_pred_N) for one, other in pairs)


def _groups(rows: Mapping[str, Sequence[Predictions]], is_same: Callable[[_Seeds, _Seeds], bool]) -> list[list[str]]:
    groups: list[list[str]] = []
    for name in rows:
        for group in groups:
            if is_same(rows[group[0]], rows[name]):
                group.append(name)
                break
        else:
            groups.append([name])
    return [group for group in groups if len(group) > 1]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + " and " + names[-1]
