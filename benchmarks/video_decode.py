"""Decoding: frames per second of Vitreous' clip reader against PyAV's own loop, and torchcodec where it imports.

    python benchmarks/video_decode.py --json video_decode.json

MP4 files (H.264, a key frame every 25 and every 250 frames, B-frames) are made on the spot. Two jobs on each:

whole   every frame as RGB. Frames per second count frames handed over.
clip    16 frames, 8 apart, at 8 places of the video. PyAV's loop decodes from the beginning to the last frame of each
        clip and converts those asked for, which is what one writes without seeking; "PyAV, seek" seeks to the key
        frame before the first one and decodes on. Frames per second count frames asked for.

All readers decode in one thread and hand over the same bytes, which is checked first (but for torchcodec, which
converts to RGB by itself). PyAV's loop converts as it does by default, in threads of its own; Vitreous converts in
one. Files are opened anew for each clip; Vitreous' index of a file, made once a file as in a study, is counted in every
repeat.

Hardware: any CPU, about 1 GB of memory. Minutes: one or two; `--quick` takes seconds.
On a machine that others use, `--clock cpu` counts processor time instead, that of all threads.
Goal:     whole videos at 0.9 of PyAV's loop or more; sampled clips no slower than "PyAV, seek".
"""

import argparse
import importlib.util
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from vitreous.core.files import write_json
from vitreous.inputs.clip_files import Stretch, open_video_clip

Frames = npt.NDArray[np.uint8]
Reader = Callable[[Path, Sequence[int] | None], Frames]
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
MAX_BYTES = 1 << 33
CLIPS, FRAMES_OF_CLIP, STEP = 8, 16, 8


