"""Video files (MP4, AVI, MOV, MPEG, WebM, GIF …) through PyAV: single frames, exact and upright.

The number of a frame is its place in the order of presentation, as a plain loop over `container.decode` counts. The
index of a file comes from its packets, without decoding; a wanted frame is then recognised by its timestamp. Files
whose packets have no usable timestamps, or whose container cannot seek exactly, are decoded from their beginning.

Axes: N frame, H row, W column, C channel.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vitreous.core.errors import CircumstanceError, InputError
from vitreous.inputs.clip import Frames
from vitreous.inputs.image import check_declared_pixels

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

#: Part of every feature key of clips: rises whenever any video file could decode to other frames.
VIDEO_DECODER_VERSION = 1

#: Containers of FFmpeg with an index of timestamps that a seek follows exactly.
_SEEKABLE = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
_FIXED_POINT = 1 << 16
_TAIL_FRAMES = 3  # a container that promises more than so many frames beyond its last one was cut short


@dataclass(frozen=True)
class VideoIndex:
    """What the packets of a file tell.

    Args:
        pts_N: timestamps in units of `time_base`, rising; None where packets do not have them, each once.
        keys_N: timestamps of frames that can be decoded without others.
        times_s: when each frame is shown, from the first one.
        size_HW: as coded, before any rotation.
        can_seek: whether the container seeks exactly.
    """

    pts_N: npt.NDArray[np.int64] | None
    keys_N: npt.NDArray[np.int64]
    times_s: npt.NDArray[np.float64]
    size_HW: tuple[int, int]
    orientation: tuple[bool, bool, bool]
    time_base: Fraction
    can_seek: bool
    container: str
    codec: str
    pixel_format: str


class VideoFile:
    """Frames of one video file; a :class:`~vitreous.inputs.clip.FrameSource`.

    Args:
        path: stays where it is while frames are read.
        max_bytes: the most that one frame, as float32, may take; checked on the declared size.

    Raises:
        InputError: the file is no video, is truncated, or holds no frame; the message names no path.
        CircumstanceError: it cannot be read, or declares frames beyond `max_bytes`.
    """

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        self._path = path
        self._index = _index_of(path, max_bytes)
        self.times_s = self._index.times_s
        self.facts: dict[str, Any] = {
            "container": self._index.container,
            "codec": self._index.codec,
            "pixel_format": self._index.pixel_format,
            "is_rotated": any(self._index.orientation),
        }

    @property
    def size_HW(self) -> tuple[int, int]:
        """Rows and columns of a frame, upright."""
        height, width = self._index.size_HW
        return (width, height) if self._index.orientation[0] else (height, width)

    def read(self, indices: Sequence[int]) -> dict[int, Frames]:
        """The frames (H, W, 3), RGB, with these numbers; only they are converted."""
        if not indices:
            return {}
        if self._index.pts_N is None:
            return self._read_counting(indices)
        return self._read_by_timestamp(indices, self._index.pts_N)

    def _read_counting(self, indices: Sequence[int]) -> dict[int, Frames]:
        """From the beginning, by counting."""
        wanted, found = set(indices), {}
        with _opened(self._path) as (container, stream):
            for number, frame in enumerate(container.decode(stream)):
                if number in wanted:
                    found[number] = self._pixels(frame, number)
                    if len(found) == len(wanted):
                        break
        return self._complete(indices, found)

    def _read_by_timestamp(self, indices: Sequence[int], pts_N: npt.NDArray[np.int64]) -> dict[int, Frames]:
        number_of = {int(pts_N[index]): index for index in indices}
        found: dict[int, Frames] = {}
        with _opened(self._path) as (container, stream):
            for run in self._runs(sorted(indices), pts_N):
                if run.seek_to is not None:
                    container.seek(run.seek_to, backward=True, any_frame=False, stream=stream)
                last = int(pts_N[run.indices[-1]])
                left = {int(pts_N[index]) for index in run.indices}
                for frame in container.decode(stream):
                    number = number_of.get(-1 if frame.pts is None else frame.pts)
                    if number is not None and frame.pts in left:
                        found[number] = self._pixels(frame, number)
                        left.discard(int(frame.pts))
                    if not left or (frame.pts is not None and frame.pts > last):
                        break
        return self._complete(indices, found)

    def _runs(self, indices: Sequence[int], pts_N: npt.NDArray[np.int64]) -> list["_Run"]:
        """Wanted frames in groups, each decoded from the key frame before it; a new one begins where a seek spares
        frames."""
        if not self._index.can_seek or len(self._index.keys_N) == 0:
            return [_Run(None, list(indices))]
        keys_N = self._index.keys_N
        runs: list[_Run] = []
        for index in indices:
            place = int(np.searchsorted(keys_N, pts_N[index], side="right")) - 1
            key = int(keys_N[place]) if place > 0 else None  # before and at the first key frame: the file's beginning
            if runs and (key is None or key <= pts_N[runs[-1].indices[-1]]):
                runs[-1].indices.append(index)
            else:
                runs.append(_Run(key, [index]))
        return runs

    def _complete(self, indices: Sequence[int], found: dict[int, Frames]) -> dict[int, Frames]:
        if lost := [index for index in indices if index not in found]:
            raise InputError(
                f"frame {lost[0]}{f' and {len(lost) - 1} more' if len(lost) > 1 else ''} of {len(self.times_s)} cannot "
                "be decoded: the video is damaged or truncated there. Fetch the file again, or take another stretch."
            )
        return found

    def _pixels(self, frame: "VideoFrame", number: int) -> Frames:
        if frame.is_corrupt:
            raise InputError(f"frame {number} of {len(self.times_s)} is damaged: the decoder reports missing data.")
        if (frame.height, frame.width) != self._index.size_HW:
            raise InputError(
                f"frame {number} has {frame.height} × {frame.width} pixels, the file declares "
                f"{self._index.size_HW[0]} × {self._index.size_HW[1]}: the size changes within the video."
            )
        return _upright(frame.to_ndarray(format="rgb24", threads=1), self._index.orientation)


@dataclass(frozen=True)
class _Run:
    seek_to: int | None
    indices: list[int]


@contextmanager
def _opened(path: Path) -> Iterator[tuple["InputContainer", "VideoStream"]]:
    """The file and its first video stream, decoded in one thread: several files are decoded side by side."""
    import av
    from av.error import FFmpegError

    try:
        with av.open(str(path), mode="r", metadata_errors="replace") as container:
            if not container.streams.video:
                raise InputError("the file holds no video stream.")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise InputError("the codec of the video is unknown or not supported, or its header is damaged.")
            stream.thread_type = "NONE"
            stream.codec_context.thread_count = 1
            yield container, stream
    except FFmpegError as error:
        if isinstance(error, PermissionError | FileNotFoundError | IsADirectoryError):
            raise CircumstanceError(f"the file cannot be read: {error.strerror}.") from None
        raise InputError(
            f"the content is not read as a video, or is damaged or truncated ({error.strerror}). Fetch the file again."
        ) from None


def _index_of(path: Path, max_bytes: int) -> VideoIndex:
    """The index of a file; that of a file with many clips is made once."""
    try:
        state = path.stat()
    except OSError as error:
        raise CircumstanceError(f"the file cannot be read: {error.strerror or type(error).__name__}.") from None
    if state.st_size == 0:
        raise InputError("the file is empty (0 bytes).")
    _check_ends(path, state.st_size)
    with _INDEXING:
        lock = _LOCKS.setdefault(str(path), threading.Lock())
    with lock:
        return _make_index(path, state.st_size, state.st_mtime_ns, max_bytes)


def _check_ends(path: Path, size: int) -> None:
    """Refuse what FFmpeg would take for a shorter video: a GIF without its trailer, an AVI shorter than it says.

    Raises:
        InputError: the file was cut short.
    """
    with path.open("rb") as file:
        head = file.read(12)
        file.seek(max(size - 16, 0))
        tail = file.read().rstrip(b"\x00")
    is_cut_gif = head.startswith((b"GIF87a", b"GIF89a")) and not tail.endswith(b";")
    is_cut_avi = head[:4] == b"RIFF" and head[8:] == b"AVI " and int.from_bytes(head[4:8], "little") + 8 > size
    if is_cut_gif or is_cut_avi:
        raise InputError("the video is truncated: its end is missing. Fetch the file again.")


_INDEXING = threading.Lock()
_LOCKS: dict[str, threading.Lock] = {}


@lru_cache(maxsize=256)
def _make_index(path: Path, size: int, changed_ns: int, max_bytes: int) -> VideoIndex:
    with _opened(path) as (container, stream):
        context = stream.codec_context
        check_declared_pixels(context.height, context.width, 3, max_bytes=max_bytes)
        pts: list[int | None] = []
        keys: list[int] = []
        num_packets, end = 0, 0
        for packet in container.demux(stream):
            if packet.size == 0:
                continue
            num_packets += 1
            if packet.is_corrupt:
                raise InputError("the video is damaged or truncated: a packet is not whole. Fetch the file again.")
            if packet.is_discard:
                continue
            pts.append(packet.pts)
            if packet.pts is not None:
                end = max(end, packet.pts + (packet.duration or 0))
                if packet.is_keyframe:
                    keys.append(packet.pts)
        if num_packets == 0:
            raise InputError("the video holds no frame; it is truncated. Fetch the file again.")
        time_base = Fraction(stream.time_base or Fraction(1, 1000))
        _check_whole(container, stream, num_packets, end, time_base)
        known = sorted(one for one in pts if one is not None)
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        is_exact = len(known) == len(pts) and len(set(known)) == len(known) and container.format.name != "avi"
        container_name, codec, pixel_format = container.format.name, context.name, context.pix_fmt or ""
        size_HW = (context.height, context.width)
    with _opened(path) as (container, stream):
        first = next(iter(container.decode(stream)), None)
        if first is None:
            raise InputError("the video holds no frame that can be decoded. Fetch the file again.")
        orientation = _orientation(first)
        if not is_exact:
            # packets do not say what is shown when: decode all of it once, and count
            size_HW = (first.height, first.width)
    if not is_exact:
        times_s = _decoded_times(path, rate)
        pts_N = None
    else:
        pts_N = np.array(known, dtype=np.int64)
        times_s = (pts_N - pts_N[0]).astype(np.float64) * float(time_base)
    if size_HW != (first.height, first.width):
        size_HW = (first.height, first.width)
        check_declared_pixels(*size_HW, 3, max_bytes=max_bytes)
    can_seek = is_exact and container_name in _SEEKABLE
    return VideoIndex(
        pts_N,
        np.array(sorted(keys), dtype=np.int64),
        times_s,
        size_HW,
        orientation,
        time_base,
        can_seek,
        container_name,
        codec,
        pixel_format,
    )


def _decoded_times(path: Path, rate: Fraction) -> npt.NDArray[np.float64]:
    """When each frame is shown where packets do not tell: the decoder's times if they rise, else the stated rate."""
    with _opened(path) as (container, stream):
        stated = [frame.time for frame in container.decode(stream)]
    rising = [time for time in stated if time is not None]
    if len(rising) == len(stated) and all(a < b for a, b in pairwise(rising)):
        return np.array(rising, dtype=np.float64) - rising[0]
    return np.arange(len(stated), dtype=np.float64) / float(rate)


