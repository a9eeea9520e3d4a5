"""A synthetic cohort of laparoscopic videos as frames in real files, in the layout of Endoscapes.

    metadata.csv                       vid,frame,C1,C2,C3: one row a frame, labels the share of three annotators
    frames/<split>/<vid>_<frame>.jpg   masks/<split>/<vid>_<frame>.png   (class maps, of some videos only)
    train_vids.txt   val_vids.txt   test_vids.txt   ground_truth.csv   recipe.json

A killed call leaves whole files only; the same call continues. `metadata.csv` is written last.
"""

import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from vitreous.core.errors import UserError
from vitreous.core.files import remove_partial_files, write_bytes, write_text
from vitreous.core.progress import Advance, no_progress
from vitreous.core.streams import numpy_stream
from vitreous.demo.cohort_folder import claim_folder, csv_text
from vitreous.demo.recipe import SPLITS, apportion
from vitreous.demo.surgical import LABELS, PlantedBlindness, SurgicalVideo, agreement, draw_surgical_video, film_frame

GENERATOR_VERSION = 1
"""Raised whenever the same arguments give other bytes than before."""

FRAME_STEP = 25  # frames are numbered as in a film of 25 a second, of which one a second is kept
TABLE = "metadata.csv"
FRAMES_PER_VIDEO = 16
FRAMES, MASKS = "frames", "masks"
_SPLIT_SHARES = (0.6, 0.15, 0.25)
_MASKED_SHARE = 0.5  # of the videos
_JPEG_QUALITY = 90


@dataclass(frozen=True)
class SurgicalFrame:
    """One frame of one video.

    Args:
        time: 0 to 1 over the video.
        shares: of the annotators who call each criterion met.
    """

    vid: int
    frame: int
    split: str
    time: float
    shares: tuple[float, ...]
    is_masked: bool

    @property
    def name(self) -> str:
        """Path below ``frames`` and ``masks``, without the ending."""
        return f"{self.split}/{self.vid}_{self.frame}"


def write_surgical_cohort(
    out: Path,
    *,
    num_videos: int,
    seed: int,
    frames_per_video: int = FRAMES_PER_VIDEO,
    size_px: int = 96,
    blindness: PlantedBlindness | None = None,
    progress: Advance = no_progress,
    workers: int | None = None,
) -> Path:
    """Write the cohort below `out`, or what of it is still missing.

    Args:
        out: a new or empty folder, or one in which this function has begun the same cohort.
        num_videos: 12 to 9,999; split 0.6, 0.15, 0.25 into train, val and test.
        frames_per_video: 4 to 1,000.
        size_px: 48 to 1,024, height and width of a frame.
        blindness: how hard C2 is to see; planted as by default if left out.
        progress: called with 1 after each frame, found or written.
        workers: threads; default one a core. The bytes do not depend on it.

    Returns:
        The table of frames.

    Raises:
        UserError: a number out of range, or `out` holds something else.
    """
    blindness = blindness or PlantedBlindness()
    _check_ranges(num_videos, frames_per_video, size_px, blindness)
    recipe: dict[str, object] = {
        "generator_version": GENERATOR_VERSION,
        "num_videos": num_videos,
        "seed": seed,
        "frames_per_video": frames_per_video,
        "size_px": size_px,
        "blindness": dataclasses.asdict(blindness),
    }
    claim_folder(out, recipe, "synthetic surgical cohort")
    frames = plan_surgical_cohort(num_videos=num_videos, seed=seed, frames_per_video=frames_per_video)
    for split in SPLITS:
        for kind in (FRAMES, MASKS):
            (out / kind / split).mkdir(parents=True, exist_ok=True)
            remove_partial_files(out / kind / split)

    def write_one(frame: SurgicalFrame) -> None:
        picture, mask = out / FRAMES / f"{frame.name}.jpg", out / MASKS / f"{frame.name}.png"
        if not picture.exists() or (frame.is_masked and not mask.exists()):
            image_HWC, classes_HW = film_frame(
                _video(seed, frame.vid),
                frame.time,
                size_px=size_px,
                blindness=blindness,
                seed=seed,
                names=("surgical", frame.vid, frame.frame),
            )
            if frame.is_masked:
                write_bytes(mask, _encode(classes_HW, ".png", []))
            write_bytes(picture, _encode(image_HWC[..., ::-1], ".jpg", [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]))
        progress(1)

    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        list(pool.map(write_one, frames))
    for split in SPLITS:
        vids = sorted({frame.vid for frame in frames if frame.split == split})
        write_text(out / f"{split}_vids.txt", "".join(f"{vid}\n" for vid in vids))
    truth = (
        (frame.vid, frame.frame, *(f"{level:.4f}" for level in _video(seed, frame.vid).achieved(frame.time)))
        for frame in frames
    )
    write_text(out / "ground_truth.csv", csv_text(("vid", "frame", *LABELS), truth))
    table = ((frame.vid, frame.frame, *(f"{share:.4f}" for share in frame.shares)) for frame in frames)
    write_text(out / TABLE, csv_text(("vid", "frame", *LABELS), table))
    return out / TABLE


def plan_surgical_cohort(*, num_videos: int, seed: int, frames_per_video: int) -> list[SurgicalFrame]:
    """All frames, by video and time."""
    splits = [name for name, count in zip(SPLITS, apportion(num_videos, _SPLIT_SHARES)) for _ in range(count)]
    order = numpy_stream(seed, "surgical", "splits").permutation(num_videos)
    is_masked_V = numpy_stream(seed, "surgical", "masks").uniform(size=num_videos) < _MASKED_SHARE
    frames = []
    for number in range(num_videos):
        vid, names = number + 1, ("surgical", number + 1)
        video = _video(seed, vid)
        for k, time in enumerate(np.linspace(0, 1, frames_per_video).tolist()):
            shares = agreement(video, time, seed=seed, names=names)
            split = splits[int(order[number])]
            frames.append(SurgicalFrame(vid, (k + 1) * FRAME_STEP, split, time, shares, bool(is_masked_V[number])))
    return frames


def _video(seed: int, vid: int) -> SurgicalVideo:
    return draw_surgical_video(seed, "surgical", vid)


def _encode(pixels: npt.NDArray[Any], ending: str, options: list[int]) -> bytes:
    done, encoded = cv2.imencode(ending, np.ascontiguousarray(pixels), options)
    if not done:
        raise ValueError(f"the image library could not write {pixels.shape} as {ending}")
    return encoded.tobytes()


def _check_ranges(num_videos: int, frames_per_video: int, size_px: int, blindness: PlantedBlindness) -> None:
    for name, value, low, high in (
        ("num_videos", num_videos, 12, 9999),
        ("frames_per_video", frames_per_video, 4, 1000),
        ("size_px", size_px, 48, 1024),
        ("looks_like_c1", blindness.looks_like_c1, 0, 1),
        ("plate_contrast", blindness.plate_contrast, 0, 1),
    ):
        if not low <= value <= high:
            raise UserError(f"{name} of a synthetic surgical cohort is {low:,} to {high:,}; got {value}.")
