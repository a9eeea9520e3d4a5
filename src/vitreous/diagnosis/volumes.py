"""Sizes, spacings and brightness of a cohort's volumes or images, and the ones that stand out."""

from collections import Counter

import numpy as np
import pandas as pd

from vitreous.core.finding import Finding
from vitreous.core.input_spec import Modality, item_noun

ROBUST_Z = 6.0  # distance from the median in robust standard deviations that makes a volume stand out
RARE_SHARE = 0.02  # of the volumes; a size that no more share stands out
USUAL_SHARE = 0.8  # of the volumes; where fewer have a size that is not rare, no size is the usual one
FEWEST_VOLUMES = 20  # fewer say nothing about what is usual
_MAD_TO_SD = 1.4826  # of a normal distribution
_SIZES = ("depth", "height", "width")
_SHOWN = 5


def summarise_volumes(statistics: pd.DataFrame) -> pd.DataFrame:
    """Minimum, median and maximum of each numeric statistic.

    Args:
        statistics: one row per volume, columns as :func:`vitreous.inputs.description.volume_statistics` names them.
    """
    numeric = statistics.select_dtypes("number").dropna(axis="columns", how="all")
    return numeric.agg(["min", "median", "max"]).T


def find_volume_outliers(statistics: pd.DataFrame, modality: Modality = "volume") -> list[Finding]:
    """Volumes (or images) of a size hardly any other has, and those whose brightness lies far from the rest.

    A size is rare if at most 2 % of the volumes have it (of less than 100: one volume); it stands out where sizes
    that are not rare make up most of the cohort.

    A robust z-score is the distance from the median over 1.4826 times the median absolute deviation; where more than
    half of the cohort has one value there is no such scale, and nothing stands out by it.
    """
    noun = item_noun(modality)
    far = [finding for column in ("mean", "std") for finding in _find_far_values(statistics, column, noun)]
    return [*_find_rare_sizes(statistics, noun), *far]


def _find_rare_sizes(statistics: pd.DataFrame, noun: str) -> list[Finding]:
    if not set(_SIZES) <= set(statistics.columns):
        return []
    sizes = Counter(zip(*(statistics[axis].astype(int) for axis in _SIZES), strict=True))
    if len(statistics) < FEWEST_VOLUMES:
        return []
    # a size that several volumes share is a scanner's protocol, not an accident
    most = max(1, int(RARE_SHARE * len(statistics)))
    rare = {size: count for size, count in sizes.items() if count <= most}
    if not rare or sum(rare.values()) > (1 - USUAL_SHARE) * len(statistics):
        return []
    shown = ", ".join(f"{d}×{h}×{w} ({count})" for (d, h, w), count in list(rare.items())[:_SHOWN])
    key = "volumes" if noun == "volumes" else "where"
    return [
        Finding(
            "rare_size",
            "warning",
            f"{sum(rare.values())} of {len(statistics)} {noun} have a size that hardly any other has.",
            f"D×H×W ({noun}): {shown}; most frequent {'×'.join(map(str, sizes.most_common(1)[0][0]))}",
            f"Look at these files; if they are another protocol, leave them out with `{key}`.",
        )
    ]


def _find_far_values(statistics: pd.DataFrame, column: str, noun: str) -> list[Finding]:
    if column not in statistics.columns or len(statistics) < FEWEST_VOLUMES:
        return []
    values = statistics[column].to_numpy(np.float64)
    centre = np.median(values)
    scale = _MAD_TO_SD * np.median(np.abs(values - centre))
    if scale == 0:
        return []
    far = np.flatnonzero(np.abs(values - centre) > ROBUST_Z * scale)
    if len(far) == 0:
        return []
    worst = far[np.argsort(-np.abs(values[far] - centre))][:_SHOWN]
    shown = ", ".join(f"{statistics.index[row]} ({values[row]:.4g})" for row in worst)
    element = "voxel" if noun == "volumes" else "pixel"
    return [
        Finding(
            "far_brightness",
            "warning",
            f"{len(far)} {noun} have a {column} {element} value more than {ROBUST_Z:g} robust standard deviations "
            "from the median.",
            f"median {centre:.4g}, robust standard deviation {scale:.3g}; farthest: {shown}",
            f"Look at these {noun}: blank, saturated, or of another intensity scale.",
        )
    ]
