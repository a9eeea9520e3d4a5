"""The loss of each row for heads trained together, as the settings name it.

Axes: K member, C class or label, B row of a batch.
"""

from dataclasses import dataclass
from typing import Literal, assert_never

import torch

from vitreous.recipes import label_losses, pixel_losses

LossName = Literal["cross_entropy", "focal", "ordinal", "asymmetric"]


@dataclass(frozen=True)
class LossSettings:
    """Which loss, with what it needs.

    Args:
        name: `cross_entropy` is the softmax's for classes and the logistic function's for labels; `ordinal` is for
            classes, `asymmetric` for labels.
        label_smoothing: of cross-entropy, in [0, 1).
        gamma: exponent of the focal loss; `gamma_positive`, `gamma_negative` and `clip` of the asymmetric one.
        ordinal_weight: of the distance between grades.
    """

    name: LossName = "cross_entropy"
    label_smoothing: float = 0.0
    gamma: float = 2.0
    ordinal_weight: float = 1.0
    gamma_positive: float = 0.0
    gamma_negative: float = 4.0
    clip: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1); got {self.label_smoothing}.")
        if self.label_smoothing and self.name != "cross_entropy":
            raise ValueError(f"label_smoothing has no effect with the loss {self.name}.")


def class_losses(logits_KCB: torch.Tensor, y_KB: torch.Tensor, settings: LossSettings) -> torch.Tensor:
    """Shape (K, B).

    Args:
        y_KB: class indices.
    """
    if settings.name == "cross_entropy":
        return torch.nn.functional.cross_entropy(
            logits_KCB, y_KB, reduction="none", label_smoothing=settings.label_smoothing
        )
    num_members, num_classes, num_rows = logits_KCB.shape
    logits_JC = logits_KCB.transpose(1, 2).reshape(-1, num_classes)
    targets_JC = torch.nn.functional.one_hot(y_KB.reshape(-1), num_classes).to(logits_KCB.dtype)
    match settings.name:
        case "focal":
            loss_J = pixel_losses.focal(logits_JC, targets_JC, gamma=settings.gamma)
        case "ordinal":
            loss_J = pixel_losses.ordinal(logits_JC, targets_JC, weight=settings.ordinal_weight)
        case "asymmetric":
            raise ValueError("the asymmetric loss is for several labels a row")
        case _:
            assert_never(settings.name)
    return loss_J.view(num_members, num_rows)


def label_set_losses(
    logits_KCB: torch.Tensor, targets_KCB: torch.Tensor, positive_KC: torch.Tensor, settings: LossSettings
) -> torch.Tensor:
    """Means over labels, shape (K, B).

    Args:
        targets_KCB: 0 or 1.
        positive_KC: weight of rows with the label, of each member.
    """
    weight_KC1 = positive_KC[:, :, None]
    match settings.name:
        case "cross_entropy":
            loss_KCB = label_losses.binary_cross_entropy(
                logits_KCB, targets_KCB, positive_weight=weight_KC1, label_smoothing=settings.label_smoothing
            )
        case "focal":
            loss_KCB = label_losses.sigmoid_focal(
                logits_KCB, targets_KCB, gamma=settings.gamma, positive_weight=weight_KC1
            )
        case "asymmetric":
            loss_KCB = label_losses.asymmetric(
                logits_KCB,
                targets_KCB,
                gamma_positive=settings.gamma_positive,
                gamma_negative=settings.gamma_negative,
                clip=settings.clip,
                positive_weight=weight_KC1,
            )
        case "ordinal":
            raise ValueError("the ordinal loss is for classes that are grades")
        case _:
            assert_never(settings.name)
    return loss_KCB.mean(dim=1)
