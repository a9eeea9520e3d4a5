"""`vitreous data prepare NAME ARCHIVE DIR`: a downloaded cohort, checked and laid out for a study.

    images/…   labels.csv   left_out.csv   data.yaml   README.md   prepare.json

Everything is written into a folder beside DIR that takes its name when all is there: DIR is whole or absent.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from rich.console import Console

from vitreous.core.errors import InputError, UserError
from vitreous.core.files import remove_partial_files, replacing, write_json, write_text
from vitreous.core.fingerprints import fingerprint
from vitreous.core.progress import progress_bar
from vitreous.core.threads import map_ahead
from vitreous.inputs.image_files import decode_image
from vitreous.samples.archives import Archive, open_archive
from vitreous.samples.cohort import SPLITS
from vitreous.samples.problems import examples
from vitreous.samples.public_cohorts import (
    GRADES,
    LEFT_OUT_COLUMNS,
    MISSING,
    PUBLIC_COHORTS,
    UNREADABLE,
    CohortLayout,
    CohortName,
    lay_out_cohort,
)
from vitreous.samples.splits import FractionSplit, ValFraction, fraction_split, val_split
from vitreous.storage.locks import exclusive

FRACTIONS = (0.7, 0.15, 0.15)
VAL_FRACTION = 0.15
_RECORD = "prepare.json"
_STARTED = ".prepare_started.json"
_LOCK = ".lock"
_GB = 10**9
_MAX_IMAGE_BYTES = 2 * 10**9  # as float32; the largest published photographs take a tenth of it
_SHOWN = 5


def prepare_cohort(
    name: CohortName,
    source: Path,
    out: Path,
    *,
    seed: int = 0,
    max_missing: float = 0.05,
    max_gb: float = 50.0,
) -> tuple[dict[str, Any], bool]:
    """Bring an archive into the layout of a study; the same call continues, or finds it done.

    Args:
        source: zip, tar or unpacked folder.
        out: a new or empty folder, or the one that this call has made before.
        seed: of the split that is drawn.
        max_missing: the largest share of labelled images that may be missing or unreadable.
        max_gb: the most that the archive may unpack to, in 10^9 bytes.
    Returns:
        the record written as ``prepare.json``, and whether it was there already.
    Raises:
        UserError: the archive is unsafe, damaged, of another cohort or too incomplete; or `out` holds something else.
    """
    out, source = out.expanduser().resolve(), source.expanduser()
    if out.is_relative_to(source.resolve()):
        raise UserError(f"{out}: lies in {source}, which is to be read; name a folder elsewhere.")
    with open_archive(source, max_bytes=int(max_gb * _GB)) as archive:
        request = {
            "schema_version": 1,
            "cohort": name,
            "seed": seed,
            "max_missing": max_missing,
            "content": fingerprint(sorted((member.name, member.size) for member in archive.members.values())),
        }
        aside = out.parent / f".{out.name}.preparing"
        if (done := _finished(out, request)) is not None:
            return done, True
        layout = lay_out_cohort(name, archive)
        with exclusive(aside / _LOCK):
            if (done := _finished(out, request)) is not None:  # another process has been at it meanwhile
                shutil.rmtree(aside, ignore_errors=True)  # it has gone with the other, or holds a lock alone
                return done, True
            _claim(aside, request)
            _extract(archive, layout, aside)
            record = _complete(name, layout, aside, out, request)
            (aside / _STARTED).unlink()
            (aside / _LOCK).unlink()
            if out.exists():
                out.rmdir()
            aside.rename(out)
    return record, False


def print_prepare(name: CohortName, source: Path, out: Path, *, seed: int, max_missing: float, max_gb: float) -> None:
    """Prepare a cohort and say what came of it."""
    record, was_there = prepare_cohort(name, source, out, seed=seed, max_missing=max_missing, max_gb=max_gb)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    if was_there:
        console.print(f"{out}: was prepared before from the same archive; nothing is left to do.")
    console.print(f"{PUBLIC_COHORTS[name].title}: {record['images']} images")
    for split in SPLITS:
        console.print(f"  {split:5}  " + ", ".join(f"{grade} {record['counts'][split][grade]}" for grade in GRADES))
    for rule, count in record["left_out"].items():
        console.print(f"  left out {count}: {rule}")
    for note in record["notes"]:
        console.print(f"  note: {note}")
    console.print(f"licence  {record['licence']}")
    console.print(f"study    {out / 'data.yaml'} is the data part of a study file")
    console.print("next     write a study around it, then: vitreous data verify STUDY")


def _finished(out: Path, request: dict[str, Any]) -> dict[str, Any] | None:
    """The record of a finished call like this one; None if the folder is free.

    Raises:
        UserError: the folder holds something else.
    """
    if not out.exists():
        return None
    if not out.is_dir():
        raise UserError(f"{out}: is a file; name a folder.")
    found = sorted(path.name for path in out.iterdir())
    if not found:
        return None
    if _RECORD not in found:
        raise UserError(f"{out}: holds {len(found)} entries ({examples(found, 3)}); name a new or empty folder.")
    record = _read_record(out / _RECORD)
    if differing := [key for key in request if record.get(key) != request[key]]:
        raise UserError(
            f"{out}: was prepared with another {examples(differing)}. Name another folder, or remove this one first."
        )
    labels = pd.read_csv(out / "labels.csv", dtype="str")
    if missing := [image for image in labels["image"] if not (out / "images" / image).is_file()]:
        raise UserError(
            f"{out}: {len(missing)} images have gone since, e.g. {missing[0]}; remove it and prepare again."
        )
    return record


def _claim(aside: Path, request: dict[str, Any]) -> None:
    """Mark the folder as this request's; what another request has left there goes."""
    started = aside / _STARTED
    if started.exists() and _read_record(started) != request:
        for path in aside.iterdir():
            if path.name != _LOCK:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    if not started.exists():
        if found := sorted(path.name for path in aside.iterdir() if path.name != _LOCK):
            raise UserError(f"{aside}: holds {examples(found, 3)} and was not begun by this verb; remove it.")
        write_json(started, request)
    for folder in (aside, *(path for path in aside.rglob("*") if path.is_dir())):
        remove_partial_files(folder)


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: is no record of a prepared cohort ({error}). Name another folder.") from error
    if not isinstance(record, dict):
        raise UserError(f"{path}: is no record of a prepared cohort. Name another folder.")
    return record


