"""The masked-latent objective: predict what the target encoder says about hidden blocks from the visible rest.

The context encoder sees only visible tokens; a small predictor, given the places of the hidden ones, predicts
their latents; the latents come from the target encoder, an exponential moving average of the context encoder
that no gradient reaches.

Axes: B batch, C channel, D H W voxels, N all tokens, V visible tokens, M hidden (masked) tokens, E width.
Source: Assran et al. (2023), I-JEPA; Bardes et al. (2024), V-JEPA; in small, on volumes.
Standardised targets: Baevski et al. (2022), data2vec.
"""

import copy
from collections.abc import Callable
from typing import Any, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from vitreous.encoders.vit3d import ViT3D


class MaskableEncoder(Protocol):
    """An encoder that can leave tokens out: an `nn.Module` with these besides."""

    embed_dim: int
    grid: tuple[int, int, int]

    def embed(self, x_BCDHW: torch.Tensor) -> torch.Tensor:
        """Every patch's token, (B, N, E)."""

    def encode_at(self, tokens_BVE: torch.Tensor, places_BV: torch.Tensor) -> torch.Tensor:
        """Latents of these tokens alone, (B, V, E)."""


class LatentPredictor(nn.Module):
    """A narrow transformer from visible latents and hidden places to hidden latents."""

    def __init__(self, num_tokens: int, encoder_width: int, width: int, depth: int) -> None:
        super().__init__()
        self.enter = nn.Linear(encoder_width, width)
        self.places = nn.Parameter(torch.zeros(1, num_tokens, width))
        self.hidden_token = nn.Parameter(torch.zeros(1, 1, width))
        layer = nn.TransformerEncoderLayer(
            width, max(width // 32, 1), 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, depth, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.leave = nn.Linear(width, encoder_width)

    def forward(self, visible_BVE: torch.Tensor, visible_BV: torch.Tensor, hidden_BM: torch.Tensor) -> torch.Tensor:
        batch, num_hidden = hidden_BM.shape
        places = self.places.expand(batch, -1, -1)
        seen = self.enter(visible_BVE) + pick_tokens(places, visible_BV)
        asked = self.hidden_token.expand(batch, num_hidden, -1) + pick_tokens(places, hidden_BM)
        out = self.blocks(torch.cat([seen, asked], dim=1))[:, -num_hidden:]
        predicted_BME: torch.Tensor = self.leave(out)
        return predicted_BME


class MaskedLatentModel(nn.Module):
    """Context encoder, its moving average and the predictor.

    Args:
        encoder: the encoder to train; a `MaskableEncoder`.
        initialise: gives it its first weights from `generator`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        predictor_width: int,
        predictor_depth: int,
        generator: torch.Generator,
        initialise: Callable[[nn.Module, torch.Generator], None],
    ) -> None:
        super().__init__()
        self.context_encoder: Any = encoder
        initialise(encoder, generator)
        maskable = cast(MaskableEncoder, encoder)
        num_tokens = int(np.prod(maskable.grid))
        self.predictor = LatentPredictor(num_tokens, maskable.embed_dim, predictor_width, predictor_depth)
        for name, parameter in self.predictor.named_parameters():
            if parameter.dim() > 1:
                nn.init.trunc_normal_(parameter, std=0.02, a=-0.04, b=0.04, generator=generator)
            elif "norm" not in name:
                nn.init.zeros_(parameter)
        self.target_encoder: Any = copy.deepcopy(encoder).requires_grad_(False)

    def loss(
        self, seen_BCDHW: torch.Tensor, x_BCDHW: torch.Tensor, visible_BV: torch.Tensor, hidden_BM: torch.Tensor
    ) -> torch.Tensor:
        """Mean smooth-L1 distance to the target's latents, each feature standardised over the batch and its tokens.

        Without that, a target whose tokens all point the same way makes the task trivial: with a LayerNorm in
        its place an encoder of this size on 8 x 8 patches collapsed (loss 0.004, features' deviation 0.01).

        Args:
            seen_BCDHW: what the context encoder sees; `x_BCDHW` itself, or with noise.
            x_BCDHW: what the target encoder sees.
        """
        with torch.no_grad():
            latent_BNE = self.target_encoder(x_BCDHW)
            std_E, mean_E = torch.std_mean(latent_BNE, dim=(0, 1))
            wanted_BME = pick_tokens((latent_BNE - mean_E) / (std_E + 1e-4), hidden_BM)
        seen_BVE = pick_tokens(self.context_encoder.embed(seen_BCDHW), visible_BV)
        visible_BVE = self.context_encoder.encode_at(seen_BVE, visible_BV)
        predicted_BME = self.predictor(visible_BVE, visible_BV, hidden_BM)
        return F.smooth_l1_loss(predicted_BME, wanted_BME)

    @torch.no_grad()
    def update_target(self, momentum: float) -> None:
        """target = momentum * target + (1 - momentum) * context."""
        for target, context in zip(self.target_encoder.parameters(), self.context_encoder.parameters()):
            target.lerp_(context, 1 - momentum)


class MaskableViT3D(ViT3D):
    """Its positions are added to the tokens as they are embedded."""

    def encode_at(self, tokens_BVE: torch.Tensor, places_BV: torch.Tensor) -> torch.Tensor:
        """Latents of these tokens alone, (B, V, E)."""
        return self.encode(tokens_BVE)


@torch.no_grad()
def initialise_vit3d(encoder: nn.Module, generator: torch.Generator) -> None:
    """Linear maps that keep the variance of their input, and positions as loud as a tenth of a token.

    At the usual deviation of 0.02 the residual branches of so narrow an encoder are all but silent, and its
    first targets all but linear in the voxels.
    """
    if not isinstance(encoder, ViT3D):
        raise TypeError(f"a ViT3D is initialised here; got {type(encoder).__name__}")
    encoder.init_weights(generator)
    for module in encoder.modules():
        if isinstance(module, nn.Linear):
            module.weight.mul_(module.in_features**-0.5 / 0.02)
    nn.init.normal_(encoder.pos_embed, std=0.1, generator=generator)


def pick_tokens(tokens_BNE: torch.Tensor, idx_BM: torch.Tensor) -> torch.Tensor:
    """The tokens at `idx_BM`, (B, M, E)."""
    return tokens_BNE.gather(1, idx_BM[:, :, None].expand(-1, -1, tokens_BNE.shape[-1]))


def draw_masks(
    batch: int, grid: tuple[int, int, int], hidden_share: float, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of visible and of hidden tokens, (B, V) and (B, M), each row sorted.

    Blocks of one to all slices by a third to two thirds of rows and columns are hidden until `hidden_share` of the
    tokens is; the last block is thinned at random to hit the number exactly, so that a batch is a rectangle.
    """
    num_tokens = int(np.prod(grid))
    num_hidden = round(hidden_share * num_tokens)
    hidden_BN = np.zeros((batch, num_tokens), bool)
    for row_N in hidden_BN:
        volume = row_N.reshape(grid)
        while (missing := num_hidden - int(row_N.sum())) > 0:
            block = np.zeros(grid, bool)
            block[tuple(_draw_extent(size, full, rng) for size, full in zip(grid, (True, False, False)))] = True
            fresh = np.flatnonzero(block & ~volume)
            row_N[rng.permutation(fresh)[:missing]] = True
    order = np.argsort(hidden_BN, axis=1, kind="stable")
    split = num_tokens - num_hidden
    return torch.from_numpy(order[:, :split].copy()), torch.from_numpy(order[:, split:].copy())


def _draw_extent(size: int, may_be_full: bool, rng: np.random.Generator) -> slice:
    low, high = (1, size) if may_be_full else (max(size // 3, 1), max(2 * size // 3, 1))
    length = int(rng.integers(low, high + 1))
    start = int(rng.integers(0, size - length + 1))
    return slice(start, start + length)


def effective_rank(features_ND: torch.Tensor) -> float:
    """RankMe: exponential of the entropy of the normalised singular values; 1 is collapse, D the most.

    Source: Garrido et al. (2023).
    """
    values = torch.linalg.svdvals(features_ND.double() - features_ND.double().mean(0))
    share = values / values.sum() + 1e-12
    return float(torch.exp(-(share * share.log()).sum()))
