"""The input an encoder was trained on. It belongs to the weights; data are brought to it.

Axes: C channel, D slice, H row, W column. Spacing in millimetres in the order (D, H, W).
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ZScore(_Frozen):
    """Subtract the mean and divide by the standard deviation over all voxels of the volume."""

    kind: Literal["zscore"] = "zscore"


class PercentileMinMaxGamma(_Frozen):
    """Clip to two percentiles of the volume, bring to [0, 1], raise to the power `gamma`."""

    kind: Literal["percentile-minmax-gamma"] = "percentile-minmax-gamma"
    lower_percentile: Annotated[float, Field(ge=0, lt=100)] = 0.0
    upper_percentile: Annotated[float, Field(gt=0, le=100)] = 99.0
    gamma: PositiveFloat = 0.8

    @model_validator(mode="after")
    def _ordered(self) -> "PercentileMinMaxGamma":
        if self.lower_percentile >= self.upper_percentile:
            raise ValueError(
                f"lower_percentile must lie below upper_percentile; got {self.lower_percentile} "
                f"and {self.upper_percentile}"
            )
        return self


class FixedMeanStd(_Frozen):
    """Map the stated value range to [0, 1], then subtract `mean` and divide by `std`, per channel."""

    kind: Literal["fixed"] = "fixed"
    value_range: tuple[float, float]
    mean: tuple[float, ...]
    std: tuple[PositiveFloat, ...]

    @model_validator(mode="after")
    def _lengths(self) -> "FixedMeanStd":
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean and std differ in length: {len(self.mean)} and {len(self.std)}")
        if self.value_range[0] >= self.value_range[1]:
            raise ValueError(f"value_range must rise; got {self.value_range}")
        return self


class ClipRange(_Frozen):
    """Clip to a stated window (e.g. Hounsfield units) and bring it to [0, 1]."""

    kind: Literal["window"] = "window"
    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> "ClipRange":
        if self.low >= self.high:
            raise ValueError(f"low must lie below high; got {self.low} and {self.high}")
        return self


class Unchanged(_Frozen):
    """Leave the rescaled values as they are."""

    kind: Literal["none"] = "none"


Normalisation = Annotated[
    ZScore | PercentileMinMaxGamma | FixedMeanStd | ClipRange | Unchanged, Field(discriminator="kind")
]


class InputSpec(_Frozen):
    """What an encoder expects of one volume, applied in this order.

    1. Values are those of the file after rescale slope and intercept and after MONOCHROME1 is inverted.
    2. With `spacing_mm`, the volume is resampled to it, then centre-cropped or padded (with the volume's
       minimum) to `size`; without, it is resized to `size` whatever its spacing.
    3. `normalisation`, over the voxels of the resized volume.
    4. The one grey channel is repeated to `channels`.
    """

    size: tuple[PositiveInt, PositiveInt, PositiveInt]
    spacing_mm: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    channels: PositiveInt = 1
    interpolation: Literal["trilinear", "nearest"] = "trilinear"
    normalisation: Normalisation = ZScore()

    @model_validator(mode="after")
    def _channels(self) -> "InputSpec":
        fixed = self.normalisation
        if isinstance(fixed, FixedMeanStd) and len(fixed.mean) not in (1, self.channels):
            raise ValueError(f"fixed normalisation has {len(fixed.mean)} means for {self.channels} channels")
        return self
