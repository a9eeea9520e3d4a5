"""Patients whose images have different labels. Oracle: the tables they were written from."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from vitreous.core.errors import SampleError
from vitreous.samples.cohort import Cohort
from vitreous.samples.folders import load_image_folders
from vitreous.samples.folds import fold_cohorts
from vitreous.samples.image_table import load_image_table
from vitreous.samples.npz import load_npz_cohort
from vitreous.samples.splits import FractionSplit, ValFraction
from vitreous.storage.location import Location, ObjectInfo
from vitreous.study.provenance import cohort_fingerprint

CLASSES = ("no", "mild", "severe")
REFUSED = r"patients have items with different labels.*data\.aggregate: none"


def eyes(patients: int = 60) -> pd.DataFrame:
    """Two eyes a patient; of every second patient the right one is a grade worse, up to the worst."""
    rows = [
        (f"p{n:02d}_{eye}", f"p{n:02d}", min(2, n // 2 % 3 + (eye == "R" and n % 2)))
        for n in range(patients)
        for eye in "LR"
    ]
    return pd.DataFrame(rows, columns=["image", "person", "grade"]).assign(
        part=lambda frame: [("train", "train", "val", "test")[int(name[1:]) // 6 % 4] for name in frame["person"]]
    )


def load(folder: Path, frame: pd.DataFrame, **options: Any) -> Cohort:
    path = folder / "eyes.csv"
    frame.to_csv(path, index=False)
    listing = [ObjectInfo(Location("file", "", f"/d/{one}.png"), f"{one}.png", 9, one) for one in frame["image"]]
    settings: dict[str, Any] = {
        "image": "image", "label": "grade", "classes": CLASSES, "label_map": {str(k): n for k, n in enumerate(CLASSES)},
        "patient": "person", "split": "part", "one_label": False,
    }  # fmt: skip
    return load_image_table(path, listing, **settings | options)


def worst_of(frame: pd.DataFrame) -> pd.Series:
    return frame.sort_values("grade").groupby("person")["grade"].last()


def test_every_image_keeps_its_label_and_patients_weigh_one(tmp_path: Path) -> None:
    frame = eyes()
    with pytest.raises(SampleError, match=rf"20 {REFUSED}"):
        load(tmp_path, frame, one_label=True)
    cohort = load(tmp_path, frame)
    seen = cohort.samples[cohort.samples["y"] >= 0].set_index("sample_id")
    expected = frame.set_index(frame["image"] + ".png").loc[seen.index, "grade"]
    np.testing.assert_array_equal(seen["y"], expected)
    assert np.allclose(cohort.samples.groupby("patient_id")["weight"].sum(), 1)
    pd.testing.assert_series_equal(
        cohort.patient_labels(), worst_of(frame), check_names=False, check_index_type=False, check_dtype=False
    )
    assert cohort.open_test_labels() == {
        f"{row.image}.png": row.grade for row in frame.itertuples() if row.part == "test"
    }


@pytest.mark.parametrize("split", [FractionSplit((0.6, 0.2, 0.2), 1), None])
def test_splits_go_by_patient_and_by_the_worst_eye(tmp_path: Path, split: FractionSplit | None) -> None:
    frame = eyes()
    cohort = load(tmp_path, frame, split=split)
    rounds = [cohort] if split else fold_cohorts(cohort, num_folds=5, seed=0)
    for one in rounds:
        split_of = one.samples.groupby("patient_id")["split"].agg(["first", "nunique"])
        assert (split_of["nunique"] == 1).all()
        counts = pd.crosstab(split_of["first"], worst_of(frame).loc[split_of.index])
        share = counts.loc["test"] / counts.sum()
        assert ((share - 0.2).abs() <= 1 / counts.sum().min()).all()


def test_a_class_of_second_eyes_alone_is_no_absent_class(tmp_path: Path) -> None:
    """No patient's worst eye is `mild`, and yet there are mild eyes in every split."""
    frame = eyes()
    frame["grade"] = [
        g if name.endswith("L") else 2 for g, name in zip(frame["grade"] % 2, frame["image"], strict=True)
    ]
    cohort = load(tmp_path, frame)
    assert set(cohort.patient_labels()) == {2}
    assert set(cohort.samples.loc[cohort.samples["split"] == "train", "y"]) == {0, 1, 2}
    assert len(fold_cohorts(load(tmp_path, frame, split=None), num_folds=3, seed=0)) == 3
    with pytest.raises(SampleError, match="no patient with a file has the class 'mild'"):
        fold_cohorts(load(tmp_path, frame.replace({"grade": {1: 0}}), split=None), num_folds=3, seed=0)


