"""Paired comparison, Holm and letters against statsmodels, a slow loop and the letters' defining property."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from vitreous.core.predictions import Predictions
from vitreous.core.undefined import Undefined
from vitreous.evidence.comparison import bootstrap_p, compare_with_best, resamples_needed
from vitreous.evidence.intervals import bootstrap_intervals, resample_weights
from vitreous.evidence.letters import compact_letters
from vitreous.evidence.scores import score_predictions, score_resamples


def made_rows(skills: dict[str, float], patients: int = 150) -> dict[str, list[Predictions]]:
    """Rows of two seeds on the same patients; a share `skill` of them is recognised, the rest is guessed."""
    y_N = np.random.default_rng(0).integers(0, 3, patients)
    ids_N = np.array([f"P{n:04d}" for n in range(patients)])
    rows = {}
    for name, skill in skills.items():
        rows[name] = []
        for seed in range(2):
            rng = np.random.default_rng([seed, *name.encode()])
            predicted_N = np.where(rng.random(patients) < skill, y_N, rng.integers(0, 3, patients))
            probs_NC = 0.8 * np.eye(3)[predicted_N] + 0.2 / 3
            rows[name].append(Predictions(ids_N, ids_N, y_N, probs_NC, ("a", "b", "c"), is_per_patient=True))
    return rows


def weights_for(rows: dict[str, list[Predictions]], num_resamples: int = 2000) -> np.ndarray:
    ids_N = next(iter(rows.values()))[0].patient_id_N
    return resample_weights(ids_N, num_resamples=num_resamples, rng=np.random.default_rng(5))


def test_differences_p_values_and_holm_equal_a_loop():
    rows = made_rows({"low": 0.3, "high": 0.6, "middle": 0.5, "near": 0.58})
    weights_RN = weights_for(rows)
    found = compare_with_best(rows, "balanced_accuracy", weights_RN)
    slow = {
        name: np.mean(
            [
                score_resamples(one.y_true_N, one.probs_NC, one.classes, weights_RN)["balanced_accuracy"]
                for one in by_seed
            ],
            axis=0,
        )
        for name, by_seed in rows.items()
    }
    pairs = list(combinations(rows, 2))
    p_values = []
    for a, b in pairs:
        difference_R = slow[a] - slow[b]
        above, below = sum(d >= 0 for d in difference_R), sum(d <= 0 for d in difference_R)
        p_values.append(min(1, 2 * (min(above, below) + 1) / 2001))
        low, high = np.percentile(difference_R, [2.5, 97.5])
        got = found.difference(a, b)
        assert (got.low, got.high) == (pytest.approx(low, abs=1e-12), pytest.approx(high, abs=1e-12))
        assert got.p == pytest.approx(p_values[-1])
        turned = found.difference(b, a)
        assert (turned.value, turned.low, turned.high, turned.p) == (-got.value, -got.high, -got.low, got.p)
    for (a, b), expected in zip(pairs, multipletests(p_values, method="holm")[1]):
        assert found.difference(a, b).p_holm == pytest.approx(expected)
    best = max(
        rows,
        key=lambda name: np.mean(
            [score_predictions(one.y_true_N, one.probs_NC, one.classes)["balanced_accuracy"] for one in rows[name]]
        ),
    )
    assert found.best == best
    assert found.difference_to_best(best).value == 0.0
    assert all(found.difference_to_best(name).value <= 0 for name in rows)


def test_letters_ranks_and_p_values_never_contradict_each_other():
    rows = made_rows({"low": 0.2, "high": 0.7, "middle": 0.5, "near": 0.65, "poor": 0.25})
    found = compare_with_best(rows, "balanced_accuracy", weights_for(rows))
    assert "a" in found.letters[found.best]
    assert found.rank[found.best] == 1
    separated = 0
    for a, b in combinations(rows, 2):
        apart = found.is_better(a, b) or found.is_better(b, a)
        assert apart == (found.difference(a, b).p_holm < 0.05)
        assert apart != bool(set(found.letters[a]) & set(found.letters[b]))
        separated += apart
    assert 0 < separated < 10
    for name in rows:
        assert found.rank[name] == 1 + sum(found.is_better(other, name) for other in rows)
    assert found.rank["low"] > 1


def test_equal_rows_share_rank_and_letter_with_p_1():
    rows = made_rows({"one": 0.5})
    rows["copy"] = rows["one"]
    found = compare_with_best(rows, "balanced_accuracy", weights_for(rows))
    assert found.best == "one"
    assert found.difference_to_best("copy").p == 1.0
    assert (found.difference_to_best("copy").low, found.difference_to_best("copy").high) == (0.0, 0.0)
    assert found.letters == {"one": "a", "copy": "a"}
    assert found.rank == {"one": 1, "copy": 1}


def test_one_row_needs_no_comparison():
    rows = made_rows({"only": 0.5})
    found = compare_with_best(rows, "balanced_accuracy", weights_for(rows, 200))
    assert (found.best, found.letters, found.rank) == ("only", {"only": "a"}, {"only": 1})
    assert isinstance(found.difference_to_best("only").p_holm, Undefined)


def test_a_row_without_the_metric_has_no_rank_and_no_letter():
    rows = made_rows({"one": 0.5, "two": 0.6})
    flat_NC = np.tile([1.0, 0.0, 0.0], (150, 1))
    first = rows["one"][0]
    collapsed = Predictions(first.sample_id_N, first.patient_id_N, first.y_true_N, flat_NC, first.classes, True)
    rows["collapsed"] = [collapsed]
    found = compare_with_best(rows, "macro_precision", weights_for(rows))
    assert (found.rank["collapsed"], found.letters["collapsed"]) == (None, "")
    assert found.difference_to_best("collapsed").p_holm == Undefined("never predicted: 'b', 'c'")
    assert found.rank["one"] == 1
    nothing = compare_with_best({"collapsed": [collapsed]}, "macro_precision", weights_for(rows))
    assert nothing.best is None
    with pytest.raises(ValueError, match="no row has a defined macro_precision"):
        nothing.difference_to_best("collapsed")


def test_too_few_resamples_for_the_number_of_rows_are_refused():
    rows = made_rows(dict.fromkeys("abcd", 0.5), patients=60)
    assert resamples_needed(4) == 480
    assert compare_with_best(rows, "accuracy", weights_for(rows, 480)).metric == "accuracy"
    with pytest.raises(ValueError, match=r"479 resamples cannot tell 4 rows apart at 0.05.*at least 480"):
        compare_with_best(rows, "accuracy", weights_for(rows, 479))


def test_rows_on_other_patients_are_refused():
    rows = made_rows({"one": 0.5})
    rows |= {"other": made_rows({"other": 0.5}, patients=149)["other"]}
    with pytest.raises(ValueError, match="'other' and 'one' are not about the same rows: sample_id_N differs"):
        compare_with_best(rows, "accuracy", np.ones((200, 150)))


@pytest.mark.parametrize(
    ("resamples", "expected"),
    [
        ([1.0] * 99, 0.02),
        ([-1.0] * 99, 0.02),
        ([0.0] * 99, 1.0),
        ([1.0] * 50 + [-1.0] * 49, 1.0),
        ([1.0] * 95 + [-1.0] * 4, 0.1),
    ],
)
def test_bootstrap_p_closed_forms(resamples, expected):
    assert bootstrap_p(np.array(resamples)) == pytest.approx(expected)


def test_p_inverts_the_interval():
    rng = np.random.default_rng(0)
    for shift in rng.normal(0.2, 0.1, 200):
        values_R = rng.normal(shift, 0.1, 1999)
        low, high = np.percentile(values_R, [2.5, 97.5])
        p = bootstrap_p(values_R)
        if not 0.048 < p < 0.052:  # at the border the interpolated percentile lies between two resamples
            assert (p < 0.05) == (low > 0 or high < 0)


def test_pairing_separates_what_unpaired_intervals_cannot():
    """Two rows that differ on 7 of 150 patients, always in one direction: intervals overlap, the pair is clear."""
    better = made_rows({"better": 0.6})["better"][:1]
    right_N = np.flatnonzero(better[0].y_pred_N == better[0].y_true_N)[:7]
    probs_NC = better[0].probs_NC.copy()
    probs_NC[right_N] = np.roll(probs_NC[right_N], 1, axis=1)
    one = better[0]
    rows = {"better": better, "worse": [replace(one, scores_NC=probs_NC)]}
    weights_RN = weights_for(rows)
    alone = {name: bootstrap_intervals(by_seed, weights_RN)["accuracy"] for name, by_seed in rows.items()}
    assert alone["worse"].high > alone["better"].value > alone["worse"].value > alone["better"].low
    found = compare_with_best(rows, "accuracy", weights_RN)
    assert found.rank == {"better": 1, "worse": 2}
    assert found.letters == {"better": "a", "worse": "b"}


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 9).flatmap(
        lambda k: st.tuples(
            st.just(k),
            st.sets(
                st.sampled_from(
                    [frozenset((f"r{i}", f"r{j}")) for i in range(k) for j in range(i)] or [frozenset(("r0",))]
                )
            ),
        )
    )
)
def test_two_rows_share_a_letter_exactly_when_they_are_not_apart(case):
    """Oracle: the property that defines a compact letter display; and no letter is idle or doubled."""
    count, apart = case
    ordered = [f"r{k}" for k in range(count)]
    apart = {pair for pair in apart if len(pair) == 2}
    letters = compact_letters(ordered, apart)
    for a, b in combinations(ordered, 2):
        assert bool(set(letters[a]) & set(letters[b])) == (frozenset((a, b)) not in apart)
    assert all(letters.values())
    assert letters["r0"].startswith("a")
    used = sorted(set("".join(letters.values())))
    assert used == [chr(ord("a") + k) for k in range(len(used))]
    members = {letter: {row for row in ordered if letter in letters[row]} for letter in used}
    assert not any(members[x] <= members[y] for x in used for y in used if x != y)


def test_letters_by_hand():
    """Oracle: the display worked out by hand; w, x | x, y | z."""
    apart = [frozenset(pair) for pair in ("wy", "wz", "xz", "yz")]
    assert compact_letters("wxyz", apart) == {"w": "a", "x": "ab", "y": "b", "z": "c"}
    assert compact_letters([], []) == {}
    many = [f"r{k}" for k in range(60)]
    everything = [frozenset(pair) for pair in combinations(many, 2)]
    letters = compact_letters(many, everything)
    assert len(set(letters.values())) == 60
    assert (letters["r0"], letters["r26"], letters["r52"]) == ("a", "A", "a1")
