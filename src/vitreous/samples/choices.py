"""Rows chosen by the value of a column, as ``where`` and ``volumes`` write it."""

from collections.abc import Mapping, Sequence

import pandas as pd

from vitreous.samples.problems import Problems, examples

Value = str | bool | int | float
Filter = Mapping[str, Value | Sequence[Value]]
_TRUE = {"true", "t", "yes", "y", "1", "1.0"}
_FALSE = {"false", "f", "no", "n", "0", "0.0"}


def has_value(cells: pd.Series, value: Value) -> pd.Series:
    """True where the text of a cell says `value`.

    A truth value matches TRUE/FALSE, yes/no, 1/0 in any case; a number matches every way to write it.
    """
    if isinstance(value, bool):
        return cells.str.casefold().isin(_TRUE if value else _FALSE)
    if isinstance(value, int | float):
        return pd.to_numeric(cells, errors="coerce") == value
    return cells == value.strip()


def choose_rows(frame: pd.DataFrame, chosen: Filter, option: str, problems: Problems) -> pd.Series:
    """True where every column has one of its values.

    A value that no row has is a problem: it is more often a slip than a wish. Columns must exist.

    Args:
        option: the option's name, for the text.
    """
    keep = pd.Series(True, index=frame.index)
    for column, wanted in chosen.items():
        values = [wanted] if isinstance(wanted, str | bool | int | float) else list(wanted)
        cells = frame[column]
        matches = pd.Series(False, index=frame.index)
        for value in values:
            found = has_value(cells, value)
            if not found.any():
                present = sorted(cells.unique())
                problems.add(f"{option}: no row has {column}={value!r}; the column holds {examples(present)}.")
            matches |= found
        keep &= matches
    return keep
