"""Tables of results: one list of cells for CSV, LaTeX and HTML alike.

A cell without a number is empty; why is said in the column `undefined` of the CSV and in footnotes elsewhere.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vitreous.core.files import write_text
from vitreous.core.undefined import Undefined
from vitreous.evidence.intervals import Interval
from vitreous.reports.leaderboard_tables import Footnotes

SCHEMA_VERSION = 1
FOLDER = "tables"
Kind = Literal["text", "count", "number", "interval"]
ResultCell = str | int | float | Interval | Undefined | None
_BETWEEN = " | "  # reasons hold commas, colons and semicolons of their own
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "≥": r"$\geq$", "−": "$-$", "×": r"$\times$", "…": r"\ldots{}", "–": "--",
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """One column.

    Args:
        name: in the CSV; an interval has ``<name>``, ``<name>_low``, ``<name>_high``.
        title: for people.
    """

    name: str
    title: str
    kind: Kind = "text"


@dataclass(frozen=True)
class ResultTable:
    """A table of results, each row as long as the columns.

    Args:
        name: of its files.
        caption: what it shows, of whom, and how.
        in_latex: whether a paper would print it; points of curves are for plotting.
        file: below the run directory, where it is no table of ``tables/``.
    """

    name: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[ResultCell, ...], ...]
    in_latex: bool = True
    file: str = ""

    @property
    def path(self) -> str:
        """The CSV, below the run directory."""
        return self.file or f"{FOLDER}/{self.name}.csv"

    def __post_init__(self) -> None:
        if bad := [len(row) for row in self.rows if len(row) != len(self.columns)]:
            raise ValueError(f"table {self.name!r} has {len(self.columns)} columns, but rows of {sorted(set(bad))}")


def write_tables(tables: Sequence[ResultTable], run_dir: Path) -> None:
    """Write ``tables/<name>.csv`` and, of those that a paper would print, ``.tex``; equal tables give equal bytes."""
    for table in tables:
        write_text(run_dir / FOLDER / f"{table.name}.csv", table_csv(table))
        if table.in_latex:
            write_text(run_dir / FOLDER / f"{table.name}.tex", table_latex(table))


def table_csv(table: ResultTable) -> str:
    """All cells, numbers with six decimals, then `undefined` and `schema_version`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    heads = [name for column in table.columns for name in _csv_names(column)]
    writer.writerow([*heads, "undefined", "schema_version"])
    for row in table.rows:
        cells: list[str] = []
        reasons: dict[str, list[str]] = {}
        for column, cell in zip(table.columns, row, strict=True):
            for name, part in zip(_csv_names(column), _csv_parts(column, cell), strict=True):
                cells.append(_plain(part))
                if isinstance(part, Undefined):
                    reasons.setdefault(part.reason, []).append(name)
        said = _BETWEEN.join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
        writer.writerow([*cells, said, SCHEMA_VERSION])
    return text.getvalue()


def table_latex(table: ResultTable) -> str:
    """A ``table`` with booktabs rules, every text escaped; what is undefined is a numbered note below it."""
    footnotes = Footnotes()
    body = [
        " & ".join(_latex_cell(cell, footnotes) for cell in row) + r" \\" for row in table.rows
    ]  # fmt: skip
    align = "".join("l" if column.kind == "text" else "r" for column in table.columns)
    heads = " & ".join(latex_escaped(column.title) for column in table.columns)
    notes = [rf"\textsuperscript{{{number}}}\,{latex_escaped(reason)}." for reason, number in footnotes.reasons.items()]
    lines = [
        r"% needs \usepackage{booktabs}", r"\begin{table}", r"  \centering", r"  \small",
        rf"  \caption{{{latex_escaped(table.caption)}}}", rf"  \label{{tab:{table.name.replace('_', '-')}}}",
        rf"  \begin{{tabular}}{{{align}}}", r"    \toprule", rf"    {heads} \\", r"    \midrule",
        *(f"    {line}" for line in body), r"    \bottomrule", r"  \end{tabular}",
    ]  # fmt: skip
    if notes:
        lines += [r"  \par\smallskip\footnotesize " + " ".join(notes)]
    return "\n".join([*lines, r"\end{table}", ""])


def latex_escaped(text: str) -> str:
    """Text that LaTeX prints as it stands.

    >>> latex_escaped("50 % of C_1")
    '50 \\\\% of C\\\\_1'
    """
    return "".join(_LATEX.get(letter, letter) for letter in text)


def shown(cell: ResultCell, footnotes: Footnotes) -> tuple[str, str, str]:
    """A cell for people: text or value, bounds, footnote; each empty where there is none."""
    match cell:
        case None:
            return "", "", ""
        case Undefined():
            return "", "", footnotes.mark(cell)
        case Interval():
            return footnotes.parts(cell)
        case float():
            return f"{cell:.3f}", "", ""
        case int():
            return f"{cell:,}", "", ""
        case str():
            return cell, "", ""


def _latex_cell(cell: ResultCell, footnotes: Footnotes) -> str:
    value, bounds, mark = shown(cell, footnotes)
    parts = [latex_escaped(part) for part in (value, bounds) if part]
    return " ".join(parts) + (rf"\textsuperscript{{{mark.strip('[]')}}}" if mark else "")


def _csv_names(column: Column) -> tuple[str, ...]:
    if column.kind == "interval":
        return column.name, f"{column.name}_low", f"{column.name}_high"
    return (column.name,)


def _csv_parts(column: Column, cell: ResultCell) -> tuple[str | int | float | Undefined | None, ...]:
    if column.kind != "interval":
        if isinstance(cell, Interval):
            raise ValueError(f"column {column.name!r} holds an interval, but is of {column.kind}s")
        return (cell,)
    if isinstance(cell, Interval):
        return cell.value, cell.low, cell.high
    return cell, cell, cell


def _plain(cell: str | int | float | Undefined | None) -> str:
    if cell is None or isinstance(cell, Undefined):
        return ""
    return f"{cell:.6f}" if isinstance(cell, float) else str(cell)
