"""Which part of a video each row of a table means: start, end or centre in seconds, and several clips a row."""

import re
from dataclasses import dataclass

import numpy as np
import pandas as pd

from vitreous.samples.problems import Problems, examples
from vitreous.samples.tables import is_missing

STRETCH_COLUMNS = ("start_s", "end_s", "centre_s", "part", "parts")
_CLOCK = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{1,2}(?:\.\d+)?)")


@dataclass(frozen=True)
class StretchColumns:
    """Columns of the table that say which part of the file a row means.

    Args:
        start, end, centre: columns of seconds, or of h:mm:ss; an empty cell is the video's own start, end or middle.
        clips: how many clips a row gives, each in the middle of one of so many equal parts.
    """

    start: str | None = None
    end: str | None = None
    centre: str | None = None
    clips: int = 1

    @property
    def names(self) -> list[str]:
        """The columns that are read."""
        return [name for name in (self.start, self.end, self.centre) if name is not None]


def read_stretches(cells: pd.DataFrame, live: pd.Series, columns: StretchColumns, problems: Problems) -> pd.DataFrame:
    """``start_s``, ``end_s``, ``centre_s`` of each row; NaN where nothing is said.

    Args:
        live: rows that are read; problems of others are passed over.
        problems: told what is no time, is negative, or ends before it starts.
    """
    times = pd.DataFrame(np.nan, index=cells.index, columns=["start_s", "end_s", "centre_s"])
    for name, column in (("start_s", columns.start), ("end_s", columns.end), ("centre_s", columns.centre)):
        if column is None:
            continue
        seconds = cells[column].map(_seconds)
        wrong = live & seconds.isna() & ~is_missing(cells[column])
        if wrong.any():
            problems.add(
                f"column {column!r} must hold seconds, or h:mm:ss; got "
                f"{examples(sorted(cells[column][wrong].unique()))} (lines {examples(cells.index[wrong])})."
            )
        times[name] = seconds
    backwards = live & (times["end_s"] <= times["start_s"])
    if backwards.any():
        problems.add(f"lines {examples(cells.index[backwards])} end before they start; mend start or end.")
    outside = live & ((times["centre_s"] < times["start_s"]) | (times["centre_s"] >= times["end_s"]))
    if outside.any():
        problems.add(
            f"lines {examples(cells.index[outside])} have their centre outside start and end; mend one of them."
        )
    return times


def _seconds(text: str) -> float:
    """
    >>> _seconds("12.5"), _seconds("1:02:03.5"), _seconds("-3")
    (12.5, 3723.5, nan)
    """
    if found := _CLOCK.fullmatch(text):
        return 3600 * int(found[1] or 0) + 60 * int(found[2]) + float(found[3])
    try:
        value = float(text)
    except ValueError:
        return float("nan")
    return value if 0 <= value < float("inf") else float("nan")


def name_stretches(rows: pd.DataFrame) -> pd.Series:
    """What tells the clips of one file apart, to stand behind its path; empty for a whole file."""

    def suffix(start: float, end: float, centre: float) -> str:
        if not np.isnan(centre):
            return f"@{centre:g}s"
        if np.isnan(start) and np.isnan(end):
            return ""
        return f"@{'' if np.isnan(start) else f'{start:g}'}-{'' if np.isnan(end) else f'{end:g}'}s"

    columns = (rows["start_s"], rows["end_s"], rows["centre_s"])
    return pd.Series([suffix(*times) for times in zip(*columns, strict=True)], index=rows.index, dtype="str")


def number_clips(rows: pd.DataFrame, clips: int) -> pd.DataFrame:
    """One row a clip: each row as often as it has clips, and ``item``, its number in the file, -1 of a whole file."""
    rows = rows.loc[rows.index.repeat(clips)].reset_index(drop=True)
    rows["part"], rows["parts"] = np.arange(len(rows)) % clips, clips
    if clips > 1:
        rows["sample_id"] = rows["sample_id"] + "#" + rows["part"].astype(str)
    is_whole = rows[["start_s", "end_s", "centre_s"]].isna().all(axis=1) & (clips == 1)
    rows["item"] = rows.groupby("relative").cumcount().where(~is_whole, -1)
    return rows
