"""One head of a grid, how all heads are trained, and what comes out."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from vitreous.core.errors import UserError
from vitreous.core.undefined import Undefined
from vitreous.recipes.class_weights import ClassWeights
from vitreous.recipes.grid_losses import LossSettings
from vitreous.recipes.probe_logits import probe_logits

Sampler = Literal["natural", "balanced"]


@dataclass(frozen=True)
class ProbeMember:
    """The settings that may differ between heads trained together.

    Args:
        learning_rate: peak of the schedule, > 0.
        weight_decay: decoupled, as in AdamW: a weight loses the share learning rate × weight decay per step.
            Biases and batch norm are not decayed.
        dropout: share in [0, 1): of the standardised features for a linear head, of the units of each
            hidden layer (not of the features) for an MLP.
        seed: names the streams of initial weights, row order and dropout.
        class_weights: see :func:`vitreous.recipes.class_weights.class_weight_vector`; of labels
            :func:`vitreous.recipes.class_weights.positive_weights`.
        hidden: widths of the hidden layers (ReLU); none is a linear head.
        batch_norm: between each hidden layer and its ReLU.
    Raises:
        ValueError: a value outside its range.
    """

    learning_rate: float
    weight_decay: float = 0.0
    dropout: float = 0.0
    seed: int = 0
    class_weights: ClassWeights = "none"
    hidden: tuple[int, ...] = ()
    batch_norm: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"learning_rate must be positive and finite; got {self.learning_rate}.")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay must be at least 0 and finite; got {self.weight_decay}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1); got {self.dropout}.")
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"hidden widths must be at least 1; got {self.hidden}.")
        if self.batch_norm and not self.hidden:
            raise ValueError("batch_norm needs a hidden layer; a linear head has none. Set `hidden` or leave it out.")


@dataclass(frozen=True)
class ProbeSettings:
    """How all members of a grid are trained.

    Args:
        epochs: at most this many.
        batch_size: rows per step; None takes all rows in one step, in table order. A remainder of one row
            joins the batch before it.
        warmup_epochs: the learning rate rises per step over these, then falls as a half cosine to zero at
            `epochs`.
        patience: a member stops after this many epochs without a gain of more than `min_delta` in val
            balanced accuracy per patient (of labels, mAP); None trains all epochs. The weights kept are those of the
            best epoch either way.
        loss: of a row; of labels the mean over them.
        sampler: `natural` is every row once an epoch; `balanced` see
            :func:`vitreous.recipes.balanced_sampling.draw_balanced`.
        max_member_bytes: bound on the memory that grows with the number of members; larger grids are
            trained in consecutive parts (:func:`vitreous.recipes.probe_cost.estimate_probe_memory`).
    Raises:
        ValueError: a value outside its range.
    """

    epochs: int = 50
    batch_size: int | None = 64
    warmup_epochs: int = 5
    patience: int | None = 10
    min_delta: float = 0.0
    loss: LossSettings = field(default_factory=LossSettings)
    sampler: Sampler = "natural"
    max_member_bytes: int = 2 << 30

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs must be at least 1; got {self.epochs}.")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, or None for all rows; got {self.batch_size}.")
        if not 0 <= self.warmup_epochs < self.epochs:
            raise ValueError(f"warmup_epochs must lie in 0…{self.epochs - 1} (epochs − 1); got {self.warmup_epochs}.")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience must be at least 1, or None for no early stopping; got {self.patience}.")
        if not (math.isfinite(self.min_delta) and self.min_delta >= 0):
            raise ValueError(f"min_delta must be at least 0; got {self.min_delta}.")
        if self.max_member_bytes < 1:
            raise ValueError(f"max_member_bytes must be positive; got {self.max_member_bytes}.")


@dataclass(frozen=True)
class FittedProbe:
    """One trained head, with the weights of its best epoch.

    Args:
        member: its settings.
        best_epoch: from 1; the first epoch with the highest val score. 0 if the member diverged.
        val_score: balanced accuracy (of labels, mAP) per patient on val of the kept tensors, in [0, 1]; Undefined if it
            diverged.
        history: one row per epoch: epoch, learning_rate (of its last step), train_loss and
            train_balanced_accuracy (running, in training mode, rows weighing 1 / volumes of their patient;
            the loss also by class), val_loss, val_balanced_accuracy (per patient).
        tensors: weights and standardiser, ready for safetensors; empty if the member diverged.
        num_constant_features: features without spread in training, which are only centred.
        diverged_epoch: where the loss ceased to be finite, else None.
    """

    member: ProbeMember
    best_epoch: int
    val_score: float | Undefined
    history: list[dict[str, float]] = field(repr=False)
    tensors: dict[str, npt.NDArray[Any]] = field(repr=False)
    num_constant_features: int
    diverged_epoch: int | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What is chosen between: the member without its seed."""
        chosen = {name: getattr(self.member, name) for name in self.member.__dataclass_fields__}
        del chosen["seed"]
        return chosen

    @property
    def seed(self) -> int:
        """The member's seed."""
        return self.member.seed

    def predict_logits(self, features_ND: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Logits of shape (N, C) for features that are not standardised.

        Raises:
            UserError: the member diverged, so there is nothing to predict with.
        """
        if self.diverged_epoch is not None:
            raise UserError(f"{self.member} diverged in epoch {self.diverged_epoch}; lower its learning_rate.")
        return probe_logits(self.tensors, features_ND)
