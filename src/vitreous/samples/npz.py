"""Cohorts of kind ``npz``: arrays ``train_images``, ``train_labels``, ``val_…``, ``test_…`` in one file (MedMNIST).

Labels are read whole; of the images only the headers are read here, however large they are.
"""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitreous.core.errors import SampleError
from vitreous.core.label_sets import Task, encode_label_sets, num_label_values
from vitreous.samples.cohort import EXCLUDED_COLUMNS, SPLITS, Cohort, seal
from vitreous.samples.patients import check_agreement, patients_are_rows
from vitreous.samples.problems import Problems, examples

_CHANNELS = (1, 3)  # grey, and red, green, blue
_FEWEST_AXES = 3  # items and two of an image
_REMEDY = "Give data.patient, the suffix of arrays of patient ids, if the file has them."


def load_npz_cohort(
    path: Path,
    classes: Sequence[str],
    *,
    patients: str | None = None,
    item_axes: str | None = None,
    name: str | None = None,
    one_label: bool = True,
    task: Task = "multi_class",
) -> Cohort:
    """One sample for each row of ``<split>_images``; labels are ``<split>_labels``, (N,) or (N, 1) class indices.

    Args:
        classes: names of the indices 0, 1, …; with `task` multi_label of the columns of the labels, (N, C) of 0 and 1.
        patients: suffix of arrays of patient ids (``patient_ids`` reads ``train_patient_ids`` …). Without one every
            row is a patient of its own, and a finding says so.
        item_axes: letters of the axes of an item, such as DHW or HWC; an array of another number is refused.
        name: what the user calls the file, where `path` is a staged copy.
        one_label: all items of a patient must have the same label.
    Raises:
        SampleError: the file is no npz, an array is missing, lengths differ, a label has no class, a patient stands in
            two splits, a split is empty, or a class has no training sample. All that can be told at once is.
    """
    name = name or str(path)
    frames: list[pd.DataFrame] = []
    problems = Problems(name)
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {member.removesuffix(".npy") for member in archive.namelist() if member.endswith(".npy")}
            for split in SPLITS:
                frame = _read_split(archive, arrays, split, len(classes), task, patients, item_axes, problems)
                if frame is not None:
                    frames.append(frame)
    except (OSError, zipfile.BadZipFile) as error:
        raise SampleError(f"{name}: cannot be read as an npz file ({error}).") from error
    problems.check_none()
    samples = pd.concat(frames, ignore_index=True)
    check_agreement(samples, problems, one_label=one_label)
    problems.check_none()
    status = path.stat()
    samples = samples.assign(size=status.st_size, etag="", weight=1.0)
    findings = () if patients else (patients_are_rows(name, _REMEDY),)
    excluded = pd.DataFrame(columns=list(EXCLUDED_COLUMNS), dtype="str")
    return seal(samples, excluded, classes, findings, (), (), where=name, task=task)


def _read_split(
    archive: zipfile.ZipFile,
    arrays: set[str],
    split: str,
    num_classes: int,
    task: Task,
    patients: str | None,
    item_axes: str | None,
    problems: Problems,
) -> pd.DataFrame | None:
    images, labels = f"{split}_images", f"{split}_labels"
    needed = [images, labels, *([f"{split}_{patients}"] if patients else [])]
    missing = [array for array in needed if array not in arrays]
    for array in missing:
        problems.add(f"no array {array!r}; the file holds {sorted(arrays)}.")
    if missing:
        return None
    shape = _read_shape(archive, images)
    if len(shape) < _FEWEST_AXES:
        problems.add(f"{images} has the shape {shape}; it must be (items, …) with two or more axes an item.")
        return None
    if item_axes is not None:
        _check_item_axes(images, shape, item_axes, problems)
    if task == "multi_label":
        y = _read_label_sets(archive, labels, num_classes, problems)
    else:
        y = _read_labels(archive, labels, problems)
    if y is None:
        return None
    if len(y) != shape[0]:
        problems.add(f"{images} has {shape[0]} items and {labels} {len(y)}; they must agree.")
        return None
    outside = np.flatnonzero((y < 0) | (y >= num_label_values(num_classes, task)))
    if len(outside):
        values = sorted(set(y[outside].tolist()))
        problems.add(
            f"{labels} holds {examples(values)} (items {examples(outside.tolist())}), outside the {num_classes} "
            f"classes; give a name for every index."
        )
    sample_ids = [f"{images}/{item:06d}" for item in range(shape[0])]
    patient_ids = _read_patients(archive, f"{split}_{patients}", shape[0], problems) if patients else sample_ids
    return pd.DataFrame(
        {"sample_id": sample_ids, "patient_id": patient_ids, "relative": images, "item": np.arange(shape[0]),
         "split": split, "y": y}
    )  # fmt: skip


def _check_item_axes(array: str, shape: tuple[int, ...], item_axes: str, problems: Problems) -> None:
    if len(shape) != 1 + len(item_axes):
        problems.add(
            f"{array} has the shape {shape}: {len(shape) - 1} axes an item, where data.axes says {item_axes!r}; set it "
            f"to HW or HWC for images, to an order of DHW for volumes."
        )
    elif "C" in item_axes and shape[1 + item_axes.index("C")] not in _CHANNELS:
        problems.add(
            f"{array} has the shape {shape}: the axis C has {shape[1 + item_axes.index('C')]} channels where 1 or 3 "
            f"are read; if the items are volumes, set data.axes to DHW."
        )


def _read_shape(archive: zipfile.ZipFile, array: str) -> tuple[int, ...]:
    """The shape in the header of one array; its data stay unread."""
    with archive.open(f"{array}.npy") as file:
        try:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, _ = read(file)
        except (ValueError, SyntaxError) as error:
            raise SampleError(f"{archive.filename}: {array} is no npy array ({error}).") from error
    return tuple(int(length) for length in shape)


def _read_array(archive: zipfile.ZipFile, array: str) -> npt.NDArray[np.generic]:
    with archive.open(f"{array}.npy") as file:
        try:
            values: npt.NDArray[np.generic] = np.lib.format.read_array(file, allow_pickle=False)
        except ValueError as error:
            raise SampleError(f"{archive.filename}: {array} cannot be read ({error}).") from error
    return values


def _read_labels(archive: zipfile.ZipFile, array: str, problems: Problems) -> npt.NDArray[np.int64] | None:
    values = _read_array(archive, array)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer):
        problems.add(
            f"{array} must be whole numbers of the shape (N,) or (N, 1); got {values.dtype} {values.shape}. "
            f"Where an item has several labels, name their columns: data.label: [A, B]."
        )
        return None
    return values.astype(np.int64)


def _read_label_sets(
    archive: zipfile.ZipFile, array: str, num_labels: int, problems: Problems
) -> npt.NDArray[np.int64] | None:
    values = _read_array(archive, array)
    if values.ndim != 2 or values.shape[1] != num_labels:
        problems.add(f"{array} must have the shape (N, {num_labels}), a column a label; got {values.shape}.")
        return None
    if not np.isin(values, (0, 1)).all():
        found = sorted(set(values[~np.isin(values, (0, 1))].tolist()))
        problems.add(f"{array} must hold 0 and 1, a column a label; got {examples(found)}.")
        return None
    return encode_label_sets(values.astype(np.bool_))


def _read_patients(archive: zipfile.ZipFile, array: str, length: int, problems: Problems) -> list[str]:
    values = _read_array(archive, array).reshape(-1)
    if len(values) != length:
        problems.add(f"{array} has {len(values)} ids for {length} items; they must agree.")
        return [""] * length
    return [str(value).strip() for value in values.tolist()]
