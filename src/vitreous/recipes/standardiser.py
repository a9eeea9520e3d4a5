"""Centring and scaling of features, fitted on the training split only.

Axes: N row, D feature.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

# Below this share of the mean a float32 feature's spread is rounding, not information.
_ROUNDING_SHARE = 1e-6


@dataclass(frozen=True)
class Standardiser:
    """x → (x − mean) / std, per feature.

    Args:
        mean_D, std_D: over rows that weigh 1 / (volumes of their participant), so that a participant with
            many volumes does not set the scale; std is that of the population, and 1 for a constant feature.
        num_constant: features whose spread is zero, or no more than 1e-6 of their mean (float32 rounding).
    """

    mean_D: FloatArray
    std_D: FloatArray
    num_constant: int

    def apply(self, features_ND: npt.NDArray[Any]) -> FloatArray:
        """Standardised features in float64, shape (N, D).

        Raises:
            ValueError: the number of features differs from the fitted one.
        """
        if features_ND.ndim != 2 or features_ND.shape[1] != len(self.mean_D):
            raise ValueError(
                f"features must have the shape (rows, {len(self.mean_D)}), as in training; got {features_ND.shape}."
            )
        result: FloatArray = (np.asarray(features_ND, dtype=np.float64) - self.mean_D) / self.std_D
        return result

    def tensors(self) -> dict[str, npt.NDArray[Any]]:
        """``standardiser.mean`` and ``standardiser.std``, ready for safetensors."""
        return {"standardiser.mean": self.mean_D, "standardiser.std": self.std_D}


def fit_standardiser(features_ND: npt.NDArray[Any], weight_N: FloatArray) -> Standardiser:
    """Weighted mean and standard deviation per feature, in float64.

    >>> fit_standardiser(np.array([[1.0, 5.0], [3.0, 5.0]]), np.ones(2)).std_D.tolist()
    [1.0, 1.0]
    """
    features_ND = np.asarray(features_ND, dtype=np.float64)
    share_N = weight_N / weight_N.sum()
    mean_D = share_N @ features_ND
    std_D = np.sqrt(share_N @ (features_ND - mean_D) ** 2)
    constant_D = (std_D <= _ROUNDING_SHARE * np.abs(mean_D)) | (features_ND.max(axis=0) == features_ND.min(axis=0))
    return Standardiser(mean_D, np.where(constant_D, 1.0, std_D), int(constant_D.sum()))
