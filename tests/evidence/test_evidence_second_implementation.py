"""Every metric on 1,000 random cases, the degenerate ones among them, against a second implementation.

The second implementation is plain Python: loops over rows and pairs of rows, written from the definitions in
docs/evidence.md, sharing nothing with the first. None stands for undefined. Exact fractions serve counts and pairs.
"""

import math
from fractions import Fraction

import numpy as np
import pytest

from vitreous.core.predictions import Predictions
from vitreous.core.undefined import Undefined
from vitreous.evidence.abstention import risk_coverage_area
from vitreous.evidence.calibration import brier_score, expected_calibration_error, negative_log_likelihood
from vitreous.evidence.curves import average_precision
from vitreous.evidence.decision_curve import net_benefit
from vitreous.evidence.scores import metric_names, quadratic_weighted_kappa, score_predictions, tally

CLASSES = ("healthy", "early", "late", "end")
NUM_CASES = 1000


def made_case(seed: int) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Labels, probabilities and classes; every fifth case is degenerate."""
    rng = np.random.default_rng([7, seed])
    num_classes = int(rng.integers(2, 5))
    rows = int(rng.integers(0, 4)) if seed % 10 == 0 else int(rng.integers(2, 33))
    y_N = rng.integers(0, num_classes, rows)
    digits = int(rng.integers(1, 9))
    counts_NC = np.round(rng.dirichlet(np.full(num_classes, 0.6), rows).reshape(rows, num_classes), digits)
    counts_NC += 10.0**-digits  # a probability of 0 has no likelihood; such cases come below
    probs_NC = counts_NC / counts_NC.sum(axis=1, keepdims=True)
    match seed % 25:
        case 5:
            y_N = np.zeros_like(y_N)  # one class
        case 10:
            probs_NC = np.tile(probs_NC[:1], (rows, 1))  # a collapsed, constant score
        case 15:
            probs_NC = np.eye(num_classes)[y_N]  # certain and right
        case 20:
            probs_NC = np.eye(num_classes)[(y_N + 1) % num_classes]  # certain and wrong
    return y_N, probs_NC, CLASSES[:num_classes]


def divided(numerator: int, denominator: int) -> Fraction | None:
    return Fraction(numerator, denominator) if denominator else None


def mean_of(values: list[Fraction | None]) -> Fraction | None:
    return None if any(value is None for value in values) else sum(values, Fraction(0)) / len(values)


def literal_scores(y: list[int], probs: list[list[float]], classes: tuple[str, ...]) -> dict[str, Fraction | None]:
    predicted = [max(range(len(classes)), key=lambda c: (row[c], -c)) for row in probs]
    result: dict[str, Fraction | None] = {"accuracy": divided(sum(t == p for t, p in zip(y, predicted)), len(y))}
    by_kind: dict[str, list[Fraction | None]] = {"recall": [], "precision": [], "f1": [], "auroc": []}
    for c in range(len(classes)):
        hits = sum(t == c and p == c for t, p in zip(y, predicted))
        actual, called = sum(t == c for t in y), sum(p == c for p in predicted)
        by_kind["recall"].append(divided(hits, actual))
        by_kind["precision"].append(divided(hits, called))
        by_kind["f1"].append(divided(2 * hits, actual + called) if actual else None)
        own, rest = [row[c] for t, row in zip(y, probs) if t == c], [row[c] for t, row in zip(y, probs) if t != c]
        doubled = sum(2 * (s > r) + (s == r) for s in own for r in rest)
        by_kind["auroc"].append(divided(doubled, 2 * len(own) * len(rest)))
    occurring = sorted(set(y))
    means = {"balanced_accuracy": "recall", "macro_recall": "recall", "macro_precision": "precision"}
    for name, kind in (means | {"macro_f1": "f1", "auroc": "auroc"}).items():
        result[name] = mean_of([by_kind[kind][c] for c in occurring]) if len(occurring) > 1 else None
    return result | {f"{kind}_{name}": by_kind[kind][c] for kind in by_kind for c, name in enumerate(classes)}


def literal_kappa(y: list[int], predicted: list[int]) -> Fraction | None:
    observed = sum((t - p) ** 2 for t, p in zip(y, predicted))
    chance = sum((t - p) ** 2 for t in y for p in predicted)
    return 1 - Fraction(observed * len(y), chance) if chance else None


def literal_ece(y: list[int], probs: list[list[float]], num_bins: int) -> float:
    """A row's bin is the number of rows of lower confidence, times bins, over rows."""
    confidence = [max(row) for row in probs]
    right = [row.index(max(row)) == t for t, row in zip(y, probs)]
    total = 0.0
    bins = [sum(other < own for other in confidence) * num_bins // len(y) for own in confidence]
    for b in set(bins):
        members = [n for n in range(len(y)) if bins[n] == b]
        said = math.fsum(confidence[n] for n in members) / len(members)
        total += len(members) / len(y) * abs(said - sum(right[n] for n in members) / len(members))
    return total


def literal_average_precision(is_positive: list[bool], prob: list[float]) -> float:
    """Mean, over the positives, of the precision among rows at least as probable."""
    found = []
    for own, positive in zip(prob, is_positive):
        if positive:
            called = [flag for other, flag in zip(prob, is_positive) if other >= own]
            found.append(Fraction(sum(called), len(called)))
    return float(sum(found) / len(found))


def literal_risk_area(confidence: list[float], wrong: list[bool]) -> float:
    """The k-th most confident rows; where a tie is cut, its share wrong counts for those taken."""
    total = Fraction(0)
    for k in range(1, len(wrong) + 1):
        last = sorted(confidence, reverse=True)[k - 1]
        above = [flag for own, flag in zip(confidence, wrong) if own > last]
        tied = [flag for own, flag in zip(confidence, wrong) if own == last]
        total += (sum(above) + Fraction(sum(tied), len(tied)) * (k - len(above))) / k
    return float(total / len(wrong))


def check(got: float | Undefined, expected: Fraction | float | None, name: str, tolerance: float = 1e-9) -> bool:
    """Whether it was defined."""
    if expected is None:
        assert isinstance(got, Undefined), f"{name} is {got}, not undefined"
        assert got.reason
        return False
    assert got == pytest.approx(float(expected), abs=tolerance, rel=0), name
    return True


def test_every_metric_equals_the_second_implementation():
    defined: dict[str, int] = {}
    for seed in range(NUM_CASES):
        y_N, probs_NC, classes = made_case(seed)
        y, probs = y_N.tolist(), probs_NC.tolist()
        predicted = [row.index(max(row)) for row in probs]
        expected = literal_scores(y, probs, classes)
        scores = score_predictions(y_N, probs_NC, classes)
        assert set(scores) == set(expected) == set(metric_names(classes))
        for name, value in scores.items():
            kind = next(
                (f"{k}_<class>" for k in ("recall", "precision", "f1", "auroc") if name.startswith(f"{k}_")), name
            )
            defined[kind] = defined.get(kind, 0) + check(value, expected[name], f"{name} of case {seed}")
        kappa = float(quadratic_weighted_kappa(tally(y_N, probs_NC, with_auroc=False).confusion_CCR)[0])
        literal = literal_kappa(y, predicted)
        assert math.isnan(kappa) if literal is None else kappa == pytest.approx(float(literal), abs=1e-9), seed
        others: dict[str, tuple[float | Undefined, float | None]] = {}
        rows = len(y)
        own = [row[t] for t, row in zip(y, probs)]
        brier = sum((p - (c == t)) ** 2 for t, row in zip(y, probs) for c, p in enumerate(row)) / max(rows, 1)
        others["brier"] = brier_score(probs_NC, y_N), brier if rows else None
        likelihood = -sum(map(math.log, own)) / rows if rows and min(own) > 0 else None
        others["nll"] = negative_log_likelihood(probs_NC, y_N), likelihood
        confidence = [max(row) for row in probs]
        wrong = [p != t for p, t in zip(predicted, y)]
        area = risk_coverage_area(np.array(confidence), np.array(wrong, dtype=bool))
        others["risk_coverage_area"] = area, literal_risk_area(confidence, wrong) if rows else None
        if rows:
            names_N = np.array([f"P{n}" for n in range(rows)])
            one = Predictions(names_N, names_N, y_N, probs_NC, classes, is_per_patient=True)
            is_positive, prob = [t == 0 for t in y], [row[0] for row in probs]
            precision = average_precision([one], classes[0], np.ones((1, rows))).value
            others["average_precision"] = (
                precision, literal_average_precision(is_positive, prob) if any(is_positive) else None)  # fmt: skip
            called = [p >= 0.3 for p in prob]
            pairs = list(zip(called, is_positive))
            benefit = (pairs.count((True, True)) - pairs.count((True, False)) * 3 / 7) / rows
            others["net_benefit"] = net_benefit(np.array(called), np.array(is_positive), 0.3), benefit
        for name, (got, value) in others.items():
            defined[name] = defined.get(name, 0) + check(got, value, f"{name} of case {seed}")
        for num_bins in (1, 5, 15):
            error = expected_calibration_error(probs_NC, y_N, num_bins)
            check(error, literal_ece(y, probs, num_bins) if rows else None, f"ECE of case {seed}", 1e-6)
    # the cases are no empty exercise: each metric is defined in most of them, and undefined in some
    assert min(defined.values()) > 0.4 * NUM_CASES, defined
    assert max(defined["macro_precision"], defined["auroc"], defined["accuracy"], defined["nll"]) < NUM_CASES, defined
