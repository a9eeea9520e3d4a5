"""Collapsed heads and equal rows are named in words; sound rows are left in peace."""

from dataclasses import replace

import numpy as np

from vitreous.core.predictions import Predictions
from vitreous.evidence.checks import find_collapsed, find_flawless, find_identical

CLASSES = ("healthy", "ill")


def made(seed: int, rows: int = 65) -> Predictions:
    rng = np.random.default_rng(seed)
    ids_N = np.array([f"P{n:03d}" for n in range(rows)])
    return Predictions(ids_N, ids_N, np.arange(rows) % 2, rng.dirichlet([1, 1], rows), CLASSES, is_per_patient=True)


def with_probs(one: Predictions, probs_NC: np.ndarray) -> Predictions:
    return replace(one, scores_NC=probs_NC)


def test_a_collapsed_head_is_named_and_the_majority_floor_is_not():
    good = made(0)
    wide = np.column_stack([0.6 + 0.3 * good.probs_NC[:, 0], 0.4 - 0.3 * good.probs_NC[:, 0]])
    constant = with_probs(good, np.tile([1.0, 0.0], (65, 1)))
    rows = {
        "single_domain_01 / linear": [with_probs(good, wide)],
        "multi / linear": [good],
        "floor / majority": [constant],
    }
    (finding,) = find_collapsed(rows, constant_by_design=["floor / majority"])
    assert finding.title == (
        "single_domain_01 / linear predicts 'healthy' for all 65 test participants: a collapsed head, "
        "no finding about the checkpoint."
    )
    assert (finding.code, finding.severity) == ("collapsed", "warning")
    assert len(find_collapsed(rows)) == 2


def test_collapse_of_some_seeds_says_how_many_and_on_which_class():
    good = made(0)
    ill = with_probs(good, np.tile([0.1, 0.9], (65, 1)))
    healthy = with_probs(good, np.tile([0.9, 0.1], (65, 1)))
    (finding,) = find_collapsed({"m": [good, ill, healthy]})
    assert "predicts 'healthy' or 'ill' for all 65 test participants in 2 of 3 seeds" in finding.title


def test_one_true_class_is_no_collapse():
    one = replace(made(0), y_true_N=np.zeros(65, dtype=np.int64), scores_NC=np.tile([0.9, 0.1], (65, 1)))
    assert find_collapsed({"m": [one]}) == []


def test_flat_scores_whose_decisions_hang_on_rounding():
    one = made(0)
    flat = with_probs(one, 0.5 + 1e-5 * (one.probs_NC - 0.5))
    (finding,) = find_collapsed({"m": [flat]})
    assert (finding.code, len(np.unique(flat.y_pred_N))) == ("flat_scores", 2)
    assert "almost the same probabilities to all 65 test participants" in finding.title
    assert find_collapsed({"m": [one]}) == []


def test_a_row_without_errors_is_not_believed_blindly():
    good = made(0)
    perfect = with_probs(good, np.eye(2)[good.y_true_N])
    (finding,) = find_flawless({"good": [good], "perfect": [perfect, perfect]})
    assert finding.title.startswith("perfect makes no error on 65 test patients")
    assert "up to 4.6% is compatible" in finding.title
    assert find_flawless({"half": [perfect, good]}) == []


def test_identical_rows_are_named_together():
    rows = {"x": [made(0), made(1)], "y": [made(2), made(1)], "z": [made(0), made(1)], "w": [made(0), made(1)]}
    (finding,) = find_identical(rows)
    assert finding.code == "identical_predictions"
    assert finding.title.startswith("x, z and w have identical predictions")
    assert find_identical({"x": rows["x"], "y": rows["y"]}) == []


def test_same_decisions_with_other_probabilities_are_said_apart():
    one = made(0)
    sharper = with_probs(one, np.round(one.probs_NC))
    (finding,) = find_identical({"x": [one], "y": [sharper]})
    assert (finding.code, finding.severity) == ("same_decisions", "info")
    assert finding.title.startswith("x and y predict the same class for every test participant")
    nearly = with_probs(one, one.probs_NC + 1e-13)
    assert find_identical({"x": [one], "y": [nearly]})[0].code == "identical_predictions"
    further = with_probs(one, one.probs_NC + np.array([-1e-11, 1e-11]))
    assert find_identical({"x": [one], "y": [further]})[0].code == "same_decisions"


def test_a_row_of_one_seed_is_held_against_every_seed():
    one, other = made(0), made(1)
    assert find_identical({"x": [one], "y": [one, one, one]})[0].code == "identical_predictions"
    assert find_identical({"x": [one], "y": [one, other, one]}) == []
    assert find_identical({"x": [one, one], "y": [one, one, one]}) == []
