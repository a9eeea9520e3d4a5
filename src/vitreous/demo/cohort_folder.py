"""The folder of a synthetic cohort: whose it is, and its tables."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from vitreous.core.errors import UserError
from vitreous.core.files import remove_partial_files, write_json

RECIPE = "recipe.json"


def claim_folder(out: Path, recipe: Mapping[str, object], what: str) -> None:
    """Mark `out` as this cohort's by ``recipe.json``, or refuse it.

    Args:
        what: the cohort in words, such as ``synthetic fundus cohort``.
    Raises:
        UserError: `out` is a file, holds something else, or a cohort made by another recipe.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; name a folder for the {what}.")
    out.mkdir(parents=True, exist_ok=True)
    remove_partial_files(out)
    path = out / RECIPE
    if not path.exists():
        if found := sorted(entry.name for entry in out.iterdir()):
            raise UserError(
                f"{out}: holds {len(found)} entries (such as {found[0]}) and no {RECIPE}, so it is no {what}. Name a "
                "new or empty folder."
            )
        write_json(path, dict(recipe))
        return
    try:
        stored = dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: is no recipe of a synthetic cohort ({error}). Name another folder.") from error
    if differing := sorted(key for key in recipe.keys() | stored.keys() if recipe.get(key) != stored.get(key)):
        raise UserError(
            f"{out}: holds a synthetic cohort that differs in {', '.join(differing)}. Name another folder, or remove "
            "this one first."
        )


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table as comma-separated text with its head.

    >>> csv_text(["a", "b"], [(1, "x")])
    'a,b\\n1,x\\n'
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()
