"""The `data` part of a study on clips whose frames are image files."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from vitreous.config.data import (
    SPLIT_FORM,
    Agreement,
    CohortData,
    Column,
    FilesOfIds,
    Fractions,
    LabelColumns,
    Scalar,
    check_floor_columns,
    check_label_map,
    different_columns,
    three_files_of_ids,
    values_as_text,
)
from vitreous.config.model import Frozen
from vitreous.core.input_spec import Modality

Positive = Annotated[int, Field(gt=0)]


class LabelRule(Frozen):
    """How the labels of frames become the label of a clip.

    `centre` is that of the frame in the middle; `majority` what more than half of the `frames` labelled frames around
    it say (a tie: what the middle says); `unanimous` leaves out clips whose `frames` labelled frames differ.
    """

    rule: Literal["centre", "majority", "unanimous"] = "centre"
    frames: Positive | None = None

    @model_validator(mode="after")
    def _frames_counted(self) -> "LabelRule":
        if (self.rule == "centre") != (self.frames is None):
            raise ValueError("label_rule.frames goes with majority and unanimous, and only with them")
        if self.frames is not None and self.frames % 2 == 0:
            raise ValueError(f"label_rule.frames must be odd, so that one is in the middle; got {self.frames}")
        return self


class MaskData(Frozen):
    """Class maps of frames as PNG files, at the frame's path with the ending .png.

    Args:
        files: the folder of the true masks.
        second: a folder of other masks, such as a model's, for frames that have no true one.
        classes: names by the value in the file.
        ignore: the value of pixels that say nothing.
    """

    files: str
    second: str | None = None
    classes: Annotated[tuple[str, ...], Field(min_length=2)]
    ignore: Annotated[int, Field(ge=0, le=255)] | None = 255

    @model_validator(mode="after")
    def _consistent(self) -> "MaskData":
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"masks.classes lists a name twice: {list(self.classes)}")
        if self.ignore is not None and self.ignore < len(self.classes):
            raise ValueError(f"masks.ignore is {self.ignore}, which is the class {self.classes[self.ignore]!r}")
        if self.second == self.files:
            raise ValueError("masks.second is the folder of masks.files; give another, or leave it out")
        return self


class FramesData(CohortData):
    """`kind: frames`: a table with one row a frame, and a folder (or bucket) of the frames' image files.

    A clip lies around each labelled frame. `pattern` says where the frame of a row lies; {split} is train, val or test.
    Without `patient` a video is a patient. `every` is the distance between the numbers of neighbouring frames, without
    it the usual one; `fps` how many numbers make a second, which an encoder needs that samples by seconds. `window` is
    the number of frames around the labelled one that a clip may take; without it all of the video. `stride` takes every
    stride-th labelled frame as a clip.
    """

    kind: Literal["frames"]
    table: str
    files: str
    pattern: str = "{split}/{video}_{frame}.jpg"
    video: str = "vid"
    frame: str = "frame"
    patient: str | None = None
    label: LabelColumns
    agreement: Agreement | None = None
    label_map: dict[str, str] | None = None
    label_rule: LabelRule = LabelRule()
    split: Annotated[Column | Fractions | FilesOfIds, SPLIT_FORM] | None = None
    every: Positive | None = None
    fps: Annotated[float, Field(gt=0)] | None = None
    window: Positive | None = None
    stride: Positive = 1
    masks: MaskData | None = None
    where: dict[str, Scalar | list[Scalar]] = Field(default_factory=dict)
    domains: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    refresh_listing: bool = False
    max_image_mb: Annotated[float, Field(gt=0)] = 500.0
    max_clip_mb: Annotated[float, Field(gt=0)] = 2000.0

    @property
    def modality(self) -> Modality:
        """What a sample is."""
        return "clip"

    @property
    def _without_effect(self) -> set[str]:
        return super()._without_effect | {key for key in ("masks", "label_map") if getattr(self, key) is None}

    @field_validator("columns")
    @classmethod
    def _columns_differ(cls, columns: tuple[str, ...]) -> tuple[str, ...]:
        return different_columns(columns)

    @field_validator("label_map", mode="before")
    @classmethod
    def _values_as_text(cls, label_map: Any) -> Any:
        return values_as_text(label_map)

    @field_validator("split")
    @classmethod
    def _every_split(cls, split: Any) -> Any:
        return three_files_of_ids(split)

    @field_validator("pattern")
    @classmethod
    def _names_video_and_frame(cls, pattern: str) -> str:
        for place in ("{video}", "{frame}"):
            if pattern.count(place) != 1:
                raise ValueError(f"pattern needs {place} once; got {pattern!r}")
        return pattern

    @model_validator(mode="after")
    def _consistent(self) -> "FramesData":
        check_floor_columns(self.columns, self.label, self.patient)
        problems = check_label_map(self.label_map, self.classes, self.task)
        if self.window is not None and self.label_rule.frames is not None and self.label_rule.frames > self.window:
            problems.append(
                f"label_rule.frames is {self.label_rule.frames}, more than the window of {self.window} frames"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self
