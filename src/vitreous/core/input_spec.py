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

    @property
    def size_DHW(self) -> tuple[int, int, int]:
        """What the encoder is given, in voxels."""
        return self.size

    @model_validator(mode="after")
    def _channels(self) -> "InputSpec":
        fixed = self.normalisation
        if isinstance(fixed, FixedMeanStd) and len(fixed.mean) not in (1, self.channels):
            raise ValueError(f"fixed normalisation has {len(fixed.mean)} means for {self.channels} channels")
        return self


FundusStep = Literal["circle_crop", "ben_graham", "clahe"]
EndoscopeStep = Literal["border_crop", "centre_crop"]


class PictureSpec(_Frozen):
    """What images and the frames of clips have in common: size, colours and the way there.

    Args:
        size: rows and columns in pixels.
    """

    size: tuple[PositiveInt, PositiveInt]
    channels: Literal[1, 3] = 3
    resize: Literal["squash", "shorter_side", "pad"] = "squash"
    crop_pct: Annotated[float, Field(gt=0, le=1)] = 1.0
    interpolation: Literal["bicubic", "bilinear", "lanczos", "nearest"] = "bicubic"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[PositiveFloat, ...] = (0.229, 0.224, 0.225)

    @property
    def size_DHW(self) -> tuple[int, int, int]:
        """What the encoder is given: one slice."""
        return (1, *self.size)

    @model_validator(mode="after")
    def _colours(self) -> "PictureSpec":
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(
                f"mean and std need {self.channels} numbers each; got {len(self.mean)} and {len(self.std)}"
            )
        if self.crop_pct != 1.0 and self.resize != "shorter_side":
            raise ValueError(f"crop_pct goes with resize: shorter_side; got resize: {self.resize}")
        return self


class ImageSpec(PictureSpec):
    """What an encoder expects of one image, applied in this order.

    1. EXIF orientation; grey repeated to, or colour turned to, `channels`.
    2. The steps of `fundus`, in the order given; none belongs to an encoder, a study asks for them by name.
    3. `resize`: `squash` to `size`; or `shorter_side` to ``floor(size / crop_pct)``, then a centre crop of `size`;
       or `pad`: the longer side to `size`, then a border of zeros.
    4. Values divided by the largest of their format (255 or 65535), then `mean` subtracted, divided by `std`.
    """

    fundus: tuple[FundusStep, ...] = ()

    @model_validator(mode="after")
    def _steps(self) -> "ImageSpec":
        if len(set(self.fundus)) != len(self.fundus):
            raise ValueError(f"fundus lists a step twice: {list(self.fundus)}")
        return self


class ClipSpec(PictureSpec):
    """What an encoder expects of one clip, applied in this order.

    1. `frames` of the video, around the labelled frame or the middle of the stretch that the study names: every
       `step`-th one, or `fps` a second by their timestamps, or with neither spread evenly over the stretch. Frame
       ``frames // 2`` is the one in the middle. What would lie before the first or after the last frame repeats that
       frame. Where the stretch has fewer frames than the encoder needs, `padding` decides: ``none`` refuses the clip,
       ``repeat`` repeats its first and last frame, ``loop`` begins again.
    2. Upright by the file's rotation; colour turned to `channels`.
    3. The steps of `endoscope`, in the order given; none belongs to an encoder: ``border_crop`` cuts away the dark
       frame around the picture, alike in all frames, ``centre_crop`` keeps the square in the middle.
    4. `resize` as of an image, every frame alike.
    5. Values divided by 255, then `mean` subtracted, divided by `std`.

    Args:
        frames: a multiple of `tubelet`.
        tubelet: frames that the encoder joins to one token.
    """

    interpolation: Literal["bicubic", "bilinear", "lanczos", "nearest"] = "bilinear"
    frames: PositiveInt = 16
    step: PositiveInt | None = None
    fps: PositiveFloat | None = None
    padding: Literal["none", "repeat", "loop"] = "none"
    tubelet: PositiveInt = 1
    endoscope: tuple[EndoscopeStep, ...] = ()

    @property
    def size_DHW(self) -> tuple[int, int, int]:
        """What the encoder is given: frames, rows, columns."""
        return (self.frames, *self.size)

    @model_validator(mode="after")
    def _sampling(self) -> "ClipSpec":
        if self.step is not None and self.fps is not None:
            raise ValueError("step counts frames and fps seconds; give one of them, and null for the other")
        if self.frames % self.tubelet:
            raise ValueError(f"frames must be a multiple of the tubelet of {self.tubelet}; got {self.frames}")
        if len(set(self.endoscope)) != len(self.endoscope):
            raise ValueError(f"endoscope lists a step twice: {list(self.endoscope)}")
        return self


AnySpec = InputSpec | ImageSpec | ClipSpec
Modality = Literal["image", "volume", "clip"]
SPEC_OF: dict[Modality, type[AnySpec]] = {"image": ImageSpec, "volume": InputSpec, "clip": ClipSpec}


def modality_of(spec: AnySpec) -> Modality:
    """What a spec describes."""
    if isinstance(spec, ImageSpec):
        return "image"
    return "clip" if isinstance(spec, ClipSpec) else "volume"


def item_noun(modality: Modality, count: int = 2) -> str:
    """What texts call `count` items.

    >>> item_noun("image"), item_noun("volume", 1), item_noun("clip")
    ('images', 'volume', 'clips')
    """
    return modality if count == 1 else f"{modality}s"
