"""Losses against closed forms in NumPy, torch's own cross-entropy, and scipy's earth mover's distance.

Axes: B row of a batch, C class.
"""

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import energy_distance
from torch.nn import functional as F

from vitreous.recipes.pixel_losses import cross_entropy, focal, ordinal, row_losses
from vitreous.recipes.pixel_settings import FitSettings

NUM_ROWS, NUM_CLASSES = 50, 5


@pytest.fixture
def logits_BC() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(scale=3.0, size=(NUM_ROWS, NUM_CLASSES)))


@pytest.fixture
def hard_BC() -> torch.Tensor:
    return torch.eye(NUM_CLASSES, dtype=torch.float64)[np.random.default_rng(1).integers(NUM_CLASSES, size=NUM_ROWS)]


@pytest.fixture
def soft_BC() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(2).dirichlet(np.ones(NUM_CLASSES), NUM_ROWS))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_torchs(logits_BC: torch.Tensor, soft_BC: torch.Tensor, smoothing: float) -> None:
    expected_B = F.cross_entropy(logits_BC, soft_BC, reduction="none", label_smoothing=smoothing)
    torch.testing.assert_close(cross_entropy(logits_BC, soft_BC, label_smoothing=smoothing), expected_B)


def test_focal_is_its_formula(logits_BC: torch.Tensor, hard_BC: torch.Tensor, soft_BC: torch.Tensor) -> None:
    probs_BC = softmax(logits_BC.numpy(), axis=1)
    for targets_BC in (hard_BC, soft_BC):
        expected_B = (-targets_BC.numpy() * (1 - probs_BC) ** 1.5 * np.log(probs_BC)).sum(axis=1)
        np.testing.assert_allclose(focal(logits_BC, targets_BC, gamma=1.5).numpy(), expected_B, rtol=1e-9)
    torch.testing.assert_close(focal(logits_BC, soft_BC, gamma=0.0), cross_entropy(logits_BC, soft_BC))


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_has_a_gradient_where_the_answer_is_certain(gamma: float) -> None:
    logits_BC = torch.tensor([[60.0, -60.0]], requires_grad=True)
    focal(logits_BC, torch.tensor([[1.0, 0.0]]), gamma=gamma).sum().backward()
    assert logits_BC.grad is not None
    assert logits_BC.grad.isfinite().all()


def test_ordinal_is_scipys_distance(logits_BC: torch.Tensor, hard_BC: torch.Tensor, soft_BC: torch.Tensor) -> None:
    """energy distance² of two distributions is twice the integral of the squared difference of their CDFs."""
    grades = np.arange(NUM_CLASSES)
    probs_BC = softmax(logits_BC.numpy(), axis=1)
    for targets_BC in (hard_BC, soft_BC):
        emd_B = [energy_distance(grades, grades, p_C, t_C) ** 2 / 2 for p_C, t_C in zip(probs_BC, targets_BC.numpy())]
        expected_B = cross_entropy(logits_BC, targets_BC).numpy() + 0.7 * np.array(emd_B)
        np.testing.assert_allclose(ordinal(logits_BC, targets_BC, weight=0.7).numpy(), expected_B, rtol=1e-9)


def test_ordinal_prefers_the_neighbour() -> None:
    true_BC = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    near_BC, far_BC = torch.tensor([[0.0, 4.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 0.0, 4.0]])
    assert cross_entropy(near_BC, true_BC) == cross_entropy(far_BC, true_BC)
    assert ordinal(near_BC, true_BC, weight=1.0) < ordinal(far_BC, true_BC, weight=1.0)


@pytest.mark.parametrize("loss", ["cross_entropy", "focal", "ordinal"])
def test_gradients(loss: str, logits_BC: torch.Tensor, soft_BC: torch.Tensor) -> None:
    settings = FitSettings(loss=loss, label_smoothing=0.1 if loss == "cross_entropy" else 0.0)  # type: ignore[arg-type]
    few_BC = logits_BC[:4].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: row_losses(x, soft_BC[:4], settings), few_BC)


def test_the_settings_choose(logits_BC: torch.Tensor, soft_BC: torch.Tensor) -> None:
    for settings, expected_B in (
        (FitSettings(label_smoothing=0.2), cross_entropy(logits_BC, soft_BC, label_smoothing=0.2)),
        (FitSettings(loss="focal", focal_gamma=3.0), focal(logits_BC, soft_BC, gamma=3.0)),
        (FitSettings(loss="ordinal", ordinal_weight=2.0), ordinal(logits_BC, soft_BC, weight=2.0)),
    ):
        torch.testing.assert_close(row_losses(logits_BC, soft_BC, settings), expected_B, rtol=0, atol=0)
