"""Labels in several columns of a table, one a label: 0, 1, or the share of annotators who saw it.

Axes: N row, C label.
"""

import numpy as np
import pandas as pd

from vitreous.core.label_sets import encode_label_sets
from vitreous.samples.problems import Problems, examples
from vitreous.samples.tables import is_missing


def read_label_sets(cells: pd.DataFrame, live: pd.Series, agreement: float | None, problems: Problems) -> pd.Series:
    """The number of each row's set of labels (:mod:`vitreous.core.label_sets`), missing where any of them is unknown.

    Args:
        cells: text, one column a label.
        live: rows that are read; problems of others are passed over.
        agreement: the share of annotators, in (0, 1], from which a label is present; None where cells are 0 or 1 alone.
        problems: told what is no number, lies outside [0, 1], or lies between 0 and 1 without a rule.
    """
    values = {}
    for name in cells.columns:
        column = cells[name]
        numbers = pd.to_numeric(column.where(~is_missing(column)), errors="coerce").astype("float64")
        unread = live & numbers.isna() & ~is_missing(column)
        if unread.any():
            found = sorted(column[unread].unique())
            problems.add(
                f"label {name!r} must be 0 or 1 in every row; got {examples(found)} (lines "
                f"{examples(cells.index[unread])})."
            )
        outside = live & ((numbers < 0) | (numbers > 1) | np.isinf(numbers))
        if outside.any():
            problems.add(
                f"label {name!r} must lie in [0, 1]; got {examples(sorted(column[outside].unique()))} (lines "
                f"{examples(cells.index[outside])})."
            )
        between = live & (numbers > 0) & (numbers < 1)
        if between.any() and agreement is None:
            problems.add(
                f"label {name!r} has shares of annotators, such as {examples(sorted(column[between].unique()), 3)}, in "
                f"{int(between.sum())} rows; say from which share a label is present: data.agreement: 0.5."
            )
        values[name] = numbers
    table = pd.DataFrame(values, index=cells.index)
    known = ~table.isna().any(axis=1)
    least = 1.0 if agreement is None else agreement
    present_NC = table.fillna(0.0).to_numpy() >= least - 1e-6  # two of three is written 0.666667
    numbers_N = pd.Series(encode_label_sets(present_NC), index=cells.index).astype("Int64")
    return numbers_N.where(known & live)
