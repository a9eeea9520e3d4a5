"""What `vitreous predict` is to read: files, folders, patterns, a bucket, rows of a table, items of an npz array."""

import glob
import os
import posixpath
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from vitreous.core.errors import LocationError, UserError
from vitreous.core.input_spec import Modality
from vitreous.inputs.numpy_files import NpzArrays
from vitreous.inputs.volume import DeclaredAxes
from vitreous.samples.cohort import EXCLUDED_COLUMNS, SAMPLE_COLUMNS, SEALED, Cohort, SealedLabels
from vitreous.samples.image_files import (
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    find_images,
    is_image_name,
    is_video_name,
)
from vitreous.samples.problems import Problems, examples
from vitreous.samples.tables import check_columns, is_missing, read_table
from vitreous.storage.files import fetch_file
from vitreous.storage.location import Location, ObjectInfo, S3Options
from vitreous.storage.objects import ObjectStore
from vitreous.storage.refusals import MissingObjectError
from vitreous.storage.staging import StagingCache
from vitreous.study.clips import VideoClips
from vitreous.study.data import OpenedData

_VOLUME_SUFFIXES = frozenset({".dcm", ".dicom", ".ima", ".nii", ".gz", ".npy", ".npz", ""})
_WILD = "*?["


@dataclass(frozen=True)
class InputOptions:
    """How the places on the command line are read.

    Args:
        array, axes: name of the array of an npz file, and the axes of one item of it; `axes` also of .npy volumes.
        table, image: a table, and its column of file names, which stand below the one folder given.
        patient: its column of patients.
        patient_pattern: a regular expression with the group `patient`, searched in the relative path.
    """

    array: str | None = None
    axes: str | None = None
    table: str | None = None
    image: str | None = None
    patient: str | None = None
    patient_pattern: str | None = None

    @property
    def names_patients(self) -> bool:
        """Whether it is said whose each sample is."""
        return self.patient is not None or self.patient_pattern is not None


@dataclass(frozen=True)
class FoundInputs:
    """What there is to read.

    Args:
        data: samples without labels, sorted by patient where known, then by relative path.
        missing: rows of the table without a file: sample_id, patient_id, exception, message.
        left_out: endings of files in folders that are no input, and how many there are.
    """

    data: OpenedData
    missing: pd.DataFrame
    left_out: Mapping[str, int]


@dataclass(frozen=True)
class _Place:
    """One INPUT: its folder, and the files below it that it means."""

    root: Location
    infos: Sequence[ObjectInfo]
    left_out: Sequence[ObjectInfo] = ()


def find_inputs(
    inputs: Sequence[str],
    options: InputOptions,
    *,
    classes: Sequence[str],
    modality: Modality,
    declared: DeclaredAxes,
    max_bytes: int,
    max_clip_bytes: int,
    s3: S3Options,
    cache: StagingCache,
) -> FoundInputs:
    """Resolve every INPUT; nothing is decoded.

    Args:
        declared: axes and spacing of the model's own data, where `options` say nothing.
        max_bytes: of one volume, image or frame.
        max_clip_bytes: of all frames of a clip that are read.

    Raises:
        UserError: nothing is found, an option has no effect, or a patient cannot be told.
        LocationError: a place does not exist or may not be read.
    """
    _check_options(options, modality)
    places = [_open_place(text, modality, s3) for text in inputs]
    base = _common_folder(places)
    infos = {_below(base, info.location): info for place in places for info in place.infos}
    left_out = Counter(
        posixpath.splitext(info.relative)[1] or info.relative for place in places for info in place.left_out
    )
    store = ObjectStore(base, s3)
    missing = _no_rows()
    if options.array is not None:
        samples, infos = _items_of(infos, options, store, cache, declared, max_bytes)
    elif options.table is not None:
        samples, missing = _rows_of_table(infos, inputs, options, modality, s3, cache)
    else:
        samples = pd.DataFrame({"sample_id": sorted(infos), "relative": sorted(infos), "item": -1})
    if not len(samples) and not len(missing):
        ignored = f" Left out by their names: {_counted(left_out)}." if left_out else ""
        raise UserError(
            f"{', '.join(inputs)}: no {modality}s found.{ignored} Check the place; name files to force them."
        )
    if options.patient_pattern is not None:
        samples["patient_id"] = _patients(samples["relative"].tolist(), options.patient_pattern)
    elif "patient_id" not in samples:
        samples["patient_id"] = samples["sample_id"]
    axes = options.axes or declared.axes
    has_no_axes = modality == "clip" or (modality == "image" and options.array is None)
    data = OpenedData(
        _unlabelled(samples, infos, classes),
        infos,
        store,
        cache,
        DeclaredAxes() if has_no_axes else DeclaredAxes(axes, declared.spacing_mm),
        max_bytes,
        modality,
        VideoClips({}, max_bytes, max_clip_bytes) if modality == "clip" else None,
    )
    return FoundInputs(data, missing, dict(sorted(left_out.items())))


