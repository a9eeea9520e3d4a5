"""Cohorts of kind ``frames``: a table with one row a frame, and the image files of the frames of each video.

A sample is a clip around one labelled frame. Groups are videos, or the patients that a column names, never clips.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from vitreous.core.finding import Finding
from vitreous.core.label_sets import Task
from vitreous.samples.choices import Filter, choose_rows
from vitreous.samples.cohort import EXCLUDED_COLUMNS, SAMPLE_COLUMNS, SPLITS, Cohort, seal
from vitreous.samples.frame_labels import FrameLabels, count_agreement, label_clips
from vitreous.samples.image_table import class_indices
from vitreous.samples.label_columns import read_label_sets
from vitreous.samples.patients import check_agreement, check_ids, patient_classes
from vitreous.samples.problems import Problems, examples
from vitreous.samples.selection import exclude
from vitreous.samples.splits import FractionSplit, fraction_split, normal_split, read_split_files
from vitreous.samples.tables import check_columns, is_missing, read_table
from vitreous.storage.location import ObjectInfo

SplitSource = str | FractionSplit | Mapping[str, Path]
FRAME_COLUMNS = ("video", "frame")
_UNKNOWN = "unknown"
_WHOLE = re.compile(r"\d+(?:\.0*)?")
_MOST_GAPS = 100  # places of the grid for each frame that is there: more is a slip in the numbers


@dataclass(frozen=True)
class VideoFrames:
    """The frames of one video at even distances, by rising number.

    Args:
        relatives: path of each frame's file; None where there should be one.
    """

    numbers: tuple[int, ...]
    relatives: tuple[str | None, ...]

    def place_of(self, number: int) -> int:
        """Where the frame with this number stands."""
        return self.numbers.index(number)


@dataclass(frozen=True)
class FramesCohort:
    """A cohort of clips, with what there is to read.

    Args:
        videos: frames by video.
        every: distance of the numbers of neighbouring frames.
        agreement: see :func:`~vitreous.samples.frame_labels.count_agreement`; of train and val alone.
    """

    cohort: Cohort
    videos: Mapping[str, VideoFrames]
    every: int
    agreement: pd.DataFrame


def load_frames(
    table_path: Path,
    listing: Sequence[ObjectInfo],
    *,
    pattern: str,
    video: str,
    frame: str,
    label: str | Sequence[str],
    classes: Sequence[str],
    split: SplitSource | None,
    has_folds: bool = False,
    agreement: float | None = None,
    label_map: Mapping[str, str] | None = None,
    labels: FrameLabels = FrameLabels(),  # noqa: B008
    patient: str | None = None,
    where: Filter | None = None,
    every: int | None = None,
    stride: int = 1,
    domains: Sequence[str] = (),
    columns: Sequence[str] = (),
    table_name: str | None = None,
    one_label: bool = True,
    accepts_spelling: bool = False,
) -> FramesCohort:
    """Join rows and frames, check both, make clips of labelled frames, and seal the labels of the test split.

    Args:
        listing: what lies below the folder of the frames.
        pattern: path of a frame below it, with {video}, {frame} and maybe {split}.
        split: a column, fractions, or a file of videos (or patients) for each split; None takes the folders that
            {split} stands for, or leaves it to folds.
        agreement: with several label columns, the share of annotators from which a label is present.
        labels: how the labels of frames become that of a clip.
        every: distance of the numbers of neighbouring frames; None is the usual one.
        stride: every stride-th labelled frame of a video is a clip.
        one_label: all clips of a patient must have the same label.
        accepts_spelling: ids that differ only in spelling are different patients'.
    Raises:
        SampleError: columns are missing, frame numbers are none or not at even distances, labels or splits unknown or
            contradictory, a video stands in two splits, or a split or class is empty. All that can be told at once is.
    """
    table = read_table(table_path, table_name)
    problems = Problems(table.name)
    label_columns = [label] if isinstance(label, str) else list(label)
    further = [column for column in columns if column not in domains]
    needed = {"videos and frames": [video, frame], "labels": label_columns, "domains": [*domains, *further]}
    needed |= {"splits": [split] if isinstance(split, str) else [], "where": list(where or {})}
    needed |= {"patients": [patient] if patient else []}
    for purpose, names in needed.items():
        check_columns(table, names, purpose, problems)
    if shown := sorted({*domains, *further} & {*label_columns, *FRAME_COLUMNS, *SAMPLE_COLUMNS}):
        problems.add(
            f"domains or columns hold {examples(shown)}, which are labels or mean something of their own here."
        )
    problems.check_none()
    cells = table.frame
    rows = cells[[*domains, *further]].assign(video=cells[video], rule="", detail="")
    exclude(rows, ~choose_rows(cells, where or {}, "where", problems), "where", f"where: {dict(where or {})}")
    rows["frame"] = _frame_numbers(cells[frame], rows["rule"] == "", frame, problems)
    rows["patient_id"] = cells[patient] if patient else cells[video]
    check_ids(rows.loc[rows["rule"] == "", "patient_id"], problems, accepts_spelling=accepts_spelling)
    task: Task = "multi_class" if isinstance(label, str) else "multi_label"
    if isinstance(label, str):
        rows["y"] = class_indices(cells[label], rows["rule"] == "", label, classes, label_map, problems)
    else:
        rows["y"] = read_label_sets(cells[label_columns], rows["rule"] == "", agreement, problems)
    exclude(rows, rows["y"].isna(), "missing label", f"no value in {' or '.join(map(repr, label_columns))}")
    problems.check_none()

    findings = list(table.findings)
    found = _parse_listing(listing, pattern, set(rows["video"]), problems)
    _check_twice(rows, problems)
    distance, videos = _grids(rows, found, every, problems)
    findings += _missing_frames(videos, distance)
    _add_splits(rows, cells, found, split, has_folds, video, patient is not None, problems, findings)
    problems.check_none()
    _add_files(rows, found)
    agreeing = count_agreement(rows.loc[(rows["rule"] == "") & rows["split"].isin(["train", "val"])], distance,
                               len(classes), task)  # fmt: skip
    label_clips(rows, labels, distance, len(classes), task)
    _exclude_by_stride(rows, stride)
    for domain in domains:
        rows[domain] = rows[domain].where(~is_missing(rows[domain]), _UNKNOWN)
    if isinstance(split, FractionSplit):
        live = rows.loc[rows["rule"] == ""]
        num_labels = len(classes) if task == "multi_label" else None
        rows.loc[live.index, "split"] = live["patient_id"].map(
            fraction_split(patient_classes(live, task), split, num_labels)
        )
    check_agreement(rows.loc[rows["rule"] == ""], problems, one_label=one_label)
    problems.check_none()
    kept = rows.loc[rows["rule"] == ""].assign(item=-1, weight=1.0)
    kept["y"] = kept["y"].astype("int64")
    cohort = seal(
        kept[[*SAMPLE_COLUMNS, *FRAME_COLUMNS, *domains, *further]],
        rows.loc[rows["rule"] != "", list(EXCLUDED_COLUMNS)],
        classes,
        findings + _left_out(rows),
        domains,
        (),
        where=table.name,
        task=task,
    )
    return FramesCohort(cohort, videos, distance, agreeing)


def _frame_numbers(cells: pd.Series, live: pd.Series, column: str, problems: Problems) -> pd.Series:
    is_number = cells.map(lambda text: _WHOLE.fullmatch(text) is not None).astype(bool)
    if (wrong := live & ~is_number).any():
        problems.add(
            f"column {column!r} must hold whole numbers of frames; got {examples(sorted(cells[wrong].unique()))} "
            f"(lines {examples(cells.index[wrong])})."
        )
    return cells.where(is_number, "-1").astype("float64").astype("int64")


@dataclass(frozen=True)
class _Found:
    """Where a frame's file lies, and the split that its folder names."""

    info: ObjectInfo
    split: str


