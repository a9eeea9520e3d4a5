"""TRIPOD+AI, CLAIM and STARD-AI: every item, filled from what the run recorded or left to the author.

Items are numbered as in the guidelines and put in our own words; a submission quotes the originals. What Vitreous
cannot know (ethics, funding, how labels were made) is never filled in.

Source: Collins et al. (2024), BMJ 385, e078378 (TRIPOD+AI); Tejani et al. (2024), Radiology: Artificial Intelligence 6,
e240300 (CLAIM, 2024 update); Sounderajah et al. (2025), Nature Medicine 31, 3283 (STARD-AI).
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitreous.core.files import write_text

FOR_THE_AUTHOR = "for the author"
SCHEMA_VERSION = 1
_ITEMS = Path(__file__).parent / "checklist_items.csv"


@dataclass(frozen=True)
class Answer:
    """What the run says to an item.

    Args:
        text: a sentence.
        where: id of the section of the report that shows it.
    """

    text: str
    where: str


@dataclass(frozen=True)
class ChecklistItem:
    """One item; without an answer it is for the author."""

    guideline: str
    item: str
    section: str
    asks: str
    answer: Answer | None


def fill_checklists(answers: Mapping[str, Answer | None]) -> tuple[ChecklistItem, ...]:
    """All items of all guidelines, in their order.

    Args:
        answers: kind of evidence → what the run says, None where it has none.
    Raises:
        KeyError: an item asks for a kind of evidence that `answers` does not name.
    """
    with _ITEMS.open(newline="", encoding="utf-8") as file:
        return tuple(
            ChecklistItem(
                line["guideline"],
                line["item"],
                line["section"],
                line["asks"],
                answers[line["evidence"]] if line["evidence"] else None,
            )
            for line in csv.DictReader(file)
        )


def write_checklists(items: Sequence[ChecklistItem], run_dir: Path) -> None:
    """Write ``checklist.csv`` and ``checklist.md``; equal items give equal bytes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["guideline", "item", "section", "asks", "status", "evidence", "where", "schema_version"])
    for one in items:
        status, said, where = _parts(one)
        writer.writerow([one.guideline, one.item, one.section, one.asks, status, said, where, SCHEMA_VERSION])
    write_text(run_dir / "checklist.csv", text.getvalue())
    write_text(run_dir / "checklist.md", _markdown(items))


def _parts(one: ChecklistItem) -> tuple[str, str, str]:
    if one.answer is None:
        return FOR_THE_AUTHOR, "", ""
    return "from the run", one.answer.text, f"report.html#{one.answer.where}"


def _markdown(items: Sequence[ChecklistItem]) -> str:
    lines = ["# Reporting checklists", "", "Items in our own words; numbers are those of the guidelines."]
    for guideline in dict.fromkeys(one.guideline for one in items):
        own = [one for one in items if one.guideline == guideline]
        filled = sum(one.answer is not None for one in own)
        lines += ["", f"## {guideline}", "", f"{filled} of {len(own)} items filled from the run.", ""]
        lines += ["| item | section | asks | evidence |", "| --- | --- | --- | --- |"]
        for one in own:
            said = f"**{FOR_THE_AUTHOR}**" if one.answer is None else one.answer.text
            cells = (one.item, one.section, one.asks, said)
            lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join([*lines, ""])
