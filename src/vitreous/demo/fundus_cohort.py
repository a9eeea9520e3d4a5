"""A synthetic cohort of fundus photographs as real files, in the layout of APTOS 2019.

    train.csv   train_images/<id_code>.<png|jpg>   ground_truth.csv   recipe.json

A killed call leaves whole files only; the same call continues. `train.csv` is written last.
"""

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from vitreous.core.errors import UserError
from vitreous.core.files import remove_partial_files, write_bytes, write_text
from vitreous.core.progress import Advance, no_progress
from vitreous.core.streams import numpy_stream
from vitreous.demo.cohort_folder import claim_folder, csv_text
from vitreous.demo.fundus import (
    CAMERAS,
    Camera,
    CameraName,
    EyeSide,
    FundusEye,
    draw_fundus_eye,
    encode_photograph,
    photograph,
)
from vitreous.demo.fundus_lesions import GRADES, draw_eye_severity
from vitreous.demo.recipe import SPLITS, apportion

GENERATOR_VERSION = 1
"""Raised whenever the same arguments give other bytes than before."""

SPLIT_SHARES = (0.6, 0.15, 0.25)
ONE_EYE_ONLY = 0.1
OTHER_GRADE_IN_OTHER_EYE = 0.15
IMAGES = "train_images"
TABLE = "train.csv"

Flaw = Literal["", "missing", "truncated", "duplicate", "near_duplicate"]


@dataclass(frozen=True)
class FundusFlaws:
    """Bad inputs planted on purpose, each so many times, each on another row.

    Args:
        missing: a training row without a file.
        truncated: a training image that ends half-way.
        duplicates: a test image that is, byte for byte, the training image of another patient.
        near_duplicates: the same, moved by a pixel, brightened by 4 % and encoded again.
    """

    missing: int = 0
    truncated: int = 0
    duplicates: int = 0
    near_duplicates: int = 0


@dataclass(frozen=True)
class FundusRow:
    """One eye of one patient.

    Args:
        flaw: what is wrong with its file; empty for nothing.
        source: `id_code` of the row whose photograph it shows; empty for its own.
    """

    id_code: str
    grade: int
    patient_id: str
    eye: EyeSide
    split: str
    severity: float
    flaw: Flaw = ""
    source: str = ""


def write_fundus_cohort(
    out: Path,
    *,
    num_patients: int,
    seed: int,
    camera: CameraName,
    size_px: int,
    strength: float = 1.0,
    flaws: FundusFlaws | None = None,
    progress: Advance = no_progress,
    workers: int | None = None,
) -> Path:
    """Write the cohort below `out`, or what of it is still missing.

    Patients are counted out over grades (by the camera's `grade_shares`) and, within each grade, over the splits train,
    val and test (0.6, 0.15, 0.25). Cohorts of different cameras share no patient.

    Args:
        out: a new or empty folder, or one in which this function has begun the same cohort.
        num_patients: 20 to 9,999; about 1.9 photographs each.
        size_px: 32 to 4,096; height of the frame at the camera's full resolution.
        strength: severity gained per grade; 0 plants no signal at all.
        progress: called with 1 after each photograph, found or written.
        workers: threads; default one per core. The bytes do not depend on it.

    Returns:
        The table: ``id_code,diagnosis,patient_id,eye,split,camera``; the photographs lie beside it in `train_images`.

    Raises:
        UserError: a number out of range, `out` holds something else, or there are more flaws than rows for them.
    """
    flaws = flaws or FundusFlaws()
    _check_ranges(num_patients=num_patients, size_px=size_px, strength=strength, flaws=flaws)
    rows = plan_fundus_cohort(num_patients=num_patients, seed=seed, camera=camera, strength=strength, flaws=flaws)
    recipe: dict[str, object] = {
        "generator_version": GENERATOR_VERSION,
        "num_patients": num_patients,
        "seed": seed,
        "camera": camera,
        "size_px": size_px,
        "strength": strength,
        "flaws": dataclasses.asdict(flaws),
    }
    claim_folder(out, recipe, "synthetic fundus cohort")
    images = out / IMAGES
    images.mkdir(exist_ok=True)
    remove_partial_files(images)
    by_id = {row.id_code: row for row in rows}

    def write_one(row: FundusRow) -> tuple[object, ...]:
        shown = by_id[row.source] if row.source else row
        eye = draw_fundus_eye(shown.severity, shown.eye, seed, *_names(shown))
        path = images / f"{row.id_code}.{CAMERAS[camera].extension}"
        if row.flaw != "missing" and not path.exists():
            write_bytes(path, _encode(row, shown, eye, CAMERAS[camera], size_px, seed))
        progress(1)
        lesions = eye.lesions
        counts = len(lesions.microaneurysms), len(lesions.haemorrhages), len(lesions.exudates)
        return (row.id_code, f"{shown.severity:.4f}", *counts, row.flaw, row.source)

    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        truth = list(pool.map(write_one, rows))
    columns = ("id_code", "severity", "microaneurysms", "haemorrhages", "exudates", "flaw", "source")
    write_text(out / "ground_truth.csv", csv_text(columns, truth))
    table = ((row.id_code, row.grade, row.patient_id, row.eye, row.split, camera) for row in rows)
    write_text(out / TABLE, csv_text(("id_code", "diagnosis", "patient_id", "eye", "split", "camera"), table))
    return out / TABLE


