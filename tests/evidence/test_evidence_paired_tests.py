"""Pairs of rows by three tests. Oracles: statsmodels and the single tests, Holm written out, a cohort of known size."""

from itertools import combinations

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from vitreous.core.predictions import Predictions
from vitreous.core.undefined import Undefined
from vitreous.evidence.bca import leave_one_out_weights
from vitreous.evidence.comparison import Comparison, compare_resampled
from vitreous.evidence.delong import delong_test
from vitreous.evidence.intervals import mean_over_seeds, mean_scores, resample_weights
from vitreous.evidence.leaderboard_reach import leaderboard_reach
from vitreous.evidence.mcnemar import mcnemar_test
from vitreous.evidence.paired_tests import Candidate, PairedTest, paired_tests

METRIC = "balanced_accuracy"


def predictions(skill: float, seed: int, patients: int = 80, classes: tuple[str, ...] = ("a", "b"), rows: int = 1):
    y_P = np.arange(patients) % len(classes)
    rng = np.random.default_rng([seed, round(skill * 100)])
    ids_N = np.repeat([f"p{n:03d}" for n in range(patients)], rows)
    logits_NC = rng.normal(size=(patients * rows, len(classes))) + skill * np.repeat(np.eye(len(classes))[y_P], rows, 0)
    samples_N = np.array([f"{name}/{k}" for k, name in enumerate(ids_N)])
    return Predictions(samples_N, ids_N, np.repeat(y_P, rows), logits_NC, classes)


def told(rows: dict[str, dict[int, Predictions]], resamples: int = 400) -> tuple[tuple[PairedTest, ...], Comparison]:
    some = next(iter(next(iter(rows.values())).values()))
    weights_RN = resample_weights(some.patient_id_N, num_resamples=resamples, rng=np.random.default_rng(0))
    left_PN = leave_one_out_weights(some.patient_id_N)
    by_seed = {name: list(of_row.values()) for name, of_row in rows.items()}
    resampled = {name: mean_over_seeds(one, weights_RN, [METRIC])[METRIC] for name, one in by_seed.items()}
    values = {name: mean_scores(one)[METRIC] for name, one in by_seed.items()}
    comparison = compare_resampled(METRIC, values, resampled, num_patients=len(np.unique(some.patient_id_N)))
    candidates = {
        name: Candidate(rows[name], max(rows[name]), resampled[name],
                        mean_over_seeds(by_seed[name], left_PN, [METRIC])[METRIC])
        for name in rows
    }  # fmt: skip
    return paired_tests(candidates, comparison), comparison


def of(tests: tuple[PairedTest, ...], test: str, metric: str | None = None) -> list[PairedTest]:
    return [one for one in tests if one.test == test and metric in (None, one.metric)]


def test_each_test_is_the_single_one_with_holm_over_all_pairs():
    rows = {name: {s: predictions(skill, s) for s in (0, 3)} for name, skill in (("x", 2.0), ("y", 1.2), ("z", 0.1))}
    tests, comparison = told(rows)
    pairs = list(combinations(rows, 2))
    assert [(one.row, one.other) for one in of(tests, "mcnemar")] == pairs
    for one in of(tests, "bootstrap"):
        assert (one.metric, one.p, one.p_holm) == (
            METRIC, comparison.difference(one.row, one.other).p, comparison.difference(one.row, one.other).p_holm,
        )  # fmt: skip
        assert one.low < one.difference < one.high
        assert one.bca_low < one.difference < one.bca_high
        assert (one.high - one.low) / one.standard_error == pytest.approx(2 * 1.96, rel=0.12)
    for test, alone in (
        ("delong", [delong_test(list(rows[a].values()), list(rows[b].values()), "b").p for a, b in pairs]),
        ("mcnemar", [mcnemar_test(rows[a][3], rows[b][3]).p for a, b in pairs]),
    ):
        found = of(tests, test)
        assert [one.p for one in found] == alone
        np.testing.assert_allclose([one.p_holm for one in found], multipletests(alone, method="holm")[1])
    first = of(tests, "mcnemar")[0]
    right = [(rows[name][3].y_pred_N == rows[name][3].y_true_N) for name in ("x", "y")]
    assert (first.seed, first.other_seed) == (3, 3)
    assert (first.only_row, first.only_other) == ((right[0] & ~right[1]).sum(), (~right[0] & right[1]).sum())
    assert of(tests, "delong")[0].metric == "auroc"


