"""Recipes that train on pixels or voxels: full, partial and staged fine-tuning, LoRA, training from scratch."""

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from vitreous.config.losses import Asymmetric, CrossEntropy, Dropout, Focal, NonNegative, Ordinal
from vitreous.config.metrics import MetricName
from vitreous.config.model import Frozen
from vitreous.config.probe_recipes import (
    ClassWeights,
    PositiveFloat,
    PositiveInt,
    spell_class_weights,
)

Strength = Annotated[float, Field(ge=0, le=1)]
BlockCount = Annotated[int, Field(ge=0)] | Literal["all"]


class Augment(Frozen):
    """Training augmentation by name; 0 is off. Validation and test are never augmented.

    For images and volumes: `flip` probability of each allowed axis, `rotate` largest angle in degrees (volumes: in the
    slice), `crop` largest share of each side that a random crop cuts away (it is resized back), `scale` largest
    relative change of size, `erase` probability of a blank rectangle. For images alone: `color` strength of jitter in
    brightness, contrast and saturation, `hue` largest shift in turns, `blur` probability of a Gaussian blur,
    `randaugment` magnitude 0 to 30. For volumes alone: `intensity` largest relative change of contrast and shift in
    standard deviations, `noise` standard deviation of added noise in standard deviations.
    """

    flip: Strength = 0.0
    flip_axes: tuple[Literal["D", "H", "W"], ...] = ("W",)
    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    crop: Annotated[float, Field(ge=0, lt=1)] = 0.0
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.0
    erase: Strength = 0.0
    color: Strength = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    blur: Strength = 0.0
    randaugment: Annotated[int, Field(ge=0, le=30)] = 0
    intensity: Strength = 0.0
    noise: NonNegative = 0.0

    @property
    def is_off(self) -> bool:
        """Whether nothing would change."""
        return not any(value for name, value in self if name != "flip_axes")

    @model_serializer(mode="wrap")
    def _effective(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what has no effect."""
        return {name: value for name, value in dump(self).items() if name != "flip_axes" or self.flip}

    @model_validator(mode="after")
    def _axes(self) -> "Augment":
        if len(set(self.flip_axes)) != len(self.flip_axes) or not self.flip_axes:
            raise ValueError(f"flip_axes names each axis once, at least one; got {list(self.flip_axes)}")
        if "flip_axes" in self.model_fields_set and self.flip == 0:
            raise ValueError("flip_axes has no effect without flip, the probability")
        return self


class Segmentation(Frozen):
    """A light decoder from tokens to the classes of `data.masks`, trained beside the head.

    Rows without a mask train the head alone.

    Args:
        weight: of its loss beside that of the head.
        size: rows and columns of the map.
        class_weights: of the masks' classes, as of the head.
    """

    weight: PositiveFloat = 1.0
    size: tuple[Annotated[int, Field(ge=8, le=512)], Annotated[int, Field(ge=8, le=512)]] = (64, 64)
    class_weights: ClassWeights = "none"

    @field_validator("class_weights", mode="before")
    @classmethod
    def _auto(cls, value: Any) -> Any:
        return spell_class_weights(value)


# of augmentation: what moves pixels, and would have to move masks too
_MOVES_PIXELS = ("flip", "rotate", "crop", "scale", "erase", "randaugment")

Loss = Annotated[CrossEntropy | Focal | Ordinal | Asymmetric, Field(discriminator="kind")]


class PixelRecipe(Frozen):
    """What every recipe on pixels has in common.

    Args:
        lr_head, lr_encoder: peak learning rates of head and of what is trained of the encoder (adapters included).
        layer_decay: factor on `lr_encoder` for each block further from the head; 1 is off.
        weight_decay: spares norms, biases, positions and tokens.
        warmup_epochs: linear from 0; then `schedule`.
        accumulate: batches per optimiser step.
        clip_norm: of the gradient; null is off.
        ema: decay of the running mean of weights that is validated and kept in place of the weights; null is off. At
            step t it is at most (1 + t) / (10 + t), so that the first weights are soon forgotten.
        patience: epochs without a better val `monitor` before training stops; null is off.
        monitor: metric on val; null is the study's.
        prefix_views: augmented views kept by the frozen-prefix cache; `auto` caches one view where nothing is
            augmented (the result is the same) and none otherwise; 0 is off.
        head: a linear layer, or one hidden layer of `head_width`.
        segmentation: a second task; null is off.
    """

    epochs: PositiveInt = 20
    batch_size: PositiveInt = 32
    lr_head: PositiveFloat = 1.0e-3
    lr_encoder: PositiveFloat = 1.0e-5
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    weight_decay: NonNegative = 0.05
    warmup_epochs: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    schedule: Literal["cosine", "constant"] = "cosine"
    accumulate: PositiveInt = 1
    clip_norm: PositiveFloat | None = 1.0
    gradient_checkpointing: bool = False
    patience: PositiveInt | None = 10
    min_delta: NonNegative = 0.0
    monitor: MetricName | None = None
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    loss: Loss = CrossEntropy()
    class_weights: ClassWeights = "none"
    sampler: Literal["natural", "balanced"] = "natural"
    augment: Augment = Augment()
    mixup: NonNegative = 0.0
    cutmix: NonNegative = 0.0
    head: Literal["linear", "mlp"] = "linear"
    head_width: PositiveInt = 512
    dropout: Dropout = 0.0
    prefix_views: Annotated[int, Field(ge=0, le=64)] | Literal["auto"] = "auto"
    segmentation: Segmentation | None = None

    @field_validator("class_weights", mode="before")
    @classmethod
    def _auto(cls, value: Any) -> Any:
        return spell_class_weights(value)

    @property
    def _without_effect(self) -> set[str]:
        without = {"head_width"} if self.head == "linear" else set()
        without |= {"segmentation"} if self.segmentation is None else set()
        return without | ({"min_delta"} if self.patience is None else set())

    @model_serializer(mode="wrap")
    def _effective(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what has no effect."""
        return {name: value for name, value in dump(self).items() if name not in self._without_effect}

    @model_validator(mode="after")
    def _effective_options(self) -> "PixelRecipe":
        problems = []
        if self.warmup_epochs != "auto" and self.warmup_epochs >= self.epochs:
            problems.append(f"warmup_epochs ({self.warmup_epochs}) must be fewer than epochs ({self.epochs})")
        if "head_width" in self.model_fields_set and self.head == "linear":
            problems.append("head_width has no effect with head: linear")
        if "min_delta" in self.model_fields_set and self.patience is None:
            problems.append("min_delta has no effect with patience: null")
        if self.prefix_views not in ("auto", 0) and (self.mixup or self.cutmix):
            problems.append(
                "mixup and cutmix mix pixels, which the frozen-prefix cache no longer has; set prefix_views: 0"
            )
        if self.segmentation is not None:
            moving = [name for name in _MOVES_PIXELS if getattr(self.augment, name)]
            moving += [name for name in ("mixup", "cutmix") if getattr(self, name)]
            if moving:
                problems.append(f"segmentation: {', '.join(moving)} would move pixels away from their masks; leave out")
        if self.prefix_views not in ("auto", 0) and isinstance(self, Finetune | FromScratch):
            problems.append("prefix_views has no effect where every weight trains")
        if problems:
            raise ValueError("; ".join(problems))
        return self


class Finetune(PixelRecipe):
    """Every weight of encoder and head."""

    kind: Literal["finetune"]


class FromScratch(PixelRecipe):
    """Every weight, from random ones of the encoder's architecture: what pretraining is worth."""

    kind: Literal["from_scratch"]
    lr_encoder: PositiveFloat = 1.0e-3


class Partial(PixelRecipe):
    """Head and the last `blocks` blocks of the encoder."""

    kind: Literal["partial"]
    blocks: PositiveInt = 2


class Stage(Frozen):
    """One stage of a staged recipe; what is left out is the recipe's.

    Args:
        unfreeze: how many of the last blocks train beside the head; 0 the head alone, `all` every weight.
    """

    epochs: PositiveInt
    unfreeze: BlockCount
    lr_head: PositiveFloat | None = None
    lr_encoder: PositiveFloat | None = None
    batch_size: PositiveInt | None = None
    patience: PositiveInt | None = None

    @model_validator(mode="after")
    def _used(self) -> "Stage":
        if self.unfreeze == 0 and self.lr_encoder is not None:
            raise ValueError("lr_encoder has no effect in a stage that trains the head alone (unfreeze: 0)")
        return self


class Staged(PixelRecipe):
    """One stage after another, each from the best weights of the one before.

    Either `stages`, or the short form `unfreeze_at_epoch`: the head alone until that epoch, then every weight.
    """

    kind: Literal["staged"]
    stages: tuple[Stage, ...] = ()
    unfreeze_at_epoch: PositiveInt | None = None

    @model_validator(mode="after")
    def _one_form(self) -> "Staged":
        if bool(self.stages) == (self.unfreeze_at_epoch is not None):
            raise ValueError("a staged recipe has either stages or unfreeze_at_epoch; give exactly one")
        if self.stages and "epochs" in self.model_fields_set:
            raise ValueError("epochs stands in each stage; leave it out at the top")
        if self.unfreeze_at_epoch is not None and self.unfreeze_at_epoch >= self.epochs:
            raise ValueError(f"unfreeze_at_epoch ({self.unfreeze_at_epoch}) must be fewer than epochs ({self.epochs})")
        return self

    @property
    def _without_effect(self) -> set[str]:
        return super()._without_effect | ({"epochs", "unfreeze_at_epoch"} if self.stages else {"stages"})

    @property
    def plan(self) -> tuple[Stage, ...]:
        """The stages, the short form written out."""
        if self.unfreeze_at_epoch is None:
            return self.stages
        return (
            Stage(epochs=self.unfreeze_at_epoch, unfreeze=0),
            Stage(epochs=self.epochs - self.unfreeze_at_epoch, unfreeze="all"),
        )


class Lora(PixelRecipe):
    """Low-rank adapters (Hu et al., 2022) beside chosen matrices, and the head.

    Args:
        targets: the last part of module names, such as qkv, proj, fc1, fc2, query, key, value; `mlp` is fc1 and fc2.
            One that matches nothing stops the run.
        layers: numbers of the blocks that get adapters; null is all.
        rslora: scale by alpha / sqrt(rank) (Kalajdzievski, 2023).
        dora: magnitude and direction apart (Liu et al., 2024).
    """

    kind: Literal["lora"]
    rank: PositiveInt = 8
    alpha: PositiveFloat = 16.0
    adapter_dropout: Dropout = 0.0
    targets: Annotated[tuple[str, ...], Field(min_length=1)] = ("qkv",)
    layers: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    rslora: bool = False
    dora: bool = False
    lr_encoder: PositiveFloat = 5.0e-4

    @field_validator("targets", "layers")
    @classmethod
    def _distinct(cls, values: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        if values is not None and (len(set(values)) != len(values) or not values):
            raise ValueError(f"name each once, at least one; got {list(values)}")
        return values
