"""Pairs of samples that show the same thing, from sightings: equal values, near hashes, shared slices.

Axes: N sample, B bit.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitreous.inputs.near_duplicates import MAX_DISTANCE, find_near_pairs
from vitreous.inputs.sighting import Sighting

PAIR_COLUMNS = (
    "kind", "bits", "first", "second", "first_split", "second_split", "first_patient", "second_patient",
    "first_class", "second_class",
)  # fmt: skip
ALIKE = 4  # a near pair differs in at most a quarter of what any two pictures of the cohort differ in
_COMPARED = 512  # pictures of which any two are compared for that


def near_limit(hashes_NB: npt.NDArray[np.bool_], max_distance: int = MAX_DISTANCE) -> int:
    """Bits in which near duplicates of this cohort may differ: `max_distance`, or less where all pictures are alike.

    Two pictures of RetinaMNIST, of vessels and of adrenal glands differ in 96, 126 and 114 bits at the median, so that
    18 it is; of a cohort of almost equal pictures a small distance proves nothing.
    """
    rows = np.unique(np.linspace(0, len(hashes_NB) - 1, _COMPARED).astype(int))
    signs_NB = hashes_NB[rows].astype(np.float32) * 2 - 1
    distances_NN = (hashes_NB.shape[1] - signs_NB @ signs_NB.T) / 2
    of_pairs = distances_NN[np.triu_indices(len(rows), k=1)]
    return min(max_distance, int(np.median(of_pairs) // ALIKE)) if len(of_pairs) else max_distance


def find_duplicate_pairs(
    samples: pd.DataFrame, seen: Sequence[Sighting], known_class: Sequence[str], max_distance: int = MAX_DISTANCE
) -> pd.DataFrame:
    """Pairs of samples: of equal values, each with the first of its group; of near hashes, and of volumes that share
    slices, between such firsts.

    Args:
        seen: of each row; all could be decoded.
        known_class: of each row; empty where it may not be seen.
    Returns:
        kind (exact, near, slices), bits, and sample, split, patient and class of both.
    """
    first_of: dict[str, int] = {}
    pairs: list[tuple[str, int, int, int]] = []
    for row, one in enumerate(seen):
        first = first_of.setdefault(one.digest, row)
        if first != row:
            pairs.append(("exact", 0, first, row))
    firsts = list(first_of.values())
    shared = _find_shared_slices(firsts, seen)
    hashes = [(row, bits_B) for row in firsts if (bits_B := seen[row].bits_B) is not None]
    if hashes:
        hashes_NB = np.stack([bits_B for _, bits_B in hashes])
        near, distances = find_near_pairs(hashes_NB, near_limit(hashes_NB, max_distance))
        pairs += [("near", int(bits), hashes[i][0], hashes[j][0]) for (i, j), bits in zip(near, distances)]
    told = {(i, j) for _, _, i, j in pairs}
    pairs += [("slices", 0, i, j) for i, j in shared if (i, j) not in told]
    table = pd.DataFrame(pairs, columns=["kind", "bits", "i", "j"])
    classes = np.asarray(known_class, dtype=object)
    for side, column in (("first", "i"), ("second", "j")):
        rows = table[column].to_numpy(np.int64)
        table[side] = samples["sample_id"].to_numpy()[rows]
        table[f"{side}_split"] = samples["split"].to_numpy()[rows]
        table[f"{side}_patient"] = samples["patient_id"].to_numpy()[rows]
        table[f"{side}_class"] = classes[rows]
    return table[list(PAIR_COLUMNS)]


def _find_shared_slices(firsts: Sequence[int], seen: Sequence[Sighting]) -> list[tuple[int, int]]:
    """Pairs of rows that have a slice in common, each with the first row that has it."""
    counts = [len(seen[row].slices_D) for row in firsts]
    if not sum(counts):
        return []
    table = pd.DataFrame(
        {"row": np.repeat(firsts, counts), "name": np.concatenate([seen[row].slices_D for row in firsts])}
    )
    table["first"] = table.groupby("name")["row"].transform("min")
    pairs = table.loc[table["row"] != table["first"], ["first", "row"]].drop_duplicates()
    return [(int(first), int(row)) for first, row in zip(pairs["first"], pairs["row"], strict=True)]
