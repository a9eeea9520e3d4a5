"""``index.html`` of a folder of explanations: offline, beside the figures that it shows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitreous.core.files import write_text

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class PageSample:
    """One sample: its keyed id, what was explained, its rows of explanations.csv, and further figures."""

    key: str
    split: str
    target: str
    probability: float
    rows: Sequence[dict[str, Any]]
    sheets: Sequence[str]


def write_page(path: Path, *, model: str, samples: Sequence[PageSample], attention: bool) -> None:
    """Write the page whole or not at all."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    rows = [row for sample in samples for row in sample.rows]
    faithful = sum(row["verdict"] == "faithful" for row in rows)
    text = environment.get_template("explain.html.j2").render(
        model=model, samples=samples, rows=rows, faithful=faithful, attention=attention
    )
    write_text(path, text)