def _parse_listing(
    listing: Sequence[ObjectInfo], pattern: str, known: set[str], problems: Problems
) -> dict[tuple[str, int], _Found]:
    """The file of each frame of a video of the table."""
    pieces = {"{split}": f"(?P<split>{'|'.join(SPLITS)})", "{video}": "(?P<video>[^/]+)", "{frame}": r"(?P<frame>\d+)"}
    regex = re.escape(pattern)
    for place, piece in pieces.items():
        regex = regex.replace(re.escape(place), piece)
    compiled = re.compile(regex)
    found: dict[tuple[str, int], _Found] = {}
    twice: list[str] = []
    for info in sorted(listing, key=lambda info: info.relative):
        match = compiled.fullmatch(info.relative)
        if match is None or match["video"] not in known:
            continue
        key = (match["video"], int(match["frame"]))
        one = _Found(info, match.groupdict().get("split", ""))
        if key in found:
            twice.append(f"{found[key].info.relative} and {info.relative}")
        found.setdefault(key, one)
    if twice:
        problems.add(f"{len(twice)} frames lie in two files: {examples(twice, 3)}. Keep one of each.")
    if not found:
        some = examples(sorted(info.relative for info in listing), 3)
        problems.add(
            f"no file below data.files is a frame of the table's videos by the pattern {pattern!r}; there are {some}. "
            "Check data.files and data.pattern."
        )
    return found


