"""Every family trains in part, starts from its prefix, takes adapters and comes back from disk.

Oracles: the whole pass, the model that was saved, timm's own model under PEFT's own loader.
"""

import pytest
import torch
from pixel_models import adapt, fill
from torch.nn import functional as F

from vitreous.core.errors import UserError
from vitreous.core.input_spec import ClipSpec, InputSpec, modality_of
from vitreous.encoders.catalog import build_random_encoder
from vitreous.recipes.pixel_artefacts import (
    build_pixel_model,
    pixel_model_config,
    restore_pixel_model,
    save_pixel_model,
)
from vitreous.recipes.pixel_model import PixelModel
from vitreous.recipes.trainable import parameter_groups, set_trainable

RESNET3D = {"depths": [1, 1, 1, 1], "img_size": [8, 32, 32]}
VJEPA2 = {"hidden_size": 48, "num_attention_heads": 2, "num_hidden_layers": 3, "crop_size": 32, "frames_per_clip": 4}
VIDEOMAE = {"hidden_size": 48, "num_attention_heads": 2, "num_hidden_layers": 3, "image_size": 32, "num_frames": 4}
# family, architecture, input where it is not the family's, LoRA target
FAMILIES = {
    "timm transformer": ("timm", {"model": "test_vit"}, None, "qkv"),
    "timm residual": ("timm", {"model": "test_resnet"}, None, "conv2"),
    "timm efficient": ("timm", {"model": "test_efficientnet"}, None, "conv_pw"),
    "timm convnext": ("timm", {"model": "test_convnext"}, None, "mlp"),
    "resnet3d": ("resnet3d", RESNET3D, None, "conv1"),
    "vjepa2": ("vjepa2", VJEPA2, None, "query"),
    "videomae": ("videomae", VIDEOMAE, None, "value"),
    "timm on frames": ("timm", {"model": "test_vit"}, ClipSpec(size=(160, 160), frames=2, step=1), "qkv"),
    "litemedsam": ("litemedsam", {"num_slices": 1}, InputSpec(size=(1, 32, 32), channels=3), "qkv"),
}


def build(family: str, seed: int = 0) -> PixelModel:
    name, architecture, spec, _ = FAMILIES[family]
    modality = None if spec is None else modality_of(spec)
    encoder = build_random_encoder(
        name, architecture=architecture, seed=seed, spec=spec, modality=modality, trainable=True
    )
    for parameter in encoder.parameters():
        if not parameter.any() and parameter.ndim == 1:
            # untrained residual branches end in a norm of weight 0, behind which nothing has a gradient
            torch.nn.init.ones_(parameter)
    return PixelModel(
        encoder, pooling="mean", coarse_grid=None, num_classes=3, head="linear", head_width=1, dropout=0.0, seed=0
    )


def inputs(model: PixelModel, seed: int = 0) -> torch.Tensor:
    spec = model.encoder.spec
    return torch.randn(3, spec.channels, *spec.size_DHW, generator=torch.Generator().manual_seed(seed))


def train_once(model: PixelModel) -> None:
    groups = parameter_groups(model, lr_head=0.01, lr_encoder=0.01, layer_decay=0.9, weight_decay=0.1)
    optimiser = torch.optim.AdamW(groups)
    F.cross_entropy(model.train()(inputs(model)), torch.tensor([0, 1, 2])).backward()
    optimiser.step()
    model.eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_parts_stay_and_the_trained_come_back(tmp_path, family):
    model = build(family)
    set_trainable(model, 1)
    before = {name: tensor.clone() for name, tensor in model.encoder.backbone.state_dict().items()}
    train_once(model)
    blocks = model.backbone.num_blocks
    assert model.first_trainable_block == blocks - 1 > 0
    moved = {
        name for name, tensor in model.encoder.backbone.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert moved
    assert all(model.backbone.depth_of(name) >= blocks for name in moved)
    with torch.no_grad():
        expected_BC = model(inputs(model, seed=1))
        for block in {0, 1, blocks - 1}:
            hidden = model.run_prefix(inputs(model, seed=1), block)
            assert torch.equal(model.run_suffix(hidden, block), expected_BC)
    save_pixel_model(model, tmp_path)
    again = build_pixel_model(pixel_model_config(model), build(family).encoder)
    restore_pixel_model(again, tmp_path)
    with torch.no_grad():
        assert torch.equal(again(inputs(model, seed=1)), expected_BC)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_change_the_outcome_and_come_back(tmp_path, family):
    model = build(family).eval()
    target = FAMILIES[family][3]
    with torch.no_grad():
        bare_BC = model(inputs(model))
        adapt(model, targets=(target,), rank=2)
        torch.testing.assert_close(model(inputs(model)), bare_BC, rtol=1e-5, atol=1e-6)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train_once(model)
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    # A has no gradient in the first step, since B is 0: decay alone moves it
    assert moved == {name for name in before if "lora_" in name or name.startswith("head.")}
    fill(model)
    save_pixel_model(model, tmp_path)
    again = build_pixel_model(pixel_model_config(model), build(family).encoder)
    restore_pixel_model(again, tmp_path)
    with torch.no_grad():
        assert torch.equal(again(inputs(model)), model(inputs(model)))
        assert not torch.equal(again(inputs(model)), bare_BC)


def test_the_adapters_of_a_timm_model_fit_timms_own(tmp_path):
    import peft
    import timm

    model = fill(adapt(build("timm transformer"), rank=2)).eval()
    save_pixel_model(model, tmp_path)
    own = timm.create_model("test_vit", pretrained=False, num_classes=0, global_pool="").eval()
    weights = {
        name.removeprefix("model."): tensor
        for name, tensor in build("timm transformer").encoder.backbone.state_dict().items()
    }
    own.load_state_dict(weights, strict=False)
    loaded = peft.PeftModel.from_pretrained(own, tmp_path / "adapter").eval()
    x_BCDHW = inputs(model)
    with torch.no_grad():
        tokens_BND = loaded.base_model.model.forward_features(x_BCDHW[:, :, 0])
        assert torch.equal(tokens_BND, model.encoder.backbone(x_BCDHW))


@pytest.mark.slow
def test_a_beit_whose_attention_reads_its_matrix_itself_is_refused():
    encoder = build_random_encoder(
        "timm", architecture={"model": "beit_base_patch16_224", "img_size": [32, 32]}, seed=0, trainable=True
    )
    model = PixelModel(
        encoder, pooling="cls", coarse_grid=None, num_classes=3, head="linear", head_width=1, dropout=0.0, seed=0
    )
    with pytest.raises(UserError, match=r"blocks\.0\.attn\.qkv and 11 more would have no effect: this timm encoder"):
        adapt(model, targets=("qkv",))
    adapt(model, targets=("proj",), layers=(11,))
