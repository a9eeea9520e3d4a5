"""The feature stage of the leak gate: samples of two splits that an encoder can hardly tell apart.

Perceptual hashes miss crops, rotations and mirror images; the features of such copies lie far closer than those of
different samples do.

Axes: N sample, D feature.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitreous.core.leak import Leak
from vitreous.features.spread import effective_rank

FloatArray = npt.NDArray[np.float32]
SAME = 0.02  # of the median distance to the nearest sample; nearer ones refuse
CLOSE = 0.2  # nearer ones are worth a look
FEWEST_DIRECTIONS = 10.0  # effective rank below which close pairs are no wonder
FEWEST_SAMPLES = 20
_BLOCK = 2048
_MOST_NAMED = 1000


def nearest_samples(
    features_ND: FloatArray, group_N: npt.NDArray[np.int64]
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """The distance of each sample to the nearest of another group, which that is, and to the nearest of all others.

    Exact to float32, by products of centred features in blocks.

    Args:
        group_N: split, or patient; samples of one group are not compared with each other in the first result.
    """
    centred_ND = features_ND - features_ND.mean(axis=0)
    square_N = np.einsum("nd,nd->n", centred_ND, centred_ND)
    others_N, which_N, all_N = (np.full(len(features_ND), np.inf, np.float32) for _ in range(3))
    for start in range(0, len(features_ND), _BLOCK):
        rows = slice(start, start + _BLOCK)
        squared_MN = square_N[rows, None] + square_N - 2 * (centred_ND[rows] @ centred_ND.T)
        squared_MN[np.arange(squared_MN.shape[0]), np.arange(squared_MN.shape[0]) + start] = np.inf
        all_N[rows] = squared_MN.min(axis=1)
        squared_MN[group_N[rows, None] == group_N] = np.inf
        which_N[rows] = squared_MN.argmin(axis=1)
        others_N[rows] = squared_MN.min(axis=1)
    # a copy is at 0 up to rounding, which may be below
    return np.sqrt(np.maximum(others_N, 0)), which_N, np.sqrt(np.maximum(all_N, 0))


def find_near_features(
    features: Mapping[str, FloatArray], samples: pd.DataFrame, known: Sequence[tuple[str, str]]
) -> Iterator[Leak]:
    """Pairs across splits (without splits: across patients) that every encoder puts next to each other.

    Nothing is said of fewer than 20 samples, nor of an encoder whose features span less than ten directions: there
    close pairs are no wonder.

    Args:
        features: of the pretrained encoders, rows as in `samples`.
        known: pairs of sample ids that the pixel stage has told.
    """
    has_splits = bool((samples["split"] != "").any())
    group_N = pd.factorize(samples["split"] if has_splits else samples["patient_id"])[0].astype(np.int64)
    judged = {
        name: matrix_ND
        for name, matrix_ND in features.items()
        if len(matrix_ND) >= FEWEST_SAMPLES and effective_rank(matrix_ND) >= FEWEST_DIRECTIONS
    }
    if not judged or len(np.unique(group_N)) < 2:
        return
    ratios, partners = {}, {}
    for name, matrix_ND in judged.items():
        other_N, which_N, all_N = nearest_samples(matrix_ND.astype(np.float32), group_N)
        ratios[name] = other_N / max(float(np.median(all_N)), 1e-30)
        partners[name] = which_N.astype(np.int64)
    worst_N = np.max(np.stack(list(ratios.values())), axis=0)
    agree_N = np.all(np.stack(list(partners.values())) == next(iter(partners.values())), axis=0)
    partner_N = next(iter(partners.values()))
    ids = samples["sample_id"].to_numpy()
    told = {frozenset(pair) for pair in known}
    for limit, floor, refuses in ((SAME, -1.0, True), (CLOSE, SAME, False)):
        rows = np.flatnonzero((worst_N <= limit) & (worst_N > floor) & agree_N)
        pairs = {frozenset((ids[row], ids[partner_N[row]])): row for row in rows[::-1]}
        pairs = {pair: row for pair, row in sorted(pairs.items(), key=lambda item: item[1]) if pair not in told}
        if not pairs:
            continue
        named = tuple(
            f"{ids[row]} ≈ {ids[partner_N[row]]}, {worst_N[row]:.3f}" for row in list(pairs.values())[:_MOST_NAMED]
        )
        across = "splits" if has_splits else "patients"
        title = (
            f"{len(pairs)} pairs across {across} have {'the same' if refuses else 'almost the same'} features: "
            f"{'a leak' if refuses else 'crops or copies, perhaps'}."
        )
        evidence = f"distance at most {limit:g} of the median distance to the nearest sample, in {', '.join(judged)}"
        remedy = "Look at these pairs; leave one of each out, or put both into one split."
        yield Leak("near_features", refuses, title, remedy, named, evidence)
