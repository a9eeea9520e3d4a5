"""`run -m`: sweeps, failures of single jobs, and what a joint leaderboard is made of."""

import sys
from pathlib import Path

import pandas as pd
import pytest
from cohorts import study_values, write_cohort, write_study

from vitreous import cli
from vitreous.core.errors import ConfigError, RunError, UserError
from vitreous.study.multirun import job_name, run_multirun


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VITREOUS_ID_KEY", str(tmp_path / "id_key"))
    root = write_cohort(tmp_path / "cohort")
    return write_study(tmp_path / "study.yaml", study_values(root, seeds=[0]))


def test_one_wrong_job_leaves_the_others_alone(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["vitreous", "run", str(study), "-m", "recipes.linear.epochs=4,0"])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert "some of 2 jobs failed" in err
    assert "recipes.linear.epochs=0" in err
    assert "Traceback" not in err + out
    root = study.parent / "cohort" / "runs" / "small" / "multirun"
    assert (root / "recipes.linear.epochs=4" / "leaderboard.csv").exists()
    assert len(pd.read_csv(root / "leaderboard.csv")) == 4


def test_a_job_that_fails_through_no_fault_of_the_user(study: Path) -> None:
    path = sorted((study.parent / "cohort").rglob("*.npy"))[0]
    path.write_bytes(b"")
    with pytest.raises(RunError, match=r"some of 2 jobs failed(.|\n)*max_quarantined=0\.0,.*: 1 of 72 samples"):
        run_multirun(str(study), ["recipes.linear.epochs=4", "data.max_quarantined=0.5,0.0"])
    root = study.parent / "cohort" / "runs" / "small" / "multirun"
    assert len(pd.read_csv(root / "leaderboard.csv")) == 4
    assert not list(root.glob(".sweep*"))


@pytest.mark.slow
def test_jobs_of_other_processes_tell_their_failure_too(study: Path) -> None:
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    with pytest.raises(UserError, match=r"some of 2 jobs failed(.|\n)*recipes\.linear\.epochs=0: "):
        run_multirun(str(study), [*launcher, "recipes.linear.epochs=4,0"])
    root = study.parent / "cohort" / "runs" / "small" / "multirun"
    assert (root / "recipes.linear.epochs=4" / "leaderboard.csv").exists()
    assert len(pd.read_csv(root / "leaderboard.csv")) == 4


def test_names_of_jobs_differ() -> None:
    names = {job_name([f"++encoders.a.checkpoint={path}"]) for path in ("a/b", "a_b", "a b")}
    assert len(names) == 3
    assert job_name(["++seeds=[0]", "++cache.dir=/x", "++name=n"]) == "seeds=[0]"


def test_lists_are_values_and_earlier_sweeps_are_left_out(study: Path) -> None:
    run_multirun(str(study), ["recipes.linear.epochs=4", "seeds=[0,1]"])
    run_multirun(str(study), ["recipes.linear.epochs=5,6", "data.spacing_mm=[1,1,1]"])
    root = study.parent / "cohort" / "runs" / "small" / "multirun"
    table = pd.read_csv(root / "leaderboard.csv")
    assert len(table) == 8
    assert not table["recipe"].str.contains("epochs=4").any()


def test_names_and_places_cannot_be_swept(study: Path) -> None:
    with pytest.raises(ConfigError, match="runs names or places the runs and cannot be swept"):
        run_multirun(str(study), ["runs=a,b"])
    with pytest.raises(ConfigError, match=r"cache\.dir names or places the runs"):
        run_multirun(str(study), ["cache.dir=a,b"])
    with pytest.raises(ConfigError, match="only lists and ranges can be swept"):
        run_multirun(str(study), ["intervals.level=interval(0.8,0.9)"])
    with pytest.raises(ConfigError, match="a multirun sets this itself"):
        run_multirun(str(study), ["hydra.sweep.dir=elsewhere"])
    with pytest.raises(ConfigError, match="cannot be read"):
        run_multirun(str(study), ["seeds=[0"])
