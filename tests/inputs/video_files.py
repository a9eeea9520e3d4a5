"""Small video files whose frames are known: each shows its own number."""

from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[np.uint8]


def numbered_frames(count: int, height: int = 48, width: int = 64) -> list[Frames]:
    """Frames that all differ: a bright square walks over a gradient whose level rises."""
    rows, columns = np.mgrid[:height, :width]
    frames = []
    for number in range(count):
        frame = np.stack([rows * 2, columns * 2, np.full_like(rows, 3 * number % 200)], axis=-1).astype(np.uint8)
        top, left = (3 * number) % (height - 12), (5 * number) % (width - 12)
        frame[top : top + 12, left : left + 12] = [250, 240, 230]
        frames.append(frame)
    return frames


def write_video(
    path: Path,
    frames: list[Frames],
    *,
    codec: str = "libx264",
    rate: int = 25,
    options: dict[str, str] | None = None,
    pts: list[int] | None = None,
    rotation: int = 0,
    pixel_format: str = "yuv420p",
    gop: int = 12,
    b_frames: int = 0,
) -> Path:
    """One file; `pts` are in units of 1 / `rate`."""
    from fractions import Fraction

    height, width = frames[0].shape[:2]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        stream.codec_context.gop_size = gop
        stream.codec_context.max_b_frames = b_frames
        stream.codec_context.time_base = Fraction(1, rate)
        if rotation:
            stream.set_display_rotation(rotation)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number if pts is None else pts[number]
            frame.time_base = Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def plain_loop(path: Path) -> list[Frames]:
    """Every frame, as the simplest use of PyAV gives it: the reference."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
