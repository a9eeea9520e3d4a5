"""Poison: with all test labels randomised, every byte that a run writes before its last step stays the same.

Oracle: the files of the run directory as they are when the ledger is about to open test, once with the true labels and
once with permuted ones (permuted, since counts per class are shown).
"""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cohorts import contents, study_values

from vitreous.config.compose import validate_study
from vitreous.study import run as run_module
from vitreous.study.run import Result, run_study

CLASSES = ["no", "some", "much"]
TIME_NS = 1_700_000_000_000_000_000


@pytest.fixture(autouse=True)
def id_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITREOUS_ID_KEY", str(tmp_path / "id_key"))


def write_arrays(path: Path, *, is_poisoned: bool) -> None:
    """Volumes brighter with the class, patients of two volumes; the same size and time of the file either way."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, patients in (("train", 30), ("val", 18), ("test", 18)):
        y_P = np.arange(patients) % 3
        volumes = rng.integers(0, 80, size=(2 * patients, 6, 16, 16)) + 40 * np.repeat(y_P, 2)[:, None, None, None]
        if split == "test" and is_poisoned:
            y_P = np.random.default_rng(1).permutation(y_P)
        arrays |= {
            f"{split}_images": volumes.astype(np.uint8),
            f"{split}_labels": np.repeat(y_P, 2).astype(np.uint8),
            f"{split}_patients": np.repeat([f"{split}{n:02d}" for n in range(patients)], 2),
        }
    np.savez(path, **arrays)
    os.utime(path, ns=(TIME_NS, TIME_NS))


def study(root: Path) -> dict[str, Any]:
    data = {"kind": "npz", "table": str(root / "volumes.npz"), "classes": CLASSES, "axes": "DHW", "patient": "patients"}
    values = study_values(root, data=data, few_shot={"patients": [3], "draws": 1}, seeds=[0])
    values["floors"] = ["majority", "shuffled", "untrained", "pixels", "columns"]
    values["recipes"] |= {
        "logistic": {"kind": "logistic_regression", "C": [0.01, 1.0]},
        "full": {"kind": "finetune", "epochs": 1, "warmup_epochs": 0, "batch_size": 16},
    }
    values["encoders"].pop("second")
    return values


def run_and_look(
    root: Path, monkeypatch: pytest.MonkeyPatch, *, is_poisoned: bool
) -> tuple[dict[str, bytes], Result, dict[str, bytes]]:
    """Files before test is opened, the result, and files of the feature store."""
    write_arrays(root / "volumes.npz", is_poisoned=is_poisoned)
    before: dict[str, bytes] = {}
    evaluate = run_module.evaluate_all

    def look_first(config: Any, directory: Any, *rest: Any) -> None:
        before.update(contents(directory.root, "*"))
        evaluate(config, directory, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "evaluate_all", look_first)
        result = run_study(validate_study(study(root)))
    return before, result, contents(root / "features", "*")


def test_no_byte_before_the_last_step_knows_a_test_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest, result, kept = run_and_look(tmp_path, monkeypatch, is_poisoned=False)
    truth = pd.read_csv(result.run_dir / "leaderboard.csv")
    ledger = (result.run_dir / "ledger.jsonl").read_bytes()
    for folder in ("runs", "features", "cache"):
        if (tmp_path / folder).exists():
            shutil.move(tmp_path / folder, tmp_path / "honest" / folder)
    poisoned, result, kept_again = run_and_look(tmp_path, monkeypatch, is_poisoned=True)
    expected = {"best.safetensors", "val_preds.parquet", "model.json", "grid.csv", "selection.json", "study.yaml"}
    expected |= {
        "manifest.parquet",
        "account.json",
        "provenance.json",
        "few_shot_logits.parquet",
        "test_logits.parquet",
    }
    assert expected <= {Path(name).name for name in honest}, "the comparison is of all that matters"
    assert not [name for name in honest if "test_preds" in name or "leaderboard" in name or "metrics" in name]
    assert {name for name in honest if honest[name] != poisoned.get(name)} == set()
    assert poisoned.keys() == honest.keys()
    assert kept_again == kept, "features neither"
    assert (result.run_dir / "ledger.jsonl").read_bytes() == ledger, "the same choices were sealed before the look"
    again = pd.read_csv(result.run_dir / "leaderboard.csv")
    assert truth["test_accuracy"].tolist() != again["test_accuracy"].tolist(), "the poison was drunk"
    columns = ["encoder", "recipe", "val_balanced_accuracy"]
    pd.testing.assert_frame_equal(
        truth[columns].sort_values(columns, ignore_index=True), again[columns].sort_values(columns, ignore_index=True)
    )
