"""Every family in blocks: the same tokens as in one go, and weights that stand where `depth_of` says.

The oracle of `depth_of` is the flow of gradients: what runs from block k on reaches exactly the weights deeper than k.
"""

import copy
from functools import cache
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from vitreous.core.errors import ConfigError
from vitreous.core.streams import torch_stream
from vitreous.encoders.catalog import build_random_encoder
from vitreous.encoders.encoder import Encoder
from vitreous.encoders.slices import SliceTinyViT
from vitreous.encoders.tiny_vit import TinyViTShape

# model of timm → (pixels a side, whether it is built for them)
QUICK_MODELS = {
    "vit_tiny_patch16_224": (32, True),
    "eva02_tiny_patch14_224": (28, True),
    "resnet18": (32, False),
    "convnext_atto": (32, False),
    "mobilenetv3_small_050": (32, False),
    "xcit_nano_12_p16_224": (32, False),  # a class with no known division
}
OTHER_MODELS = {
    "regnetx_002": (32, False),
    "efficientnet_lite0": (32, False),
    "deit_tiny_distilled_patch16_224": (32, True),
    "vit_small_patch14_reg4_dinov2": (28, True),
    "vit_medium_patch16_reg4_gap_256": (32, True),
    "vit_small_patch16_dinov3": (32, True),
    "beit_base_patch16_224": (32, True),
    "swin_tiny_patch4_window7_224": (56, True),
    "swinv2_tiny_window8_256": (64, True),
    "mixer_s32_224": (64, True),
    "maxvit_rmlp_pico_rw_256": (64, True),
    "resnetv2_50": (32, False),
    "densenet121": (32, False),
    "poolformer_s12": (64, False),
    "mobilevit_xxs": (64, False),
    "pvt_v2_b0": (64, False),
    "davit_tiny": (32, False),
}
MODELS = QUICK_MODELS | OTHER_MODELS


def timm_encoder(model: str, **settings: Any) -> Encoder:
    side, is_built_for_it = MODELS[model]
    architecture = {"model": model} | ({"img_size": [side, side]} if is_built_for_it else {})
    return build_random_encoder(
        "timm", architecture=architecture, seed=0, spec_override={"size": [side, side]}, **settings
    )


def small(family: str, **settings: Any) -> Encoder:
    """The family's smallest encoder, its input small."""
    match family:
        case "vit3d":
            shape = {"img_size": [4, 32, 32], "patch_size": [4, 16, 16], "embed_dim": 64, "depth": 3, "num_heads": 2}
            return build_random_encoder("vit3d", architecture=shape, seed=0, **settings)
        case "resnet3d":
            shape = {"depths": [1, 2, 1, 1], "img_size": [16, 32, 32]}
            return build_random_encoder("resnet3d", architecture=shape, seed=0, **settings)
        case "litemedsam":
            override = {"size": [2, 32, 32]}
            return build_random_encoder(
                "litemedsam", architecture={"token_grid": [4, 4]}, seed=0, spec_override=override, **settings
            )
        case "litemedsam of images":
            override = {"size": [32, 48]}
            return build_random_encoder(
                "litemedsam",
                architecture={"token_grid": [4, 4]},
                seed=0,
                modality="image",
                spec_override=override,
                **settings,
            )
        case "retfound":
            shape = {"img_size": [32, 32], "embed_dim": 64, "depth": 3, "num_heads": 1, "layer_scale": True}
            return build_random_encoder("retfound", architecture=shape, seed=0, **settings)
    return timm_encoder(family, **settings)


FAMILIES = ["vit3d", "resnet3d", "litemedsam", "litemedsam of images", "retfound", *QUICK_MODELS]
FAMILIES += [pytest.param(model, marks=pytest.mark.slow) for model in OTHER_MODELS]  # type: ignore[list-item]


@cache
def _trainable(family: str) -> Encoder:
    encoder = small(family, trainable=True)
    lively(encoder.backbone)
    return encoder


def trainable(family: str) -> Encoder:
    """A copy of its own, biases and norms away from 0 and 1."""
    return copy.deepcopy(_trainable(family))


def inputs(encoder: Encoder, batch: int = 2) -> torch.Tensor:
    shape = (batch, encoder.spec.channels, *encoder.spec.size_DHW)
    return torch.rand(shape, generator=torch_stream(1, "x"))


