"""SIGKILL and SIGTERM during fine-tuning, then the same command: the same bytes as an undisturbed run.

Oracle: the undisturbed run.
"""

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cohorts import contents, study_values, write_cohort, write_study
from test_study_kill import RESULTS, command, environment

KEPT = (*RESULTS, "adapter_model.safetensors", "test_logits.parquet", "model.json", "grid.csv", "selection.json")
TRAINED = {"batch_size": 4, "lr_encoder": 1e-3, "lr_head": 1e-2, "augment": {"flip": 0.5, "rotate": 10}}
RECIPES: dict[str, Any] = {
    "lora": {"kind": "lora", "rank": 2, "epochs": 8, "adapter_dropout": 0.1, "ema": 0.9, **TRAINED},
    "staged": {
        "kind": "staged",
        **TRAINED,
        "stages": [{"epochs": 3, "unfreeze": 0}, {"epochs": 8, "unfreeze": "all"}],
    },
}


def study(tmp_path: Path, name: str) -> Path:
    values = study_values(
        tmp_path / "cohort",
        recipes=RECIPES,
        seeds=[0],
        floors=["majority"],
        runs=str(tmp_path / name),
        store=str(tmp_path / f"{name}_features"),
    )
    values["encoders"].pop("second")
    return write_study(tmp_path / f"{name}.yaml", values)


def stop_when(path: Path, root: Path, reached: Callable[[], bool], signum: int) -> int:
    """Start the run, send the signal as soon as `reached`; the exit status."""
    process = subprocess.Popen(command(path), env=environment(root), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 200
    while not reached():
        if process.poll() is not None or time.monotonic() > deadline:
            assert process.stderr is not None
            pytest.fail(f"the run ended before it could be stopped: {process.stderr.read().decode()}")
        time.sleep(0.002)
    process.send_signal(signum)
    process.communicate()
    return process.returncode


def test_stopped_in_training_and_run_again(tmp_path: Path) -> None:
    write_cohort(tmp_path / "cohort", participants=48)
    whole = subprocess.run(
        command(study(tmp_path, "whole")), env=environment(tmp_path), capture_output=True, check=False
    )
    assert whole.returncode == 0, whole.stderr.decode()

    stopped = study(tmp_path, "stopped")
    runs = tmp_path / "stopped"

    def state_of(recipe: str) -> Callable[[], bool]:
        return lambda: any((runs / "small" / "first" / recipe / "seed0" / "training").glob("*.*"))

    assert stop_when(stopped, tmp_path, state_of("lora"), signal.SIGKILL) == -signal.SIGKILL
    assert stop_when(stopped, tmp_path, state_of("staged"), signal.SIGTERM) == 130
    kept = {path.name for path in runs.rglob("training/*")}
    assert kept, "the state of the training stands where it was stopped"
    again = subprocess.run(command(stopped), env=environment(tmp_path), capture_output=True, check=False)
    assert again.returncode == 0, again.stderr.decode()

    expected, found = contents(tmp_path / "whole", *KEPT), contents(runs, *KEPT)
    assert expected.keys() == found.keys()
    different = [name for name in expected if expected[name] != found[name]]
    assert not different
    assert not list(runs.rglob("training"))
