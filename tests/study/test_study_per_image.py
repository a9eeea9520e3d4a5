"""`data.aggregate: none`: images are scored, patients are split and resampled.

Oracles: scikit-learn on the kept predictions, and a plain loop that draws patients and puts their rows together.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image as PillowImage
from sklearn.metrics import balanced_accuracy_score, confusion_matrix

from vitreous.config.compose import validate_study
from vitreous.core.errors import SampleError, StudyMismatchError
from vitreous.core.predictions import Predictions
from vitreous.study.doctor import examine_run
from vitreous.study.run import Result, run_study
from vitreous.study.run_directory import RunDirectory

CLASSES = ("healthy", "mild", "severe")
PATIENTS = 72
VIT = {"model": "test_vit", "img_size": [32, 32]}
TRAINED = {"batch_size": 16, "lr_encoder": 1e-4, "lr_head": 1e-2}


def write_eyes(root: Path, *, is_mixed: bool = True) -> Path:
    """eyes.csv and two PNG a patient, brighter with the grade; the right eye may be a grade worse."""
    rng = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    rows = []
    for number in range(PATIENTS):
        split = ("train", "train", "val", "test")[number // 3 % 4]
        for eye in ("left", "right"):
            worse = is_mixed and eye == "right" and number % 9 < 3 and number % 3 < 2
            grade = number % 3 + worse
            pixels = np.clip(
                rng.integers(0, 60, size=(40, 44, 3)) + 60 * grade + np.clip(rng.normal(20, 35), -40, 95), 0, 255
            )
            PillowImage.fromarray(pixels.astype(np.uint8)).save(root / "images" / f"p{number:02d}_{eye}.png")
            rows.append((f"p{number:02d}_{eye}", f"p{number:02d}", grade, split))
    pd.DataFrame(rows, columns=["image", "person", "grade", "split"]).to_csv(root / "eyes.csv", index=False)
    return root


def values(root: Path, **data: Any) -> dict[str, Any]:
    cohort = {
        "kind": "csv",
        "table": str(root / "eyes.csv"),
        "files": str(root / "images"),
        "image": "image",
        "label": "grade",
        "label_map": dict(enumerate(CLASSES)),
        "classes": list(CLASSES),
        "patient": "person",
        "split": "split",
        "aggregate": "none",
    }
    return {
        "name": "eyes",
        "data": cohort | data,
        "encoders": {"tiny": {"family": "timm", "random": VIT}},
        "recipes": {
            "linear": {"kind": "linear_probe", "epochs": 12, "class_weights": "balanced", "grid": {"lr": [1e-3, 1e-1]}},
            "tuned": {"kind": "finetune", "epochs": 1, "sampler": "balanced", **TRAINED},
        },
        "floors": ["majority"],
        "seeds": [0, 1],
        "device": "cpu",
        "precision": "fp32",
        "intervals": {"resamples": 400},
        "runs": str(root / "runs"),
        "store": str(root / "features"),
        "cache": {"dir": str(root / "cache")},
    }


def run(study: dict[str, Any]) -> Result:
    return run_study(validate_study(study, where="test"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return run(values(write_eyes(tmp_path_factory.mktemp("eyes"))))


def units_of(result: Result) -> list[Path]:
    folders = sorted(path.parent for path in result.run_dir.rglob("test_preds.parquet"))
    assert len(folders) == 5  # two recipes of two seeds, and the floor
    return folders


def test_every_image_is_scored_by_itself(finished: Result) -> None:
    table = pd.read_csv(finished.run_dir.parents[1] / "eyes.csv").set_index("image")
    for folder in units_of(finished):
        kept = json.loads((folder / "metrics.json").read_text())
        assert (kept["unit"], kept["n_test"], kept["n_test_patients"]) == ("images", 36, 18)
        assert (kept["n_val"], kept["n_val_patients"]) == (36, 18)
        for split in ("val", "test"):
            frame = pd.read_parquet(folder / f"{split}_preds.parquet")
            grades = table.loc[frame["sample_id"].str.removesuffix(".png"), "grade"].to_numpy()
            np.testing.assert_array_equal(frame["y_true"], grades)
            assert frame.groupby("patient_id")["y_true"].nunique().max() == 2
            expected = balanced_accuracy_score(frame["y_true"], frame["y_pred"])
            assert kept[split]["balanced_accuracy"] == pytest.approx(expected, abs=1e-12)
        assert kept["test_confusion"] == confusion_matrix(frame["y_true"], frame["y_pred"]).tolist()
        assert not (folder / "test_preds_patient.parquet").exists()


def test_what_was_chosen_on_val_was_chosen_by_images(finished: Result) -> None:
    for recipe in ("linear", "tuned"):
        grid = pd.read_csv(finished.run_dir / "tiny" / recipe / "grid.csv").query("chosen").set_index("seed")
        for seed in (0, 1):
            frame = pd.read_parquet(finished.run_dir / "tiny" / recipe / f"seed{seed}" / "val_preds.parquet")
            expected = balanced_accuracy_score(frame["y_true"], frame["y_pred"])
            assert grid.loc[seed, "val_score"] == pytest.approx(expected, abs=1e-9)


def test_intervals_draw_patients_and_score_their_images(finished: Result) -> None:
    """The loop shares no code and no random numbers with the bounds, so that it agrees up to chance."""
    row = finished.standing.row("tiny / linear").test["balanced_accuracy"]
    seeds = [pd.read_parquet(finished.run_dir / f"tiny/linear/seed{seed}/test_preds.parquet") for seed in (0, 1)]
    rng = np.random.default_rng(1)
    rows_of = [np.flatnonzero(seeds[0]["patient_id"] == person) for person in seeds[0]["patient_id"].unique()]
    drawn_scores = []
    for _ in range(400):
        rows = np.concatenate([rows_of[person] for person in rng.integers(len(rows_of), size=len(rows_of))])
        scores = [balanced_accuracy_score(one["y_true"].iloc[rows], one["y_pred"].iloc[rows]) for one in seeds]
        drawn_scores.append(np.mean(scores))
    low, high = np.quantile(drawn_scores, [0.025, 0.975])
    assert 0 < row.low < row.value < row.high <= 1  # type: ignore[operator]
    assert row.low == pytest.approx(low, abs=0.06)
    assert row.high == pytest.approx(high, abs=0.06)


def test_outputs_say_images_and_patients(finished: Result) -> None:
    markdown = (finished.run_dir / "leaderboard.md").read_text()
    assert "on 36 test images of 18 patients" in markdown
    assert "resamples of patients, whose images are drawn together." in markdown
    report = finished.report.read_text()
    assert "36 test images of 18 patients" in report
    assert "Every image was scored by itself, and patients were resampled with all of theirs" in report
    assert "Participants (images) by class" in report
    assert "volume" not in report.split("<h2>Encoders", 1)[0].split("<body>")[1]
    board = finished.leaderboard
    assert set(board["n_test_patients"]) == {18}
    assert set(board["n_test_samples"]) == {36}
    titles = [finding.title for finding in examine_run(RunDirectory(finished.run_dir))]
    assert any(title.startswith("144 images (minimum") for title in titles)


def test_folds_are_drawn_by_patient(finished: Result, tmp_path: Path) -> None:
    study = values(write_eyes(tmp_path)) | {"folds": {"k": 3}}
    study["data"].pop("split")
    study["recipes"].pop("tuned")
    result = run(study)
    frames = [pd.read_parquet(path) for path in result.run_dir.glob("tiny/linear/fold*/seed0/test_preds.parquet")]
    together = pd.concat(frames)
    assert together["sample_id"].is_unique
    assert len(together) == 2 * PATIENTS
    assert not any(set(a["patient_id"]) & set(b["patient_id"]) for a in frames for b in frames if a is not b)
    assert f"on {2 * PATIENTS} test images of {PATIENTS} patients" in (result.run_dir / "leaderboard.md").read_text()


def test_without_it_mixed_labels_are_refused_with_the_remedy(finished: Result) -> None:
    root = finished.run_dir.parents[1]
    with pytest.raises(SampleError, match=r"patients have items with different labels.*data\.aggregate: none"):
        run(values(root, aggregate="mean_probability"))
    frame = pd.read_csv(root / "eyes.csv")
    frame.loc[frame["image"] == "p00_left", "split"] = "test"
    frame.to_csv(root / "torn.csv", index=False)
    with pytest.raises(SampleError, match=r"1 patients have items with different splits: 'p00'"):
        run(values(root, table=str(root / "torn.csv")))


def test_a_run_of_patients_is_not_continued_by_images(tmp_path: Path) -> None:
    root = write_eyes(tmp_path, is_mixed=False)
    study = values(root, aggregate="mean_probability")
    study["recipes"].pop("tuned")
    by_patient = run(study)
    assert "on 18 test patients" in (by_patient.run_dir / "leaderboard.md").read_text()
    assert "n_test_samples" not in by_patient.leaderboard
    assert Predictions.read(by_patient.run_dir / "tiny/linear/seed0/test_preds_patient.parquet", CLASSES).is_per_patient
    with pytest.raises(StudyMismatchError, match=r"data\.aggregate"):
        run(study | {"data": study["data"] | {"aggregate": "none"}})


def test_without_patients_images_are_patients_and_a_banner_says_so(tmp_path: Path) -> None:
    root = write_eyes(tmp_path)
    study = values(root)
    study["data"].pop("patient")
    study["recipes"].pop("tuned")
    by_image = run(study | {"name": "by_image"})
    as_patients = run(study | {"name": "as_patients", "data": study["data"] | {"aggregate": "mean_probability"}})
    both = [result.leaderboard.drop(columns="n_test_samples", errors="ignore") for result in (by_image, as_patients)]
    pd.testing.assert_frame_equal(*both, check_exact=False, rtol=0, atol=1e-12)
    assert "There are no patient ids" in by_image.report.read_text()
