"""LiteMedSAM's image encoder applied to a volume slice by slice; an image is a volume of one slice.

Axes: B volume, C channel, D slice, S slice of any volume, H row, W column, N token = D·h·w, E width.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from vitreous.encoders.initialisation import truncated_normal_
from vitreous.encoders.tiny_vit import ConvNorm, LayerNorm2d, Stage, TinyViT, TinyViTShape, WindowAttention

SLICE_SIZE = 256  # rows and columns the weights were trained on
Size3 = tuple[int, int, int]

_SMALLEST = 32  # pixels; windows beyond the border are filled with zeros


class SliceTinyViT(TinyViT):
    """TinyViT over each slice, its map (64×64 for 256×256 pixels) averaged to a small grid.

    Args:
        token_grid: tokens (h, w) kept of a slice's 64×64; divides it so that each is the mean of equally many.
        normalise_slices: bring each slice to [0, 1] by its own minimum and maximum, as the published inference
            does after the volume's own clip and min-max.
    """

    width = 256
    num_prefix_tokens = 0

    def __init__(self, shape: TinyViTShape, token_grid: tuple[int, int], normalise_slices: bool) -> None:
        super().__init__(shape)
        self.token_grid = token_grid
        self.normalise_slices = normalise_slices
        self.num_blocks = sum(shape.depths)
        self._first_blocks = [sum(shape.depths[:stage]) for stage in range(len(shape.depths))]

    def init_weights(self, generator: torch.Generator) -> None:
        """Linear layers normal of deviation 0.02, convolutions normal by fan-out, biases 0, norms 1.

        The last norm of an inverted bottleneck is 1, not 0 as at the start of training, so that a random encoder
        is a function of all its weights.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                truncated_normal_(module.weight, generator)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", generator=generator)
            elif isinstance(module, nn.BatchNorm2d | nn.LayerNorm | LayerNorm2d | WindowAttention):
                module.reset_parameters()

    def set_precision(self, dtype: torch.dtype) -> None:
        """Fold batch norms into convolutions (exact up to rounding), then cast matrices; norms stay float32."""
        for module in list(self.modules()):
            if isinstance(module, ConvNorm) and isinstance(module.bn, nn.BatchNorm2d):
                module.fold()
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.to(dtype)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def truncate(self, layer: int) -> None:
        """Leave out the blocks after block number `layer`, counted from 1; the neck stays.

        Raises:
            ValueError: the block is not of the last stage, whose width alone fits the neck.
        """
        first = self._first_blocks[-1]
        if layer <= first:
            raise ValueError(
                f"the neck fits the width of the last stage alone, whose blocks are {first + 1}…{self.num_blocks}"
            )
        last = cast(Stage, self.layers[-1])
        last.blocks = last.blocks[: layer - first]
        self.num_blocks = layer

    def grid_of(self, size: Size3) -> Size3:
        """Tokens along (D, H, W); a slice's map has a quarter of its rows and columns."""
        depth, rows, columns = size
        map_size = ((rows + 3) // 4, (columns + 3) // 4)
        if min(rows, columns) < _SMALLEST:
            raise ValueError(f"slices need {_SMALLEST} pixels a side at least; got an input of {size}")
        if any(extent % tokens for extent, tokens in zip(map_size, self.token_grid)):
            raise ValueError(
                f"token_grid must divide the {map_size[0]}×{map_size[1]} map of a slice; got {self.token_grid}"
            )
        return (depth, *self.token_grid)

    def embed(self, x_BCDHW: torch.Tensor) -> torch.Tensor:
        """Maps (B, D, C, h, w) of all slices after the patch embedding."""
        return self._by_slices(self._stem, x_BCDHW.transpose(1, 2))

    def run_blocks(self, hidden: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Blocks from `start` to before `stop`, counted over all stages; the last of a stage merges to the next."""
        return self._by_slices(lambda x_SCHW: self._run(x_SCHW, start, stop), hidden)

    def finish(self, hidden: torch.Tensor) -> torch.Tensor:
        """The neck, and the mean over each cell of the token grid."""
        return self._by_slices(self._end, hidden).flatten(1, 2)

    def depth_of(self, name: str) -> int:
        """0 patch embedding, i + 1 block i, last the neck."""
        parts = name.split(".")
        if parts[0] != "layers" or len(parts) < 3 or parts[2:] == ["blocks"]:
            return self.num_blocks + 1 if parts[0] == "neck" else 0
        stage = int(parts[1])
        if parts[2] == "downsample":
            return self._first_blocks[stage + 1]
        return self._first_blocks[stage] + int(parts[3]) + 1

    def forward(self, x_BCDHW: torch.Tensor) -> torch.Tensor:
        return self._by_slices(self._tokens_of_slices, x_BCDHW.transpose(1, 2)).flatten(1, 2)

    def _by_slices(self, function: Callable[[torch.Tensor], torch.Tensor], x_BDCHW: torch.Tensor) -> torch.Tensor:
        """Apply to all slices as one batch; without gradients to one at a time, as the widened maps are large."""
        x_SCHW = x_BDCHW.flatten(0, 1)
        if torch.is_grad_enabled() or self.training:
            out = function(x_SCHW)
        else:
            out = torch.cat([function(x_SCHW[index : index + 1]) for index in range(len(x_SCHW))])
        return out.view(*x_BDCHW.shape[:2], *out.shape[1:])

    def _tokens_of_slices(self, x_SCHW: torch.Tensor) -> torch.Tensor:
        return self._end(self._run(self._stem(x_SCHW), 0, self.num_blocks))

    def _stem(self, x_SCHW: torch.Tensor) -> torch.Tensor:
        if self.normalise_slices:
            low, high = x_SCHW.amin((1, 2, 3), keepdim=True), x_SCHW.amax((1, 2, 3), keepdim=True)
            x_SCHW = (x_SCHW - low) / (high - low).clamp_min(1e-8)
        dtype: torch.dtype = self.neck[0].weight.dtype  # type: ignore[assignment]
        maps_SCHW: torch.Tensor = self.patch_embed(x_SCHW.to(dtype, memory_format=torch.channels_last))
        return maps_SCHW

    def _run(self, x_SCHW: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        for stage, first in enumerate(self._first_blocks):
            layer = cast(Stage, self.layers[stage])
            for index, block in enumerate(layer.blocks, start=first):
                if start <= index < stop:
                    x_SCHW = block(x_SCHW)
                    if index + 1 == first + len(layer.blocks) and layer.downsample is not None:
                        x_SCHW = layer.downsample(x_SCHW)
        return x_SCHW

    def _end(self, x_SCHW: torch.Tensor) -> torch.Tensor:
        maps_SEHW: torch.Tensor = self.neck(x_SCHW)
        tokens_SEhw = F.adaptive_avg_pool2d(maps_SEHW.float(), self.token_grid)
        return tokens_SEhw.flatten(2).transpose(1, 2)
