"""LiteMedSAM's image encoder applied to a volume slice by slice.

Axes: B volume, C channel, D slice, H row, W column, N token = D·h·w, E width.
"""

import torch
from torch import nn
from torch.nn import functional as F

from vitreous.encoders.initialisation import truncated_normal_
from vitreous.encoders.tiny_vit import ConvNorm, LayerNorm2d, TinyViT, TinyViTShape, WindowAttention

SLICE_SIZE = 256  # rows and columns the weights were trained on
Size3 = tuple[int, int, int]


class SliceTinyViT(TinyViT):
    """TinyViT over each slice, its 64×64 map averaged to a small grid.

    Args:
        token_grid: tokens (h, w) kept of a slice's 64×64; divides 64 so that each is the mean of equally many.
        normalise_slices: bring each slice to [0, 1] by its own minimum and maximum, as the published inference
            does after the volume's own clip and min-max.

    Raises:
        ValueError: `token_grid` does not divide 64.
    """

    width = 256

    def __init__(self, shape: TinyViTShape, token_grid: tuple[int, int], normalise_slices: bool) -> None:
        super().__init__(shape)
        if any(size < 1 or 64 % size for size in token_grid):
            raise ValueError(f"token_grid must divide the 64×64 map of a slice; got {token_grid}")
        self.token_grid = token_grid
        self.normalise_slices = normalise_slices

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

    def grid_of(self, size: Size3) -> Size3:
        """Tokens along (D, H, W)."""
        if size[1:] != (SLICE_SIZE, SLICE_SIZE):
            raise ValueError(f"slices must have {SLICE_SIZE}×{SLICE_SIZE} pixels; got an input of {size}")
        return (size[0], *self.token_grid)

    def forward(self, x_BCDHW: torch.Tensor) -> torch.Tensor:
        volumes = [torch.stack([self._encode_slice(x_CHW) for x_CHW in x_CDHW.unbind(1)]) for x_CDHW in x_BCDHW]
        return torch.stack(volumes).flatten(1, 2)

    def _encode_slice(self, x_CHW: torch.Tensor) -> torch.Tensor:
        # one slice at a time: the first stage keeps 256 channels at full resolution
        if self.normalise_slices:
            low, high = x_CHW.amin(), x_CHW.amax()
            x_CHW = (x_CHW - low) / (high - low).clamp_min(1e-8)
        dtype: torch.dtype = self.neck[0].weight.dtype  # type: ignore[assignment]
        x_BCHW = x_CHW[None].to(dtype, memory_format=torch.channels_last)
        map_BEHW = super().forward(x_BCHW)
        tokens_BEhw = F.adaptive_avg_pool2d(map_BEHW.float(), self.token_grid)
        return tokens_BEhw[0].flatten(1).transpose(0, 1)
