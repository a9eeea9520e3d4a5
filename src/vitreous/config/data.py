"""The `data` part of a study: which table, which files, whose, which label, which split."""

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from vitreous.config.model import Frozen

Scalar = str | int | float | bool
Fraction = Annotated[float, Field(gt=0, lt=1)]
SplitName = Literal["train", "val", "test"]


class FractionsSplit(Frozen):
    """A seeded split, stratified by class and grouped by patient."""

    fractions: tuple[Fraction, Fraction, Fraction]
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _whole(self) -> "FractionsSplit":
        if abs(sum(self.fractions) - 1) > 1e-6:
            raise ValueError(f"the shares of train, val and test must add up to 1; got {sum(self.fractions):g}")
        return self


class VolumeData(Frozen):
    """What every kind of volume data has in common."""

    table: str
    classes: Annotated[tuple[str, ...], Field(min_length=2)]
    axes: str | None = None
    spacing_mm: tuple[float, float, float] | None = None
    aggregate: Literal["mean_probability"] = "mean_probability"
    max_quarantined: Annotated[float, Field(ge=0, le=1)] = 0.05
    max_volume_gb: Annotated[float, Field(gt=0)] = 2.0

    @field_validator("classes")
    @classmethod
    def _distinct(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(classes)) != len(classes):
            raise ValueError(f"class names must differ; got {list(classes)}")
        return classes

    @field_validator("axes")
    @classmethod
    def _permutation(cls, axes: str | None) -> str | None:
        if axes is not None and sorted(axes) != ["D", "H", "W"]:
            raise ValueError(f"axes is an order of the letters D, H and W, such as DHW; got {axes!r}")
        return axes


class ParticipantsData(VolumeData):
    """`kind: participants`: a BIDS-like table of participants and a tree (or bucket) of volume files."""

    kind: Literal["participants"]
    files: str
    manifest: str | None = None
    pattern: str = "retinal_oct/structural_oct/{device}/{patient}/*.dcm"
    refresh_listing: bool = False
    patient: str = "participant_id"
    label: str
    split: str | FractionsSplit | dict[SplitName, str] = "recommended_split"
    where: dict[str, Scalar | list[Scalar]] = Field(default_factory=dict)
    volumes: Literal["all", "first", "one per eye"] | dict[str, Scalar | list[Scalar]] = "all"
    domains: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_way_to_files(self) -> "ParticipantsData":
        if self.manifest is not None and "pattern" in self.model_fields_set:
            raise ValueError("manifest and pattern both say whose each file is; leave one of them out")
        return self

    @model_serializer(mode="wrap")
    def _effective(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the pattern that a manifest replaces."""
        without = {"pattern"} if self.manifest is not None else set()
        return {name: value for name, value in dump(self).items() if name not in without}

    @field_validator("split")
    @classmethod
    def _every_split(cls, split: Any) -> Any:
        if isinstance(split, dict) and len(split) < 3:
            raise ValueError(f"one file of ids for each of train, val and test; got only {', '.join(split)}")
        return split


class NpzData(VolumeData):
    """`kind: npz`: arrays train_images, train_labels, val_…, test_… in one file (the MedMNIST layout)."""

    kind: Literal["npz"]
    # an npz file cannot say its axes, so the study must
    axes: str
    patient: str | None = None

    @field_validator("axes", mode="before")
    @classmethod
    def _stated(cls, axes: Any) -> Any:
        if axes is None:
            raise ValueError("an npz file does not say its axes; set data.axes, for MedMNIST 3D to DHW")
        return axes


Data = Annotated[ParticipantsData | NpzData, Field(discriminator="kind")]
