"""The 3D transformer: shape, names and size; oracle: the published layout of the checkpoints."""

import pytest
import torch

from vitreous.core.streams import torch_stream
from vitreous.encoders.vit3d import ViT3D


def small(**changed: object) -> ViT3D:
    arguments: dict[str, object] = {
        "img_size": (8, 32, 32), "patch_size": (4, 16, 16), "embed_dim": 32, "depth": 2, "num_heads": 4,
    } | changed
    return ViT3D(**arguments)  # type: ignore[arg-type]


def test_full_size_has_92_9_million_parameters_and_9216_tokens() -> None:
    with torch.device("meta"):
        model = ViT3D((64, 384, 384), (4, 16, 16))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(92.9, abs=0.05)
    assert model.pos_embed.shape == (1, 9216, 768)
    assert model.grid == (16, 24, 24)


def test_names_are_those_of_the_checkpoints() -> None:
    block = [f"{name}.{kind}" for name in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
             for kind in ("weight", "bias")]
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