def test_one_patient_is_still_in_one_split(tmp_path: Path) -> None:
    frame = eyes()
    frame.loc[0, "part"] = "test"
    with pytest.raises(SampleError, match=r"1 patients have items with different splits: 'p00'\. A patient is in one"):
        load(tmp_path, frame)


def test_folders(tmp_path: Path) -> None:
    frame = eyes()
    paths = [f"{CLASSES[row.grade]}/{row.image}.png" for row in frame.itertuples()]
    listing = [ObjectInfo(Location("s3", "eye", path), path, 10, path) for path in paths]
    settings: dict[str, Any] = {
        "classes": CLASSES, "has_split_folders": False, "patient_pattern": r"(?P<patient>p\d+)_", "name": "images",
        "split": FractionSplit((0.6, 0.2, 0.2), 1),
    }  # fmt: skip
    cohort = load_image_folders(listing, **settings, one_label=False)
    table = load(tmp_path, frame, split=settings["split"])
    assert cohort.samples.groupby("patient_id")["split"].first().to_dict() == (
        table.samples.groupby("patient_id")["split"].first().to_dict()
    )
    with pytest.raises(SampleError, match=REFUSED):
        load_image_folders(listing, **settings)


def test_npz(tmp_path: Path) -> None:
    arrays = {}
    for k, split in enumerate(("train", "val", "test")):
        arrays[f"{split}_images"] = np.zeros((12, 4, 4), np.uint8)
        arrays[f"{split}_labels"] = np.arange(12) % 3
        arrays[f"{split}_ids"] = np.array([f"{k}{row // 2}" for row in range(12)])
    np.savez(tmp_path / "a.npz", **arrays)
    cohort = load_npz_cohort(tmp_path / "a.npz", CLASSES, patients="ids", one_label=False)
    assert cohort.samples["patient_id"].nunique() == 18
    with pytest.raises(SampleError, match=rf"18 {REFUSED}"):
        load_npz_cohort(tmp_path / "a.npz", CLASSES, patients="ids")


def test_with_folds_the_fingerprint_knows_every_label(tmp_path: Path) -> None:
    """The other eye being the worse one changes no patient's label, and yet what is trained on."""
    frame = eyes()
    swapped = frame.copy()
    swapped.loc[[2, 3], "grade"] = frame.loc[[3, 2], "grade"].to_numpy()
    assert frame.loc[2, "grade"] != frame.loc[3, "grade"]
    prints = [cohort_fingerprint(load(tmp_path, one, split=None)) for one in (frame, frame, swapped)]
    assert prints[0] == prints[1] != prints[2]


def test_val_is_taken_from_train_by_the_worst_eye(tmp_path: Path) -> None:
    frame = eyes()
    listing = [ObjectInfo(Location("file", "", f"/d/{one}.png"), f"{one}.png", 9, one) for one in frame["image"]]
    tables = {}
    for part, chosen in (("train", frame["part"] != "test"), ("test", frame["part"] == "test")):
        tables[part] = tmp_path / f"{part}.csv"
        frame[chosen].to_csv(tables[part], index=False)
    cohort = load_image_table(
        tables, listing, image="image", label="grade", classes=CLASSES, split=ValFraction(0.25, 0), patient="person",
        label_map={str(k): name for k, name in enumerate(CLASSES)}, one_label=False,
    )  # fmt: skip
    split_of = cohort.samples.groupby("patient_id")["split"].first()
    train = split_of[split_of != "test"]
    counts = pd.crosstab(train, worst_of(frame).loc[train.index])
    assert ((counts.loc["val"] / counts.sum() - 0.25).abs() <= 1 / counts.sum().min()).all()
