"""Models of timm by name: files in timm's layout, its own source, the input that it states; oracle: timm itself."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch

from vitreous.core.errors import CheckpointError, ConfigError, StorageError
from vitreous.core.input_spec import ImageSpec, InputSpec
from vitreous.core.streams import torch_stream
from vitreous.core.torchvision_schema import declare_torchvision_schemas
from vitreous.encoders.catalog import build_random_encoder, fetch_encoder, load_encoder
from vitreous.encoders.family_timm import TimmArchitecture, timm_spec

declare_torchvision_schemas()
import timm  # noqa: E402

VIT = "vit_tiny_patch16_224"
SHARED = Path(os.environ.get("VITREOUS_SHARED_DATA", Path(__file__).parents[3] / "shared/data"))
PUBLISHED = SHARED / "weights/lite_medsam.pth"
GREY = {"channels": 1, "mean": [0.5], "std": [0.5]}
VOLUME = InputSpec(size=(8, 64, 64), channels=3)


def whole(model: str, **settings: Any) -> Any:
    """A model with its classifier, weights that do not follow from a seed used elsewhere."""
    torch.manual_seed(7)
    return timm.create_model(model, **settings).eval()


def saved(path: Path, payload: Any) -> Path:
    torch.save(payload, path)
    return path


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: w,
        lambda w: {"state_dict": {f"module.{name}": tensor for name, tensor in w.items()}, "epoch": 3},
        lambda w: {"model": {f"backbone.{name}": tensor for name, tensor in w.items()}},
        lambda w: {"state_dict": {f"model.{name}": tensor for name, tensor in w.items()}},
    ],
)
def test_layouts_of_files(tmp_path: Path, wrap: Callable[[Any], Any]) -> None:
    model = whole("resnet18", num_classes=5)
    encoder = load_encoder(
        saved(tmp_path / "a.pth", wrap(model.state_dict())), "timm", model="resnet18", spec_override={"size": [64, 96]}
    )
    x_BCDHW = torch.rand(2, 3, 1, 64, 96, generator=torch_stream(1, "x"))
    with torch.no_grad():
        expected = model.forward_features(x_BCDHW[:, :, 0]).flatten(2).transpose(1, 2)
        assert torch.allclose(encoder(x_BCDHW).tokens_BND, expected, atol=1e-6)
    assert (encoder.grid, encoder.width, encoder.modality) == ((1, 2, 3), 512, "image")
    receipt = encoder.receipt
    assert (receipt.matched_share, receipt.tensors_total, receipt.modality) == (1.0, 120, "image")
    assert receipt.ignored_by_rule == {"classifier and pooling": ("fc.bias", "fc.weight")}


def test_the_size_of_positions_is_read_from_the_file(tmp_path: Path) -> None:
    model = whole(VIT, img_size=64)
    path = saved(tmp_path / "a.pth", model.state_dict())
    encoder = load_encoder(path, "timm", model=VIT)
    assert (encoder.spec.size, encoder.grid) == ((64, 64), (1, 4, 4))
    assert encoder.receipt.inferred["sources"]["img_size"] == "number of positions, square"
    x_BCDHW = torch.rand(1, 3, 1, 64, 64, generator=torch_stream(1, "x"))
    with torch.no_grad():
        expected = model.forward_features(x_BCDHW[:, :, 0])
        assert torch.allclose(encoder(x_BCDHW).tokens_BND, expected[:, 1:], atol=1e-5)
        wider = load_encoder(path, "timm", model=VIT, spec_override={"size": [96, 80]})
        model.set_input_size((96, 80))  # timm's own interpolation
        x_BCDHW = torch.rand(1, 3, 1, 96, 80, generator=torch_stream(1, "x"))
        assert torch.allclose(wider(x_BCDHW).cls_BD, model.forward_features(x_BCDHW[:, :, 0])[:, 0], atol=1e-5)
    positions = "pos_embed interpolated from 4×4 to 6×5 tokens for images of 96×80 pixels"
    assert wider.receipt.positions == positions
    assert wider.weights_hash == encoder.weights_hash


@pytest.mark.slow
def test_biases_of_windows_are_interpolated_as_timm_does() -> None:
    """Swin: windows, their biases and the masks between them; timm's own resizing is the oracle."""
    architecture = {"model": "swin_tiny_patch4_window7_224", "img_size": [56, 56]}
    encoder = build_random_encoder("timm", architecture=architecture, seed=0, spec_override={"size": [112, 84]})
    assert encoder.grid == (1, 4, 3)
    assert str(encoder.receipt.positions).startswith("layers.0.blocks.0.attn.relative_position_bias_table and 11 more")
    native: Any = build_random_encoder("timm", architecture=architecture, seed=0, trainable=True).backbone
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        native.model.set_input_size((112, 84))
    x_BCDHW = torch.rand(1, 3, 1, 112, 84, generator=torch_stream(1, "x"))
    with torch.no_grad():
        expected = native.model.forward_features(x_BCDHW[:, :, 0]).flatten(1, 2)
    assert torch.allclose(encoder(x_BCDHW).tokens_BND, expected, atol=1e-5)


