"""A light decoder from tokens to a class map, trained beside the head.

Axes: B row of a batch, N token, D width, K class of the map, T time of the token grid, h and w its rows and columns, H
row and W column of the map.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from vitreous.core.errors import SampleError
from vitreous.core.streams import torch_stream
from vitreous.encoders.encoder import Tokens

Size2 = tuple[int, int]
Size3 = tuple[int, int, int]
MaskWeights = Literal["none", "balanced"] | tuple[float, ...]

_HIDDEN = 64
_DOUBLINGS = 2


@dataclass(frozen=True)
class SegmentationSettings:
    """What the decoder predicts and how its loss counts.

    Args:
        num_classes: of the map, at least two.
        size: rows and columns of the map.
        weight: of its loss beside that of the head.
        class_weights: `balanced` is pixels / (K × pixels of the class), over the training masks.
        ignore_index: value of a mask's pixels that count nowhere.
    """

    num_classes: int
    size: Size2 = (64, 64)
    weight: float = 1.0
    class_weights: MaskWeights = "none"
    ignore_index: int = 255


class SegmentationDecoder(nn.Module):
    """Tokens averaged over time, two convolutions at doubled resolution each, a class map.

    Args:
        seed: of the first weights, from the stream (seed, "segmentation decoder").

    >>> decoder = SegmentationDecoder(8, num_classes=5, size=(64, 64), seed=0)
    >>> decoder(Tokens(torch.zeros(2, 2 * 4 * 4, 8), (2, 4, 4))).shape
    torch.Size([2, 5, 64, 64])
    """

    def __init__(self, width: int, *, num_classes: int, size: Size2, seed: int) -> None:
        super().__init__()
        self.num_classes, self.size = num_classes, size
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        with torch.device("meta"):  # spares the layers' own initialisation, which draws from the global generator
            layers["narrow"] = nn.Conv2d(width, _HIDDEN, 1)
            for number in range(_DOUBLINGS):
                layers[f"larger{number}"] = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
                layers[f"conv{number}"] = nn.Conv2d(_HIDDEN, _HIDDEN, 3, padding=1)
                layers[f"activation{number}"] = nn.GELU()
            layers["output"] = nn.Conv2d(_HIDDEN, num_classes, 1)
        self.layers = nn.Sequential(layers).to_empty(device="cpu")
        generator = torch_stream(seed, "segmentation decoder")
        for layer in layers.values():
            if isinstance(layer, nn.Conv2d):
                fan_in = layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1]
                nn.init.normal_(layer.weight, std=fan_in**-0.5, generator=generator)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tokens) -> torch.Tensor:
        """Logits (B, K, H, W)."""
        t, h, w = tokens.grid
        weight = next(self.parameters())
        grid_BThwD = tokens.tokens_BND.to(weight.dtype).reshape(-1, t, h, w, tokens.tokens_BND.shape[2])
        maps_BDhw = grid_BThwD.mean(dim=1).permute(0, 3, 1, 2)
        small_BKHW = self.layers(maps_BDhw)
        return F.interpolate(small_BKHW, size=self.size, mode="bilinear", align_corners=False)


def segmentation_losses(
    maps_BKHW: torch.Tensor, masks_BHW: torch.Tensor, class_weight_K: torch.Tensor, *, ignore_index: int
) -> torch.Tensor:
    """Weighted mean cross-entropy over each row's labelled pixels, shape (B,); 0 for a row that has none.

    Args:
        maps_BKHW: logits.
        masks_BHW: class indices, or `ignore_index`.
    """
    # pixels that are ignored have a loss of 0
    loss_BHW = F.cross_entropy(maps_BKHW, masks_BHW, weight=class_weight_K, ignore_index=ignore_index, reduction="none")
    is_labelled_BHW = masks_BHW != ignore_index
    weight_BHW = class_weight_K[masks_BHW.masked_fill(~is_labelled_BHW, 0)] * is_labelled_BHW
    total_B = weight_BHW.sum(dim=(1, 2))
    return loss_BHW.sum(dim=(1, 2)) / torch.where(total_B > 0, total_B, torch.ones_like(total_B))


def mask_class_weights(policy: MaskWeights, pixels_K: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """One positive factor for each class of the map, shape (K,).

    Args:
        pixels_K: labelled pixels of each class in the training masks.

    Raises:
        SampleError: no training row has a mask, or a class to be balanced has no pixel.

    >>> mask_class_weights("balanced", np.array([30, 10])).round(3).tolist()
    [0.667, 2.0]
    """
    if not pixels_K.any():
        raise SampleError("train: no row has a mask, so there is nothing to learn a segmentation from.")
    if policy == "none":
        return np.ones(len(pixels_K))
    if policy == "balanced":
        if absent := np.flatnonzero(pixels_K == 0).tolist():
            raise SampleError(
                f"train: no mask has a pixel of class {', '.join(map(str, absent))}, which cannot be balanced; give "
                "class_weights as numbers, or leave the class out of the masks."
            )
        balanced_K: npt.NDArray[np.float64] = pixels_K.sum() / (len(pixels_K) * pixels_K.astype(np.float64))
        return balanced_K
    return np.asarray(policy, dtype=np.float64)
