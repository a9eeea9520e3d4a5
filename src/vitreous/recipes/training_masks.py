"""Class maps beside the labels of a training: read once, and what the decoder's maps are worth on them.

Axes: N row of a set, B row of a batch, K class of the map, H row, W column.
"""

import numpy as np
import numpy.typing as npt
import torch

from vitreous.core.errors import SampleError
from vitreous.core.undefined import Undefined
from vitreous.evidence.segmentation import intersection_over_union, map_confusion
from vitreous.recipes.pixel_settings import PixelSet
from vitreous.recipes.segmentation import SegmentationSettings, mask_class_weights, segmentation_losses

MaskArray = npt.NDArray[np.uint8]


class TrainingMasks:
    """The masks of train and val, one byte a pixel, and the loss on those of train.

    Args:
        train, val: with `mask`.

    Raises:
        SampleError: no row of train, or none of val, has a mask.
    """

    def __init__(self, train: PixelSet, val: PixelSet, settings: SegmentationSettings) -> None:
        self._settings = settings
        self._train_NHW, self._val_NHW = (read_masks(data, settings) for data in (train, val))
        if not (self._val_NHW != settings.ignore_index).any():
            raise SampleError("val: no row has a mask, so there is nothing to judge a segmentation by.")
        labelled = self._train_NHW[self._train_NHW != settings.ignore_index]
        pixels_K = np.bincount(labelled, minlength=settings.num_classes)
        self._class_weight_K = torch.from_numpy(mask_class_weights(settings.class_weights, pixels_K))

    def losses(self, maps_BKHW: torch.Tensor, rows_B: npt.NDArray[np.int64]) -> torch.Tensor:
        """What the maps add to the loss of each training row, shape (B,); nothing for rows without a mask."""
        masks_BHW = torch.from_numpy(self._train_NHW[rows_B].astype(np.int64)).to(maps_BKHW.device)
        weight_K = self._class_weight_K.to(maps_BKHW.dtype).to(maps_BKHW.device)
        losses_B = segmentation_losses(maps_BKHW, masks_BHW, weight_K, ignore_index=self._settings.ignore_index)
        return self._settings.weight * losses_B

    def mean_iou_on_val(self, maps_NHW: MaskArray) -> float:
        """Mean over the classes that val's masks show."""
        confusion_KK = map_confusion(masked_out(self._val_NHW, self._settings), maps_NHW, self._settings.num_classes)
        names = [str(k) for k in range(self._settings.num_classes)]
        value = intersection_over_union(confusion_KK, names)["miou"]
        if isinstance(value, Undefined):
            raise SampleError(f"val: {value.reason}.")
        return value


def read_masks(data: PixelSet, settings: SegmentationSettings) -> MaskArray:
    """(N, H, W): class indices, or the ignored index where a row has no mask.

    Raises:
        ValueError: the set brings no masks, or one of another size.
    """
    if data.mask is None:
        raise ValueError("a recipe with segmentation needs rows with masks")
    masks_NHW = np.full((len(data), *settings.size), settings.ignore_index, np.uint8)
    for row in range(len(data)):
        mask_HW = data.mask(row)
        if mask_HW is not None:
            if mask_HW.shape != settings.size:
                raise ValueError(f"a mask must be {settings.size}; got {mask_HW.shape}")
            masks_NHW[row] = mask_HW
    return masks_NHW


def masked_out(masks_NHW: MaskArray, settings: SegmentationSettings) -> npt.NDArray[np.int64]:
    """With -1 where pixels are ignored, so that they are no class whatever the ignored index is."""
    return np.where(masks_NHW == settings.ignore_index, -1, masks_NHW.astype(np.int64))


def predicted_classes(maps_BKHW: torch.Tensor) -> MaskArray:
    """The class of the highest logit of each pixel, (B, H, W)."""
    return maps_BKHW.argmax(dim=1).to(torch.uint8).cpu().numpy()
