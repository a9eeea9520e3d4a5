"""Attention by blocks of queries; oracle: the softmax formula written out in float64."""

import pytest
import torch

from vitreous.core.streams import torch_stream
from vitreous.encoders import attention
from vitreous.encoders.attention import attend, attend_in_blocks


def written_out(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    q, k, v = q.double(), k.double(), v.double()
    return torch.softmax(q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5, -1) @ v


def draw(tokens: int, scale: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch_stream(0, "qkv", tokens)
    # as a model hands them over: three strided views of one product
    qkv = torch.randn(2, tokens, 3, 3, 16, generator=generator) * scale
    return qkv.bfloat16().permute(2, 0, 3, 1, 4).unbind(0)


@pytest.mark.parametrize("tokens", [1, 7, 256, 300, 513])
@pytest.mark.parametrize("safe_exponent", [100.0, 0.0])  # 0: the row's maximum is always subtracted
def test_blocks_equal_the_formula(tokens: int, safe_exponent: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_SAFE_EXPONENT", safe_exponent)
    q, k, v = draw(tokens, 1.0)
    expected = written_out(q, k, v)
    out = attend_in_blocks(q, k, v)
    assert out.dtype == torch.bfloat16
    assert out.shape == expected.shape
    assert (out.double() - expected).norm() / expected.norm() < 0.01


def test_scores_beyond_the_largest_exponent_stay_finite() -> None:
    q, k, v = draw(300, 100.0)
    assert (q[0, 0].float() @ k[0, 0].float().T).abs().max() > 1e5
    out = attend_in_blocks(q, k, v)
    assert bool(torch.isfinite(out).all())
    # a row is a mean of values with weights that sum to 1
    assert bool((out.amax(2) <= v.amax(2) * 1.01).all())
    assert bool((out.amin(2) >= v.amin(2) * 1.01).all())


def test_an_offset_shared_by_all_keys_costs_no_accuracy() -> None:
    q, k, v = draw(300, 1.0)
    shifted = (k.float() + 30.0).bfloat16()
    error = (attend_in_blocks(q, shifted, v).double() - written_out(q, shifted, v)).norm()
    assert error / written_out(q, shifted, v).norm() < 0.01


def test_float32_blocks_are_exact() -> None:
    q, k, v = (tensor.float() for tensor in draw(300, 1.0))
    assert torch.allclose(attend_in_blocks(q, k, v).double(), written_out(q, k, v), atol=1e-5)


@pytest.mark.parametrize("is_fast", [True, False])
def test_bfloat16_inference_goes_by_blocks_where_it_pays_and_training_keeps_gradients(
    is_fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitreous.encoders.attention.multiplies_bfloat16_faster", lambda: is_fast)
    q, k, v = draw(64, 1.0)
    with torch.inference_mode():
        fused = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        assert torch.equal(attend(q, k, v), attend_in_blocks(q, k, v) if is_fast else fused)
    leaf = q.clone().requires_grad_()
    attend(leaf, k, v).sum().backward()
    assert leaf.grad is not None
    assert bool(leaf.grad.abs().sum() > 0)
