"""`data verify`: planted flaws are found and named, a clean cohort is clean. Oracles: what was planted; NumPy."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from cohorts import contents, study_values, write_cohort, write_study
from PIL import Image, ImageEnhance

from vitreous import cli
from vitreous.config.compose import load_study
from vitreous.core.finding import Finding
from vitreous.study.data import open_data
from vitreous.study.data_prepare import prepare_cohort
from vitreous.study.data_verify import Verification, print_verify, verify_data

IDRID = Path(__file__).parents[3] / "shared" / "data" / "idrid"
ENCODERS = {"untrained": {"family": "vit3d", "random": {"img_size": [4, 32, 32], "patch_size": [2, 16, 16],
                                                        "embed_dim": 64, "depth": 1, "num_heads": 1}}}  # fmt: skip
RECIPES = {"linear": {"kind": "linear_probe", "grid": {"lr": [1e-3], "weight_decay": [0.0]}}}


def picture(seed: int) -> Image.Image:
    """Coarse random blocks, smoothed: every seed another picture."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(30, 200, (24, 24, 3), np.uint8))
    return small.resize((96, 96), Image.Resampling.BICUBIC)


def write_images(root: Path, *, patients: int = 24) -> pd.DataFrame:
    """labels.csv and two images a patient; every fourth patient is val, every fourth test."""
    rows = []
    (root / "images").mkdir(parents=True)
    for number in range(patients):
        for eye in ("left", "right"):
            name = f"p{number:02d}_{eye}"
            picture(2 * number + (eye == "right")).save(root / "images" / f"{name}.png")
            split = ("train", "train", "val", "test")[number // 2 % 4]
            row = {"image": name, "patient": f"p{number:02d}", "grade": number % 2, "split": split}
            rows.append(row | {"camera": f"c{number % 3 > 0:d}"})
    table = pd.DataFrame(rows)
    table.to_csv(root / "labels.csv", index=False)
    return table


def image_study(root: Path, **data: Any) -> Path:
    values = {
        "kind": "csv",
        "table": str(root / "labels.csv"),
        "files": str(root / "images"),
        "image": "image",
        "label": "grade",
        "classes": ["healthy", "ill"],
        "label_map": {0: "healthy", 1: "ill"},
        "patient": "patient",
        "split": "split",
        "domains": ["camera"],
    }
    return write_study(
        root / "study.yaml",
        {
            "name": "pictures",
            "data": values | data,
            "encoders": ENCODERS,
            "recipes": RECIPES,
            "runs": str(root / "runs"),
            "store": str(root / "features"),
            "cache": {"dir": str(root / "cache")},
        },
    )


def verify(study: Path, *overrides: str) -> Verification:
    config = load_study(str(study), list(overrides))
    return verify_data(config, open_data(config, keep_listing=False), workers=2)


def errors(found: Verification) -> dict[str, Finding]:
    return {finding.code: finding for finding in found.findings if finding.severity == "error"}


def test_a_clean_cohort_and_its_numbers(tmp_path: Path) -> None:
    table = write_images(tmp_path)
    found = verify(image_study(tmp_path))
    assert errors(found) == {}
    assert found.duplicates.empty
    assert found.unreadable.empty
    assert found.outliers.empty
    pixels = {name: np.asarray(Image.open(tmp_path / "images" / f"{name}.png"), np.float64) for name in table["image"]}
    rows = found.statistics.set_index(["column", "value", "statistic"])
    for column, value in (("all", "all"), ("split", "val"), ("split", "test"), ("camera", "c1")):
        chosen = table if column == "all" else table[table[column] == value]
        red = pd.Series([pixels[name][..., 0].mean() for name in chosen["image"]])
        row = rows.loc[(column, value, "mean_r")]
        assert row["n"] == len(chosen)
        np.testing.assert_allclose(
            row[["mean", "sd", "min", "max"]].astype(float), [red.mean(), red.std(), red.min(), red.max()]
        )
    counts = found.counts.set_index(["split", "class"])
    assert counts.loc[("test", "ill"), ["patients", "samples"]].tolist() == [3, 6]


def test_planted_flaws_are_all_found(tmp_path: Path) -> None:
    write_images(tmp_path)
    images = tmp_path / "images"
    train, other, val, test = (images / f"{name}.png" for name in ("p00_left", "p02_left", "p04_left", "p06_left"))
    Image.open(train).save(test, compress_level=1)  # other bytes, the same pixels
    ImageEnhance.Brightness(Image.open(train)).enhance(1.05).save(images / "p05_left.jpg", quality=80)
    (images / "p05_left.png").unlink()
    Image.open(other).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(val)  # another picture, to the hash
    (images / "p01_right.png").write_bytes((images / "p01_right.png").read_bytes()[:2000])
    (images / "p03_right.png").write_text("no picture")
    (images / "p02_right.png").unlink()
    ImageEnhance.Brightness(Image.open(images / "p09_left.png")).enhance(0.05).save(images / "p09_left.png")
    found = verify(image_study(tmp_path))
    assert set(errors(found)) == {"missing_files", "unreadable", "exact_duplicates", "near_duplicates"}
    pairs = {(row.kind, row.first, row.second) for row in found.duplicates.itertuples()}
    names = {kind: {name.partition(".")[0] for name in pair} for kind, *pair in pairs}
    assert names == {"exact": {"p00_left", "p06_left"}, "near": {"p00_left", "p05_left"}}
    leak = found.duplicates.set_index("kind").loc["exact"]
    assert {leak["first_split"], leak["second_split"]} == {"train", "test"}
    sealed = leak["first_class"] if leak["first_split"] == "test" else leak["second_class"]
    assert sealed == "", "the label of a test image is not told"
    reasons = {
        name.partition(".")[0]: why for name, why in zip(found.unreadable["sample_id"], found.unreadable["reason"])
    }
    assert set(reasons) == {"p01_right", "p03_right"}
    assert "truncated" in reasons["p01_right"]
    assert {name.partition(".")[0] for name in found.outliers["sample_id"]} == {"p09_left"}
    assert "p02_right" in errors(found)["missing_files"].evidence


def test_same_picture_under_two_labels_and_two_patients(tmp_path: Path) -> None:
    write_images(tmp_path)
    images = tmp_path / "images"
    (images / "p01_left.png").write_bytes((images / "p00_left.png").read_bytes())  # both train, other grades
    (images / "p08_left.png").write_bytes((images / "p08_right.png").read_bytes())  # one patient
    found = verify(image_study(tmp_path))
    assert set(errors(found)) == {"conflicting_labels"}
    assert "p00_left" in errors(found)["conflicting_labels"].evidence
    by_severity = {f.severity: f.title for f in found.findings if f.code == "exact_duplicates"}
    assert by_severity["warning"].startswith("1 pairs of two patients")
    assert by_severity["info"].startswith("1 pairs of one patient")


def test_folds_make_every_pair_of_two_patients_a_leak(tmp_path: Path) -> None:
    write_images(tmp_path)
    images = tmp_path / "images"
    (images / "p08_left.png").write_bytes((images / "p00_left.png").read_bytes())  # both train, one grade
    study = image_study(tmp_path)
    assert set(errors(verify(study))) == set()
    values = yaml.safe_load(study.read_text())
    del values["data"]["split"]
    write_study(study, values | {"folds": {"k": 3}})
    assert set(errors(verify(study))) == {"exact_duplicates"}


def test_volumes(tmp_path: Path) -> None:
    root = write_cohort(tmp_path / "cohort")
    study = write_study(tmp_path / "study.yaml", study_values(root))
    found = verify(study)
    assert errors(found) == {}
    assert set(found.statistics["statistic"]) >= {"depth", "height", "width", "mean", "std"}
    table = pd.read_csv(root / "participants.tsv", sep="\t", dtype=str).set_index("participant_id")
    files = sorted(root.rglob("*.npy"))
    train, test = (
        next(f for f in files if table.loc[f.parent.name, "recommended_split"] == split) for split in ("train", "test")
    )
    test.write_bytes(train.read_bytes())
    files[-1].write_bytes(files[-1].read_bytes()[:500])
    found = verify(study)
    assert set(errors(found)) == {"exact_duplicates", "unreadable"}
    assert train.name in errors(found)["exact_duplicates"].evidence
    assert test.name in errors(found)["exact_duplicates"].evidence


def test_npz_items(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {}
    for offset, (split, count) in enumerate((("train", 24), ("val", 8), ("test", 8))):
        arrays[f"{split}_images"] = np.stack([np.asarray(picture(100 * offset + n)) for n in range(count)])
        arrays[f"{split}_labels"] = np.arange(count)[:, None] % 2
    arrays["val_images"][3] = arrays["train_images"][5]
    np.savez(tmp_path / "small.npz", **arrays)
    data = {"kind": "npz", "table": str(tmp_path / "small.npz"), "axes": "HWC", "classes": ["a", "b"]}
    values = {
        "name": "npz",
        "data": data,
        "encoders": ENCODERS,
        "recipes": RECIPES,
        "store": str(tmp_path / "features"),
    }
    found = verify(write_study(tmp_path / "study.yaml", values | {"cache": {"dir": str(tmp_path / "cache")}}))
    assert set(errors(found)) == {"exact_duplicates"}
    assert len(found.duplicates) == 1


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["vitreous", *arguments])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0)


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path)
    study = image_study(tmp_path)
    assert call(monkeypatch, "data", "verify", str(study)) == 0
    assert "No two files show the same thing" in capsys.readouterr().out
    folder = tmp_path / "runs" / "pictures" / "verify"
    assert json.loads((folder / "verify.json").read_text())["is_clean"] is True
    (tmp_path / "images" / "p06_left.png").write_bytes((tmp_path / "images" / "p00_left.png").read_bytes())
    out = tmp_path / "elsewhere"
    assert call(monkeypatch, "data", "verify", str(study), f"--out={out}") == 1
    shown = capsys.readouterr().out
    assert "a leak" in shown
    assert "p06_left" in shown
    files = contents(out, "*")
    assert set(files) == {"verify.json", "statistics.csv", "outliers.csv", "duplicates.csv", "unreadable.csv"}
    summary = json.loads(files["verify.json"])
    assert summary["is_clean"] is False
    assert summary["duplicates"]["exact"] == {"pairs": 1, "across_splits": 1}
    assert b"p06_left" not in files["verify.json"]
    assert b"p06_left" in files["duplicates.csv"]
    assert call(monkeypatch, "data", "verify", str(study), "data.label=absent") == 2
    assert call(monkeypatch, "data", "verify", str(tmp_path / "none.yaml")) == 2


@pytest.mark.real
@pytest.mark.skipif(not IDRID.is_dir(), reason=f"needs {IDRID}")
def test_idrid_shows_six_photographs_twice(tmp_path: Path) -> None:
    prepare_cohort("idrid", IDRID, tmp_path / "idrid")
    values = yaml.safe_load((tmp_path / "idrid" / "data.yaml").read_text())
    values |= {
        "name": "idrid",
        "encoders": ENCODERS,
        "recipes": RECIPES,
        "store": str(tmp_path / "features"),
        "cache": {"dir": str(tmp_path / "cache")},
    }
    study = write_study(tmp_path / "study.yaml", values)
    found = verify(study)
    assert found.unreadable.empty
    assert found.duplicates["kind"].tolist() == ["exact"] * 6
    test = found.duplicates[(found.duplicates[["first_split", "second_split"]] == "test").any(axis=1)]
    assert {*test["first"], *test["second"]} == {"test/IDRiD_064.jpg", "train/IDRiD_118.jpg"}
    assert set(errors(found)) == {"exact_duplicates", "conflicting_labels"}
    assert print_verify(str(study), [], tmp_path / "out")
