"""RETFound in the layouts it was published in; oracles: timm's VisionTransformer, its own conversion of DINOv2."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vitreous.core.errors import CheckpointError, ConfigError
from vitreous.core.input_spec import ImageSpec
from vitreous.core.streams import torch_stream
from vitreous.core.torchvision_schema import declare_torchvision_schemas
from vitreous.encoders.catalog import build_random_encoder, load_encoder

declare_torchvision_schemas()
import timm  # noqa: E402
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn  # noqa: E402

Weights = dict[str, torch.Tensor]


def lively(model: nn.Module) -> Any:
    """Every weight drawn, so that each has a visible part in the output."""
    generator = torch_stream(0, "weights")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def transformer(patch: int = 16, side: int = 4, **settings: Any) -> Any:
    """A small VisionTransformer as RETFound's code builds it."""
    return lively(
        VisionTransformer(
            img_size=patch * side,
            patch_size=patch,
            embed_dim=128,
            depth=2,
            num_heads=2,
            num_classes=0,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            **settings,
        )
    )


def mae_file(path: Path, **extra: torch.Tensor) -> Path:
    decoder = {
        "mask_token": torch.zeros(1, 1, 32),
        "decoder_pos_embed": torch.zeros(1, 17, 32),
        "decoder_embed.weight": torch.zeros(32, 128),
        "decoder_blocks.0.norm1.weight": torch.zeros(32),
        "decoder_pred.bias": torch.zeros(768),
    }
    payload = {"model": transformer().state_dict() | decoder | extra, "optimizer": {"state": {}}, "epoch": 799}
    torch.save(payload, path)
    return path


def images(size: int) -> torch.Tensor:
    return torch.randn(2, 3, 1, size, size, generator=torch_stream(1, "x"))


def test_the_masked_autoencoder(tmp_path: Path) -> None:
    encoder = load_encoder(mae_file(tmp_path / "a.pth"), "retfound")
    x_BCDHW = images(64)
    tokens = encoder(x_BCDHW)
    with torch.no_grad():
        expected = transformer().forward_features(x_BCDHW[:, :, 0])
    assert (tokens.grid, encoder.width, encoder.modality) == ((1, 4, 4), 128, "image")
    assert torch.allclose(tokens.tokens_BND, expected[:, 1:], atol=1e-5)
    assert tokens.cls_BD is not None
    assert torch.allclose(tokens.cls_BD, expected[:, 0], atol=1e-5)
    assert encoder.spec == ImageSpec(size=(64, 64), resize="shorter_side", crop_pct=0.875, interpolation="bicubic")
    receipt = encoder.receipt
    assert (receipt.container, receipt.matched_share, receipt.positions) == ("model", 1.0, None)
    assert receipt.facts == {"epoch": 799}
    assert len(receipt.ignored_by_rule.pop("decoder and mask token")) == 5
    assert receipt.ignored_by_rule == {"training state": ("optimizer",)}
    assert receipt.inferred["variant"] == "mae"
    assert receipt.inferred["sources"]["variant"] == "neither LayerScale nor registers, patch 16"


