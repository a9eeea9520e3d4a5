"""Cohorts of several labels a sample: cells, rules, splits and counts. Oracle: pandas on the table itself."""

import numpy as np
import pandas as pd
import pytest

from vitreous.core.errors import SampleError
from vitreous.core.label_sets import encode_label_sets, memberships, name_label_set
from vitreous.samples.folds import fold_cohorts
from vitreous.samples.image_table import load_image_table
from vitreous.samples.label_strata import stratify_labels
from vitreous.samples.npz import load_npz_cohort
from vitreous.samples.splits import FractionSplit
from vitreous.storage.location import Location, ObjectInfo

LABELS = ["C1", "C2", "C3"]


def table(rows: int = 120, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    has = (rng.random((rows, 3)) < [0.5, 0.3, 0.12]).astype(int)
    frame = pd.DataFrame(has, columns=LABELS)
    frame["image"] = [f"i{n:03d}.png" for n in range(rows)]
    frame["video"] = [f"v{n // 2:03d}" for n in range(rows)]
    return frame


def load(tmp_path, frame: pd.DataFrame, **options):
    frame.to_csv(tmp_path / "t.csv", index=False)
    listing = [ObjectInfo(Location.parse(str(tmp_path / name)), name, 10, "e") for name in frame["image"].unique()]
    settings = {"image": "image", "label": LABELS, "classes": LABELS, "patient": "video", "one_label": False}
    settings |= {"split": FractionSplit((0.6, 0.2, 0.2), 0)}
    return load_image_table(tmp_path / "t.csv", listing, **settings | options)


def test_counts_and_seals_each_label(tmp_path) -> None:
    frame = table()
    cohort = load(tmp_path, frame)
    assert cohort.task == "multi_label"
    opened = cohort.open_test_labels()
    whole = cohort.samples.set_index("sample_id")
    truth = dict(zip(frame["image"], encode_label_sets(frame[LABELS].to_numpy(bool))))
    assert (whole.loc[list(opened), "y"] == -1).all()
    assert all(opened[name] == truth[name] for name in opened)
    seen = whole[whole["split"] != "test"]
    assert seen["y"].to_dict() == {name: truth[name] for name in seen.index}
    counts = cohort.count_by(["split", "class"]).set_index(["split", "class"])
    split_of = whole["split"]
    for split in ("train", "val", "test"):
        rows = frame[frame["image"].map(split_of) == split]
        for name in LABELS:
            assert counts.loc[(split, name), "volumes"] == rows[name].sum()
            assert counts.loc[(split, name), "patients"] == rows.loc[rows[name] == 1, "video"].nunique()
    # a video stays in one split
    assert cohort.samples.groupby("patient_id")["split"].nunique().max() == 1


def test_splits_hold_each_label_in_its_share(tmp_path) -> None:
    frame = table(600)
    cohort = load(tmp_path, frame)
    by_video = frame.groupby("video")[LABELS].max()
    split_of = cohort.samples.drop_duplicates("patient_id").set_index("patient_id")["split"]
    for split, share in (("train", 0.6), ("val", 0.2), ("test", 0.2)):
        held = by_video[by_video.index.map(split_of) == split].sum() / by_video.sum()
        np.testing.assert_allclose(held, share, atol=0.03)
    again = load(tmp_path, frame.sample(frac=1, random_state=1))
    assert dict(again.samples.drop_duplicates("patient_id")[["patient_id", "split"]].to_numpy()) == split_of.to_dict()


def test_stratification_is_better_than_chance_for_a_rare_label() -> None:
    rng = np.random.default_rng(0)
    has = rng.random((500, 4)) < [0.4, 0.3, 0.2, 0.02]
    parts = stratify_labels(has, [0.5, 0.25, 0.25], np.random.default_rng(1))
    assert np.bincount(parts).tolist() == pytest.approx([250, 125, 125], abs=3)
    rare = np.bincount(parts[has[:, 3]], minlength=3)
    assert np.abs(rare - has[:, 3].sum() * np.array([0.5, 0.25, 0.25])).max() < 1.01


def test_folds_test_every_video_once(tmp_path) -> None:
    cohort = load(tmp_path, table(), split=None)
    folds = fold_cohorts(cohort, num_folds=4, seed=0)
    tested = [set(one.samples.loc[one.samples["split"] == "test", "patient_id"]) for one in folds]
    assert set.union(*tested) == set(cohort.samples["patient_id"])
    assert sum(map(len, tested)) == cohort.samples["patient_id"].nunique()


def test_shares_of_annotators_need_a_rule(tmp_path) -> None:
    frame = table().astype({"C2": float})
    frame["C2"] = frame["C2"].astype(object)
    frame.loc[0, "C2"], frame.loc[2, "C2"] = "0.666667", "0.333333"
    with pytest.raises(SampleError, match=r"label 'C2' has shares of annotators.*data.agreement: 0.5"):
        load(tmp_path, frame)
    cohort = load(tmp_path, frame, agreement=2 / 3)
    seen = {**cohort.samples.set_index("sample_id")["y"].to_dict(), **cohort.open_test_labels()}
    assert memberships(np.array([seen["i000.png"], seen["i002.png"]]), 3, "multi_label")[:, 1].tolist() == [True, False]


def test_wrong_cells_are_refused_all_at_once_and_unknown_ones_left_out(tmp_path) -> None:
    frame = table().astype(object)
    frame.loc[3, "C1"], frame.loc[4, "C3"], frame.loc[5, "C2"] = "1.5", "yes", "n/a"
    with pytest.raises(SampleError) as caught:
        load(tmp_path, frame)
    assert "label 'C1' must lie in [0, 1]; got '1.5' (lines 5)" in str(caught.value)
    assert "label 'C3' must be 0 or 1 in every row; got 'yes' (lines 6)" in str(caught.value)
    frame.loc[3, "C1"], frame.loc[4, "C3"] = "1", "0"
    cohort = load(tmp_path, frame)
    assert cohort.excluded["sample_id"].tolist() == ["i005.png"]
    assert cohort.excluded["rule"].tolist() == ["missing label"]


def test_a_label_that_everybody_has_is_refused(tmp_path) -> None:
    with pytest.raises(SampleError, match="every sample of the split 'train' has the label 'C1'"):
        load(tmp_path, table().assign(C1=1))
    with pytest.raises(SampleError, match="no patient of the split 'train' has the label 'C3'"):
        load(tmp_path, table().assign(C3=0))


def test_videos_with_several_sets_of_labels_need_aggregate_none(tmp_path) -> None:
    with pytest.raises(SampleError, match="aggregate: none"):
        load(tmp_path, table(), one_label=True)


def test_npz_with_a_column_a_label(tmp_path) -> None:
    rng = np.random.default_rng(0)
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = np.zeros((20, 4, 4), np.uint8)
        arrays[f"{split}_labels"] = np.vstack([np.ones((1, 2)), np.zeros((1, 2)), rng.integers(0, 2, (18, 2))])
    np.savez(tmp_path / "a.npz", **arrays)
    cohort = load_npz_cohort(tmp_path / "a.npz", ["A", "B"], item_axes="HW", task="multi_label")
    expected = encode_label_sets(arrays["train_labels"].astype(bool)).tolist()
    assert cohort.samples.loc[cohort.samples["split"] == "train", "y"].tolist() == expected
    with pytest.raises(SampleError, match=r"must have the shape \(N, 3\)"):
        load_npz_cohort(tmp_path / "a.npz", ["A", "B", "C"], item_axes="HW", task="multi_label")
    np.savez(tmp_path / "b.npz", **arrays | {"val_labels": arrays["val_labels"] * 2})
    with pytest.raises(SampleError, match="val_labels must hold 0 and 1"):
        load_npz_cohort(tmp_path / "b.npz", ["A", "B"], item_axes="HW", task="multi_label")


def test_numbers_of_label_sets() -> None:
    rng = np.random.default_rng(0)
    has = rng.random((50, 62)) < 0.5
    np.testing.assert_array_equal(memberships(encode_label_sets(has), 62, "multi_label"), has)
    assert name_label_set(0, ("a", "b"), "multi_label") == "no label"
    with pytest.raises(ValueError, match="got values from -1"):
        memberships(np.array([-1]), 3, "multi_label")
    with pytest.raises(ValueError, match="at most 62 labels"):
        encode_label_sets(np.ones((1, 63), bool))
