"""Cohorts of class folders. Oracle: the paths they were laid out from."""

from collections.abc import Sequence
from typing import Any

import pytest

from vitreous.core.errors import SampleError
from vitreous.samples.cohort import Cohort
from vitreous.samples.folders import load_image_folders
from vitreous.samples.folds import fold_cohorts
from vitreous.samples.splits import FractionSplit, ValFraction
from vitreous.storage.location import Location, ObjectInfo

CLASSES = ("normal", "disease")


def paths_of(splits: Sequence[str] = ("train", "val", "test"), patients: int = 10) -> list[str]:
    """Two images of each patient, patients of their own in every split."""
    return [
        "/".join([*([split] if split else []), name, f"P{100 * k + n}_{eye}.png"])
        for k, split in enumerate(splits)
        for n in range(patients)
        for name in [CLASSES[n % 2]]
        for eye in "LR"
    ]


def load(paths: Sequence[str], **options: Any) -> Cohort:
    listing = [ObjectInfo(Location("s3", "eye", path), path, 10 + n, f"e{n}") for n, path in enumerate(paths)]
    settings = {"classes": CLASSES, "has_split_folders": True, "name": "images"}
    return load_image_folders(listing, **(settings | options))


def test_folders_say_split_and_class() -> None:
    cohort = load(paths_of())
    samples = cohort.samples
    assert sorted(samples["sample_id"]) == sorted(paths_of())
    assert (samples["split"] == samples["relative"].str.split("/").str[0]).all()
    seen = samples["split"] != "test"
    classes = samples["relative"].str.split("/").str[1].map(CLASSES.index)
    assert (samples.loc[seen, "y"] == classes[seen]).all()
    assert (samples.loc[~seen, "y"] == -1).all()
    assert set(cohort.open_test_labels().values()) == {0, 1}
    assert [finding.code for finding in cohort.findings] == ["patients_are_rows"]


def test_patients_from_names_keep_together() -> None:
    pattern = r"^(?P<patient>P\d+)_"
    cohort = load(
        paths_of([""], 40), has_split_folders=False, split=FractionSplit((0.5, 0.25, 0.25)), patient_pattern=pattern
    )
    assert cohort.samples.groupby("patient_id")["split"].nunique().eq(1).all()
    assert cohort.samples.groupby("split")["patient_id"].nunique().to_dict() == {"test": 10, "train": 20, "val": 10}
    assert (cohort.samples["weight"] == 0.5).all()
    assert cohort.findings == ()
    val = load(paths_of(["train", "test"]), split=ValFraction(0.2), patient_pattern=pattern)
    assert val.samples.groupby("split")["patient_id"].nunique().to_dict() == {"test": 10, "train": 8, "val": 2}


def test_folds_read_the_layout_without_splits() -> None:
    cohort = load(paths_of([""]), has_split_folders=False)
    folds = fold_cohorts(cohort, num_folds=5, seed=0)
    assert {sample for fold in folds for sample in fold.open_test_labels()} == set(cohort.samples["sample_id"])


def test_what_is_no_image_is_left_out_by_rule() -> None:
    others = ["train/normal/Thumbs.db", "README.md", "train/.thumbs/a.png", "val/normal/._b.jpg", "train/unsure/c.jpg"]
    nested = ["train/normal/clinic 1/deep/d.TIFF"]
    cohort = load([*paths_of(), *others, *nested], ignore=["unsure"])
    assert cohort.excluded.set_index("relative")["rule"].to_dict() == dict(
        zip(others, ["not an image", "not an image", "hidden file", "hidden file", "ignored folder"])
    )
    assert nested[0] in set(cohort.samples["sample_id"])
    assert [f.title for f in cohort.findings if f.code == "files_left_out"] == [
        "2 of 66 files were left out by the rule 'not an image'.",
        "2 of 66 files were left out by the rule 'hidden file'.",
        "1 of 66 files were left out by the rule 'ignored folder'.",
    ]


@pytest.mark.parametrize(
    ("paths", "options", "message"),
    [
        ([*paths_of(), "train/disaese/a.png"], {}, r"'disaese' with 1 images is none of the.*Did you mean 'disease'\?"),
        (
            [*paths_of(), "train/a.png"],
            {},
            r"1 images lie in no folder of a class \(<split>/<class>/…\): 'train/a\.png'",
        ),
        ([*paths_of(), "tune/normal/a.png"], {}, r"are train, val and test; found 'tune'\. Rename them"),
        (paths_of([""]), {}, r"found 'disease', 'normal'\. Set split: \{fractions: \[…\]\} if these are the classes"),
        (paths_of(["train", "test"]), {}, r"there is no folder val; set split: \{val_fraction: 0\.2, seed: 0\}"),
        (paths_of(), {"split": ValFraction(0.2)}, r"there is a folder val; leave one of them out"),
        (
            paths_of(),
            {"has_split_folders": False},
            r"the folder 'train' is a split, not a class; leave split and folds",
        ),
        (paths_of(), {"ignore": ["unsure"]}, r"ignore names 'unsure', and no folder of that name holds a file"),
        (paths_of(), {"classes": (*CLASSES, "other")}, r"no folder with images for the class 'other'"),
        (paths_of(["train", "val"]), {}, r"the split 'test' has no patient with a file"),
        (
            paths_of(),
            {"patient_pattern": r"^(?P<patient>P1\d\d)_"},
            r"images: patient_pattern .* finds no patient in 40 of 60 names: 'train/normal/P0_L",
        ),
        (
            paths_of(),
            {"patient_pattern": r"(?P<patient>[LR])\."},
            r"2 patients have items with different splits: 'L', 'R'",
        ),
        (
            ["train/normal/p1_a.png", "train/normal/P01_b.png", *paths_of()],
            {"patient_pattern": r"^(?P<patient>[pP]\d+)_"},
            r"differ only in spelling.*P01 \(line P01_b\.png\) / P1",
        ),
    ],
)
def test_bad_layouts(paths: list[str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(SampleError, match=message):
        load(paths, **options)


def test_all_problems_come_at_once() -> None:
    with pytest.raises(SampleError, match="images: 3 problems"):
        load([*paths_of(), "train/a.png", "train/other/b.png"], ignore=["unsure"])
