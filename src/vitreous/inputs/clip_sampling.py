"""Which frames of a clip an encoder gets. Axes: T frame of the encoder's input."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vitreous.core.errors import InputError
from vitreous.core.input_spec import ClipSpec

_HALF = 1e-6  # seconds by which a timestamp may miss the moment it is meant for: that of two time bases


@dataclass(frozen=True)
class Sampled:
    """Frames by their number in the video.

    Args:
        indices: T numbers, rising but for a loop.
        num_padded: how many of them repeat a frame since the stretch does not reach further.
        is_short: whether the stretch has fewer frames than the encoder needs, so that the padding rule applied.
    """

    indices: tuple[int, ...]
    num_padded: int
    is_short: bool


def sample_frames(
    spec: ClipSpec, times_s: npt.NDArray[np.float64], start: int, stop: int, centre: int | None
) -> Sampled:
    """The frames of ``[start, stop)`` that the spec asks for; see :class:`~vitreous.core.input_spec.ClipSpec`.

    With `fps` each moment takes the frame shown then: the last whose timestamp is not later.

    Args:
        times_s: when each frame of the whole video is shown, rising.
        centre: number of the labelled frame; None is the middle of the stretch.

    Raises:
        InputError: the stretch has fewer frames than the encoder needs, and no padding rule is stated.

    >>> times_s = np.arange(10) / 25
    >>> sample_frames(ClipSpec(size=(8, 8), frames=4, step=2), times_s, 0, 10, 5).indices
    (1, 3, 5, 7)
    >>> sample_frames(ClipSpec(size=(8, 8), frames=4, step=2), times_s, 0, 10, 0)
    Sampled(indices=(0, 0, 0, 2), num_padded=2, is_short=False)
    """
    own_s = times_s[start:stop]
    if spec.step is None and spec.fps is None:
        return _spread(spec, start, stop)
    available = _available(spec, own_s)
    is_short = available < spec.frames
    if is_short:
        _check_rule(spec, available, stop - start)
    middle = (stop - start) // 2 if centre is None else centre - start
    offsets_T = np.arange(spec.frames) - spec.frames // 2
    if spec.step is not None:
        wanted_T = middle + offsets_T * spec.step
        if is_short and spec.padding == "loop":
            kept = np.arange(middle % spec.step, stop - start, spec.step)
            first = int(np.flatnonzero(kept >= wanted_T[0])[0])
            indices_T = kept[(first + np.arange(spec.frames)) % len(kept)]
            return Sampled(tuple((indices_T + start).tolist()), spec.frames - len(kept), True)
        inside_T = wanted_T.clip(0, stop - start - 1)
        num_padded = int((inside_T != wanted_T).sum())
        return Sampled(tuple((inside_T + start).tolist()), num_padded, is_short)
    assert spec.fps is not None
    moments_T = own_s[middle] + offsets_T / spec.fps
    end_s = own_s[-1] + _duration(own_s)
    if is_short and spec.padding == "loop":
        moments_T = own_s[0] + np.mod(moments_T - own_s[0] + _HALF, end_s - own_s[0])
        num_padded = spec.frames - available
    else:
        num_padded = int(((moments_T < own_s[0] - _HALF) | (moments_T >= end_s - _HALF)).sum())
    shown_T = (np.searchsorted(own_s, moments_T + _HALF, side="right") - 1).clip(0, stop - start - 1)
    return Sampled(tuple((shown_T + start).tolist()), num_padded, is_short)


def _spread(spec: ClipSpec, start: int, stop: int) -> Sampled:
    """Frames in the middle of `spec.frames` equal parts; parts of less than a frame repeat it."""
    available = stop - start
    is_short = available < spec.frames
    if is_short:
        _check_rule(spec, available, available)
    if is_short and spec.padding == "loop":
        parts_T = np.arange(spec.frames) % available
    else:
        parts_T = ((np.arange(spec.frames) + 0.5) * available / spec.frames).astype(np.int64)
    return Sampled(tuple((parts_T + start).tolist()), max(spec.frames - available, 0), is_short)


def _available(spec: ClipSpec, own_s: npt.NDArray[np.float64]) -> int:
    """How many frames the stretch has at the spec's distance."""
    if spec.step is not None:
        return (len(own_s) - 1) // spec.step + 1
    assert spec.fps is not None
    return int(np.floor((own_s[-1] + _duration(own_s) - own_s[0] - _HALF) * spec.fps)) + 1


def _duration(own_s: npt.NDArray[np.float64]) -> float:
    """How long the last frame is shown: as long as a usual one."""
    return float(np.median(np.diff(own_s))) if len(own_s) > 1 else 0.0


def _check_rule(spec: ClipSpec, available: int, stored: int) -> None:
    if spec.padding == "none":
        how = f"every {spec.step}. frame" if spec.step else f"{spec.fps:g} frames a second" if spec.fps else "spread"
        raise InputError(
            f"the clip has fewer frames than the encoder needs, and no padding rule is stated: {stored} frames are "
            f"{available} of the {spec.frames} needed ({how}). Set encoders.NAME.input.padding to repeat or loop, or "
            "take another step or fps."
        )
