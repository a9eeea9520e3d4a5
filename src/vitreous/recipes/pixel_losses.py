"""Losses of a classifier whose targets may be soft, one number per row.

Axes: B row of a batch, C class or label.
"""

from typing import assert_never

import torch
from torch.nn import functional as F

from vitreous.recipes import label_losses
from vitreous.recipes.pixel_settings import FitSettings


def cross_entropy(logits_BC: torch.Tensor, targets_BC: torch.Tensor, *, label_smoothing: float = 0.0) -> torch.Tensor:
    """-Σ t·log p, shape (B,).

    Args:
        targets_BC: rows sum to 1.
        label_smoothing: share of each target that is spread over all classes, in [0, 1).
    """
    smooth_BC = (1.0 - label_smoothing) * targets_BC + label_smoothing / targets_BC.shape[1]
    return -(smooth_BC * F.log_softmax(logits_BC, dim=1)).sum(dim=1)


def focal(logits_BC: torch.Tensor, targets_BC: torch.Tensor, *, gamma: float) -> torch.Tensor:
    """-Σ t·(1 - p)^gamma·log p, shape (B,): rows that are already right count less; 0 is cross-entropy.

    Source: Lin et al. (2017), eq. 4, over the classes of a softmax.
    """
    log_probs_BC = F.log_softmax(logits_BC, dim=1)
    # 1 - p by expm1, which stays exact where p is close to 1; above 0, where a power below 1 has no gradient
    missing_BC = (-torch.expm1(log_probs_BC)).clamp_min(torch.finfo(log_probs_BC.dtype).tiny)
    return -(targets_BC * missing_BC**gamma * log_probs_BC).sum(dim=1)


def ordinal(logits_BC: torch.Tensor, targets_BC: torch.Tensor, *, weight: float) -> torch.Tensor:
    """Cross-entropy and `weight` × squared earth mover's distance between neighbouring grades, shape (B,).

    The distance is Σ (P - T)² over cumulative probabilities: a grade far from the true one costs more than its
    neighbour.

    Args:
        targets_BC: classes in the order of the grades.

    Source: Hou et al. (2016), eq. 10.
    """
    difference_BC = (F.softmax(logits_BC, dim=1) - targets_BC).cumsum(dim=1)
    return cross_entropy(logits_BC, targets_BC) + weight * difference_BC.square().sum(dim=1)


def row_losses(
    logits_BC: torch.Tensor, targets_BC: torch.Tensor, settings: FitSettings, positive_C: torch.Tensor | None = None
) -> torch.Tensor:
    """The loss that the settings name, shape (B,); of labels its mean over them.

    Args:
        targets_BC: of classes rows sum to 1; of labels each is in [0, 1].
        positive_C: of labels, how much more a row with the label counts; None for classes.

    Raises:
        ValueError: the loss is not for this kind of target.
    """
    if positive_C is not None:
        return _label_losses(logits_BC, targets_BC, settings, positive_C).mean(dim=1)
    match settings.loss:
        case "cross_entropy":
            return cross_entropy(logits_BC, targets_BC, label_smoothing=settings.label_smoothing)
        case "focal":
            return focal(logits_BC, targets_BC, gamma=settings.focal_gamma)
        case "ordinal":
            return ordinal(logits_BC, targets_BC, weight=settings.ordinal_weight)
        case "asymmetric":
            raise ValueError("the asymmetric loss is for several labels a row")
    assert_never(settings.loss)


def _label_losses(
    logits_BC: torch.Tensor, targets_BC: torch.Tensor, settings: FitSettings, positive_C: torch.Tensor
) -> torch.Tensor:
    match settings.loss:
        case "cross_entropy":
            return label_losses.binary_cross_entropy(
                logits_BC, targets_BC, positive_weight=positive_C, label_smoothing=settings.label_smoothing
            )
        case "focal":
            return label_losses.sigmoid_focal(
                logits_BC, targets_BC, gamma=settings.focal_gamma, positive_weight=positive_C
            )
        case "asymmetric":
            return label_losses.asymmetric(
                logits_BC,
                targets_BC,
                gamma_positive=settings.gamma_positive,
                gamma_negative=settings.gamma_negative,
                clip=settings.negative_clip,
                positive_weight=positive_C,
            )
        case "ordinal":
            raise ValueError("the ordinal loss is for classes that are grades")
    assert_never(settings.loss)
