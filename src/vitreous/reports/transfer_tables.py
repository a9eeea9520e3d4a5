"""A transfer as tables: CSV, Markdown, terminal, and the shifts as plain values.

A cell without a number is empty; why is said in the column `undefined` of a CSV and in footnotes elsewhere.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from vitreous.core.label_sets import Task
from vitreous.core.undefined import Undefined
from vitreous.evidence.calibration import MEASURES
from vitreous.evidence.comparison import Difference
from vitreous.evidence.intervals import Interval
from vitreous.evidence.task_scores import TASK_SCORES
from vitreous.evidence.transfer import KAPPA, Gap, transfer_metrics
from vitreous.reports.leaderboard_tables import Cell, Footnotes
from vitreous.reports.transfer import TransferRow, TransferTarget

SCHEMA_VERSION = 1
GAP_PARTS = ("gap", "at_source_mix", "gap_at_source_mix", "due_to_mix")
CALIBRATION_STAGES = {
    "source": "source test",
    "source_scaled": "source test, source temperature",
    "target": "target",
    "target_source_scaled": "target, source temperature",
    "target_scaled": "target, target temperature",
}


# the share of rows of which all is right
_SHARE_RIGHT: dict[Task, str] = {"multi_class": "accuracy", "multi_label": "exact_match"}


def metric_title(name: str, classes: Sequence[str], task: Task = "multi_class") -> str:
    """A metric in words: ``balanced accuracy``, ``recall of healthy``."""
    scores = TASK_SCORES[task]
    if name in scores.metrics:
        return scores.metrics[name].title
    if name == KAPPA:
        return "quadratic weighted kappa"
    for kind, metric in scores.class_metrics.items():
        for label in classes:
            if name == f"{kind}_{label}":
                return f"{metric.title} of {label}"
    raise ValueError(f"no such metric: {name!r}")


def scores_csv(target: TransferTarget) -> str:
    """``scores.csv``: one line per row and metric with the value on both cohorts and its bounds."""
    return _csv(
        [
            {
                "encoder": row.encoder, "recipe": row.recipe, "is_floor": int(row.is_floor), "metric": name,
                **_bounds("source", gap.source), **_bounds("target", gap.target),
            }
            for row in target.rows for name, gap in row.gaps.items()
        ]
    )  # fmt: skip


def gap_csv(target: TransferTarget) -> str:
    """``gap.csv``: one line per row and metric with the gap, and its parts by the mix of classes."""
    return _csv(
        [
            {
                "encoder": row.encoder, "recipe": row.recipe, "is_floor": int(row.is_floor), "metric": name,
                **{key: cell for part in GAP_PARTS for key, cell in _bounds(part, getattr(gap, part)).items()},
            }
            for row in target.rows for name, gap in row.gaps.items()
        ]
    )  # fmt: skip


def transfer_csv(targets: Sequence[TransferTarget]) -> str:
    """``transfer.csv``: one line per row and cohort, primary metric first."""
    lines: list[dict[str, Cell]] = []
    for target in targets:
        for row in target.rows:
            main = row.gaps[target.metric]
            cells: dict[str, Cell] = {
                "cohort": target.name, "encoder": row.encoder, "recipe": row.recipe, "is_floor": int(row.is_floor),
                "seeds": " ".join(map(str, row.seeds)), "n_source_patients": target.num_source,
                "n_target_patients": target.num_target, "metric": target.metric,
                **_bounds("source", main.source), **_bounds("target", main.target), **_bounds("gap", main.gap),
                "letters": row.letters, **_compared("diff_to_best", row.to_best),
                "gap_letters": row.gap_letters, **_compared("gap_to_least", row.gap_to_least),
            }  # fmt: skip
            for part in ("at_source_mix", "gap_at_source_mix", "due_to_mix"):
                cells |= _bounds(part, getattr(main, part))
            for name in ("auroc", *((KAPPA,) if target.ordered else ()), _SHARE_RIGHT[target.task], "macro_f1"):
                for part in ("source", "target", "gap", "gap_at_source_mix"):
                    cells |= _bounds(f"{name}_{part}", getattr(row.gaps[name], part))
            for measure in MEASURES:
                for stage in CALIBRATION_STAGES:
                    cells |= _bounds(f"{measure}_{stage}", getattr(row.calibration, stage)[measure])
            lines.append(cells)
    # a study whose classes are not grades has no kappa: all lines have all columns
    columns = {name: None for cells in lines for name in cells}
    return _csv([columns | cells for cells in lines])


def shifts(target: TransferTarget) -> dict[str, Any]:
    """``shifts.json``: the mix of classes, calibration and ranking of every row, undefined values with their reason."""
    return {
        "schema_version": SCHEMA_VERSION,
        "cohort": target.name,
        "counted": target.counted,
        "prevalence": {
            name: {"source": source, "target": there}
            for name, source, there in zip(
                target.classes, target.source_counts_C, target.target_counts_C, strict=True
            )
        },
        "temperature": {
            "fit_share": target.fit_share,
            "seeded_by": ["intervals.seed", "temperature part", target.name],
            "grouped_by": "patient, each class by its share",
        },
        "rows": {row.name: _row_shifts(target, row) for row in target.rows},
    }  # fmt: skip


def _row_shifts(target: TransferTarget, row: TransferRow) -> dict[str, Any]:
    found = row.calibration
    known = transfer_metrics(target.classes, ordered=target.ordered, task=target.task)
    ranking = [name for name in known if "auroc" in name or name == "map" or name.startswith("ap_")]
    ranking += [KAPPA] if target.ordered else []
    return {
        "prevalence": {
            name: {part: _plain_interval(getattr(row.gaps[name], part)) for part in ("gap", *GAP_PARTS[1:])}
            for name in target.scores.metrics
        },
        "ranking": {
            name: {
                part: _plain_interval(getattr(row.gaps[name], part))
                for part in ("source", "target", "gap", "gap_at_source_mix")
            }
            for name in ranking
        },
        "calibration": {
            "num_fit_patients": found.num_fit_patients,
            "num_scored_patients": found.num_scored_patients,
            "ece_bins": found.num_bins,
            "ece_binning": "equal mass",
            "source_temperatures": [_plain_value(one) for one in found.source_temperatures],
            "target_temperatures": [_plain_value(one) for one in found.target_temperatures],
            "ece_by_chance": {
                "source": _plain_value(found.source_by_chance),
                "target": _plain_value(found.target_by_chance),
            },
            **{
                stage: {measure: _plain_interval(getattr(found, stage)[measure]) for measure in MEASURES}
                for stage in CALIBRATION_STAGES
            },
        },
    }


def transfer_markdown(targets: Sequence[TransferTarget]) -> str:
    """``transfer.md``: for each cohort the rows, the classes, the shifts; then footnotes."""
    footnotes = Footnotes()
    lines = ["# Transfer to other cohorts", ""]
    for target in targets:
        lines += [
            f"## {target.name}: {target.metric_title}", "",
            f"{target.num_source} source test patients, {target.num_target} target patients; {target.level:.0%} "
            f"intervals from {target.num_resamples} resamples of each, drawn independently. Gap = source − target. "
            f"Rows that share a letter cannot be told apart (paired, Holm over all pairs, {target.alpha:g}).", "",
            *_markdown_table(*main_table(target, footnotes)), "",
            "### Per class", "", *_markdown_table(*class_table(target, footnotes)), "",
            "### Shifts", "", *_markdown_table(*shift_table(target, footnotes)), "",
            "### Calibration", "", *_markdown_table(*calibration_table(target, footnotes)), "",
        ]  # fmt: skip
        if target.findings:
            lines += ["### Findings", "", *(f"- {finding.title} {finding.evidence}" for finding in target.findings), ""]
    if footnotes.reasons:
        lines += [f"[{number}] undefined: {reason}  " for reason, number in footnotes.reasons.items()]
        lines += [""]
    return "\n".join([*lines, f"schema_version {SCHEMA_VERSION}", ""])


def main_table(target: TransferTarget, footnotes: Footnotes) -> tuple[list[str], list[list[str]]]:
    """Heads and rows: the primary metric on both cohorts, its gap, and how rows compare."""
    head = ["model", "source", "target", "", "difference to best", "p (Holm)", "gap", " ", "more lost than least",
            "p (Holm) "]  # fmt: skip
    body = []
    for row in target.rows:
        gap = row.gaps[target.metric]
        is_best, is_least = row.name == target.best, row.name == target.least
        body.append([
            row.name, footnotes.interval(gap.source), footnotes.interval(gap.target), row.letters,
            "best" if is_best else footnotes.interval(row.to_best),
            "" if is_best else footnotes.p_value(row.to_best.p_holm),
            footnotes.interval(gap.gap), row.gap_letters,
            "loses least" if is_least else footnotes.interval(row.gap_to_least),
            "" if is_least else footnotes.p_value(row.gap_to_least.p_holm),
        ])  # fmt: skip
    return head, body


def class_table(target: TransferTarget, footnotes: Footnotes) -> tuple[list[str], list[list[str]]]:
    """Heads and rows: recall, F1 and AUROC of each class on both cohorts, with the gap."""
    kinds = ("recall" if target.task == "multi_class" else "ap", "f1", "auroc")
    titles = target.scores.class_metrics
    head = ["model", target.scores.noun, f"{target.counted} (source, target)"]
    head += [f"{titles[kind].title}{part}" for kind in kinds for part in (", source", ", target", " gap")]
    body = []
    for row in target.rows:
        for c, label in enumerate(target.classes):
            cells = [row.name, label, f"{target.source_counts_C[c]}, {target.target_counts_C[c]}"]
            for kind in kinds:
                gap = row.gaps[f"{kind}_{label}"]
                cells += [footnotes.number(gap.source.value), footnotes.number(gap.target.value)]
                cells += [footnotes.interval(gap.gap)]
            body.append(cells)
    return head, body


def shift_table(target: TransferTarget, footnotes: Footnotes) -> tuple[list[str], list[list[str]]]:
    """Heads and rows: each gap, what the mix of classes explains of it, and what it does not."""
    right = _SHARE_RIGHT[target.task]
    names = list(dict.fromkeys([target.metric, right, "macro_f1", "auroc", *((KAPPA,) if target.ordered else ())]))
    head = ["model", "metric", "source", "target", "target at the source's mix", "gap", "due to the mix", "rest"]
    body = []
    for row in target.rows:
        for name in names:
            gap: Gap = row.gaps[name]
            body.append([
                row.name, metric_title(name, target.classes, target.task), footnotes.number(gap.source.value),
                footnotes.number(gap.target.value), footnotes.number(gap.at_source_mix.value),
                footnotes.interval(gap.gap), footnotes.interval(gap.due_to_mix),
                footnotes.interval(gap.gap_at_source_mix),
            ])  # fmt: skip
    return head, body


def calibration_table(target: TransferTarget, footnotes: Footnotes) -> tuple[list[str], list[list[str]]]:
    """Heads and rows: ECE, Brier score and NLL of each row on both cohorts, before and after a temperature."""
    head = ["model", "measured on", "temperature", "ECE", "ECE by chance", "Brier score", "NLL"]
    body = []
    for row in target.rows:
        found = row.calibration
        temperatures = {
            "source": "", "source_scaled": _temperatures(found.source_temperatures, footnotes), "target": "",
            "target_source_scaled": _temperatures(found.source_temperatures, footnotes),
            "target_scaled": _temperatures(found.target_temperatures, footnotes),
        }  # fmt: skip
        for stage, words in CALIBRATION_STAGES.items():
            measures: Mapping[str, Interval] = getattr(found, stage)
            by_chance = {"source": found.source_by_chance, "target": found.target_by_chance}.get(stage)
            body.append([
                row.name, words, temperatures[stage], footnotes.interval(measures["ece"]),
                "" if by_chance is None else footnotes.number(by_chance), footnotes.interval(measures["brier"]),
                footnotes.interval(measures["nll"]),
            ])  # fmt: skip
    return head, body


def render_transfer(target: TransferTarget) -> Table:
    """One cohort for a terminal of 80 columns or more; floors are dim, the best row bold."""
    footnotes = Footnotes()
    title = f"{target.name}: {target.metric_title}, {target.num_source} source and {target.num_target} target patients"
    table = Table(box=None, pad_edge=False, title=title, title_justify="left", title_style="bold",
                  caption_justify="left")  # fmt: skip
    table.add_column("encoder / recipe", overflow="fold", min_width=16)
    table.add_column("source", justify="right", no_wrap=True)
    table.add_column(f"target [{target.level:.0%}]", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column(f"gap [{target.level:.0%}]", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for row in target.rows:
        gap = row.gaps[target.metric]
        style = "dim" if row.is_floor else "bold" if row.name == target.best else ""
        cells = [row.name, footnotes.number(gap.source.value), footnotes.interval(gap.target), row.letters,
                 footnotes.interval(gap.gap), row.gap_letters]  # fmt: skip
        table.add_row(*(Text(cell) for cell in cells), style=style)
    notes = [f"[{number}] {reason}" for reason, number in footnotes.reasons.items()]
    notes += [f"{finding.severity}: {finding.title}" for finding in target.findings]
    table.caption = Text("\n".join(notes)) if notes else None
    return table


def _temperatures(values: Sequence[float | Undefined], footnotes: Footnotes) -> str:
    return " ".join(footnotes.mark(one) if isinstance(one, Undefined) else f"{one:.2f}" for one in values)


def _bounds(name: str, found: Interval) -> dict[str, Cell]:
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def _compared(name: str, found: Difference) -> dict[str, Cell]:
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high, f"{name}_p_holm": found.p_holm}


def _csv(lines: Sequence[Mapping[str, Cell]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*lines[0], "undefined", "schema_version"])
    for cells in lines:
        reasons: dict[str, list[str]] = {}
        for name, cell in cells.items():
            if isinstance(cell, Undefined):
                reasons.setdefault(cell.reason, []).append(name)
        told = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
        writer.writerow([*(_plain_cell(cell) for cell in cells.values()), told, SCHEMA_VERSION])
    return text.getvalue()


def _plain_cell(cell: Cell) -> str:
    if cell is None or isinstance(cell, Undefined):
        return ""
    return f"{cell:.6f}" if isinstance(cell, float) else str(cell)


def _plain_value(value: float | Undefined) -> dict[str, str] | float:
    return {"undefined": value.reason} if isinstance(value, Undefined) else value


def _plain_interval(found: Interval) -> dict[str, Any]:
    return {"value": _plain_value(found.value), "low": _plain_value(found.low), "high": _plain_value(found.high)}


def _markdown_table(head: list[str], body: list[list[str]]) -> list[str]:
    escaped = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in [head, *body]]
    lines = [f"| {' | '.join(row)} |" for row in escaped]
    return [lines[0], "|" + " --- |" * len(head), *lines[1:]]
