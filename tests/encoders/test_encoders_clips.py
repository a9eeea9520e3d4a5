"""Encoders of clips against transformers itself, with weights made on the spot."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from inputs.video_files import numbered_frames
from vitreous.core.errors import CheckpointError, ConfigError, StorageError
from vitreous.core.input_spec import ClipSpec, ImageSpec
from vitreous.core.torchvision_schema import declare_torchvision_schemas
from vitreous.encoders.attention import attend_in_blocks
from vitreous.encoders.catalog import build_random_encoder, fetch_encoder, load_encoder
from vitreous.encoders.encoder import Backbone
from vitreous.encoders.family_vjepa2 import to_own_names, to_published_names
from vitreous.encoders.vjepa2 import VJEPA2Backbone, rope_tables, rotate
from vitreous.inputs.clip import Clip
from vitreous.inputs.clip_preprocessing import prepare_clip
from vitreous.inputs.prepare import finish_input
from vitreous.recipes.lora import resolve_targets
from vitreous.recipes.pixel_model import PixelModel

declare_torchvision_schemas()

from transformers import VideoMAEConfig, VideoMAEModel, VJEPA2Config, VJEPA2Model  # noqa: E402
from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2RopeAttention  # noqa: E402

SMALL = {"hidden_size": 48, "num_attention_heads": 2, "num_hidden_layers": 3, "crop_size": 32, "frames_per_clip": 4}
TINY_VIT = {"model": "test_vit", "img_size": [32, 32]}


def vjepa2_model() -> VJEPA2Model:
    torch.manual_seed(0)
    predictor = {"pred_hidden_size": 24, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}
    model = VJEPA2Model(VJEPA2Config(**SMALL, **predictor)).eval()
    for parameter in model.parameters():  # larger than fresh ones, so that differences would show
        torch.nn.init.normal_(parameter, std=0.08)
    return model


def clips(frames: int = 4, size: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, frames, size, size, generator=torch.Generator().manual_seed(1))


def tokens_of(encoder: Any, x_BCTHW: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = encoder(x_BCTHW).tokens_BND
        return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vjepa2")
    vjepa2_model().save_pretrained(path)
    return path


def published(model: VJEPA2Model) -> dict[str, Any]:
    """A checkpoint as facebookresearch/vjepa2 leaves it."""
    own = {k.removeprefix("encoder."): v for k, v in model.state_dict().items() if k.startswith("encoder.")}
    encoder = {f"module.backbone.{name}": tensor for name, tensor in to_published_names(own).items()}
    other = {name: tensor + 1 for name, tensor in encoder.items()}
    predictor = {"module.backbone.predictor_embed.weight": torch.zeros(3, 3)}
    return {"encoder": other, "target_encoder": encoder, "predictor": predictor, "opt": {"state": {}}, "epoch": 7}


def test_a_folder_gives_the_tokens_of_transformers(folder: Path) -> None:
    model, info = VJEPA2Model.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert [info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")] == [set()] * 3
    encoder = load_encoder(folder, "vjepa2")
    assert encoder.modality == "clip"
    assert encoder.grid == (2, 2, 2)
    x = clips()
    with torch.inference_mode():
        expected = model.eval()(pixel_values_videos=x.transpose(1, 2), skip_predictor=True).last_hidden_state
    torch.testing.assert_close(tokens_of(encoder, x), expected, rtol=1e-4, atol=1e-4)
    receipt = encoder.receipt
    assert receipt.matched_share == 1
    assert receipt.tensors_matched == 2 + 3 * 16 + 2
    assert set(receipt.ignored_by_rule) == {"predictor"}
    assert receipt.inferred["sources"]["num_attention_heads"] == "config num_attention_heads"


def test_published_checkpoints_give_the_same_tokens(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "vitl.pt"
    torch.save(published(vjepa2_model()), path)
    options = {"num_attention_heads": 2, "crop_size": 32, "frames_per_clip": 4}
    target = load_encoder(path, "vjepa2", which="target", **options)
    torch.testing.assert_close(tokens_of(target, clips()), tokens_of(load_encoder(folder, "vjepa2"), clips()))
    context = load_encoder(path, "vjepa2", which="context", **options)
    assert (tokens_of(context, clips()) - tokens_of(target, clips())).abs().max() > 0.1
    assert target.receipt.key_prefix == "target_encoder.backbone."
    assert set(target.receipt.ignored_by_rule) == {"predictor", "the other encoder (context)", "training state"}
    assert target.receipt.facts["epoch"] == 7
    with pytest.raises(CheckpointError, match="Give the option num_attention_heads"):
        load_encoder(path, "vjepa2")


def test_names_are_turned_both_ways() -> None:
    own = {k.removeprefix("encoder."): v for k, v in vjepa2_model().state_dict().items() if k.startswith("encoder.")}
    there = to_published_names(own)
    assert {"blocks.2.attn.qkv.bias", "patch_embed.proj.weight", "norm.bias"} < there.keys()
    back = to_own_names(there)
    assert back.keys() == own.keys()
    assert all(torch.equal(back[name], own[name]) for name in own)


def test_a_name_at_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **how: asked.append(name) or str(folder))
    encoder = fetch_encoder("facebook/small", "vjepa2")
    assert asked == ["facebook/small"]
    assert encoder.receipt.origin == "hub facebook/small"
    assert encoder.weights_hash == load_encoder(folder, "vjepa2").weights_hash

    def fail(error: Exception) -> Any:
        def download(name: str, **how: Any) -> str:
            raise error

        return download

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail(LocalEntryNotFoundError("no network")))
    with pytest.raises(StorageError, match=r"could not be fetched .*give a local folder as `checkpoint`"):
        fetch_encoder("facebook/small", "vjepa2")
    missing = RepositoryNotFoundError.__new__(RepositoryNotFoundError)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail(missing))
    with pytest.raises(ConfigError, match=r"is no model at the hub .*Near are facebook/vjepa2-vitl"):
        fetch_encoder("facebook/vjepa2-vitl", "vjepa2")


def test_what_is_no_v_jepa_2_is_refused(folder: Path, tmp_path: Path) -> None:
    first = published(vjepa2_model())["encoder"]
    torch.save({"encoder": {**first, "module.backbone.pos_embed": torch.zeros(1, 8, 48)}}, tmp_path / "v1.pt")
    with pytest.raises(CheckpointError, match=r"weights of V-JEPA 1"):
        load_encoder(tmp_path / "v1.pt", "vjepa2", num_attention_heads=2)
    short = {name: tensor for name, tensor in first.items() if "blocks.1.mlp.fc2" not in name}
    torch.save({"encoder": short}, tmp_path / "short.pt")
    with pytest.raises(CheckpointError, match=r"2 missing: layer\.1\.mlp\.fc2\.bias, layer\.1\.mlp\.fc2\.weight"):
        load_encoder(tmp_path / "short.pt", "vjepa2", num_attention_heads=2)
    alien = tmp_path / "alien"
    shutil.copytree(folder, alien)
    config = json.loads((alien / "config.json").read_text())
    for change, message in (({"model_type": "bert"}, "of model_type 'bert'"), ({"patch_size": 8}, "patch_size is 8")):
        (alien / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(CheckpointError, match=message):
            load_encoder(alien, "vjepa2")
    with pytest.raises(ConfigError, match="multiples of the tubelet and patch"):
        load_encoder(folder, "vjepa2", spec_override={"size": [40, 40]})
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"has a config\.json and no \.safetensors file"):
        load_encoder(tmp_path / "empty", "vjepa2")


def test_another_size_and_number_of_frames(folder: Path) -> None:
    encoder = load_encoder(folder, "vjepa2", spec_override={"size": [48, 64], "frames": 6})
    assert encoder.grid == (3, 3, 4)
    assert tokens_of(encoder, torch.zeros(1, 3, 6, 48, 64)).shape == (1, 36, 48)
    larger = VJEPA2Model.from_pretrained(folder, crop_size=48).eval()
    square = load_encoder(folder, "vjepa2", spec_override={"size": [48, 48], "frames": 6})
    x = clips(6, 48)
    with torch.inference_mode():
        expected = larger(pixel_values_videos=x.transpose(1, 2), skip_predictor=True).last_hidden_state
    torch.testing.assert_close(tokens_of(square, x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("head_width", [24, 64, 80, 88])
def test_rotary_positions_are_those_of_transformers(head_width: int) -> None:
    config = VJEPA2Config(**{**SMALL, "hidden_size": 2 * head_width, "frames_per_clip": 6})
    attention = VJEPA2RopeAttention(config, 2 * head_width, 2)
    x_BHNF = torch.randn(1, 2, 12, head_width, generator=torch.Generator().manual_seed(0))
    expected = attention.apply_rotary_embeddings(x_BHNF, attention.get_position_ids(x_BHNF[:, 0]))
    found = rotate(x_BHNF, rope_tables((3, 2, 2), head_width, torch.device("cpu")))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_bfloat16_is_close_and_may_go_by_blocks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = tokens_of(load_encoder(folder, "vjepa2"), clips())
    reduced = load_encoder(folder, "vjepa2", precision="bf16")
    plain = tokens_of(reduced, clips())
    monkeypatch.setattr("vitreous.encoders.vjepa2.attend", attend_in_blocks)
    blocked = tokens_of(reduced, clips())
    for found in (plain, blocked):
        cosine = torch.nn.functional.cosine_similarity(found.flatten(1), exact.flatten(1))
        assert (cosine > 0.999).all()


def test_videomae_gives_the_tokens_of_transformers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = VideoMAEConfig(
        hidden_size=48, num_attention_heads=2, num_hidden_layers=2, intermediate_size=96, image_size=32, num_frames=4,
        use_mean_pooling=False,
    )  # fmt: skip
    model = VideoMAEModel(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.08)
    model.save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path, "videomae")
    x = clips()
    with torch.inference_mode():
        expected = model(pixel_values=x.transpose(1, 2)).last_hidden_state
    torch.testing.assert_close(tokens_of(encoder, x), expected, rtol=1e-4, atol=1e-4)
    assert encoder.receipt.matched_share == 1
    reduced = tokens_of(load_encoder(tmp_path, "videomae", precision="bf16"), x)
    assert torch.nn.functional.cosine_similarity(reduced.flatten(1), expected.flatten(1)).min() > 0.999
    with pytest.raises(ConfigError, match="The options num_frames and image_size set another"):
        load_encoder(tmp_path, "videomae", spec_override={"frames": 8})


def random(family: str, modality: Any = "clip", **how: Any) -> Any:
    architectures = {
        "vjepa2": SMALL,
        "videomae": {
            "hidden_size": 48, "num_attention_heads": 2, "num_hidden_layers": 3, "intermediate_size": 96,
            "image_size": 32, "num_frames": 4,
        },
        "timm": TINY_VIT,
        "vit3d": {"img_size": [4, 32, 32], "patch_size": [2, 16, 16], "embed_dim": 48, "depth": 3, "num_heads": 2},
    }  # fmt: skip
    return build_random_encoder(family, architecture=architectures[family], seed=0, modality=modality, **how)


@pytest.mark.parametrize("family", ["vjepa2", "videomae", "timm"])
def test_blocks_of_a_backbone_run_apart(family: str) -> None:
    encoder = random(family, trainable=True)
    backbone: Backbone = encoder.backbone
    x = torch.randn(1, 3, *encoder.spec.size_DHW)
    with torch.no_grad():
        whole = backbone(x)
        hidden = backbone.embed(x)
        assert len(hidden) == 1
        for block in range(backbone.num_blocks):
            hidden = backbone.run_blocks(hidden, block, block + 1)
        torch.testing.assert_close(backbone.finish(hidden), whole)
    depths = {backbone.depth_of(name) for name, _ in encoder.backbone.named_parameters()}
    assert depths == set(range(backbone.num_blocks + 2))
    backbone(x).sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.backbone.parameters())


@pytest.mark.parametrize(("family", "targets"), [("vjepa2", ["query", "key", "value"]), ("videomae", ["query", "key"])])
def test_adapters_find_the_matrices_of_chosen_blocks(family: str, targets: list[str]) -> None:
    encoder = random(family, trainable=True)
    model = PixelModel(
        encoder, pooling="mean", coarse_grid=None, num_classes=2, head="linear", head_width=1, dropout=0.0, seed=0
    )
    names = resolve_targets(model, targets, [1, 2])
    assert len(names) == 2 * len(targets)
    assert all(name.rpartition(".")[2] in targets for name in names)


def test_an_image_encoder_sees_every_frame() -> None:
    by_frame = random("timm", spec_override={"frames": 3})
    images = random("timm", "image")
    x = torch.randn(2, 3, 3, 32, 32)
    with torch.inference_mode():
        found = by_frame(x)
        expected = [images(x[:, :, index : index + 1]) for index in range(3)]
    assert by_frame.grid == (3, 2, 2)
    assert by_frame.weights_hash == images.weights_hash
    torch.testing.assert_close(found.tokens_BND, torch.cat([one.tokens_BND for one in expected], dim=1))
    torch.testing.assert_close(found.cls_BD, torch.stack([one.cls_BD for one in expected]).mean(0))
    assert isinstance(by_frame.spec, ClipSpec)
    assert isinstance(images.spec, ImageSpec)


def test_a_volume_goes_through_a_video_encoder() -> None:
    encoder = random("vjepa2", "volume")
    assert encoder.spec.size_DHW == (4, 32, 32)
    assert tokens_of(encoder, clips()).shape == (2, 8, 48)


@pytest.mark.parametrize(("family", "modality"), [("vjepa2", "clip"), ("videomae", "clip"), ("timm", "clip"),
                                                  ("timm", "image"), ("vit3d", "volume")])  # fmt: skip
def test_tokens_of_an_earlier_block(family: str, modality: str) -> None:
    whole, early = random(family, modality), random(family, modality, layer=2)
    x = torch.randn(1, whole.spec.channels, *whole.spec.size_DHW)
    with torch.inference_mode():
        backbone = whole.backbone
        expected = backbone.finish(backbone.run_blocks(backbone.embed(x), 0, 2))
        torch.testing.assert_close(early.backbone(x), expected)
    assert early.backbone.num_blocks == 2
    assert early.receipt.layer == early.layer == 2
    assert early.weights_hash == whole.weights_hash
    assert not any(early.backbone.depth_of(name) > 3 for name, _ in early.backbone.named_parameters())
    with pytest.raises(ConfigError, match=r"has blocks 1…\d+; got 40"):
        random(family, modality, layer=40)


RESNET3D = {"depths": [1, 2, 1, 1], "img_size": [16, 32, 32]}


@pytest.mark.parametrize(
    ("family", "architecture", "layer", "width", "grid"),
    [
        ("timm", {"model": "test_resnet"}, 2, None, None),
        ("timm", {"model": "test_convnext"}, 3, None, None),
        ("resnet3d", RESNET3D, 1, 256, (8, 8, 8)),
        ("resnet3d", RESNET3D, 3, 512, (4, 4, 4)),
        ("litemedsam", {"num_slices": 1}, 11, 256, (1, 8, 8)),
    ],
)
def test_maps_of_an_earlier_block(
    family: str, architecture: dict[str, Any], layer: int, width: int | None, grid: Any
) -> None:
    def build(**how: Any) -> Any:
        return build_random_encoder(family, architecture=architecture, seed=0, trainable=True, **how)

    whole, early = build(), build(layer=layer)
    assert whole.backbone.num_blocks > layer == early.backbone.num_blocks
    x = torch.randn(1, whole.spec.channels, *whole.spec.size_DHW)
    with torch.no_grad():
        hidden = whole.backbone.run_blocks(whole.backbone.embed(x), 0, layer)
        tokens = early(x).tokens_BND
        expected = whole.backbone.finish(hidden)
    torch.testing.assert_close(tokens, expected)
    assert tokens.shape[1:] == (math.prod(early.grid), early.width)
    assert (width or early.width, grid or early.grid) == (early.width, early.grid)


def test_layers_that_cannot_be_taken_are_refused() -> None:
    for model, message in (("test_efficientnet", "end does not fit what block 1 gives"), ("test_vit", "has blocks")):
        with pytest.raises(ConfigError, match=message):
            build_random_encoder("timm", architecture={"model": model}, seed=0, layer=1 if "net" in model else 99)
    with pytest.raises(ConfigError, match=r"the neck fits the width of the last stage alone, whose blocks are 11…12"):
        build_random_encoder("litemedsam", architecture={}, seed=0, layer=3)
    with pytest.raises(ConfigError, match="this pixels encoder has no blocks"):
        build_random_encoder("pixels", architecture={}, seed=0, layer=1)


def test_preprocessing_is_that_of_transformers() -> None:
    from transformers.models.vjepa2.video_processing_vjepa2 import VJEPA2VideoProcessor

    frames = numbered_frames(4, 90, 120)

    class Shown:
        times_s, facts, size_HW = np.arange(4) / 25, {}, (90, 120)

        def read(self, indices: list[int]) -> dict[int, Any]:
            return {index: frames[index] for index in indices}

    spec = load_spec()
    found = finish_input(prepare_clip(Clip(Shown(), 0, 4, None, 10**7), spec), spec)
    processor = VJEPA2VideoProcessor(crop_size=64)
    video = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
    expected = processor(video, return_tensors="pt", do_sample_frames=False)["pixel_values_videos"][0]
    assert found.shape == (3, 4, 64, 64)
    # one level of 255 where the two round another way
    assert (found - expected.transpose(0, 1)).abs().max() <= 1.01 / 255 / 0.224


def load_spec() -> ClipSpec:
    encoder = build_random_encoder("vjepa2", architecture={**SMALL, "crop_size": 64}, seed=0)
    assert isinstance(encoder.spec, ClipSpec)
    return encoder.spec.model_copy(update={"fps": None, "step": 1})


@pytest.mark.slow
def test_vit_large_at_its_real_size() -> None:
    torch.manual_seed(0)
    config = VJEPA2Config(frames_per_clip=16)
    model = VJEPA2Model(config).eval()
    backbone = VJEPA2Backbone(config).eval()
    own = {f"model.{k.removeprefix('encoder.')}": v for k, v in model.state_dict().items() if k.startswith("encoder.")}
    backbone.load_state_dict(own)
    assert sum(parameter.numel() for parameter in backbone.parameters()) == pytest.approx(304e6, rel=0.01)
    x = torch.randn(1, 3, 16, 256, 256)
    with torch.inference_mode():
        expected = model(pixel_values_videos=x.transpose(1, 2), skip_predictor=True).last_hidden_state
        found = backbone(x)
    assert found.shape == (1, 2048, 1024)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
