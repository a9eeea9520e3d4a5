"""Cohorts of frames: what is joined, refused, left out, and how labels of frames become those of clips."""

from pathlib import Path
from typing import Any

import pytest

from vitreous.core.errors import SampleError
from vitreous.samples.frame_labels import FrameLabels
from vitreous.samples.frames import FramesCohort, load_frames, stretch_around
from vitreous.samples.splits import FractionSplit
from vitreous.storage.location import Location, ObjectInfo

LABELS = ["C1", "C2"]
VIDS = {"train": ["1", "2"], "val": ["3"], "test": ["4"]}


def listing(root: Path, paths: list[str]) -> list[ObjectInfo]:
    return [ObjectInfo(Location.parse(str(root / path)), path, 10, f"tag {path}") for path in paths]


def paths(frames: int = 7) -> list[str]:
    return [f"{s}/{v}_{25 * (k + 1)}.jpg" for s, vids in VIDS.items() for v in vids for k in range(frames)]


def table(frames: int = 7, **cells: str) -> list[str]:
    """Lines of metadata.csv: C1 from the fourth frame of videos 1, 3 and 4, C2 from the third of 2, 3 and 4."""
    lines = ["vid,frame,C1,C2"]
    for vid in "1234":
        for k in range(frames):
            c1, c2 = float(vid in "134" and k >= 3), float(vid in "234" and k >= 2)
            lines.append(cells.get(f"v{vid}_{25 * (k + 1)}") or f"{vid},{25 * (k + 1)},{c1},{c2}")
    return lines


def load(root: Path, lines: list[str] | None = None, files: list[str] | None = None, **how: Any) -> FramesCohort:
    (root / "metadata.csv").write_text("\n".join(lines or table()))
    split: Any = {}
    for name, vids in VIDS.items():
        (root / f"{name}_vids.txt").write_text("\n".join(vids))
        split[name] = root / f"{name}_vids.txt"
    given = {
        "pattern": "{split}/{video}_{frame}.jpg", "video": "vid", "frame": "frame", "label": LABELS, "classes": LABELS,
        "split": split, "one_label": False, "agreement": None,
    }  # fmt: skip
    return load_frames(root / "metadata.csv", listing(root, files or paths()), **{**given, **how})


def y_of(found: FramesCohort) -> dict[str, int]:
    samples = found.cohort.samples
    return dict(zip(samples["sample_id"], samples["y"], strict=True))


def test_clips_of_labelled_frames(tmp_path: Path) -> None:
    found = load(tmp_path)
    samples = found.cohort.samples
    assert len(samples) == 28
    assert found.every == 25
    assert set(samples["patient_id"]) == set("1234")
    assert dict(samples.groupby("patient_id")["split"].first()) == {"1": "train", "2": "train", "3": "val", "4": "test"}
    assert y_of(found)["1_75"] == 0
    assert y_of(found)["1_100"] == 1
    assert y_of(found)["3_100"] == 3
    assert y_of(found)["4_100"] == -1  # sealed
    assert found.videos["1"].numbers == tuple(range(25, 200, 25))
    assert found.videos["1"].place_of(100) == 3
    assert samples["weight"].tolist() == [1 / 7] * 28


def test_frames_without_labels_are_context_and_no_clips(tmp_path: Path) -> None:
    lines = [line for line in table() if not line.startswith("1,25,")]
    lines = [line.replace("1,50,0.0,0.0", "1,50,,") for line in lines]
    found = load(tmp_path, lines)
    assert "1_25" not in y_of(found)
    assert "1_50" not in y_of(found)
    assert found.videos["1"].relatives[:2] == ("train/1_25.jpg", "train/1_50.jpg")
    assert found.cohort.excluded["rule"].tolist() == ["missing label"]


def test_a_missing_frame_keeps_its_place(tmp_path: Path) -> None:
    found = load(tmp_path, files=[path for path in paths() if path not in ("train/1_75.jpg", "test/4_25.jpg")])
    assert found.videos["1"].relatives[2] is None
    excluded = found.cohort.excluded.set_index("sample_id")["rule"].to_dict()
    assert excluded == {"1_75": "file missing", "4_25": "file missing"}
    assert "2 frames of 2 videos have no file" in " ".join(finding.title for finding in found.cohort.findings)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (FrameLabels("centre"), {"1_75": 0, "1_100": 1, "2_50": 0, "2_75": 2}),
        # 75 of video 1: 0 0 1 → 0; 100: 0 1 1 → 1
        (FrameLabels("majority", 3), {"1_75": 0, "1_100": 1, "2_50": 0, "2_75": 2}),
        (FrameLabels("unanimous", 3), {"1_50": 0, "1_75": None, "1_100": None, "1_125": 1, "2_25": 0, "2_100": 2}),
    ],
)
def test_label_rules(rule: FrameLabels, expected: dict[str, int | None], tmp_path: Path) -> None:
    found = y_of(load(tmp_path, labels=rule))
    assert {name: found.get(name) for name in expected} == expected


