"""The `data` part of a study: which table, which files, whose, which label, which split."""

import re
from typing import Annotated, Any, Literal

from pydantic import (
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from vitreous.config.model import Frozen
from vitreous.core.input_spec import Modality
from vitreous.core.label_sets import MAX_LABELS, Task
from vitreous.core.predictions import Aggregate

Scalar = str | int | float | bool
# one column of classes, or a column for each of several labels
LabelColumns = str | tuple[str, ...]
# of several labels, the share of annotators from which one is present
Agreement = Annotated[float, Field(gt=0, le=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
SplitName = Literal["train", "val", "test"]

IMAGE_AXES = ("HW", "HWC")


class FractionsSplit(Frozen):
    """A seeded split, stratified by class and grouped by patient."""

    fractions: tuple[Fraction, Fraction, Fraction]
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _whole(self) -> "FractionsSplit":
        if abs(sum(self.fractions) - 1) > 1e-6:
            raise ValueError(f"the shares of train, val and test must add up to 1; got {sum(self.fractions):g}")
        return self


class ValFractionSplit(Frozen):
    """Val as a seeded part of train, stratified by class and grouped by patient; test is published apart."""

    val_fraction: Fraction
    seed: Annotated[int, Field(ge=0)] = 0


def _form_of_split(split: Any) -> str | None:
    """Which way of saying the split a value takes, so that errors speak of that one alone."""
    if isinstance(split, str):
        return "column"
    if isinstance(split, FractionsSplit | ValFractionSplit):
        return type(split).__name__
    if isinstance(split, dict):
        forms = {"fractions": "FractionsSplit", "val_fraction": "ValFractionSplit"}
        forms |= dict.fromkeys(("train", "val", "test"), "one file each")
        return next((form for key, form in forms.items() if key in split), None)
    return None


Column = Annotated[str, Tag("column")]
Fractions = Annotated[FractionsSplit, Tag("FractionsSplit")]
ValFraction = Annotated[ValFractionSplit, Tag("ValFractionSplit")]
FilesOfIds = Annotated[dict[SplitName, str], Tag("one file each")]
SPLIT_FORM = Discriminator(
    _form_of_split,
    custom_error_type="split_form",
    custom_error_message="a split is a column or one file of ids each for train, val and test (tables only), "
    "{fractions: [0.7, 0.15, 0.15], seed: 0}, or {val_fraction: 0.2, seed: 0} (image kinds only)",
)


class CohortData(Frozen):
    """What every kind of data has in common."""

    classes: Annotated[tuple[str, ...], Field(min_length=2)]
    aggregate: Aggregate = "mean_probability"
    max_quarantined: Annotated[float, Field(ge=0, le=1)] = 0.05

    @model_validator(mode="before")
    @classmethod
    def _labels_are_classes(cls, values: Any) -> Any:
        """Several label columns name the labels, unless `classes` gives them other names."""
        label = values.get("label") if isinstance(values, dict) else None
        if not isinstance(label, list | tuple) or not all(isinstance(one, str) for one in label):
            return values
        if len(set(label)) != len(label):
            raise ValueError(f"label lists a column twice: {list(label)}")
        if not 2 <= len(label) <= MAX_LABELS:
            raise ValueError(
                f"a list names 2 to {MAX_LABELS} labels; got {len(label)}. One column of classes is label: NAME with "
                "its classes"
            )
        return values if "classes" in values else {**values, "classes": list(label)}

    @model_validator(mode="after")
    def _labels_fit(self) -> "CohortData":
        label, agreement = getattr(self, "label", None), getattr(self, "agreement", None)
        if isinstance(label, tuple):
            if len(label) != len(self.classes):
                raise ValueError(f"{len(self.classes)} classes for {len(label)} columns of label; leave classes out")
        elif agreement is not None:
            raise ValueError("agreement has no effect with one label column; it is for label: [A, B]")
        return self

    @property
    def _without_effect(self) -> set[str]:
        return {key for key in ("agreement", "label") if getattr(self, key, None) is None}

    @model_serializer(mode="wrap")
    def _effective(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what has no effect."""
        return {name: value for name, value in dump(self).items() if name not in self._without_effect}

    @property
    def task(self) -> Task:
        """Whether a sample has one class, or any number of the labels that `label` lists."""
        return "multi_label" if isinstance(getattr(self, "label", None), tuple) else "multi_class"

    @field_validator("classes")
    @classmethod
    def _distinct(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(classes)) != len(classes):
            raise ValueError(f"class names must differ; got {list(classes)}")
        return classes


class VolumeData(CohortData):
    """What every kind of volume data has in common."""

    table: str
    axes: str | None = None
    spacing_mm: tuple[float, float, float] | None = None
    max_volume_gb: Annotated[float, Field(gt=0)] = 2.0

    @property
    def modality(self) -> Modality:
        """What a file, or an item of one, is."""
        return "volume"

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
    label: LabelColumns
    agreement: Agreement | None = None
    split: Annotated[Column | Fractions | FilesOfIds, SPLIT_FORM] = "recommended_split"
    where: dict[str, Scalar | list[Scalar]] = Field(default_factory=dict)
    volumes: Literal["all", "first", "one per eye"] | dict[str, Scalar | list[Scalar]] = "all"
    domains: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()

    @field_validator("columns")
    @classmethod
    def _columns_differ(cls, columns: tuple[str, ...]) -> tuple[str, ...]:
        return different_columns(columns)

    @model_validator(mode="after")
    def _label_stays_out(self) -> "ParticipantsData":
        check_floor_columns(self.columns, self.label, self.patient)
        return self

    @model_validator(mode="after")
    def _one_way_to_files(self) -> "ParticipantsData":
        if self.manifest is not None and "pattern" in self.model_fields_set:
            raise ValueError("manifest and pattern both say whose each file is; leave one of them out")
        return self

    @property
    def _without_effect(self) -> set[str]:
        """The pattern that a manifest replaces."""
        return super()._without_effect | ({"pattern"} if self.manifest is not None else set())

    @field_validator("split")
    @classmethod
    def _every_split(cls, split: Any) -> Any:
        return three_files_of_ids(split)


class NpzData(VolumeData):
    """`kind: npz`: arrays train_images, train_labels, val_…, test_… in one file (the MedMNIST layout).

    Items are volumes (`axes` an order of D, H, W) or images (HW, or HWC with the channel last).
    """

    kind: Literal["npz"]
    # an npz file cannot say its axes, so the study must
    axes: str
    # names of the columns of labels of the shape (items, labels); class indices have none
    label: tuple[str, ...] | None = None
    patient: str | None = None

    @property
    def is_image(self) -> bool:
        """Whether an item is an image, not a volume."""
        return self.axes in IMAGE_AXES

    @property
    def modality(self) -> Modality:
        """What an item is."""
        return "image" if self.is_image else "volume"

    @field_validator("axes", mode="before")
    @classmethod
    def _stated(cls, axes: Any) -> Any:
        if axes is None:
            raise ValueError(
                "an npz file does not say its axes; set data.axes, for MedMNIST 3D to DHW, for MedMNIST 2D to HWC "
                "(colour) or HW (grey)"
            )
        return axes

    @field_validator("axes")
    @classmethod
    def _permutation(cls, axes: str | None) -> str | None:
        if axes not in IMAGE_AXES and sorted(axes or "") != ["D", "H", "W"]:
            raise ValueError(f"axes is HW or HWC for images, or an order of D, H and W for volumes; got {axes!r}")
        return axes

    @model_validator(mode="after")
    def _of_volumes(self) -> "NpzData":
        if idle := [key for key in ("spacing_mm", "max_volume_gb") if self.is_image and key in self.model_fields_set]:
            raise ValueError(f"axes {self.axes} says that the items are images; {' and '.join(idle)} is for volumes")
        return self

    @property
    def _without_effect(self) -> set[str]:
        """What is for volumes where the items are images."""
        return super()._without_effect | ({"spacing_mm", "max_volume_gb"} if self.is_image else set())


class ImageData(CohortData):
    """What the kinds of image files have in common."""

    refresh_listing: bool = False
    max_image_mb: Annotated[float, Field(gt=0)] = 500.0

    @property
    def modality(self) -> Modality:
        """What a file is."""
        return "image"


_OF_CLIPS = ("video", "start", "end", "centre", "clips", "max_clip_mb")


class CsvData(ImageData):
    """`kind: csv`: a table with one row an image or a clip, and the folder (or bucket) of the files.

    `table` and `files` are one place each, or one for each split. Without `label_map` the label column holds the
    class names themselves. With `video` in place of `image` a row is a clip: of the whole file, or from the second in
    the column `start` to that in `end`, or around that in `centre`; `clips` of them, one in the middle of each of so
    many equal parts.
    """

    kind: Literal["csv"]
    table: str | dict[SplitName, str]
    files: str | dict[SplitName, str]
    video: str | None = None
    image: Annotated[str | None, Field(validate_default=True)] = None
    start: str | None = None
    end: str | None = None
    centre: str | None = None
    clips: Annotated[int, Field(gt=0, le=1000)] = 1
    max_clip_mb: Annotated[float, Field(gt=0)] = 2000.0
    label: LabelColumns
    agreement: Agreement | None = None
    label_map: dict[str, str] | None = None
    patient: str | None = None
    split: Annotated[Column | Fractions | ValFraction | FilesOfIds, SPLIT_FORM] | None = None
    where: dict[str, Scalar | list[Scalar]] = Field(default_factory=dict)
    domains: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()

    @field_validator("columns")
    @classmethod
    def _columns_differ(cls, columns: tuple[str, ...]) -> tuple[str, ...]:
        return different_columns(columns)

    @model_validator(mode="after")
    def _label_stays_out(self) -> "CsvData":
        check_floor_columns(self.columns, self.label, self.patient)
        return self

    @property
    def modality(self) -> Modality:
        """What a row is."""
        return "image" if self.video is None else "clip"

    @field_validator("image")
    @classmethod
    def _image_or_video(cls, image: str | None, info: ValidationInfo) -> str | None:
        if "video" in info.data and (image is None) == (info.data["video"] is None):
            raise ValueError("a row is an image or a clip: give the column `image`, or the column `video`")
        return image

    @property
    def file_column(self) -> str:
        """The column of file names."""
        return str(self.image if self.video is None else self.video)

    @property
    def _without_effect(self) -> set[str]:
        return super()._without_effect | (set(_OF_CLIPS) if self.video is None else {"image"})

    @field_validator("label_map", mode="before")
    @classmethod
    def _values_as_text(cls, label_map: Any) -> Any:
        return values_as_text(label_map)

    @field_validator("table", "files")
    @classmethod
    def _train_and_test(cls, places: Any) -> Any:
        if isinstance(places, dict) and not {"train", "test"} <= set(places):
            raise ValueError(f"one place a split needs train and test (val too, or a val_fraction); got {list(places)}")
        return places

    @field_validator("split")
    @classmethod
    def _every_split(cls, split: Any) -> Any:
        return three_files_of_ids(split)

    @model_validator(mode="after")
    def _consistent(self) -> "CsvData":
        problems = [*check_label_map(self.label_map, self.classes, self.task), *self._split_problems()]
        if self.video is None and (idle := [key for key in _OF_CLIPS if key in self.model_fields_set]):
            problems.append(f"{', '.join(idle)} is for clips, whose column of file names is `video`")
        if self.centre is not None and self.clips > 1:
            problems.append("centre names the middle of one clip; leave it or clips out")
        if isinstance(self.files, dict) and not isinstance(self.table, dict):
            problems.append("files is given for each split, table is not; give both one way")
        elif isinstance(self.files, dict) and set(self.files) != set(self.table):
            problems.append(f"files is given for {list(self.files)} and table for {list(self.table)}")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _split_problems(self) -> list[str]:
        if not isinstance(self.table, dict):
            if isinstance(self.split, ValFractionSplit):
                return ["split.val_fraction takes val out of train; it goes with a table for train and one for test"]
            return []
        if "val" in self.table and self.split is not None:
            return ["table is given for each split; leave split out"]
        if "val" not in self.table and not isinstance(self.split, ValFractionSplit):
            return ["there is no table for val; give one, or split: {val_fraction: 0.2, seed: 0}"]
        return []


class FolderData(ImageData):
    """`kind: folder`: images in folders named by class, below folders named by split or without them.

    The layout is ``<split>/<class>/…``; with `split: {fractions}` or `folds` it is ``<class>/…``, and with
    `split: {val_fraction}` val comes out of ``train/``.
    """

    kind: Literal["folder"]
    files: str
    split: Annotated[Fractions | ValFraction, SPLIT_FORM] | None = None
    patient_pattern: str | None = None
    ignore: tuple[str, ...] = ()

    @field_validator("patient_pattern")
    @classmethod
    def _names_the_patient(cls, pattern: str | None) -> str | None:
        if pattern is None:
            return None
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise ValueError(f"patient_pattern is no regular expression ({error}); got {pattern!r}") from None
        if "patient" not in compiled.groupindex:
            raise ValueError(rf"patient_pattern needs the group patient, such as ^(?P<patient>\d+)_; got {pattern!r}")
        return pattern

    @model_validator(mode="after")
    def _classes_are_read(self) -> "FolderData":
        if both := [name for name in self.ignore if name in self.classes]:
            raise ValueError(f"ignore and classes both name {both}; take them out of one")
        return self


def values_as_text(label_map: Any) -> Any:
    """YAML reads 0 as a number and no as a truth value; a table holds text."""
    if not isinstance(label_map, dict):
        return label_map
    if truths := [value for value in label_map if isinstance(value, bool)]:
        raise ValueError(f"YAML reads {truths} as truth values; put the table's values into quotes, such as 'no'")
    return {str(value): name for value, name in label_map.items()}


def check_label_map(label_map: dict[str, str] | None, classes: tuple[str, ...], task: Task) -> list[str]:
    """What is wrong with the values of a label column, a sentence each."""
    if label_map is None:
        return []
    if task == "multi_label":
        return ["label_map has no effect with several label columns, whose cells are 0 and 1"]
    problems = []
    if unknown := sorted(set(label_map.values()) - set(classes)):
        problems.append(f"label_map names {unknown}, which are not among the classes {list(classes)}")
    if unused := [name for name in classes if name not in label_map.values()]:
        problems.append(f"no value of label_map means the class {', '.join(map(repr, unused))}")
    return problems


def different_columns(columns: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(columns)) != len(columns):
        raise ValueError(f"lists a column twice: {list(columns)}")
    return columns


def check_floor_columns(columns: tuple[str, ...], label: str | tuple[str, ...], patient: str | None) -> None:
    """The floor `columns` may read neither the answer nor whose it is."""
    labels = {label} if isinstance(label, str) else set(label)
    for column in columns:
        if column in labels or column == patient:
            what = "the label" if column in labels else "the patient id"
            raise ValueError(
                f"columns: {column!r} is {what}; name columns that the floor may read, such as age or site"
            )


def three_files_of_ids(split: Any) -> Any:
    if isinstance(split, dict) and len(split) < 3:
        raise ValueError(f"one file of ids for each of train, val and test; got only {', '.join(split)}")
    return split
