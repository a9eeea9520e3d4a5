"""A 3D vision transformer as V-JEPA-style pretraining on volumes makes it: no class token, learned positions.

Axes: B batch, C channel, D slice, H row, W column (voxels or patches), N token = D·H·W patches, E width.
"""

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from vitreous.core.torchvision_schema import declare_torchvision_schemas
from vitreous.encoders.attention import attend
from vitreous.encoders.initialisation import truncated_normal_

declare_torchvision_schemas()

from timm.layers import Attention, Mlp  # type: ignore[attr-defined]  # noqa: E402
from timm.models.vision_transformer import Block  # noqa: E402

Size3 = tuple[int, int, int]

TOKENS_PER_CHUNK = 2304  # of the MLP without gradients: its hidden layer is four times as wide as the tokens


def block_depth(name: str, num_blocks: int, *, end: tuple[str, ...]) -> int:
    """Where a name of a transformer stands: 0 stem, i + 1 for ``blocks.i``, num_blocks + 1 the end.

    >>> block_depth("blocks.3.attn.qkv.weight", 12, end=("norm",))
    4
    """
    parts = name.split(".")
    if parts[0] == "blocks" and len(parts) > 1:
        return int(parts[1]) + 1
    return num_blocks + 1 if parts[0] in end else 0


