"""Studies on clips, from table to report and prediction: frames as files with masks, and video files."""

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from cohorts import contents
from PIL import Image as PillowImage

from inputs.video_files import write_video
from s3_server import boto_client, running_s3_server, use_test_keys
from vitreous.config.compose import validate_study
from vitreous.core.errors import ConfigError, InputError, SampleError
from vitreous.core.input_spec import ClipSpec
from vitreous.inputs.prepare import prepare_input
from vitreous.study.clip_findings import check_masks
from vitreous.study.data import open_data
from vitreous.study.data_verify import verify_data
from vitreous.study.doctor_study import examine_study
from vitreous.study.explain import ExplainOptions, explain_model
from vitreous.study.plan import make_plan, print_plan
from vitreous.study.predict import predict_files
from vitreous.study.run import run_study
from vitreous.study.transfer import run_transfer

SHARED = Path(os.environ.get("VITREOUS_SHARED_DATA", Path(__file__).parents[3] / "shared/data"))
VJEPA2 = {"hidden_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2, "crop_size": 32, "frames_per_clip": 4}
SPLITS = ("train", "train", "val", "test")
LABELS = ["C1", "C2"]


def write_frames(root: Path, *, videos: int = 16, frames: int = 6) -> Path:
    """Each label is a bright band; C1 comes in the middle of half of the videos, C2 is in every third throughout."""
    rng = np.random.default_rng(0)
    rows = []
    for vid in range(videos):
        split = SPLITS[vid % 4]
        for k in range(frames):
            shares = [float(vid % 8 < 4 and k >= 3), float(vid % 3 == 0)]
            pixels = rng.integers(0, 80, size=(40, 48, 3))
            mask = np.zeros((40, 48), np.uint8)
            for label, share in enumerate(shares):
                pixels[20 * label : 20 * label + 16, :, label] += round(140 * share)
                mask[20 * label : 20 * label + 16][:, : round(48 * share)] = label + 1
            (root / "frames" / split).mkdir(parents=True, exist_ok=True)
            (root / "masks" / split).mkdir(parents=True, exist_ok=True)
            PillowImage.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(
                root / "frames" / split / f"{vid}_{25 * k}.jpg", quality=95
            )
            if vid % 2 == 0:
                PillowImage.fromarray(mask).save(root / "masks" / split / f"{vid}_{25 * k}.png")
            rows.append((vid, 25 * k, *shares))
    pd.DataFrame(rows, columns=["vid", "frame", *LABELS]).to_csv(root / "metadata.csv", index=False)
    for split in ("train", "val", "test"):
        vids = [str(vid) for vid in range(videos) if SPLITS[vid % 4] == split]
        (root / f"{split}_vids.txt").write_text("\n".join(vids))
    return root


def values(root: Path, **changes: Any) -> dict[str, Any]:
    data = {
        "kind": "frames",
        "table": str(root / "metadata.csv"),
        "files": str(root / "frames"),
        "label": LABELS,
        "agreement": 0.5,
        "split": {split: str(root / f"{split}_vids.txt") for split in ("train", "val", "test")},
        "aggregate": "none",
        "masks": {"files": str(root / "masks"), "classes": ["background", "first", "second"]},
        **changes.pop("data", {}),
    }
    return {
        "name": "clips",
        "data": data,
        "encoders": {
            "video": {"family": "vjepa2", "random": VJEPA2, "input": {"step": 1, "fps": None}},
            "early": {"family": "vjepa2", "random": VJEPA2, "layer": 1, "input": {"step": 1, "fps": None}},
            "image": {
                "family": "timm",
                "random": {"model": "test_vit", "img_size": [32, 32]},
                "input": {"frames": 2, "size": [32, 32]},
            },
        },
        "recipes": {"linear": {"kind": "linear_probe", "epochs": 6, "lr": 0.05}},
        "floors": ["majority", "pixels"],
        "seeds": [0],
        "intervals": {"resamples": 200},
        "device": "cpu",
        "precision": "fp32",
        "runs": str(root / "runs"),
        "store": str(root / "store"),
        **changes,
    }


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_frames(tmp_path_factory.mktemp("frames"))


def test_a_study_on_frames(frames: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run_study(validate_study(values(frames, floors=["majority"]), where="test"))
    said = " ".join(capsys.readouterr().err.split())
    assert "48 clips repeat frames at an end of their video, 0 of them since they are short." in said
    assert set(result.leaderboard["encoder"]) == {"video", "early", "image", "floor"}
    run = frames / "runs" / "clips"
    manifest = pd.read_parquet(run / "manifest.parquet")
    assert len(manifest) == 96
    assert set(manifest["fate"]) == {"encoded"}
    receipts = {name: json.loads((run / "receipts" / f"{name}.json").read_text()) for name in ("video", "early")}
    assert receipts["video"]["modality"] == "clip"
    assert receipts["early"]["layer"] == 1
    assert receipts["early"]["overridden"] == ["fps", "step"]
    spaces = [json.loads(path.read_text()) for path in (frames / "store").glob("??/*/space.json")]
    assert len(spaces) == 3  # an earlier block has a space of its own
    assert [one["encoder_options"].get("layer") for one in spaces].count(1) == 1
    assert {tuple(sorted(one["versions"])) for one in spaces} == {
        ("decoder", "encoder", "frame decoder", "preprocessing")
    }


def test_plan_tells_agreement_padding_and_masks(frames: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (frames / "study.yaml").write_text(json.dumps(values(frames)))
    print_plan(str(frames / "study.yaml"), [])
    shown = " ".join(capsys.readouterr().out.split())
    assert "Frames of a clip that agree (train and val)" in shown
    plan = make_plan(validate_study(values(frames), where="test"))
    assert plan.agreement is not None
    assert plan.agreement.columns.tolist() == ["frames", "clips", "agreeing", "share", *LABELS]
    assert plan.agreement["share"].tolist()[0] == 1
    assert plan.agreement["C2"].tolist() == [1, 1, 1]
    texts = {finding.code: f"{finding.title} {finding.evidence}" for finding in plan.findings}
    assert "50% of 96 clips have a mask" in texts["masks"]
    assert "48 true ones, 0 of the second folder, 48 none" in texts["masks"]
    padding = [f"{one.title} {one.evidence}" for one in plan.findings if one.code == "clip_padding"]
    # four frames around the first, second and last of six reach beyond the video
    assert any(text.startswith("video: 4 frames") and "48 at the edge" in text for text in padding)
    assert plan.num_files == 96


def test_a_missing_frame_quarantines_the_clips_that_need_it(tmp_path: Path) -> None:
    root = write_frames(tmp_path)
    (root / "frames" / "train" / "0_25.jpg").unlink()
    given = values(root, encoders={"video": values(root)["encoders"]["video"]}, floors=["majority"])
    given["data"]["max_quarantined"] = 0.2
    run_study(validate_study(given, where="test"))
    errors = pd.read_csv(root / "runs" / "clips" / "data_errors.csv")
    # frames 0, 50 and 75 need frame 25; 100 takes 50 to 125; 25 itself is left out by rule
    assert sorted(errors["sample_id"]) == ["0_0", "0_50", "0_75"]
    assert errors["message"].str.contains("nothing is put in its place").all()


def test_frames_and_masks_in_a_bucket(frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_test_keys(monkeypatch, str(tmp_path))
    on_disk = open_data(validate_study(values(frames), where="test"))
    spec = ClipSpec(size=(32, 32), frames=4, step=1)
    with running_s3_server() as url:
        client = boto_client(url)
        client.create_bucket(Bucket="theatre")
        for path in sorted((frames / "frames").rglob("*.jpg")) + sorted((frames / "masks").rglob("*.png")):
            client.upload_file(str(path), "theatre", str(path.relative_to(frames)))
        masks = {**values(frames)["data"]["masks"], "files": "s3://theatre/masks"}
        given = values(frames, data={"files": "s3://theatre/frames", "masks": masks})
        given |= {"s3": {"endpoint": url}, "cache": {"dir": str(tmp_path / "cache")}}
        data = open_data(validate_study(given, where="test"))
        request = next(one for one in data.requests if one.source == "val/2_75.jpg")
        [(_, path)] = data.stage([request])
        assert isinstance(path, Path)
        found = prepare_input(data.load_input(request, path), spec)
        mask = data.load_mask("val/2_75.jpg", spec, (8, 8))
    local = next(one for one in on_disk.requests if one.source == "val/2_75.jpg")
    expected = prepare_input(on_disk.load_input(local, frames / "frames" / "val" / "2_75.jpg"), spec)
    assert torch.equal(found, expected)
    other = on_disk.load_mask("val/2_75.jpg", spec, (8, 8))
    assert mask is not None
    assert other is not None
    assert torch.equal(mask, other)


def test_short_clips_need_a_rule(frames: Path) -> None:
    given = values(frames)
    given["encoders"] = {"video": {**given["encoders"]["video"], "input": {"step": 2, "fps": None}}}
    plan = make_plan(validate_study(given, where="test"))
    [padding] = [one for one in plan.findings if one.code == "clip_padding" and one.title.startswith("video")]
    assert padding.severity == "warning"
    assert "96 of 96 clips have fewer frames than it needs" in padding.title
    given["encoders"]["video"]["input"]["padding"] = "repeat"
    plan = make_plan(validate_study(given, where="test"))
    [padding] = [one for one in plan.findings if one.code == "clip_padding" and one.title.startswith("video")]
    assert "96 are short and padded by the rule 'repeat'" in padding.evidence


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"step": None, "fps": 4.0}, "Set data.fps"),
        ({"step": None, "fps": None}, "Set data.window"),
        ({"step": 1}, "give one of them"),
        ({"frames": 3, "step": 1, "fps": None}, "multiple of the tubelet"),
        ({"size": [40, 40], "step": 1, "fps": None}, "multiples of the tubelet and patch"),
    ],
)
def test_sampling_that_cannot_be_is_refused(how: dict[str, Any], message: str, frames: Path) -> None:
    given = values(frames)
    given["encoders"] = {"video": {**given["encoders"]["video"], "input": how}}
    with pytest.raises(ConfigError, match=message):
        make_plan(validate_study(given, where="test"))