def plan_fundus_cohort(
    *, num_patients: int, seed: int, camera: CameraName, strength: float, flaws: FundusFlaws
) -> list[FundusRow]:
    """All rows in the order of the table, flaws planted.

    Raises:
        UserError: more flaws than rows that can carry them.
    """
    slots = [
        (grade, split)
        for grade, count in enumerate(apportion(num_patients, CAMERAS[camera].grade_shares))
        for split, share in zip(SPLITS, apportion(count, SPLIT_SHARES))
        for _ in range(share)
    ]
    order = numpy_stream(seed, "fundus", camera, "allocation").permutation(len(slots))
    rows = [
        row
        for number, slot in enumerate(order.tolist())
        for row in _patient(f"{camera}{number:04d}", *slots[slot], seed=seed, strength=strength)
    ]
    return _plant(rows, flaws, numpy_stream(seed, "fundus", camera, "flaws"))


def _patient(patient_id: str, grade: int, split: str, *, seed: int, strength: float) -> list[FundusRow]:
    rng = numpy_stream(seed, "fundus", patient_id)
    sides: list[EyeSide] = ["left", "right"]
    if rng.uniform() < ONE_EYE_ONLY:
        sides = [sides[int(rng.integers(2))]]
    rows = []
    for position, side in enumerate(sides):
        step = int(rng.choice([-1, 1])) if position and rng.uniform() < OTHER_GRADE_IN_OTHER_EYE else 0
        eye_grade = min(max(grade + step, GRADES[0]), GRADES[-1])
        # APTOS names its images by twelve hexadecimal digits that say nothing of the patient
        id_code = hashlib.sha256(f"{seed}/{patient_id}/{side}".encode()).hexdigest()[:12]
        severity = draw_eye_severity(eye_grade, strength, rng)
        rows.append(FundusRow(id_code, eye_grade, patient_id, side, split, severity))
    return rows


def _plant(rows: Sequence[FundusRow], flaws: FundusFlaws, rng: np.random.Generator) -> list[FundusRow]:
    """The rows with flaws: files of training rows spoiled, test rows that show a training row's photograph."""
    train = [int(i) for i in rng.permutation(len(rows)) if rows[i].split == "train"]
    test = [int(i) for i in rng.permutation(len(rows)) if rows[i].split == "test"]
    copies = flaws.duplicates + flaws.near_duplicates
    if flaws.missing + flaws.truncated + copies > len(train) or copies > len(test):
        raise UserError(
            f"{flaws} needs {flaws.missing + flaws.truncated + copies} training images and {copies} test images; "
            f"this cohort has {len(train)} and {len(test)}. Ask for fewer flaws or more patients."
        )
    planted = list(rows)
    spoiled: tuple[tuple[Flaw, int], ...] = (("missing", flaws.missing), ("truncated", flaws.truncated))
    for flaw, count in spoiled:
        for _ in range(count):
            i = train.pop()
            planted[i] = dataclasses.replace(rows[i], flaw=flaw)
    for number in range(copies):
        target = test.pop()
        # of the same grade where one is left: then nothing but the pictures tells
        source = next((i for i in train if rows[i].grade == rows[target].grade), train[0])
        train.remove(source)
        flaw = "duplicate" if number < flaws.duplicates else "near_duplicate"
        planted[target] = dataclasses.replace(rows[target], flaw=flaw, source=rows[source].id_code)
    return planted


def _names(row: FundusRow) -> tuple[str, ...]:
    return ("fundus", row.patient_id, row.eye)


def _encode(row: FundusRow, shown: FundusRow, eye: FundusEye, camera: Camera, size_px: int, seed: int) -> bytes:
    image_HWC = photograph(eye, camera, size_px=size_px, seed=seed, names=_names(shown))
    if row.flaw == "near_duplicate":
        brighter_HWC = np.roll(image_HWC, 1, axis=1).astype(np.float32) * 1.04
        image_HWC = np.minimum(np.rint(brighter_HWC), 255).astype(np.uint8)
    data = encode_photograph(image_HWC, camera)
    return data[: len(data) // 2] if row.flaw == "truncated" else data


def _check_ranges(*, num_patients: int, size_px: int, strength: float, flaws: FundusFlaws) -> None:
    if not 20 <= num_patients <= 9999:
        raise UserError(f"a synthetic fundus cohort has 20 to 9,999 patients; got {num_patients}.")
    if not 32 <= size_px <= 4096:
        raise UserError(f"size_px of a synthetic fundus cohort is 32 to 4,096; got {size_px}.")
    if not 0 <= strength <= 4:
        raise UserError(f"strength of a synthetic fundus cohort is 0 to 4; got {strength}.")
    if negative := [name for name, count in dataclasses.asdict(flaws).items() if count < 0]:
        raise UserError(f"flaws are counts, 0 or more; got {flaws} with a negative {', '.join(negative)}.")
