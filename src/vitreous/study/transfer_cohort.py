"""The other cohort of a transfer: named on the command line, opened like a study's own data.

It is described by the run's own `data` section with table and files replaced, or by the `data` section of another
study file. Classes are always those of the run.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pandas as pd

from vitreous.config.compose import compose_study, find_study, validate_study
from vitreous.config.study import StudyConfig
from vitreous.core.errors import UserError
from vitreous.core.finding import Finding
from vitreous.study.data import OpenedData, open_data
from vitreous.study.run_directory import RunDirectory

Split = Literal["all", "test"]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
# what a cohort given by table and files does not take over: it says of whom the run's own cohort consists
_OF_THE_SOURCE = ("domains", "columns")
_ONE_PLACE = {"folder": "files", "npz": "table"}


@dataclass(frozen=True)
class CohortOptions:
    """How the target's table differs from the run's; None keeps the run's.

    Args:
        label_map: value of the label column → class.
        split: all samples, or the cohort's own test split.
    """

    label: str | None = None
    image: str | None = None
    patient: str | None = None
    label_map: Mapping[str, str] | None = None
    split: Split = "all"


@dataclass(frozen=True)
class TargetPlace:
    """One ``--on``: a name, and a study file or locations.

    Args:
        study: path or name of a study file; else `locations` are table and files, or the one place of a folder or
            npz cohort.
    """

    name: str
    study: str | None = None
    locations: tuple[str, ...] = field(default=())


def parse_place(text: str) -> TargetPlace:
    """Read ``NAME:STUDY.yaml``, ``NAME:TABLE:FILES`` or ``NAME:PLACE``; colons of ``s3://`` and ``C:\\`` do not divide.

    Raises:
        UserError: no name, or more colons than can be told apart.

    >>> parse_place("idrid:s3://b/labels.csv:s3://b/images").locations
    ('s3://b/labels.csv', 's3://b/images')
    """
    name, colon, rest = text.partition(":")
    if not colon or not rest or not _NAME.fullmatch(name) or rest.startswith("//"):
        raise UserError(
            f"--on {text}: must be NAME:TABLE:FILES or NAME:STUDY.yaml, where NAME is made of letters, digits, "
            "'_' and '-'."
        )
    if rest.endswith(".yaml"):
        return TargetPlace(name, study=rest)
    pieces = _divide(rest)
    if len(pieces) > 2 or not all(pieces):
        raise UserError(
            f"--on {text}: after the name, TABLE:FILES has one colon that divides; found {len(pieces) - 1}. Write a "
            f"study file with the cohort's data section and give {name}:STUDY.yaml."
        )
    return TargetPlace(name, locations=pieces)


def _divide(text: str) -> tuple[str, ...]:
    """At the colons that do not belong to a scheme (``s3://``) or a drive (``C:\\``)."""
    pieces: list[str] = []
    for part in text.split(":"):
        is_scheme = bool(pieces) and part.startswith("//") and pieces[-1].isalnum()
        is_drive = bool(pieces) and part.startswith(("/", "\\")) and len(pieces[-1]) == 1 and pieces[-1].isalpha()
        if is_scheme or is_drive:
            pieces[-1] += f":{part}"
        else:
            pieces.append(part)
    return tuple(pieces)


def parse_label_map(text: str) -> dict[str, str]:
    """``0=none,1=mild`` as value → class.

    Raises:
        UserError: a part is not of that form, or a value is given twice.

    >>> parse_label_map("0=none,1=mild")
    {'0': 'none', '1': 'mild'}
    """
    pairs: dict[str, str] = {}
    for part in text.split(","):
        value, equals, label = (piece.strip() for piece in part.partition("="))
        if not equals or not value or not label:
            raise UserError(f"--label-map {text}: must be VALUE=CLASS,VALUE=CLASS; got the part {part!r}.")
        if value in pairs:
            raise UserError(f"--label-map {text}: gives the value {value!r} twice.")
        pairs[value] = label
    return pairs


def target_config(config: StudyConfig, place: TargetPlace, options: CohortOptions) -> StudyConfig:
    """The run's study with the target as its data.

    Raises:
        UserError: an option or location that this kind of data does not have, or classes other than the run's.
        ConfigError: the resulting data section is wrong, with every problem.
    """
    values = config.model_dump(mode="json")
    data = _data_of_study(config, place, values) if place.study else _data_of_run(config, place)
    given = {key: value for key in ("label", "image", "patient") if (value := getattr(options, key)) is not None}
    if options.label_map is not None:
        given["label_map"] = dict(options.label_map)
    has_keys = {"csv": {"label", "image", "patient", "label_map"}, "participants": {"label", "patient"},
                "frames": {"label", "patient", "label_map"},
                "npz": {"patient"}}.get(data["kind"], set())  # fmt: skip
    if idle := sorted(set(given) - has_keys):
        named = ", ".join(f"--{key.replace('_', '-')}" for key in idle)
        raise UserError(f"{place.name}: {named} has no meaning for data of kind {data['kind']}; leave it out.")
    data |= given
    values["data"] = data
    values["folds"] = None
    if options.split == "all" and _takes_folds(data):
        # no split is read: that is what a study with folds does
        data.pop("split", None)
        values["folds"] = {"k": 3}
    return validate_study(values, where=f"cohort {place.name}")


def _takes_folds(data: Mapping[str, Any]) -> bool:
    return data["kind"] in ("participants", "frames") or (data["kind"] == "csv" and isinstance(data["table"], str))


def _data_of_run(config: StudyConfig, place: TargetPlace) -> dict[str, Any]:
    data: dict[str, Any] = config.model_dump(mode="json")["data"]
    kind = data["kind"]
    if kind in _ONE_PLACE:
        if len(place.locations) != 1:
            raise UserError(f"--on {place.name}: data of kind {kind} have one place; give {place.name}:PLACE.")
        data[_ONE_PLACE[kind]] = place.locations[0]
        return data
    if len(place.locations) != 2:
        raise UserError(f"--on {place.name}: give {place.name}:TABLE:FILES, or {place.name}:STUDY.yaml.")
    if data.get("manifest") is not None:
        raise UserError(
            f"--on {place.name}: the run reads a manifest, which TABLE:FILES cannot name; give {place.name}:STUDY.yaml "
            "with a whole data section."
        )
    for key in _OF_THE_SOURCE:
        data.pop(key, None)
    if isinstance(data["table"], dict) or isinstance(data.get("split"), dict):
        data.pop("split", None)  # files of the run's own patients
    data["table"], data["files"] = place.locations
    return data


def _data_of_study(config: StudyConfig, place: TargetPlace, values: dict[str, Any]) -> dict[str, Any]:
    assert place.study is not None
    composed = compose_study(place.study)
    data = composed.get("data")
    if not isinstance(data, dict) or "kind" not in data:
        raise UserError(f"{find_study(place.study)}: has no data section with a kind; that is all it needs here.")
    classes = data.setdefault("classes", list(config.data.classes))
    if list(classes) != list(config.data.classes):
        raise UserError(
            f"{find_study(place.study)}: its classes are {list(classes)}, those of the run "
            f"{list(config.data.classes)}; leave classes out, and bring labels to the run's classes with label_map."
        )
    if data.setdefault("aggregate", config.data.aggregate) != config.data.aggregate:
        raise UserError(
            f"{find_study(place.study)}: its aggregate is {data['aggregate']}, that of the run "
            f"{config.data.aggregate}; a gap compares like with like, so leave it out."
        )
    if "s3" in composed:
        values["s3"] = composed["s3"]
    return dict(data)


def open_target(config: StudyConfig, options: CohortOptions) -> OpenedData:
    """Open the target: every sample (or its own test split) is to be scored, all labels sealed.

    Args:
        config: of :func:`target_config`.
    Raises:
        SampleError: as for any cohort, or there is no sample to score.
    """
    data = open_data(config)
    cohort = data.cohort.as_target(only_test=options.split == "test")
    if not len(cohort.samples):
        raise UserError(f"{config.data.kind} data: no sample is left to score; see --split.")
    return replace(data, cohort=cohort)


def check_apart(directory: RunDirectory, data: OpenedData, name: str) -> list[Finding]:
    """The target must not hold files that the run trained on.

    Raises:
        UserError: it does.
    """
    manifest = pd.read_parquet(directory.manifest)
    used = manifest.loc[manifest["fate"] == "encoded"]
    samples = data.cohort.samples
    files = _file_keys(samples)
    trained = files & _file_keys(used.loc[used["split"] != "test"])
    if trained:
        raise UserError(
            f"{name}: {len(trained)} of {len(files)} files are files that the run trained or chose on, so that a score "
            "on them would not be one of another cohort. Give other files, or --split test."
        )
    findings = []
    tested = files & _file_keys(used)
    patients = set(samples["patient_id"])
    shared = patients & set(used["patient_id"])
    if tested:
        findings.append(
            Finding(
                "same_files",
                "warning",
                f"The cohort {name} shares {len(tested)} files with the source's test split.",
                "the two are resampled as if they were different patients, so that intervals of the gap are too wide",
                "Transfer to patients that the source does not have.",
            )
        )
    elif shared:
        findings.append(
            Finding(
                "same_patient_ids",
                "warning",
                f"{len(shared)} of {len(patients)} patient ids of {name} occur in the source cohort too.",
                "two cohorts may number their patients alike; if these are the same people, models may have seen them",
                "Make sure that they are different people.",
            )
        )
    return findings


def _file_keys(samples: pd.DataFrame) -> set[tuple[Any, ...]]:
    """What makes two rows one file: the store's tag, its size, and the item inside."""
    tagged = samples.loc[samples["etag"] != ""]
    items = [
        (relative, int(item)) if item >= 0 else ("", -1)
        for relative, item in zip(tagged["relative"], tagged["item"], strict=True)
    ]
    return set(zip(tagged["etag"], tagged["size"].astype("int64"), items, strict=True))


def check_names(places: Sequence[TargetPlace]) -> None:
    """Refuse two cohorts of one name.

    Raises:
        UserError: naming it.
    """
    names = [place.name.casefold() for place in places]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"--on: the name {', '.join(doubled)} is given twice; each cohort needs its own.")