def test_masks_lie_where_the_encoder_looks(frames: Path) -> None:
    data = open_data(validate_study(values(frames), where="test"))
    whole = ClipSpec(size=(32, 32), frames=2, step=1)
    stored = torch.from_numpy(np.array(PillowImage.open(frames / "masks" / "train" / "0_100.png")).astype(np.int64))
    found = data.load_mask("train/0_100.jpg", whole, (40, 48))
    assert found is not None
    assert torch.equal(found, stored)
    padded = data.load_mask("train/0_100.jpg", ClipSpec(size=(48, 48), frames=2, step=1, resize="pad"), (48, 48))
    assert padded is not None
    assert (padded[:4] == 255).all()
    assert (padded[44:] == 255).all()
    assert torch.equal(padded[4:44], stored)
    cropped = ClipSpec(size=(40, 40), frames=2, step=1, resize="shorter_side")
    inner = data.load_mask("train/0_100.jpg", cropped, (20, 20))
    assert inner is not None
    assert torch.equal(inner, stored[1::2, 5:44:2])
    assert data.load_mask("train/1_100.jpg", whole, (8, 8)) is None
    [classes] = check_masks(data, workers=2)
    assert (classes.severity, classes.evidence) == ("info", "48 masks; classes that no mask shows: none")


def test_true_masks_go_before_others(frames: Path, tmp_path: Path) -> None:
    for name, value in (("0_100", 2), ("1_100", 2)):
        (tmp_path / "train").mkdir(exist_ok=True)
        PillowImage.fromarray(np.full((40, 48), value, np.uint8)).save(tmp_path / "train" / f"{name}.png")
    masks = {**values(frames)["data"]["masks"], "second": str(tmp_path)}
    data = open_data(validate_study(values(frames, data={"masks": masks}), where="test"))
    assert data.masks is not None
    assert data.masks.count(data.cohort.samples["relative"]) == {"true": 48, "second": 1, "none": 47}
    spec = ClipSpec(size=(32, 32), frames=2, step=1)
    own, other = (data.load_mask(f"train/{name}_100.jpg", spec, (4, 4)) for name in (0, 1))
    assert own is not None
    assert other is not None
    assert set(own.unique().tolist()) != {2}
    assert set(other.unique().tolist()) == {2}


