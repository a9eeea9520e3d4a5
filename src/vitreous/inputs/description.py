"""Numbers that describe a volume before and after preprocessing, for the doctor and the cohort's outliers.

Axes: C channel, D slice, H row, W column.
"""

from typing import Any

import torch

from vitreous.inputs.preprocessing import mean_and_std
from vitreous.inputs.volume import Volume


def volume_statistics(volume: Volume) -> dict[str, float | int | None]:
    """Shape, spacing and values of one volume as a flat row.

    Returns:
        ``depth, height, width`` (voxels), ``spacing_d_mm, spacing_h_mm, spacing_w_mm`` (None where unknown),
        and ``min, mean, max, std`` of the rescaled values (population standard deviation).
    """
    depth, height, width = volume.voxels_DHW.shape
    spacing_mm = volume.spacing_mm or (None, None, None)
    mean, std = mean_and_std(volume.voxels_DHW)
    return {
        "depth": depth,
        "height": height,
        "width": width,
        "spacing_d_mm": spacing_mm[0],
        "spacing_h_mm": spacing_mm[1],
        "spacing_w_mm": spacing_mm[2],
        "min": float(volume.voxels_DHW.min()),
        "mean": mean,
        "max": float(volume.voxels_DHW.max()),
        "std": std,
    }


def describe_volume(volume: Volume, tensor_CDHW: torch.Tensor) -> dict[str, Any]:
    """What a volume was in the file and what the encoder gets.

    Returns:
        ``file`` (shape, spacing_mm, min, max, mean, std, facts) and ``encoder`` (shape, min, max, mean, std).
    """
    row = volume_statistics(volume)
    values = tensor_CDHW.reshape(-1, *tensor_CDHW.shape[-2:]).numpy()
    mean, std = mean_and_std(values)
    return {
        "file": {
            "shape": tuple(volume.voxels_DHW.shape),
            "spacing_mm": volume.spacing_mm,
            **{name: row[name] for name in ("min", "max", "mean", "std")},
            "facts": dict(volume.facts),
        },
        "encoder": {
            "shape": tuple(tensor_CDHW.shape),
            "min": float(values.min()),
            "max": float(values.max()),
            "mean": mean,
            "std": std,
        },
    }
