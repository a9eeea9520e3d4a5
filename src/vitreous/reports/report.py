"""``report.html``: one offline file that answers first and then shows everything behind the answer.

It loads nothing: a Content-Security-Policy forbids every request, the only script (sorting of tables) is named by its
hash, and without it the report is complete. It holds no patient id; files appear under keyed ids.
"""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
from vitreous.reports.checklists import ChecklistItem
from vitreous.reports.leaderboard import Leaderboard
from vitreous.reports.leaderboard_tables import Footnotes
from vitreous.reports.methods import RunFacts
from vitreous.reports.power import power_sentences
from vitreous.reports.quarantine import QuarantinedRow
from vitreous.reports.result_tables import ResultTable, shown
from vitreous.reports.row_evidence import RowEvidence
from vitreous.reports.training_figures import few_shot_plot, training_plots

SCHEMA_VERSION = 2
MAX_BYTES = 5_000_000  # of the whole file
MAX_LISTED = 200  # quarantined files
MAX_TEXT = 200_000  # letters of the settings
# rows of a table and bytes of figures, until the file is small enough; the run directory has everything
_ROOM = ((300, 2_500_000), (60, 1_000_000), (12, 300_000))
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
class RowSource:
    """Where the numbers of a row come from.

    Args:
        units: of each model what it is (``seed 0``), its folder below the run directory, and the hash of its weights.
        receipt: file of the encoder's load receipt; None for rows without an encoder.
    """

    name: str
    units: tuple[tuple[str, str, str], ...]
    receipt: str | None = None


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
        evidence, figures: of the best rows, the figures as row → kind → SVG text.
        tables: by name, those of the evidence and those that other parts of the run wrote.
        matrices: title and SVG text of train × test domains and of other cohorts.
        facts: how the run was made; None where that is not known.
        methods: paragraphs of :func:`vitreous.reports.methods.methods_paragraphs`.
        sources: where each row's numbers lie.
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
    evidence: tuple[RowEvidence, ...] = ()
    figures: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    tables: Mapping[str, ResultTable] = field(default_factory=dict)
    matrices: tuple[tuple[str, str], ...] = ()
    facts: RunFacts | None = None
    methods: tuple[str, ...] = ()
    checklists: tuple[ChecklistItem, ...] = ()
    sources: tuple[RowSource, ...] = ()


def render_report(data: ReportData, path: Path) -> None:
    """Write the report whole or not at all; equal data give equal bytes."""
    write_text(path, report_html(data))


def report_html(data: ReportData) -> str:
    """The report as one HTML document, always below :data:`MAX_BYTES`.

    Raises:
        RunError: it is not, even with the shortest tables and hardly a figure.
    """
    for max_rows, room in _ROOM:
        text = _rendered(data, max_rows, room)
        if len(text.encode()) < MAX_BYTES:
            return text
    raise RunError(f"the report of {data.study} has {len(text.encode()):,} bytes; please report this with study.yaml.")