def test_masks_that_cannot_be_used_are_named(frames: Path, tmp_path: Path) -> None:
    spec = ClipSpec(size=(32, 32), frames=2, step=1)
    (tmp_path / "train").mkdir()
    for image, message in (
        (PillowImage.fromarray(np.full((40, 48), 7, np.uint8)), r"unknown class: 7 \(1920 pixels\)"),
        (PillowImage.fromarray(np.zeros((20, 48), np.uint8)), "the mask has 20 × 48 pixels, its frame 40 × 48"),
        (PillowImage.fromarray(np.zeros((40, 48, 3), np.uint8)), "has the mode RGB"),
    ):
        image.save(tmp_path / "train" / "0_100.png")
        masks = {"files": str(tmp_path), "classes": ["background", "first", "second"]}
        data = open_data(validate_study(values(frames, data={"masks": masks}), where="test"))
        with pytest.raises(InputError, match=message):
            data.load_mask("train/0_100.jpg", spec, (8, 8))
        [error, _] = check_masks(data, workers=1)
        assert (error.severity, error.title) == ("error", "1 of 1 masks cannot be used.")
        assert re.search(message, error.evidence)
    (tmp_path / "train" / "0_100.png").unlink()
    with pytest.raises(SampleError, match="no frame has a mask below"):
        open_data(validate_study(values(frames, data={"masks": {"files": str(tmp_path), "classes": ["a", "b"]}}), "t"))


