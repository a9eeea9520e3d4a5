"""Operating points, curves, temperatures and metrics of labels on 1,000 random cases, against a second implementation.

As in test_evidence_second_implementation.py the other implementation is plain Python from the definitions: loops over
rows and thresholds, exact fractions for counts. None stands for undefined; degenerate cases are among them (no rows,
one class, a constant score, certain and right, certain and wrong).
"""

import math
from fractions import Fraction

import numpy as np
import pytest
from test_evidence_second_implementation import NUM_CASES, divided, literal_average_precision, made_case, mean_of

from vitreous.core.predictions import Predictions
from vitreous.core.undefined import Undefined
from vitreous.evidence.abstention import kept_rows
from vitreous.evidence.calibration import fit_temperature
from vitreous.evidence.decision_curve import decision_curve
from vitreous.evidence.label_scores import label_metric_names, score_labels
from vitreous.evidence.operating_points import apply_thresholds, choose_threshold
from vitreous.evidence.reliability import reliability_curve

RULES = (("youden", None), ("at_specificity", 0.8), ("at_sensitivity", 0.9))


def made_predictions(seed: int) -> Predictions:
    y_N, probs_NC, classes = made_case(seed)
    names_N = np.array([f"P{n}" for n in range(len(y_N))], dtype=np.str_)
    return Predictions(names_N, names_N, y_N, probs_NC, classes, is_per_patient=True)


def literal_point(is_positive: list[bool], prob: list[float], cut: float) -> dict[str, Fraction | None]:
    called = [p >= cut for p in prob]
    both = list(zip(called, is_positive))
    return {
        "sensitivity": divided(both.count((True, True)), sum(is_positive)),
        "specificity": divided(both.count((False, False)), len(both) - sum(is_positive)),
        "ppv": divided(both.count((True, True)), sum(called)),
        "npv": divided(both.count((False, False)), len(both) - sum(called)),
        "called": divided(sum(called), len(both)),
    }


def literal_threshold(is_positive: list[bool], prob: list[float], rule: str, target: float | None) -> float | None:
    """Every probability is tried; the wanted ones are ranked by the rule's first word, then its second."""
    found = []
    for cut in sorted(set(prob)):
        point = literal_point(is_positive, prob, cut)
        sensitivity, specificity = point["sensitivity"], point["specificity"]
        if sensitivity is None or specificity is None:
            return None
        match rule:
            case "youden":
                found.append((sensitivity + specificity, sensitivity, cut))
            case "at_specificity" if specificity >= Fraction(target).limit_denominator(100):
                found.append((sensitivity, specificity, cut))
            case "at_sensitivity" if sensitivity >= Fraction(target).limit_denominator(100):
                found.append((specificity, sensitivity, cut))
    if not found:
        return None
    best = max(pair[:2] for pair in found)
    return next(cut for *pair, cut in found if tuple(pair) == best)


def close(got: float | Undefined, expected: Fraction | float | None, what: object, tolerance: float = 1e-9) -> bool:
    if expected is None:
        assert isinstance(got, Undefined), what
        return False
    assert got == pytest.approx(float(expected), abs=tolerance, rel=0), what
    return True


def test_operating_points_equal_loops_over_every_threshold() -> None:
    chosen = undefined = 0
    for seed in range(NUM_CASES):
        val = made_predictions(seed)
        test = made_predictions(seed + 7 * 25)  # of the same kind of degeneracy, other rows
        if val.classes != test.classes:
            test = val
        is_positive, prob = [t == 0 for t in val.y_true_N.tolist()], val.probs_NC[:, 0].tolist()
        for rule, target in RULES:
            found = choose_threshold(val, val.classes[0], rule, target)
            cut = literal_threshold(is_positive, prob, rule, target)
            if not close(found if isinstance(found, Undefined) else found.value, cut, (seed, rule)):
                undefined += 1
                continue
            chosen += 1
            applied = apply_thresholds([test], [found], np.ones((1, len(test.y_true_N))))
            there = [t == 0 for t in test.y_true_N.tolist()], test.probs_NC[:, 0].tolist()
            for name, value in literal_point(*there, found.value).items():
                close(getattr(applied, name).value, value, (seed, rule, name))
    assert min(chosen, 5 * undefined) > 300, (chosen, undefined)


