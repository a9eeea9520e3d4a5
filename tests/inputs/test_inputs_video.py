"""Video decoding against a plain loop over PyAV, pixel by pixel."""

import os
from pathlib import Path

import numpy as np
import pytest

from inputs.video_files import numbered_frames, plain_loop, write_video
from vitreous.core.errors import CircumstanceError, InputError
from vitreous.inputs.clip_files import Stretch, open_video_clip
from vitreous.inputs.video import VideoFile

_MB = 10**6
SHARED = Path(os.environ.get("VITREOUS_SHARED_DATA", Path(__file__).parents[3] / "shared/data"))
KINDS = {
    "mp4": {"codec": "libx264", "b_frames": 3, "options": {"preset": "ultrafast"}},
    "mov": {"codec": "mpeg4", "b_frames": 0},
    "avi": {"codec": "mpeg4", "b_frames": 0},
    "mkv": {"codec": "libx265", "b_frames": 2, "options": {"preset": "ultrafast", "x265-params": "log-level=none"}},
    "mpeg": {"codec": "mpeg2video", "b_frames": 2},
    "webm": {"codec": "libvpx", "b_frames": 0, "options": {"deadline": "realtime", "cpu-used": "8"}},
    "gif": {"codec": "gif", "b_frames": 0, "pixel_format": "rgb8"},
}


def opened(path: Path) -> VideoFile:
    return VideoFile(path, max_bytes=50 * _MB)


def assert_same_frames(path: Path, indices: list[int]) -> None:
    reference = plain_loop(path)
    video = opened(path)
    assert len(video.times_s) == len(reference)
    found = video.read(indices)
    assert sorted(found) == indices
    for index in indices:
        np.testing.assert_array_equal(found[index], reference[index])


@pytest.mark.parametrize("kind", KINDS)
def test_any_frame_is_that_of_a_plain_loop(kind: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / f"a.{kind}", numbered_frames(40), **KINDS[kind])
    for indices in ([0, 1, 2], [37, 39], [3, 14, 15, 16, 30], [25]):
        assert_same_frames(path, indices)


def test_variable_frame_rate_is_kept(tmp_path: Path) -> None:
    pts = [0, 1, 2, 10, 11, 30, 31, 32, 60, 61]
    path = write_video(tmp_path / "a.mp4", numbered_frames(10), pts=pts, b_frames=2, options={"preset": "ultrafast"})
    assert opened(path).times_s.tolist() == pytest.approx([one / 25 for one in pts])
    assert_same_frames(path, [2, 3, 5, 9])


def test_timestamps_out_of_order_in_the_file_rise_when_shown(tmp_path: Path) -> None:
    import av

    path = write_video(tmp_path / "a.mp4", numbered_frames(30), b_frames=4, options={"preset": "ultrafast"})
    with av.open(str(path)) as container:
        stored = [packet.pts for packet in container.demux(video=0) if packet.size]
    assert stored != sorted(stored)
    assert (np.diff(opened(path).times_s) > 0).all()
    assert_same_frames(path, [5, 6, 7, 20])


def test_only_what_a_seek_cannot_spare_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", numbered_frames(60), gop=10, options={"preset": "ultrafast"})
    video = opened(path)
    runs = video._runs([3, 4, 25, 59], video._index.pts_N)
    assert [run.indices for run in runs] == [[3, 4], [25], [59]]
    assert runs[0].seek_to is None
    converted = []
    pixels = VideoFile._pixels
    monkeypatch.setattr(VideoFile, "_pixels", lambda self, frame, n: converted.append(n) or pixels(self, frame, n))
    video.read([3, 4, 25, 59])
    assert converted == [3, 4, 25, 59]


@pytest.mark.parametrize(("rotation", "turns"), [(90, 1), (-90, -1), (180, 2)])
def test_rotation_tags_are_applied(rotation: int, turns: int, tmp_path: Path) -> None:
    frames = numbered_frames(4)
    path = write_video(tmp_path / "a.mp4", frames, rotation=rotation, options={"preset": "ultrafast"})
    video = opened(path)
    reference = plain_loop(path)  # PyAV itself does not turn frames
    assert reference[0].shape == (48, 64, 3)
    # the tag's degrees count counterclockwise, as numpy's do
    np.testing.assert_array_equal(video.read([1])[1], np.rot90(reference[1], turns))
    assert video.size_HW == np.rot90(reference[1], turns).shape[:2]


def test_a_rotation_that_is_no_quarter_turn_is_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", numbered_frames(3), rotation=30, options={"preset": "ultrafast"})
    with pytest.raises(InputError, match="only quarter turns"):
        opened(path)


