"""The plan of a cohort: who is in the table, which files exist, and which bad inputs are planted where."""

import dataclasses
from dataclasses import dataclass
from typing import Literal, assert_never

import numpy as np
import numpy.typing as npt

from vitreous.core.streams import numpy_stream
from vitreous.demo.dicom import FileFacts, encode_dicom, encode_oversized
from vitreous.demo.participants import FIRST_ID, Participant, VolumeOrder, draw_participants
from vitreous.demo.recipe import CLASSES, CohortRecipe, check_capacity
from vitreous.demo.scanners import Scanner

FileFlaw = Literal["truncated_files", "empty_files", "mislabelled_files", "constant_files", "oversized_files"]
FILE_FLAWS: tuple[FileFlaw, ...] = (
    "truncated_files",
    "empty_files",
    "mislabelled_files",
    "constant_files",
    "oversized_files",
)
UNKNOWN_GROUP = "gestational"


@dataclass(frozen=True)
class TableRow:
    """One row of ``participants.tsv``, which a flaw may have changed."""

    participant: Participant
    participant_id: str
    study_group: str
    split: str


@dataclass(frozen=True)
class Plan:
    """Everything about a cohort but its voxels.

    Args:
        drawn: everybody of whom volumes may exist, those outside the table included.
        rows: of ``participants.tsv``, in order.
        orders: the volumes that exist, sorted by path.
        flaw_of_file: by relative path.
        flaw_of_participant: by participant id.
    """

    drawn: tuple[Participant, ...]
    rows: tuple[TableRow, ...]
    orders: tuple[VolumeOrder, ...]
    flaw_of_file: dict[str, FileFlaw]
    flaw_of_participant: dict[str, str]


def plan_cohort(recipe: CohortRecipe) -> Plan:
    """Draw the participants and plant the recipe's flaws.

    Raises:
        UserError: more flaws than participants who could carry them.
    """
    drawn = draw_participants(recipe)
    strangers = [
        dataclasses.replace(extra, participant_id=new_id, volumes=_renamed(extra, new_id))
        for extra, new_id in _strangers(recipe, drawn)
    ]
    carriers = [person for person in drawn if person.split == "train" and len(person.volumes) >= 2]
    check_capacity(recipe, len(carriers))
    order = numpy_stream(recipe.seed, "flaws").permutation(len(carriers))
    queue = iter([carriers[idx] for idx in order.tolist()])
    flaw_of_participant = {
        next(queue).participant_id: name
        for name, count in recipe.flaws.model_dump().items()
        if name != "files_without_participant"
        for _ in range(count)
    }
    flaw_of_participant |= {person.participant_id: "files_without_participant" for person in strangers}
    people = (*drawn, *strangers)
    flaw_of_file = {
        person.volumes[0].relative: flaw
        for person in people
        for flaw in FILE_FLAWS
        if flaw_of_participant.get(person.participant_id) == flaw
    }
    orders = [
        volume
        for person in people
        if flaw_of_participant.get(person.participant_id) != "participants_without_file"
        for volume in person.volumes
    ]
    rows = [row for person in drawn for row in _rows(person, flaw_of_participant.get(person.participant_id))]
    return Plan(people, tuple(rows), tuple(sorted(orders, key=lambda o: o.relative)), flaw_of_file, flaw_of_participant)


def _strangers(recipe: CohortRecipe, drawn: list[Participant]) -> list[tuple[Participant, str]]:
    """People with files whom the table does not know: doubles of participants under ids of their own."""
    with_volumes = [person for person in drawn if person.volumes]
    first = FIRST_ID + len(drawn)
    count = recipe.flaws.files_without_participant
    return [(with_volumes[i % len(with_volumes)], str(first + i)) for i in range(count)]


def _renamed(person: Participant, participant_id: str) -> tuple[VolumeOrder, ...]:
    return tuple(dataclasses.replace(volume, participant_id=participant_id) for volume in person.volumes)


def _rows(person: Participant, flaw: str | None) -> list[TableRow]:
    row = TableRow(person, person.participant_id, CLASSES[person.grade], person.split)
    match flaw:
        case "participants_in_two_splits":
            return [row, dataclasses.replace(row, split="test")]
        case "ids_differing_in_spelling":
            return [row, dataclasses.replace(row, participant_id=f"0{person.participant_id}")]
        case "unknown_labels":
            return [dataclasses.replace(row, study_group=UNKNOWN_GROUP)]
        case "missing_labels":
            return [dataclasses.replace(row, study_group="")]
        case _:
            return [row]


def spoil(flaw: FileFlaw, grey_DHW: npt.NDArray[np.float32], scanner: Scanner, facts: FileFacts) -> bytes:
    """The bytes of a bad file in place of a good one."""
    match flaw:
        case "truncated_files":
            data = encode_dicom(grey_DHW, scanner, facts)
            return data[: len(data) // 2]
        case "empty_files":
            return b""
        case "mislabelled_files":
            return b"This is a text file whose name ends in .dcm.\n" * 40
        case "constant_files":
            return encode_dicom(np.full_like(grey_DHW, 0.5), scanner, facts)
        case "oversized_files":
            return encode_oversized(scanner, facts)
        case _:
            assert_never(flaw)
