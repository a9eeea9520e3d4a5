"""The leaderboard as CSV, Markdown, DataFrame and terminal table: one list of columns for all.

A cell without a number is empty; why is said in the column `undefined` of the CSV and in footnotes elsewhere.
"""

import csv
import io
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from rich.table import Table
from rich.text import Text

from vitreous.core.files import write_text
from vitreous.core.undefined import Undefined
from vitreous.evidence.comparison import Difference
from vitreous.evidence.intervals import Interval
from vitreous.reports.leaderboard import Leaderboard, LeaderboardRow
from vitreous.reports.power import power_sentences

SCHEMA_VERSION = 1
_METHODS = {"percentile": "percentile", "bca": "BCa"}
Cell = str | int | float | Undefined | None


def leaderboard_cells(leaderboard: Leaderboard) -> list[dict[str, Cell]]:
    """One dict per row, in the order of the columns of ``leaderboard.csv``."""
    return [_row_cells(leaderboard, row) for row in leaderboard.rows]


def leaderboard_frame(leaderboard: Leaderboard) -> pd.DataFrame:
    """The columns of ``leaderboard.csv`` with numbers as numbers; what is undefined is missing."""
    rows = [
        {name: None if isinstance(cell, Undefined) else cell for name, cell in cells.items()}
        for cells in leaderboard_cells(leaderboard)
    ]
    return pd.DataFrame(rows).astype({"rank": "Int64", "trainable_parameters": "Int64", "total_parameters": "Int64"})


def write_leaderboard(leaderboard: Leaderboard, run_dir: Path) -> None:
    """Write ``leaderboard.csv`` and ``leaderboard.md``; equal leaderboards give equal bytes."""
    write_text(run_dir / "leaderboard.csv", leaderboard_csv(leaderboard))
    write_text(run_dir / "leaderboard.md", leaderboard_markdown(leaderboard))


def leaderboard_csv(leaderboard: Leaderboard) -> str:
    """All columns; numbers with six decimals."""
    rows = leaderboard_cells(leaderboard)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(rows[0])
    writer.writerows([_plain(cell) for cell in cells.values()] for cells in rows)
    return text.getvalue()


def leaderboard_markdown(leaderboard: Leaderboard) -> str:
    """The main columns, then the metrics of each class, then footnotes on what is undefined."""
    title = leaderboard.metric_title
    percent = f"{leaderboard.level:.0%}"
    footnotes = Footnotes()
    together = f", whose {leaderboard.scored} are drawn together" if leaderboard.aggregate == "none" else ""
    lines = [
        f"# Leaderboard: {title} on {leaderboard.test_size}", "",
        *(f"**{banner}**\n" for banner in leaderboard.banners),
        f"Means over seeds with {percent} {_METHODS[leaderboard.method]} intervals from {leaderboard.num_resamples} "
        f"resamples of patients{together}. "
        f"Rows that share a letter cannot be told apart (paired, Holm over all pairs, {leaderboard.alpha:g}); rank is "
        "1 + the number of rows significantly better.", "",
        *(f"{sentence}\n" for sentence in power_sentences(leaderboard.reach)),
    ]  # fmt: skip
    scores = leaderboard.scores
    others = [name for name in scores.beside if name != leaderboard.metric]
    head = ["rank", "letters", "encoder", "recipe", "seeds", f"val {title}", f"test {title}", "seed sd"]
    head += [scores.metrics[name].title for name in others] + ["difference to best", "p (Holm)", "notes"]
    body = []
    for row in leaderboard.rows:
        difference = row.to_best
        is_best = row.name == leaderboard.best
        body.append([
            _short(row.rank), row.letters, row.encoder, row.recipe, " ".join(map(str, row.seeds)),
            footnotes.number(row.val), footnotes.interval(row.test[leaderboard.metric]),
            footnotes.number(row.seed_sd), *(footnotes.interval(row.test[name]) for name in others),
            "best" if is_best else footnotes.interval(difference),
            "" if is_best else footnotes.p_value(difference.p_holm), "; ".join(row.notes),
        ])  # fmt: skip
    lines += _markdown_table(head, body)
    if leaderboard.baseline is not None:
        body = [
            [name, footnotes.interval(found), footnotes.p_value(found.p_holm)]
            for name, found in leaderboard.to_baseline.items()
        ]
        lines += ["", f"## Against the baseline {leaderboard.baseline}", ""]
        lines += _markdown_table(["row", f"difference in {title}", "p (Holm)"], body)
    lines += ["", f"## Per {scores.noun}", ""]
    kinds = list(scores.class_metrics)
    body = [
        [row.encoder, row.recipe, name, *(footnotes.interval(row.test[f"{kind}_{name}"]) for kind in kinds)]
        for row in leaderboard.rows for name in leaderboard.classes
    ]  # fmt: skip
    lines += _markdown_table(
        ["encoder", "recipe", scores.noun, *(scores.class_metrics[kind].title for kind in kinds)], body
    )
    if leaderboard.findings:
        lines += ["", "## Findings", "", *(f"- {finding.title}" for finding in leaderboard.findings)]
    if footnotes.reasons:
        lines += ["", *(f"[{number}] undefined: {reason}  " for reason, number in footnotes.reasons.items())]
    return "\n".join([*lines, "", f"schema_version {SCHEMA_VERSION}", ""])


