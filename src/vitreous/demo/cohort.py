"""The synthetic cohort as real files, in the layout of the cohort that it imitates.

    participants.tsv   manifest.tsv   ground_truth.tsv   recipe.json
    retinal_oct/structural_oct/<device>/<participant_id>/<participant_id>_<device>_<region>_<laterality>.dcm

A killed call leaves whole files only; the same call continues. `recipe.json` is written last.
"""

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from vitreous.core.errors import UserError
from vitreous.core.files import remove_partial_files, write_bytes, write_json, write_text
from vitreous.core.progress import Advance, no_progress
from vitreous.demo.acquisition import scan_eye
from vitreous.demo.anatomy import Eye, draw_eye, draw_person
from vitreous.demo.dicom import FileFacts, encode_dicom
from vitreous.demo.flaws import Plan, plan_cohort, spoil
from vitreous.demo.participants import Participant, VolumeOrder
from vitreous.demo.recipe import GENERATOR_VERSION, CohortRecipe
from vitreous.demo.scanners import SCANNERS, SITES
from vitreous.demo.tables import ground_truth_table, manifest_table, participants_table

STARTED = ".recipe_started.json"
FINISHED = "recipe.json"


@dataclass(frozen=True)
class CohortFiles:
    """Where a written cohort lies.

    Args:
        root: the folder; paths in the manifest are relative to it, although they begin with ``/``.
        participants: one row a participant.
        manifest: one row a volume.
        ground_truth: what only the generator knows: severity and every marker of each participant.
        num_participants: rows of `participants`.
        num_volumes: rows of `manifest`, spoiled files included.
        num_written: volumes that this call wrote; 0 for a finished cohort.
    """

    root: Path
    participants: Path
    manifest: Path
    ground_truth: Path
    num_participants: int
    num_volumes: int
    num_written: int


def write_cohort(
    out: Path, recipe: CohortRecipe | None = None, progress: Advance = no_progress, *, workers: int | None = None
) -> CohortFiles:
    """Write the cohort of `recipe` (default: the demo's) below `out`, or what of it is still missing.

    Args:
        out: a new or empty folder, or one in which this function has begun the same recipe.
        progress: called with 1 after each volume, found or written.
        workers: threads; default one per core. The bytes do not depend on it.

    Raises:
        UserError: `out` holds another cohort or other files, or the recipe plants more flaws than it has room for.
    """
    recipe = recipe or CohortRecipe()
    plan = plan_cohort(recipe)
    _claim(out, recipe)
    missing = []
    for order in plan.orders:
        if (out / order.relative).exists():
            progress(1)
        else:
            missing.append(order)
    for folder in {(out / order.relative).parent for order in missing}:
        folder.mkdir(parents=True, exist_ok=True)
        remove_partial_files(folder)
    people = {participant.participant_id: participant for participant in plan.drawn}

    def write_one(order: VolumeOrder) -> None:
        write_bytes(out / order.relative, encode_volume(people[order.participant_id], order, plan, recipe))
        progress(1)

    _in_threads(write_one, missing, workers)
    tables = {
        "participants.tsv": participants_table(plan),
        "manifest.tsv": manifest_table(plan, recipe),
        "ground_truth.tsv": ground_truth_table(plan, recipe),
    }
    for name, text in tables.items():
        if not (out / name).exists() or (out / name).read_text() != text:
            write_text(out / name, text)
    if not (out / FINISHED).exists():
        write_json(out / FINISHED, _recipe_record(recipe))
    (out / STARTED).unlink(missing_ok=True)
    return CohortFiles(
        root=out,
        participants=out / "participants.tsv",
        manifest=out / "manifest.tsv",
        ground_truth=out / "ground_truth.tsv",
        num_participants=len(plan.rows),
        num_volumes=len(plan.orders),
        num_written=len(missing),
    )


def draw_participant_eye(participant: Participant, laterality: str, recipe: CohortRecipe) -> Eye:
    """The eye of a participant, the same for every scan of it."""
    names = ("participant", participant.participant_id)
    person = draw_person(participant.severity, participant.age, recipe.seed, *names)
    return draw_eye(person, laterality, recipe.seed, *names)


def encode_volume(participant: Participant, order: VolumeOrder, plan: Plan, recipe: CohortRecipe) -> bytes:
    """The bytes of one file, spoiled where the plan says so."""
    scanner = SCANNERS[order.device]
    eye = draw_participant_eye(participant, order.laterality, recipe)
    grey, _, _ = scan_eye(eye, order.laterality, scanner, SITES[participant.site], recipe.seed, "scan", order.relative)
    facts = FileFacts(
        order.participant_id,
        order.laterality,
        participant.visit,
        (recipe.fingerprint, order.participant_id, order.relative),
    )
    flaw = plan.flaw_of_file.get(order.relative)
    return encode_dicom(grey, scanner, facts) if flaw is None else spoil(flaw, grey, scanner, facts)


def _in_threads(write_one: Callable[[VolumeOrder], None], orders: Sequence[VolumeOrder], workers: int | None) -> None:
    # threads, not processes: NumPy releases the interpreter lock, and a caller needs no __main__ guard
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        futures = [pool.submit(write_one, order) for order in orders]
        try:
            for future in futures:
                future.result()
        except BaseException:  # whatever ends the wait, Ctrl-C too: volumes not yet begun are dropped, then it goes on
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _recipe_record(recipe: CohortRecipe) -> dict[str, object]:
    return {
        "schema_version": 1,
        "generator_version": GENERATOR_VERSION,
        "fingerprint": recipe.fingerprint,
        "recipe": recipe.model_dump(mode="json"),
    }


def _claim(out: Path, recipe: CohortRecipe) -> None:
    """Mark `out` as this recipe's, or refuse it."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; name a folder for the synthetic cohort.")
    out.mkdir(parents=True, exist_ok=True)
    remove_partial_files(out)
    for name in (FINISHED, STARTED):
        if (out / name).exists():
            _check_same_recipe(out / name, recipe)
            return
    if found := sorted(path.name for path in out.iterdir()):
        raise UserError(
            f"{out}: holds {len(found)} entries ({', '.join(found[:3])}, …) and no {FINISHED}, so it is no synthetic "
            f"cohort. Name a new or empty folder."
        )
    write_json(out / STARTED, _recipe_record(recipe))


def _check_same_recipe(path: Path, recipe: CohortRecipe) -> None:
    try:
        record = json.loads(path.read_text())
        found, stored = record["fingerprint"], dict(record["recipe"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is no recipe of a synthetic cohort ({error}). Name another folder.") from error
    if found == recipe.fingerprint:
        return
    wanted = recipe.model_dump(mode="json")
    differing = sorted(key for key in wanted.keys() | stored.keys() if wanted.get(key) != stored.get(key))
    what = f"differs in {', '.join(differing)}" if differing else "was made by another version of the generator"
    raise UserError(
        f"{path.parent}: holds a synthetic cohort whose recipe {what}. Name another folder, or remove this one first."
    )
