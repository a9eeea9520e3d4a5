"""``report.html``: one offline file that answers first and then shows everything behind the answer.

It loads nothing: a Content-Security-Policy forbids every request, the only script (sorting of tables) is named by its
hash, and without it the report is complete. It holds no patient id; files appear under keyed ids.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

import vitreous.reports.figures as figures
from vitreous.core.errors import RunError
from vitreous.core.files import write_text
from vitreous.core.finding import Finding
from vitreous.core.input_spec import item_noun
from vitreous.core.label_sets import Task
from vitreous.core.undefined import Undefined
from vitreous.reports.answer import answer_sentences
from vitreous.reports.leaderboard import Leaderboard
from vitreous.reports.leaderboard_tables import Footnotes
from vitreous.reports.quarantine import QuarantinedRow

SCHEMA_VERSION = 1
MAX_FIGURES = 40  # rows with a confusion matrix and curves in the report; the run directory has them all
MAX_CURVES_BYTES = 3_000_000  # curves of many folds and seeds; the whole file stays below 5 MB
MAX_LISTED = 200  # quarantined files
_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Table:
    """A table of counts or facts, printed as it stands."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | int | float, ...], ...]

    @classmethod
    def from_frame(cls, caption: str, frame: pd.DataFrame) -> "Table":
        """All columns of `frame`, without its index."""
        rows = tuple(tuple(_plain_cell(cell) for cell in row) for row in frame.itertuples(index=False))
        return cls(caption, tuple(map(str, frame.columns)), rows)


@dataclass(frozen=True)
class DataFlow:
    """What became of the rows: the sum is checked.

    Args:
        rows_in: samples of the table or listing.
        encoded: used for every encoder.
        quarantined: could not be read.
        excluded: rule → rows left out by it.
    Raises:
        RunError: the parts do not add up to the rows that came in.
    """

    rows_in: int
    encoded: int
    quarantined: int
    excluded: Mapping[str, int]

    def __post_init__(self) -> None:
        out = self.encoded + self.quarantined + sum(self.excluded.values())
        if out != self.rows_in:
            raise RunError(
                f"{self.rows_in} rows came in, but {self.encoded} encoded + {self.quarantined} quarantined + "
                f"{sum(self.excluded.values())} excluded make {out}: {abs(self.rows_in - out)} are unaccounted for."
            )


@dataclass(frozen=True)
class TrainingCurves:
    """The histories of one row of the leaderboard.

    Args:
        row: its name.
        setting: what was chosen on val, in words.
        histories: label (``seed 0``) → rows per epoch.
        best_epochs: label → epoch kept.
    """

    row: str
    setting: str
    histories: Mapping[str, Sequence[Mapping[str, float]]]
    best_epochs: Mapping[str, int]


@dataclass(frozen=True)
class EncoderReport:
    """What is known of one encoder.

    Args:
        receipt: ``receipts/<encoder>.json``.
        spec: the InputSpec in use; `overridden` names the fields that the study set.
    """

    name: str
    is_floor: bool
    receipt: Mapping[str, Any]
    spec: Mapping[str, Any]
    overridden: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReportData:
    """All that a report shows, as plain values.

    Args:
        study: its name.
        banners: sentences that hold for every number, such as missing patient ids.
        findings: beside those of the leaderboard.
        counts: per class, split, site and device; test labels as counts only.
        quarantined: of :func:`vitreous.reports.quarantine.keyed_rows`.
        looks: the ledger, one mapping per look at test.
        settings_yaml: the resolved study.
        provenance: ``provenance.json``.
        rebuild: the command that makes this report again.
    """

    study: str
    leaderboard: Leaderboard
    flow: DataFlow
    encoders: tuple[EncoderReport, ...] = ()
    counts: tuple[Table, ...] = ()
    curves: tuple[TrainingCurves, ...] = ()
    quarantined: tuple[QuarantinedRow, ...] = ()
    findings: tuple[Finding, ...] = ()
    banners: tuple[str, ...] = ()
    looks: tuple[Mapping[str, Any], ...] = ()
    settings_yaml: str = ""
    provenance: Mapping[str, Any] | None = None
    rebuild: str = ""


def render_report(data: ReportData, path: Path) -> None:
    """Write the report whole or not at all; equal data give equal bytes."""
    write_text(path, report_html(data))


def report_html(data: ReportData) -> str:
    """The report as one HTML document."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    style, script = ((_FOLDER / name).read_text() for name in ("report.css.j2", "report.js.j2"))
    leaderboard = data.leaderboard
    footnotes = Footnotes()
    pictured = leaderboard.rows[:MAX_FIGURES]
    pictured_names = {row.name for row in pictured}
    return environment.get_template("report.html.j2").render(
        data=data,
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        answer=answer_sentences(leaderboard),
        findings=sorted([*leaderboard.findings, *data.findings], key=lambda one: _SEVERITIES.index(one.severity)),
        leaderboard=leaderboard,
        others=[name for name in leaderboard.scores.beside if name != leaderboard.metric],
        metrics=leaderboard.scores.metrics,
        class_metrics=leaderboard.scores.class_metrics,
        items=item_noun(leaderboard.modality),
        footnotes=footnotes,
        forest=Markup(figures.forest_plot_svg(leaderboard)),
        confusions=[
            (row, Markup(figures.confusion_matrix_svg(row.confusion_CC, leaderboard.classes,
                                                      f"{_CONFUSION[leaderboard.task]} of {row.name}")))
            for row in pictured
        ],
        curves=_pictured_curves([one for one in data.curves if one.row in pictured_names]),
        max_figures=MAX_FIGURES,
        max_listed=MAX_LISTED,
        flatten=flatten,
        is_undefined=lambda value: isinstance(value, Undefined),
        schema_version=SCHEMA_VERSION,
    )  # fmt: skip


def _pictured_curves(curves: Sequence[TrainingCurves]) -> list[tuple[TrainingCurves, Markup]]:
    """As many as the file has room for, in order; the template says how many were left out."""
    pictured: list[tuple[TrainingCurves, Markup]] = []
    room = MAX_CURVES_BYTES
    for one in curves:
        svg = figures.training_curves_svg(one.histories, one.best_epochs, f"Training curves of {one.row}")
        room -= len(svg.encode())
        if room < 0:
            break
        pictured.append((one, Markup(svg)))
    return pictured


# of labels: how many samples with the one are said to have the other
_CONFUSION: dict[Task, str] = {"multi_class": "Confusion matrix", "multi_label": "True against predicted labels"}
_SEVERITIES = ("error", "warning", "info")


def flatten(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested plain values as (dotted name, text), lists joined, in the given order.

    >>> flatten({"a": {"b": [1, 2]}, "c": None})
    [('a.b', '1, 2'), ('c', 'none')]
    """
    rows: list[tuple[str, str]] = []
    for key, item in value.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(item, Mapping) and item:
            rows += flatten(item, name)
        elif item is None or item in ({}, [], ()):
            rows.append((name, "none"))
        elif isinstance(item, Sequence) and not isinstance(item, str):
            rows.append((name, ", ".join(str(part) for part in item)))
        elif isinstance(item, float):
            rows.append((name, f"{item:.6g}"))
        else:
            rows.append((name, str(item)))
    return rows


def _plain_cell(cell: Any) -> str | int | float:
    return cell.item() if hasattr(cell, "item") else cell if isinstance(cell, str | int | float) else str(cell)
