"""The pixel stage of the leak gate: what decoded files have in common, and scalers that know of test.

Axes: C channel.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitreous.core.leak import Leak
from vitreous.inputs.near_duplicates import NUM_BITS
from vitreous.inputs.sighting import Sighting

_KINDS = (
    ("exact", "exact_duplicates", "hold the same values"),
    ("near", "near_duplicates", "show nearly the same"),
    ("slices", "shared_slices", "share slices, as two cuts of one recording do"),
)
_LEAK_REMEDY = "Leave one of each pair out, or put both into one split, before anything is trained."
MATCHES = 0.001  # of the value range: a stated mean is that of a set of files; half of it is lost to rounding
DIFFERS = 0.003


@dataclass(frozen=True)
class StatedScaler:
    """Mean and standard deviation that a study sets in place of the encoder's own.

    Args:
        encoder: its name.
        mean_C, std_C: of values brought to 0…1.
        value_range: what 0 and 1 mean in the file; None for images, whose format says it.
    """

    encoder: str
    mean_C: tuple[float, ...]
    std_C: tuple[float, ...]
    value_range: tuple[float, float] | None = None


def find_shared_pixels(
    pairs: pd.DataFrame, *, has_splits: bool, knows_patients: bool, max_distance: int
) -> Iterator[Leak]:
    """Pairs across splits (without splits: across patients) refuse, and so do equal values under two labels.

    Args:
        pairs: of :func:`vitreous.inputs.duplicates.find_duplicate_pairs`.
        has_splits: whether the cohort comes with splits; folds make them later.
        knows_patients: whether ids say which items are one person's.
    """
    across_patients = pairs["first_patient"] != pairs["second_patient"]
    # without splits, folds are drawn by patient: what two patients share may stand on both sides
    leaks = pairs["first_split"] != pairs["second_split"] if has_splits else across_patients
    what = "splits" if has_splits else "patients, whom folds put apart"
    for kind, code, words in _KINDS:
        found = pairs[(pairs["kind"] == kind) & leaks]
        if len(found):
            title = f"{len(found)} pairs across {what} {words}: a leak."
            yield Leak(code, True, title, _LEAK_REMEDY, _texts(found), _measure(kind, max_distance))
    labelled = (pairs["first_class"] != "") & (pairs["second_class"] != "")
    conflict = pairs[(pairs["kind"] == "exact") & labelled & (pairs["first_class"] != pairs["second_class"])]
    if len(conflict):
        rows = tuple(
            f"{first} ({its}) = {second} ({others})"
            for first, its, second, others in conflict[["first", "first_class", "second", "second_class"]].itertuples(
                index=False
            )
        )
        title = f"{len(conflict)} pairs hold the same values under two classes."
        yield Leak("conflicting_labels", True, title, "One of the two labels is wrong; ask who labelled them.", rows)
    patients = "patients" if knows_patients else "items (patients are not known)"
    for kind, code, words in _KINDS:
        for of_two, whose in ((True, f"two {patients}"), (False, "one patient")):
            found = pairs[(pairs["kind"] == kind) & ~leaks & (across_patients == of_two)]
            if len(found):
                title = f"{len(found)} pairs of {whose} {'in one split ' if has_splits else ''}{words}."
                remedy = "They may be one person's, whose images count as two people's; look at them."
                severity: Literal["warning", "info"] = "warning" if of_two else "info"
                yield Leak(code, False, title, remedy, _texts(found), _measure(kind, max_distance), severity)


def find_scaler_of_test(
    scalers: Sequence[StatedScaler], samples: pd.DataFrame, seen: Sequence[Sighting]
) -> Iterator[Leak]:
    """Means that a study states and that are those of all its files, test's too, and not those of train.

    Nothing is said where the two differ by less than 0.003 of the value range, nor, of one channel, where the
    standard deviation is not that of all files as well.
    """
    is_train = samples["split"].to_numpy() == "train"
    if not is_train.any() or is_train.all():
        return
    for scaler in scalers:
        values_NM = _values_of(scaler, seen)
        if values_NM is None:
            continue
        stated = np.array([*scaler.mean_C, *(scaler.std_C if len(scaler.mean_C) == 1 else ())])
        of_all, of_train = _moments(values_NM), _moments(values_NM[is_train])
        to_all, to_train = np.abs(stated - of_all).max(), np.abs(stated - of_train).max()
        if to_all <= MATCHES and to_train > DIFFERS:
            yield Leak(
                "scaler_of_test",
                True,
                f"The mean stated for {scaler.encoder} is that of all files, those of test too.",
                f"Compute encoders.{scaler.encoder}.input from training files, or leave it to the encoder.",
                (),
                f"stated {np.round(stated, 4).tolist()}, all files {np.round(of_all, 4).tolist()}, train "
                f"{np.round(of_train, 4).tolist()}",
            )


def _values_of(scaler: StatedScaler, seen: Sequence[Sighting]) -> npt.NDArray[np.float64] | None:
    """Channel means of each file on the scale of the scaler; of one channel, mean and standard deviation."""
    num_channels = len(scaler.mean_C)
    names = ("mean_r", "mean_g", "mean_b") if num_channels == 3 else ("mean", "std")
    rows = []
    for one in seen:
        if not all(name in one.statistics for name in names):
            return None
        low, high = scaler.value_range or (0.0, 2.0 ** one.statistics["bits"] - 1)
        values = [(one.statistics[name] - (0.0 if name == "std" else low)) / (high - low) for name in names]
        rows.append(values)
    return np.array(rows, dtype=np.float64)


def _moments(values_NM: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Means of the channels; of one channel, mean and standard deviation over all values of all files."""
    if values_NM.shape[1] == 3:
        return np.asarray(values_NM.mean(axis=0))
    mean, square = values_NM[:, 0].mean(), (values_NM**2).sum(axis=1).mean()
    return np.array([mean, np.sqrt(max(square - mean**2, 0.0))])


def _texts(pairs: pd.DataFrame) -> tuple[str, ...]:
    texts = []
    for pair in pairs.to_dict("records"):
        first, second = (
            f"{pair[side]}{f' ({pair[split]})' if pair[split] else ''}"
            for side, split in (("first", "first_split"), ("second", "second_split"))
        )
        texts.append(f"{first} ≈ {second}, {pair['bits']} bits" if pair["kind"] == "near" else f"{first} = {second}")
    return tuple(texts)


def _measure(kind: str, max_distance: int) -> str:
    return f"perceptual hash, at most {max_distance} of {NUM_BITS} bits differ" if kind == "near" else ""
