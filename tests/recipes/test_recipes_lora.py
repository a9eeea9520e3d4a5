"""Low-rank adapters: which modules get them, what trains, merging.

Oracles: the outcome without adapters, W + scale · B A worked out by hand, closed forms of counts.
"""

import pytest
import torch
from pixel_models import DEPTH, ConvBlock, adapt, build, conv_encoder, fill, images, train_steps, vit_encoder
from torch import nn
from torch.nn import functional as F

from vitreous.core.errors import UserError
from vitreous.core.input_spec import ImageSpec
from vitreous.encoders.encoder import Encoder
from vitreous.encoders.vit3d import ViT3D
from vitreous.recipes.lora import adapter_tensors, merge_adapters, resolve_targets
from vitreous.recipes.pixel_model import PixelModel
from vitreous.recipes.trainable import count_parameters, parameter_groups, set_trainable


@pytest.mark.parametrize("dora", [False, True])
def test_first_outcome_is_that_of_the_encoder_alone(dora):
    model = build().eval()
    expected_BC = model(images())
    adapt(model, dora=dora, targets=("qkv", "proj", "mlp"))
    tolerance = 1e-6 if dora else 0.0  # DoRA divides each row by its length and multiplies it again
    torch.testing.assert_close(model(images()), expected_BC, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("rslora", "scale"), [(False, 6.0 / 4), (True, 6.0 / 2)])
def test_an_adapter_adds_its_low_rank_product(rslora, scale):
    model = fill(adapt(build(), rank=4, rslora=rslora)).eval()
    by_hand = build().eval()
    tensors = adapter_tensors(model)
    with torch.no_grad():
        for index, block in enumerate(by_hand.encoder.backbone.blocks):
            name = f"base_model.model.blocks.{index}.attn.qkv"
            block.attn.qkv.weight += scale * tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
    assert (model(images()) - build().eval()(images())).abs().max() > 1e-4
    torch.testing.assert_close(model(images()), by_hand(images()), rtol=0, atol=2e-6)


@pytest.mark.parametrize("targets", [("qkv",), ("qkv", "proj", "mlp")])
@pytest.mark.parametrize("dora", [False, True])
def test_merging_keeps_the_outcome_and_leaves_no_adapter(targets, dora):
    model = fill(adapt(build(), targets=targets, dora=dora)).eval()
    names_before = set(build().state_dict())
    expected_BC = model(images())
    merge_adapters(model)
    torch.testing.assert_close(model(images()), expected_BC, rtol=0, atol=2e-6)
    assert set(model.state_dict()) == names_before
    assert not [module for module in model.modules() if type(module).__module__.startswith("peft")]
    assert not hasattr(model.encoder.backbone, "peft_config")
    assert model.adapters is None
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        "head.output.weight",
        "head.output.bias",
    ]
    with pytest.raises(UserError, match="no adapters to merge"):
        merge_adapters(model)
    adapt(model)  # and anew


def test_adapters_and_head_move_and_nothing_else():
    model = adapt(build(), targets=("qkv", "mlp"), layers=(1,), dropout=0.2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train_steps(model, weight_decay=0.1)
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if "lora_" in name or name.startswith("head.")}
    assert {name.split(".")[3] for name in moved if "lora_" in name} == {"1"}


def test_frozen_batch_norm_and_dropout_beside_adapters_stay_in_eval_mode():
    model = adapt(build("conv"), targets=("conv",), layers=(1, 2), dropout=0.2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train_steps(model, "conv")
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if "lora_" in name or name.startswith("head.")}
    training = {name for name, module in model.encoder.backbone.named_modules() if module.training}
    assert {name for name in training if name.endswith((".bn", ".drop", "base_layer"))} == set()
    assert "blocks.1.conv.lora_dropout.default" in training
    assert "last_drop" not in training


