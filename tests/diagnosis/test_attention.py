"""Attention watched and described. Oracles: the plain N×N formulas, and a forward pass that nobody watches."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vitreous.core.errors import UserError
from vitreous.diagnosis.attention_capture import Attention, AttentionCapture
from vitreous.diagnosis.attention_statistics import attention_of, mean_entropies
from vitreous.diagnosis.attention_weights import (
    BLOCK_ELEMENTS,
    attended,
    attended_by_gradient,
    head_entropy,
    weights_in_blocks,
)
from vitreous.encoders.catalog import build_random_encoder
from vitreous.encoders.encoder import Encoder

VIT3D = {"img_size": [4, 16, 16], "patch_size": [2, 8, 8], "embed_dim": 12, "depth": 3, "num_heads": 2}
ENCODERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "vit3d": ("vit3d", VIT3D, "volume"),
    "vit": ("timm", {"model": "test_vit", "img_size": [32, 32]}, "image"),
    "rotary": ("timm", {"model": "eva02_tiny_patch14_224", "img_size": [56, 56]}, "image"),
    "vjepa2": (
        "vjepa2",
        {"hidden_size": 48, "num_attention_heads": 2, "num_hidden_layers": 2, "crop_size": 32, "frames_per_clip": 4},
        "clip",
    ),
    "frames": ("timm", {"model": "test_vit", "img_size": [32, 32]}, "clip"),
    "retfound": (
        "retfound",
        {"img_size": [32, 32], "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_registers": 2},
        "image",
    ),
}


def encoder_and_input(name: str) -> tuple[Encoder, torch.Tensor]:
    family, architecture, modality = ENCODERS[name]
    encoder = build_random_encoder(family, architecture=architecture, seed=1, modality=modality)
    spec = encoder.spec
    return encoder, torch.randn(1, spec.channels, *spec.size_DHW, generator=torch.Generator().manual_seed(0))


def attention(tokens: int = 7, heads: int = 2, width: int = 4, **changes: Any) -> Attention:
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(2, heads, tokens, width, generator=generator, dtype=torch.float64) for _ in range(3))
    given = {"bias": None, "scale": width**-0.5, **changes}
    return Attention(q * 3, k, v, torch.zeros_like(q), **given)


def plain_weights(one: Attention, sample: int) -> torch.Tensor:
    """The whole N×N matrices at once."""
    scores = one.q_BHNE[sample] @ one.k_BHNE[sample].transpose(1, 2) * one.scale
    return torch.softmax(scores if one.bias is None else scores + one.bias[sample], -1)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitreous.diagnosis.attention_weights.BLOCK_ELEMENTS", 3 * 2 * 7)  # three queries a block


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_watching_changes_no_bit_and_sees_every_layer(name: str) -> None:
    encoder, x = encoder_and_input(name)
    seen: list[Attention] = []
    with torch.no_grad():
        expected = encoder(x).tokens_BND
        with AttentionCapture(seen.append):
            watched = encoder(x).tokens_BND
    assert torch.equal(expected, watched)
    assert len(seen) == encoder.backbone.num_blocks
    for one in seen:  # what was captured is what was computed
        out = torch.softmax(one.q_BHNE @ one.k_BHNE.transpose(2, 3) * one.scale, -1) @ one.v_BHNE
        torch.testing.assert_close(out, one.out_BHNE, rtol=1e-4, atol=1e-5)


def test_watching_changes_no_gradient() -> None:
    encoder, x = encoder_and_input("vit3d")
    encoder.requires_grad_(True)

    def gradient(*, watched: bool) -> torch.Tensor:
        leaf = x.clone().requires_grad_()
        if watched:
            with AttentionCapture(lambda one: None):
                encoder(leaf).tokens_BND.square().sum().backward()
        else:
            encoder(leaf).tokens_BND.square().sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    assert torch.equal(gradient(watched=True), gradient(watched=False))


def test_attention_with_bias_and_masks_is_read_as_it_was_computed() -> None:
    one = attention()
    bias = torch.randn(2, 1, 7, 7, dtype=torch.float64)
    mask = torch.ones(7, 7, dtype=torch.bool).tril()
    seen: list[Attention] = []
    with AttentionCapture(seen.append):
        biased = F.scaled_dot_product_attention(one.q_BHNE, one.k_BHNE, one.v_BHNE, attn_mask=bias)
        masked = F.scaled_dot_product_attention(one.q_BHNE, one.k_BHNE, one.v_BHNE, mask, scale=0.3)
    for captured, out in zip(seen, (biased, masked), strict=True):
        for sample in (0, 1):
            weights = torch.cat([block for _, block in weights_in_blocks(captured, sample)], 1)
            torch.testing.assert_close(weights @ one.v_BHNE[sample], out[sample])
    with pytest.raises(ValueError, match="is_causal"), AttentionCapture(seen.append):
        F.scaled_dot_product_attention(one.q_BHNE, one.k_BHNE, one.v_BHNE, is_causal=True)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("has_bias", [False, True])
def test_entropy_is_that_of_the_plain_formula(has_bias: bool) -> None:
    bias = torch.randn(2, 2, 7, 7, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    one = attention(bias=bias if has_bias else None)
    for sample in (0, 1):
        weights = plain_weights(one, sample)
        share = (-(weights * weights.log()).sum(-1) / math.log(7)).numpy()
        found = head_entropy(one, sample)
        np.testing.assert_allclose(found.mean_H, share.mean(1), rtol=1e-12)
        np.testing.assert_allclose(found.lowest_H, share.min(1), rtol=1e-12)
        np.testing.assert_allclose(found.highest_H, share.max(1), rtol=1e-12)
        np.testing.assert_allclose(found.spread_H, share.std(1), rtol=1e-10)
        np.testing.assert_allclose(found.largest_weight_H, weights.amax(-1).mean(-1), rtol=1e-12)


def test_entropy_at_its_ends() -> None:
    even = attention(scale=0.0)
    np.testing.assert_allclose(head_entropy(even).mean_H, 1.0)
    q = torch.eye(5)[None, None]
    at_one = Attention(1000 * q, q, q, q, None, 1.0)
    assert head_entropy(at_one).mean_H.tolist() == [0.0]
    assert head_entropy(at_one).largest_weight_H.tolist() == [1.0]
    with pytest.raises(ValueError, match="single token"):
        head_entropy(attention(tokens=1))


@pytest.mark.usefixtures("small_blocks")
def test_relevance_passes_on_as_in_the_plain_formulas() -> None:
    one, relevance_N = attention(), torch.rand(7, dtype=torch.float64)
    weights = plain_weights(one, 1).requires_grad_()
    torch.testing.assert_close(attended(one, relevance_N, 1), relevance_N @ weights.mean(0).detach())
    # a score of the heads' outcome, differentiated by the weights themselves
    readout = torch.randn(2, 7, 4, dtype=torch.float64)
    ((weights @ one.v_BHNE[1]) * readout).sum().backward()
    assert weights.grad is not None
    expected = relevance_N @ (weights * weights.grad).clamp_min(0).mean(0).detach()
    grad_out = torch.zeros_like(one.q_BHNE)
    grad_out[1] = readout
    torch.testing.assert_close(attended_by_gradient(one, relevance_N, grad_out, 1), expected)


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation made or took."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves((args, out)):
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return out


@pytest.mark.parametrize("tokens", [2048, 9216])
def test_no_tensor_grows_with_the_square_of_the_tokens(tokens: int) -> None:
    heads, width = (2, 8) if tokens == 2048 else (1, 4)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, tokens, width, generator=generator) for _ in range(3))
    with LargestTensor() as largest:
        seen: list[Attention] = []
        with AttentionCapture(seen.append):
            out = F.scaled_dot_product_attention(q, k, v)
        found = head_entropy(seen[0])
        passed = attended(seen[0], torch.full((tokens,), 1 / tokens))
        if tokens == 2048:
            attended_by_gradient(seen[0], passed, out)
    assert largest.elements <= BLOCK_ELEMENTS < heads * tokens**2
    assert np.all((found.mean_H > 0.9) & (found.mean_H < 1))
    assert passed.sum() == pytest.approx(1, abs=1e-4)
    # a few queries by the plain formula
    rows = torch.softmax(q[0, :, :3] @ k[0].transpose(1, 2) * width**-0.5, -1)
    blocks = next(weights_in_blocks(seen[0]))[1]
    torch.testing.assert_close(blocks[:, :3], rows)


def test_a_sample_is_summed_up_over_layers_and_heads() -> None:
    encoder, x = encoder_and_input("vit3d")
    found = attention_of(encoder, x)
    means = np.array([layer.mean_H for layer in found.layers])
    assert (means.shape, found.num_tokens) == ((3, 2), 8)
    assert found.mean == pytest.approx(means.mean())
    assert (found.lowest, found.highest, found.spread) == (means.min(), means.max(), pytest.approx(means.std()))
    np.testing.assert_allclose(mean_entropies([found, found]), means)


def test_frames_are_summed_up_as_queries_of_one_attention() -> None:
    encoder, x = encoder_and_input("frames")
    seen: list[Attention] = []
    with torch.no_grad(), AttentionCapture(seen.append):
        encoder(x)
    found = attention_of(encoder, x)
    for layer, one in zip(found.layers, seen, strict=True):
        shares = []
        for frame in range(x.shape[2]):
            weights = plain_weights(one, frame)
            shares.append(-(weights * weights.log()).sum(-1) / math.log(one.num_tokens))
        share = torch.cat(shares, 1).double().numpy()
        np.testing.assert_allclose(layer.mean_H, share.mean(1), rtol=1e-5)
        np.testing.assert_allclose(layer.spread_H, share.std(1), rtol=1e-2, atol=1e-7)
        np.testing.assert_allclose(layer.lowest_H, share.min(1), rtol=1e-5)


def test_an_encoder_without_attention_over_all_tokens_is_refused() -> None:
    encoder = build_random_encoder("timm", architecture={"model": "test_resnet"}, seed=1, modality="image")
    with pytest.raises(UserError, match="no attention over all its tokens"):
        attention_of(encoder, torch.zeros(1, 3, *encoder.spec.size_DHW))
