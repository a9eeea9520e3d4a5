"""Splits and folds. Oracle: closed-form counts; the definition of a partition."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cohort_tables import CLASSES, Tables, people_frame

from vitreous.core.errors import SampleError
from vitreous.samples.folds import assign_folds, fold_cohorts
from vitreous.samples.splits import FractionSplit, fraction_split


def labels_of(counts: tuple[int, ...]) -> pd.Series:
    y = np.repeat(np.arange(len(counts)), counts)
    return pd.Series(y, index=[f"p{n:04d}" for n in range(len(y))])


def test_fractions_are_stratified_and_seeded() -> None:
    labels = labels_of((369, 242, 321, 129))
    split = FractionSplit((0.7, 0.15, 0.15), seed=3)
    split_of = pd.Series(fraction_split(labels, split))
    table = pd.crosstab(labels.reindex(split_of.index), split_of)[["train", "val", "test"]]
    shares = np.outer(labels.value_counts().sort_index(), split.fractions)
    assert (np.abs(table.to_numpy() - shares) < 1).all()
    shuffled = labels.sample(frac=1, random_state=0)
    assert fraction_split(shuffled, split) == split_of.to_dict()
    assert fraction_split(labels, FractionSplit((0.7, 0.15, 0.15), seed=4)) != split_of.to_dict()


def test_fractions_through_the_table(tables: Tables) -> None:
    cohort = tables.load(split=FractionSplit((0.5, 0.25, 0.25)))
    assert (cohort.samples.groupby("patient_id")["split"].nunique() == 1).all()
    patients = cohort.count_by(["split"]).set_index("split")["patients"].to_dict()
    assert patients == {"train": 12, "val": 8, "test": 4}  # 6 of a class: 3, 1.5, 1.5


@pytest.mark.parametrize("fractions", [(0.7, 0.3, 0.0), (0.7, 0.2, 0.2), (0.5, 0.5)])
def test_bad_fractions(fractions: tuple[float, ...]) -> None:
    with pytest.raises(SampleError, match=r"split\.fractions must be three positive numbers.*sum to 1; got"):
        FractionSplit(fractions)  # type: ignore[arg-type]


def split_files(tables: Tables, folder: Path) -> dict[str, Path]:
    files = {}
    for split, group in tables.people.groupby("recommended_split"):
        files[str(split)] = folder / f"{split}.txt"
        files[str(split)].write_text("\n".join(group["participant_id"]) + "\n")
    return files


def test_a_file_for_each_split(tables: Tables, tmp_path: Path) -> None:
    expected = tables.load().samples
    files = split_files(tables, tmp_path)
    pd.testing.assert_frame_equal(tables.load(split=files).samples, expected)
    files["val"].write_text("participant_id\n" + files["val"].read_text())
    pd.testing.assert_frame_equal(tables.load(split=files).samples, expected)
    group = tables.people[tables.people["recommended_split"] == "test"]
    files["test"] = tmp_path / "test.csv"
    group.to_csv(files["test"], index=False)
    pd.testing.assert_frame_equal(tables.load(split=files).samples, expected)


def test_bad_split_files(tables: Tables, tmp_path: Path) -> None:
    files = split_files(tables, tmp_path)
    files["test"].write_text(files["test"].read_text() + "1000\nP1001\n77\n")
    with pytest.raises(SampleError, match="2 problems") as caught:
        tables.load(split=files)
    assert "1 participants stand in two split files: '1000 (train, test)'" in str(caught.value)
    assert "2 ids of the split files are not in the table: '77', 'P1001'" in str(caught.value)
    assert "'P1001 (table: 1001)'" in str(caught.value)
    with pytest.raises(SampleError, match="split files are given as train, val and test; got 'test', 'train'"):
        tables.load(split={"train": files["train"], "test": files["test"]})
    with pytest.raises(SampleError, match=r"none\.txt: cannot be read as a list of ids"):
        tables.load(split=files | {"test": tmp_path / "none.txt"})


def test_participants_in_no_split_file(tables: Tables, tmp_path: Path) -> None:
    files = split_files(tables, tmp_path)
    files["train"].write_text("\n".join(files["train"].read_text().split()[1:]))
    cohort = tables.load(split=files)
    assert cohort.excluded["rule"].tolist() == ["missing split"] * 4
    assert set(cohort.excluded["detail"]) == {"in no split file"}


@pytest.mark.parametrize("seed", [0, 1])
def test_folds_are_a_stratified_partition_of_patients(seed: int) -> None:
    labels = labels_of((50, 25, 10))
    folds = assign_folds(labels, num_folds=5, seed=seed)
    roles = pd.DataFrame(folds)
    assert ((roles == "test").sum() == 1).all()  # each patient is tested once and chooses once
    assert ((roles == "val").sum() == 1).all()
    for j, fold in enumerate(folds):
        tested = [patient for patient, role in fold.items() if role == "test"]
        assert labels[tested].value_counts().to_dict() == {0: 10, 1: 5, 2: 2}
        chooses = {patient for patient, role in folds[(j + 1) % 5].items() if role == "test"}
        assert chooses == {patient for patient, role in fold.items() if role == "val"}
    assert folds == assign_folds(labels.sample(frac=1, random_state=1), num_folds=5, seed=seed)
    assert folds != assign_folds(labels, num_folds=5, seed=seed + 10)


def test_folds_of_a_cohort_are_sealed(tmp_path: Path) -> None:
    tables = Tables(tmp_path, people_frame(32))
    cohort = tables.load()
    truth = tables.people.set_index("participant_id")["study_group"].map(CLASSES.index)
    folds = fold_cohorts(cohort, num_folds=4, seed=0)
    opened: dict[str, int] = {}
    for fold in folds:
        test = fold.samples["split"] == "test"
        assert (fold.samples.loc[test, "y"] == -1).all()
        seen = fold.samples[~test]
        assert (seen["y"] == seen["patient_id"].map(truth)).all()
        assert (fold.samples.groupby("patient_id")["split"].nunique() == 1).all()
        opened |= fold.open_test_labels()
    assert opened == dict(zip(cohort.samples["sample_id"], cohort.samples["patient_id"].map(truth)))


def test_too_few_for_folds() -> None:
    with pytest.raises(SampleError, match=r"folds\.k must be at least 3.*got 2"):
        assign_folds(labels_of((5, 5)), num_folds=2, seed=0)
    with pytest.raises(SampleError, match=r"5 folds need as many patients of every class; too few: 'class 1 \(4\)'"):
        assign_folds(labels_of((5, 4)), num_folds=5, seed=0)


def test_resplit_needs_every_patient(tables: Tables) -> None:
    with pytest.raises(SampleError, match="92 samples belong to patients without a split"):
        tables.load().resplit({"1000": "train"})