def _check_whole(
    container: "InputContainer", stream: "VideoStream", num_packets: int, end: int, time_base: Fraction
) -> None:
    """Refuse a file that promises more frames, or a later end, than it has.

    Raises:
        InputError: it was cut short.
    """
    name = container.format.name
    if name.startswith("mov") and stream.frames > num_packets:
        raise InputError(
            f"the video is truncated: its header promises {stream.frames} frames, {num_packets} are there. Fetch the "
            "file again."
        )
    if name.startswith("matroska") and len(container.streams) == 1 and container.duration:
        import av

        promised_s, found_s = container.duration / av.time_base, float(end * time_base)
        if promised_s > found_s + _TAIL_FRAMES / float(stream.average_rate or 25):
            raise InputError(
                f"the video is truncated: its header promises {promised_s:.2f} s, its frames end at {found_s:.2f} s. "
                "Fetch the file again."
            )


def _orientation(frame: "VideoFrame") -> tuple[bool, bool, bool]:
    """Whether rows and columns are exchanged, then the rows turned round, then the columns.

    Source: ISO/IEC 14496-12, matrix of the track header: x' = a·x + c·y, y' = b·x + d·y.
    """
    stored: Any = frame.side_data.get("DISPLAYMATRIX")
    if stored is None:
        return (False, False, False)
    (a, b), (c, d) = (np.frombuffer(bytes(stored), np.int32).reshape(3, 3)[:2, :2] / _FIXED_POINT).tolist()
    scale = max(abs(a), abs(b), abs(c), abs(d))
    is_axis_aligned = scale > 0 and all(
        abs(v) < 1e-3 * scale or abs(abs(v) - scale) < 1e-3 * scale for v in (a, b, c, d)
    )
    swaps = abs(b) > abs(a)
    if not is_axis_aligned or (abs(a) > abs(c)) != (abs(d) > abs(b)):
        raise InputError(f"the video is to be shown rotated by {frame.rotation}°; only quarter turns are read.")
    return (True, b < 0, c < 0) if swaps else (False, d < 0, a < 0)


def _upright(pixels_HWC: npt.NDArray[Any], orientation: tuple[bool, bool, bool]) -> Frames:
    swaps, flips_rows, flips_columns = orientation
    turned_HWC = pixels_HWC.swapaxes(0, 1) if swaps else pixels_HWC
    return np.ascontiguousarray(turned_HWC[:: -1 if flips_rows else 1, :: -1 if flips_columns else 1])