def _check_twice(rows: pd.DataFrame, problems: Problems) -> None:
    live = rows.loc[rows["rule"] == ""]
    repeated = live.duplicated(["video", "frame"], keep=False)
    if repeated.any():
        problems.add(
            f"lines {examples(live.index[repeated])} name a frame that another line names too; keep one of each."
        )


def _grids(
    rows: pd.DataFrame, found: Mapping[tuple[str, int], _Found], every: int | None, problems: Problems
) -> tuple[int, dict[str, VideoFrames]]:
    """Frames of each video at even distances, from the first to the last that table or files know."""
    numbers: dict[str, set[int]] = {}
    of_table = rows.loc[rows["frame"] >= 0]
    for name, number in [*zip(of_table["video"], of_table["frame"], strict=True), *found]:
        numbers.setdefault(name, set()).add(int(number))
    ordered = {name: sorted(of_video) for name, of_video in sorted(numbers.items())}
    if every is None:
        distances = Counter(int(d) for of_video in ordered.values() for d in np.diff(of_video))
        every = max(sorted(distances), key=lambda d: distances[d]) if distances else 1
    videos: dict[str, VideoFrames] = {}
    uneven, sparse = [], []
    for name, of_video in ordered.items():
        if off := [number for number in of_video if (number - of_video[0]) % every]:
            uneven.append(f"{name} (frame {off[0]} after {of_video[0]})")
            continue
        grid = range(of_video[0], of_video[-1] + 1, every)
        if len(grid) > _MOST_GAPS * len(of_video):
            sparse.append(f"{name} ({len(of_video)} frames from {of_video[0]} to {of_video[-1]})")
            continue
        at = [found.get((name, number)) for number in grid]
        videos[name] = VideoFrames(tuple(grid), tuple(None if one is None else one.info.relative for one in at))
    if uneven:
        problems.add(
            f"the frames of {len(uneven)} videos do not stand {every} numbers apart: {examples(uneven, 3)}. Mend the "
            "numbers, or set data.every."
        )
    if sparse:
        problems.add(
            f"hardly any frame of {len(sparse)} videos is there, {every} numbers apart: {examples(sparse, 3)}. Check "
            "the numbers, or set data.every."
        )
    return every, videos


def _missing_frames(videos: Mapping[str, VideoFrames], every: int) -> list[Finding]:
    lost = {name: sum(one is None for one in frames.relatives) for name, frames in videos.items()}
    lost = {name: count for name, count in lost.items() if count}
    total = sum(len(frames.numbers) for frames in videos.values())
    shown = f"{len(videos)} videos, {total} frames {every} numbers apart"
    if not lost:
        return [Finding("frames", "info", "Every frame has a file.", shown)]
    return [
        Finding(
            "missing_frames",
            "warning",
            f"{sum(lost.values())} frames of {len(lost)} videos have no file; clips that need one are quarantined.",
            f"{shown}; most are missing in {max(lost.values())} places of one video",
            "Fetch the frames that are missing; nothing is put in their place.",
        )
    ]