def render_terminal(leaderboard: Leaderboard) -> Table:
    """The leaderboard for a terminal of 80 columns or more; floors are dim, the best row bold."""
    footnotes = Footnotes()
    short = {"balanced_accuracy": "bal. acc.", "auroc": "AUROC", "accuracy": "acc.", "macro_f1": "F1",
             "macro_precision": "prec.", "macro_recall": "recall", "map": "mAP", "exact_match": "exact"}  # fmt: skip
    title = f"{leaderboard.metric_title} on {leaderboard.test_size}"
    table = Table(box=None, pad_edge=False, title=title, title_justify="left", title_style="bold",
                  caption_justify="left")  # fmt: skip
    extra = "auroc" if leaderboard.metric != "auroc" else "balanced_accuracy"
    table.add_column("rank", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("encoder / recipe", overflow="fold", min_width=16)
    table.add_column("val", justify="right", no_wrap=True)
    table.add_column(f"test {short[leaderboard.metric]} [{leaderboard.level:.0%}]", justify="right", no_wrap=True)
    table.add_column(short[extra], justify="right", no_wrap=True)
    for row in leaderboard.rows:
        style = "bold" if row.name == leaderboard.best else "dim" if row.is_floor else ""
        cells = [
            _short(row.rank), row.letters, row.name, footnotes.number(row.val),
            footnotes.interval(row.test[leaderboard.metric]), footnotes.number(row.test[extra].value),
        ]  # fmt: skip
        table.add_row(*(Text(cell) for cell in cells), style=style)
    said = ["Rows that share a letter cannot be told apart.", *leaderboard.banners, *power_sentences(leaderboard.reach)]
    said += [f"[{number}] undefined: {reason}" for reason, number in footnotes.reasons.items()]
    table.caption = Text("\n".join(said))
    return table


class Footnotes:
    """Formats numbers for people and collects why cells are empty, numbered in order of appearance."""

    def __init__(self) -> None:
        self.reasons: dict[str, int] = {}

    def mark(self, missing: Undefined) -> str:
        """``[1]``: the number of this reason."""
        return f"[{self.reasons.setdefault(missing.reason, len(self.reasons) + 1)}]"

    def number(self, value: float | Undefined) -> str:
        """Three decimals, or the footnote alone."""
        return self.mark(value) if isinstance(value, Undefined) else f"{value:.3f}"

    def parts(self, found: Interval | Difference) -> tuple[str, str, str]:
        """Value, bounds and footnote, each empty where there is none."""
        if isinstance(found.value, Undefined):
            return "", "", self.mark(found.value)
        for bound in (found.low, found.high):
            if isinstance(bound, Undefined):
                return f"{found.value:.3f}", "", self.mark(bound)
        return f"{found.value:.3f}", f"[{found.low:.3f}, {found.high:.3f}]", ""

    def interval(self, found: Interval | Difference) -> str:
        """``0.612 [0.520, 0.701]``; without bounds ``0.612 [1]``."""
        return " ".join(part for part in self.parts(found) if part)

    def p_value(self, p: float | Undefined) -> str:
        """Three decimals, ``<0.001`` below them."""
        if isinstance(p, Undefined):
            return self.mark(p)
        return "<0.001" if p < 0.0005 else f"{p:.3f}"


def _row_cells(leaderboard: Leaderboard, row: LeaderboardRow) -> dict[str, Cell]:
    metric = leaderboard.metric
    cells: dict[str, Cell] = {
        "rank": row.rank, "letters": row.letters, "encoder": row.encoder, "recipe": row.recipe,
        "seeds": " ".join(map(str, row.seeds)), "n_test_patients": row.num_test_patients,
        f"val_{metric}": row.val, **_bounds(metric, row.test), "seed_sd": row.seed_sd,
    }  # fmt: skip
    scores = leaderboard.scores
    for name in scores.beside[1:]:  # values together first, as people read them
        cells.setdefault(f"test_{name}", row.test[name].value)
    for name in scores.names(leaderboard.classes):
        cells |= {key: cell for key, cell in _bounds(name, row.test).items() if key not in cells}
    cells |= {
        "diff_to_best": row.to_best.value, "diff_to_best_low": row.to_best.low, "diff_to_best_high": row.to_best.high,
        "p": row.to_best.p, "p_holm": row.to_best.p_holm, **_to_baseline(leaderboard, row),
        "is_floor": int(row.is_floor),
        "trainable_parameters": row.trainable_parameters, "total_parameters": row.total_parameters,
        **({"n_test_samples": row.num_test_scored} if leaderboard.aggregate == "none" else {}),
        "interval_method": leaderboard.method,
        "optimism": row.optimism.value, "optimism_low": row.optimism.low, "optimism_high": row.optimism.high,
        "grid_settings": row.choice.num_settings, "best_of_grid": row.choice.best_of_grid,
        "grid_corrected": row.choice.corrected, "grid_optimism": row.choice.optimism,
        "grid_optimism_low": row.choice.low, "grid_optimism_high": row.choice.high,
        "notes": "; ".join(row.notes),
    }  # fmt: skip
    reasons: dict[str, list[str]] = {}
    for name, cell in cells.items():
        if isinstance(cell, Undefined):
            reasons.setdefault(cell.reason, []).append(name)
    cells["undefined"] = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
    cells["schema_version"] = SCHEMA_VERSION
    return cells


def _to_baseline(leaderboard: Leaderboard, row: LeaderboardRow) -> dict[str, Cell]:
    """Of studies that name a baseline alone."""
    if leaderboard.baseline is None:
        return {}
    found = leaderboard.comparison.difference(row.name, leaderboard.baseline)
    return {
        "diff_to_baseline": found.value, "diff_to_baseline_low": found.low, "diff_to_baseline_high": found.high,
        "p_holm_to_baseline": found.p_holm,
    }  # fmt: skip


def _bounds(name: str, test: Mapping[str, Interval]) -> dict[str, Cell]:
    found = test[name]
    return {f"test_{name}": found.value, f"test_{name}_low": found.low, f"test_{name}_high": found.high}


def _plain(cell: Cell) -> str:
    if cell is None or isinstance(cell, Undefined):
        return ""
    return f"{cell:.6f}" if isinstance(cell, float) else str(cell)


def _short(rank: int | None) -> str:
    return "" if rank is None else str(rank)


def _markdown_table(head: list[str], body: list[list[str]]) -> list[str]:
    escaped = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in [head, *body]]
    lines = [f"| {' | '.join(row)} |" for row in escaped]
    return [lines[0], "|" + " --- |" * len(head), *lines[1:]]
