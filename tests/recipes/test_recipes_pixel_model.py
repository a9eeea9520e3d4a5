"""Encoder, pooling and head as one network; what trains, what stays put, and at which rate.

Oracles: the encoder and the pooling called apart, torch's own BatchNorm statistics, closed forms of counts and rates.
"""

import copy

import pytest
import torch
from pixel_models import DEPTH, VIT3D, build, images
from torch import nn
from torch.nn import functional as F

from vitreous.core.errors import UserError
from vitreous.encoders.catalog import build_random_encoder
from vitreous.features.pooling import pool_tokens
from vitreous.recipes.pixel_model import PixelModel
from vitreous.recipes.trainable import count_parameters, parameter_groups, set_trainable


@pytest.mark.parametrize(
    ("pooling", "coarse_grid"), [("mean", None), ("max", None), ("grid", (1, 2, 1)), ("cls", None)]
)
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_logits_are_the_head_over_the_pooled_tokens(pooling, coarse_grid, head):
    model = build("conv", pooling=pooling, coarse_grid=coarse_grid, head=head).eval()
    x_BCDHW = images("conv")
    features_BD = pool_tokens(model.encoder(x_BCDHW), pooling, coarse_grid)
    head_tensors = dict(model.head.named_parameters())
    if head == "mlp":
        features_BD = F.gelu(features_BD @ head_tensors["hidden.weight"].T + head_tensors["hidden.bias"])
    expected_BC = features_BD @ head_tensors["output.weight"].T + head_tensors["output.bias"]
    assert expected_BC.shape == (5, 4)
    torch.testing.assert_close(model(x_BCDHW), expected_BC)


def test_impossible_pooling_is_refused_by_name():
    with pytest.raises(UserError, match=r"features\.pooling: cls .* this vit3d encoder has none; take mean"):
        build("vit", pooling="cls")
    with pytest.raises(UserError, match=r"not be finer than the token grid \(2, 2, 2\); got \(3, 1, 1\)"):
        build("vit", pooling="grid", coarse_grid=(3, 1, 1))


def test_an_encoder_loaded_for_inference_is_refused():
    encoder = build_random_encoder("vit3d", architecture=VIT3D, seed=1)
    with pytest.raises(ValueError, match="this vit3d encoder was loaded for inference; load it with trainable=True"):
        PixelModel(
            encoder, pooling="mean", coarse_grid=None, num_classes=2, head="linear", head_width=1, dropout=0, seed=0
        )


def test_first_weights_of_the_head_depend_on_their_seed_alone():
    torch.manual_seed(0)
    first = build(head="mlp", head_width=400)
    torch.manual_seed(1)
    again, other = build(head="mlp", head_width=400), build(head="mlp", head_width=400, seed=4)
    for name, tensor in first.head.state_dict().items():
        assert torch.equal(tensor, again.head.state_dict()[name])
    assert not torch.equal(first.head.output.weight, other.head.output.weight)
    assert first.head.output.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert first.head.hidden.weight.std().item() == pytest.approx(12**-0.5, rel=0.1)
    assert not first.head.output.bias.any()
    assert not first.head.hidden.bias.any()


