"""Features that say little: nearly the same for all samples, or along few directions.

Axes: N sample, D feature.
"""

import numpy as np
import numpy.typing as npt

from vitreous.core.finding import Finding
from vitreous.features.spread import effective_rank

ALIKE = 1e-3  # spread over length; below it features of different samples are nearly one point
FEW_DIRECTIONS = 5.0  # of the effective rank, where samples and width would allow ten times as many
_FEWEST_SAMPLES = 10


def find_poor_features(features_ND: npt.NDArray[np.float32], encoder: str) -> list[Finding]:
    """An error where all samples look alike to the encoder, a warning where its features span few directions."""
    num_samples, width = features_ND.shape
    if num_samples < _FEWEST_SAMPLES:
        return []
    matrix_ND = features_ND.astype(np.float64)
    spread = float(np.sqrt(matrix_ND.var(axis=0).sum()))
    length = float(np.sqrt((matrix_ND**2).sum(axis=1).mean()))
    rank = effective_rank(matrix_ND)
    dead = int((matrix_ND.max(axis=0) == matrix_ND.min(axis=0)).sum())
    evidence = (
        f"spread {spread:.3g} of length {length:.3g}; effective rank {rank:.1f} of at most "
        f"{min(num_samples - 1, width)} (RankMe); {dead} of {width} features constant; {num_samples} samples"
    )
    remedy = "vitreous inspect CHECKPOINT; compare its input spec with the values that doctor STUDY shows."
    if spread <= ALIKE * length:
        title = f"{encoder} gives nearly the same features to all samples."
        return [Finding("features_alike", "error", title, evidence, remedy)]
    if rank < FEW_DIRECTIONS and min(num_samples - 1, width) >= 10 * FEW_DIRECTIONS:
        title = f"The features of {encoder} span few directions."
        return [Finding("low_effective_rank", "warning", title, evidence, remedy)]
    return [Finding("features_spread", "info", f"The features of {encoder} span {rank:.0f} directions.", evidence)]


def find_foreign_standardiser(
    mean_D: npt.NDArray[np.float64],
    train_ND: npt.NDArray[np.float32],
    weight_N: npt.NDArray[np.float64],
    others_ND: npt.NDArray[np.float32],
    name: str,
) -> list[Finding]:
    """An error where the mean kept with a head is not that of its training rows.

    Args:
        mean_D: ``standardiser.mean`` of the head.
        weight_N: of the training rows, 1 / (rows of their patient).
        others_ND: rows of val and test, to say whether their mean has gone in.
    """
    of_train_D = (weight_N / weight_N.sum()) @ train_ND.astype(np.float64)
    scale_D = np.maximum(train_ND.astype(np.float64).std(axis=0), 1e-12)
    off = float(np.abs((mean_D - of_train_D) / scale_D).max())
    if off <= 1e-3:
        return []
    all_D = np.concatenate([train_ND, others_ND]).astype(np.float64).mean(axis=0)
    to_all = float(np.abs((mean_D - all_D) / scale_D).max())
    whose = "that of all rows, test among them" if to_all < off else "another one"
    return [
        Finding(
            "scaler_not_of_train",
            "error",
            f"{name}: the mean it standardises by is not that of its training rows but {whose}.",
            f"largest distance {off:.3g} standard deviations from train, {to_all:.3g} from all rows",
            "Remove the head's folder and run the study again; if a script wrote it, fit the scaler on train.",
        )
    ]