def _check_options(options: InputOptions, modality: Modality) -> None:
    problems = []
    if (options.table is None) != (options.image is None):
        problems.append("--table and --image (its column of file names) go together")
    if options.table is not None and options.array is not None:
        problems.append("--table reads files, --array the items of an npz file; leave one of them out")
    if options.patient is not None and options.table is None:
        problems.append("--patient is a column of --table; for files give --patient-pattern")
    if options.patient is not None and options.patient_pattern is not None:
        problems.append("--patient and --patient-pattern both say whose a sample is; leave one of them out")
    if options.patient_pattern is not None and options.array is not None:
        problems.append("--patient-pattern reads paths; the items of an array have none")
    if options.axes is not None and modality == "image" and options.array is None:
        problems.append("--axes has no effect on image files; it goes with --array")
    if modality == "clip" and (options.axes is not None or options.array is not None):
        problems.append("--axes and --array are for arrays; this model reads video files")
    if problems:
        raise UserError("; ".join(problems) + ".")


def _open_place(text: str, modality: Modality, s3: S3Options) -> _Place:
    location = Location.parse(text)
    if not location.is_local:
        return _open_remote(text, location, modality, s3)
    if location.path.is_dir():
        return _folder(location, modality, s3)
    if not location.path.exists() and any(sign in text for sign in _WILD):
        return _pattern(location, modality, s3)
    return _Place(location.parent, [ObjectStore(location.parent, s3).head(location.name)])


def _open_remote(text: str, location: Location, modality: Modality, s3: S3Options) -> _Place:
    if any(sign in text for sign in _WILD):
        raise UserError(f"{text}: patterns are for local paths; give the prefix of the bucket that holds the files.")
    if not text.endswith("/") and posixpath.splitext(location.name)[1]:
        try:
            return _Place(location.parent, [ObjectStore(location.parent, s3).head(location.name)])
        except MissingObjectError:
            pass  # a prefix may have a dot in its name
    return _folder(location, modality, s3)


def _folder(location: Location, modality: Modality, s3: S3Options) -> _Place:
    listing = ObjectStore(location, s3).list()
    if not listing:
        raise LocationError(f"{location}: holds no files; check the location.")
    return _Place(
        location,
        [info for info in listing if _is_input_name(info.relative, modality)],
        [info for info in listing if not _is_input_name(info.relative, modality)],
    )


def _pattern(location: Location, modality: Modality, s3: S3Options) -> _Place:
    """Files that match are taken whatever their names; folders that match are searched."""
    matches = sorted(glob.glob(location.key, recursive=True))
    if not matches:
        raise LocationError(f"{location}: no file matches this pattern. Check it, and put it in quotes.")
    before = location.key[: min(location.key.index(sign) for sign in _WILD if sign in location.key)]
    root = Location.parse(posixpath.dirname(before) or "/")
    inside = [_open_place(match, modality, s3) for match in matches if not _is_hidden(match, root)]
    return _Place(root, [info for one in inside for info in one.infos], [i for one in inside for i in one.left_out])


def _is_hidden(path: str, root: Location) -> bool:
    return any(piece.startswith(".") for piece in Path(os.path.relpath(path, root.key)).parts)


def _is_input_name(path: str, modality: Modality) -> bool:
    if modality == "image":
        return is_image_name(path)
    if modality == "clip":
        return is_video_name(path)
    # an id such as 1.2.840.113 is a usual name of a DICOM file: what looks like no suffix is none
    suffix = posixpath.splitext(path)[1].lower()
    return suffix in _VOLUME_SUFFIXES or suffix[1:].isdigit()


def _common_folder(places: Sequence[_Place]) -> Location:
    kinds = {(place.root.scheme, place.root.bucket) for place in places}
    if len(kinds) > 1:
        named = ", ".join(str(place.root) for place in places)
        raise UserError(f"the inputs lie in several stores ({named}); run once for each.")
    first = places[0].root
    key = os.path.commonpath([f"/{place.root.key.lstrip('/')}" for place in places]).replace(os.sep, "/")
    return Location(first.scheme, first.bucket, key if first.is_local else key.lstrip("/"))


def _below(base: Location, location: Location) -> str:
    return posixpath.relpath(f"/{location.key.lstrip('/')}", f"/{base.key.lstrip('/')}")