def test_positions_are_interpolated_as_timm_does(tmp_path: Path) -> None:
    path = mae_file(tmp_path / "a.pth")
    encoder = load_encoder(path, "retfound", spec_override={"size": [96, 64]})
    x_BCDHW = torch.randn(2, 3, 1, 96, 64, generator=torch_stream(1, "x"))
    reference = transformer()
    positions_1DHW = reference.pos_embed[:, 1:].reshape(1, 4, 4, 128).permute(0, 3, 1, 2)
    wider = F.interpolate(positions_1DHW, (6, 4), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    oracle = VisionTransformer(
        img_size=(96, 64),
        patch_size=16,
        embed_dim=128,
        depth=2,
        num_heads=2,
        num_classes=0,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    ).eval()
    oracle.load_state_dict(reference.state_dict() | {"pos_embed": torch.cat([reference.pos_embed[:, :1], wider], 1)})
    with torch.no_grad():
        expected = oracle.forward_features(x_BCDHW[:, :, 0])
    tokens = encoder(x_BCDHW)
    assert tokens.grid == (1, 6, 4)
    assert torch.allclose(tokens.tokens_BND, expected[:, 1:], atol=1e-5)
    positions = "pos_embed interpolated from 4×4 to 6×4 tokens for images of 96×64 pixels"
    assert encoder.receipt.positions == positions
    assert encoder.receipt.spec_override is not None
    assert encoder.weights_hash == load_encoder(path, "retfound").weights_hash


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("chunked", [False, True])
def test_the_teacher_of_dinov2(tmp_path: Path, wrapped: bool, chunked: bool) -> None:
    reference = transformer(patch=14, init_values=1.0)
    stored = {}
    for name, tensor in reference.state_dict().items():
        index = name.split(".")[1] if name.startswith("blocks.") else ""
        stored[f"backbone.{name.replace('blocks.', f'blocks.{index}.') if chunked else name}"] = tensor
    stored |= {"backbone.mask_token": torch.zeros(1, 128), "dino_head.mlp.0.weight": torch.zeros(8, 128)}
    stored |= {"ibot_head.last_layer.weight_v": torch.zeros(8, 8)}
    if wrapped:  # the whole training module, by prefixes
        payload: Any = {"model": {f"teacher.{name}": tensor for name, tensor in stored.items()}}
        payload["model"] |= {f"student.{name}": tensor for name, tensor in stored.items()}
        payload["model"]["dino_loss.center"] = torch.zeros(1, 8)
    else:
        payload = {"teacher": stored, "student": stored}
    torch.save(payload, tmp_path / "a.pth")
    encoder = load_encoder(tmp_path / "a.pth", "retfound")
    x_BCDHW = images(56)
    with torch.no_grad():
        expected = reference.forward_features(x_BCDHW[:, :, 0])
    assert torch.allclose(encoder(x_BCDHW).tokens_BND, expected[:, 1:], atol=1e-5)
    assert encoder.receipt.inferred["variant"] == "dinov2"
    assert ("blocks in chunks" in encoder.receipt.inferred["sources"]["variant"]) == chunked
    ignored = encoder.receipt.ignored_by_rule
    assert "decoder and mask token" in ignored
    assert ("the other network (student)" in ignored) == wrapped
    assert ("student" in ignored.get("training state", ())) == (not wrapped)


def test_registers_of_dinov2_are_brought_to_timms_layout(tmp_path: Path) -> None:
    """The oracle is timm's own conversion of the original files."""
    reference = timm.create_model("vit_small_patch14_reg4_dinov2", img_size=56, num_classes=0, depth=2)
    stored = {name: tensor for name, tensor in lively(reference).state_dict().items() if name != "reg_token"}
    stored["register_tokens"] = torch.randn(1, 4, 384, generator=torch_stream(2, "registers"))
    stored["pos_embed"] = torch.randn(1, 17, 384, generator=torch_stream(2, "positions"))
    stored["mask_token"] = torch.zeros(1, 384)
    torch.save({"teacher": stored}, tmp_path / "a.pth")
    reference.load_state_dict(checkpoint_filter_fn(dict(stored), reference), strict=True)
    encoder = load_encoder(tmp_path / "a.pth", "retfound")
    x_BCDHW = images(56)
    with torch.no_grad():
        expected = reference.eval().forward_features(x_BCDHW[:, :, 0])
    tokens = encoder(x_BCDHW)
    assert torch.allclose(tokens.tokens_BND, expected[:, 5:], atol=1e-5)
    assert torch.allclose(tokens.cls_BD, expected[:, 0], atol=1e-5)
    assert encoder.receipt.inferred["variant"] == "dinov2"
    assert encoder.num_prefix_tokens == 5


def test_positions_of_518_pixels_are_brought_to_224(tmp_path: Path) -> None:
    state = transformer(patch=14, side=37, init_values=1.0).state_dict()
    torch.save({"teacher": state}, tmp_path / "a.pth")
    encoder = load_encoder(tmp_path / "a.pth", "retfound")
    assert (encoder.spec.size, encoder.grid) == ((224, 224), (1, 16, 16))
    assert encoder.receipt.spec_override is None
    assert str(encoder.receipt.positions).startswith("pos_embed interpolated from 37×37 to 16×16 tokens")


def test_green_is_timms_dinov2_with_registers(tmp_path: Path) -> None:
    reference = lively(timm.create_model("vit_small_patch14_reg4_dinov2", img_size=56, num_classes=0, depth=2))
    torch.save(reference.state_dict(), tmp_path / "green.pth")
    encoder = load_encoder(tmp_path / "green.pth", "retfound")
    x_BCDHW = images(56)
    with torch.no_grad():
        expected = reference.forward_features(x_BCDHW[:, :, 0])
    assert torch.allclose(encoder(x_BCDHW).tokens_BND, expected[:, 5:], atol=1e-5)
    half = (0.5, 0.5, 0.5)
    assert encoder.spec == ImageSpec(size=(56, 56), resize="squash", interpolation="bilinear", mean=half, std=half)
    assert encoder.receipt.inferred["sources"]["variant"] == "4 registers in timm's layout (reg_token), patch 14"


def test_heads_of_fine_tuned_files_are_left_out(tmp_path: Path) -> None:
    head = {"head.weight": torch.zeros(5, 128), "head.bias": torch.zeros(5)}
    with_class_token = load_encoder(mae_file(tmp_path / "a.pth", **head), "retfound")
    assert with_class_token.receipt.ignored_by_rule["heads"] == ("head.bias", "head.weight")
    pooled = {name: tensor for name, tensor in transformer().state_dict().items() if not name.startswith("norm.")}
    pooled |= head | {"fc_norm.weight": torch.ones(128), "fc_norm.bias": torch.zeros(128)}
    torch.save({"model": pooled}, tmp_path / "b.pth")
    encoder = load_encoder(tmp_path / "b.pth", "retfound")
    assert encoder.architecture["final_norm"] is False
    assert "global pooling" in encoder.receipt.inferred["sources"]["final_norm"]
    plain = transformer()
    plain.norm = nn.Identity()
    x_BCDHW = images(64)
    with torch.no_grad():
        assert torch.allclose(encoder(x_BCDHW).tokens_BND, plain.forward_features(x_BCDHW[:, :, 0])[:, 1:], atol=1e-5)


@pytest.mark.parametrize(
    ("edit", "options", "message"),
    [
        (lambda w: w.pop("norm.bias"), {}, "29 of 30 encoder tensors matched.*1 missing: norm.bias"),
        (lambda w: w.update(extra=torch.zeros(1)), {}, "1 unexpected: extra"),
        (lambda w: w.pop("cls_token"), {}, "cls_token is missing"),
        (lambda w: w.update(pos_embed=torch.zeros(1, 19, 128)), {}, "18 tokens besides the class token.*no square"),
        (
            lambda w: w.update(pos_embed=torch.zeros(1, 19, 128)),
            {"img_size": [64, 64]},
            "makes 4×4 tokens; pos_embed has 18",
        ),
        (lambda w: w.update({"patch_embed.proj.weight": torch.zeros(128, 3, 4, 16, 16)}), {}, "embedding of images"),
        (lambda w: [w.pop(name) for name in list(w) if name.startswith("blocks.")], {}, "no blocks.N found"),
        (lambda w: None, {"num_heads": 3}, "option num_heads is 3, which does not divide the width 128"),
        (lambda w: w["norm.bias"].fill_(float("nan")), {}, "NaN or infinity: norm.bias"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    tmp_path: Path, edit: Callable[[Weights], Any], options: dict[str, Any], message: str
) -> None:
    state = {name: tensor.clone() for name, tensor in transformer().state_dict().items()}
    edit(state)
    torch.save({"model": state}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=message):
        load_encoder(tmp_path / "a.pth", "retfound", **options)


def test_files_of_other_families_are_refused(tmp_path: Path) -> None:
    torch.save(timm.create_model("resnet18", num_classes=0).state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(CheckpointError, match=r"no name ends in patch_embed.proj.weight.*Is this another family"):
        load_encoder(tmp_path / "resnet.pth", "retfound")
    with pytest.raises(CheckpointError, match="this is no 3D encoder"):
        load_encoder(mae_file(tmp_path / "a.pth"), "vit3d")


def test_inputs_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = mae_file(tmp_path / "a.pth")
    with pytest.raises(ConfigError, match=r"patch of 16×16 pixels does not divide 100×64.* 96×64 and 112×64"):
        load_encoder(path, "retfound", spec_override={"size": [100, 64]})
    with pytest.raises(ConfigError, match="family retfound takes images and clips, no volumes"):
        load_encoder(path, "retfound", modality="volume")
    with pytest.raises(ConfigError, match="family retfound has no option model; it has img_size, num_heads"):
        load_encoder(path, "retfound", model="vit_tiny_patch16_224")


def test_bfloat16_is_near_float32(tmp_path: Path) -> None:
    path = mae_file(tmp_path / "a.pth")
    full, half = (load_encoder(path, "retfound", precision=name)(images(64)).tokens_BND for name in ("fp32", "bf16"))
    assert half.dtype == torch.float32
    assert 0 < (full - half).norm() / full.norm() < 0.02


def test_random_weights_follow_the_seed() -> None:
    shape = {"img_size": [64, 64], "embed_dim": 128, "num_heads": 2, "depth": 2}
    first, again, other = (build_random_encoder("retfound", architecture=shape, seed=seed) for seed in (0, 0, 1))
    assert first.weights_hash == again.weights_hash != other.weights_hash
    assert torch.equal(first(images(64)).tokens_BND, again(images(64)).tokens_BND)
    with pytest.raises(ConfigError, match="img_size must be a multiple of patch_size"):
        build_random_encoder("retfound", architecture=shape | {"img_size": [60, 64]}, seed=0)


@pytest.mark.slow
def test_the_real_size(tmp_path: Path) -> None:
    with torch.device("meta"):
        published = VisionTransformer(
            img_size=224, patch_size=16, embed_dim=1024, depth=24, num_heads=16, num_classes=0
        )
    state = {name: torch.zeros(tensor.shape, dtype=torch.float16) for name, tensor in published.state_dict().items()}
    torch.save({"model": state | {"mask_token": torch.zeros(1, 1, 512)}}, tmp_path / "a.pth")
    encoder = load_encoder(tmp_path / "a.pth", "retfound")
    assert encoder.receipt.parameters == 303_301_632
    assert encoder.spec.size == (224, 224)
    assert encoder(torch.zeros(1, 3, 1, 224, 224)).tokens_BND.shape == (1, 196, 1024)
