"""TinyViT as LiteMedSAM uses it: a convolutional and three windowed stages, 256×256 in, 64×64 out.

It differs from timm's TinyViT, hence the own modules with the published tensor names: the patch embedding keeps full
resolution (two 1×1 convolutions), each stage ends (rather than begins) with its downsampling, the last one
does not halve, and a SAM neck follows.

Axes: B image, C channel, H row, W column, N pixel or window position.
Source: Wu et al., TinyViT (2022); bowang-lab/MedSAM, LiteMedSAM branch.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

_NECK_WIDTH = 256
_ROWS_PER_STRIP = 16  # of the widened map without gradients, so that a strip stays in the cache
_TOKENS_PER_CHUNK = 4096  # of the MLP without gradients, likewise
_UNHALVED_WIDTHS = (320, 448, 576)  # the published rule: the merge to the last stage keeps its resolution


@dataclass(frozen=True)
class TinyViTShape:
    """Widths, depths, heads and windows of the four stages, as in the published file by default."""

    embed_dims: tuple[int, ...] = (64, 128, 160, 320)
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (2, 4, 5, 10)
    window_sizes: tuple[int, ...] = (7, 7, 14, 7)


def _gelu(x: torch.Tensor) -> torch.Tensor:
    """In place without gradients: a fresh block as large as these activations costs more than the function."""
    out: torch.Tensor = F.gelu(x) if torch.is_grad_enabled() else torch.ops.aten.gelu_(x)
    return out


class ConvNorm(nn.Module):
    """Convolution without bias and batch norm; :meth:`fold` makes one convolution of both, exactly."""

    def __init__(self, in_chans: int, out_chans: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.c = nn.Conv2d(in_chans, out_chans, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_chans)

    def fold(self) -> None:
        """Put the statistics of the norm into weight and bias of the convolution."""
        folded = nn.utils.fuse_conv_bn_eval(self.c.eval(), self.bn.eval())
        self.c, self.bn = folded, nn.Identity()  # type: ignore[assignment]

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        out_BCHW: torch.Tensor = self.bn(self.c(x_BCHW))
        return out_BCHW


class PatchEmbed(nn.Module):
    """Two 1×1 convolutions at full resolution."""

    def __init__(self, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.seq = nn.Sequential(ConvNorm(in_chans, embed_dim // 2), nn.GELU(), ConvNorm(embed_dim // 2, embed_dim))

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        out_BCHW: torch.Tensor = self.seq(x_BCHW)
        return out_BCHW


class MBConv(nn.Module):
    """Inverted bottleneck: widen four times, depthwise 3×3, narrow, add."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(width, 4 * width)
        self.conv2 = ConvNorm(4 * width, 4 * width, kernel=3, groups=4 * width)
        self.conv3 = ConvNorm(4 * width, width)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            return self._forward_rows(x_BCHW, 0, x_BCHW.shape[2])
        height = x_BCHW.shape[2]
        strips = [
            self._forward_rows(x_BCHW, start, min(start + _ROWS_PER_STRIP, height))
            for start in range(0, height, _ROWS_PER_STRIP)
        ]
        return torch.cat(strips, dim=2)

    def _forward_rows(self, x_BCHW: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Rows from `start` to `stop`; the widened row above and below them is computed and then dropped."""
        above, below = max(start - 1, 0), min(stop + 1, x_BCHW.shape[2])
        wide_BCHW = self.conv2(_gelu(self.conv1(x_BCHW[:, :, above:below])))[:, :, start - above : stop - above]
        return _gelu(self.conv3(_gelu(wide_BCHW)) + x_BCHW[:, :, start:stop])


class PatchMerging(nn.Module):
    """Changes the width and, but for the merge to the last stage, halves rows and columns."""

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__()
        stride = 1 if out_width in _UNHALVED_WIDTHS else 2
        self.conv1 = ConvNorm(width, out_width)
        self.conv2 = ConvNorm(out_width, out_width, kernel=3, stride=stride, groups=out_width)
        self.conv3 = ConvNorm(out_width, out_width)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        out_BCHW: torch.Tensor = self.conv3(_gelu(self.conv2(_gelu(self.conv1(x_BCHW)))))
        return out_BCHW


class WindowAttention(nn.Module):
    """Attention inside a window with a learned bias per head and distance."""

    attention_bias_idxs: torch.Tensor

    def __init__(self, width: int, num_heads: int, window: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.attention_biases = nn.Parameter(torch.zeros(num_heads, window * window))
        self.window = window
        self.register_buffer("attention_bias_idxs", _distance_indices(window), persistent=False)

    def reset_parameters(self) -> None:
        """Biases 0; the indices are no weights, but a module made on the meta device lacks them too."""
        nn.init.zeros_(self.attention_biases)
        self.attention_bias_idxs.copy_(_distance_indices(self.window))

    def forward(self, x_BNC: torch.Tensor) -> torch.Tensor:
        dtype = self.qkv.weight.dtype
        normed_BNC = self.norm(x_BNC.float()).to(dtype)
        qkv = self.qkv(normed_BNC).view(*x_BNC.shape[:2], self.num_heads, 3, -1)
        q_BHNE, k_BHNE, v_BHNE = qkv.permute(3, 0, 2, 1, 4).contiguous().unbind(0)
        bias_HNN = self.attention_biases[:, self.attention_bias_idxs].to(dtype)
        # plain products: with a bias, scaled_dot_product_attention takes half as long again in bfloat16 on CPU
        scores_BHNN = (q_BHNE * q_BHNE.shape[-1] ** -0.5) @ k_BHNE.transpose(2, 3)
        scores_BHNN += bias_HNN
        out_BHNE = scores_BHNN.softmax(-1) @ v_BHNE
        projected: torch.Tensor = self.proj(out_BHNE.transpose(1, 2).flatten(2))
        return projected


def _distance_indices(window: int) -> torch.Tensor:
    """Index into the biases for each pair of positions: distances numbered in the order they are first met."""
    row_N, column_N = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    row_N, column_N = row_N.flatten(), column_N.flatten()
    # from position (0, 0) every distance (|dr|, |dc|) is met once, in row-major order
    return (row_N[:, None] - row_N).abs() * window + (column_N[:, None] - column_N).abs()


class Mlp(nn.Module):
    """Norm, widen four times, narrow."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x_BNC: torch.Tensor) -> torch.Tensor:
        dtype = self.fc1.weight.dtype
        chunks = [x_BNC] if torch.is_grad_enabled() else torch.split(x_BNC, _TOKENS_PER_CHUNK, dim=1)
        return torch.cat([self.fc2(_gelu(self.fc1(self.norm(chunk.float()).to(dtype)))) for chunk in chunks], dim=1)


class WindowBlock(nn.Module):
    """Windowed attention, depthwise 3×3 convolution, MLP."""

    def __init__(self, width: int, num_heads: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.attn = WindowAttention(width, num_heads, window)
        self.local_conv = ConvNorm(width, width, kernel=3, groups=width)
        self.mlp = Mlp(width)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        x_BHWC = x_BCHW.permute(0, 2, 3, 1)
        x_BHWC = x_BHWC + self._attend(x_BHWC)
        x_BHWC = self.local_conv(x_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        out_BHWC: torch.Tensor = x_BHWC + self.mlp(x_BHWC.flatten(1, 2)).view(x_BHWC.shape)
        return out_BHWC.permute(0, 3, 1, 2)

    def _attend(self, x_BHWC: torch.Tensor) -> torch.Tensor:
        batch, height, width, chans = x_BHWC.shape
        w = self.window
        if (height, width) == (w, w):
            whole: torch.Tensor = self.attn(x_BHWC.flatten(1, 2)).view(x_BHWC.shape)
            return whole
        # zeros beyond the border take part in attention, as they did in training
        padded = F.pad(x_BHWC, (0, 0, 0, -width % w, 0, -height % w))
        rows, columns = padded.shape[1] // w, padded.shape[2] // w
        windows_BNC = padded.view(batch, rows, w, columns, w, chans).transpose(2, 3).reshape(-1, w * w, chans)
        out: torch.Tensor = self.attn(windows_BNC).view(batch, rows, columns, w, w, chans).transpose(2, 3)
        return out.reshape(padded.shape)[:, :height, :width]


class Stage(nn.Module):
    """Blocks, then the merge to the next stage's width."""

    def __init__(self, blocks: list[nn.Module], downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x_BCHW = block(x_BCHW)
        if self.downsample is not None:
            x_BCHW = self.downsample(x_BCHW)
        return x_BCHW


class LayerNorm2d(nn.Module):
    """Layer norm over channels, epsilon 1e-6."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def reset_parameters(self) -> None:
        """Weight 1, bias 0."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        x_BHWC = F.layer_norm(x_BCHW.permute(0, 2, 3, 1).float(), self.weight.shape, self.weight, self.bias, 1e-6)
        return x_BHWC.permute(0, 3, 1, 2).to(x_BCHW.dtype)


class TinyViT(nn.Module):
    """The image encoder of LiteMedSAM: (B, 3, 256, 256) in [0, 1] → (B, 256, 64, 64)."""

    def __init__(self, shape: TinyViTShape, in_chans: int = 3) -> None:
        super().__init__()
        widths = shape.embed_dims
        self.patch_embed = PatchEmbed(in_chans, widths[0])
        self.layers = nn.ModuleList()
        for index, (width, depth) in enumerate(zip(widths, shape.depths)):
            heads, window = shape.num_heads[index], shape.window_sizes[index]
            blocks: list[nn.Module] = [
                MBConv(width) if index == 0 else WindowBlock(width, heads, window) for _ in range(depth)
            ]
            last = index == len(widths) - 1
            self.layers.append(Stage(blocks, None if last else PatchMerging(width, widths[index + 1])))
        self.neck = nn.Sequential(
            nn.Conv2d(widths[-1], _NECK_WIDTH, 1, bias=False),
            LayerNorm2d(_NECK_WIDTH),
            nn.Conv2d(_NECK_WIDTH, _NECK_WIDTH, 3, padding=1, bias=False),
            LayerNorm2d(_NECK_WIDTH),
        )

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        x_BCHW = self.patch_embed(x_BCHW)
        for layer in self.layers:
            x_BCHW = layer(x_BCHW)
        out_BCHW: torch.Tensor = self.neck(x_BCHW)
        return out_BCHW