def test_dropout_of_adapters_is_drawn_in_training_alone():
    model = fill(adapt(build(), dropout=0.5)).train()
    torch.manual_seed(0)
    first = model(images())
    assert not torch.equal(model(images()), first)
    torch.manual_seed(0)
    assert torch.equal(model(images()), first)  # from the global generator alone
    model.eval()
    assert torch.equal(model(images()), model(images()))


def test_first_weights_depend_on_seed_and_module_alone():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = adapter_tensors(adapt(build()))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    more = adapter_tensors(adapt(build(), targets=("proj", "qkv"), layers=(2, 0)))
    for name in first.keys() & more.keys():
        assert torch.equal(first[name], more[name])
    assert len(first.keys() & more.keys()) == 4
    other = adapter_tensors(adapt(build(), seed=8))
    name = "base_model.model.blocks.0.attn.qkv.lora_A.weight"
    assert not torch.equal(first[name], other[name])
    assert first[name].abs().max() <= 12**-0.5  # PEFT's law: uniform within 1/√width
    assert first[name].abs().max() > 0.7 * 12**-0.5


def test_the_pass_starts_at_the_first_block_that_has_adapters():
    model = fill(adapt(build(), layers=(1,))).eval()
    assert model.first_trainable_block == 1
    hidden = model.run_prefix(images(), 1)
    assert torch.equal(model.run_suffix(hidden, 1), model(images()))
    groups = parameter_groups(model, lr_head=1.0, lr_encoder=0.1, layer_decay=0.5, weight_decay=0.05)
    assert [(g["name"], g["lr"], g["weight_decay"]) for g in groups if "block" in g["name"]] == [
        ("encoder block 1", pytest.approx(0.1 * 0.5 ** (DEPTH - 1)), 0.05)
    ]
    assert len(groups[0]["params"]) == 2
    set_trainable(model, 0)  # adapters train whatever is unfrozen
    assert model.first_trainable_block == 1


def test_gradient_checkpointing_reaches_every_adapter():
    grads = []
    for gradient_checkpointing in (False, True):
        model = fill(adapt(build(gradient_checkpointing=gradient_checkpointing).double(), dropout=0.3)).train()
        torch.manual_seed(3)
        model(images().double()).square().sum().backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if "lora_" in name})
    for name, grad in grads[0].items():
        assert grad is not None
        torch.testing.assert_close(grads[1][name], grad, rtol=0, atol=1e-10)


def test_unfreezing_beside_adapters_trains_the_last_blocks_own_weights_too():
    model = adapt(build(), layers=(0,))
    set_trainable(model, 1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train_steps(model)
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    places = ("encoder.backbone.blocks.2.", "encoder.backbone.norm.", "head.")
    assert moved == {name for name in before if "lora_" in name or name.startswith(places)}


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_bfloat16_products_give_the_gradients_of_float32(gradient_checkpointing):
    grads = []
    for enabled in (False, True):
        model = fill(adapt(build(gradient_checkpointing=gradient_checkpointing), targets=("qkv", "mlp"), layers=(1, 2)))
        model.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logits_BC = model(images())
        F.cross_entropy(logits_BC.float(), torch.tensor([0, 1, 2, 3, 0])).backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    for name, grad in grads[0].items():
        assert F.cosine_similarity(grads[1][name].flatten(), grad.flatten(), dim=0) > 0.98, name


def test_count_at_rank_8_on_a_large_vit_is_the_published_share():
    """ViT-L/16 at 224: 303 M; r = 8 on qkv and a head of five classes is 0.79 M, 0.26 %."""
    with torch.device("meta"):
        backbone = ViT3D((1, 224, 224), (1, 16, 16), 3, 1024, 24, 16)
    spec = ImageSpec(size=(224, 224))
    encoder = Encoder(
        backbone, (1, 14, 14), spec, vit_encoder().receipt, width=1024, family="vit3d", architecture={},
        weights_hash="", precision="fp32",
    )  # fmt: skip
    model = PixelModel(
        encoder, pooling="mean", coarse_grid=None, num_classes=5, head="linear", head_width=1, dropout=0.0, seed=0
    )
    adapt(model, rank=8, alpha=16.0)
    count = count_parameters(model)
    assert count.trainable == 24 * 8 * (1024 + 3 * 1024) + 1024 * 5 + 5 == 791_557
    assert 303e6 < count.total - count.trainable < 304e6
    assert count.trainable / count.total == pytest.approx(0.0026, abs=5e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"targets": ("qvk",)},
            r"qvk matches no .* blocks of this encoder; there are fc1, fc2, mlp, proj, qkv\.",
        ),
        (
            {"targets": ("qkv", "query"), "layers": (0, 2)},
            r"query matches no .* blocks 0, 2 of this encoder;",
        ),
        ({"layers": (0, 3)}, rf"layers: 3 does not exist; the blocks of this encoder are 0…{DEPTH - 1}"),
        ({"layers": (-1, 5)}, r"layers: -1, 5 do not exist"),
        ({"targets": ("patch_embed",)}, "patch_embed matches no"),
        ({"targets": ("norm1",)}, "norm1 matches no"),
    ],
)
def test_a_target_or_block_that_does_not_exist_is_refused(changes, message):
    model = build()
    names = list(model.state_dict())
    with pytest.raises(UserError, match=message):
        adapt(model, **changes)
    assert list(model.state_dict()) == names
    assert model.adapters is None


