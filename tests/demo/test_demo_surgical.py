"""The synthetic surgical cohort. Oracles: pictures of a scene with one criterion changed, and the files themselves."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from vitreous.core.errors import UserError
from vitreous.demo.surgical import (
    IGNORE_INDEX,
    LABELS,
    MASK_CLASSES,
    PlantedBlindness,
    SurgicalVideo,
    agreement,
    draw_surgical_video,
    film_frame,
)
from vitreous.demo.surgical_cohort import plan_surgical_cohort, write_surgical_cohort

PLANTED, SEEN = PlantedBlindness(), PlantedBlindness(looks_like_c1=0.0, plate_contrast=1.0)


def film(met: tuple[int, int, int], blindness: PlantedBlindness, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    video = draw_surgical_video(seed, "video")
    always, never = -1.0, 2.0
    video = dataclasses.replace(video, onset_L=tuple(always if one else never for one in met))
    picture, mask = film_frame(video, 0.5, size_px=96, blindness=blindness, seed=seed, names=("frame",))
    return picture.astype(float), mask


def distance(one: tuple[int, int, int], other: tuple[int, int, int], blindness: PlantedBlindness) -> float:
    return float(np.abs(film(one, blindness)[0] - film(other, blindness)[0]).mean())


@pytest.mark.parametrize("label", range(3))
def test_each_criterion_changes_the_picture(label: int) -> None:
    met = tuple(int(k == label) for k in range(3))
    assert distance(met, (0, 0, 0), PLANTED) > 0.5


def test_c2_alone_looks_like_c1_alone_where_that_is_planted() -> None:
    assert distance((0, 1, 0), (1, 0, 0), PLANTED) < 0.35 * distance((0, 1, 0), (0, 0, 0), PLANTED)
    assert distance((0, 1, 0), (1, 0, 0), SEEN) > distance((0, 1, 0), (0, 0, 0), SEEN)


def test_masks_name_every_class_and_ignore_what_the_endoscope_does_not_show() -> None:
    picture, mask = film((0, 0, 1), PLANTED)
    assert set(np.unique(mask)) == {*range(len(MASK_CLASSES)), IGNORE_INDEX}
    assert not picture[mask == IGNORE_INDEX].any()
    assert picture[mask == MASK_CLASSES.index("gallbladder")].mean(0).argmax() == 1  # greenish


def test_neighbouring_frames_resemble_each_other() -> None:
    video = draw_surgical_video(0, "video")
    films = [
        film_frame(video, time, size_px=96, blindness=PLANTED, seed=0, names=("frame",))[0].astype(float)
        for time in (0.5, 0.51, 0.9)
    ]
    assert np.abs(films[0] - films[1]).mean() < np.abs(films[0] - films[2]).mean()


def test_annotators_disagree_only_on_the_way() -> None:
    video = draw_surgical_video(0, "video")
    steady = dataclasses.replace(video, onset_L=(-1.0, 2.0, 0.5))
    shares = [agreement(steady, time, seed=0, names=("v",)) for time in np.linspace(0, 1, 2001)]
    assert {one[0] for one in shares} == {1.0}
    assert {one[1] for one in shares} == {0.0}
    assert {round(3 * one[2]) for one in shares} <= {0, 1, 2, 3}
    assert len({one[2] for one in shares}) > 2
    assert isinstance(steady, SurgicalVideo)


def test_the_cohort_is_whole_split_by_video_and_repeats_itself(tmp_path: Path) -> None:
    table = write_surgical_cohort(tmp_path / "a", num_videos=12, seed=3, frames_per_video=4, size_px=48)
    frames = pd.read_csv(table)
    assert list(frames.columns) == ["vid", "frame", *LABELS]
    assert len(frames) == 48
    assert set(np.round(frames[list(LABELS)].to_numpy() * 3, 3).ravel()) <= {0, 1, 2, 3}
    vids = {
        split: {int(line) for line in (tmp_path / "a" / f"{split}_vids.txt").read_text().split()}
        for split in ("train", "val", "test")
    }
    assert sorted(vid for part in vids.values() for vid in part) == list(range(1, 13))
    for split, part in vids.items():
        names = {path.stem for path in (tmp_path / "a" / "frames" / split).iterdir()}
        assert names == {f"{vid}_{frame}" for vid, frame in frames[["vid", "frame"]].to_numpy() if vid in part}
    masked = sorted((tmp_path / "a" / "masks").rglob("*.png"))
    assert 0 < len(masked) < len(frames)
    with Image.open(masked[0]) as mask:
        assert mask.mode == "L"

    picture = next((tmp_path / "a" / "frames").rglob("*.jpg"))
    kept = picture.read_bytes()
    picture.unlink()
    write_surgical_cohort(tmp_path / "a", num_videos=12, seed=3, frames_per_video=4, size_px=48, workers=1)
    assert picture.read_bytes() == kept


def test_another_recipe_and_wrong_numbers_are_refused(tmp_path: Path) -> None:
    write_surgical_cohort(tmp_path, num_videos=12, seed=0, frames_per_video=4, size_px=48)
    with pytest.raises(UserError, match="differs in seed"):
        write_surgical_cohort(tmp_path, num_videos=12, seed=1, frames_per_video=4, size_px=48)
    with pytest.raises(UserError, match="num_videos of a synthetic surgical cohort is 12 to 9,999; got 3"):
        write_surgical_cohort(tmp_path / "b", num_videos=3, seed=0)
    with pytest.raises(UserError, match="plate_contrast"):
        write_surgical_cohort(tmp_path / "b", num_videos=12, seed=0, blindness=PlantedBlindness(plate_contrast=2.0))


def test_every_group_of_labels_occurs() -> None:
    frames = plan_surgical_cohort(num_videos=80, seed=0, frames_per_video=16)
    for split in ("train", "test"):
        groups = {tuple(share >= 0.5 for share in frame.shares) for frame in frames if frame.split == split}
        assert len(groups) == 8
