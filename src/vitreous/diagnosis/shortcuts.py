"""Shortcuts: can site, device, age or laterality be read from the features, and how much of the label do they tell?

What can be read from features *and* tells the label may be what a head learned in place of the disease.

Axes: N sample, D feature.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitreous.core.finding import Finding
from vitreous.diagnosis.held_out import (
    FEWEST_PATIENTS,
    IntArray,
    StrArray,
    balanced_accuracy_interval,
    can_be_probed,
    out_of_fold_probs,
    some_samples,
)
from vitreous.samples.leak_columns import ColumnPrediction, predict_from_column

READABLE = 0.1  # above chance, of the lower bound
TELLS_LABEL = 0.05  # likewise, of the column alone
_MOST_VALUES = 10
_UNKNOWN = ("", "unknown")


@dataclass(frozen=True)
class Shortcut:
    """One column and one encoder.

    Args:
        num_values: that are told apart; of numbers two, below and above the median.
        balanced_accuracy, low, high: of the column from the features, patients held out; chance is 1 / num_values.
        alone: how well the column alone predicts the label, of several the one that it predicts best; None where too
            few patients have one.
        label: which of several it is.
    """

    column: str
    encoder: str
    num_values: int
    balanced_accuracy: float
    low: float
    high: float
    alone: ColumnPrediction | None
    label: str = ""

    @property
    def is_readable(self) -> bool:
        """Whether the features tell the column better than chance by more than 0.1, at 97.5 %."""
        return self.low > 1 / self.num_values + READABLE


def examine_shortcut(
    features_ND: npt.NDArray[np.float32],
    cells: pd.Series,
    patient_id_N: StrArray,
    labels: Mapping[str, IntArray],
    num_classes: int,
    *,
    column: str,
    encoder: str,
) -> Shortcut | None:
    """Probe one column; None where fewer than two of its values have ten patients.

    Args:
        labels: class indices, below 0 where they may not be seen, under an empty name; of several labels, 0 or 1 for
            each. Only the column's own power over them needs them.
    """
    value_N = _as_groups(cells.astype("str").reset_index(drop=True), patient_id_N)
    chosen = np.flatnonzero(value_N >= 0)
    if len(chosen) == 0:
        return None
    chosen = chosen[some_samples(patient_id_N[chosen])]
    num_values = int(value_N.max()) + 1
    if not can_be_probed(value_N[chosen], patient_id_N[chosen], num_values):
        return None
    probs_NC = out_of_fold_probs(features_ND[chosen], value_N[chosen], patient_id_N[chosen], num_values, balanced=True)
    predicted_N = probs_NC.argmax(axis=1).astype(np.int64)
    value, low, high = balanced_accuracy_interval(value_N[chosen], predicted_N, patient_id_N[chosen], num_values)
    texts = cells.astype("str").reset_index(drop=True)
    told = {
        name: found
        for name, y_N in labels.items()
        if (found := predict_from_column(texts[y_N >= 0], y_N[y_N >= 0], patient_id_N[y_N >= 0], num_classes))
    }
    best = max(told, key=lambda name: told[name].low, default="")
    return Shortcut(column, encoder, num_values, value, low, high, told.get(best), best)


def find_shortcuts(shortcuts: list[Shortcut], num_classes: int, own: Mapping[str, float]) -> list[Finding]:
    """A warning where a column that can be read tells the label; otherwise what can be read, as a fact.

    Args:
        own: encoder → balanced accuracy of its best row, to be compared with what the column alone gives.
    """
    findings = []
    for one in shortcuts:
        if not one.is_readable:
            continue
        tells = one.alone is not None and one.alone.low > 1 / num_classes + TELLS_LABEL
        evidence = (
            f"read with balanced accuracy {one.balanced_accuracy:.2f} [{one.low:.2f}, {one.high:.2f}], chance "
            f"{1 / one.num_values:.2f}"
        )
        if one.alone is not None:
            evidence += (
                f"; {one.column} alone predicts {one.label or 'the label'} with "
                f"{one.alone.balanced_accuracy:.2f} (at least {one.alone.low:.2f}), chance {1 / num_classes:.2f}"
            )
        if one.encoder in own:
            evidence += f"; the encoder's best row has {own[one.encoder]:.2f}"
        title = f"{one.column} can be read from the features of {one.encoder}"
        findings.append(
            Finding(
                "shortcut" if tells else "readable_column",
                "warning" if tells else "info",
                f"{title}, and tells part of the label: a shortcut." if tells else f"{title}.",
                evidence,
                f"Add {one.column} to data.domains; compare with the floor `columns`, and run folds={{leave_out: "
                f"{one.column}}}.",
            )
        )
    return findings


def _as_groups(cells: pd.Series, patient_id_N: StrArray) -> IntArray:
    """Number of each sample's group; -1 for what is unknown, or too rare to be told."""
    known = ~cells.str.casefold().isin(_UNKNOWN)
    numbers = pd.to_numeric(cells[known], errors="coerce")
    if len(numbers) and numbers.notna().all() and numbers.nunique() > _MOST_VALUES:
        above = (numbers > numbers.median()).astype(np.int64)
        return np.asarray(above.reindex(cells.index, fill_value=-1), dtype=np.int64)
    patients = pd.Series(patient_id_N)[known].groupby(cells[known]).nunique()
    frequent = patients[patients >= FEWEST_PATIENTS].nlargest(_MOST_VALUES).index.sort_values()
    if len(frequent) < 2:
        return np.full(len(cells), -1, dtype=np.int64)
    return np.asarray(cells.map({value: k for k, value in enumerate(frequent)}).fillna(-1), dtype=np.int64)
