"""Attentive probes looked into. Oracle: the probe's own logits and maps from kept tokens."""

import numpy as np
import pytest
import torch

from vitreous.diagnosis.attentive_read_out import AttentiveReadOut, pooling_attention
from vitreous.diagnosis.explain_maps import METHODS, explain, fitting_methods
from vitreous.diagnosis.explain_randomisation import RandomisedModels
from vitreous.diagnosis.explained_model import ExplainedModel
from vitreous.encoders.catalog import build_random_encoder
from vitreous.recipes.attentive_heads import AttentionShape, attention_maps, attentive_logits, draw_parameters

VIT3D = {"img_size": [4, 16, 16], "patch_size": [2, 4, 4], "embed_dim": 12, "depth": 2, "num_heads": 2}


def make_model(*, queries: int = 1, blocks: int = 1, grid: tuple[int, int, int] | None = None):
    encoder = build_random_encoder("vit3d", architecture=VIT3D, seed=1, trainable=True)
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.ndim > 1:
                parameter.mul_(15)
    hidden = 12 if blocks > 1 else 8
    shape = AttentionShape(12, hidden, 2, queries, 3, blocks)
    generator = np.random.default_rng(0)
    tensors = {name: value + generator.normal(0, 0.5, value.shape) for name, value in draw_parameters(shape, 0).items()}
    tensors["attentive.heads"] = np.array([2])
    read_out = AttentiveReadOut(tensors, grid)
    model = ExplainedModel(encoder, read_out, ("a", "b", "c"), "multi_label").eval().requires_grad_(False)
    parameters = {name: torch.from_numpy(tensors[name]).float()[None] for name in shape.parameter_shapes()}
    return model, shape, parameters, torch.randn(1, 1, 4, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("queries", "blocks"), [(1, 1), (3, 1), (3, 2)])
def test_logits_and_maps_are_those_of_the_probe(queries: int, blocks: int) -> None:
    model, shape, parameters, x = make_model(queries=queries, blocks=blocks)
    tokens = model.encoder(x)
    torch.testing.assert_close(model(x), attentive_logits(shape, parameters, tokens.tokens_BND)[0].T)
    expected = attention_maps(shape, parameters, tokens.tokens_BND)[0, 0]
    torch.testing.assert_close(model.read_out.maps_QHT(tokens), expected)
    for target in range(3):
        found = explain(model, x, target, ["attention_pooling"])["attention_pooling"]
        query = expected[target if queries > 1 else 0].mean(0)
        np.testing.assert_allclose(found.ravel(), query.numpy(), rtol=1e-5)
        assert found.shape == model.encoder.grid
    assert fitting_methods(model, x) == METHODS


def test_every_method_goes_through_the_probe_and_its_own_attention_is_not_the_encoders() -> None:
    model, _, _, x = make_model(queries=3, blocks=2)
    found = explain(model, x, 1, METHODS)
    assert all(map_THW.shape == model.encoder.grid for map_THW in found.values())
    # rollout starts where the probe looks: the last block's attention, weighted by it
    start_N = model.read_out.start_N(model.encoder(x))
    assert float(start_N.sum()) == pytest.approx(1, abs=1e-5)
    leaf = model.backbone.run_blocks(model.backbone.embed(x), 0, 1).detach().requires_grad_()
    tokens = model.encoder.split(model.backbone.finish(model.backbone.run_blocks(leaf, 1, 2)))
    (gradient,) = torch.autograd.grad(model.read_out(tokens)[0, 1], leaf)
    expected = (leaf.detach()[0] * gradient[0]).sum(1).clamp_min(0)
    np.testing.assert_allclose(found["token_gradients"].ravel(), expected, rtol=1e-3, atol=1e-6)


def test_cells_of_a_coarser_grid_spread_their_share_over_their_tokens() -> None:
    model, _, _, x = make_model(grid=(1, 2, 2))
    tokens = model.encoder(x)
    cells = model.read_out.maps_QHT(tokens)
    assert cells.shape == (1, 2, 4)
    found = explain(model, x, 0, ["attention_pooling"])["attention_pooling"]
    assert found.sum() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(found[0, :2, :2], float(cells[0, :, 0].mean()) / 8, rtol=1e-5)
    np.testing.assert_allclose(found[1, 2:, 2:], float(cells[0, :, 3].mean()) / 8, rtol=1e-5)


def test_a_random_head_looks_elsewhere() -> None:
    model, _, _, x = make_model(queries=3)
    random = RandomisedModels(model).with_random_head(0)
    assert not np.allclose(
        explain(random, x, 0, ["attention_pooling"])["attention_pooling"],
        explain(model, x, 0, ["attention_pooling"])["attention_pooling"],
    )


def test_entropy_of_the_queries_is_that_of_the_plain_formula() -> None:
    maps_QHT = torch.softmax(torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(1)).double(), -1)
    found = pooling_attention(maps_QHT)
    share = -(maps_QHT * maps_QHT.log()).sum(-1).numpy() / np.log(5)
    assert found.mean == pytest.approx(share.mean())
    assert (found.lowest, found.highest) == (pytest.approx(share.min()), pytest.approx(share.max()))
    np.testing.assert_allclose(found.layers[0].mean_H, share.mean(0))
    assert found.largest_weight == pytest.approx(float(maps_QHT.amax(-1).mean()))