def test_net_benefit_equals_counts() -> None:
    for seed in range(NUM_CASES):
        one = made_predictions(seed)
        rows = len(one.y_true_N)
        cuts = (0.05, 0.25, 0.5, 0.9)
        curve = decision_curve([one], one.classes[0], np.ones((1, rows)), cuts)
        is_positive, prob = [t == 0 for t in one.y_true_N.tolist()], one.probs_NC[:, 0].tolist()
        for point, cut in zip(curve, cuts):
            odds = cut / (1 - cut)
            worth = [1.0 if flag else -odds for flag in is_positive]
            model = math.fsum(w for w, p in zip(worth, prob) if p >= cut) / rows if rows else None
            all_of_them = math.fsum(worth) / rows if rows else None
            close(point.model.value, model, seed)
            close(point.treat_all.value, all_of_them, seed)
            close(point.gain.value, None if model is None else model - max(all_of_them, 0.0), seed)


def test_reliability_equals_loops() -> None:
    for seed in range(NUM_CASES):
        one = made_predictions(seed)
        rows = len(one.y_true_N)
        prob = [max(row) for row in one.probs_NC.tolist()]
        right = [row.index(max(row)) == t for row, t in zip(one.probs_NC.tolist(), one.y_true_N.tolist())]
        for binning, place in (
            ("equal_mass", [sum(other < own for other in prob) * 5 // max(rows, 1) for own in prob]),
            # a bound belongs to the bin below it
            ("equal_width", [sum(own > bound for bound in np.linspace(0, 1, 6)[1:-1].tolist()) for own in prob]),
        ):
            curve = reliability_curve([one], np.ones((1, rows)), binning=binning, num_bins=5)
            if not rows:
                assert isinstance(curve, Undefined)
                continue
            assert [b.num_rows for b in curve] == [place.count(b) for b in sorted(set(place))], (seed, binning)
            for b, found in zip(sorted(set(place)), curve):
                members = [n for n in range(rows) if place[n] == b]
                close(found.mean_probability, math.fsum(prob[n] for n in members) / len(members), seed)
                close(found.observed.value, Fraction(sum(right[n] for n in members), len(members)), seed)


def test_rows_kept_by_confidence_equal_a_count_of_better_ones() -> None:
    for seed in range(NUM_CASES):
        prob = [max(row) for row in made_predictions(seed).probs_NC.tolist()]
        for coverage in (0.1, 0.5, 1.0):
            wanted = max(1, math.ceil(coverage * len(prob) - 1e-9))
            literal = [sum(other > own for other in prob) < wanted for own in prob]
            assert kept_rows(np.array(prob), coverage).tolist() == literal, (seed, coverage)


def literal_temperature(logits: list[list[float]], y: list[int]) -> float | None:
    """Golden-section search of the likelihood over 1/T, in plain Python."""

    def loss(inverse: float) -> float:
        total = []
        for row, t in zip(logits, y):
            most = max(inverse * value for value in row)
            total.append(
                most + math.log(math.fsum(math.exp(inverse * value - most) for value in row)) - inverse * row[t]
            )
        return math.fsum(total)

    low, high = 0.0, 2.0**20
    while high - low > 1e-9 * max(high, 1e-6):
        one, two = low + 0.382 * (high - low), low + 0.618 * (high - low)
        low, high = (low, two) if loss(one) <= loss(two) else (one, high)
    return 2 / (low + high)


def test_the_temperature_is_where_the_likelihood_is_highest() -> None:
    """A search by function values knows the place to the square root of its precision, the likelihood to all of it."""
    fitted = 0
    for seed in range(200):
        y_N, probs_NC, _ = made_case(seed)
        logits_NC = np.log(np.maximum(probs_NC, 1e-12)) * 2.0
        found = fit_temperature(logits_NC, y_N)
        right = [row[t] >= max(row) for row, t in zip(logits_NC.tolist(), y_N.tolist())]
        if isinstance(found, Undefined):
            mean_slope = sum(row[t] - sum(row) / len(row) for row, t in zip(logits_NC.tolist(), y_N.tolist()))
            assert not len(y_N) or all(right) or mean_slope <= 1e-9, seed
            continue
        fitted += 1
        assert found == pytest.approx(literal_temperature(logits_NC.tolist(), y_N.tolist()), rel=2e-5), seed
    assert fitted > 80


def literal_labels(
    targets: list[list[bool]], probs: list[list[float]], decided: list[list[bool]], labels: tuple[str, ...]
) -> dict[str, Fraction | float | None]:
    kinds: dict[str, list[Fraction | None]] = {"ap": [], "auroc": [], "balanced_accuracy": [], "f1": []}
    for c in range(len(labels)):
        has, prob, said = [row[c] for row in targets], [row[c] for row in probs], [row[c] for row in decided]
        if not any(has) or all(has):
            for kind in kinds:
                kinds[kind].append(None)
            continue
        own, rest = [p for p, h in zip(prob, has) if h], [p for p, h in zip(prob, has) if not h]
        both = list(zip(said, has))
        hits, false, missed = (both.count(pair) for pair in ((True, True), (True, False), (False, True)))
        kinds["ap"].append(Fraction(literal_average_precision(has, prob)))
        kinds["auroc"].append(
            Fraction(sum(2 * (a > b) + (a == b) for a in own for b in rest), 2 * len(own) * len(rest))
        )
        kinds["balanced_accuracy"].append((Fraction(hits, len(own)) + 1 - Fraction(false, len(rest))) / 2)
        kinds["f1"].append(Fraction(2 * hits, 2 * hits + false + missed))
    result: dict[str, Fraction | float | None] = {
        f"{kind}_{name}": values[c] for kind, values in kinds.items() for c, name in enumerate(labels)
    }
    named = {"map": "ap", "auroc": "auroc", "balanced_accuracy": "balanced_accuracy", "macro_f1": "f1"}
    for name, kind in named.items():
        defined = [value for value in kinds[kind] if value is not None]
        result[name] = mean_of(defined) if defined else None
    result["exact_match"] = divided(sum(t == d for t, d in zip(targets, decided)), len(targets))
    return result


def test_every_metric_of_labels_equals_the_second_implementation() -> None:
    labels, defined, undefined = ("C1", "C2", "C3"), 0, 0
    for seed in range(NUM_CASES):
        rng = np.random.default_rng([11, seed])
        rows = int(rng.integers(0, 3)) if seed % 10 == 0 else int(rng.integers(2, 25))
        targets_NC = rng.random((rows, 3)) < rng.random(3)
        probs_NC = np.round(rng.random((rows, 3)), int(rng.integers(1, 6)))
        match seed % 25:
            case 5:
                targets_NC[:, 0] = True
            case 10:
                probs_NC[:] = 0.5
            case 15:
                probs_NC = targets_NC.astype(np.float64)
            case 20:
                probs_NC = (~targets_NC).astype(np.float64)
        decided_NC = probs_NC >= 0.5
        found = score_labels(targets_NC, probs_NC, decided_NC, labels)
        expected = literal_labels(targets_NC.tolist(), probs_NC.tolist(), decided_NC.tolist(), labels)
        assert set(found) == set(expected) == set(label_metric_names(labels))
        for name, value in found.items():
            is_defined = close(value, expected[name], (seed, name))
            defined, undefined = defined + is_defined, undefined + (not is_defined)
    assert defined > 10_000, defined
    assert undefined > 500, undefined
