"""What a result must rise above: the majority class, shuffled labels, the columns of the table.

The floor of shuffled labels is any recipe trained on :func:`shuffled_labels` of its training rows, that of columns
logistic regression on a :class:`ColumnEncoding`.

Axes: N row (volume), D feature, C class, P participant.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitreous.core.errors import SampleError
from vitreous.core.label_sets import memberships
from vitreous.recipes.class_weights import count_labels, count_participants
from vitreous.recipes.feature_set import FeatureSet, check_feature_sets, shuffled_labels
from vitreous.recipes.patient_scores import PatientScorer
from vitreous.recipes.references import FittedReference

__all__ = [
    "ColumnEncoding", "fit_column_encoding", "fit_majority", "majority_logits", "shuffled_labels", "typed_columns",
    "why_not_a_column",
]  # fmt: skip

FloatArray = npt.NDArray[np.float64]
FLOOR_CS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
_MOST_CATEGORIES = 50
_FEWEST_NUMBERS = 11  # a column of fewer different numbers holds codes, such as 1 and 2 for two sites
_MISSING = ("", "n/a", "na", "nan", "null", "none", "unknown")


def majority_logits(y_of_train_patients: npt.NDArray[np.int64], num_classes: int, num_rows: int) -> FloatArray:
    """The logarithm of each class's share of training participants, the same for every row, shape (N, C).

    Raises:
        SampleError: a class has no training participant.

    >>> majority_logits(np.array([0, 0, 0, 1]), 2, 1).round(3).tolist()
    [[-0.288, -1.386]]
    """
    counts_C = count_participants(y_of_train_patients, num_classes)
    return np.tile(np.log(counts_C / counts_C.sum()), (num_rows, 1))


def fit_majority(train: FeatureSet, val: FeatureSet, *, num_classes: int) -> FittedReference:
    """The floor that says the most frequent class of training participants to everybody; of labels, their shares."""
    check_feature_sets(train, val, num_classes)
    y_U = train.scored()[0]
    logits_NC = (
        majority_logits(y_U, num_classes, len(val.y_N))
        if train.task == "multi_class"
        else prevalence_logits(memberships(y_U, num_classes, train.task), len(val.y_N))
    )
    score = PatientScorer(val, num_classes).score_logits(logits_NC)
    return FittedReference({}, score, {"prior.logits": logits_NC[0]})


def prevalence_logits(has_UC: npt.NDArray[np.bool_], num_rows: int) -> FloatArray:
    """log(with / without) of each label among training participants, the same for every row, shape (N, C).

    Raises:
        SampleError: a label that nobody, or everybody, has.

    >>> prevalence_logits(np.array([[True], [False], [False], [False]]), 1).round(3).tolist()
    [[-1.099]]
    """
    counts_C = count_labels("train", has_UC)
    return np.tile(np.log(counts_C / (len(has_UC) - counts_C)), (num_rows, 1))


@dataclass(frozen=True)
class ColumnEncoding:
    """How columns of a table become features, fitted on training rows.

    Args:
        numeric: name → mean over training rows, which stands for a missing value; a second feature says
            "missing" where training rows miss some.
        with_missing: the numeric columns that have that second feature.
        categories: name → values seen in training, one feature each; a missing value is the category "". A
            value not seen in training has zeros in all of them.
    """

    numeric: dict[str, float]
    with_missing: tuple[str, ...]
    categories: dict[str, tuple[str, ...]]

    @property
    def feature_names(self) -> list[str]:
        """One name per feature, such as ``age`` or ``clinical_site=UW``."""
        names = []
        for column in self.numeric:
            names += [column, *([f"{column} missing"] if column in self.with_missing else [])]
        return names + [f"{column}={value}" for column, values in self.categories.items() for value in values]

    def features(self, table: pd.DataFrame) -> npt.NDArray[np.float32]:
        """Features of shape (N, D).

        Raises:
            SampleError: the table lacks a column, or a numeric column holds text.
        """
        _check_columns(table, [*self.numeric, *self.categories])
        features: list[npt.NDArray[np.float64]] = []
        for column, mean in self.numeric.items():
            values_N = _numeric_values(table[column])
            features.append(np.where(np.isnan(values_N), mean, values_N))
            if column in self.with_missing:
                features.append(np.isnan(values_N).astype(np.float64))
        for column, values in self.categories.items():
            texts_N = _text_values(table[column])
            features += [(texts_N == value).astype(np.float64) for value in values]
        return np.stack(features, axis=1).astype(np.float32)

    def count_unseen(self, table: pd.DataFrame) -> dict[str, int]:
        """Rows per categorical column whose value training never saw; columns without any are left out."""
        unseen = {c: int((~np.isin(_text_values(table[c]), values)).sum()) for c, values in self.categories.items()}
        return {column: count for column, count in unseen.items() if count}


def typed_columns(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Columns of text as numbers, where all that is there are numbers and more than ten different ones; else as text.

    What is empty or says that nothing is known (``n/a``, ``unknown``, …) is missing. Columns of numbers stay numbers.

    >>> typed_columns(pd.DataFrame({"site": ["1", "2", "unknown"]}), ["site"])["site"].tolist()
    ['1', '2', None]
    """
    return pd.DataFrame({column: _typed(table[column]) for column in columns}, index=table.index)