def lively(backbone: Any) -> Any:
    """Biases, norms and scales away from 0 and 1, so that a missing one shows."""
    generator = torch_stream(2, "weights")
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return backbone


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_make_the_same_tokens(family: str) -> None:
    encoder = trainable(family)
    backbone, x_BCDHW = encoder.backbone, inputs(encoder)
    with torch.no_grad():
        expected = backbone(x_BCDHW)
        hidden = backbone.embed(x_BCDHW)
        assert len(hidden) == 2
        assert torch.equal(backbone.run_blocks(hidden, 0, 0), hidden)
        for index in range(backbone.num_blocks):
            hidden = backbone.run_blocks(hidden, index, index + 1)
        assert torch.allclose(backbone.finish(hidden), expected, atol=1e-5, rtol=1e-4)
        if hasattr(backbone, "model"):  # of timm: its own way through
            features = backbone.model.forward_features(x_BCDHW[:, :, 0])
            if features.ndim == 4:
                channels_first = features.shape[-1] != backbone.width
                features = features.flatten(2).transpose(1, 2) if channels_first else features.flatten(1, 2)
            elif family == "vit_medium_patch16_reg4_gap_256":
                features = features[:, 4:]  # registers without a class token are dropped
            assert torch.equal(expected, features)
    tokens = encoder(x_BCDHW)
    assert tokens.tokens_BND.shape[1] == torch.tensor(encoder.grid).prod()
    assert (tokens.cls_BD is None) == (backbone.num_prefix_tokens == 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_stand_where_gradients_reach(family: str) -> None:
    encoder = trainable(family)
    backbone, x_BCDHW = encoder.backbone, inputs(encoder)
    num_blocks = backbone.num_blocks
    depths = {name: backbone.depth_of(name) for name, _ in backbone.named_parameters()}
    assert set(depths.values()) <= set(range(num_blocks + 2))
    assert set(range(1, num_blocks + 1)) <= set(depths.values())
    for k in {num_blocks // 2, num_blocks}:
        backbone.zero_grad(set_to_none=True)
        with torch.no_grad():
            hidden = backbone.run_blocks(backbone.embed(x_BCDHW), 0, k)
        tokens = backbone.finish(backbone.run_blocks(hidden, k, num_blocks))
        if tokens.requires_grad:
            tokens.square().sum().backward()
        reached = {name for name, parameter in backbone.named_parameters() if parameter.grad is not None}
        assert reached == {name for name, depth in depths.items() if depth > k}


@pytest.mark.parametrize("family", FAMILIES)
def test_training_in_bfloat16_reaches_every_weight_block_by_block(family: str) -> None:
    encoder = trainable(family)
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in encoder.parameters())
    backbone, x_BCDHW = encoder.backbone, inputs(encoder)
    with torch.autocast("cpu", torch.bfloat16):
        encoder.split(encoder.backbone(x_BCDHW)).tokens_BND.square().mean().backward()
        plain = {name: parameter.grad for name, parameter in backbone.named_parameters()}
        assert all(grad is not None and bool(torch.isfinite(grad).all()) for grad in plain.values())
    backbone.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = backbone.embed(x_BCDHW)
        for index in range(backbone.num_blocks):
            hidden = checkpoint(backbone.run_blocks, hidden, index, index + 1, use_reentrant=False)
        encoder.split(backbone.finish(hidden)).tokens_BND.square().mean().backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, name
        scale = float(plain[name].abs().max()) + 1e-12
        assert float((parameter.grad - plain[name]).abs().max()) <= 0.05 * scale, name


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_is_near(family: str) -> None:
    encoder = trainable(family).requires_grad_(False)
    x_BCDHW = inputs(encoder)
    with torch.inference_mode():
        expected = encoder(x_BCDHW).tokens_BND
        encoder.backbone.set_precision(torch.bfloat16)
        tokens = encoder(x_BCDHW).tokens_BND
    assert tokens.dtype == torch.float32
    assert 0 < (expected - tokens).norm() / expected.norm() < 0.05


@pytest.mark.parametrize("family", FAMILIES)
def test_operations_are_counted_alike_in_bfloat16(family: str) -> None:
    """On the meta device, where plans count; the oracle is the count in float32."""
    encoder = trainable(family).requires_grad_(False)
    shape = inputs(encoder).shape

    def count() -> int:
        shadow = copy.deepcopy(encoder).to("meta")
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            shadow(torch.empty(shape, device="meta"))
        return int(counter.get_total_flops())

    expected = count()
    encoder.backbone.set_precision(torch.bfloat16)
    assert count() == expected > 0


@pytest.mark.parametrize("family", ["vit3d", "resnet3d", "litemedsam", "retfound", "resnet18"])
def test_the_trainable_form_is_the_same_encoder(family: str) -> None:
    frozen, training = small(family), small(family, trainable=True)
    assert frozen.weights_hash == training.weights_hash
    assert all(parameter.requires_grad for parameter in training.parameters())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    x_BCDHW = inputs(frozen)
    with torch.no_grad():
        assert torch.allclose(frozen(x_BCDHW).tokens_BND, training(x_BCDHW).tokens_BND, atol=1e-4, rtol=1e-3)
    with pytest.raises(ConfigError, match=r"trainable encoder keeps its weights in fp32.*got bf16"):
        small(family, trainable=True, precision="bf16")


def test_slices_train_as_one_batch() -> None:
    """Batch statistics are over all slices; without gradients each slice goes by itself, to the same tokens."""
    model = SliceTinyViT(TinyViTShape((16, 32, 32, 320), (1, 1, 1, 1), (2, 4, 4, 10)), (2, 2), normalise_slices=False)
    model.init_weights(torch_stream(0, "weights"))
    x_BCDHW = torch.rand(2, 3, 2, 32, 32, generator=torch_stream(1, "x"))
    model.eval()
    with torch.no_grad():
        by_slice = model(x_BCDHW)
    assert torch.allclose(by_slice, model(x_BCDHW), atol=1e-5)
    model.train()
    model(x_BCDHW)
    norm = model.patch_embed.seq[0].bn
    x_SCHW = x_BCDHW.transpose(1, 2).flatten(0, 1)
    mean_C = F.conv2d(x_SCHW, model.patch_embed.seq[0].c.weight).mean((0, 2, 3))
    assert torch.allclose(norm.running_mean, 0.1 * mean_C, atol=1e-5)
    assert int(norm.num_batches_tracked) == 1


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (84, 52), (63, 70)])
def test_litemedsam_takes_other_sizes(size: tuple[int, int]) -> None:
    """Also those that neither windows nor strides divide; the map is a quarter, rounded up."""
    rows, columns = (size[0] + 3) // 4, (size[1] + 3) // 4
    encoder = build_random_encoder(
        "litemedsam",
        architecture={"token_grid": [rows, columns]},
        seed=0,
        modality="image",
        spec_override={"size": list(size)},
    )
    assert encoder(inputs(encoder, 1)).tokens_BND.shape == (1, rows * columns, 256)
