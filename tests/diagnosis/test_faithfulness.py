"""Checks of maps. Oracles: scores whose curves are known, torchmetrics' SSIM, and models with planted evidence."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from vitreous.core.input_spec import ImageSpec
from vitreous.diagnosis.explain_maps import explain
from vitreous.diagnosis.explain_perturbation import (
    Masking,
    area,
    blurred,
    masking_curves,
    order_of,
    random_orders,
    steps_of,
)
from vitreous.diagnosis.explain_randomisation import RandomisedModels, rank_correlation, ssim, ssim_map
from vitreous.diagnosis.explained_model import ExplainedModel, PooledHead
from vitreous.diagnosis.faithfulness import CheckSettings, Faithfulness, RandomOrders, explain_and_check
from vitreous.encoders.catalog import build_random_encoder
from vitreous.encoders.encoder import Encoder

GRID = (1, 4, 4)
VIT3D = {"img_size": [4, 16, 16], "patch_size": [2, 8, 8], "embed_dim": 12, "depth": 2, "num_heads": 2}


def masking(weights_N: torch.Tensor, steps: int = 16) -> Masking:
    """A score that is the sum of the weights of the cells that are still there."""
    x_CDHW = torch.ones(1, 1, 8, 8)

    def score(x_BCDHW: torch.Tensor) -> torch.Tensor:
        cells = nn.functional.avg_pool2d(x_BCDHW[:, 0], 2).flatten(1)
        return cells @ weights_N

    return Masking(x_CDHW, torch.zeros_like(x_CDHW), GRID, score, steps, 5)


def test_curves_and_areas_of_a_score_that_adds_up() -> None:
    weights_N = torch.arange(16.0) / 120  # sums to 1
    best_N = np.arange(16)[::-1]
    curves = masking_curves(masking(weights_N), [best_N, best_N[::-1]])
    kept = np.concatenate([[0], np.cumsum(np.arange(16.0))]) / 120
    np.testing.assert_allclose(curves[0], kept[::-1], atol=1e-6)
    np.testing.assert_allclose(curves[1], 1 - kept, atol=1e-6)
    # read backwards, the reverse order is insertion of the best first
    np.testing.assert_allclose(curves[1][::-1], 1 - kept[::-1], atol=1e-6)
    assert area(curves[0], 16, 16) == pytest.approx(np.trapezoid(kept[::-1], dx=1 / 16))
    coarse = masking_curves(masking(weights_N, steps=3), [best_N])[0]
    np.testing.assert_allclose(coarse, kept[::-1][[0, 5, 11, 16]], atol=1e-6)
    assert steps_of(16, 3) == [0, 5, 11, 16]


def test_random_orders_bracket_what_knows_nothing_and_not_the_best_order() -> None:
    weights_N = torch.zeros(16)
    weights_N[5] = 1.0
    found, curve = random_orders(masking(weights_N), np.random.default_rng(0), 40)
    assert found.low < 0.5 < found.high
    assert found.mean == pytest.approx(0.5, abs=0.15)
    assert (curve[0], curve[-1], len(curve)) == (1.0, 0.0, 17)
    map_THW = weights_N.numpy().reshape(GRID)
    order_N = order_of(map_THW, np.random.default_rng(0))
    assert order_N[0] == 5
    assert sorted(order_N) == list(range(16))
    deletion, reverse = masking_curves(masking(weights_N), [order_N, order_N[::-1]])
    assert area(deletion, 16, 16) < found.low
    assert area(reverse, 16, 16) > found.high


def test_equal_cells_go_in_an_order_of_chance_not_of_place() -> None:
    orders = [order_of(np.zeros(GRID, np.float32), np.random.default_rng(seed)).tolist() for seed in (0, 1)]
    assert orders[0] != orders[1]
    assert orders[0] != sorted(orders[0])


def test_the_fill_has_no_detail_within_a_cell_and_keeps_single_slices_apart() -> None:
    x_CDHW = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    flat = blurred(x_CDHW, (4, 4, 4))
    assert flat.std() < 0.15 * x_CDHW.std()
    assert not torch.allclose(flat[:, 0], flat[:, 1], atol=1e-3)
    constant = torch.full((2, 1, 8, 8), 3.0)
    torch.testing.assert_close(blurred(constant, (1, 2, 2)), constant)


def test_ssim_is_that_of_torchmetrics_away_from_the_edge() -> None:
    from torchmetrics.functional.image import structural_similarity_index_measure  # after torchvision's schemas

    rng = np.random.default_rng(0)
    first = rng.random((1, 32, 32)).astype(np.float32)
    second = (first + 0.3 * rng.random((1, 32, 32))).astype(np.float32)
    x, y = ((one - one.min()) / (one.max() - one.min()) for one in (first, second))
    _, expected = structural_similarity_index_measure(
        torch.from_numpy(x)[None], torch.from_numpy(y)[None], sigma=1.5, data_range=1.0, return_full_image=True
    )
    np.testing.assert_allclose(ssim_map(first, second)[0, 5:-5, 5:-5], expected[0, 0, 5:-5, 5:-5], atol=2e-4)
    assert ssim(first, first) == pytest.approx(1)
    assert ssim(first, 1 - first) < 0


def test_rank_correlation_at_its_ends() -> None:
    first = np.arange(16, dtype=np.float32).reshape(GRID)
    assert rank_correlation(first, first**2) == pytest.approx(1)
    assert rank_correlation(first, -first) == pytest.approx(-1)
    assert rank_correlation(first, np.zeros(GRID, np.float32)) == 0.0


def vit(depth: int = 2) -> tuple[ExplainedModel, torch.Tensor]:
    encoder = build_random_encoder("vit3d", architecture={**VIT3D, "depth": depth}, seed=1, trainable=True)
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.ndim > 1:
                parameter.mul_(15)
    head = nn.Linear(12, 2)
    with torch.no_grad():
        head.weight.copy_(torch.randn(2, 12, generator=torch.Generator().manual_seed(4)))
    model = ExplainedModel(encoder, PooledHead(head, "mean", None), ("no", "yes")).eval().requires_grad_(False)
    return model, torch.randn(1, 1, 4, 16, 16, generator=torch.Generator().manual_seed(0))


def test_random_models_differ_are_repeatable_and_leave_the_model_alone() -> None:
    model, x = vit()
    before = model(x)
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    randomised = RandomisedModels(model)
    head = randomised.with_random_head(0)
    assert torch.equal(head.encoder(x).tokens_BND, model.encoder(x).tokens_BND)
    weight, mixed = model.read_out.head.weight, head.read_out.head.weight
    assert torch.equal(weight.flatten().sort().values, mixed.flatten().sort().values)
    assert not torch.equal(weight, mixed)
    first = randomised.with_random_encoder(0)(x)
    second = randomised.with_random_encoder(1)(x)
    assert not torch.equal(first, second)
    assert torch.equal(randomised.with_random_encoder(0)(x), first)
    assert torch.equal(RandomisedModels(model).with_random_encoder(0)(x), first)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model(x), before)


def test_an_input_is_explained_and_checked_and_again_to_the_same_numbers() -> None:
    model, x = vit()
    settings = CheckSettings(steps=4, orders=6, draws=2, batch_size=3)
    methods = ("rollout", "token_gradients")
    first = explain_and_check(model, RandomisedModels(model), x, 1, methods, settings)
    again = explain_and_check(model, RandomisedModels(model), x, 1, methods, settings)
    maps = explain(model, x, 1, methods)
    for method in methods:
        found, checks = first[method], first[method].checks
        assert np.array_equal(found.map_THW, maps[method])
        assert np.array_equal(found.map_THW, again[method].map_THW)
        assert checks.deletion == again[method].checks.deletion
        whole = float(model.probs(model(x))[0, 1])
        assert checks.deletion_curve[0] == pytest.approx(whole, abs=1e-6)
        assert checks.insertion_curve[-1] == pytest.approx(whole, abs=1e-6)
        assert checks.random_curve[0] == pytest.approx(whole, abs=1e-6)
        assert checks.insertion_curve[0] == pytest.approx(checks.deletion_curve[-1], abs=1e-6)
        assert -1 <= checks.encoder_correlation <= 1
    assert first["rollout"].checks.head_correlation is None, "the head has no part in it"
    assert first["token_gradients"].checks.head_correlation is not None


def faithful(*, is_empty: bool = False, **changes: float | None) -> Faithfulness:
    given = {"deletion": 0.2, "insertion": 0.9, "encoder_correlation": 0.1, "head_correlation": 0.1, **changes}
    curve = np.zeros(2)
    return Faithfulness(
        is_empty=is_empty,
        random=RandomOrders(0.5, 0.4, 0.6),
        encoder_ssim=0.0,
        head_ssim=None,
        share_S=curve,
        deletion_curve=curve,
        insertion_curve=curve,
        random_curve=curve,
        **given,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("changes", "failures"),
    [
        ({}, ()),
        ({"head_correlation": None}, ()),
        ({"is_empty": True}, ("empty",)),
        ({"deletion": 0.4}, ("deletion",)),
        ({"insertion": 0.6}, ("insertion",)),
        ({"encoder_correlation": 0.51}, ("random encoder",)),
        ({"head_correlation": 0.9, "deletion": 0.5}, ("deletion", "random head")),
    ],
)
def test_what_fails_is_named(changes: dict[str, Any], failures: tuple[str, ...]) -> None:
    checks = faithful(**changes)
    assert checks.failures == failures
    assert checks.is_faithful == (not failures)


class Contrast(nn.Module):
    """A backbone that takes the variance within each cell; whatever its weights are, it shows the same cells."""

    width, num_blocks, num_prefix_tokens = 2, 1, 0

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))

    def embed(self, x_BCDHW: torch.Tensor) -> torch.Tensor:
        return x_BCDHW[:, 0, 0][:, None]

    def run_blocks(self, hidden: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        if start == stop:
            return hidden
        return nn.functional.avg_pool2d(hidden**2, 2) - nn.functional.avg_pool2d(hidden, 2) ** 2

    def finish(self, hidden: torch.Tensor) -> torch.Tensor:
        contrast_BN = hidden.flatten(1)
        return torch.stack([contrast_BN, torch.ones_like(contrast_BN)], -1) * self.scale

    def forward(self, x_BCDHW: torch.Tensor) -> torch.Tensor:
        return self.finish(self.run_blocks(self.embed(x_BCDHW), 0, 1))

    def init_weights(self, generator: torch.Generator) -> None:
        nn.init.uniform_(self.scale, 0.5, 1.5, generator=generator)


def test_planted_evidence_is_found_and_a_map_that_shows_only_the_input_is_called_not_faithful() -> None:
    receipt = vit()[0].encoder.receipt
    encoder = Encoder(
        Contrast(), (1, 8, 8), ImageSpec(size=(16, 16)), receipt, width=2, family="contrast", architecture={},
        weights_hash="0", precision="fp32",
    )  # fmt: skip
    head = nn.Linear(2, 2)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[0.0, 0.0], [64.0, 0.0]]))
        head.bias.copy_(torch.tensor([4.0, 0.0]))
    model = ExplainedModel(encoder, PooledHead(head, "mean", None), ("flat", "fine")).eval().requires_grad_(False)
    x = torch.zeros(1, 3, 1, 16, 16)
    x[..., 4:8:2, 8:16:2] = 2.0  # fine detail in eight of the 64 cells
    found = explain_and_check(model, RandomisedModels(model), x, 1, ["gradcam"], CheckSettings(draws=8))["gradcam"]
    marked = np.zeros((1, 8, 8), bool)
    marked[:, 2:4, 4:8] = True
    assert np.array_equal(found.map_THW > 0, marked)
    assert found.checks.deletion < found.checks.random.low
    assert found.checks.insertion > found.checks.random.high
    assert found.checks.failures == ("random encoder",)
