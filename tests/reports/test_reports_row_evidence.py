"""Evidence of a row; oracles: scikit-learn on the same patients, loops over thresholds, temperatures worked out."""

import csv
import io
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from vitreous.core.label_sets import encode_label_sets
from vitreous.core.predictions import Predictions
from vitreous.core.undefined import Undefined
from vitreous.reports.evidence_figures import draw_evidence, write_figures
from vitreous.reports.evidence_tables import evidence_tables
from vitreous.reports.leaderboard import RowPredictions, build_leaderboard
from vitreous.reports.result_tables import table_csv
from vitreous.reports.row_evidence import gather_evidence


@pytest.fixture(scope="module")
def rows(row):
    return [row("multi", "linear", 2.0), row("untrained", "linear", 0.2, is_floor=True)]


@pytest.fixture(scope="module")
def board(rows):
    return build_leaderboard(rows, num_resamples=200)


@pytest.fixture(scope="module")
def site_of(rows):
    names = next(iter(rows[0].test.values())).sample_id_N.tolist()
    return {name: f"site {int(name[6:10]) % 2}" for name in names}


@pytest.fixture(scope="module")
def evidence(rows, board, site_of):
    return gather_evidence(rows, board, {"site": site_of})


def test_only_rows_that_are_no_floors_have_evidence_unless_there_are_no_others(evidence, rows):
    assert [one.name for one in evidence] == ["multi / linear"]
    floors = build_leaderboard(rows[1:], num_resamples=200)
    assert [one.name for one in gather_evidence(rows[1:], floors, {})] == ["untrained / linear"]


def test_average_precision_is_that_of_scikit_learn(evidence, rows):
    test = [one.per_patient() for one in rows[0].test.values()]
    for c, target in enumerate(evidence[0].targets):
        expected = np.mean([average_precision_score(one.y_true_N == c, one.probs_NC[:, c]) for one in test])
        assert target.average_precision.value == pytest.approx(expected, abs=1e-9)
        assert target.share == pytest.approx((test[0].y_true_N == c).mean())


def test_thresholds_come_from_val_and_are_applied_as_they_are(evidence, rows):
    val, test = ([one.per_patient() for one in part.values()] for part in (rows[0].val, rows[0].test))
    for c, target in enumerate(evidence[0].targets):
        setting = target.operating[1]
        assert (setting.rule, setting.target) == ("at_specificity", 0.9)
        shares = []
        for one, seen, threshold in zip(test, val, setting.point.thresholds, strict=True):
            reached = [
                (float((seen.probs_NC[seen.y_true_N == c, c] >= t).mean()), t)
                for t in seen.probs_NC[:, c]
                if (seen.probs_NC[seen.y_true_N != c, c] < t).mean() >= 0.9
            ]
            assert threshold.val_sensitivity == pytest.approx(max(reached)[0])
            assert threshold.value in seen.probs_NC[:, c]
            shares.append((one.probs_NC[one.y_true_N == c, c] >= threshold.value).mean())
        assert setting.point.sensitivity.value == pytest.approx(np.mean(shares))


def test_choices_do_not_read_test(evidence, rows, board, site_of):
    shuffled = {
        k: replace(one, y_true_N=np.roll(one.y_true_N, 2 * 17)) for k, one in rows[0].test.items()
    }  # whole patients of two volumes
    others = gather_evidence([replace(rows[0], test=shuffled), rows[1]], board, {"site": site_of})
    assert others[0].calibration[0].temperature == evidence[0].calibration[0].temperature
    for ours, theirs in zip(evidence[0].targets, others[0].targets, strict=True):
        for one, other in zip(ours.operating, theirs.operating, strict=True):
            assert one.point.thresholds == other.point.thresholds
        assert ours.operating[0].point.sensitivity != theirs.operating[0].point.sensitivity