def _extract(archive: Archive, layout: CohortLayout, aside: Path) -> None:
    """Write what is not there yet in full size."""
    targets = {}
    for member, image in zip(layout.images["member"], layout.images["image"], strict=True):
        target = aside / "images" / image
        if not (target.is_file() and target.stat().st_size == archive.members[member].size):
            targets[member] = target
    for folder in {target.parent for target in targets.values()}:
        folder.mkdir(parents=True, exist_ok=True)
    with progress_bar("Unpacking images", len(targets)) as advance:
        archive.extract(targets, advance)


def _complete(
    name: CohortName, layout: CohortLayout, aside: Path, out: Path, request: dict[str, Any]
) -> dict[str, Any]:
    """Decode every image once, draw the split, write the tables."""
    unreadable = _find_unreadable(aside / "images", layout.images["image"])
    left_out = pd.concat(
        [
            layout.left_out,
            pd.DataFrame(
                [(image, UNREADABLE, why) for image, why in unreadable.items()], columns=list(LEFT_OUT_COLUMNS)
            ),
        ],
        ignore_index=True,
    )
    _check_complete(layout, left_out, request["max_missing"], out)
    for image in unreadable:
        (aside / "images" / image).unlink()
    images = layout.images[~layout.images["image"].isin(unreadable)].reset_index(drop=True)
    labels, split_note = _label_table(images, request["seed"])
    record = request | {
        "title": PUBLIC_COHORTS[name].title,
        "source": PUBLIC_COHORTS[name].source,
        "licence": PUBLIC_COHORTS[name].licence,
        "images": len(labels),
        "counts": _counts(labels),
        "left_out": {str(rule): int(count) for rule, count in left_out["rule"].value_counts().items()},
        "notes": [*layout.notes, split_note],
    }
    with replacing(aside / "labels.csv") as part:
        labels.to_csv(part, index=False)
    with replacing(aside / "left_out.csv") as part:
        left_out.to_csv(part, index=False)
    write_text(aside / "data.yaml", _data_part(labels, out))
    write_text(aside / "README.md", _readme(record))
    write_json(aside / _RECORD, record)
    return record


def _find_unreadable(folder: Path, images: pd.Series) -> dict[str, str]:
    def problem(image: str) -> str | None:
        try:
            decode_image(folder / image, max_bytes=_MAX_IMAGE_BYTES)
        except InputError as error:
            return str(error)
        return None

    problems = {}
    with progress_bar("Decoding each image once", len(images)) as advance:
        for image, why in zip(images, map_ahead(problem, images, workers=min(8, os.cpu_count() or 1)), strict=True):
            if why is not None:
                problems[image] = why
            advance()
    return problems


