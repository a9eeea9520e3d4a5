"""Which frames an encoder gets, and what becomes of them; oracles are worked out by hand, and Pillow."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage

from inputs.video_files import numbered_frames, write_video
from vitreous.core.errors import InputError
from vitreous.core.input_spec import ClipSpec, ImageSpec
from vitreous.inputs.augmentation import AugmentSettings, augment, check_augment
from vitreous.inputs.clip import Clip
from vitreous.inputs.clip_files import FrameFile, FrameFolder, Stretch, open_video_clip
from vitreous.inputs.clip_preprocessing import prepare_clip
from vitreous.inputs.clip_sampling import sample_frames
from vitreous.inputs.image import Image
from vitreous.inputs.image_preprocessing import normalise_image, prepare_image
from vitreous.inputs.prepare import describe_decoded, describe_prepared, finish_input, prepare_input

_MB = 10**6


def spec(**fields: object) -> ClipSpec:
    return ClipSpec(**{"size": (16, 16), "frames": 4, **fields})


def at_25(count: int) -> np.ndarray:
    return np.arange(count) / 25


class Shown:
    """A video in memory."""

    def __init__(self, frames: list[np.ndarray], fps: float = 25) -> None:
        self.frames, self.facts = frames, {"container": "memory"}
        self.times_s = np.arange(len(frames)) / fps
        self.size_HW = frames[0].shape[:2]
        self.num_read = 0

    def read(self, indices: list[int]) -> dict[int, np.ndarray]:
        self.num_read += len(indices)
        return {index: self.frames[index] for index in indices}


def clip_of(frames: list[np.ndarray], centre: int | None = None) -> Clip:
    return Clip(Shown(frames), 0, len(frames), centre, 100 * _MB)


@pytest.mark.parametrize(
    ("fields", "count", "centre", "expected", "num_padded"),
    [
        ({"step": 1}, 10, 5, (3, 4, 5, 6), 0),
        ({"step": 2}, 10, 5, (1, 3, 5, 7), 0),
        ({"step": 2}, 10, 0, (0, 0, 0, 2), 2),
        ({"step": 2}, 10, 9, (5, 7, 9, 9), 1),
        ({"step": 1}, 10, None, (3, 4, 5, 6), 0),
        ({"fps": 25.0}, 10, 5, (3, 4, 5, 6), 0),
        ({"fps": 12.5}, 10, 5, (1, 3, 5, 7), 0),
        ({"fps": 10.0}, 20, 10, (5, 7, 10, 12), 0),  # 0.2, 0.3, 0.4 and 0.5 s
        ({"fps": 12.5}, 10, 0, (0, 0, 0, 2), 2),
        ({}, 10, None, (1, 3, 6, 8), 0),  # the middle of quarters
        ({}, 4, None, (0, 1, 2, 3), 0),
    ],
)
def test_frames_lie_around_the_middle(
    fields: dict[str, object], count: int, centre: int | None, expected: tuple[int, ...], num_padded: int
) -> None:
    found = sample_frames(spec(**fields), at_25(count), 0, count, centre)
    assert (found.indices, found.num_padded, found.is_short) == (expected, num_padded, False)


def test_a_moment_takes_the_frame_that_is_shown_then() -> None:
    times_s = np.array([0.0, 0.1, 0.2, 1.0, 1.1, 1.2, 2.0])
    found = sample_frames(spec(fps=5.0), times_s, 0, 7, 3)
    assert found.indices == (2, 2, 3, 5)  # 0.6 and 0.8 s still show the frame of 0.2 s


def test_frames_of_a_stretch_stay_in_it() -> None:
    assert sample_frames(spec(step=2), at_25(40), 10, 20, 10).indices == (10, 10, 10, 12)
    assert sample_frames(spec(), at_25(40), 10, 14, None).indices == (10, 11, 12, 13)


@pytest.mark.parametrize("fields", [{"step": 1}, {"step": 3}, {"fps": 25.0}, {}])
def test_a_short_clip_needs_a_rule(fields: dict[str, object]) -> None:
    with pytest.raises(InputError, match="fewer frames than the encoder needs, and no padding rule is stated"):
        sample_frames(spec(**fields), at_25(3), 0, 3, None)


@pytest.mark.parametrize(
    ("fields", "expected", "num_padded"),
    [
        ({"step": 1, "padding": "repeat"}, (0, 0, 1, 2), 1),
        ({"step": 1, "padding": "loop"}, (0, 1, 2, 0), 1),
        ({"fps": 25.0, "padding": "repeat"}, (0, 0, 1, 2), 1),
        ({"padding": "repeat"}, (0, 1, 1, 2), 1),
        ({"padding": "loop"}, (0, 1, 2, 0), 1),
    ],
)
def test_a_stated_rule_pads_and_counts(fields: dict[str, object], expected: tuple[int, ...], num_padded: int) -> None:
    found = sample_frames(spec(**fields), at_25(3), 0, 3, None)
    assert (found.indices, found.num_padded, found.is_short) == (expected, num_padded, True)


def test_a_loop_by_time_runs_on_in_order() -> None:
    found = sample_frames(spec(fps=25.0, padding="loop", frames=6), at_25(3), 0, 3, 1)
    assert found.indices == (1, 2, 0, 1, 2, 0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"step": 2, "fps": 5.0}, "give one of them"),
        ({"frames": 5, "tubelet": 2}, "multiple of the tubelet"),
        ({"endoscope": ["border_crop", "border_crop"]}, "a step twice"),
        ({"crop_pct": 0.5}, "goes with resize: shorter_side"),
    ],
)
def test_specs_that_contradict_themselves_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spec(**fields)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "nearest"])
@pytest.mark.parametrize("resize", ["squash", "shorter_side", "pad"])
def test_every_frame_is_prepared_as_an_image_is(resize: str, interpolation: str) -> None:
    frames = numbered_frames(4)
    how = {"size": (24, 24), "resize": resize, "interpolation": interpolation}
    how |= {"crop_pct": 0.875} if resize == "shorter_side" else {}
    prepared_CTHW = prepare_clip(clip_of(frames), ClipSpec(frames=4, step=1, **how))
    assert prepared_CTHW.dtype == torch.uint8
    assert prepared_CTHW.shape == (3, 4, 24, 24)
    for frame, prepared_CHW in zip(frames, prepared_CTHW.unbind(1), strict=True):
        expected_CHW = prepare_image(Image(frame), ImageSpec(**how))[:, 0]
        assert (prepared_CHW.int() - expected_CHW.int()).abs().max() <= 1


def test_grey_and_normalisation_are_those_of_images() -> None:
    frames = numbered_frames(4, 16, 16)
    grey = ClipSpec(size=(16, 16), frames=4, step=1, channels=1, mean=(0.5,), std=(0.25,))
    prepared_CTHW = prepare_clip(clip_of(frames), grey)
    expected = np.asarray(PillowImage.fromarray(frames[0]).convert("L"))
    np.testing.assert_array_equal(prepared_CTHW[0, 0].numpy(), expected)
    finished = finish_input(prepared_CTHW, grey)
    torch.testing.assert_close(finished, (prepared_CTHW.float() / 255 - 0.5) / 0.25)
    torch.testing.assert_close(finished, normalise_image(prepared_CTHW, grey))


def test_the_dark_frame_of_an_endoscope_is_cut_away() -> None:
    frames = []
    for number in range(4):
        frame = np.full((60, 100, 3), 3, np.uint8)
        frame[10:50, 20:80] = 90 + number
        frame[2, 1] = 255  # a letter in the border is none of the picture
        frames.append(frame)
    cut = prepare_clip(clip_of(frames), ClipSpec(size=(40, 60), frames=4, step=1, endoscope=("border_crop",)))
    assert torch.equal(cut[0, :, 0, 0], torch.tensor([90, 91, 92, 93], dtype=torch.uint8))
    assert (cut == cut[:, :, :1, :1]).all()
    square = ClipSpec(size=(40, 40), frames=4, step=1, endoscope=("border_crop", "centre_crop"))
    assert prepare_clip(clip_of(frames), square).min() >= 90
    black = [np.zeros((60, 100, 3), np.uint8)] * 4
    with pytest.raises(InputError, match="border_crop finds no picture"):
        prepare_clip(clip_of(black), square)


def test_frames_are_read_once_however_many_encoders_ask() -> None:
    clip = clip_of(numbered_frames(20))
    prepare_input(clip, spec(step=1))
    first = clip.source.num_read
    prepare_input(clip, spec(step=1, size=(8, 8)))
    describe_decoded(clip)
    assert clip.source.num_read == first == 4


def test_statistics_of_a_clip() -> None:
    frames = numbered_frames(3)
    clip = clip_of(frames)
    row = describe_decoded(clip)
    assert (row["frames"], row["video_frames"], row["height"], row["width"]) == (3, 3, 48, 64)
    assert row["fps"] == pytest.approx(25)
    assert row["duration_s"] == pytest.approx(3 / 25)
    assert row["mean"] == pytest.approx(frames[1].mean())
    padded = spec(step=1, padding="repeat")
    assert describe_prepared(clip, padded) == {"padded_frames": 1, "is_short": True}


def test_an_image_encoder_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="the file is a clip, and the encoder takes images"):
        prepare_input(clip_of(numbered_frames(3)), ImageSpec(size=(8, 8)))


def test_frames_as_files(tmp_path: Path) -> None:
    frames = numbered_frames(5)
    for number, frame in enumerate(frames):
        PillowImage.fromarray(frame).save(tmp_path / f"v_{number * 25}.png")
    files = [FrameFile(number * 25, f"v_{number * 25}.png") for number in range(5)]

    def folder(listed: list[FrameFile]) -> Clip:
        source = FrameFolder(listed, fps=5, fetch=lambda name: tmp_path / name, max_bytes=_MB)
        return Clip(source, 0, len(listed), 2, 10 * _MB)

    np.testing.assert_array_equal(folder(files).read([4, 1]), np.stack([frames[4], frames[1]]))
    PillowImage.new("RGB", (64, 48)).save(tmp_path / "v_dark.png")
    dark = [FrameFile(0, "v_dark.png"), *files[1:]]
    assert not folder(dark).read([0]).any()  # stored as it is, so it is shown as it is
    gap = [*files[:3], FrameFile(75, None), files[4]]
    assert prepare_clip(folder(gap), spec(frames=2, step=1)).shape == (3, 2, 16, 16)
    with pytest.raises(InputError, match="frame 75 of the clip has no file; nothing is put in its place"):
        prepare_clip(folder(gap), spec(frames=4, step=1))
    PillowImage.fromarray(frames[0][:20]).save(tmp_path / "v_100.png")
    with pytest.raises(InputError, match="frames of a video have one size"):
        folder(files).read([1, 4])


def test_clips_change_alike_in_all_frames() -> None:
    still = [numbered_frames(1, 32, 32)[0]] * 4
    how = ClipSpec(size=(32, 32), frames=4, step=1)
    prepared = prepare_clip(clip_of(still), how)
    settings = AugmentSettings(
        flip=0.5, rotate=20, crop=0.3, scale=0.1, erase=1.0, color=0.3, hue=0.1, blur=1.0, randaugment=9
    )
    changed = augment(prepared, settings, how, 3)
    assert changed.shape == (3, 4, 32, 32)
    assert changed.dtype == torch.float32
    assert 0 <= changed.min() <= changed.max() <= 1
    for number in range(1, 4):
        torch.testing.assert_close(changed[:, number], changed[:, 0], rtol=0, atol=1e-6)
    one = augment(prepared[:, :1], settings, ImageSpec(size=(32, 32)), 3)
    torch.testing.assert_close(one[:, 0], changed[:, 0], rtol=0, atol=1e-5)
    assert "no slices" in check_augment(AugmentSettings(flip=0.5, flip_axes=("D",)), "clip")[0]
    assert "no effect on clips" in check_augment(AugmentSettings(noise=0.5), "clip")[0]


def test_a_clip_of_a_file(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", numbered_frames(30), options={"preset": "ultrafast"})
    clip = open_video_clip(path, Stretch(centre_s=0.4), max_frame_bytes=_MB, max_bytes=_MB)
    assert prepare_clip(clip, spec(step=2)).shape == (3, 4, 16, 16)
