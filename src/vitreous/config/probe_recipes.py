"""Recipes on features: probes and plain references. Axes of a search stand only under `grid`."""

import math
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from vitreous.config.losses import Asymmetric, CrossEntropy, Dropout, Focal, NonNegative, Ordinal
from vitreous.config.model import Frozen

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
ProbeLoss = Annotated[CrossEntropy | Focal | Ordinal | Asymmetric, Field(discriminator="kind")]
ClassWeights = Literal["none", "balanced"] | tuple[PositiveFloat, ...]


def spell_class_weights(value: Any) -> Any:
    """`auto` is another name for balanced."""
    return "balanced" if value == "auto" else value


class ProbeGrid(Frozen):
    """Lists of values; every combination is one member of the grid."""

    lr: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] | None = None
    weight_decay: Annotated[tuple[NonNegative, ...], Field(min_length=1)] | None = None
    dropout: Annotated[tuple[Dropout, ...], Field(min_length=1)] | None = None
    class_weights: Annotated[tuple[ClassWeights, ...], Field(min_length=1)] | None = None

    @field_validator("class_weights", mode="before")
    @classmethod
    def _auto(cls, values: Any) -> Any:
        return [spell_class_weights(value) for value in values] if isinstance(values, list | tuple) else values

    @model_validator(mode="after")
    def _distinct(self) -> "ProbeGrid":
        for axis, values in self:
            if values is not None and len(set(values)) != len(values):
                raise ValueError(f"grid.{axis} lists a value twice: {list(values)}")
        return self


class Probe(Frozen):
    """What heads that are trained in epochs on kept features have in common."""

    epochs: PositiveInt = 50
    batch_size: PositiveInt | Literal["full"] = 64
    lr: PositiveFloat = 1.0e-3
    weight_decay: NonNegative = 1.0e-4
    dropout: Dropout = 0.0
    class_weights: ClassWeights = "none"
    label_smoothing: Dropout = 0.0
    loss: ProbeLoss = CrossEntropy()
    sampler: Literal["natural", "balanced"] = "natural"
    warmup_epochs: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    patience: PositiveInt | None = 10
    min_delta: NonNegative = 0.0
    grid: ProbeGrid = ProbeGrid()

    @field_validator("class_weights", mode="before")
    @classmethod
    def _auto(cls, value: Any) -> Any:
        return spell_class_weights(value)

    @property
    def _without_effect(self) -> set[str]:
        without = {axis for axis, values in self.grid if values is not None}
        without |= {"loss"} if isinstance(self.loss, CrossEntropy) else {"label_smoothing"}
        return without | ({"sampler"} if self.sampler == "natural" else set())

    @model_serializer(mode="wrap")
    def _effective(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the values that an axis under `grid` replaces, or that another loss does not read."""
        return {name: value for name, value in dump(self).items() if name not in self._without_effect}

    @property
    def num_settings(self) -> int:
        """Settings that are chosen between, seeds aside."""
        return math.prod(len(values) for _, values in self.grid if values is not None)

    @model_validator(mode="after")
    def _one_place(self) -> "Probe":
        for axis, values in self.grid:
            if values is not None and axis in self.model_fields_set:
                raise ValueError(f"{axis} stands both at the top and under grid; leave one of them out")
        if isinstance(self.loss, CrossEntropy):
            if "label_smoothing" in self.loss.model_fields_set:
                raise ValueError("label_smoothing of a probe stands beside loss, not in it")
        elif self.label_smoothing:
            raise ValueError(f"label_smoothing has no effect with the loss {self.loss.kind}")
        if self.warmup_epochs != "auto" and self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs ({self.warmup_epochs}) must be fewer than epochs ({self.epochs})")
        return self


class LinearProbe(Probe):
    """One linear layer on standardised features."""

    kind: Literal["linear_probe"]


class MlpProbe(Probe):
    """A multi-layer perceptron on standardised features, e.g. 768→512→256→classes."""

    kind: Literal["mlp_probe"]
    hidden: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (512, 256)
    batch_norm: bool = True


class LogisticRegression(Frozen):
    """scikit-learn's L-BFGS over a sweep of C: a plain reference."""

    kind: Literal["logistic_regression"]
    C: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)] = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
    class_weights: ClassWeights = "none"

    @property
    def num_settings(self) -> int:
        """Settings that are chosen between."""
        return len(self.C)

    @field_validator("class_weights", mode="before")
    @classmethod
    def _auto(cls, value: Any) -> Any:
        return spell_class_weights(value)


class Knn(Frozen):
    """k nearest neighbours over a sweep of k: a plain reference."""

    kind: Literal["knn"]
    k: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (5, 10, 20)
    distance: Literal["cosine", "euclidean"] = "cosine"

    @property
    def num_settings(self) -> int:
        """Settings that are chosen between."""
        return len(self.k)
