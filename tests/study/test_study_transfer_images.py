"""Transfer between cohorts of images in tables with other columns and label values. Oracle: the planted signal."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cohorts import write_study
from PIL import Image
from sklearn.metrics import accuracy_score

from vitreous.config.compose import validate_study
from vitreous.core.errors import ConfigError, SampleError, UserError
from vitreous.core.predictions import Predictions
from vitreous.study.run import run_study
from vitreous.study.transfer import run_transfer
from vitreous.study.transfer_cohort import CohortOptions

CLASSES = ("none", "mild", "severe")


def write_images(folder: Path, patients: int, seed: int, gain: float = 1.0) -> list[dict[str, object]]:
    """Two images a patient; grade k brightens the first k thirds."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    rows = []
    for n in range(patients):
        for eye in "LR":
            pixels = rng.normal(80, 12, size=(24, 24, 3))
            pixels[: 8 * (n % 3)] += 90 * gain
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"s{seed}_{n}{eye}.png")
            rows.append({"image": f"s{seed}_{n}{eye}", "patient": f"s{seed}_{n}", "grade": n % 3, "n": n})
    return rows


@pytest.fixture(scope="module", autouse=True)
def id_key(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VITREOUS_ID_KEY", str(tmp_path_factory.mktemp("key") / "id_key"))
        yield


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    table = pd.DataFrame(write_images(root / "a", 48, seed=0))
    table["split"] = np.array(["train", "train", "val", "test"])[(table["n"] // 3) % 4]
    table.rename(columns={"image": "id_code", "grade": "diagnosis"}).to_csv(root / "a.csv", index=False)
    values = {
        "name": "dr",
        "data": {
            "kind": "csv", "table": str(root / "a.csv"), "files": str(root / "a"), "image": "id_code",
            "label": "diagnosis", "patient": "patient", "split": "split", "classes": list(CLASSES),
            "label_map": dict(zip("012", CLASSES)),
        },
        "encoders": {"copy": {"family": "pixels", "random": {"image_size": [6, 6]}}},
        "recipes": {"logistic": {"kind": "logistic_regression", "C": [0.1]}},
        "floors": ["majority"], "seeds": [0], "device": "cpu", "precision": "fp32", "intervals": {"resamples": 200},
        "runs": str(root / "runs"), "store": str(root / "features"), "cache": {"dir": str(root / "cache")},
    }  # fmt: skip
    return run_study(validate_study(values)).run_dir


@pytest.fixture(scope="module")
def camera_b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other column names, other label values, weaker contrast, no split."""
    root = tmp_path_factory.mktemp("camera_b")
    table = pd.DataFrame(write_images(root / "b", 36, seed=1, gain=0.5))
    table["level"] = table["grade"].map({0: "R0", 1: "R1", 2: "R2"})
    table[["image", "patient", "level"]].rename(columns={"image": "Image name"}).to_csv(root / "b.csv", index=False)
    return root


OPTIONS = CohortOptions(label="level", image="Image name", label_map=dict(zip(("R0", "R1", "R2"), CLASSES)))


def place(root: Path, name: str = "camera_b") -> list[str]:
    return [f"{name}:{root / 'b.csv'}:{root / 'b'}"]


def test_another_camera_with_its_own_columns_and_labels(run_dir: Path, camera_b: Path) -> None:
    (target,) = run_transfer(run_dir, place(camera_b), options=OPTIONS, rows=["copy/logistic"], ordered=True)
    made = Predictions.read(run_dir / "transfer" / "camera_b" / "copy" / "logistic" / "seed0.parquet", CLASSES)
    expected = [int(name.rsplit("_", 1)[1][:-5]) % 3 for name in made.sample_id_N]  # s1_12L.png → 12
    assert made.y_true_N.tolist() == expected
    patients = made.per_patient()
    gap = target.rows[0].gaps["accuracy"]
    assert gap.target.value == pytest.approx(accuracy_score(patients.y_true_N, patients.y_pred_N))
    assert gap.source.value == 1.0, "the planted signal is strong"
    assert gap.gap.low > 0.1, "and weaker on the other camera"
    assert target.rows[0].gaps["quadratic_weighted_kappa"].gap.value > 0
    assert target.num_target == 36


def test_wrong_columns_and_labels_each_have_one_clear_error(run_dir: Path, camera_b: Path, tmp_path: Path) -> None:
    rows = ["copy/logistic"]
    with pytest.raises(SampleError, match="diagnosis"):
        run_transfer(run_dir, place(camera_b, "x"), options=CohortOptions(image="Image name"), rows=rows)
    unmapped = CohortOptions(label="level", image="Image name")
    with pytest.raises(SampleError, match="R0"):
        run_transfer(run_dir, place(camera_b, "x"), options=unmapped, rows=rows)
    misnamed = replace(unmapped, label_map={"R0": "none", "R1": "moderate"})
    with pytest.raises(ConfigError, match="which are not among the classes"):
        run_transfer(run_dir, place(camera_b, "x"), options=misnamed, rows=rows)
    with pytest.raises(UserError, match=r"give x:TABLE:FILES"):
        run_transfer(run_dir, [f"x:{camera_b / 'b.csv'}"], options=OPTIONS, rows=rows)
    data = {"kind": "folder", "files": str(tmp_path), "split": {"fractions": [0.6, 0.2, 0.2]}}
    study = write_study(tmp_path / "folder.yaml", {"data": data})
    with pytest.raises(UserError, match="--label-map has no meaning for data of kind folder"):
        run_transfer(run_dir, [f"x:{study}"], options=CohortOptions(label_map={"a": "none"}), rows=rows)
    assert not (run_dir / "transfer" / "x").exists()
