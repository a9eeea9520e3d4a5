"""Numbers that describe a volume, an image or a clip, for the doctor and the cohort's outliers.

Axes: C channel, D slice, H row, W column, V value.
"""

from typing import Any

import numpy as np
import torch

from vitreous.inputs.clip import Clip
from vitreous.inputs.image import Image
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


def image_statistics(image: Image) -> dict[str, float | int]:
    """Shape and values of one image as a flat row.

    Returns:
        ``height, width`` (pixels), ``channels``, ``bits``, and ``min, mean, max, std`` over all values (population
        standard deviation, in the units of the file: up to 255 or 65535); of colour images also ``mean_r, mean_g,
        mean_b``.
    """
    height, width, channels = image.pixels_HWC.shape
    # a histogram holds integers of 8 and 16 bits exactly, and is quicker than sums over the pixels
    counts_CV = [np.bincount(image.pixels_HWC[..., c].reshape(-1)) for c in range(channels)]
    means_C = [float(counts_V @ np.arange(len(counts_V)) / counts_V.sum()) for counts_V in counts_CV]
    mean = sum(means_C) / channels
    variance = sum(
        float(counts_V @ np.square(np.arange(len(counts_V)) - mean)) / float(counts_V.sum()) for counts_V in counts_CV
    )
    row: dict[str, float | int] = {
        "height": height,
        "width": width,
        "channels": channels,
        "bits": image.pixels_HWC.dtype.itemsize * 8,
        "min": int(image.pixels_HWC.min()),
        "mean": mean,
        "max": int(image.pixels_HWC.max()),
        "std": float(np.sqrt(variance / channels)),
    }
    if channels == 3:
        row |= dict(zip(("mean_r", "mean_g", "mean_b"), means_C, strict=True))
    return row


def clip_statistics(clip: Clip) -> dict[str, float | int]:
    """Length, shape, and values of the frame in the middle (the labelled one) as a flat row.

    Returns:
        ``frames`` of the stretch, ``video_frames``, ``fps`` (from the median distance of the stretch's frames; 0 of a
        single frame), ``duration_s``; then as :func:`image_statistics`.

    Raises:
        InputError: the frame cannot be decoded.
    """
    times_s = clip.source.times_s[clip.start : clip.stop]
    distance_s = float(np.median(np.diff(times_s))) if len(times_s) > 1 else 0.0
    return {
        "frames": clip.num_frames,
        "video_frames": len(clip.source.times_s),
        "fps": 1 / distance_s if distance_s else 0.0,
        "duration_s": float(times_s[-1] - times_s[0]) + distance_s,
        **image_statistics(Image(clip.read([clip.middle])[0])),
    }
