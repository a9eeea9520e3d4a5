"""Columns that tell the label: a proxy among the columns, a site or device that determines it, a date.

A column is judged by how well it predicts the label of patients it was not fitted on, and by how surely that can be
said of so few. It refuses a run where balanced accuracy over five folds is at least 0.98 and its lower bound at least
0.6: a column that is right for 60 % of the patients passes for one that determines the label in at most one cohort of
forty, whatever their size. It warns where the lower bound is above chance by 0.1. The bound is the mean over classes
of Clopper and Pearson's for the recall, each at 0.025 / C, so that it holds at 97.5 % for all classes together.

Axes: N row of the table, P patient, C class.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import beta

from vitreous.core.leak import Leak
from vitreous.samples.tables import is_missing

IntArray = npt.NDArray[np.int64]
DETERMINES, SURELY = 0.98, 0.6
ABOVE_CHANCE = 0.1
NUM_FOLDS = 5
FEWEST_OF_A_CLASS = 5  # patients; fewer say nothing
_DATES = ("%Y-%m-%d", "%Y%m%d", "%Y/%m/%d", "%d.%m.%Y", "%m/%d/%Y", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S")
_ERROR = 0.025
_MOST_DIGITS = 15  # more do not fit into a float64
Kind = Literal["category", "number", "date"]


@dataclass(frozen=True)
class ColumnPrediction:
    """How well a column predicts the label of patients it was not fitted on.

    Args:
        kind: how its values were read.
        balanced_accuracy: over `num_patients`.
        low: bound that the true one exceeds at 97.5 %.
    """

    kind: Kind
    balanced_accuracy: float
    low: float
    num_patients: int


def find_telling_columns(
    samples: pd.DataFrame, y_N: IntArray, classes: Sequence[str], columns: Sequence[str]
) -> Iterator[Leak]:
    """Leaks and warnings about each column.

    Args:
        y_N: class index of each sample; below 0 where it may not be seen.
        columns: those that are counted by, probed or used as a floor.
    """
    known = y_N >= 0
    patients = samples["patient_id"].to_numpy(np.str_)[known]
    for column in columns:
        cells = samples[column].astype("str")[known]
        found = predict_from_column(cells, y_N[known], patients, len(classes))
        if found is None:
            continue
        evidence = (
            f"balanced accuracy {found.balanced_accuracy:.3f} over {NUM_FOLDS} folds of {found.num_patients} train and "
            f"val patients, at least {found.low:.3f}; {len(classes)} classes"
        )
        if found.balanced_accuracy >= DETERMINES and found.low >= SURELY:
            code, what = _code_of(found.kind, cells, classes)
            yield Leak(
                code,
                True,
                f"The column {column!r} determines the label: {what}.",
                f"Take {column} out of the columns of the study, or balance the cohort over it; accept it if it is the "
                "question.",
                tuple(_table_of(cells, y_N[known], patients, classes)) if found.kind == "category" else (),
                evidence,
            )
        elif found.low > 1 / len(classes) + ABOVE_CHANCE:
            title = f"The column {column!r} tells much of the label: what reads it from the input does so too."
            remedy = f"Compare with the floor `columns`, and look at results by {column}."
            yield Leak("column_tells_label", False, title, remedy, (), evidence)


def predict_from_column(
    cells: pd.Series, y_N: IntArray, patient_id_N: npt.NDArray[np.str_], num_classes: int
) -> ColumnPrediction | None:
    """Five folds by patient, classes spread evenly: a category says the class it holds more than its share of, a
    number or date what a small tree of thresholds says; None where a class has fewer than five patients.
    """
    kind, values_N = _read(cells)
    units = pd.DataFrame({"patient": patient_id_N, "value": values_N, "y": y_N}).drop_duplicates()
    of_patient = units.groupby("patient")["y"].max()
    if np.bincount(of_patient, minlength=num_classes).min() < FEWEST_OF_A_CLASS:
        return None
    ordered = of_patient.reset_index().sort_values(["y", "patient"], ignore_index=True)
    fold_of = dict(zip(ordered["patient"], ordered.groupby("y").cumcount() % NUM_FOLDS, strict=True))
    fold_N = units["patient"].map(fold_of).to_numpy()
    x_N = pd.factorize(units["value"])[0] if kind == "category" else units["value"].to_numpy(np.float64)
    y_of_units_N = units["y"].to_numpy(np.int64)
    right_N = np.zeros(len(units), dtype=bool)
    predict = _majority if kind == "category" else _thresholds
    for fold in range(NUM_FOLDS):
        test_N = fold_N == fold
        predicted_N = predict(x_N[~test_N], y_of_units_N[~test_N], x_N[test_N], num_classes)
        right_N[test_N] = predicted_N == y_of_units_N[test_N]
    # a patient of several values or labels counts once for each label, by the share that is right
    shares = units.assign(right=right_N).groupby(["patient", "y"])["right"].mean().reset_index()
    recalls, lows = [], []
    for _, share in shares.groupby("y")["right"]:
        recalls.append(float(share.mean()))
        lows.append(_lower_bound(float(share.sum()), len(share), _ERROR / num_classes))
    return ColumnPrediction(kind, float(np.mean(recalls)), float(np.mean(lows)), len(of_patient))


def _read(cells: pd.Series) -> tuple[Kind, npt.NDArray[np.float64] | npt.NDArray[np.object_]]:
    """Dates and numbers as numbers (NaN where missing), everything else as text; few numbers are categories."""
    missing = is_missing(cells) | (cells.str.casefold() == "unknown")
    given = cells[~missing]
    if len(given) == 0 or given.nunique() <= NUM_FOLDS:
        return "category", cells.to_numpy(dtype=object)
    for form in _DATES:
        dates = pd.to_datetime(given, format=form, errors="coerce")
        if dates.notna().all() and dates.dt.year.between(1900, 2100).all():
            seconds_N: npt.NDArray[np.float64] = np.asarray(
                (dates - pd.Timestamp(0)).dt.total_seconds().reindex(cells.index), dtype=np.float64
            )
            return "date", seconds_N
    numbers = pd.to_numeric(given, errors="coerce")
    if numbers.notna().all():
        return "number", numbers.reindex(cells.index).to_numpy(np.float64)
    return "category", cells.to_numpy(dtype=object)


def _majority(x_N: npt.NDArray[Any], y_N: IntArray, test_M: npt.NDArray[Any], num_classes: int) -> IntArray:
    """The class that a category holds more of than its share; -1 for one that was not seen."""
    counts_VC = np.zeros((max(x_N.max(), test_M.max()) + 1, num_classes))
    np.add.at(counts_VC, (x_N, y_N), 1)
    shares_VC = counts_VC / np.maximum(counts_VC.sum(axis=0), 1)
    best_V = np.where(counts_VC.sum(axis=1) > 0, shares_VC.argmax(axis=1), -1)
    return np.asarray(best_V[test_M], dtype=np.int64)


def _thresholds(x_N: npt.NDArray[Any], y_N: IntArray, test_M: npt.NDArray[Any], num_classes: int) -> IntArray:
    """What a small tree says; a missing number takes a branch of its own."""
    from sklearn.tree import DecisionTreeClassifier

    depth = int(np.ceil(np.log2(num_classes))) + 1
    tree = DecisionTreeClassifier(max_depth=depth, min_samples_leaf=3, class_weight="balanced", random_state=0)
    return np.asarray(tree.fit(x_N[:, None], y_N).predict(test_M[:, None]), dtype=np.int64)


def _lower_bound(successes: float, trials: int, error: float) -> float:
    """Clopper and Pearson's lower bound; successes may be a fraction, and are rounded down."""
    whole = int(successes)
    return 0.0 if whole == 0 else float(beta.ppf(error, whole, trials - whole + 1))