def _add_splits(
    rows: pd.DataFrame,
    cells: pd.DataFrame,
    found: Mapping[tuple[str, int], _Found],
    split: SplitSource | None,
    has_folds: bool,
    video: str,
    has_patients: bool,
    problems: Problems,
    findings: list[Finding],
) -> None:
    """Fill in ``split``; a video whose frames or rows stand in two is a problem."""
    rows["split"] = ""
    folders: dict[str, set[str]] = {}
    for (name, _), one in found.items():
        if one.split:
            folders.setdefault(name, set()).add(one.split)
    if several := [f"{name} ({', '.join(sorted(of))})" for name, of in sorted(folders.items()) if len(of) > 1]:
        problems.add(f"{len(several)} videos lie in the folders of two splits: {examples(several)}. A video is in one.")
    if has_folds or isinstance(split, FractionSplit):
        return
    if split is None:
        first = {name: min(of) for name, of in folders.items()}
        rows["split"] = rows["video"].map(first).fillna("").astype("str")
    elif isinstance(split, str):
        live = rows["rule"] == ""
        rows.loc[live, "split"] = normal_split(cells.loc[live, split], split, problems)
    else:
        split_of = read_split_files(split, video, problems)
        ids = rows["video"]
        if has_patients and not set(split_of) & set(ids) and set(split_of) & set(rows["patient_id"]):
            ids = rows["patient_id"]
        strangers = sorted(set(split_of) - set(ids))
        if split_of and len(strangers) == len(split_of):
            problems.add(f"none of the ids of the split files is a video of the table; got {examples(strangers)}.")
        elif strangers:
            title = f"{len(strangers)} of {len(split_of)} ids of the split files have no row in the table."
            findings.append(Finding("split_without_rows", "warning", title, "they are passed over"))
        rows["split"] = ids.map(split_of).fillna("").astype("str")
    exclude(rows, rows["split"] == "", "missing split", "in no split")
    named = rows.loc[rows["rule"] == ""]
    of_video = {str(name): sorted(set(of)) for name, of in named.groupby("video")["split"]}
    if several := [f"{name} ({', '.join(of)})" for name, of in of_video.items() if len(of) > 1]:
        problems.add(f"{len(several)} videos stand in two splits: {examples(several)}. A video is in one.")
    elsewhere = [
        f"{name} ({next(iter(folders[name]))}/, but {of[0]})"
        for name, of in of_video.items()
        if len(folders.get(str(name), ())) == 1 and of[0] not in folders[str(name)]
    ]
    if elsewhere:
        problems.add(
            f"the frames of {len(elsewhere)} videos lie in the folder of another split: {examples(elsewhere)}. Mend "
            "the split, or the folders."
        )


def _add_files(rows: pd.DataFrame, found: Mapping[tuple[str, int], _Found]) -> None:
    """Fill in ``sample_id``, ``relative``, ``size`` and ``etag`` of the labelled frame; leave out rows without it."""
    at = [found.get((name, number)) for name, number in zip(rows["video"], rows["frame"], strict=True)]
    rows["sample_id"] = rows["video"] + "_" + rows["frame"].astype(str)
    rows["relative"] = ["" if one is None else one.info.relative for one in at]
    rows["size"] = [-1 if one is None else one.info.size for one in at]
    rows["etag"] = ["" if one is None else one.info.etag for one in at]
    rows["relative"] = rows["relative"].where(rows["relative"] != "", rows["sample_id"])
    exclude(rows, pd.Series([one is None for one in at], index=rows.index), "file missing", "the labelled frame")


def _exclude_by_stride(rows: pd.DataFrame, stride: int) -> None:
    live = rows.loc[rows["rule"] == ""].sort_values(["video", "frame"], kind="stable")
    number = live.groupby("video").cumcount()
    between = (number % stride != 0).reindex(rows.index, fill_value=False)
    exclude(rows, between, "stride", f"data.stride: {stride}")


def _left_out(rows: pd.DataFrame) -> list[Finding]:
    findings = []
    for (rule, detail), group in rows.loc[rows["rule"] != ""].groupby(["rule", "detail"]):
        title = f"{len(group)} of {len(rows)} frames were left out by the rule {rule!r}."
        if rule == "file missing":
            remedy = "Check that all frames have arrived, or that data.files is right."
            findings.append(Finding("frames_without_files", "warning", title, str(detail), remedy))
        else:
            findings.append(Finding("frames_left_out", "info", title, str(detail)))
    return findings


def stretch_around(place: int, num_frames: int, window: int | None) -> tuple[int, int]:
    """The frames [start, stop) that a clip may take: `window` around the labelled one, as far as the video reaches.

    >>> stretch_around(1, 10, 5), stretch_around(1, 10, None)
    ((0, 4), (0, 10))
    """
    if window is None:
        return 0, num_frames
    start = place - window // 2
    return max(start, 0), min(start + window, num_frames)
