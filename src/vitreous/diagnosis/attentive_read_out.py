"""An attentive probe as it reads an encoder's tokens, and where it looks.

Axes: B batch, T cell (token, or cell of the coarser grid that was kept), N token, D width, Q query, H head, C class.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.functional import interpolate

from vitreous.diagnosis.attention_statistics import SampleAttention
from vitreous.diagnosis.attention_weights import HeadEntropy
from vitreous.encoders.encoder import Size3, Tokens
from vitreous.features.pooling import coarse_tokens
from vitreous.recipes.attentive_heads import attention_maps, attentive_logits, read_shape


class AttentiveReadOut(nn.Module):
    """Tokens → logits by learned queries.

    Args:
        tensors: of the kept head.
        grid: cells that tokens are averaged to, as in training; None where all are kept.
    """

    def __init__(self, tensors: Mapping[str, npt.NDArray[Any]], grid: Size3 | None) -> None:
        super().__init__()
        self.shape = read_shape(tensors)
        self.grid = grid
        self._names = tuple(self.shape.parameter_shapes())
        self._values = nn.ParameterList(torch.from_numpy(np.array(tensors[name])).float() for name in self._names)

    def forward(self, tokens: Tokens) -> torch.Tensor:
        """Logits (B, C)."""
        return attentive_logits(self.shape, self._stacked(), coarse_tokens(tokens, self.grid).float())[0].T

    def maps_QHT(self, tokens: Tokens) -> torch.Tensor:
        """How much each query and head looks at each cell of a single sample; sums to 1 over cells."""
        return attention_maps(self.shape, self._stacked(), coarse_tokens(tokens, self.grid).float())[0, 0]

    def start_N(self, tokens: Tokens) -> torch.Tensor:
        """Share of each token in what is read of one sample: the mean over queries and heads."""
        return self._spread(self.maps_QHT(tokens).mean((0, 1)), tokens.grid)

    def pooling_map(self, tokens: Tokens, target: int) -> torch.Tensor:
        """Where the query of a class looks, mean over heads, for each token (N,); one query serves all classes."""
        return self._spread(self.maps_QHT(tokens)[target if self.shape.queries > 1 else 0].mean(0), tokens.grid)

    def _spread(self, cells_T: torch.Tensor, token_grid: Size3) -> torch.Tensor:
        """A cell's share spread evenly over its tokens."""
        if self.grid is None or self.grid == token_grid:
            return cells_T
        large = interpolate(cells_T.view(1, 1, *self.grid), size=token_grid, mode="nearest-exact").flatten()
        return large / large.sum()

    def _stacked(self) -> dict[str, torch.Tensor]:
        return {name: value[None] for name, value in zip(self._names, self._values, strict=True)}


def pooling_attention(maps_QHT: torch.Tensor) -> SampleAttention:
    """Entropy of a read-out's queries, as that of one attention with Q queries over T cells."""
    entropy_QH = torch.special.entr(maps_QHT.double()).sum(-1).cpu().numpy() / math.log(maps_QHT.shape[-1])
    largest_QH = maps_QHT.double().amax(-1).cpu().numpy()
    heads = HeadEntropy(entropy_QH.mean(0), entropy_QH.min(0), entropy_QH.max(0), entropy_QH.std(0), largest_QH.mean(0))
    return SampleAttention(
        (heads,),
        int(maps_QHT.shape[-1]),
        float(entropy_QH.mean()),
        float(entropy_QH.min()),
        float(entropy_QH.max()),
        float(entropy_QH.std()),
        float(largest_QH.mean()),
    )
