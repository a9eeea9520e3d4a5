"""3D residual networks inflated from ResNet-50, -101 and -152, for CT volumes.

The network sees axes (slice, x, y) of a scan in RAS orientation; volumes here are (D slice, H row, W column) as
axial DICOM slices lie: rows towards posterior, columns towards the patient's left. The volume is turned on the way
in, and the map turned back on the way out.

Axes: B batch, C channel, D slice, H row, W column, N token = D·H·W of the last map, E width.
Source: He et al. (2016); Carreira and Zisserman (2017), inflation; Blankemeier et al., Merlin (2024).
"""

import torch
from torch import nn
from torch.nn import functional as F

Size3 = tuple[int, int, int]

DEPTHS: dict[str, tuple[int, int, int, int]] = {
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
_WIDTHS = (64, 128, 256, 512)
_EXPANSION = 4


def _folded(convolution: nn.Module, norm: nn.Module) -> nn.Conv3d:
    if not isinstance(convolution, nn.Conv3d) or not isinstance(norm, nn.BatchNorm3d):
        raise TypeError(f"expected a convolution and its norm; got {convolution} and {norm}")
    return nn.utils.fuse_conv_bn_eval(convolution.eval(), norm.eval())


class Bottleneck3D(nn.Module):
    """1×1×1, 3×3×3 (which carries the stride), 1×1×1, and a shortcut."""

    def __init__(self, in_chans: int, width: int, stride: int, has_downsample: bool) -> None:
        super().__init__()
        out_chans = _EXPANSION * width
        self.conv1 = nn.Conv3d(in_chans, width, 1, bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        self.conv2 = nn.Conv3d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm3d(width)
        self.conv3 = nn.Conv3d(width, out_chans, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(out_chans)
        self.downsample = (
            nn.Sequential(nn.Conv3d(in_chans, out_chans, 1, stride, bias=False), nn.BatchNorm3d(out_chans))
            if has_downsample
            else None
        )

    def fold(self) -> None:
        """Put each norm's statistics into its convolution, exactly."""
        for index in (1, 2, 3):
            setattr(self, f"conv{index}", _folded(getattr(self, f"conv{index}"), getattr(self, f"bn{index}")))
            setattr(self, f"bn{index}", nn.Identity())
        if self.downsample is not None:
            self.downsample = nn.Sequential(_folded(self.downsample[0], self.downsample[1]))

    def forward(self, x_BCDHW: torch.Tensor) -> torch.Tensor:
        shortcut = x_BCDHW if self.downsample is None else self.downsample(x_BCDHW)
        out = F.relu(self.bn1(self.conv1(x_BCDHW)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + shortcut)


class ResNet3D(nn.Module):
    """Convolutional trunk; tokens are the positions of its last map.

    Args:
        depths: blocks in each of the four layers.
        in_chans: channels of the stem; the one grey channel is repeated by the InputSpec.
    """

    def __init__(self, depths: tuple[int, ...], in_chans: int = 3) -> None:
        super().__init__()
        self.width = _EXPANSION * _WIDTHS[-1]
        self.conv1 = nn.Conv3d(in_chans, 64, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False)
        self.bn1 = nn.BatchNorm3d(64)
        chans = 64
        for index, (width, depth) in enumerate(zip(_WIDTHS, depths)):
            blocks = [Bottleneck3D(chans, width, 1 if index == 0 else 2, has_downsample=True)]
            chans = _EXPANSION * width
            blocks += [Bottleneck3D(chans, width, 1, has_downsample=False) for _ in range(1, depth)]
            setattr(self, f"layer{index + 1}", nn.Sequential(*blocks))
        self._block_names = [
            f"layer{index + 1}.{block}" for index in range(len(_WIDTHS)) for block in range(depths[index])
        ]
        self.num_blocks = len(self._block_names)
        self.num_prefix_tokens = 0

    def init_weights(self, generator: torch.Generator) -> None:
        """Convolutions normal by fan-out (He et al., 2015), norms 1 and 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            elif isinstance(module, nn.BatchNorm3d):
                module.reset_parameters()

    def set_precision(self, dtype: torch.dtype) -> None:
        """Fold batch norms into convolutions (exact up to rounding), then cast."""
        if isinstance(self.bn1, nn.BatchNorm3d):
            self.conv1 = _folded(self.conv1, self.bn1)
            self.bn1 = nn.Identity()  # type: ignore[assignment]
            for module in self.modules():
                if isinstance(module, Bottleneck3D):
                    module.fold()
        self.to(dtype)
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def grid_of(self, size: Size3) -> Size3:
        """Positions of the last map along (D, H, W): with all layers slices halve four times, rows and columns five."""
        depth, rows, columns = size
        for _ in range(1 + self._last_layer):
            depth = (depth + 1) // 2
        for _ in range(2 + self._last_layer):
            rows, columns = (rows + 1) // 2, (columns + 1) // 2
        return depth, rows, columns

    @property
    def _last_layer(self) -> int:
        """Index of the layer that gives the last map."""
        return int(self._block_names[-1].partition(".")[0].removeprefix("layer")) - 1

    def truncate(self, layer: int) -> None:
        """Leave out the bottlenecks after number `layer`, counted from 1; tokens are the positions of its map."""
        for name in self._block_names[layer:]:
            parent, _, child = name.partition(".")
            delattr(self.get_submodule(parent), child)
        self._block_names = self._block_names[:layer]
        self.num_blocks = layer
        self.width = _EXPANSION * _WIDTHS[self._last_layer]

    def embed(self, x_BCDHW: torch.Tensor) -> torch.Tensor:
        """The map after the stem, turned to RAS axes."""
        x = to_ras(x_BCDHW).to(self.conv1.weight.dtype, memory_format=torch.channels_last_3d)
        return F.max_pool3d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)

    def run_blocks(self, hidden: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Bottlenecks from `start` to before `stop`, counted over all layers."""
        for name in self._block_names[start:stop]:
            hidden = self.get_submodule(name)(hidden)
        return hidden

    def finish(self, hidden: torch.Tensor) -> torch.Tensor:
        """The last map turned back, as tokens."""
        return to_ras(hidden).flatten(2).transpose(1, 2)

    def depth_of(self, name: str) -> int:
        """0 stem, i + 1 bottleneck i; the end has no weights."""
        block = ".".join(name.split(".")[:2])
        return self._block_names.index(block) + 1 if block in self._block_names else 0

    def forward(self, x_BCDHW: torch.Tensor) -> torch.Tensor:
        return self.finish(self.run_blocks(self.embed(x_BCDHW), 0, self.num_blocks))


def to_ras(x_BCDHW: torch.Tensor) -> torch.Tensor:
    """(…, row to posterior, column to left) ↔ (…, x to right, y to anterior); its own inverse."""
    return x_BCDHW.flip(3, 4).transpose(3, 4)