def _rendered(data: ReportData, max_rows: int, room: int) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters["breakable"] = breakable
    style, script = ((_FOLDER / name).read_text() for name in ("report.css.j2", "report.js.j2"))
    leaderboard = data.leaderboard
    footnotes = Footnotes()
    pictures = _Pictures(room)
    return environment.get_template("report.html.j2").render(
        data=data,
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        answer=answer_sentences(leaderboard),
        power=power_sentences(leaderboard.reach),
        findings=sorted([*leaderboard.findings, *data.findings], key=lambda one: _SEVERITIES.index(one.severity)),
        leaderboard=leaderboard,
        rows=leaderboard.rows[:max_rows],
        others=[name for name in leaderboard.scores.beside if name != leaderboard.metric],
        metrics=leaderboard.scores.metrics,
        class_metrics=leaderboard.scores.class_metrics,
        items=item_noun(leaderboard.modality),
        footnotes=footnotes,
        forest=Markup(figures.forest_plot_svg(leaderboard)),
        figures=pictures.of_kinds(data.figures),
        matrices=pictures.named(data.matrices),
        curves=_pictured_curves(data.curves[:max_rows], pictures),
        few_shot=pictures.each(
            [few_shot_plot(data.tables["few_shot"], leaderboard.metric_title)] if "few_shot" in data.tables else []
        ),
        pictures=pictures,
        chosen=[row for row in leaderboard.rows[:max_rows] if row.choice.how is not None],
        shown_sections=_shown_sections(data),
        confusion=_CONFUSION[leaderboard.task],
        shares=[_row_shares(row.confusion_CC) for row in leaderboard.rows[:max_rows]],
        places={row.name: n for n, row in enumerate(leaderboard.rows)},
        sources={source.name: source for source in data.sources},
        max_rows=max_rows,
        max_listed=min(MAX_LISTED, max_rows),
        settings=data.settings_yaml[:MAX_TEXT],
        max_text=MAX_TEXT,
        flatten=flatten,
        shown=lambda cell: shown(cell, footnotes),
        is_undefined=lambda value: isinstance(value, Undefined),
        schema_version=SCHEMA_VERSION,
    )  # fmt: skip


class _Pictures:
    """As many SVG texts as there is room for, in the order asked for; what is left out is counted."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.left_out = 0

    def each(self, svgs: Sequence[str]) -> list[Markup]:
        """Those that fit, as markup."""
        return [Markup(svg) for svg in svgs if self._fits(svg)]

    def named(self, svgs: Sequence[tuple[str, str]]) -> list[tuple[str, Markup]]:
        """Name and figure of those that fit."""
        return [(name, picture) for name, svg in svgs for picture in self.each([svg])]

    def of_kinds(self, by_row: Mapping[str, Mapping[str, str]]) -> dict[str, list[tuple[str, Markup]]]:
        """Kind of figure → row and figure; a kind without any is empty."""
        found: dict[str, list[tuple[str, Markup]]] = {kind: [] for kind in KINDS}
        for row, by_kind in by_row.items():
            for kind, svg in by_kind.items():
                found[kind] += self.named([(row, svg)])
        return found

    def _fits(self, svg: str) -> bool:
        size = len(svg.encode())
        if size > self.room:
            self.left_out += 1
            return False
        self.room -= size
        return True


def _pictured_curves(
    curves: Sequence[TrainingCurves], pictures: _Pictures
) -> list[tuple[TrainingCurves, list[Markup]]]:
    drawn = [(one, pictures.each(training_plots(one.histories, one.best_epochs, one.row))) for one in curves]
    return [(one, svgs) for one, svgs in drawn if svgs]


def _row_shares(confusion_CC: Sequence[Sequence[int]]) -> list[list[int]]:
    """Tenths of each true class (C, C), rounded, for shading; a class without rows has 0."""
    return [[round(10 * count / max(sum(line), 1)) for count in line] for line in confusion_CC]


def _shown_sections(data: ReportData) -> set[str]:
    """Ids of the sections that this report has, for links of the checklists."""
    sections = {
        "answer",
        "leaderboard",
        "classes",
        "confusion",
        "data",
        "encoders",
        "methods",
        "settings",
        "provenance",
    }
    if data.evidence:
        sections |= {"curves", "calibration", "operating", "decision", "subgroups"}
    if data.matrices or data.tables.keys() & {"generalisation", "transfer"}:
        sections |= {"generalisation"}
    return sections


def breakable(text: str) -> Markup:
    """Text that may be broken behind underscores, slashes and dots.

    >>> breakable("a_<b>")
    Markup('a_<wbr>&lt;b&gt;')
    """
    parts = re.split(r"(?<=[_/.])(?=[^\s_/.])", str(text))
    return Markup("<wbr>").join(parts)


KINDS = ("roc", "precision_recall", "reliability", "decision_curve", "abstention")
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
        elif isinstance(item, Sequence) and item and all(isinstance(part, Mapping) for part in item):
            for number, part in enumerate(item):
                rows += flatten(part, f"{name}.{number}")
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
