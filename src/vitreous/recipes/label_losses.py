"""Losses of several labels a row, element by element: means over labels and rows are the caller's.

Axes: … any shape, of which targets and logits have the same; weights are broadcast against it. Targets lie in [0, 1].
"""

import torch
from torch.nn import functional as F


def binary_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, *, positive_weight: torch.Tensor, label_smoothing: float = 0.0
) -> torch.Tensor:
    """-w·t·log p - (1 - t)·log(1 - p).

    Args:
        positive_weight: w, torch's ``pos_weight``.
        label_smoothing: share of each target that is replaced by one half, in [0, 1).
    """
    smooth = (1.0 - label_smoothing) * targets + 0.5 * label_smoothing
    return -(positive_weight * smooth * F.logsigmoid(logits) + (1.0 - smooth) * F.logsigmoid(-logits))


def sigmoid_focal(
    logits: torch.Tensor, targets: torch.Tensor, *, gamma: float, positive_weight: torch.Tensor
) -> torch.Tensor:
    """Binary cross-entropy whose terms weigh (1 - p)^gamma with the label, p^gamma without it; 0 is cross-entropy.

    Source: Lin et al. (2017), eq. 4, with `positive_weight` in place of alpha.
    """
    with_label = _missing(logits) ** gamma * F.logsigmoid(logits)
    without = _missing(-logits) ** gamma * F.logsigmoid(-logits)
    return -(positive_weight * targets * with_label + (1.0 - targets) * without)


def asymmetric(
    logits: torch.Tensor,
    targets: torch.Tensor,
    *,
    gamma_positive: float,
    gamma_negative: float,
    clip: float,
    positive_weight: torch.Tensor,
) -> torch.Tensor:
    """Focal loss with an exponent for each kind of row, and easy negatives left out.

    With the label -(1 - p)^γ₊·log p; without it -q^γ₋·log(1 - q), where q = max(p - clip, 0).

    Source: Ridnik et al. (2021), eq. 4 to 7.
    """
    with_label = _missing(logits) ** gamma_positive * F.logsigmoid(logits)
    if clip > 0:
        shifted = (torch.sigmoid(logits) - clip).clamp_min(0.0)
        # above 0, where a power below 1 has no gradient
        without = shifted.clamp_min(torch.finfo(logits.dtype).tiny) ** gamma_negative * torch.log1p(-shifted)
    else:
        without = _missing(-logits) ** gamma_negative * F.logsigmoid(-logits)
    return -(positive_weight * targets * with_label + (1.0 - targets) * without)


def _missing(logits: torch.Tensor) -> torch.Tensor:
    """1 - p, exact where p is close to 1; above 0, where a power below 1 has no gradient."""
    return torch.sigmoid(-logits).clamp_min(torch.finfo(logits.dtype).tiny)