def write_mp4(path: Path, *, num_frames: int, size_px: int, key_every: int) -> Path:
    """A texture that moves, with noise, so that the codec has something to do."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:size_px, :size_px]
    texture = (127 + 90 * np.sin(rows / 7) * np.cos(columns / 11)).astype(np.int16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "veryfast", "crf": "23"})
        stream.width, stream.height, stream.pix_fmt = size_px, size_px, "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = key_every, 2
        for number in range(num_frames):
            moved = np.roll(texture, (2 * number, 3 * number), (0, 1)) + rng.integers(-6, 7, texture.shape)
            pixels = np.stack([moved, np.roll(moved, 40, 0), 255 - moved], -1).clip(0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def read_vitreous(path: Path, indices: Sequence[int] | None) -> Frames:
    """Vitreous: the index of the file where it is not known, then the frames."""
    clip = open_video_clip(path, Stretch(), max_frame_bytes=MAX_BYTES, max_bytes=MAX_BYTES)
    return clip.read(range(clip.num_frames) if indices is None else indices)


def read_loop(path: Path, indices: Sequence[int] | None) -> Frames:
    """PyAV: from the beginning, by counting."""
    wanted = None if indices is None else set(indices)
    found = []
    with av.open(str(path)) as container:
        stream = _one_thread(container)
        for number, frame in enumerate(container.decode(stream)):
            if wanted is None or number in wanted:
                found.append(frame.to_ndarray(format="rgb24"))
            if wanted is not None and len(found) == len(wanted):
                break
    return np.stack(found)


def read_seeking(path: Path, indices: Sequence[int] | None) -> Frames:
    """PyAV: one seek to before the first frame, for videos of constant frame rate alone."""
    if indices is None:
        return read_loop(path, None)
    found = []
    with av.open(str(path)) as container:
        stream = _one_thread(container)
        per_frame = 1 / (stream.average_rate * stream.time_base)
        begin = stream.start_time or 0
        container.seek(int(begin + indices[0] * per_frame), stream=stream)
        wanted = set(indices)
        for frame in container.decode(stream):
            if round((frame.pts - begin) / per_frame) in wanted:
                found.append(frame.to_ndarray(format="rgb24"))
            if len(found) == len(indices):
                break
    return np.stack(found)


def read_torchcodec(path: Path, indices: Sequence[int] | None) -> Frames:
    """torchcodec, exact seeking, one thread."""
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
    chosen = range(len(decoder)) if indices is None else indices
    frames: Frames = decoder.get_frames_at(list(chosen)).data.numpy()
    return frames


def forget_index(path: Path) -> None:
    """Another time of change: Vitreous takes the file for one that it has not seen."""
    facts = path.stat()
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1_000_000))


def _one_thread(container: Any) -> Any:
    stream = container.streams.video[0]
    stream.thread_type = "NONE"
    stream.codec_context.thread_count = 1
    return stream


READERS: dict[str, Reader] = {
    "vitreous": read_vitreous,
    "PyAV, loop": read_loop,
    "PyAV, seek": read_seeking,
    "torchcodec": read_torchcodec,
}


def available_readers() -> tuple[dict[str, Reader], str | None]:
    """Readers that can run, and why torchcodec is left out (None where it is not)."""
    readers = dict(READERS)
    if importlib.util.find_spec("torchcodec") is None:
        why = "it is not installed"
    else:
        try:
            import torchcodec.decoders  # noqa: F401

            return readers, None
        except (ImportError, OSError, RuntimeError) as error:  # its FFmpeg libraries do not load
            why = str(error).splitlines()[0]
    del readers["torchcodec"]
    return readers, why


def places_of_clips(num_frames: int) -> list[list[int]]:
    """Frame numbers of each clip, evenly over the video."""
    length = (FRAMES_OF_CLIP - 1) * STEP + 1
    if num_frames < length:
        raise ValueError(f"a clip spans {length} frames; the video has {num_frames}")
    starts = np.linspace(0, num_frames - length, CLIPS).round().astype(int)
    return [list(range(start, start + length, STEP)) for start in starts.tolist()]


def check_equal(path: Path, readers: dict[str, Reader]) -> None:
    """All readers of PyAV's frames hand over the same bytes.

    Raises:
        ValueError: they do not.
    """
    for indices in places_of_clips(_count(path))[::3]:
        reference = read_loop(path, indices)
        for name in ("vitreous", "PyAV, seek"):
            if not np.array_equal(readers[name](path, indices), reference):
                raise ValueError(f"{name} reads other frames of {path.name} than PyAV's loop")


def _count(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(packet.size > 0 for packet in container.demux(video=0))


def measure(
    path: Path, readers: dict[str, Reader], repeats: int, clock: Callable[[], float]
) -> dict[str, dict[str, Any]]:
    """Frames per second of each job and reader, median of the repeats; readers take turns."""
    clips = places_of_clips(_count(path))

    def whole(reader: Reader) -> int:
        return len(reader(path, None))

    def sampled(reader: Reader) -> int:
        return sum(len(reader(path, indices)) for indices in clips)

    found: dict[str, dict[str, Any]] = {}
    for job, work in (("whole", whole), ("clip", sampled)):
        chosen = [name for name in readers if not (job == "whole" and name == "PyAV, seek")]
        rates: dict[str, list[float]] = {name: [] for name in chosen}
        for _ in range(repeats):
            for name in chosen:
                forget_index(path)
                begin = clock()
                frames = work(readers[name])
                rates[name].append(frames / (clock() - begin))
        found[job] = {
            name: {
                "frames_per_s": median(values),
                "least": min(values),
                "most": max(values),
                "over_pyav_loop": median(a / b for a, b in zip(values, rates["PyAV, loop"], strict=True)),
            }
            for name, values in rates.items()
        }
    return found


def run(folder: Path, *, num_frames: int, sizes: Sequence[int], repeats: int, clock: str = "wall") -> dict[str, Any]:
    """Every file, job and reader."""
    readers, skipped = available_readers()
    rows = []
    for size_px in sizes:
        for key_every in (25, 250):
            path = write_mp4(
                folder / f"{size_px}_{key_every}.mp4", num_frames=num_frames, size_px=size_px, key_every=key_every
            )
            check_equal(path, readers)
            for job, found in measure(path, readers, repeats, CLOCKS[clock]).items():
                rows += [
                    {"size_px": size_px, "key_every": key_every, "job": job, "reader": name, **one}
                    for name, one in found.items()
                ]
    return {
        "num_frames": num_frames,
        "repeats": repeats,
        "clock": clock,
        "av": av.__version__,
        "torchcodec_skipped": skipped,
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "rows": rows,
    }


def as_table(result: dict[str, Any]) -> str:
    """The rows as Markdown."""
    lines = ["| video | job | reader | frames a second (least–most) | over PyAV's loop |", "|---|---|---|---|---|"]
    for row in result["rows"]:
        lines.append(
            f"| {row['size_px']} px, key every {row['key_every']} | {row['job']} | {row['reader']} | "
            f"{row['frames_per_s']:.0f} ({row['least']:.0f}–{row['most']:.0f}) | {row['over_pyav_loop']:.2f}× |"
        )
    if result["torchcodec_skipped"]:
        lines.append(f"\ntorchcodec is left out: {result['torchcodec_skipped']}.")
    return "\n".join(lines)


def main() -> None:
    """Make files, measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=500)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 480], help="pixels, height and width")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall", help="cpu: see above")
    parser.add_argument("--quick", action="store_true", help="150 frames of 64 px, one repeat")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.frames, arguments.sizes, arguments.repeats = 150, [64], 1
    with tempfile.TemporaryDirectory() as folder:
        result = run(
            Path(folder),
            num_frames=arguments.frames,
            sizes=arguments.sizes,
            repeats=arguments.repeats,
            clock=arguments.clock,
        )
    print(as_table(result))
    if arguments.json:
        write_json(arguments.json, result)


if __name__ == "__main__":
    main()
