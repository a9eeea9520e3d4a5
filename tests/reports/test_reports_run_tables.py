"""Tables of other parts of a run, read back for the report; oracle: what their own writers were given."""

import pytest

from vitreous.core.undefined import Undefined
from vitreous.reports.comparisons import write_comparisons
from vitreous.reports.few_shot import FewShotScore, write_few_shot
from vitreous.reports.folds import FoldScore, write_folds
from vitreous.reports.run_tables import run_tables
from vitreous.reports.training_figures import few_shot_plot

ONE = Undefined("one draw has no spread")


def test_what_a_run_does_not_have_is_left_out(tmp_path):
    assert run_tables(tmp_path, "auroc", "AUROC") == {}


def test_comparisons_rounds_and_few_shot_are_read_as_written(tmp_path, leaderboard):
    write_comparisons(leaderboard.paired, tmp_path)
    scores = [
        FoldScore("e", "r", "fold", 0, 1, "north", 5, 6, {"lr": 0.1}, 0.5, {"auroc": 0.75}),
        FoldScore("e", "r", "mean", None, None, None, 5, 6, None, 0.5, {"auroc": Undefined("one class")}),
    ]
    write_folds(scores, "auroc", tmp_path)
    curve = [
        FewShotScore("e", "r", "auroc", 5, None, 15, 0.6, 0.7, 0.65, 0.75, ONE),
        FewShotScore("e", "r", "auroc", 5, 0, 15, 0.6, 0.7, ONE, ONE, ONE),
    ]
    write_few_shot(curve, tmp_path)
    found = run_tables(tmp_path, "auroc", "AUROC")
    assert list(found) == ["folds", "few_shot", "comparisons"]
    assert found["folds"].rows == (
        ("e", "r", "fold", "0", "1", "north", 6, 0.5, 0.75),
        ("e", "r", "mean", "", "", "", 6, 0.5, Undefined("one class")),
    )
    assert found["few_shot"].rows == (("e", "r", "5", 15.0, 0.6, 0.7, 0.65, 0.75, ONE),), "means over draws alone"
    svg = few_shot_plot(found["few_shot"], "AUROC")
    assert "e / r: 15 patients 0.700" in svg
    assert "AUROC by training patients" in svg
    assert len(found["comparisons"].rows) == len(leaderboard.paired)
    first = leaderboard.paired[0]
    assert found["comparisons"].rows[0][:4] == (first.row, first.other, first.test, first.metric)
    assert found["comparisons"].rows[0][4] == pytest.approx(first.difference, abs=1e-6)
    assert found["folds"].path == "folds.csv"


def test_a_matrix_has_intervals_and_says_why_a_cell_is_empty(tmp_path):
    (tmp_path / "domains").mkdir()
    (tmp_path / "domains" / "matrix.csv").write_text(
        "encoder,recipe,train,test,metric,n_patients,score,score_low,score_high,loss,loss_low,loss_high,undefined\n"
        "e,r,a,a,auroc,12,0.5,0.25,0.75,,,,loss: a model is not compared with itself\n"
    )
    (row,) = run_tables(tmp_path, "auroc", "AUROC")["generalisation"].rows
    assert (row[4], row[5].value, row[5].low, row[5].high) == (12, 0.5, 0.25, 0.75)
    assert row[6].value == Undefined("a model is not compared with itself")
