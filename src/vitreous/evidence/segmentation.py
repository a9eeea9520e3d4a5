"""Agreement of predicted class maps with masks: intersection over union.

Axes: N row, K class, H row of pixels, W column; in a confusion the first K is the true class.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from vitreous.core.undefined import Undefined

IntArray = npt.NDArray[np.int64]


def map_confusion(masks: npt.NDArray[np.integer], maps: npt.NDArray[np.integer], num_classes: int) -> IntArray:
    """Pixels (K, K) by true and predicted class.

    Args:
        masks, maps: class indices of any and the same shape; pixels of a mask that are no class are left out.

    Raises:
        ValueError: the shapes differ, or a predicted index is no class.
    """
    masks, maps = np.asarray(masks), np.asarray(maps)
    if masks.shape != maps.shape:
        raise ValueError(f"masks and maps differ in shape: {masks.shape} and {maps.shape}")
    if maps.size and (maps.min() < 0 or maps.max() >= num_classes):
        raise ValueError(f"maps must lie in [0, {num_classes}); got {maps.min()} to {maps.max()}")
    is_labelled = (masks >= 0) & (masks < num_classes)
    cells = masks[is_labelled].astype(np.int64) * num_classes + maps[is_labelled].astype(np.int64)
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes).astype(np.int64)


def intersection_over_union(confusion_KK: IntArray, classes: Sequence[str]) -> dict[str, float | Undefined]:
    """``iou_<class>`` over all pixels, and ``miou``, the mean over classes that occur in the masks; each in [0, 1].

    A class that no mask shows has no value, predicted or not; where it is, the classes that it takes pixels from pay.

    Source: Everingham et al. (2015), segmentation accuracy of PASCAL VOC.

    >>> intersection_over_union(np.array([[3, 1], [0, 2]]), ("a", "b"))["iou_a"]
    0.75
    """
    true_K, predicted_K = confusion_KK.sum(axis=1), confusion_KK.sum(axis=0)
    both_K = np.diag(confusion_KK)
    values: dict[str, float | Undefined] = {
        f"iou_{name}": float(both_K[k] / (true_K[k] + predicted_K[k] - both_K[k]))
        if true_K[k]
        else Undefined(f"no mask shows the class {name!r}")
        for k, name in enumerate(classes)
    }
    return {**values, "miou": _mean(values)}


def _mean(values: Mapping[str, float | Undefined]) -> float | Undefined:
    defined = [value for value in values.values() if not isinstance(value, Undefined)]
    return float(np.mean(defined)) if defined else Undefined("no row has a mask")