def test_the_input_is_the_one_timm_states() -> None:
    def spec(model: str) -> ImageSpec:
        return timm_spec(TimmArchitecture(model=model))

    imagenet = ImageSpec(size=(224, 224), resize="shorter_side", crop_pct=0.95)
    assert spec("resnet18.a1_in1k") == imagenet
    assert spec("resnet18.tv_in1k") == imagenet.model_copy(update={"crop_pct": 0.875, "interpolation": "bilinear"})
    assert spec("convnext_tiny.fb_in22k_ft_in1k_384") == ImageSpec(size=(384, 384), resize="squash")
    augreg = spec("vit_small_patch16_224.augreg_in21k_ft_in1k")
    assert (augreg.mean, augreg.std, augreg.crop_pct) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 0.9)


@pytest.mark.parametrize(
    ("edit", "options", "message"),
    [
        (lambda w: w.pop("layer1.0.bn1.bias"), {}, "119 of 120 encoder tensors matched.*missing: layer1.0.bn1.bias"),
        (lambda w: w.update(extra=torch.zeros(1)), {}, "1 unexpected: extra"),
        (lambda w: None, {"model": "resnet34"}, "120 of 216 encoder tensors matched"),
        (lambda w: None, {"model": VIT}, "no timm encoder found; no name ends in cls_token.*another family"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    tmp_path: Path, edit: Callable[[Any], Any], options: dict[str, Any], message: str
) -> None:
    state = whole("resnet18").state_dict()
    edit(state)
    with pytest.raises(CheckpointError, match=message):
        load_encoder(saved(tmp_path / "a.pth", state), "timm", **({"model": "resnet18"} | options))


@pytest.mark.parametrize(
    ("options", "settings", "message"),
    [
        ({}, {}, "model: Field required"),
        ({"model": "resnet_18"}, {}, "timm has no model 'resnet_18'; near are .*resnet18"),
        ({"model": "resnet18.nonsense"}, {}, "timm has no weights 'resnet18.nonsense'; it has resnet18.a1_in1k"),
        ({"model": "resnet18", "img_size": [64, 64]}, {}, "resnet18 cannot be built for"),
        ({"model": "resnet18"}, {"modality": "volume"}, "family timm takes images and clips, no volumes"),
        ({"model": "resnet18"}, {"spec_override": {"size": [16, 64]}}, "32 pixels a side at least; got 16×64"),
        ({"model": "resnet18"}, {"spec_override": {"size": [8, 64, 64]}}, "size: "),
        (
            {"model": "resnet18"},
            {"spec_override": {"channels": 1, "mean": [0.5], "std": [0.5]}},
            "weights take 3; got 1",
        ),
        (
            {"model": "resnet18"},
            {"spec": InputSpec(size=(8, 64, 64), channels=3)},
            "described by ImageSpec; got InputSpec",
        ),
        (
            {"model": VIT},
            {"spec_override": {"size": [230, 224]}},
            "16×16 pixels does not divide 230×224; .* 224×224 and 240×224",
        ),
        (
            {"model": "mixer_s32_224"},
            {"spec_override": {"size": [256, 256]}},
            "takes images of 224×224 pixels; got 256×256",
        ),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_random_encoder("timm", architecture=options, seed=0, **settings)


def test_random_weights_follow_the_seed_alone() -> None:
    torch.manual_seed(0)
    first = build_random_encoder("timm", architecture={"model": "resnet18"}, seed=0)
    state = torch.get_rng_state()
    again = build_random_encoder("timm", architecture={"model": "resnet18"}, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.weights_hash == again.weights_hash
    assert first.weights_hash != build_random_encoder("timm", architecture={"model": "resnet18"}, seed=1).weights_hash


def test_the_hub_is_held_to_the_same_rules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """timm's loader, reading a file where the hub would be."""
    from timm.models import _builder

    model = whole("resnet18")
    monkeypatch.setattr(_builder, "load_state_dict_from_hf", lambda *_, **__: dict(model.state_dict()))
    fetched = fetch_encoder("resnet18.a1_in1k", "timm")
    by_file = load_encoder(saved(tmp_path / "a.pth", model.state_dict()), "timm", model="resnet18.a1_in1k")
    assert fetched.weights_hash == by_file.weights_hash
    assert fetched.receipt.origin == "hub resnet18.a1_in1k"
    assert (fetched.receipt.path, fetched.receipt.file_sha256) == ("hf-hub:timm/resnet18.a1_in1k", None)
    assert fetched.receipt.ignored_by_rule == {"classifier and pooling": ("fc.bias", "fc.weight")}


def test_the_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(StorageError, match=r"hf-hub:timm/resnet18.a1_in1k: the weights .* could not be fetched"):
        fetch_encoder("resnet18.a1_in1k", "timm")
    with pytest.raises(ConfigError, match=r"timm has no weights 'resnet18.nonsense'"):
        fetch_encoder("resnet18.nonsense", "timm")
    with pytest.raises(
        ConfigError, match="family vit3d has no source of published weights; timm, vjepa2, videomae have"
    ):
        fetch_encoder("resnet18", "vit3d")
    with pytest.raises(ConfigError, match="`hub` names the model; leave the option model out"):
        fetch_encoder("resnet18", "timm", model="resnet18")


def test_litemedsam_takes_images() -> None:
    encoder = build_random_encoder("litemedsam", architecture={}, seed=0, modality="image")
    zeros, ones = (0.0,) * 3, (1.0,) * 3
    expected = ImageSpec(size=(256, 256), resize="pad", interpolation="bilinear", mean=zeros, std=ones)
    assert (encoder.spec, encoder.grid, encoder.architecture["num_slices"]) == (expected, (1, 8, 8), 1)
    with pytest.raises(ConfigError, match="the option num_slices has no effect on images"):
        build_random_encoder("litemedsam", architecture={}, seed=0, modality="image", num_slices=4)
    with pytest.raises(ConfigError, match="disagree"):
        build_random_encoder("litemedsam", architecture={"num_slices": 4}, seed=0, modality="image")


@pytest.mark.real
@pytest.mark.skipif(not PUBLISHED.is_file(), reason=f"no real weights at {PUBLISHED}")
def test_the_published_litemedsam_on_an_image() -> None:
    encoder = load_encoder(PUBLISHED, "litemedsam", modality="image")
    assert (encoder.receipt.matched_share, encoder.receipt.modality) == (1.0, "image")
    x_BCDHW = torch.rand(1, 3, 1, 256, 256, generator=torch_stream(0, "x"))
    volume = load_encoder(PUBLISHED, "litemedsam", num_slices=1)
    with torch.inference_mode():
        assert torch.equal(encoder(x_BCDHW).tokens_BND, volume(x_BCDHW).tokens_BND)
