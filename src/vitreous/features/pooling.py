"""Tokens of a volume to one vector. Axes: B batch, N token, D width; grid in the order (T, H, W)."""

from typing import Literal, assert_never

import torch
from torch.nn.functional import adaptive_avg_pool3d

from vitreous.encoders.encoder import Tokens

Pooling = Literal["mean", "max", "cls", "grid"]


def coarse_tokens(tokens: Tokens, coarse_grid: tuple[int, int, int] | None) -> torch.Tensor:
    """Tokens (B, T, D) of a coarser grid, cells in row-major order, each the mean of its tokens; None keeps all.

    Raises:
        ValueError: as :func:`pool_tokens`.
    """
    if coarse_grid is None:
        return tokens.tokens_BND.to(torch.promote_types(tokens.tokens_BND.dtype, torch.float32))
    cells = coarse_grid[0] * coarse_grid[1] * coarse_grid[2]
    flat_BF = pool_tokens(tokens, "grid", coarse_grid)
    return flat_BF.view(len(flat_BF), cells, -1)


def pool_tokens(tokens: Tokens, pooling: Pooling, coarse_grid: tuple[int, int, int] | None = None) -> torch.Tensor:
    """Pool in float32 whatever the tokens' format, but in float64 where they have it.

    Returns:
        (B, D) for mean, max and cls (the class token); (B, t·h·w·D) for `grid`, cells in row-major order, each the
        mean of its tokens.

    Raises:
        ValueError: N is not the product of the token grid, the coarse grid is finer than it, or there is no class
            token.

    >>> pool_tokens(Tokens(torch.tensor([[[1.0], [3.0]]]), (1, 1, 2)), "mean")
    tensor([[2.]])
    """
    dtype, token_grid = torch.promote_types(tokens.tokens_BND.dtype, torch.float32), tokens.grid
    tokens_BND = tokens.tokens_BND.to(dtype)
    t, h, w = token_grid
    if tokens_BND.shape[1] != t * h * w:
        raise ValueError(f"{tokens_BND.shape[1]} tokens do not fill the grid {token_grid}")
    match pooling:
        case "mean":
            return tokens_BND.mean(dim=1)
        case "max":
            return tokens_BND.amax(dim=1)
        case "cls":
            if tokens.cls_BD is None:
                raise ValueError("features.pooling: cls needs an encoder with a class token; take mean")
            return tokens.cls_BD.to(dtype)
        case "grid":
            if coarse_grid is None or any(c > f for c, f in zip(coarse_grid, token_grid, strict=True)):
                raise ValueError(f"features.grid must not be finer than the token grid {token_grid}; got {coarse_grid}")
            volume_BDTHW = tokens_BND.transpose(1, 2).reshape(len(tokens_BND), -1, t, h, w)
            pooled_BDthw = adaptive_avg_pool3d(volume_BDTHW, coarse_grid)
            return pooled_BDthw.flatten(2).transpose(1, 2).flatten(1)
    assert_never(pooling)
