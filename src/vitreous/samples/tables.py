"""Tables of text: TSV and CSV, every cell a string, so that the id 01001 stays 01001."""

import csv
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from vitreous.core.errors import SampleError
from vitreous.core.finding import Finding
from vitreous.samples.problems import Problems, examples

_DELIMITERS = {".tsv": "\t", ".csv": ","}
_OTHERS = {"\t": "tabs", ",": "commas", ";": "semicolons"}
LINE = "line"  # index name: where a row stands in its file, the header being line 1
_MISSING = {"", "n/a", "na", "nan", "null", "none"}


@dataclass(frozen=True)
class Table:
    """A table as read.

    Args:
        name: for error texts.
        frame: strings without spaces around them; the index is the line in the file.
        findings: what was put right while reading.
    """

    name: str
    frame: pd.DataFrame
    findings: tuple[Finding, ...]


def read_table(path: Path, name: str | None = None) -> Table:
    """Read a ``.tsv`` (tabs) or ``.csv`` (commas) file in UTF-8, with or without byte order mark.

    Spaces around headers and cells and empty trailing columns are taken away, and a finding says so; so it does of a
    header that has tabs or semicolons and not what the name of the file promises.

    Args:
        name: what the user calls the file, where `path` is a staged copy.
    Raises:
        SampleError: another kind of file, no header, two columns of one name, or lines that do not fit the header.
    """
    name = name or str(path)
    delimiter = _DELIMITERS.get(path.suffix.lower())
    if delimiter is None:
        raise SampleError(f"{name}: a table ends in .tsv or .csv; got {path.suffix!r}. Save it as one of these.")
    findings: list[Finding] = []
    delimiter = _delimiter_of_content(path, delimiter, name, findings)
    lines, rows = _read_rows(path, delimiter, name)
    if not rows:
        raise SampleError(f"{name}: the file is empty; a table begins with a line of column names.")
    header, rows = _without_empty_columns(rows[0], rows[1:], name, findings)
    _check_header(header, name)
    _check_widths(rows, lines[1:], len(header), name)
    cells = [[cell.strip() for cell in row] for row in rows]
    if changed := sum(cell != kept for row, stripped in zip(rows, cells) for cell, kept in zip(row, stripped)):
        findings.append(_stray_spaces(name, f"{changed} cells"))
    if [column.strip() for column in header] != header:
        findings.append(_stray_spaces(name, f"headers {[c for c in header if c != c.strip()]}"))
    index = pd.Index(lines[1:], name=LINE, dtype="int64")
    frame = pd.DataFrame(cells, columns=[column.strip() for column in header], index=index, dtype="str")
    return Table(name, frame, tuple(findings))


def is_missing(cells: pd.Series) -> pd.Series:
    """True where a cell says that nothing is known: empty, ``n/a``, ``NA``, ``nan``, ``null``, ``none``."""
    return cells.str.casefold().isin(_MISSING)


def check_columns(table: Table, columns: Sequence[str], purpose: str, problems: Problems) -> bool:
    """Note every column of `columns` that the table lacks, with the nearest name; whether all are there."""
    missing = [column for column in columns if column not in table.frame.columns]
    for column in missing:
        near = difflib.get_close_matches(column, list(table.frame.columns), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        problems.add(f"no column {column!r} for {purpose}; found {list(table.frame.columns)}.{hint}")
    return not missing


def _delimiter_of_content(path: Path, promised: str, name: str, findings: list[Finding]) -> str:
    """What the header has between its names: `promised` where it occurs, else another usual one."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            header = next((line for line in file if line.strip()), "")
    except OSError:
        return promised  # reading the rows says what is wrong
    if promised in header:
        return promised
    found = max(_OTHERS, key=header.count)
    if found not in header:
        return promised
    title = f"{name}: columns are divided by {_OTHERS[found]}, whatever the ending of the name."
    findings.append(Finding("delimiter", "info", title, f"none is {promised!r}"))
    return found


def _read_rows(path: Path, delimiter: str, name: str) -> tuple[list[int], list[list[str]]]:
    """Line numbers and fields of every line that is not blank."""
    lines: list[int] = []
    rows: list[list[str]] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            for row in reader:
                if any(row):
                    lines.append(reader.line_num)
                    rows.append(row)
    except UnicodeDecodeError as error:
        raise SampleError(f"{name}: is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    except csv.Error as error:
        raise SampleError(f"{name}: line {reader.line_num}: {error}; mend the line or its quotes.") from error
    except OSError as error:
        raise SampleError(f"{name}: {error.strerror}; check the path.") from error
    return lines, rows


def _without_empty_columns(
    header: list[str], rows: list[list[str]], name: str, findings: list[Finding]
) -> tuple[list[str], list[list[str]]]:
    """Cut what spreadsheets leave at the end of lines: fields without a name and without content."""
    width = len(header)
    while width and not header[width - 1].strip():
        width -= 1
    if any(cell.strip() for row in rows for cell in row[width:]):
        return header, rows  # content without a name: refused by the checks that follow
    longest = max([len(header), *(len(row) for row in rows)])
    if longest > width:
        findings.append(
            Finding("empty_columns", "info", f"{name}: empty columns at the end were left out.", f"{longest - width}")
        )
    return header[:width], [row[:width] for row in rows]


def _check_header(header: list[str], name: str) -> None:
    stripped = [column.strip() for column in header]
    problems = Problems(name)
    if repeated := sorted({column for column in stripped if column and stripped.count(column) > 1}):
        problems.add(f"columns appear twice: {examples(repeated)}; rename or remove one of each.")
    if nameless := [number for number, column in enumerate(stripped, 1) if not column]:
        problems.add(f"columns {examples(nameless)} have content but no name; name or remove them.")
    problems.check_none()


def _check_widths(rows: list[list[str]], lines: Sequence[int], width: int, name: str) -> None:
    wrong = [f"{line} ({len(row)})" for line, row in zip(lines, rows) if len(row) != width]
    if wrong:
        raise SampleError(
            f"{name}: lines {', '.join(wrong[:10])}{' …' if len(wrong) > 10 else ''} do not have the {width} fields "
            f"of the header ({len(wrong)} lines in all); check the delimiter."
        )


def _stray_spaces(name: str, what: str) -> Finding:
    return Finding("stray_spaces", "info", f"{name}: spaces around names or values were taken away.", what)