def test_of_many_classes_each_is_held_against_the_rest():
    classes = ("a", "b", "c")
    tests, _ = told({name: {0: predictions(skill, 0, 90, classes)} for name, skill in (("x", 2.0), ("y", 0.5))})
    assert [one.metric for one in of(tests, "delong")] == ["auroc_a", "auroc_b", "auroc_c"]
    for one in of(tests, "delong"):
        assert one.p == one.p_holm, "one pair, one family for each class"


def test_too_few_patients_or_events_are_no_firm_number():
    few, _ = told({"x": {0: predictions(2.0, 0, 18)}, "y": {0: predictions(0.5, 0, 18)}})
    assert of(few, "delong")[0].p == Undefined(
        "9 patients with or without 'b': DeLong's test needs at least 10 of each"
    )
    assert isinstance(of(few, "mcnemar")[0].p, float)
    tiny, _ = told({"x": {0: predictions(2.0, 0, 8)}, "y": {0: predictions(0.5, 0, 8)}})
    assert of(tiny, "mcnemar")[0].p == Undefined("8 patients; McNemar's test needs at least 10")
    assert isinstance(of(tiny, "bootstrap")[0].bca_low, Undefined)


def test_rows_of_one_patient_are_not_taken_as_independent():
    tests, _ = told({"x": {0: predictions(2.0, 0, rows=2)}, "y": {0: predictions(0.5, 0, rows=2)}})
    for one in [*of(tests, "delong"), *of(tests, "mcnemar")]:
        assert isinstance(one.p, Undefined)
        assert "takes rows as independent; here patients have several (160 of 80)" in one.p.reason
    assert isinstance(of(tests, "bootstrap")[0].p, float)


def test_one_row_has_no_pair():
    assert told({"x": {0: predictions(2.0, 0)}})[0] == ()


def reach(values: dict[str, float | Undefined], spread: float, floors: tuple[str, ...] = ()):
    rng = np.random.default_rng(0)
    resampled = {
        name: rng.normal(np.nan if isinstance(value, Undefined) else value, spread, 4000)
        for name, value in values.items()
    }
    comparison = compare_resampled("accuracy", values, resampled, num_patients=100)
    return leaderboard_reach(comparison, resampled, floors, num_patients=100)


def test_reach_against_the_normal_formula():
    """Oracle: 2.80 standard errors; of m pairs z(1 − α/2m) + z(0.8); patients grow with the square."""
    found = reach({"x": 0.80, "y": 0.79, "floor": 0.60}, 0.02 / np.sqrt(2), ("floor",))
    assert (found.best, found.runner_up, found.num_pairs) == ("x", "y", 3)
    pair = found.pair("y")
    assert pair is not None
    assert pair.alone.smallest == pytest.approx(2.8016 * 0.02, rel=0.04)
    assert pair.among_all.smallest == pytest.approx((2.3940 + 0.8416) * 0.02, rel=0.04)
    assert pair.alone.needed_for_observed == pytest.approx(100 * (2.8016 * 0.02 / 0.01) ** 2, rel=0.08)
    assert not pair.is_apart
    assert found.pair("floor").is_apart


def test_floors_are_never_best_and_undefined_rows_have_a_reason():
    found = reach({"floor": 0.9, "x": 0.8, "broken": Undefined("never predicted: 'b'")}, 0.02, ("floor",))
    assert (found.best, found.runner_up) == ("x", None)
    assert found.pair("broken").alone.smallest == Undefined("never predicted: 'b'")
    assert reach({"floor": 0.9, "also": 0.5}, 0.02, ("floor", "also")).best is None
