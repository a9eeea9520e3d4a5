"""A study of several labels an image, from table to report, prediction and resumption.

Oracle: scikit-learn on the kept predictions.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cohorts import contents
from PIL import Image as PillowImage
from sklearn.metrics import average_precision_score, f1_score

from vitreous.config.compose import validate_study
from vitreous.core.errors import ConfigError, UserError
from vitreous.core.predictions import Predictions
from vitreous.study.predict import predict_files
from vitreous.study.run import Result, run_study
from vitreous.study.run_directory import RunDirectory
from vitreous.study.transfer import run_transfer

LABELS = ["C1", "C2", "C3"]


def write_images(root: Path, *, seed: int = 0) -> Path:
    """Two frames a video; each label is a bright band of its own, sometimes missing in one of the frames."""
    rng = np.random.default_rng(seed)
    (root / "images").mkdir(parents=True)
    rows = []
    for number in range(60):
        has = rng.random(3) < [0.5, 0.4, 0.3]
        for frame in range(2):
            shown = has & (rng.random(3) < 0.9)
            pixels = rng.integers(0, 90, size=(40, 40, 3))
            for label in np.flatnonzero(shown):
                pixels[12 * label : 12 * label + 12, :, label] += 90
            name = f"v{number:02d}_{frame}"
            PillowImage.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / "images" / f"{name}.png")
            rows.append((name, f"v{number:02d}", *shown.astype(int), ("train", "train", "val", "test")[number % 4]))
    pd.DataFrame(rows, columns=["image", "vid", *LABELS, "split"]).to_csv(root / "frames.csv", index=False)
    return root


def values(root: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": "labels",
        "data": {
            "kind": "csv",
            "table": str(root / "frames.csv"),
            "files": str(root / "images"),
            "image": "image",
            "label": LABELS,
            "patient": "vid",
            "split": "split",
            "aggregate": "none",
        },
        "encoders": {"tiny": {"family": "timm", "random": {"model": "test_vit", "img_size": [32, 32]}}},
        "recipes": {
            "linear": {"kind": "linear_probe", "epochs": 8, "class_weights": "balanced", "grid": {"lr": [1e-2, 1e-1]}},
            "focal": {
                "kind": "linear_probe",
                "epochs": 8,
                "lr": 0.05,
                "loss": {"kind": "focal"},
                "sampler": "balanced",
            },
            "logistic": {"kind": "logistic_regression", "C": [0.1, 1.0]},
            "knn": {"kind": "knn", "k": [5]},
        },
        "floors": ["majority", "shuffled", "pixels"],
        "seeds": [0, 1],
        "device": "cpu",
        "precision": "fp32",
        "intervals": {"resamples": 200},
        "runs": str(root / "runs"),
        "store": str(root / "features"),
        "cache": {"dir": str(root / "cache")},
    } | changes


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    root = write_images(tmp_path_factory.mktemp("labels"))
    return root, run_study(validate_study(values(root), where="test"))


def test_the_leaderboard_is_of_map_and_its_numbers_are_scikit_learns(done) -> None:
    root, result = done
    table = result.leaderboard
    assert list(table.columns[:8]) == [
        "rank", "letters", "encoder", "recipe", "seeds", "n_test_patients", "val_map", "test_map",
    ]  # fmt: skip
    assert {"test_ap_C2", "test_ap_C2_low", "test_auroc_C1", "test_exact_match", "test_macro_f1"} <= set(table.columns)
    run = Path(root / "runs" / "labels")
    frame = pd.read_csv(root / "frames.csv").set_index("image")
    for recipe in ("linear", "focal", "logistic", "knn"):
        row = table[(table["encoder"] == "tiny") & (table["recipe"] == recipe)].iloc[0]
        scores = []
        for seed in str(row["seeds"]).split():
            preds = pd.read_parquet(run / "tiny" / recipe / f"seed{seed}" / "test_preds.parquet")
            names = preds["sample_id"].str.removesuffix(".png")
            for name in LABELS:
                assert (preds[f"y_{name}"].to_numpy() == frame.loc[names, name].to_numpy()).all()
            scores.append(
                np.mean([average_precision_score(preds[f"y_{name}"], preds[f"logit_{name}"]) for name in LABELS])
            )
        assert row["test_map"] == pytest.approx(np.mean(scores), abs=1e-9)
        assert row["test_map"] > 0.75, recipe
    floors = table[table["encoder"] == "floor"]
    assert set(floors["recipe"]) == {"majority", "shuffled", "pixels"}
    assert floors.set_index("recipe").loc["majority", "test_map"] < 0.6


def test_thresholds_are_chosen_on_val_and_frozen(done) -> None:
    root, _ = done
    folder = root / "runs" / "labels" / "tiny" / "linear" / "seed0"
    model = json.loads((folder / "model.json").read_text())
    metrics = json.loads((folder / "metrics.json").read_text())
    assert model["task"] == "multi_label"
    assert metrics["thresholds"] == model["thresholds"]
    val, test = (Predictions.read(folder / f"{split}_preds.parquet", LABELS) for split in ("val", "test"))
    for c, name in enumerate(LABELS):
        best = max(f1_score(val.targets_NC[:, c], val.probs_NC[:, c] >= t) for t in np.unique(val.probs_NC[:, c]))
        found = val.probs_NC[:, c] >= model["thresholds"][name]
        assert f1_score(val.targets_NC[:, c], found) == pytest.approx(best)
        again = f1_score(test.targets_NC[:, c], test.probs_NC[:, c] >= model["thresholds"][name])
        assert metrics["test"][f"f1_{name}"] == pytest.approx(again)
    has = test.targets_NC.astype(int)
    assert metrics["test_co_occurrence"] == (has.T @ has).tolist()


def test_the_same_command_changes_no_byte(done) -> None:
    root, _ = done
    run = root / "runs" / "labels"
    before = contents(run, "*.parquet", "metrics.json", "leaderboard.csv", "*.safetensors", "report.html")
    shutil.rmtree(run / "tiny" / "focal" / "seed1")
    run_study(validate_study(values(root), where="test"))
    assert contents(run, "*.parquet", "metrics.json", "leaderboard.csv", "*.safetensors", "report.html") == before


def test_the_report_speaks_of_labels(done) -> None:
    root, _ = done
    report = RunDirectory(root / "runs" / "labels").report.read_text()
    assert "mAP" in report
    assert "Metrics per label" in report
    assert "Leaderboard: mAP" in (root / "runs" / "labels" / "leaderboard.md").read_text()


def test_a_copied_model_predicts_each_label(done, tmp_path) -> None:
    root, _ = done
    kept = root / "runs" / "labels" / "tiny" / "linear" / "seed0"
    shutil.copytree(kept, tmp_path / "model")
    predict_files(tmp_path / "model", [str(root / "images")], tmp_path / "p.parquet", device="cpu")
    found = pd.read_parquet(tmp_path / "p.parquet")
    found.index = found["sample_id"].map(lambda name: Path(name).name)
    test = pd.read_parquet(kept / "test_preds.parquet").set_index("sample_id")
    rows = found.loc[test.index.map(lambda name: Path(name).name)]
    np.testing.assert_allclose(rows["logit_C2"], test["logit_C2"], atol=1e-5)
    assert (rows["y_pred_C2"].to_numpy() == test["y_pred_C2"].to_numpy()).all()
    assert "class_pred" not in found.columns


def test_videos_that_agree_are_scored_as_one(done, tmp_path) -> None:
    root, _ = done
    frame = pd.read_csv(root / "frames.csv")
    for name in LABELS:
        frame[name] = frame.groupby("vid")[name].transform("max")
    frame.to_csv(tmp_path / "agreed.csv", index=False)
    changed = values(root, name="agreed", recipes={"logistic": {"kind": "logistic_regression", "C": [1.0]}})
    changed["data"] = changed["data"] | {"table": str(tmp_path / "agreed.csv"), "aggregate": "mean_probability"}
    run_study(validate_study(changed | {"folds": None, "runs": str(tmp_path / "runs")}, where="test"))
    patients = pd.read_parquet(
        tmp_path / "runs" / "agreed" / "tiny" / "logistic" / "seed0" / "test_preds_patient.parquet"
    )
    assert patients["patient_id"].is_unique
    assert {"y_C1", "y_pred_C1", "prob_C1", "threshold_C1"} <= set(patients.columns)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "accuracy"}, "'accuracy' is not for several labels a sample; known are map, auroc"),
        ({"data": {"label": "C1", "classes": ["0", "1"]}, "metric": "map"}, "'map' is not for one class a sample"),
        ({"data": {"label": ["C1"]}}, "a list names 2 to 62 labels; got 1"),
        ({"data": {"label": ["C1", "C1"]}}, "lists a column twice"),
        ({"data": {"classes": ["a", "b"]}}, "2 classes for 3 columns of label"),
        ({"data": {"label_map": {"0": "C1"}}}, "label_map has no effect with several label columns"),
        ({"data": {"label": "C1", "classes": ["0", "1"], "agreement": 0.5}}, "agreement has no effect"),
        ({"recipes": {"p": {"kind": "linear_probe", "loss": {"kind": "ordinal"}}}}, "loss ordinal is for classes"),
        ({"recipes": {"p": {"kind": "linear_probe", "class_weights": [1, 2]}}}, "2 weights for 3 classes"),
        (
            {"recipes": {"p": {"kind": "linear_probe", "label_smoothing": 0.1, "loss": {"kind": "focal"}}}},
            "label_smoothing has no effect with the loss focal",
        ),
    ],
)
def test_what_does_not_go_with_several_labels_is_refused(tmp_path, changes, message) -> None:
    study = values(tmp_path)
    data = study["data"] | changes.pop("data", {})
    with pytest.raises(ConfigError, match=message):
        validate_study(study | changes | {"data": data}, where="test")


def test_a_loss_of_labels_is_refused_for_classes(tmp_path) -> None:
    study = values(tmp_path)
    study["data"] |= {"label": "C1", "classes": ["0", "1"]}
    study["recipes"] = {"p": {"kind": "linear_probe", "loss": {"kind": "asymmetric"}}}
    with pytest.raises(ConfigError, match="loss asymmetric is for several labels"):
        validate_study(study, where="test")


def test_the_gap_on_another_cohort_is_measured_by_label(done, tmp_path) -> None:
    root, _ = done
    other = write_images(tmp_path / "other", seed=5)
    places = [f"other:{other / 'frames.csv'}:{other / 'images'}"]
    with pytest.raises(UserError, match="is for classes that are grades"):
        run_transfer(root / "runs" / "labels", places, ordered=True)
    [target] = run_transfer(root / "runs" / "labels", places, rows=["tiny/linear", "tiny/knn", "floor/majority"])
    row = next(one for one in target.rows if one.name == "tiny / linear")
    frame = pd.read_csv(other / "frames.csv").set_index("image")
    assert target.target_counts_C == tuple(frame[LABELS].sum())
    scores, f1 = [], []
    for seed in (0, 1):
        folder = root / "runs" / "labels" / "transfer" / "other" / "tiny" / "linear"
        preds = Predictions.read(folder / f"seed{seed}.parquet", LABELS)
        truth = frame.loc[[Path(name).stem for name in preds.sample_id_N], LABELS].to_numpy(bool)
        np.testing.assert_array_equal(preds.targets_NC, truth)
        scores.append(np.mean([average_precision_score(truth[:, c], preds.probs_NC[:, c]) for c in range(3)]))
        model = json.loads((root / "runs/labels/tiny/linear" / f"seed{seed}" / "model.json").read_text())
        f1.append(f1_score(truth[:, 1], preds.probs_NC[:, 1] >= model["thresholds"]["C2"]))
    gap = row.gaps["map"]
    assert gap.target.value == pytest.approx(np.mean(scores))
    assert row.gaps["f1_C2"].target.value == pytest.approx(np.mean(f1)), "thresholds stay those of the run"
    assert gap.gap.value == pytest.approx(gap.source.value - gap.target.value)
    assert "AP, source" in (root / "runs" / "labels" / "transfer" / "transfer.md").read_text()
