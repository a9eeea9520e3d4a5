"""Whose split is what: a column, one file per split, or seeded fractions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from vitreous.core.errors import SampleError
from vitreous.core.label_sets import memberships
from vitreous.core.streams import numpy_stream
from vitreous.samples.cohort import SPLITS
from vitreous.samples.label_strata import stratify_labels
from vitreous.samples.problems import Problems, examples
from vitreous.samples.tables import is_missing, read_table


@dataclass(frozen=True)
class FractionSplit:
    """Shares of the patients of every class.

    Args:
        fractions: train, val, test; positive, sum 1.
        seed: names the random stream.
    """

    fractions: tuple[float, float, float]
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.fractions) != 3 or min(self.fractions) <= 0 or abs(sum(self.fractions) - 1) > 1e-6:
            raise SampleError(
                f"split.fractions must be three positive numbers (train, val, test) that sum to 1; got "
                f"{list(self.fractions)}."
            )


@dataclass(frozen=True)
class ValFraction:
    """A share of the training patients of every class, taken for val.

    Args:
        fraction: above 0, below 1.
        seed: names the random stream.
    """

    fraction: float
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise SampleError(f"split.val_fraction must lie between 0 and 1; got {self.fraction}.")


def normal_split(cells: pd.Series, column: str, problems: Problems) -> pd.Series:
    """The split of each row: train, val, test, or empty where the cell says nothing; other values are a problem."""
    lower = cells.str.casefold()
    missing = is_missing(cells)
    wrong = sorted(cells[~missing & ~lower.isin(SPLITS)].unique())
    if wrong:
        problems.add(
            f"the split column {column!r} must hold train, val or test; got {examples(wrong)}. Rename these values."
        )
    return lower.where(~missing, "")


def read_split_files(files: Mapping[str, Path], patient: str, problems: Problems) -> dict[str, str]:
    """Patient → split from one file a split: a list of ids, one a line, or a table with the column `patient`.

    An id in two files is a problem.
    """
    if set(files) != set(SPLITS):
        problems.add(f"split files are given as train, val and test; got {examples(sorted(files))}.")
        return {}
    split_of: dict[str, str] = {}
    twice: list[str] = []
    for split in SPLITS:
        for identifier in _read_ids(Path(files[split]), patient):
            if split_of.setdefault(identifier, split) != split:
                twice.append(f"{identifier} ({split_of[identifier]}, {split})")
    if twice:
        problems.add(
            f"{len(twice)} participants stand in two split files: {examples(twice)}.", leak="patient_in_two_splits"
        )
    return split_of


def fraction_split(labels: pd.Series, split: FractionSplit, num_labels: int | None = None) -> dict[str, str]:
    """Patient → split, with the same shares in every class up to rounding; the largest remainder gets the odd one.

    The labels of all patients are used, the later test split's among them: a stratified split cannot be drawn without.

    Args:
        labels: class index by patient; order does not matter.
        num_labels: where `labels` are numbers of sets of labels, how many labels there are; each is then shared out.
    """
    return _draw(labels, SPLITS, split.fractions, "fraction split", split.seed, num_labels)


def val_split(labels: pd.Series, split: ValFraction, num_labels: int | None = None) -> dict[str, str]:
    """Training patient → train or val, with the same share in every class up to rounding.

    Args:
        labels: class index by patient of those published as train; order does not matter.
        num_labels: as of :func:`fraction_split`.
    """
    fractions = (1 - split.fraction, split.fraction)
    return _draw(labels, ("train", "val"), fractions, "val split", split.seed, num_labels)


def _draw(
    labels: pd.Series,
    names: Sequence[str],
    fractions: Sequence[float],
    stream: str,
    seed: int,
    num_labels: int | None,
) -> dict[str, str]:
    if num_labels is not None:
        labels = labels.sort_index()
        has_PC = memberships(labels.to_numpy(), num_labels, "multi_label")
        parts_P = stratify_labels(has_PC, fractions, numpy_stream(seed, stream))
        return dict(zip(labels.index.tolist(), np.array(names)[parts_P].tolist(), strict=True))
    split_of: dict[str, str] = {}
    for y, members in labels.sort_index().groupby(labels.sort_index()):
        patients = members.index.to_numpy()
        order = numpy_stream(seed, stream, int(y)).permutation(len(patients))
        drawn = np.repeat(np.array(names), _largest_remainder(len(patients), fractions))
        split_of |= dict(zip(patients[order].tolist(), drawn.tolist(), strict=True))
    return split_of


def _largest_remainder(total: int, fractions: Sequence[float]) -> list[int]:
    """Whole numbers that sum to `total`, each within 1 of its share.

    >>> _largest_remainder(10, [0.7, 0.15, 0.15])
    [7, 2, 1]
    """
    shares = [total * fraction for fraction in fractions]
    sizes = [int(share + 1e-9) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: (round(sizes[i] - shares[i], 9), i))
    for index in by_remainder[: total - sum(sizes)]:
        sizes[index] += 1
    return sizes


def _read_ids(path: Path, patient: str) -> list[str]:
    """Ids in order; a first line that is `patient`, or a table with such a column, is understood."""
    if path.suffix.lower() in (".tsv", ".csv"):
        table = read_table(path)
        if patient in table.frame.columns:
            return list(table.frame[patient])
        if len(table.frame.columns) > 1:
            raise SampleError(f"{path}: no column {patient!r}; found {list(table.frame.columns)}.")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise SampleError(f"{path}: cannot be read as a list of ids ({error}); give one id a line in UTF-8.") from error
    ids = [line for line in lines if line]
    return ids[1:] if ids[:1] == [patient] else ids