class TokenAttention(Attention):
    """timm's attention with :func:`attend` in its middle."""

    def forward(self, x: torch.Tensor, attn_mask: torch.Tensor | None = None, is_causal: bool = False) -> torch.Tensor:
        if attn_mask is not None or is_causal:
            raise ValueError("this encoder attends from every token to every token; masks are not supported")
        qkv_3BHNE = self.qkv(x).unflatten(2, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        # a head's rows side by side: on CPU the copy takes a tenth of what it saves
        out_BHNE = attend(*qkv_3BHNE.contiguous().unbind(0))
        projected: torch.Tensor = self.proj(out_BHNE.transpose(1, 2).flatten(2))
        return projected


class TokenMlp(Mlp):
    """timm's MLP; without gradients its GELU works in place, since a fresh block of that size costs as much again."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            with_gradients: torch.Tensor = super().forward(x)  # type: ignore[no-untyped-call]
            return with_gradients
        out: torch.Tensor = self.fc2(torch.ops.aten.gelu_(self.fc1(x)))
        return out


class TokenBlock(Block):
    """timm's pre-norm block whose residual stream and norms stay in float32 whatever the matrices' precision."""

    def forward(self, x: torch.Tensor, attn_mask: torch.Tensor | None = None, is_causal: bool = False) -> torch.Tensor:
        dtype: torch.dtype = self.attn.qkv.weight.dtype  # type: ignore[union-attr, assignment]
        x = x + self.attn(self.norm1(x).to(dtype), attn_mask=attn_mask, is_causal=is_causal)
        if torch.is_grad_enabled():
            out: torch.Tensor = x + self.mlp(self.norm2(x).to(dtype))
            return out
        for chunk in torch.split(x, TOKENS_PER_CHUNK, dim=1):
            chunk += self.mlp(self.norm2(chunk).to(dtype))
        return x


class PatchEmbed3D(nn.Module):
    """Cuts a volume into patches that do not overlap and projects each to a token.

    The weights are those of a convolution; they are applied as one matrix product, which is the same sum and on CPU
    in bfloat16 twenty times as fast.
    """

    def __init__(self, patch_size: Size3, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x_BCDHW: torch.Tensor) -> torch.Tensor:
        return project_patches(x_BCDHW, self.proj.weight, self.proj.bias)


def project_patches(x_BCDHW: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """A convolution whose stride is its kernel, as one matrix product: tokens (B, N, E) in the order D, H, W.

    Args:
        weight: of the convolution, (E, C, d, h, w); d, h and w divide the input.
    """
    batch, chans = x_BCDHW.shape[:2]
    cut = [part for size, patch in zip(x_BCDHW.shape[2:], weight.shape[2:]) for part in (size // patch, patch)]
    patches = x_BCDHW.to(weight.dtype).reshape(batch, chans, *cut).permute(0, 2, 4, 6, 1, 3, 5, 7)
    return F.linear(patches.flatten(4).flatten(1, 3), weight.flatten(1), bias)


class ViT3D(nn.Module):
    """Pre-norm transformer over the patches of a volume.

    Args:
        img_size: voxels (D, H, W) of the input, each a multiple of the patch.
        patch_size: voxels (d, h, w) of a patch.
        eps: of every LayerNorm.
        qkv_bias: whether query, key and value projections have a bias.

    Raises:
        ValueError: `img_size` is no multiple of `patch_size`, or `embed_dim` no multiple of `num_heads`.
    """

    def __init__(
        self,
        img_size: Size3,
        patch_size: Size3,
        in_chans: int = 1,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        eps: float = 1e-5,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__()
        if any(size % patch for size, patch in zip(img_size, patch_size)):
            raise ValueError(f"img_size must be a multiple of patch_size; got {img_size} and {patch_size}")
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim must be a multiple of num_heads; got {embed_dim} and {num_heads}")
        depth_D, height_H, width_W = (size // patch for size, patch in zip(img_size, patch_size))
        self.grid: Size3 = (depth_D, height_H, width_W)
        self.img_size = img_size
        self.patch_size = patch_size
        self.embed_dim = embed_dim
        self.width = embed_dim
        self.num_blocks = depth
        self.num_prefix_tokens = 0
        self.patch_embed = PatchEmbed3D(patch_size, in_chans, embed_dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, depth_D * height_H * width_W, embed_dim))
        norm_layer: type[nn.Module] = partial(nn.LayerNorm, eps=eps)  # type: ignore[assignment]
        self.blocks = nn.ModuleList(
            TokenBlock(
                embed_dim,
                num_heads,
                mlp_ratio,
                qkv_bias=qkv_bias,
                norm_layer=norm_layer,
                attn_layer=TokenAttention,
                mlp_layer=TokenMlp,
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=eps)

    def init_weights(self, generator: torch.Generator) -> None:
        """Matrices and positions from a normal of deviation 0.02 cut at ±0.04; biases 0, norms 1."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv3d):
                truncated_normal_(module.weight, generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
        truncated_normal_(self.pos_embed, generator)

    def set_precision(self, dtype: torch.dtype) -> None:
        """Matrix products in `dtype`; norms, positions and the residual stream stay in float32."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv3d):
                module.to(dtype)

    def grid_of(self, size: Size3) -> Size3:
        """Tokens along (D, H, W); the learned positions fit `img_size` alone."""
        if size != self.img_size:
            raise ValueError(f"the learned positions are those of {self.img_size} voxels; got an input of {size}")
        return self.grid

    def embed(self, x_BCDHW: torch.Tensor) -> torch.Tensor:
        """Patches with their positions added, in the order D, H, W; masked training picks from these."""
        tokens_BNE: torch.Tensor = self.patch_embed(x_BCDHW) + self.pos_embed
        return tokens_BNE

    def run_blocks(self, hidden: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Blocks from `start` to before `stop`, over any subset of embedded tokens."""
        for block in self.blocks[start:stop]:
            hidden = block(hidden)
        return hidden

    def finish(self, hidden: torch.Tensor) -> torch.Tensor:
        """The final norm."""
        normed_BNE: torch.Tensor = self.norm(hidden)
        return normed_BNE

    def truncate(self, layer: int) -> None:
        """Leave out the blocks after block number `layer`, counted from 1; the norm stays."""
        self.blocks = self.blocks[:layer]
        self.num_blocks = layer

    def depth_of(self, name: str) -> int:
        """0 stem, i + 1 block i, last the norm."""
        return block_depth(name, self.num_blocks, end=("norm",))

    def encode(self, tokens_BNE: torch.Tensor) -> torch.Tensor:
        """Blocks and final norm over any subset of embedded tokens."""
        return self.finish(self.run_blocks(tokens_BNE, 0, self.num_blocks))

    def forward(self, x_BCDHW: torch.Tensor) -> torch.Tensor:
        return self.encode(self.embed(x_BCDHW))
