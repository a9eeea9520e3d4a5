"""The command line: exit codes, messages, and that `plan` and `doctor` say what they should."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from cohorts import contents, study_values, write_checkpoint, write_cohort, write_study

from vitreous import cli
from vitreous.config.compose import packaged_studies
from vitreous.core.errors import LocationError


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one call, in this process."""
    monkeypatch.setattr(sys, "argv", ["vitreous", *arguments])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as caught:
        cli.main()
    out, err = capsys.readouterr()
    code = caught.value.code
    return (0 if code is None else int(code)), out, err


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VITREOUS_ID_KEY", str(tmp_path / "id_key"))
    root = write_cohort(tmp_path / "cohort")
    return write_study(tmp_path / "study.yaml", study_values(root))


def test_plan_shows_counts_and_writes_nothing(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(study.parent, "*")
    code, out, err = call(monkeypatch, capsys, "plan", str(study))
    assert code == 0, err
    assert contents(study.parent, "*") == before
    for text in (
        "48 participants, 72 volumes",
        "healthy",
        "site1",
        "device0",
        "first",
        "untrained",
        "linear",
        "Nothing was written",
    ):
        assert text in " ".join(out.split()), text


def test_run_then_report_then_doctor(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(monkeypatch, capsys, "run", str(study))
    assert code == 0, err
    run_dir = study.parent / "cohort" / "runs" / "small"
    assert str(run_dir / "report.html") in out
    assert "72 rows = 72 encoded + 0 quarantined + 0 excluded by rule" in err
    table = (run_dir / "leaderboard.csv").read_bytes()
    (run_dir / "leaderboard.csv").unlink()
    assert call(monkeypatch, capsys, "report", str(run_dir))[0] == 0
    assert (run_dir / "leaderboard.csv").read_bytes() == table
    code, out, err = call(monkeypatch, capsys, "doctor", str(run_dir))
    assert code == 0, err
    assert "72 rows = 72 encoded" in out


def test_doctor_on_a_good_study(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(study.parent, "*")
    code, out, err = call(monkeypatch, capsys, "doctor", str(study))
    assert code == 0, out + err
    for text in (
        "Labels of 48 participants",
        "Files of 5 participants",
        "tensors",
        "volumes decoded",
        "one volume through decode",
        "learns eight samples",
    ):
        assert text in out, text
    assert contents(study.parent, "*") == before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.files=absent", "absent"),
        ("data.label=diagnosis", "diagnosis"),
        ("encoders.first.checkpoint=absent.pt", "absent.pt"),
    ],
)
def test_doctor_names_what_is_wrong(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    code, out, _ = call(monkeypatch, capsys, "doctor", str(study), override)
    assert code == 1
    assert message in out


def test_doctor_finds_a_volume_that_stands_out(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = sorted((study.parent / "cohort").rglob("*.npy"))[0]
    np.save(path, np.random.default_rng(0).normal(9000, 10, size=(5, 40, 36)).astype(np.float32))
    code, out, _ = call(monkeypatch, capsys, "doctor", str(study))
    assert code == 0
    assert "robust standard deviations" in out


def test_doctor_tells_of_a_bucket_that_fails_in_the_middle(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: object, **__: object) -> object:
        raise LocationError("s3://eye: access was refused")

    monkeypatch.setattr("vitreous.storage.staging.StagingCache.stream", refused)
    code, out, err = call(monkeypatch, capsys, "doctor", str(study))
    assert code == 1
    assert "The volumes cannot be surveyed." in out
    assert "access was refused" in out
    assert "tensors" in out, "the steps before are told"
    assert "Traceback" not in err


def test_doctor_looks_at_every_volume_of_a_run(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = sorted((study.parent / "cohort").rglob("*.npy"))[30]
    np.save(path, np.load(path)[:4])
    assert call(monkeypatch, capsys, "run", str(study), "seeds=[0]", "recipes.linear.epochs=4")[0] == 0
    run_dir = study.parent / "cohort" / "runs" / "small"
    code, out, err = call(monkeypatch, capsys, "doctor", str(run_dir))
    assert code == 0, err
    assert "1 of 72 volumes have a size that hardly any other has" in out
    assert "4×40×36 (1)" in out
    code, _, err = call(monkeypatch, capsys, "doctor", str(run_dir), "seeds=[0]")
    assert code == 2
    assert "a finished run takes no overrides" in err
    code, _, err = call(monkeypatch, capsys, "doctor", str(run_dir.parent))
    assert code == 2
    assert "no run directory (it has no study.yaml)" in err


def test_doctor_of_a_packaged_study_beside_a_folder_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = packaged_studies()[0]
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    code, out, err = call(monkeypatch, capsys, "doctor", name, f"data.table={tmp_path / 'absent.tsv'}")
    assert code == 1, err
    assert "The data cannot be opened." in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "absent.yaml"), "no such study file"),
        (("run", "{study}", "seds=[0]"), "seds: unknown key; did you mean 'seeds'?"),
        (("run", "{study}", "seeds=[0"), "is not of the form key=value"),
        (("plan", "{study}", "data.classes=[healthy,early]"), "late"),
        (("report", "{study}"), "no run directory"),
        (("inspect", "absent.pt"), "absent.pt"),
        (("inspect", "{study}", "--family", "vit9"), "known are vit3d"),
        (("frobnicate",), "No such command"),
        (("run",), "Missing argument"),
    ],
)
def test_wrong_arguments_exit_with_2_and_say_why(
    study: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    code, _, err = call(monkeypatch, capsys, *(part.format(study=study) for part in arguments))
    assert code == 2
    assert message in " ".join(err.split())
    assert "Traceback" not in err


def test_inspect_shows_the_receipt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_checkpoint(tmp_path / "a.safetensors", 0)
    code, out, err = call(monkeypatch, capsys, "inspect", str(path))
    assert code == 0, err
    assert "100%" in out
    code, out, _ = call(monkeypatch, capsys, "inspect", str(path), "--json")
    assert '"matched_share": 1.0' in out


def test_inspect_shows_the_input_of_the_modality_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_checkpoint(tmp_path / "a.safetensors", 0)
    code, _, err = call(monkeypatch, capsys, "inspect", str(path), "--modality", "volume")
    assert code == 0, err
    code, _, err = call(monkeypatch, capsys, "inspect", str(path), "--modality", "image")
    assert code == 2
    assert "takes volumes" in " ".join(err.split())


def test_help_is_quick_and_imports_no_torch() -> None:
    script = (
        "import sys; sys.argv = ['vitreous', '--help']\nfrom vitreous.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\nassert 'torch' not in sys.modules, 'torch was imported'"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for verb in ("demo", "plan", "run", "encode", "report", "inspect", "doctor"):
        assert verb in done.stdout


def test_multirun_writes_one_folder_a_job_and_one_leaderboard(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(study.parent)
    code, out, err = call(monkeypatch, capsys, "run", str(study), "-m", "recipes.linear.epochs=4,6", "seeds=[0]")
    assert code == 0, err
    root = study.parent / "cohort" / "runs" / "small" / "multirun"
    jobs = sorted(path.name for path in root.iterdir() if path.is_dir())
    assert jobs == ["recipes.linear.epochs=4,seeds=[0]", "recipes.linear.epochs=6,seeds=[0]"]
    epochs = [yaml.safe_load((root / job / "study.yaml").read_text())["recipes"]["linear"]["epochs"] for job in jobs]
    assert epochs == [4, 6]
    assert len(pd.read_csv(root / "leaderboard.csv")) == 8
    assert "joint leaderboard" in out
    assert sorted(path.name for path in study.parent.iterdir()) == ["cohort", "id_key", "study.yaml"], (
        "no stray folders"
    )


def test_multirun_with_the_joblib_launcher(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(study.parent)
    code, _, err = call(
        monkeypatch,
        capsys,
        "run",
        str(study),
        "-m",
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=1",
        "recipes.linear.epochs=4,5",
        "seeds=[0]",
    )
    assert code == 0, err
    root = study.parent / "cohort" / "runs" / "small" / "multirun"
    assert len(list(root.glob("*/leaderboard.csv"))) == 2
