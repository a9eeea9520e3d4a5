"""From files to a clip: a stretch of a video file, or of a video whose frames lie in image files.

Axes: H row, W column, C channel.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitreous.core.errors import CircumstanceError, InputError
from vitreous.inputs.clip import Clip, Frames
from vitreous.inputs.image_files import decode_image
from vitreous.inputs.video import VideoFile


@dataclass(frozen=True)
class Stretch:
    """Which part of a video file is one sample.

    Args:
        start_s, end_s: from the first frame; None is the video's own beginning or end.
        centre_s: the labelled moment; None is the middle.
        part, parts: the clip stands in the middle of one of so many equal parts of the stretch.
    """

    start_s: float | None = None
    end_s: float | None = None
    centre_s: float | None = None
    part: int = 0
    parts: int = 1

    def describe(self) -> list[float | int | None]:
        """Plain values, for the identity of the sample."""
        return [self.start_s, self.end_s, self.centre_s, self.part, self.parts]


def open_video_clip(path: Path, stretch: Stretch, *, max_frame_bytes: int, max_bytes: int) -> Clip:
    """One stretch of a video file; frames are decoded when they are asked for.

    Args:
        max_frame_bytes: the most that one frame, as float32, may take.
        max_bytes: the most that all frames read of the clip may take.

    Raises:
        InputError: the file is no video, is truncated, or the stretch lies outside of it.
    """
    video = VideoFile(path, max_bytes=max_frame_bytes)
    times_s = video.times_s
    last_s = float(times_s[-1])
    start = _first_from(times_s, stretch.start_s, 0, "start", last_s)
    stop = len(times_s) if stretch.end_s is None else int(np.searchsorted(times_s, stretch.end_s - 1e-6, side="left"))
    if stop <= start:
        raise InputError(
            f"no frame lies from {times_s[start]:g} s to before {stretch.end_s:g} s; the video has frames from 0 to "
            f"{last_s:g} s. Check start and end."
        )
    centre: int | None = None
    if stretch.centre_s is not None:
        if not 0 <= stretch.centre_s <= last_s + _frame_s(times_s):
            raise InputError(f"the centre lies at {stretch.centre_s:g} s; the video has frames from 0 to {last_s:g} s.")
        centre = max(int(np.searchsorted(times_s, stretch.centre_s + 1e-6, side="right")) - 1, 0)
        if not start <= centre < stop:
            raise InputError(f"the centre at {stretch.centre_s:g} s lies outside its own stretch. Check start and end.")
    elif stretch.parts > 1:
        centre = start + int((stretch.part + 0.5) * (stop - start) / stretch.parts)
    return Clip(video, start, stop, centre, max_bytes, key=repr(stretch.describe()))


def _first_from(
    times_s: npt.NDArray[np.float64], moment_s: float | None, default: int, name: str, last_s: float
) -> int:
    if moment_s is None:
        return default
    first = int(np.searchsorted(times_s, moment_s - 1e-6, side="left"))
    if first >= len(times_s):
        raise InputError(f"the {name} lies at {moment_s:g} s; the video has frames from 0 to {last_s:g} s.")
    return first


def _frame_s(times_s: npt.NDArray[np.float64]) -> float:
    return float(np.median(np.diff(times_s))) if len(times_s) > 1 else 0.0


@dataclass(frozen=True)
class FrameFile:
    """One frame of a video as the cohort knows it.

    Args:
        number: as in its name.
        relative: path below the folder; None where the frame should be there and is not.
    """

    number: int
    relative: str | None


class FrameFolder:
    """A video as image files; a :class:`~vitreous.inputs.clip.FrameSource`.

    Args:
        frames: all of the video, by rising number at even distances.
        fps: of the frames that are there; times are their place over it.
        fetch: relative path → local file.
        max_bytes: the most that one frame, as float32, may take.
    """

    def __init__(
        self, frames: Sequence[FrameFile], *, fps: float, fetch: Callable[[str], Path], max_bytes: int
    ) -> None:
        self._frames = frames
        self._fetch = fetch
        self._max_bytes = max_bytes
        self._size_HW: tuple[int, int] | None = None
        self.times_s: npt.NDArray[np.float64] = np.arange(len(frames), dtype=np.float64) / fps
        self.facts: dict[str, Any] = {"container": "frames"}

    @property
    def size_HW(self) -> tuple[int, int]:
        """Rows and columns of the frames: of the first one that is there."""
        if self._size_HW is None:
            first = next((index for index, frame in enumerate(self._frames) if frame.relative is not None), None)
            if first is None:
                raise InputError("no frame of the video is there.")
            self._decode(first)
        assert self._size_HW is not None
        return self._size_HW

    def read(self, indices: Sequence[int]) -> dict[int, Frames]:
        """The frames (H, W, 3) with these numbers; a grey one is repeated to three channels."""
        if missing := [self._frames[index].number for index in indices if self._frames[index].relative is None]:
            raise InputError(
                f"frame {missing[0]}{f' and {len(missing) - 1} more' if len(missing) > 1 else ''} of the clip has no "
                "file; nothing is put in its place. Fetch the frame, or leave the clip out."
            )
        return {index: self._decode(index) for index in indices}

    def _decode(self, index: int) -> Frames:
        frame = self._frames[index]
        try:
            path = self._fetch(str(frame.relative))
            # a dark frame within a video is one, as it is in a video file
            pixels_HWC = decode_image(path, max_bytes=self._max_bytes, accepts_one_colour=True).pixels_HWC
        except CircumstanceError as error:
            raise CircumstanceError(f"frame {frame.number}: {error}") from None
        except InputError as error:
            raise InputError(f"frame {frame.number}: {error}") from None
        if pixels_HWC.dtype != np.uint8:
            raise InputError(f"frame {frame.number} has 16 bits a value; frames of clips have 8.")
        size_HW = (pixels_HWC.shape[0], pixels_HWC.shape[1])
        if self._size_HW is None:
            self._size_HW = size_HW
        if size_HW != self._size_HW:
            raise InputError(
                f"frame {frame.number} has {size_HW[0]} × {size_HW[1]} pixels, another {self._size_HW[0]} × "
                f"{self._size_HW[1]}: the frames of a video have one size."
            )
        shown_HWC = pixels_HWC if pixels_HWC.shape[-1] == 3 else pixels_HWC.repeat(3, axis=-1)
        return shown_HWC.astype(np.uint8, copy=False)
