"""The 3D transformer: shape, names and size; oracle: the published layout of the checkpoints."""

import pytest
import torch
import torch.nn.functional as F

from vitreous.core.streams import torch_stream
from vitreous.encoders.vit3d import ViT3D


def small(**changed: object) -> ViT3D:
    arguments: dict[str, object] = {
        "img_size": (8, 32, 32),
        "patch_size": (4, 16, 16),
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 4,
    } | changed
    return ViT3D(**arguments)  # type: ignore[arg-type]


def test_full_size_has_92_9_million_parameters_and_9216_tokens() -> None:
    with torch.device("meta"):
        model = ViT3D((64, 384, 384), (4, 16, 16))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(92.9, abs=0.05)
    assert model.pos_embed.shape == (1, 9216, 768)
    assert model.grid == (16, 24, 24)


def test_names_are_those_of_the_checkpoints() -> None:
    block = [
        f"{name}.{kind}"
        for name in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
        for kind in ("weight", "bias")
    ]
    expected = {"pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias", "norm.weight", "norm.bias"}
    expected |= {f"blocks.{n}.{name}" for n in range(2) for name in block}
    assert set(small().state_dict()) == expected
    assert all(m.eps == 1e-5 for m in small().modules() if isinstance(m, torch.nn.LayerNorm))


def test_tokens_follow_the_order_depth_row_column() -> None:
    model = small(depth=0).eval()
    model.init_weights(torch_stream(0, "weights"))
    x_BCDHW = torch.zeros(1, 1, 8, 32, 32)
    x_BCDHW[0, 0, 4:, 0:16, 16:32] = 1.0  # the patch (1, 0, 1) of the grid (2, 2, 2)
    with torch.inference_mode():
        changed_N = (model.embed(x_BCDHW) - model.embed(torch.zeros_like(x_BCDHW)))[0].abs().sum(1) > 1e-6
    assert changed_N.nonzero().flatten().tolist() == [1 * 4 + 0 * 2 + 1]


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"img_size": (9, 32, 32)}, "multiple of patch_size"), ({"num_heads": 5}, "multiple of num_heads")],
)
def test_sizes_that_do_not_divide_are_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**changed)


def reference_tokens(weights: dict[str, torch.Tensor], x_BCDHW: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Oracle: the same transformer written out with torch's own multi-head attention, in float64."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    kernel = w["patch_embed.proj.weight"]
    width, _, d, h, v = kernel.shape
    blocks = x_BCDHW.double().unfold(2, d, d).unfold(3, h, h).unfold(4, v, v)  # B C nD nH nW d h v
    patches = blocks.permute(0, 2, 3, 4, 1, 5, 6, 7).flatten(4).flatten(1, 3)
    x = patches @ kernel.flatten(1).T + w["patch_embed.proj.bias"] + w["pos_embed"]
    depth = len({name.split(".")[1] for name in w if name.startswith("blocks.")})
    for n in range(depth):
        b = {name.removeprefix(f"blocks.{n}."): t for name, t in w.items() if name.startswith(f"blocks.{n}.")}
        normed = F.layer_norm(x, (width,), b["norm1.weight"], b["norm1.bias"], 1e-5).transpose(0, 1)
        attended, _ = F.multi_head_attention_forward(
            normed,
            normed,
            normed,
            width,
            num_heads,
            b["attn.qkv.weight"],
            b["attn.qkv.bias"],
            None,
            None,
            False,
            0.0,
            b["attn.proj.weight"],
            b["attn.proj.bias"],
            need_weights=False,
        )
        x = x + attended.transpose(0, 1)
        hidden = F.layer_norm(x, (width,), b["norm2.weight"], b["norm2.bias"], 1e-5) @ b["mlp.fc1.weight"].T
        hidden = hidden + b["mlp.fc1.bias"]
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
        x = x + hidden @ b["mlp.fc2.weight"].T + b["mlp.fc2.bias"]
    return F.layer_norm(x, (width,), w["norm.weight"], w["norm.bias"], 1e-5)


def lively(model: ViT3D) -> ViT3D:
    """Weights large enough that attention is far from uniform, biases and norms far from 0 and 1."""
    generator = torch_stream(1, "weights")
    model.init_weights(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return model.eval()


def test_tokens_equal_a_written_out_transformer() -> None:
    model = lively(small(depth=3))
    x_BCDHW = torch.randn(2, 1, 8, 32, 32, generator=torch_stream(2, "x"))
    expected = reference_tokens(model.state_dict(), x_BCDHW, 4)
    with torch.inference_mode():
        assert torch.allclose(model(x_BCDHW).double(), expected, atol=1e-5)
    with_gradients = model(x_BCDHW)
    assert with_gradients.requires_grad
    assert torch.allclose(with_gradients.double(), expected, atol=1e-5)


def test_bfloat16_tokens_are_near_float32_ones() -> None:
    model = lively(small(depth=3))
    x_BCDHW = torch.randn(2, 1, 8, 32, 32, generator=torch_stream(2, "x"))
    with torch.inference_mode():
        expected = model(x_BCDHW)
        model.set_precision(torch.bfloat16)
        tokens = model(x_BCDHW)
    assert model.norm.weight.dtype == torch.float32
    assert model.blocks[0].attn.qkv.weight.dtype == torch.bfloat16
    assert tokens.dtype == torch.float32
    assert F.cosine_similarity(tokens, expected, dim=-1).min() > 0.999
    assert not torch.equal(tokens, expected)


def test_masks_are_refused() -> None:
    block = small().blocks[0]
    with pytest.raises(ValueError, match="masks are not supported"):
        block(torch.zeros(1, 8, 32), is_causal=True)