def test_targets_stand_inside_blocks_only():
    """The patch embedding has a `proj` of its own, which is applied without being called."""
    assert resolve_targets(build(), ("proj",), None) == [f"blocks.{i}.attn.proj" for i in range(DEPTH)]
    assert resolve_targets(build(), ("mlp",), (1,)) == ["blocks.1.mlp.fc1", "blocks.1.mlp.fc2"]


def test_adapters_twice_are_refused():
    with pytest.raises(UserError, match="has adapters already"):
        adapt(adapt(build()))


class Uncalled(ConvBlock):
    """Uses the matrix of a linear layer without calling the layer, as some attention modules do."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.mix = nn.Linear(width, width)
        self.gate = nn.Linear(width, width)
        self.grouped = nn.Conv2d(width, width, 3, padding=1, groups=2)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        x_BCHW = self.grouped(super().forward(x_BCHW))
        mixed_BHWC = F.linear(x_BCHW.movedim(1, -1), self.mix.weight)
        out_BCHW: torch.Tensor = self.gate(mixed_BHWC).movedim(-1, 1)
        return out_BCHW


def test_a_target_that_could_not_take_effect_is_refused():
    encoder = conv_encoder()
    encoder.backbone.blocks[1] = Uncalled(8)
    model = PixelModel(
        encoder, pooling="mean", coarse_grid=None, num_classes=4, head="linear", head_width=1, dropout=0.0, seed=0
    )
    with pytest.raises(UserError, match=r"adapters on blocks\.1\.mix would have no effect: this small encoder uses"):
        adapt(model, targets=("gate", "mix"), layers=(1,))
    with pytest.raises(UserError, match="grouped matches no"):
        adapt(model, targets=("grouped",))
    with pytest.raises(UserError, match=r"layers: none of the targets \(gate\) is in block 2"):
        adapt(model, targets=("gate",), layers=(1, 2))
    adapt(model, targets=("gate",))
    assert model.training


@pytest.mark.parametrize("dora", [False, True])
def test_convolutions_take_adapters_and_merge(dora):
    model = build("conv").eval()
    expected_BC = model(images("conv"))
    adapt(model, targets=("conv",), dora=dora)
    torch.testing.assert_close(model(images("conv")), expected_BC, rtol=0, atol=1e-6)
    fill(model)
    expected_BC = model(images("conv"))
    merge_adapters(model)
    torch.testing.assert_close(model(images("conv")), expected_BC, rtol=1e-5, atol=2e-6)