@pytest.mark.parametrize("encoder", ["vit", "conv"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("unfreeze", [0, 1, 2, DEPTH, "all"])
@pytest.mark.parametrize("with_grad", [True, False])
def test_a_pass_from_any_frozen_block_is_the_whole_pass(encoder, dtype, unfreeze, with_grad):
    model = build(encoder).to(dtype)
    set_trainable(model, unfreeze)
    model.eval()
    x_BCDHW = images(encoder).to(dtype)
    with torch.set_grad_enabled(with_grad):
        expected_BC = model(x_BCDHW)
        assert expected_BC.dtype == dtype
        torch.testing.assert_close(expected_BC, model.head(pool_tokens(model.encoder(x_BCDHW), "mean")))
        for block in range(model.first_trainable_block + 1):
            hidden = model.run_prefix(x_BCDHW, block)
            kept = hidden.clone()
            assert not hidden.requires_grad
            assert torch.equal(model.run_suffix(hidden, block), expected_BC)
            assert torch.equal(hidden, kept)  # a cached prefix serves every epoch


@pytest.mark.parametrize(("unfreeze", "first"), [(0, DEPTH), (1, DEPTH - 1), (2, DEPTH - 2), (DEPTH, 0), ("all", 0)])
@pytest.mark.parametrize("encoder", ["vit", "conv"])
def test_unfreezing_counts_from_the_head(encoder, unfreeze, first):
    model = build(encoder)
    set_trainable(model, unfreeze)
    assert model.first_trainable_block == first
    depths = {model.backbone.depth_of(n) for n, p in model.encoder.backbone.named_parameters() if p.requires_grad}
    end = {DEPTH + 1} if encoder == "vit" else set()
    lowest = 0 if unfreeze == "all" else first + 1
    assert depths == (set(range(lowest, DEPTH + 1)) | end if unfreeze else set())
    assert all(parameter.requires_grad for parameter in model.head.parameters())
    count = count_parameters(model)
    assert count.total == sum(p.numel() for p in model.parameters())
    assert (count.trainable == count.total) == (unfreeze == "all")


@pytest.mark.parametrize("unfreeze", [DEPTH + 1, -1])
def test_more_blocks_than_there_are_is_refused(unfreeze):
    with pytest.raises(UserError, match=rf"last {unfreeze} blocks: this encoder has {DEPTH}; take 0…{DEPTH} or all"):
        set_trainable(build(), unfreeze)
    with pytest.raises(ValueError, match=rf"block must lie in 0…{DEPTH}"):
        build().run_prefix(images(), DEPTH + 1)


@pytest.mark.parametrize("unfreeze", [1, "all"])
def test_an_input_of_another_size_is_refused_even_where_the_network_could_take_it(unfreeze):
    model = build("conv")
    set_trainable(model, unfreeze)
    for shape in [(2, 3, 1, 10, 10), (2, 3, 2, 8, 8)]:
        with pytest.raises(ValueError, match=r"shape \(B, 3, 1, 8, 8\); got"):
            model(torch.zeros(shape))


@pytest.mark.parametrize("encoder", ["vit", "conv"])
@pytest.mark.parametrize("unfreeze", [0, 1, 2, "all"])
def test_exactly_what_is_unfrozen_moves(encoder, unfreeze):
    model = build(encoder, dropout=0.1)
    set_trainable(model, unfreeze)
    before = {name: tensor.clone() for name, tensor in model.encoder.backbone.state_dict().items()}
    head_before = copy.deepcopy(model.head.state_dict())
    groups = parameter_groups(model, lr_head=0.1, lr_encoder=0.1, layer_decay=0.9, weight_decay=0.1)
    optimiser = torch.optim.AdamW(groups)
    model.train()
    for step in range(3):
        optimiser.zero_grad()
        F.cross_entropy(model(images(encoder, 6, seed=step)), torch.tensor([0, 1, 2, 3, 0, 1])).backward()
        optimiser.step()
    lowest = 0 if unfreeze == "all" else DEPTH + 1 - unfreeze if unfreeze else DEPTH + 2
    for name, tensor in model.encoder.backbone.state_dict().items():
        is_frozen = model.backbone.depth_of(name) < lowest
        # a convolution's bias has no gradient before a batch norm in training; it moves by AdamW's noise alone
        if not name.endswith("conv.bias"):
            assert torch.equal(tensor, before[name]) == is_frozen, name
        elif is_frozen:
            assert torch.equal(tensor, before[name]), name
    assert all(not torch.equal(tensor, head_before[name]) for name, tensor in model.head.state_dict().items())


def test_frozen_parts_are_in_eval_mode_and_the_trained_in_training():
    model = build("conv")
    set_trainable(model, 1)
    model.train()
    training = {name for name, module in model.encoder.backbone.named_modules() if module.training}
    # the end has no parameters: it goes with the last block
    assert training == {
        "last_drop",
        f"blocks.{DEPTH - 1}",
        *(f"blocks.{DEPTH - 1}.{n}" for n in ("conv", "bn", "drop")),
    }
    set_trainable(model, 0)  # takes effect at once
    assert not any(module.training for module in model.encoder.backbone.modules())
    assert model.head.training
    set_trainable(model, "all")
    assert all(module.training for module in model.modules())
    model.eval()
    assert not any(module.training for module in model.modules())


def test_the_prefix_is_in_eval_mode_whatever_the_model_is_in():
    model = build("conv")
    set_trainable(model, "all")
    expected = model.eval().run_prefix(images("conv"), 2)
    model.train()
    before = copy.deepcopy(model.state_dict())
    assert torch.equal(model.run_prefix(images("conv"), 2), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("encoder", ["vit", "conv"])
@pytest.mark.parametrize("unfreeze", [1, "all"])
def test_gradient_checkpointing_changes_neither_gradients_nor_statistics(encoder, unfreeze):
    results = []
    for gradient_checkpointing in (False, True):
        model = build(encoder, dropout=0.2, gradient_checkpointing=gradient_checkpointing).double()
        set_trainable(model, unfreeze)
        model.train()
        torch.manual_seed(5)
        F.cross_entropy(model(images(encoder).double()), torch.tensor([0, 1, 2, 3, 0])).backward()
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        results.append((grads, dict(model.named_buffers())))
    (plain, buffers), (checkpointed, buffers_checkpointed) = results
    assert plain.keys() == checkpointed.keys()
    for name, grad in plain.items():
        torch.testing.assert_close(checkpointed[name], grad, rtol=0, atol=1e-10)
    assert (encoder == "conv") == bool(buffers)
    for name, buffer in buffers.items():
        assert torch.equal(buffers_checkpointed[name], buffer), name


def test_gradient_checkpointing_runs_the_trained_blocks_twice():
    calls: list[int] = []
    model = build("vit", gradient_checkpointing=True)
    for index, block in enumerate(model.encoder.backbone.blocks):
        block.register_forward_pre_hook(lambda *_, index=index: calls.append(index))
    set_trainable(model, 2)
    model.train()
    model(images()).sum().backward()
    assert sorted(calls) == [0, 1, 1, 2, 2]


def test_learning_rates_fall_from_the_head_and_decay_spares_what_is_no_matrix():
    model = build("vit", head="mlp")
    set_trainable(model, "all")
    groups = parameter_groups(model, lr_head=1e-2, lr_encoder=1e-3, layer_decay=0.5, weight_decay=0.05)
    rates = {group["name"]: group["lr"] for group in groups}
    assert rates["head"] == rates["head without decay"] == 1e-2
    assert rates["encoder end without decay"] == 1e-3
    assert [rates[f"encoder block {i}"] for i in range(DEPTH)] == pytest.approx([1.25e-4, 2.5e-4, 5e-4])
    assert rates["encoder stem"] == pytest.approx(1e-3 * 0.5 ** (DEPTH + 1))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
    spared = {names[id(p)] for group in groups if not group["weight_decay"] for p in group["params"]}
    assert not decayed & spared
    assert decayed | spared == set(names.values())
    assert spared == {n for n in names.values() if n.endswith(("bias", "pos_embed")) or "norm" in n}
    assert all(group["weight_decay"] == 0.05 for group in groups if "without decay" not in group["name"])


def test_groups_are_the_trained_parameters_in_a_fixed_order():
    model = build("vit")
    set_trainable(model, 1)
    groups = parameter_groups(model, lr_head=1e-2, lr_encoder=1e-3, layer_decay=1.0, weight_decay=0.05)
    assert [group["name"] for group in groups] == ["encoder", "encoder without decay", "head", "head without decay"]
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert sum(len(group["params"]) for group in groups) == len(trained)
    assert {id(p) for group in groups for p in group["params"]} == trained
    set_trainable(model, 0)
    groups = parameter_groups(model, lr_head=1e-2, lr_encoder=1e-3, layer_decay=0.8, weight_decay=0.05)
    assert [group["name"] for group in groups] == ["head", "head without decay"]


class Oddities(nn.Module):
    """Parameters of more than one axis that weight decay must spare."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.reg_token = nn.Parameter(torch.zeros(1, 4, 8))
        self.relative_position_bias_table = nn.Parameter(torch.zeros(9, 2))
        self.gamma = nn.Parameter(torch.zeros(8, 1, 1))
        self.norm = nn.LayerNorm([2, 4])


def test_tokens_scales_and_norms_of_several_axes_are_spared():
    model = build("conv")
    model.encoder.backbone.odd = Oddities()
    groups = parameter_groups(model, lr_head=1e-2, lr_encoder=1e-3, layer_decay=1.0, weight_decay=0.05)
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    assert not decayed & {id(p) for p in model.encoder.backbone.odd.parameters()}
    assert id(model.encoder.backbone.stem.weight) in decayed