def _items_of(
    infos: Mapping[str, ObjectInfo],
    options: InputOptions,
    store: ObjectStore,
    cache: StagingCache,
    declared: DeclaredAxes,
    max_bytes: int,
) -> tuple[pd.DataFrame, dict[str, ObjectInfo]]:
    """One row an item of the array, named as a study of kind npz names them."""
    name, axes = str(options.array), options.axes or declared.axes
    if len(infos) != 1 or not next(iter(infos)).lower().endswith(".npz"):
        raise UserError("--array reads one npz file; give that file alone as INPUT.")
    if axes is None:
        raise UserError("--array: an npz file does not say its axes; give --axes, such as HWC, HW or DHW.")
    info = next(iter(infos.values()))
    arrays = NpzArrays(cache.fetch(store, info), DeclaredAxes(axes), max_bytes=max_bytes)
    if name not in arrays.names:
        raise UserError(f"{info.location}: no array {name!r}; it has {', '.join(arrays.names)}.")
    shape = arrays.shape(name)
    if len(shape) != len(axes) + 1:
        raise UserError(
            f"{info.location}: the array {name} has the shape {shape}; a stack of items with the axes {axes} has "
            f"{len(axes) + 1} axes. Give another --axes or --array."
        )
    ids = [f"{name}/{item:06d}" for item in range(shape[0])]
    return pd.DataFrame({"sample_id": ids, "relative": name, "item": np.arange(shape[0])}), {name: info}


def _rows_of_table(
    infos: Mapping[str, ObjectInfo],
    inputs: Sequence[str],
    options: InputOptions,
    modality: Modality,
    s3: S3Options,
    cache: StagingCache,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The files that the table names, each once, and the rows that name none."""
    if len(inputs) != 1:
        raise UserError("--table: give one INPUT, the folder that the file names start from.")
    text = str(options.table)
    table = read_table(fetch_file(text, s3, cache), text)
    columns = [str(options.image), *([options.patient] if options.patient is not None else [])]
    problems = Problems(text)
    check_columns(table, columns, "the files and patients", problems)
    problems.check_none()
    frame = table.frame
    names = frame[str(options.image)]
    patients = frame[options.patient] if options.patient is not None else names
    if options.patient is not None and is_missing(patients).any():
        lines = frame.index[is_missing(patients)].tolist()
        raise UserError(f"{text}: no {options.patient} in the lines {examples(lines)}; name each patient.")
    found, several = _files_of(names.tolist(), infos, modality)
    rows, lost = [], []
    for line, name, patient in zip(frame.index, names, patients, strict=True):
        if name in found:
            rows.append((found[name], found[name], patient if options.patient is not None else found[name]))
            continue
        why = f"the name may mean {examples(several[name])}" if name in several else "there is no such file"
        lost.append((name or f"line {line}", patient, "MissingFile", f"line {line} of the table: {why}"))
    samples = pd.DataFrame(rows, columns=["sample_id", "relative", "patient_id"], dtype="str").drop_duplicates()
    if doubled := samples.loc[samples["sample_id"].duplicated(), "sample_id"].tolist():
        raise UserError(f"{text}: names {examples(doubled)} for several patients; a file has one.")
    if options.patient is None:
        samples = samples.drop(columns="patient_id")
    return samples.assign(item=-1), pd.DataFrame(lost, columns=list(_no_rows().columns), dtype="str")


def _files_of(
    names: Sequence[str], infos: Mapping[str, ObjectInfo], modality: Modality
) -> tuple[Mapping[str, str], Mapping[str, Sequence[str]]]:
    if modality == "volume":
        paths = {name: posixpath.normpath(name.replace("\\", "/").lstrip("/")) for name in names if name}
        return {name: path for name, path in paths.items() if path in infos}, {}
    listing = [ObjectInfo(info.location, relative, info.size, info.etag) for relative, info in infos.items()]
    suffixes = VIDEO_SUFFIXES if modality == "clip" else IMAGE_SUFFIXES
    found = find_images([name for name in names if name], listing, suffixes)
    return found.relative, found.several


def _patients(paths: Sequence[str], pattern: str) -> list[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--patient-pattern is no regular expression ({error}); got {pattern!r}.") from None
    if "patient" not in compiled.groupindex:
        raise UserError(rf"--patient-pattern needs the group patient, such as ^(?P<patient>\d+)_; got {pattern!r}.")
    found = [compiled.search(path) for path in paths]
    if unmatched := [path for path, match in zip(paths, found, strict=True) if match is None or not match["patient"]]:
        raise UserError(f"--patient-pattern {pattern!r} finds no patient in {examples(unmatched, most=3)}.")
    return [match["patient"] for match in found if match is not None]


def _unlabelled(samples: pd.DataFrame, infos: Mapping[str, ObjectInfo], classes: Sequence[str]) -> Cohort:
    used = [infos[relative] for relative in samples["relative"]]
    samples = samples.assign(size=[info.size for info in used], etag=[info.etag for info in used])
    samples = samples.assign(split="test", y=SEALED, weight=1.0)
    samples = samples.sort_values(["patient_id", "sample_id"], ignore_index=True)  # as every cohort, for equal batches
    return Cohort(
        samples[list(SAMPLE_COLUMNS)],
        pd.DataFrame(columns=list(EXCLUDED_COLUMNS)),
        tuple(classes),
        (),
        (),
        (),
        SealedLabels({}),
    )


def _no_rows() -> pd.DataFrame:
    return pd.DataFrame(columns=["sample_id", "patient_id", "exception", "message"], dtype="str")


def _counted(left_out: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {suffix}" for suffix, count in left_out.items())
