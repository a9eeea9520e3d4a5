"""Cohorts of a table of images. Oracle: the frames the tables were written from; IDRiD's published counts."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitreous.core.errors import SampleError
from vitreous.samples.cohort import EXCLUDED_COLUMNS, SAMPLE_COLUMNS, Cohort
from vitreous.samples.folds import fold_cohorts
from vitreous.samples.image_files import find_images, match_names
from vitreous.samples.image_table import load_image_table
from vitreous.samples.splits import FractionSplit, ValFraction, val_split
from vitreous.storage.listing import load_key_manifest
from vitreous.storage.location import Location, ObjectInfo
from vitreous.storage.objects import ObjectStore

CLASSES = ("no", "mild", "severe")
GRADES = {"0": "no", "1": "mild", "2": "severe"}


def frame_of(count: int = 24) -> pd.DataFrame:
    """One row an image, one image a patient; every grade in every split."""
    numbers = range(count)
    return pd.DataFrame(
        {
            "id_code": [f"img_{n:03d}" for n in numbers],
            "diagnosis": [str(n % 3) for n in numbers],
            "subject": [f"s{n:02d}" for n in numbers],
            "part": [("train", "train", "val", "test")[n // 3 % 4] for n in numbers],
            "camera": [("A", "B")[n % 2] for n in numbers],
        }
    )


def listing_of(paths: Sequence[str]) -> list[ObjectInfo]:
    return [ObjectInfo(Location("file", "", f"/d/{path}"), path, 100 + n, f"e{n}") for n, path in enumerate(paths)]


def files_of(frame: pd.DataFrame, suffix: str = ".png") -> list[str]:
    return [f"{name}{suffix}" for name in frame["id_code"]]


def load(folder: Path, frame: pd.DataFrame, files: Sequence[str] | None = None, **options: Any) -> Cohort:
    path = folder / "labels.csv"
    frame.to_csv(path, index=False)
    settings: dict[str, Any] = {
        "image": "id_code", "label": "diagnosis", "classes": CLASSES, "label_map": GRADES, "split": "part",
        "patient": "subject",
    }  # fmt: skip
    listing = listing_of(files_of(frame) if files is None else files)
    return load_image_table(path, listing, table_names="labels.csv", **settings | options)


def load_two(folder: Path, train: pd.DataFrame, test: pd.DataFrame, **options: Any) -> Cohort:
    """A table and a folder for train, and for test."""
    for name, frame in (("train", train), ("test", test)):
        frame.to_csv(folder / f"{name}.csv", index=False)
    settings: dict[str, Any] = {
        "image": "id_code", "label": "diagnosis", "classes": CLASSES, "label_map": GRADES, "split": ValFraction(0.25),
        "listings": {"train": listing_of(files_of(train)), "test": listing_of(files_of(test))},
    }  # fmt: skip
    tables = {name: folder / f"{name}.csv" for name in ("train", "test")}
    names = {name: f"{name}.csv" for name in tables}
    return load_image_table(tables, table_names=names, **settings | options)


def codes(cohort: Cohort) -> set[str]:
    return {finding.code for finding in cohort.findings}


def rules(cohort: Cohort) -> dict[str, int]:
    return cohort.excluded["rule"].value_counts().to_dict()


def test_rows_are_samples(tmp_path: Path) -> None:
    frame = frame_of()
    cohort = load(tmp_path, frame, domains=["camera"])
    samples = cohort.samples.set_index("sample_id")
    assert tuple(cohort.samples.columns) == (*SAMPLE_COLUMNS, "camera")
    truth = frame.set_index(frame["id_code"] + ".png").loc[samples.index]
    assert (samples["patient_id"] == truth["subject"]).all()
    assert (samples["split"] == truth["part"]).all()
    assert (samples["camera"] == truth["camera"]).all()
    seen = samples["split"] != "test"
    assert (samples.loc[seen, "y"] == truth.loc[seen, "diagnosis"].astype(int)).all()
    assert (samples.loc[~seen, "y"] == -1).all()
    assert cohort.open_test_labels() == truth.loc[~seen, "diagnosis"].astype(int).to_dict()
    assert {info.relative: (info.size, info.etag) for info in listing_of(files_of(frame))} == dict(
        zip(samples["relative"], zip(samples["size"], samples["etag"]))
    )
    assert (samples["item"] == -1).all()
    assert cohort.findings == ()
    assert list(cohort.excluded.columns) == list(EXCLUDED_COLUMNS)


def test_without_patients_each_image_is_one_and_a_finding_says_so(tmp_path: Path) -> None:
    cohort = load(tmp_path, frame_of(), patient=None)
    assert (cohort.samples["patient_id"] == cohort.samples["sample_id"]).all()
    assert codes(cohort) == {"patients_are_rows"}


@pytest.mark.parametrize("written", [["0", "1", "2"], ["0.0", "1.0", "2."], ["00", "1", " 2 "]])
def test_ways_to_write_a_number_are_one_label(tmp_path: Path, written: list[str]) -> None:
    frame = frame_of()
    usual = load(tmp_path, frame)
    frame["diagnosis"] = frame["diagnosis"].map(dict(zip("012", written)))
    pd.testing.assert_frame_equal(load(tmp_path, frame).samples, usual.samples)
    pd.testing.assert_frame_equal(load(tmp_path, frame, label_map={"0.0": "no", "1": "mild", "2": "severe"}).samples,
                                  usual.samples)  # fmt: skip


def test_class_names_need_no_map(tmp_path: Path) -> None:
    frame = frame_of()
    frame["diagnosis"] = frame["diagnosis"].map(GRADES)
    expected = load(tmp_path, frame_of()).samples
    pd.testing.assert_frame_equal(load(tmp_path, frame, label_map=None).samples, expected)


def test_a_class_may_be_called_none(tmp_path: Path) -> None:
    """`none` is a way to say that nothing is known, unless the study says that it is a label."""
    frame = frame_of()
    frame["diagnosis"] = frame["diagnosis"].map({"0": "none", "1": "mild", "2": "severe"})
    cohort = load(tmp_path, frame, classes=("none", "mild", "severe"), label_map=None)
    assert len(cohort.samples) == len(frame)
    assert rules(load(tmp_path, frame.replace("none", "n/a"), classes=("mild", "severe"), label_map=None)) == {
        "missing label": 8
    }


def test_everything_left_out_is_counted_by_rule(tmp_path: Path) -> None:
    frame = pd.concat([frame_of(48), frame_of(48).iloc[[5]]], ignore_index=True)
    frame.loc[0, "camera"] = "C"
    frame.loc[1, "diagnosis"] = ""
    frame.loc[2, "part"] = "NA"
    files = [*files_of(frame_of(48)), "img_900.png", "notes.txt"]
    files.remove("img_003.png")
    cohort = load(tmp_path, frame, files, where={"camera": ["A", "B"]})
    assert rules(cohort) == {"where": 1, "missing label": 1, "missing split": 1, "file missing": 1, "duplicate": 1}
    assert len(cohort.samples) + len(cohort.excluded) == len(frame)
    assert codes(cohort) == {"rows_left_out", "images_without_files", "duplicates", "files_without_row"}
    unread = next(finding for finding in cohort.findings if finding.code == "files_without_row")
    assert unread.title.startswith("1 image files")


@pytest.mark.parametrize("text", ["\ufeff{}", "{}\r\n"])
@pytest.mark.parametrize(("mark", "name"), [(",", "t.csv"), ("\t", "t.tsv"), (";", "t.csv"), ("\t", "t.csv")])
def test_tables_as_programs_write_them(tmp_path: Path, text: str, mark: str, name: str) -> None:
    """Byte order mark, Windows line ends, quotes, other delimiters, stray spaces and empty columns at the end."""
    usual = load(tmp_path, frame_of())
    rows = [["id_code", " diagnosis ", "subject", "part", "camera", "", ""], *frame_of().values.tolist()]
    lines = [mark.join(f'"{cell}"' if n == 0 else cell for n, cell in enumerate(row)) for row in rows]
    (tmp_path / name).write_bytes(text.format("\r\n".join(lines)).encode())
    listing = listing_of(files_of(frame_of()))
    cohort = load_image_table(
        tmp_path / name, listing, image="id_code", label="diagnosis", classes=CLASSES, label_map=GRADES, split="part",
        patient="subject",
    )  # fmt: skip
    pd.testing.assert_frame_equal(cohort.samples, usual.samples)
    expected = {"stray_spaces", "empty_columns"} | (
        {"delimiter"} if (mark, name[-3:]) in ((";", "csv"), ("\t", "csv")) else set()
    )
    assert codes(cohort) == expected


def test_other_extensions_and_folders_are_told(tmp_path: Path) -> None:
    frame = frame_of()
    cohort = load(tmp_path, frame.assign(id_code=frame["id_code"] + ".jpeg"), files_of(frame, ".JPG"))
    assert codes(cohort) == {"other_extension"}
    cohort = load(tmp_path, frame, [f"clinic/{path}" for path in files_of(frame)])
    assert codes(cohort) == {"found_in_folders"}
    assert cohort.samples["sample_id"].str.startswith("clinic/img_").all()


def test_ids_find_their_files() -> None:
    paths = [
        "a.PNG",
        "b.jpeg",
        "deep/c.tif",
        "d.png",
        "d.jpg",
        "e.tiff",
        "x/f.png",
        "y/f.png",
        "scan.v2.png",
        "Thumbs.db",
    ]
    ids = ["a", "b.jpg", "c", "d", "d.png", "e", "f", "x/f", "./scan.v2", "g", "deep\\c.tif"]
    found = find_images(ids, listing_of(paths))
    assert found.relative == {
        "a": "a.PNG", "b.jpg": "b.jpeg", "c": "deep/c.tif", "d.png": "d.png", "e": "e.tiff", "x/f": "x/f.png",
        "./scan.v2": "scan.v2.png", "deep\\c.tif": "deep/c.tif",
    }  # fmt: skip
    assert found.several == {"d": ["d.jpg", "d.png"], "f": ["x/f.png", "y/f.png"]}
    assert found.renamed == ("b.jpg",)
    assert found.nested == ("c",)
    assert found.unused == ()
    assert match_names(["IDRiD_1", "q"], ["IDRiD_001.jpg", "z.jpg"]) == [("IDRiD_1", "IDRiD_001.jpg")]


@given(st.lists(st.from_regex(r"[A-Za-z0-9_]{1,8}", fullmatch=True), min_size=1, unique=True),
       st.sampled_from([".png", ".JPG", ".jpeg", ".Tif", ".tiff"]))  # fmt: skip
def test_every_id_finds_its_own_file(names: list[str], suffix: str) -> None:
    found = find_images(names, listing_of([name + suffix for name in names]))
    assert found.relative == {name: name + suffix for name in names}
    assert not found.several


def test_the_same_name_in_two_folders_is_two_people(tmp_path: Path) -> None:
    train, test = frame_of(24), frame_of(6)
    test["diagnosis"] = "0"
    cohort = load_two(tmp_path, train, test)
    samples = cohort.samples
    assert samples["sample_id"].is_unique
    assert (samples["patient_id"] == samples["sample_id"]).all()
    assert samples["split"].value_counts().to_dict() == {"train": 18, "val": 6, "test": 6}
    assert set(samples.loc[samples["split"] == "test", "relative"]) == {f"test/img_{n:03d}.png" for n in range(6)}
    assert set(cohort.open_test_labels().values()) == {0}
    assert "class_absent" in codes(cohort)


def test_a_patient_column_says_who_is_in_both_tables(tmp_path: Path) -> None:
    train, test = frame_of(24), frame_of(3)
    with pytest.raises(SampleError, match=r"train\.csv, test\.csv: 3 patients have items with different splits: 's00'"):
        load_two(tmp_path, train, test, patient="subject")
    test["subject"] = ["t1", "t2", "t3"]
    assert load_two(tmp_path, train, test, patient="subject").samples["patient_id"].nunique() == 27


def test_one_folder_for_two_tables(tmp_path: Path) -> None:
    train, test = frame_of(24).iloc[:18], frame_of(24).iloc[18:]
    shared = listing_of(files_of(frame_of(24)))
    samples = load_two(tmp_path, train, test, listings=shared).samples
    assert set(samples["relative"]) == {info.relative for info in shared}
    with pytest.raises(
        SampleError, match=r"1 images have rows with different splits: 'img_000\.png' \(lines 'train:2', "
    ):
        load_two(tmp_path, train, frame_of(1), listings=shared)


def test_columns_that_tables_lack_are_told_at_once(tmp_path: Path) -> None:
    train, test = frame_of().rename(columns={"subject": "id"}), frame_of(3).rename(columns={"diagnosis": "grade"})
    with pytest.raises(
        SampleError, match=r"(?s)2 problems.*'subject' for patients in train\.csv.*'diagnosis' for labels in t"
    ):
        load_two(tmp_path, train, test, patient="subject")


def test_lines_of_several_tables_name_their_split(tmp_path: Path) -> None:
    test = frame_of(3)
    test.loc[1, "diagnosis"] = "7"
    with pytest.raises(SampleError, match=r"unknown label '7' in column 'diagnosis', 1 rows \(lines 'test:3'\)"):
        load_two(tmp_path, frame_of(), test)


def test_val_is_drawn_from_train_by_patient(tmp_path: Path) -> None:
    """Two images a patient; the same shares in every class, and no patient in two splits."""
    train = pd.concat([frame_of(48), frame_of(48).assign(id_code=lambda f: f["id_code"] + "_b")], ignore_index=True)
    test = frame_of(3).assign(subject=["t1", "t2", "t3"])
    cohort = load_two(tmp_path, train, test, patient="subject")
    counts = cohort.count_by(["split", "class"])
    assert counts.loc[counts["split"] == "val", "patients"].tolist() == [4, 4, 4]
    assert counts.loc[counts["split"] == "train", "volumes"].tolist() == [24, 24, 24]
    again = load_two(tmp_path, train, test, patient="subject", split=ValFraction(0.25, seed=1))
    assert not cohort.samples["split"].equals(again.samples["split"])


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.floats(0.05, 0.95))
def test_val_split_shares(labels: list[int], fraction: float) -> None:
    frame = pd.Series(labels, index=[f"p{n}" for n in range(len(labels))])
    drawn = pd.Series(val_split(frame, ValFraction(fraction)))
    assert set(drawn.index) == set(frame.index)
    for y, count in Counter(labels).items():
        assert abs((drawn[frame.index[frame == y]] == "val").sum() - fraction * count) <= 1


def test_fractions_and_folds(tmp_path: Path) -> None:
    frame = frame_of(30)
    cohort = load(tmp_path, frame, split=FractionSplit((0.6, 0.2, 0.2)))
    assert cohort.samples["split"].value_counts().to_dict() == {"train": 18, "val": 6, "test": 6}
    whole = load(tmp_path, frame, split=None)
    tested = [set(fold.open_test_labels()) for fold in fold_cohorts(whole, num_folds=5, seed=0)]
    assert set.union(*tested) == set(whole.samples["sample_id"])
    assert sum(map(len, tested)) == 30


@pytest.mark.parametrize(("column", "suffix"), [("id_code", ".jpg"), ("id_code", ""), ("subject", "")])
def test_files_of_ids(tmp_path: Path, column: str, suffix: str) -> None:
    """Ids are those of images, with or without an extension, or of patients."""
    frame = frame_of()
    files = {}
    for split, group in frame.groupby("part"):
        files[str(split)] = tmp_path / f"{split}.txt"
        files[str(split)].write_text("".join(f"{name}{suffix}\n" for name in group[column]))
    pd.testing.assert_frame_equal(load(tmp_path, frame, split=files).samples, load(tmp_path, frame).samples)
    files["val"].write_text(files["val"].read_text() + "img_0001\n")
    with pytest.raises(SampleError, match=r"of the split files are neither images nor patients of the table: "):
        load(tmp_path, frame, split=files)


def set_cell(row: int, column: str, value: str) -> Any:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        frame.loc[row, column] = value
        return frame

    return change


def repeat(row: int, column: str, value: str) -> Any:
    return lambda frame: pd.concat([frame, frame.iloc[[row]].assign(**{column: value})], ignore_index=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            set_cell(3, "diagnosis", "5"),
            r"unknown label '5' in column 'diagnosis', 1 rows \(lines 5\); data\.label_map knows",
        ),
        (set_cell(3, "id_code", ""), r"lines 5 name no image"),
        (set_cell(3, "part", "tune"), r"must hold train, val or test; got 'tune'"),
        (set_cell(3, "subject", ""), r"lines 5 have no patient id"),
        (set_cell(3, "subject", "N/A"), r"lines 5 have no patient id"),
        (set_cell(3, "subject", "S 02"), r"1 groups of ids differ only in spelling.*S 02 \(line 5\) / s02 \(line 4\)"),
        (set_cell(3, "subject", "s23"), r"1 patients have items with different splits: 's23'"),
        (set_cell(4, "subject", "s03"), r"1 patients have items with different labels: 's03'\. Metrics are by patient"),
        (
            repeat(3, "diagnosis", "1"),
            r"1 images have rows with different labels: 'img_003\.png' \(lines 5, 26\); keep one",
        ),
        (repeat(3, "subject", "z9"), r"1 images have rows with different patients: 'img_003\.png'"),
        (repeat(3, "camera", "A"), r"1 images have rows with different values of 'camera'"),
        (lambda f: f.assign(diagnosis="0"), "no patient of the split 'train' has the class 'mild', 'severe'"),
        (lambda f: f.assign(part=f["part"].replace("val", "train")), "the split 'val' has no patient with a file"),
        (lambda f: f.rename(columns={"camera": "Camera"}), r"no column 'camera' for domains.*Did you mean 'Camera'\?"),
    ],
)
def test_bad_tables(tmp_path: Path, change: Any, message: str) -> None:
    files = files_of(frame_of())
    with pytest.raises(SampleError, match=message):
        load(tmp_path, change(frame_of()), files, domains=["camera"])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["img_000.png", "img_000.jpg"], r"1 ids mean several files: 'img_000 \(img_000\.jpg, img_000\.png\)'"),
        (
            ["img_0.png", "img_001.png"],
            r"1 ids differ from names of files only in spelling: 'img_000 \(file: img_0\.png\)'",
        ),
        (["a.png"], r"none of the 24 images is below data\.files; the table has 'img_000', .*the folder 'a\.png'"),
    ],
)
def test_files_that_fit_no_row(tmp_path: Path, files: list[str], message: str) -> None:
    with pytest.raises(SampleError, match=message):
        load(tmp_path, frame_of(), files)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_map": GRADES | {"0.0": "mild"}}, r"two classes for the label '0\.0'"),
        ({"label_map": GRADES | {"3": "none"}}, r"label_map: 'none' is not among the classes"),
        ({"domains": ["diagnosis"]}, r"domains or columns hold the label 'diagnosis'"),
        ({"domains": ["camera", "camera"]}, r"domains lists a column twice"),
        (
            {"label_map": None},
            r"unknown label '0' in column 'diagnosis', 8 rows .*; without data\.label_map it is \['no',",
        ),
        ({"domains": ["item"]}, r"domains or columns: 'item' mean something of their own"),
        ({"where": {"camera": "Z"}}, r"where: no row has camera='Z'; the column holds 'A', 'B'"),
    ],
)
def test_options_that_contradict_the_table(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SampleError, match=message):
        load(tmp_path, frame_of(), **options)


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    frame = set_cell(3, "diagnosis", "5")(set_cell(4, "part", "x")(set_cell(5, "subject", "")(frame_of())))
    with pytest.raises(SampleError, match="3 problems") as caught:
        load(tmp_path, frame)
    assert str(caught.value).startswith("labels.csv: ")


def shared_data() -> Path:
    return Path(os.environ.get("VITREOUS_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))


@pytest.mark.real
@pytest.mark.parametrize(
    ("label", "train", "test"),
    [
        ("Retinopathy grade", [134, 20, 136, 74, 49], [34, 5, 32, 19, 13]),
        ("Risk of macular edema", [177, 41, 195], [45, 10, 48]),
    ],
)
def test_idrid(tmp_path: Path, label: str, train: list[int], test: list[int]) -> None:
    """Counts as published (Porwal et al., IDRiD, 2018); the same names in both folders are different people."""
    root = shared_data() / "idrid"
    if not root.exists():
        pytest.skip(f"{root} is not here")
    tables = {
        split: next(root.glob(f"*{word} Labels.csv")) for split, word in (("train", "Training"), ("test", "Testing"))
    }
    listings = {
        split: load_key_manifest(ObjectStore(Location.parse(str(root / split))), cache_dir=tmp_path) for split in tables
    }
    classes = [f"grade {n}" for n in range(len(train))]
    cohort = load_image_table(
        tables, listings, image="Image name", label=label, classes=classes, split=ValFraction(0.2),
        label_map={str(n): name for n, name in enumerate(classes)},
    )  # fmt: skip
    counts = cohort.count_by(["split", "class"]).pivot(index="class", columns="split", values="patients")
    assert (counts["train"] + counts["val"]).tolist() == train
    assert all(abs(val - 0.2 * total) <= 1 for val, total in zip(counts["val"], train))
    assert counts["test"].tolist() == test
    assert cohort.excluded.empty
    assert codes(cohort) == {"empty_columns", "stray_spaces", "patients_are_rows"}
