"""Losses by name. Cross-entropy and focal loss are the softmax's for classes and the logistic function's for labels."""

from typing import Annotated, Literal

from pydantic import Field

from vitreous.config.model import Frozen

NonNegative = Annotated[float, Field(ge=0)]
Dropout = Annotated[float, Field(ge=0, lt=1)]


class CrossEntropy(Frozen):
    """Cross-entropy with optional label smoothing."""

    kind: Literal["cross_entropy"] = "cross_entropy"
    label_smoothing: Dropout = 0.0


class Focal(Frozen):
    """Focal loss (Lin et al., 2017): cross-entropy times (1 - p)^gamma."""

    kind: Literal["focal"] = "focal"
    gamma: NonNegative = 2.0


class Ordinal(Frozen):
    """For grades: squared distance of cumulative probabilities (earth mover's, Hou et al., 2016) on top of
    cross-entropy, which keeps the outputs logits of the classes."""

    kind: Literal["ordinal"] = "ordinal"
    weight: Annotated[float, Field(gt=0, le=100)] = 1.0


class Asymmetric(Frozen):
    """For labels: focal loss with an exponent for each kind of row, and negatives below `clip` left out (Ridnik et al.,
    2021)."""

    kind: Literal["asymmetric"] = "asymmetric"
    gamma_positive: NonNegative = 0.0
    gamma_negative: NonNegative = 4.0
    clip: Annotated[float, Field(ge=0, lt=1)] = 0.05


def loss_problem(loss: CrossEntropy | Focal | Ordinal | Asymmetric, *, is_of_labels: bool) -> str | None:
    """Why a loss does not go with the study's labels; None where it does."""
    if isinstance(loss, Ordinal) and is_of_labels:
        return "loss ordinal is for classes that are grades; several labels take cross_entropy, focal or asymmetric"
    if isinstance(loss, Asymmetric) and not is_of_labels:
        return "loss asymmetric is for several labels a sample; one class takes cross_entropy, focal or ordinal"
    return None