def write_videos(root: Path, *, patients: int = 12) -> Path:
    rng = np.random.default_rng(1)
    (root / "videos").mkdir(parents=True)
    rows = []
    for patient in range(patients):
        is_bright = patient % 2
        frames = [rng.integers(0, 60, size=(36, 44, 3)).astype(np.uint8) + 120 * is_bright for _ in range(20)]
        write_video(root / "videos" / f"p{patient}.mp4", [f.astype(np.uint8) for f in frames],
                    options={"preset": "ultrafast"})  # fmt: skip
        rows.append((f"p{patient}.mp4", patient, ["dark", "bright"][is_bright], SPLITS[(patient // 2) % 4], 0.1, 0.7))
    columns = ["video", "patient", "label", "split", "from", "to"]
    pd.DataFrame(rows, columns=columns).to_csv(root / "videos.csv", index=False)
    return root


def video_values(root: Path, **data: Any) -> dict[str, Any]:
    given = values(root, name="videos")
    given["data"] = {
        "kind": "csv", "table": str(root / "videos.csv"), "files": str(root / "videos"), "video": "video",
        "label": "label", "classes": ["dark", "bright"], "patient": "patient", "split": "split", **data,
    }  # fmt: skip
    given["encoders"] = {"video": {"family": "vjepa2", "random": VJEPA2, "input": {"fps": 12.5}}}
    return given


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_videos(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module")
def video_run(videos: Path) -> Path:
    result = run_study(validate_study(video_values(videos, clips=2), where="test"))
    assert set(result.leaderboard["encoder"]) == {"video", "floor"}
    return videos / "runs" / "videos"


def test_a_study_on_video_files(videos: Path, video_run: Path, tmp_path: Path) -> None:
    config, run = validate_study(video_values(videos, clips=2), where="test"), video_run
    manifest = pd.read_parquet(run / "manifest.parquet")
    assert len(manifest) == 24
    assert sorted(manifest.loc[manifest["patient_id"] == "0", "sample_id"]) == ["p0.mp4#0", "p0.mp4#1"]
    model = run / "video" / "linear" / "seed0"
    before = contents(run)
    run_study(config)
    assert contents(run) == before
    done = predict_files(model, [str(videos / "videos")], out=tmp_path / "out.parquet")
    assert done.num_predicted == 12
    verified = verify_data(config, open_data(config), workers=1)
    assert not [one for one in verified.findings if one.code == "unreadable"]


def test_stretches_of_a_table(videos: Path) -> None:
    data = open_data(validate_study(video_values(videos, start="from", end="to"), where="test"))
    samples = data.cohort.samples
    assert samples["sample_id"].iloc[0] == "p0.mp4@0.1-0.7s"
    [request] = [one for one in data.requests if one.source == "p0.mp4"]
    clip = data.load_input(request, videos / "videos" / "p0.mp4")
    assert (clip.start, clip.stop) == (3, 18)  # type: ignore[union-attr]
    centred = open_data(validate_study(video_values(videos, centre="from"), where="test"))
    assert set(centred.file_ids) & set(data.file_ids) == set()


def test_videos_without_patients_are_patients(videos: Path) -> None:
    data = open_data(validate_study(video_values(videos, patient=None, clips=3), where="test"))
    assert data.cohort.samples["patient_id"].nunique() == 12


@pytest.mark.parametrize(
    ("cells", "how", "message"),
    [
        ("p0.mp4,0,dark,train,x,1", {"start": "from"}, "column 'from' must hold seconds, or h:mm:ss; got 'x'"),
        ("p0.mp4,0,dark,train,2,1", {"start": "from", "end": "to"}, "end before they start"),
        ("p0.mp4,0,dark,val,0,1", {"start": "from"}, "patients have items with different splits"),
    ],
)
def test_rows_of_videos_that_are_refused(cells: str, how: dict[str, Any], message: str, videos: Path) -> None:
    table = videos / "other.csv"
    table.write_text((videos / "videos.csv").read_text() + cells)
    with pytest.raises(SampleError, match=message):
        open_data(validate_study(video_values(videos, table=str(table), **how), where="test"))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"video": None}, "give the column `image`, or the column `video`"),
        ({"video": None, "image": "video", "start": "from"}, "is for clips"),
        ({"centre": "from", "clips": 2}, "leave it or clips out"),
    ],
)
def test_data_sections_that_contradict_themselves(how: dict[str, Any], message: str, videos: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        validate_study(video_values(videos, **how), where="test")


@pytest.mark.real
def test_all_real_clips_go_through_decode_cache_attentive_probe_and_maps(tmp_path: Path) -> None:
    root = SHARED / "pocus"
    if not root.is_dir():
        pytest.skip("the POCUS clips are not beside the project")
    given = values(tmp_path, name="pocus")
    given["data"] = {
        "kind": "csv", "table": str(root / "videos.csv"), "files": str(root), "video": "video", "label": "label",
        "patient": "patient", "classes": ["regular", "diseased"], "aggregate": "none",
        "label_map": {"regular": "regular", "viral": "diseased", "covid": "diseased", "pneumonia": "diseased"},
        "split": {"fractions": [0.5, 0.25, 0.25], "seed": 0}, "max_quarantined": 0.0,
    }  # fmt: skip
    given["encoders"] = {"video": {"family": "vjepa2", "random": {**VJEPA2, "frames_per_clip": 16}}}
    given["recipes"] = {"attentive": {"kind": "attentive_probe", "epochs": 2, "hidden": 16, "heads": 2}}
    given["features"] = {"pooling": "tokens"}
    # at 4 frames a second 16 frames are four seconds: some clips are shorter
    given["encoders"]["video"]["input"] = {"padding": "repeat"}
    given["floors"] = ["majority"]
    run_study(validate_study(given, where="test"))
    run = tmp_path / "runs" / "pocus"
    manifest = pd.read_parquet(run / "manifest.parquet")
    assert manifest["fate"].tolist() == ["encoded"] * 44
    model = run / "video" / "attentive" / "seed0"
    sample = manifest.loc[manifest["split"] == "test", "sample_id"].iloc[0]
    explain_model(model, tmp_path / "maps", options=ExplainOptions(samples=[sample], attention=True, draws=1, orders=2))
    assert list((tmp_path / "maps").rglob("*.npy"))


@pytest.fixture(scope="module")
def trained(frames: Path) -> Path:
    """A run of recipes that train on the pixels of clips."""
    given = values(frames, name="trained", floors=["majority"], data={"stride": 3})
    given["encoders"] = {"video": given["encoders"]["video"]}
    train = {"epochs": 1, "batch_size": 16, "lr_encoder": 1e-3, "lr_head": 1e-2}
    given["recipes"] = {
        "lora": {"kind": "lora", **train, "rank": 2, "targets": ["query", "key", "value"], "layers": [1]},
        "last": {"kind": "partial", **train, "blocks": 1, "augment": {"flip": 0.5, "color": 0.1}},
        "staged": {
            "kind": "staged",
            "batch_size": 16,
            "stages": [{"epochs": 1, "unfreeze": 0, "lr_head": 1e-2}, {"epochs": 1, "unfreeze": 1, "lr_encoder": 1e-3}],
        },
    }
    run_study(validate_study(given, where="test"))
    return frames / "runs" / "trained"


def test_recipes_on_pixels_train_on_clips(trained: Path) -> None:
    board = pd.read_csv(trained / "leaderboard.csv").query("encoder == 'video'").set_index("recipe")
    adapters = 3 * 2 * (24 + 24)  # query, key and value of one block, rank 2
    assert board.loc["lora", "trainable_parameters"] == adapters + 24 * 2 + 2
    assert set(board.index) == {"lora", "last", "staged"}


def test_a_run_on_videos_goes_to_another_cohort(video_run: Path, tmp_path: Path) -> None:
    other = write_videos(tmp_path / "other", patients=8)
    [target] = run_transfer(video_run, [f"elsewhere:{other / 'videos.csv'}:{other / 'videos'}"], rows=["video/linear"])
    assert [row.recipe for row in target.rows if row.encoder == "video"] == ["linear"]


def test_the_doctor_looks_at_clips(frames: Path) -> None:
    given = values(frames, floors=["majority"])
    given["encoders"] = {"video": given["encoders"]["video"]}
    findings = list(examine_study(validate_study(given, where="test")))
    assert not [one for one in findings if one.severity == "error"]
    assert any("clips decoded" in one.title for one in findings)
