"""SIGKILL during encoding and during probing, then the same command again: byte-identical to an undisturbed run."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cohorts import contents, study_values, write_cohort, write_study

RESULTS = (
    "*_preds*.parquet",
    "metrics.json",
    "leaderboard.csv",
    "leaderboard.md",
    "best.safetensors",
    "history.csv",
    "manifest.parquet",
    "data_errors.csv",
)


def command(study: Path) -> list[str]:
    return [sys.executable, "-m", "vitreous.cli", "run", str(study)]


def environment(root: Path) -> dict[str, str]:
    return os.environ | {"VITREOUS_ID_KEY": str(root / "id_key"), "OMP_NUM_THREADS": "1"}


def kill_when(study: Path, root: Path, reached: Callable[[], bool], timeout_s: float = 120) -> None:
    """Start the run and kill it without warning as soon as `reached`."""
    process = subprocess.Popen(command(study), env=environment(root), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + timeout_s
    while not reached():
        if process.poll() is not None or time.monotonic() > deadline:
            assert process.stderr is not None
            pytest.fail(f"the run ended before it could be killed: {process.stderr.read().decode()}")
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def count(root: Path, pattern: str) -> int:
    return len(list(root.rglob(pattern)))


def test_killed_while_encoding_and_while_probing(tmp_path: Path) -> None:
    root = write_cohort(tmp_path / "cohort", participants=96)
    whole = write_study(
        tmp_path / "whole.yaml",
        study_values(root, runs=str(tmp_path / "whole"), store=str(tmp_path / "whole_features")),
    )
    undisturbed = subprocess.run(command(whole), env=environment(tmp_path), capture_output=True, check=False)
    assert undisturbed.returncode == 0, undisturbed.stderr.decode()

    store, runs = tmp_path / "killed_features", tmp_path / "killed"
    study = write_study(tmp_path / "killed.yaml", study_values(root, runs=str(runs), store=str(store)))
    kill_when(study, tmp_path, lambda: count(store, "shard-*.parquet") >= 1)
    num_shards = count(store, "shard-*.parquet")
    assert num_shards < count(tmp_path / "whole_features", "shard-*.parquet"), "killed in the middle of encoding"
    kill_when(study, tmp_path, lambda: count(runs, "model.json") >= 1)
    assert count(runs, "model.json") < count(tmp_path / "whole", "model.json"), "killed in the middle of probing"
    again = subprocess.run(command(study), env=environment(tmp_path), capture_output=True, check=False)
    assert again.returncode == 0, again.stderr.decode()

    assert contents(store, "shard-*.parquet") == contents(tmp_path / "whole_features", "shard-*.parquet")
    expected = contents(tmp_path / "whole", *RESULTS)
    assert len(expected) > 30
    assert contents(runs, *RESULTS) == expected
    assert (runs / "small" / "ledger.jsonl").read_text().count("\n") == 1
    assert count(runs, "*.part") == 0


def test_an_interrupt_says_how_to_go_on(tmp_path: Path) -> None:
    root = write_cohort(tmp_path / "cohort")
    study = write_study(tmp_path / "s.yaml", study_values(root))
    process = subprocess.Popen(
        command(study), env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    while count(root, "study.yaml") == 0 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr.decode()
    assert "the same command continues" in stderr.decode()
    assert "Traceback" not in stderr.decode()
