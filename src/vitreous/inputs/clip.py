"""A decoded clip before any encoder's spec: a stretch of a video whose frames are read when they are asked for.

Axes: T frame, H row, W column, C channel.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vitreous.core.errors import CircumstanceError, InputError

Frames = npt.NDArray[np.uint8]


class FrameSource(Protocol):
    """A video, whatever holds it: frames by their number, upright.

    Args:
        times_s: when each frame is shown, rising; its length is the number of frames.
        facts: what the file says of itself, plain values.
    """

    times_s: npt.NDArray[np.float64]
    facts: dict[str, Any]

    @property
    def size_HW(self) -> tuple[int, int]:
        """Rows and columns of a frame as it is shown."""

    def read(self, indices: Sequence[int]) -> dict[int, Frames]:
        """The frames (H, W, 3) with these numbers, rising and each once.

        Raises:
            InputError: one of them is not there or damaged.
        """


@dataclass
class Clip:
    """One sample of a video.

    Args:
        start, stop: the stretch [start, stop) of the video's frames that belongs to the sample.
        centre: number of the labelled frame; None is the middle of the stretch.
        max_bytes: the most that the frames read at once may take.
        key: names the content and the stretch, for digests.
    """

    source: FrameSource
    start: int
    stop: int
    centre: int | None
    max_bytes: int
    key: str = ""
    _kept: dict[int, Frames] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop <= len(self.source.times_s):
            raise InputError(
                f"the stretch from frame {self.start} to before frame {self.stop} does not lie in the video's "
                f"{len(self.source.times_s)} frames; check start and end."
            )

    @property
    def middle(self) -> int:
        """Number of the labelled frame, or of the one in the middle."""
        return (self.start + self.stop) // 2 if self.centre is None else self.centre

    @property
    def num_frames(self) -> int:
        """Frames of the stretch."""
        return self.stop - self.start

    @property
    def facts(self) -> dict[str, Any]:
        """What the file says of itself."""
        return self.source.facts

    def read(self, indices: Sequence[int]) -> Frames:
        """Frames (T, H, W, 3) in the order asked for; each is decoded once, and repeats are copies.

        Raises:
            InputError: a frame is not there, damaged, or of another size.
            CircumstanceError: they would take more memory than is allowed.
        """
        height, width = self.source.size_HW
        needed = len(set(indices) | set(self._kept)) * height * width * 3
        if needed > self.max_bytes:
            raise CircumstanceError(
                f"{len(set(indices))} frames of {height} × {width} pixels take {needed:,} bytes in memory; at most "
                f"{self.max_bytes:,} are allowed. Take fewer frames, or allow more (data.max_clip_mb)."
            )
        missing = sorted(set(indices) - set(self._kept))
        if missing:
            self._kept.update(self.source.read(missing))
        return np.stack([self._kept[index] for index in indices])

    def forget(self) -> None:
        """Let go of the frames read so far."""
        self._kept.clear()
