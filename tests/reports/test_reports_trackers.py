"""Trackers get every row's metrics and curves, and no patient id; TensorBoard is read back for real."""

import importlib.util
import warnings
from dataclasses import replace

import pytest

from vitreous.core.errors import UserError
from vitreous.reports.leaderboard_tables import write_leaderboard
from vitreous.reports.report import render_report
from vitreous.reports.trackers import log_run, tracked_rows


@pytest.fixture
def run_dir(leaderboard, report_data, tmp_path):
    folder = tmp_path / "oct_run"
    write_leaderboard(leaderboard, folder)
    render_report(report_data, folder / "report.html")
    return folder


def skip_without(kind):
    if importlib.util.find_spec(kind) is None:
        pytest.skip(f"{kind} is not installed")


def all_bytes(folder):
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_rows_carry_metrics_settings_and_curves(leaderboard, curves):
    rows = {row.name: row for row in tracked_rows(leaderboard, curves)}
    multi = rows["multi / linear"]
    assert multi.metrics["test_balanced_accuracy"] == leaderboard.row("multi / linear").test["balanced_accuracy"].value
    assert multi.settings["chosen"] == "learning_rate 0.1"
    assert multi.curves["seed 1/val_loss"][-1] == (10, curves[0].histories["seed 1"][-1]["val_loss"])
    floor = rows["floor / majority"]
    assert "seed_sd" not in floor.metrics
    assert "one seed has no spread" in floor.settings["undefined"]
    assert floor.curves == {}


def test_tensorboard_reads_back_what_was_written(run_dir, leaderboard, curves):
    skip_without("tensorboard")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tensorboard's own deprecations
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        folder = log_run("tensorboard", run_dir, leaderboard, curves)
        assert log_run("tensorboard", run_dir, leaderboard, curves) == folder
        read = EventAccumulator(str(folder / "multi_linear"))
        read.Reload()
    (event,) = read.Scalars("test_balanced_accuracy")
    expected = leaderboard.row("multi / linear").test["balanced_accuracy"].value
    assert event.value == pytest.approx(expected, rel=1e-6)
    losses = read.Scalars("seed 0/val_loss")
    assert [event.step for event in losses] == list(range(1, 11))
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {
        "multi_linear", "multi_mlp", "single_linear", "untrained_linear", "floor_majority"
    }  # fmt: skip
    assert (folder / "leaderboard.csv").exists()
    assert b"tests-0" not in all_bytes(folder)


def test_mlflow_keeps_rows_in_sqlite(run_dir, leaderboard, curves):
    skip_without("mlflow")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow.tracking import MlflowClient

        folder = log_run("mlflow", run_dir, leaderboard, curves)
        client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
        experiment = client.get_experiment_by_name("oct_run")
        runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
        assert set(runs) == {row.name for row in leaderboard.rows}
        best = runs["multi / linear"]
        expected = leaderboard.row("multi / linear").test["balanced_accuracy"].value
        assert best.data.metrics["test_balanced_accuracy"] == pytest.approx(expected)
        history = client.get_metric_history(best.info.run_id, "seed 0/val_loss")
        assert [point.step for point in history] == list(range(1, 11))
    assert b"tests-0" not in all_bytes(folder)


def test_wandb_writes_offline_runs(run_dir, leaderboard, curves):
    skip_without("wandb")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = log_run("wandb", run_dir, leaderboard, curves)
    assert len(list((folder / "wandb").glob("offline-run-*"))) == len(leaderboard.rows)
    assert b"test_balanced_accuracy" in all_bytes(folder)
    assert b"tests-0" not in all_bytes(folder)


def test_a_tracker_that_is_missing_or_unknown_is_refused_with_the_remedy(run_dir, leaderboard, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"wandb is not installed; run pip install -e '.\[trackers\]'"):
        log_run("wandb", run_dir, leaderboard)
    with pytest.raises(UserError, match="'clearml' is not known; choose one of tensorboard, wandb, mlflow, or null"):
        log_run("clearml", run_dir, leaderboard)
    assert not (run_dir / "trackers").exists()


def test_class_names_that_mlflow_cannot_tell_apart_are_refused(curves, row):
    from vitreous.reports.leaderboard import build_leaderboard
    from vitreous.reports.trackers import _mlflow_names

    assert _mlflow_names(["f1_early <b>", "seed 0/val_loss"]) == {
        "f1_early <b>": "f1_early _b_",
        "seed 0/val_loss": "seed 0/val_loss",
    }
    made = row("a", "b", 1.0)
    both = {k: replace(one, classes=("x+", "x-", "y")) for k, one in made.test.items()}
    twins = build_leaderboard([replace(made, test=both, val=both)])
    names = list(tracked_rows(twins, ())[0].metrics)
    assert len(_mlflow_names(names)) == len(names)  # '-' is allowed, '+' becomes '_'
    with pytest.raises(UserError, match="mlflow cannot tell apart metrics"):
        _mlflow_names(["f1_x+", "f1_x*"])
