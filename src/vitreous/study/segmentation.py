"""Class maps of a trained model on test: written without a mask, scored after the look.

Axes: N row, H row of the map, W column, K class of the masks.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save

from vitreous.config.data_kinds import Data
from vitreous.core.errors import RunError
from vitreous.core.files import write_bytes
from vitreous.core.undefined import Undefined
from vitreous.evidence.segmentation import intersection_over_union, map_confusion

TEST_MAPS = "test_maps.safetensors"
MaskArray = npt.NDArray[np.uint8]


def mask_classes(data: Data) -> tuple[str, ...]:
    """Names of the classes of the study's masks.

    Raises:
        RunError: it has none.
    """
    masks = getattr(data, "masks", None)
    if masks is None:
        raise RunError("a model that segments lies in a run without masks; please report this with the study file.")
    classes: tuple[str, ...] = masks.classes
    return classes


def write_test_maps(folder: Path, maps_NHW: MaskArray) -> None:
    """The predicted classes of every test sample, in the order of ``test_logits.parquet``."""
    write_bytes(folder / TEST_MAPS, save({"maps": np.ascontiguousarray(maps_NHW)}))


def score_test_maps(
    folder: Path, classes: Sequence[str], read_mask: Callable[[int, tuple[int, int]], MaskArray | None]
) -> dict[str, Any]:
    """For ``metrics.json``: ``test_miou`` and each class's, and how many samples have a mask; null with its reason.

    Args:
        read_mask: the mask of a test sample by its place, at a size; None where it has none.
    """
    maps_NHW = load_file(folder / TEST_MAPS)["maps"]
    confusion_KK = np.zeros((len(classes), len(classes)), np.int64)
    num_masked = 0
    for row, map_HW in enumerate(maps_NHW):
        mask_HW = read_mask(row, map_HW.shape)
        if mask_HW is not None:
            num_masked += 1
            confusion_KK += map_confusion(mask_HW, map_HW, len(classes))
    scores: dict[str, Any] = {"n_test": len(maps_NHW), "n_test_with_mask": num_masked}
    for name, value in intersection_over_union(confusion_KK, classes).items():
        scores[f"test_{name}"] = None if isinstance(value, Undefined) else value
        if isinstance(value, Undefined):
            scores[f"test_{name}_undefined"] = value.reason
    return scores
