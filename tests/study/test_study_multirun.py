"""`run -m`: sweeps, failures of single jobs, and what a joint leaderboard is made of."""

import sys
from pathlib import Path

import pandas as pd
import pytest
from cohorts import study_values, write_cohort, write_study

from vitreous import cli
from vitreous.core.errors import ConfigError
from vitreous.study.multirun import run_multirun


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
    assert "1 jobs failed" in err
    assert "recipes.linear.epochs=0" in err
    assert "Traceback" not in err + out
    root = study.parent / "cohort" / "runs" / "small" / "multirun"
    assert (root / "recipes.linear.epochs=4" / "leaderboard.csv").exists()
    assert len(pd.read_csv(root / "leaderboard.csv")) == 4


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
    with pytest.raises(ConfigError, match="cannot be read"):
        run_multirun(str(study), ["seeds=[0"])
