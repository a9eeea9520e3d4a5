"""Losses of several labels. Oracles: torch's BCE with pos_weight, torchvision's sigmoid_focal_loss, and the asymmetric
loss as its authors wrote it."""

import pytest
import torch

from vitreous.core.torchvision_schema import declare_torchvision_schemas
from vitreous.recipes.grid_losses import LossSettings
from vitreous.recipes.label_losses import asymmetric, binary_cross_entropy, sigmoid_focal

declare_torchvision_schemas()
from torchvision.ops import sigmoid_focal_loss  # noqa: E402


@pytest.fixture
def case() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(7, 3, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(True), (torch.rand(7, 3, generator=generator) < 0.4).double()


def both_gradients(logits: torch.Tensor, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-10)
    grads = [torch.autograd.grad(loss.sum(), logits, retain_graph=True)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*grads, atol=1e-10, rtol=1e-8)


def test_cross_entropy_is_torchs(case) -> None:
    logits, targets = case
    weight = torch.tensor([1.0, 5.0, 0.5], dtype=torch.float64)
    theirs = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, 0.9 * targets + 0.05, pos_weight=weight, reduction="none"
    )
    both_gradients(logits, binary_cross_entropy(logits, targets, positive_weight=weight, label_smoothing=0.1), theirs)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_is_torchvisions(case, gamma: float) -> None:
    logits, targets = case
    theirs = sigmoid_focal_loss(logits, targets, alpha=-1, gamma=gamma)
    both_gradients(logits, sigmoid_focal(logits, targets, gamma=gamma, positive_weight=torch.ones(3)), theirs)


def authors(logits, targets, gamma_neg, gamma_pos, clip):
    """AsymmetricLoss.forward of Ridnik et al., without its eps."""
    positive = torch.sigmoid(logits)
    negative = 1 - positive
    if clip > 0:
        negative = (negative + clip).clamp(max=1)
    loss = targets * torch.log(positive) + (1 - targets) * torch.log(negative)
    pt = positive * targets + negative * (1 - targets)
    return -loss * torch.pow(1 - pt, gamma_pos * targets + gamma_neg * (1 - targets))


@pytest.mark.parametrize(("negative", "positive", "clip"), [(4.0, 0.0, 0.05), (2.0, 1.0, 0.0), (4.0, 1.0, 0.2)])
def test_asymmetric_is_its_authors(case, negative: float, positive: float, clip: float) -> None:
    logits, targets = case
    ours = asymmetric(
        logits, targets, gamma_positive=positive, gamma_negative=negative, clip=clip, positive_weight=torch.ones(3)
    )
    both_gradients(logits, ours, authors(logits, targets, negative, positive, clip))


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([[80.0, -80.0]], requires_grad=True)
    for targets in (torch.zeros(1, 2), torch.ones(1, 2)):
        for loss in (
            sigmoid_focal(logits, targets, gamma=0.5, positive_weight=torch.ones(2)),
            asymmetric(
                logits, targets, gamma_positive=0.5, gamma_negative=0.5, clip=0.05, positive_weight=torch.ones(2)
            ),
        ):
            gradient = torch.autograd.grad(loss.sum(), logits)[0]
            assert torch.isfinite(loss).all()
            assert torch.isfinite(gradient).all()


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="label_smoothing must lie in"):
        LossSettings(label_smoothing=1.0)
    with pytest.raises(ValueError, match="no effect with the loss focal"):
        LossSettings("focal", label_smoothing=0.1)