def _typed(series: "pd.Series[Any]") -> "pd.Series[Any]":
    if pd.api.types.is_numeric_dtype(series):
        return series
    text = series.astype("string").str.strip()
    present = text[~text.str.casefold().isin(_MISSING) & text.notna()]
    numbers = pd.to_numeric(present, errors="coerce").astype("float64")
    if np.isfinite(numbers).all() and numbers.nunique() >= _FEWEST_NUMBERS:
        return numbers.reindex(series.index)
    whole = present.astype(object).reindex(series.index)
    return whole.where(whole.notna(), None)


def why_not_a_column(series: "pd.Series[Any]") -> str | None:
    """Why the floor cannot use a column of :func:`typed_columns`; None where it can."""
    if series.isna().all():
        return "has no value"
    if not pd.api.types.is_numeric_dtype(series) and series.nunique() > _MOST_CATEGORIES:
        return (
            f"has {series.nunique()} different values as text, more than {_MOST_CATEGORIES}: it names rows, not groups"
        )
    return None


def fit_column_encoding(table: pd.DataFrame, columns: Sequence[str]) -> ColumnEncoding:
    """Numbers stay numbers (booleans too); everything else is one feature per value.

    Raises:
        SampleError: no columns; a column is missing from the table, has no value at all, or has more than
            50 values as text (it names rows rather than groups).
    """
    if not columns:
        raise SampleError("the floor of columns needs at least one column; name some or take the floor off.")
    _check_columns(table, columns)
    numeric, with_missing, categories = {}, [], {}
    for column in columns:
        series = table[column]
        if series.isna().all():
            raise SampleError(f"column {column!r} has no value in the training rows; leave it out of the floor.")
        if pd.api.types.is_numeric_dtype(series):
            values_N = _numeric_values(series)
            numeric[column] = float(np.nanmean(values_N))
            if np.isnan(values_N).any():
                with_missing.append(column)
            continue
        values = tuple(np.unique(_text_values(series)).tolist())
        if len(values) > _MOST_CATEGORIES:
            raise SampleError(
                f"column {column!r} has {len(values)} values as text, more than {_MOST_CATEGORIES}: it names "
                "rows rather than groups. Leave it out of the floor."
            )
        categories[column] = values
    return ColumnEncoding(numeric, tuple(with_missing), categories)


def _check_columns(table: pd.DataFrame, columns: Sequence[str]) -> None:
    if missing := [column for column in columns if column not in table.columns]:
        raise SampleError(f"the table lacks the columns {missing}; it has {list(table.columns)}.")


def _numeric_values(series: "pd.Series[Any]") -> FloatArray:
    if not pd.api.types.is_numeric_dtype(series) and not series.isna().all():
        raise SampleError(f"column {series.name!r} holds numbers in training but text here.")
    return np.asarray(series.astype("Float64").to_numpy(dtype=np.float64, na_value=np.nan), dtype=np.float64)


def _text_values(series: "pd.Series[Any]") -> npt.NDArray[np.str_]:
    return series.astype("string").fillna("").to_numpy(dtype=np.str_)