def _code_of(kind: Kind, cells: pd.Series, classes: Sequence[str]) -> tuple[str, str]:
    if kind == "date":
        return "order_tells_label", "the classes were recorded at different times"
    if kind == "number":
        return "label_proxy", "a threshold on it separates the classes"
    names = {name.casefold() for name in classes}
    if {value.casefold() for value in cells} <= names | {str(index) for index in range(len(classes))}:
        return "label_proxy", "it is the label under another name"
    return "domain_tells_label", "each of its values holds one class alone"


def _table_of(cells: pd.Series, y_N: IntArray, patient_id_N: npt.NDArray[np.str_], classes: Sequence[str]) -> list[str]:
    units = pd.DataFrame({"value": cells.to_numpy(), "y": y_N, "patient": patient_id_N}).drop_duplicates()
    table = pd.crosstab(units["value"], units["y"]).reindex(columns=range(len(classes)), fill_value=0)
    return [
        f"{value}: " + ", ".join(f"{name} {count}" for name, count in zip(classes, counts, strict=True) if count)
        for value, counts in zip(table.index, table.to_numpy().tolist(), strict=True)
    ]


def find_ordered_ids(samples: pd.DataFrame, y_N: IntArray, num_classes: int) -> Iterator[Leak]:
    """A warning where the numbers in the patients' ids tell the label.

    Args:
        y_N: class index of each sample; below 0 where it may not be seen.
    """
    known = y_N >= 0
    numbers = samples["patient_id"][known].str.extract(r"(\d+)\D*$", expand=False)
    if numbers.isna().any() or numbers.nunique() <= NUM_FOLDS or numbers.str.len().max() > _MOST_DIGITS:
        return
    found = predict_from_column(numbers, y_N[known], samples["patient_id"].to_numpy(np.str_)[known], num_classes)
    if found is not None and found.balanced_accuracy >= DETERMINES and found.low >= SURELY:
        yield Leak(
            "ids_in_order_of_label",
            False,
            "The numbers in the ids tell the label: the classes were collected one after another.",
            "Check that site, device and protocol did not change in between; no encoder reads ids.",
            (),
            f"balanced accuracy {found.balanced_accuracy:.3f} of thresholds on the number",
        )
