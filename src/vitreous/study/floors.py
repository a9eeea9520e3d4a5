"""Which floors of a study can be had, why the others cannot, and what a row of either kind is fed.

Axes: N usable sample, D feature.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitreous.config.study import StudyConfig
from vitreous.core.errors import SampleError
from vitreous.core.finding import Finding
from vitreous.core.input_spec import Modality, item_noun
from vitreous.features.token_store import TokenRows
from vitreous.recipes.floors import ColumnEncoding, fit_column_encoding, typed_columns, why_not_a_column
from vitreous.samples.cohort import Cohort
from vitreous.study.encode import StudyFeatures
from vitreous.study.encoders import has_pixels_floor
from vitreous.study.partitions import Partition
from vitreous.study.row import COLUMNS, PIXELS, Row, is_on_tokens

CODE = "floor_not_run"


# vectors, or tokens that are read when they are needed
RowInputs = npt.NDArray[np.float32] | TokenRows


@dataclass(frozen=True)
class FloorPlan:
    """What the floors of a study can be made of.

    Args:
        columns: of the table, that the floor `columns` reads; empty where it cannot be run or is taken off.
        findings: floors, or columns of one, that cannot be had, each with why.
    """

    columns: tuple[str, ...]
    findings: tuple[Finding, ...]


def plan_floors(config: StudyConfig, cohort: Cohort, modality: Modality) -> FloorPlan:
    """Look at the table before anything is encoded.

    Raises:
        SampleError: a column that `data.columns` names is of no use; one of `data.domains` is left out with a finding.
    """
    findings: list[Finding] = []
    if PIXELS in config.floors and not has_pixels_floor(config, modality):
        why = f"there is no small copy of a {item_noun(modality, 1)} to read values from"
        findings.append(_not_run(config, PIXELS, why, ""))
    if COLUMNS not in config.floors:
        return FloorPlan((), tuple(findings))
    named = tuple(getattr(config.data, "columns", ()))
    candidates = [*dict.fromkeys([*cohort.domains, *named])]
    table = typed_columns(cohort.samples, candidates)
    usable, problems = [], []
    for column in candidates:
        if (no_use := why_not_a_column(table[column])) is None:
            usable.append(column)
        elif column in named:
            problems.append(f"data.columns: {column!r} {no_use}.")
        else:
            title = f"The floor columns leaves out the domain {column}: it {no_use}."
            findings.append(Finding("column_left_out", "info", title, "data.domains"))
    if problems:
        raise SampleError(f"{' '.join(problems)} Take it out of data.columns, or group its values.")
    findings += _find_unseen(cohort, table[usable])
    if not usable:
        kinds_with = hasattr(config.data, "columns")
        why = "data.domains and data.columns name no column" if not candidates else "no domain is of use to it"
        why = why if kinds_with else f"data of kind {config.data.kind} have no table of columns"
        remedy = "Name columns such as age, site, device or laterality under data.columns." if kinds_with else ""
        findings.append(_not_run(config, COLUMNS, why, remedy))
    return FloorPlan(tuple(usable), tuple(findings))


def _find_unseen(cohort: Cohort, table: pd.DataFrame) -> list[Finding]:
    """Values that only val or test have; with folds every round has others, and nothing is said."""
    is_train = (cohort.samples["split"] == "train").to_numpy()
    known = [column for column in table.columns if table.loc[is_train, column].notna().any()]
    if not is_train.any() or not known:
        return []
    unseen = fit_column_encoding(table[is_train], known).count_unseen(table[~is_train])
    return [
        Finding(
            "unseen_category",
            "info",
            f"Column {column} has values in val or test that training never saw.",
            f"{count} of {(~is_train).sum()} rows; the floor columns judges them by their other columns",
        )
        for column, count in unseen.items()
    ]


def _not_run(config: StudyConfig, floor: str, why: str, remedy: str) -> Finding:
    left = ", ".join(name for name in config.floors if name != floor)
    off = f"To do without it by name: floors: [{left}]."
    return Finding(CODE, "info", f"The floor {floor} was not run: {why}.", f"floors: {', '.join(config.floors)}",
                   f"{remedy} {off}".strip())  # fmt: skip


def encode_columns(
    partition: Partition, features: StudyFeatures, columns: Sequence[str]
) -> tuple[ColumnEncoding | None, npt.NDArray[np.float32]]:
    """How the columns become features, fitted on the training rows of this partition, and those of all rows (N, D)."""
    table = typed_columns(features.samples, columns)
    train = table.iloc[partition.rows("train")]
    known = [column for column in columns if train[column].notna().any()]
    if not known:  # a round may train on nobody who has a value
        return None, np.zeros((len(table), 1), np.float32)
    encoding = fit_column_encoding(train, known)
    return encoding, encoding.features(table)


def row_features(row: Row, partition: Partition, features: StudyFeatures, columns: Sequence[str]) -> RowInputs:
    """What a row on features is fed: (N, D), or tokens; rows as in ``features.samples``."""
    if row.floor == COLUMNS:
        return encode_columns(partition, features, columns)[1]
    if row.features_of is None:
        return np.zeros((len(features.samples), 1), np.float32)  # the majority floor looks at labels alone
    return features.tokens[row.features_of] if is_on_tokens(row.recipe) else features.features[row.features_of]
