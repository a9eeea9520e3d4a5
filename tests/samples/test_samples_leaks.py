"""The table stage. Oracles: SciPy's exact binomial test; cohorts whose site goes with the label by a known share."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from vitreous.samples.leak_columns import (
    DETERMINES,
    SURELY,
    _lower_bound,
    find_ordered_ids,
    find_telling_columns,
    predict_from_column,
)
from vitreous.samples.leak_files import find_same_files
from vitreous.samples.leak_names import find_fellow_eyes, find_label_in_path, find_same_recordings

CLASSES = ("healthy", "diseased")


def frame(patients: list[str], splits: list[str] | str = "train", **columns: object) -> pd.DataFrame:
    table = pd.DataFrame({"patient_id": patients, "sample_id": patients, "relative": patients})
    return table.assign(split=splits, **columns).astype("str")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("P12_L", "P12_R"), ("P12 OS", "P12 OD"), ("12left", "12right"), ("left-12", "right-12"), ("7L", "7R"),
        ("eyes/12_left.png", "eyes/12_right.png"), ("a/12_left.jpeg", "b/12_right.jpeg"), ("x_od_3", "x_os_3"),
    ],
)  # fmt: skip
def test_two_eyes_of_one_patient(first: str, second: str) -> None:
    first = first.replace("12left", "12l").replace("12right", "12r")
    second = second.replace("12right", "12r")
    samples = frame([first, second, "other"], ["train", "test", "train"])
    [leak] = find_fellow_eyes(samples)
    assert (leak.code, leak.refuses) == ("fellow_eye", True)
    assert first in leak.rows[0]
    [inside] = find_fellow_eyes(samples.assign(split="train"))
    assert not inside.refuses
    [folds] = find_fellow_eyes(samples.assign(split=""))
    assert folds.refuses, "folds would put them apart"


@pytest.mark.parametrize(
    ("first", "second"),
    [("P12", "P13"), ("L12", "R13"), ("12_L", "12_L2"), ("1_left", "2_right"), ("left", "right"), ("cell", "car")],
)
def test_no_two_eyes(first: str, second: str) -> None:
    assert list(find_fellow_eyes(frame([first, second], ["train", "test"]))) == []


def test_numbers_that_begin_again_in_each_folder_are_other_patients() -> None:
    names = ["train/1_left.png", "train/1_right.png", "test/1_left.png", "test/1_right.png"]
    assert all(not leak.refuses for leak in find_fellow_eyes(frame(names, ["train", "train", "test", "test"])))


def test_pieces_of_a_recording() -> None:
    names = [f"case{n:02d}_clip{k}" for n in range(8) for k in range(2)]
    splits = ["train" if n < 6 else "test" for n in range(8) for _ in range(2)]
    [inside] = find_same_recordings(frame(names, splits))
    assert not inside.refuses
    splits[1] = "test"
    leaks = list(find_same_recordings(frame(names, splits)))
    assert [(leak.code, leak.refuses, len(leak.rows)) for leak in leaks] == [
        ("same_recording", True, 1),
        ("same_recording", False, 7),
    ]
    assert "case00_clip0 (train) = case00_clip1 (test)" in leaks[0].rows


def test_sites_that_number_their_clips_are_no_recordings() -> None:
    names = [f"site{n % 3}_clip{n:03d}" for n in range(60)]
    assert list(find_same_recordings(frame(names, ["train", "test"] * 30))) == []


def labels(count: int = 60) -> np.ndarray:
    return np.arange(count, dtype=np.int64) % 2


def test_a_path_that_spells_the_class() -> None:
    y_N = labels()
    paths = [f"images/{CLASSES[y]}/{n}.png" for n, y in enumerate(y_N)]
    [leak] = find_label_in_path(frame(paths), y_N, CLASSES)
    assert leak.code == "label_in_path"
    mixed = [f"images/{CLASSES[(y + n // 2) % 2]}/{n}.png" for n, y in enumerate(y_N)]
    assert list(find_label_in_path(frame(mixed), y_N, CLASSES)) == [], "a folder of that name that says nothing"
    other = [f"unhealthy{n}_diseasedx.png" for n in range(60)]
    assert list(find_label_in_path(frame(other), y_N, CLASSES)) == []
    sealed = np.where(np.arange(60) < 5, y_N, -1)
    assert list(find_label_in_path(frame(paths), sealed, CLASSES)) == [], "too few labels may be seen"


@pytest.mark.parametrize(("successes", "trials"), [(1, 3), (20, 20), (17, 20), (0, 4)])
def test_the_lower_bound_is_the_exact_one(successes: int, trials: int) -> None:
    exact = binomtest(successes, trials, alternative="greater").proportion_ci(0.975, method="exact").low
    assert _lower_bound(successes, trials, 0.025) == pytest.approx(exact, abs=1e-12)


def codes(column: list[object], y_N: np.ndarray, patients: list[str] | None = None) -> list[str]:
    rng = np.random.default_rng(0)
    ids = patients or [f"p{n}" for n in rng.permutation(len(y_N))]
    samples = frame(ids, column=column)
    return [leak.code for leak in find_telling_columns(samples, y_N, CLASSES, ["column"])]


def test_columns_that_determine_the_label() -> None:
    y_N, rng = labels(), np.random.default_rng(1)
    assert codes([f"site{y}" for y in y_N], y_N) == ["domain_tells_label"]
    assert codes([CLASSES[y] for y in y_N], y_N) == ["label_proxy"]
    assert codes((5 + 3 * y_N + rng.normal(0, 0.3, 60)).round(2).tolist(), y_N) == ["label_proxy"]
    dates = pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 300, 60) + 400 * y_N, unit="D")
    assert codes(dates.strftime("%Y-%m-%d").tolist(), y_N) == ["order_tells_label"]
    assert codes(dates.strftime("%d.%m.%Y").tolist(), y_N) == ["order_tells_label"]
    [ordered] = find_ordered_ids(frame([f"p{n:03d}" for n in range(60)]), np.sort(y_N), 2)
    assert (ordered.code, ordered.refuses) == ("ids_in_order_of_label", False)
    assert list(find_ordered_ids(frame([f"p{n:03d}" for n in range(60)]), y_N, 2)) == []


def test_columns_that_do_not() -> None:
    y_N, rng = labels(), np.random.default_rng(2)
    assert codes([f"site{n % 3}" for n in rng.permutation(60)], y_N) == []
    assert codes(rng.normal(60, 9, 60).round(1).tolist(), y_N) == []
    assert codes([f"free text {n}" for n in range(60)], y_N) == [], "a value for everybody predicts nobody"
    few = labels(8)
    assert codes([f"site{y}" for y in few], few) == [], "eight patients prove nothing"
    partly = np.where(rng.random(60) < 0.9, y_N, 1 - y_N)
    assert codes([f"site{p}" for p in partly], y_N) == ["column_tells_label"]


def test_a_site_right_for_most_patients_is_rarely_taken_for_the_label() -> None:
    refused = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        y_N = labels(int(rng.integers(20, 120)))
        site = np.where(rng.random(len(y_N)) < 0.85, y_N, 1 - y_N)
        patients = np.array([f"p{n}" for n in rng.permutation(len(y_N))])
        found = predict_from_column(pd.Series([f"s{value}" for value in site]), y_N, patients, 2)
        refused += found is not None and found.balanced_accuracy >= DETERMINES and found.low >= SURELY
    assert refused <= 1


def test_rows_of_one_patient_count_once() -> None:
    y_N = np.repeat(labels(40), 3)
    patients = np.repeat([f"p{n}" for n in range(40)], 3).astype(np.str_)
    found = predict_from_column(pd.Series([f"s{y}" for y in y_N]), y_N, patients, 2)
    assert found is not None
    assert found.num_patients == 40
    assert found.low == pytest.approx(_lower_bound(20, 20, 0.0125))


def test_one_file_under_two_samples() -> None:
    table = frame(["a", "b", "c", "d"], ["train", "test", "train", "val"], etag=["x", "x", "y", "z"])
    table = table.assign(size=[10, 10, 10, 10], item=-1)
    y_N = np.array([0, -1, 1, 1])
    [leak] = find_same_files(table, y_N)
    assert (leak.code, leak.rows) == ("same_file", ("a (train) = b (test)",))
    assert list(find_same_files(table.assign(size=[10, 11, 10, 10]), y_N)) == []
    assert list(find_same_files(table.assign(item=[0, 1, 2, 3]), y_N)) == [], "items of an array"
    stretches = table.assign(item=[0, 1, 0, 0], start_s=[0.0, 5.0, 0.0, 0.0])
    assert [one.code for one in find_same_files(stretches, y_N)] == ["same_file"], "two cuts of one video"
    inside = table.assign(split="train")
    assert [one.code for one in find_same_files(inside, np.array([0, 1, 1, 1]))] == ["conflicting_labels"]
    assert list(find_same_files(stretches.assign(split="train"), np.array([0, 1, 1, 1]))) == [], "labels of their own"