@pytest.mark.parametrize("kind", ["mp4", "mov", "webm", "mkv", "avi", "gif"])
def test_a_truncated_file_is_refused(kind: str, tmp_path: Path) -> None:
    options = dict(KINDS[kind].get("options", {}))
    whole = write_video(tmp_path / f"whole.{kind}", numbered_frames(60), **{**KINDS[kind], "options": options})
    content = whole.read_bytes()
    for share in (0.3, 0.7):
        path = tmp_path / f"cut{share}.{kind}"
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(InputError, match=r"truncated|damaged"):
            opened(path).read([0])


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_bytes_give_frames_or_an_error_of_ours(kind: str, tmp_path: Path) -> None:
    content = write_video(tmp_path / f"whole.{kind}", numbered_frames(20), **KINDS[kind]).read_bytes()
    rng = np.random.default_rng(0)
    for number in range(25):
        damaged = bytearray(content)
        for place in rng.integers(len(content), size=int(rng.choice([1, 5, 20]))):
            damaged[place] = int(rng.integers(256))
        path = tmp_path / f"{number}.{kind}"
        path.write_bytes(damaged)
        try:
            video = opened(path)
            frames = video.read([0, len(video.times_s) - 1])
        except InputError:
            continue
        assert {frame.shape[2] for frame in frames.values()} == {3}


def test_a_truncated_file_whose_index_is_in_front_is_refused(tmp_path: Path) -> None:
    import av

    path = tmp_path / "a.mp4"
    frames = numbered_frames(60)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        container.mux(stream.encode(None))
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(path.read_bytes()[: int(0.6 * path.stat().st_size)])
    with pytest.raises(InputError, match="truncated"):
        opened(cut)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "empty"), (b"no video at all, but text" * 40, "not read as a video"), (b"\x00" * 4000, "not read as a")],
)
def test_what_is_no_video_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        opened(path)


def test_an_absent_file_is_a_circumstance(tmp_path: Path) -> None:
    with pytest.raises(CircumstanceError, match="cannot be read"):
        opened(tmp_path / "none.mp4")


def test_declared_sizes_are_checked_before_a_frame_is_made(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", numbered_frames(10), options={"preset": "ultrafast"})
    with pytest.raises(CircumstanceError, match="declares 48 × 64 pixels"):
        VideoFile(path, max_bytes=1000)
    clip = open_video_clip(path, Stretch(), max_frame_bytes=_MB, max_bytes=5 * 48 * 64 * 3)
    clip.read([0, 1, 2, 3, 4])
    with pytest.raises(CircumstanceError, match=r"data\.max_clip_mb"):
        open_video_clip(path, Stretch(), max_frame_bytes=_MB, max_bytes=5 * 48 * 64 * 3).read(range(6))


def test_stretches_are_found_by_time(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", numbered_frames(50), options={"preset": "ultrafast"})

    def clip(**stretch: float | int) -> tuple[int, int, int]:
        one = open_video_clip(path, Stretch(**stretch), max_frame_bytes=_MB, max_bytes=_MB)  # type: ignore[arg-type]
        return one.start, one.stop, one.middle

    assert clip() == (0, 50, 25)
    assert clip(start_s=0.4, end_s=0.8) == (10, 20, 15)
    assert clip(centre_s=0.4) == (0, 50, 10)
    assert [clip(part=part, parts=2)[2] for part in (0, 1)] == [12, 37]
    for wrong, message in (
        ({"start_s": 3.0}, "start lies at 3 s"),
        ({"centre_s": 2.5}, "centre lies at 2.5 s"),
        ({"start_s": 1.0, "end_s": 0.5}, "no frame lies from"),
        ({"start_s": 1.0, "centre_s": 0.5}, "outside its own stretch"),
    ):
        with pytest.raises(InputError, match=message):
            clip(**wrong)


@pytest.mark.real
def test_all_clips_of_pocus_decode_as_a_plain_loop_does() -> None:
    folder = SHARED / "pocus" / "videos"
    if not folder.is_dir():
        pytest.skip("the POCUS clips are not beside the project")
    files = sorted(folder.iterdir())
    assert len(files) == 44
    for path in files:
        reference = plain_loop(path)
        video = opened(path)
        assert len(video.times_s) == len(reference), path.name
        indices = sorted({0, 1, len(reference) // 3, len(reference) // 2, len(reference) - 1})
        for index, frame in video.read(indices).items():
            np.testing.assert_array_equal(frame, reference[index], err_msg=f"{path.name} {index}")
