"""Clips of a study: which frames belong to each sample, where they lie, and their masks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from vitreous.core.errors import CircumstanceError, InputError, LocationError, StorageError
from vitreous.core.fingerprints import fingerprint
from vitreous.features.encode import Request
from vitreous.inputs.clip import Clip
from vitreous.inputs.clip_files import FrameFile, FrameFolder, Stretch, open_video_clip
from vitreous.samples.frames import VideoFrames, stretch_around
from vitreous.samples.stretches import STRETCH_COLUMNS
from vitreous.storage.location import ObjectInfo
from vitreous.storage.objects import ObjectStore
from vitreous.storage.staging import StagingCache

Fetch = Callable[[ObjectInfo], Path]


@dataclass(frozen=True)
class VideoClips:
    """Clips of video files.

    Args:
        stretches: by (relative, item); a file that is not named is one clip.
        max_frame_bytes, max_bytes: the most that one frame (as float32) and the frames of a clip may take.
    """

    stretches: Mapping[tuple[str, int], Stretch]
    max_frame_bytes: int
    max_bytes: int

    def identify(self, relative: str, item: int, identities: Mapping[str, str]) -> str:
        """Content identity of one clip."""
        stretch = self.stretches.get((relative, item), Stretch())
        if stretch == Stretch():
            return identities[relative]
        return fingerprint([identities[relative], stretch.describe()])

    def open(self, request: Request, path: Path) -> Clip:
        """The clip of one staged file.

        Raises:
            InputError: it is no video, is truncated, or has no such stretch.
        """
        stretch = self.stretches.get((request.source, request.item), Stretch())
        return open_video_clip(path, stretch, max_frame_bytes=self.max_frame_bytes, max_bytes=self.max_bytes)

    def describe(self) -> dict[str, Any]:
        """Plain values, for the feature key; what a stretch is stands in the identity of its clip."""
        return {}


def stretches_of(samples: pd.DataFrame) -> dict[tuple[str, int], Stretch]:
    """What the rows of a table of videos say, by (relative, item)."""

    def seconds(value: float) -> float | None:
        return None if pd.isna(value) else float(value)

    rows = samples[["relative", "item", *STRETCH_COLUMNS]].itertuples(index=False, name=None)
    return {
        (str(relative), int(item)): Stretch(seconds(start), seconds(end), seconds(centre), int(part), int(parts))
        for relative, item, start, end, centre, part, parts in rows
    }


@dataclass(frozen=True)
class FrameClips:
    """Clips of videos whose frames are image files.

    Args:
        videos: frames by video.
        infos: the file of each frame.
        centres: by relative path of the labelled frame its video and number.
        window: frames around the labelled one that a clip may take; None is all of the video.
        fps: frames a second, at the distance at which they are there; None where the study does not say.
        fetch: brings a frame's file to disk.
    """

    videos: Mapping[str, VideoFrames]
    infos: Mapping[str, ObjectInfo]
    centres: Mapping[str, tuple[str, int]]
    window: int | None
    fps: float | None
    fetch: Fetch
    max_frame_bytes: int
    max_bytes: int

    @cached_property
    def _identities(self) -> dict[str, list[str]]:
        """Of each frame of each video, in order; empty where a file is missing."""
        return {
            name: ["" if one is None else self.infos[one].identity for one in video.relatives]
            for name, video in self.videos.items()
        }

    def stretch_of(self, relative: str) -> tuple[str, int, int, int]:
        """Video, place of the labelled frame in it, and the frames [start, stop) that the clip may take."""
        name, number = self.centres[relative]
        video = self.videos[name]
        place = (number - video.numbers[0]) // (video.numbers[1] - video.numbers[0]) if len(video.numbers) > 1 else 0
        return name, place, *stretch_around(place, len(video.numbers), self.window)

    def identify(self, relative: str, item: int, identities: Mapping[str, str]) -> str:
        """Content identity of one clip: of all frames that it may take, and which is in the middle."""
        name, place, start, stop = self.stretch_of(relative)
        return fingerprint(["frames", place - start, self._identities[name][start:stop]])

    def open(self, request: Request, path: Path) -> Clip:
        """The clip around one labelled frame; its frames are read when they are asked for.

        Raises:
            InputError: the study does not say of which video it is.
        """
        if request.source not in self.centres:
            raise InputError("no row of the table says of which video this frame is.")
        name, place, start, stop = self.stretch_of(request.source)
        video = self.videos[name]
        frames = [FrameFile(number, one) for number, one in zip(video.numbers, video.relatives, strict=True)]
        source = FrameFolder(frames, fps=self.fps or 1.0, fetch=self._fetch, max_bytes=self.max_frame_bytes)
        return Clip(source, start, stop, place, self.max_bytes, key=f"{name} {place}")

    def _fetch(self, relative: str) -> Path:
        try:
            return self.fetch(self.infos[relative])
        except (LocationError, StorageError) as error:
            raise CircumstanceError(f"a frame could not be fetched ({error}).") from None

    def describe(self) -> dict[str, Any]:
        """Plain values, for the feature key."""
        return {"fps": self.fps}


@dataclass(frozen=True)
class ClipMasks:
    """Class maps of labelled frames.

    Args:
        true, second: by relative path of the labelled frame its mask; the true one is preferred.
        classes: names by value.
        ignore: value of pixels that say nothing.
    """

    true: Mapping[str, ObjectInfo]
    second: Mapping[str, ObjectInfo]
    classes: tuple[str, ...]
    ignore: int | None
    fetch: Fetch

    def of(self, relative: str) -> ObjectInfo | None:
        """The mask of a labelled frame; None where there is none."""
        return self.true.get(relative, self.second.get(relative))

    def count(self, relatives: pd.Series) -> dict[str, int]:
        """How many of these labelled frames have a true mask, one of the second folder, none."""
        true, other = relatives.isin(list(self.true)), relatives.isin(list(self.second))
        return {"true": int(true.sum()), "second": int((other & ~true).sum()), "none": int((~true & ~other).sum())}


def match_masks(relatives: pd.Series, listing: list[ObjectInfo]) -> dict[str, ObjectInfo]:
    """The mask of each frame: the file at its path with the ending .png."""
    by_path = {info.relative: info for info in listing}
    paths = {relative: f"{relative.rpartition('.')[0]}.png" for relative in relatives}
    return {relative: by_path[path] for relative, path in paths.items() if path in by_path}


def fetch_from(store: ObjectStore, cache: StagingCache) -> Fetch:
    """How files of one store come to disk."""
    return lambda info: cache.fetch(store, info)
