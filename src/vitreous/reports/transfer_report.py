"""``transfer.html``: one offline file with every cohort a run was transferred to. It holds no patient id.

As in ``report.html`` a Content-Security-Policy forbids every request; there is no script at all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from vitreous.core.files import write_text
from vitreous.reports.leaderboard_tables import Footnotes
from vitreous.reports.quarantine import QuarantinedRow
from vitreous.reports.report import MAX_LISTED, DataFlow
from vitreous.reports.transfer import TransferTarget
from vitreous.reports.transfer_figures import class_f1_svg, cohort_heat_map_svg, gap_against_source_svg
from vitreous.reports.transfer_tables import calibration_table, class_table, main_table, shift_table

SCHEMA_VERSION = 1
MAX_BARS = 20  # rows with a figure of their classes; the tables have them all
_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class TransferCohort:
    """What the report tells of one cohort besides its numbers.

    Args:
        settings_yaml: what was read, and how.
        quarantined: of :func:`vitreous.reports.quarantine.keyed_rows`.
    """

    target: TransferTarget
    flow: DataFlow
    settings_yaml: str
    quarantined: tuple[QuarantinedRow, ...] = ()


@dataclass(frozen=True)
class TransferFigures:
    """SVG texts: every model on every cohort, gaps over source scores, and F1 per class of each model by name."""

    heat_map: str
    gap_against_source: str
    class_f1: Mapping[str, str]


def draw_transfer(targets: Sequence[TransferTarget]) -> TransferFigures:
    """Draw all figures; of at most :data:`MAX_BARS` models the classes, constant ones left out.

    Raises:
        ValueError: no target.
    """
    names = list(dict.fromkeys(row.name for target in targets for row in target.rows if not row.is_constant))
    return TransferFigures(
        cohort_heat_map_svg(targets),
        gap_against_source_svg(targets),
        {name: class_f1_svg(name, targets) for name in names[:MAX_BARS]},
    )


@dataclass(frozen=True)
class TransferReport:
    """All that ``transfer.html`` shows.

    Args:
        looks: the run's ledger, one mapping per look at test labels.
    """

    study: str
    cohorts: tuple[TransferCohort, ...]
    figures: TransferFigures
    looks: tuple[Mapping[str, Any], ...] = ()


def render_transfer_report(report: TransferReport, path: Path) -> None:
    """Write the report whole or not at all; equal data give equal bytes."""
    write_text(path, transfer_html(report))


def transfer_html(report: TransferReport) -> str:
    """The report as one HTML document.

    Raises:
        ValueError: no cohort.
    """
    if not report.cohorts:
        raise ValueError("a transfer report needs a cohort")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    targets = [cohort.target for cohort in report.cohorts]
    names = {row.name for target in targets for row in target.rows if not row.is_constant}
    footnotes = Footnotes()
    # tables are made before the template runs: it lists the footnotes they mark
    tables = {
        target.name: (
            ("How much of it is lost", *main_table(target, footnotes)),
            ("Per class", *class_table(target, footnotes)),
            ("Shifts: the mix of classes, and the rest", *shift_table(target, footnotes)),
            ("Shifts: calibration before and after a temperature", *calibration_table(target, footnotes)),
        )
        for target in targets
    }
    return environment.get_template("transfer.html.j2").render(
        report=report,
        style=Markup((_FOLDER / "report.css.j2").read_text()),
        tables=tables,
        answer=[sentence for target in targets for sentence in answer_sentences(target)],
        heat_map=Markup(report.figures.heat_map),
        scatter=Markup(report.figures.gap_against_source),
        bars=[(name, Markup(svg)) for name, svg in report.figures.class_f1.items()],
        num_left_out=len(names) - len(report.figures.class_f1),
        footnotes=footnotes,
        max_listed=MAX_LISTED,
        schema_version=SCHEMA_VERSION,
    )


def answer_sentences(target: TransferTarget) -> list[str]:
    """Which row is best on the target, what it lost, and which loses least, in plain words."""
    footnotes = Footnotes()
    if target.best is None:
        return [f"On {target.name} no row has a defined {target.metric_title}."]
    best = next(row for row in target.rows if row.name == target.best)
    gap = best.gaps[target.metric]
    sentences = [
        f"On {target.name}, {best.name} has the highest {target.metric_title}, {footnotes.interval(gap.target)}; on "
        f"the source it had {footnotes.number(gap.source.value)}, so that {footnotes.interval(gap.gap)} is lost."
    ]
    tied = [row.name for row in target.rows if row.name != best.name and set(row.letters) & set(best.letters)]
    if tied:
        sentences.append(f"It cannot be told apart from {_listed(tied)}.")
    if target.least is not None and target.least != target.best:
        least = next(row for row in target.rows if row.name == target.least)
        sentences.append(f"{least.name} loses least: {footnotes.interval(least.gaps[target.metric].gap)}.")
    return [*sentences, *(f"[{number}] {reason}." for reason, number in footnotes.reasons.items())]


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