def test_majority_outvotes_a_single_frame(tmp_path: Path) -> None:
    lines = table(v2_100="2,100,1.0,0.0")
    assert y_of(load(tmp_path, lines))["2_100"] == 1
    assert y_of(load(tmp_path, lines, labels=FrameLabels("majority", 3)))["2_100"] == 2
    lines = table(v1_25="1,25,1.0,0.0")  # the first frame has one neighbour: a tie is what it says itself
    assert y_of(load(tmp_path, lines, labels=FrameLabels("majority", 3)))["1_25"] == 1


def test_agreement_of_annotators_and_of_frames(tmp_path: Path) -> None:
    lines = table(v1_100="1,100,0.3333,0.0", v1_125="1,125,0.6667,0.0")
    found = load(tmp_path, lines, agreement=2 / 3)
    assert y_of(found)["1_100"] == 0
    assert y_of(found)["1_125"] == 1
    agreement = found.agreement.set_index("frames")
    # train and val alone: three videos of seven frames, five stretches of three each; video 1 changes after its 4th
    # frame (two stretches differ), 2 after its second (two), 3 after its second and third (three)
    assert agreement.loc[1, ["clips", "agreeing"]].tolist() == [21, 21]
    assert agreement.loc[3, ["clips", "agreeing"]].tolist() == [15, 8]
    assert agreement.loc[3, "share_0"] == pytest.approx(11 / 15)
    assert agreement.index.tolist() == [1, 3, 5, 7]


def test_one_column_of_classes(tmp_path: Path) -> None:
    lines = ["vid,frame,view"] + [f"{v},{25 * (k + 1)},{'good' if k > 3 else 'bad'}" for v in "1234" for k in range(7)]
    found = load(tmp_path, lines, label="view", classes=["bad", "good"], agreement=None)
    assert y_of(found)["1_125"] == 1
    assert y_of(load(tmp_path, lines, label="view", classes=["bad", "good"], stride=3)).keys() >= {"1_25", "1_100"}
    assert len(load(tmp_path, lines, label="view", classes=["bad", "good"], stride=3).cohort.samples) == 12


def test_splits_by_folder_column_fractions_and_folds(tmp_path: Path) -> None:
    assert set(load(tmp_path, split=None).cohort.samples["split"]) == {"train", "val", "test"}
    lines = ["vid,frame,C1,C2,set"] + [f"{line},{'train' if line[0] in '12' else 'val' if line[0] == '3' else 'test'}"
                                       for line in table()[1:]]  # fmt: skip
    assert len(load(tmp_path, lines, split="set").cohort.samples) == 28
    assert set(load(tmp_path, split=None, has_folds=True).cohort.samples["split"]) == {""}
    flat = [path.partition("/")[2] for path in paths()]
    drawn = load(tmp_path, files=flat, pattern="{video}_{frame}.jpg", split=FractionSplit((0.5, 0.25, 0.25)))
    assert drawn.cohort.samples.groupby("patient_id")["split"].nunique().max() == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"twice": True}, r"1 participants stand in two split files: '3 \(train, val\)'"),
        ({"files": [*paths(), "val/1_200.jpg"]}, r"1 videos lie in the folders of two splits: '1 \(train, val\)'"),
        (
            {"files": [path.replace("val/3", "test/3") for path in paths()]},
            r"the frames of 1 videos lie in the folder of another split: '3 \(test/, but val\)'",
        ),
        ({"lines": table(v1_100="1,100,1.5,0")}, r"label 'C1' must lie in \[0, 1\]; got '1.5' \(lines 5\)"),
        ({"lines": table(v1_100="1,100,-0.1,0")}, r"must lie in \[0, 1\]; got '-0.1'"),
        ({"lines": table(v1_100="1,100,0.5,0")}, r"data\.agreement"),
        ({"lines": table(v1_100="1,x,1,0")}, "whole numbers of frames; got 'x'"),
        ({"lines": [*table(), "1,100,1,0"]}, "name a frame that another line names too"),
        ({"lines": table(v1_100="1,101,1,0")}, "do not stand 25 numbers apart: '1 .frame 101 after 25"),
        ({"files": ["a.jpg", "b.jpg"]}, "no file below data.files is a frame of the table's videos by the pattern"),
        ({"files": [*paths(), "train/1_025.jpg"]}, "1 frames lie in two files"),
        ({"one_label": True}, r"set data\.aggregate: none"),
        ({"video": "video"}, "no column 'video' for videos and frames"),
        ({"domains": ["C1"]}, "domains or columns hold 'C1'"),
    ],
)
def test_what_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    if change.pop("twice", False):
        split = {name: tmp_path / f"{name}.txt" for name in VIDS}
        for name, vids in VIDS.items():
            split[name].write_text("\n".join([*vids, "3"] if name == "train" else vids))
        change["split"] = split
    with pytest.raises(SampleError, match=message):
        load(tmp_path, **change)


def test_a_window_ends_where_the_video_does() -> None:
    assert stretch_around(5, 20, 4) == (3, 7)
    assert stretch_around(19, 20, 5) == (17, 20)