def test_a_temperature_mends_overconfidence(rows, board):
    first = np.arange(0, len(next(iter(rows[0].test.values())).y_true_N), 2)  # one volume of each patient

    def louder(one):
        return replace(one, scores_NC=6 * one.scores_NC).select(first)

    loud = {split: {k: louder(one) for k, one in getattr(rows[0], split).items()} for split in ("val", "test")}
    (one,) = gather_evidence([replace(rows[0], **loud)], build_leaderboard([rows[0]], num_resamples=200), {})
    (part,) = one.calibration
    assert part.temperature > 2
    assert part.scaled["nll"].value < part.measures["nll"].value
    assert part.measures["ece"].value > part.chance_error


def test_subgroups_are_of_the_named_columns(evidence):
    (column,) = evidence[0].subgroups
    assert [(group.name, group.num_patients) for group in column.groups] == [("site 0", 45), ("site 1", 45)]


def make_labels(seed, split, patients=60):
    rng = np.random.default_rng(len(split))
    has_NL = rng.random((patients, 2)) < 0.4
    ids = np.array([f"{split}{n:03d}" for n in range(patients)])
    logits_NL = np.random.default_rng([seed, len(split)]).normal(size=(patients, 2)) + 2.0 * has_NL - 1.0
    return Predictions(ids, ids, encode_label_sets(has_NL), logits_NL, ("C1", "C2"), task="multi_label")


def test_labels_are_each_held_by_themselves():
    row = RowPredictions("e", "r", {0: make_labels(0, "val")}, {0: make_labels(0, "tests")})
    board = build_leaderboard([row], metric="map", num_resamples=200)
    (one,) = gather_evidence([row], board, {})
    assert [target.positive for target in one.targets] == ["C1", "C2"]
    assert [part.of for part in one.calibration] == ["C1", "C2"]
    assert [part.of for part in one.abstention] == ["C1", "C2"]
    for target in one.targets:
        assert target.average_precision.value == pytest.approx(board.rows[0].test[f"ap_{target.positive}"].value)
    assert all(table_csv(table) for table in evidence_tables((one,), board))


def test_two_classes_have_one_curve():
    rng = np.random.default_rng(0)
    ids = np.array([f"p{n:02d}" for n in range(40)])
    made = {
        split: {0: Predictions(np.array([f"{split}{name}" for name in ids]), ids, np.arange(40) % 2,
                               rng.normal(size=(40, 2)), ("ill not", "ill"))}
        for split in ("val", "test")
    }  # fmt: skip
    row = RowPredictions("e", "r", **made)
    (one,) = gather_evidence([row], build_leaderboard([row], num_resamples=200), {})
    assert [target.positive for target in one.targets] == ["ill"]


def test_tables_and_figures_hold_the_same_numbers(evidence, board, tmp_path):
    tables = {table.name: table for table in evidence_tables(evidence, board)}
    assert list(tables) == ["leaderboard", "discrimination", "roc", "precision_recall", "calibration", "reliability",
                            "operating_points", "decision_curve", "abstention", "subgroups"]  # fmt: skip
    lines = list(csv.DictReader(io.StringIO(table_csv(tables["discrimination"]))))
    first = evidence[0].targets[0].average_precision
    assert float(lines[0]["average_precision"]) == pytest.approx(first.value, abs=1e-6)
    assert float(lines[0]["average_precision_high"]) == pytest.approx(first.high, abs=1e-6)
    drawn = draw_evidence(evidence, board)
    write_figures(drawn, tmp_path)
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == [
        f"multi.linear.{kind}.svg"
        for kind in ("abstention", "decision_curve", "precision_recall", "reliability", "roc")
    ]
    assert f"average precision {first.value:.3f}" in drawn["multi / linear"]["precision_recall"]
    assert draw_evidence(evidence, board) == drawn


def test_what_cannot_be_had_says_why(rows, board):
    one_class = {k: one.select(one.y_true_N == 0) for k, one in rows[0].val.items()}
    (one, *_) = gather_evidence([replace(rows[0], val=one_class), rows[1]], board, {})
    setting = one.targets[1].operating[0]
    assert isinstance(setting.point, Undefined)
    text = table_csv(next(table for table in evidence_tables((one,), board) if table.name == "operating_points"))
    assert "a threshold needs val rows of" in text
