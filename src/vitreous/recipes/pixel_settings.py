"""What a training on pixels is told: rows, settings of the whole, settings of a stage; and what it gives back.

Axes: N row (image or volume), C channel, D slice, H row of pixels, W column.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from vitreous.core.errors import ConfigError
from vitreous.core.finding import Finding
from vitreous.core.input_spec import AnySpec
from vitreous.core.label_sets import Task
from vitreous.core.predictions import Aggregate
from vitreous.inputs.augmentation import AugmentSettings
from vitreous.recipes.class_weights import ClassWeights
from vitreous.recipes.feature_set import FeatureSet
from vitreous.recipes.segmentation import SegmentationSettings

LossKind = Literal["cross_entropy", "focal", "ordinal", "asymmetric"]
Sampler = Literal["natural", "balanced"]
Schedule = Literal["cosine", "constant"]
Unfreeze = int | Literal["all", "adapters"] | None
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class PixelSet:
    """One row per image or volume.

    Args:
        read: the row's input as `prepare_input` gives it, (C, D, H, W); called from workers where there are any.
        y_N: class indices, or numbers of sets of labels (see `task`).
        patient_id_N: whose the row is.
        weight_N: 1 / (rows of its participant), so that participants weigh the same.
        spec: the encoder's.
        mask: a row's class map (H, W) at the decoder's size, or None where it has none; of sets to segment alone.
        aggregate: as of :class:`~vitreous.recipes.feature_set.FeatureSet`.

    Raises:
        ValueError: the arrays differ in length.
    """

    read: Callable[[int], torch.Tensor]
    y_N: npt.NDArray[np.int64]
    patient_id_N: npt.NDArray[np.str_]
    weight_N: npt.NDArray[np.float64]
    spec: AnySpec
    aggregate: Aggregate = "mean_probability"
    task: Task = "multi_class"
    mask: Callable[[int], npt.NDArray[np.uint8] | None] | None = None

    def __post_init__(self) -> None:
        if not len(self.y_N) == len(self.patient_id_N) == len(self.weight_N):
            raise ValueError(
                f"y, patient_id and weight differ in length: {len(self.y_N)}, {len(self.patient_id_N)}, "
                f"{len(self.weight_N)}."
            )

    def __len__(self) -> int:
        return len(self.y_N)

    @property
    def labels(self) -> FeatureSet:
        """Labels and owners alone, for what does not look at the inputs: a feature set of one constant column."""
        nothing_N1 = np.zeros((len(self), 1), np.float32)
        return FeatureSet(nothing_N1, self.y_N, self.patient_id_N, self.weight_N, self.aggregate, self.task)


@dataclass(frozen=True)
class FitSettings:
    """How every stage is trained; `config.pixel_recipes.PixelRecipe` says what each field means.

    Args:
        label_smoothing: of `cross_entropy` alone; likewise `focal_gamma`, `ordinal_weight`, and of `asymmetric`
            `gamma_positive`, `gamma_negative` and `negative_clip`, are of their loss.
        augment: None or all strengths 0 is off.

    Raises:
        ConfigError: values that cannot go together.
    """

    loss: LossKind = "cross_entropy"
    label_smoothing: float = 0.0
    focal_gamma: float = 2.0
    ordinal_weight: float = 1.0
    gamma_positive: float = 0.0
    gamma_negative: float = 4.0
    negative_clip: float = 0.05
    class_weights: ClassWeights = "none"
    sampler: Sampler = "natural"
    layer_decay: float = 1.0
    weight_decay: float = 0.05
    warmup_epochs: int | Literal["auto"] = "auto"
    schedule: Schedule = "cosine"
    accumulate: int = 1
    clip_norm: float | None = 1.0
    min_delta: float = 0.0
    ema: float | None = None
    augment: AugmentSettings | None = None
    mixup: float = 0.0
    cutmix: float = 0.0
    prefix_views: int | Literal["auto"] = "auto"
    segmentation: SegmentationSettings | None = None

    def __post_init__(self) -> None:
        if self.segmentation is not None and self.is_mixing:
            raise ConfigError("mixup and cutmix would mix masks; leave them out with segmentation.")
        if self.prefix_views not in ("auto", 0) and self.is_mixing:
            raise ConfigError(
                "mixup and cutmix mix pixels, which the frozen-prefix cache no longer has; set prefix_views: 0."
            )

    @property
    def is_mixing(self) -> bool:
        """Whether rows of a batch are mixed."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def is_augmenting(self) -> bool:
        """Whether training inputs are changed at random."""
        return self.augment is not None and not self.augment.is_off

    @property
    def num_views(self) -> int:
        """Views of each training row that the frozen-prefix cache keeps; 0 keeps none."""
        if self.prefix_views == "auto":
            return 0 if self.is_augmenting or self.is_mixing else 1
        return self.prefix_views if self.is_augmenting else min(self.prefix_views, 1)


@dataclass(frozen=True)
class StageSettings:
    """One stage, trained from the best weights of the one before.

    Args:
        unfreeze: what trains beside the head (see `set_trainable`); `adapters` and None leave it as the model has it.
        patience: epochs without a rise of the val metric before the stage ends; None never ends it early.
    """

    epochs: int
    unfreeze: Unfreeze = None
    lr_head: float = 1e-3
    lr_encoder: float = 1e-5
    batch_size: int = 32
    patience: int | None = 10

    def num_warmup_epochs(self, warmup_epochs: int | Literal["auto"]) -> int:
        """`auto` is a tenth of the stage's epochs, at most five.

        Raises:
            ConfigError: the warm-up would fill the stage.
        """
        if warmup_epochs == "auto":
            return min(5, self.epochs // 10)
        if warmup_epochs >= self.epochs:
            raise ConfigError(
                f"warmup_epochs ({warmup_epochs}) must be fewer than the {self.epochs} epochs of every stage; lower it."
            )
        return warmup_epochs


@dataclass(frozen=True)
class FittedPixels:
    """What training came to; the model itself holds the best weights.

    Args:
        history: one row per epoch: stage and epoch (both from 1), lr_head and lr_encoder (of its last step),
            train_loss, val_loss and val_<metric>.
        best_epoch: of its stage.
        best_score: the metric on val, per patient.
        num_epochs: over all stages.
        stage: the one that the best weights are of, from 1.
    """

    history: list[dict[str, Any]]
    best_epoch: int
    best_score: float
    num_epochs: int
    stage: int
    findings: tuple[Finding, ...] = field(default=())