def _check_complete(layout: CohortLayout, left_out: pd.DataFrame, max_missing: float, out: Path) -> None:
    lost = left_out[left_out["rule"].isin([MISSING, UNREADABLE])]
    missing = int((lost["rule"] == MISSING).sum())
    wanted = len(layout.images) + missing
    if len(lost) > max_missing * wanted or len(lost) == wanted:
        shown = "; ".join(f"{name} ({detail})" for name, detail in zip(lost["name"][:_SHOWN], lost["detail"]))
        raise UserError(
            f"{len(lost)} of {wanted} labelled images are missing ({missing}) or cannot be read "
            f"({len(lost) - missing}); --max-missing allows {max_missing:.1%}. E.g. {shown}. Download the archive "
            f"again (copies elsewhere are often incomplete), or allow more; {out} was not made."
        )


def _label_table(images: pd.DataFrame, seed: int) -> tuple[pd.DataFrame, str]:
    """`image, grade, split`, and what else is published; the split is drawn by patient where patients are known."""
    patients = images["patient"].where(images["patient"] != "", images["image"])
    worst = images["grade"].astype(int).groupby(patients).max()  # both eyes of one person go together
    published = images["published_split"]
    if (published == "").all():
        split = patients.map(fraction_split(worst, FractionSplit(FRACTIONS, seed)))
        note = f"train, val and test are drawn here, {FRACTIONS} of each grade, seed {seed}: none are published."
    else:
        train = patients[published == "train"]
        drawn = train.map(val_split(worst[worst.index.isin(train)], ValFraction(VAL_FRACTION, seed)))
        split = published.where(published != "train", drawn.reindex(published.index))
        note = f"test is as published; val is drawn here, {VAL_FRACTION:.0%} of each grade of train, seed {seed}."
    labels = pd.DataFrame({"image": images["image"], "grade": images["grade"], "split": split})
    for column in ("published_split", "patient", "macular_edema"):
        if (images[column] != "").any():
            labels[column] = images[column]
    return labels, note


def _counts(labels: pd.DataFrame) -> dict[str, dict[str, int]]:
    table = pd.crosstab(labels["split"], labels["grade"].astype(int))
    table = table.reindex(index=list(SPLITS), columns=range(len(GRADES)), fill_value=0)
    return {
        str(split): {grade: int(count) for grade, count in zip(GRADES, row, strict=True)}
        for split, row in zip(table.index, table.to_numpy())
    }


def _data_part(labels: pd.DataFrame, out: Path) -> str:
    values: dict[str, Any] = {
        "kind": "csv",
        "table": str(out / "labels.csv"),
        "files": str(out / "images"),
        "image": "image",
        "label": "grade",
        "classes": list(GRADES),
        "label_map": dict(enumerate(GRADES)),
    }
    why = ""
    if "patient" in labels.columns:
        if (labels.groupby("patient")["grade"].nunique() == 1).all():
            values["patient"] = "patient"
        else:
            why = (
                "# no `patient`: the eyes of one person have grades of their own, and metrics go by patient. The\n"
                "# split keeps both eyes together; intervals take images for independent and are somewhat too narrow.\n"
            )
    values["split"] = "split"
    head = "# The data part of a study file; paste it, or keep it and add encoders and recipes.\n"
    return head + why + yaml.safe_dump({"data": values}, sort_keys=False, allow_unicode=True)


def _readme(record: dict[str, Any]) -> str:
    grades = " | ".join(GRADES)
    rows = "\n".join(
        f"| {split} | {' | '.join(str(count) for count in counts.values())} | {sum(counts.values())} |"
        for split, counts in record["counts"].items()
    )
    left_out = "\n".join(f"- {count}: {rule}" for rule, count in record["left_out"].items()) or "- nothing"
    notes = "\n".join(f"- {note}" for note in record["notes"])
    return (
        f"# {record['title']}\n\nSource: {record['source']}.\nLicence: {record['licence']}.\n\n"
        f"{record['images']} images, by grade of diabetic retinopathy:\n\n"
        f"| split | {grades} | all |\n|---|{'---|' * (len(GRADES) + 1)}\n{rows}\n\n"
        f"Left out, each named in `left_out.csv`:\n\n{left_out}\n\nNotes:\n\n{notes}\n\n"
        "Files: `images/`, `labels.csv` (one row an image), `data.yaml` (the data part of a study file), "
        "`prepare.json` (what was asked for). Made by `vitreous data prepare`; every image was decoded once.\n"
    )
