"""Attention weights of any number of tokens, exact, a block of queries at a time.

An N×N matrix is never held: a block has at most `BLOCK_ELEMENTS` weights over all heads.

Axes: H head, M query of a block, N token (key), E width of one head, Q query.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from vitreous.diagnosis.attention_capture import Attention

BLOCK_ELEMENTS = 1 << 22  # 16 MiB in float32

FloatArray = npt.NDArray[np.float64]


def weights_in_blocks(attention: Attention, sample: int = 0) -> Iterator[tuple[slice, torch.Tensor]]:
    """(queries, their weights (H, M, N)) of one sample; rows sum to 1. float32, or float64 where q has it."""
    dtype = torch.promote_types(attention.q_BHNE.dtype, torch.float32)
    q_HQE, k_HNE = attention.q_BHNE[sample].to(dtype), attention.k_BHNE[sample].to(dtype)
    (heads, queries, _), keys = q_HQE.shape, k_HNE.shape[1]
    rows = max(1, BLOCK_ELEMENTS // (heads * keys))
    for start in range(0, queries, rows):
        block = slice(start, min(start + rows, queries))
        scores_HMN = (q_HQE[:, block] * attention.scale) @ k_HNE.transpose(1, 2)
        if attention.bias is not None:
            scores_HMN += _bias_of(attention.bias, sample, block)
        yield block, torch.softmax(scores_HMN, dim=-1)


def _bias_of(bias: torch.Tensor, sample: int, block: slice) -> torch.Tensor:
    """The part of a bias that one sample's block of queries sees, broadcast against (H, M, N)."""
    while bias.ndim < 4:
        bias = bias[None]
    of_sample = bias[sample if bias.shape[0] > 1 else 0]
    return of_sample if of_sample.shape[1] == 1 else of_sample[:, block]


@dataclass(frozen=True)
class HeadEntropy:
    """How evenly each head of one attention looks, over its queries.

    Entropy is −Σ p·log p over the keys as a share of the largest, log N: 1 looks everywhere alike, 0 at one token.

    Args:
        mean_H, lowest_H, highest_H, spread_H: of the queries' entropies; spread is their standard deviation.
        largest_weight_H: mean over queries of the largest weight.
    """

    mean_H: FloatArray
    lowest_H: FloatArray
    highest_H: FloatArray
    spread_H: FloatArray
    largest_weight_H: FloatArray


def head_entropy(attention: Attention, sample: int = 0) -> HeadEntropy:
    """Entropy of each head, exact.

    Source: Shannon (1948); as a measure of heads, e.g. Zhai et al., Stabilizing Transformer Training (2023).

    Raises:
        ValueError: a single token, whose entropy has no scale.
    """
    if attention.num_tokens < 2:
        raise ValueError("the entropy of attention to a single token has no largest value")
    heads, queries = attention.q_BHNE.shape[1:3]
    # filled, not joined: small results kept between large blocks would leave holes that no block fits into
    share_HQ, largest_HQ = np.empty((heads, queries)), np.empty((heads, queries))
    for block, weights_HMN in weights_in_blocks(attention, sample):
        largest_HQ[:, block] = weights_HMN.amax(-1).double().cpu().numpy()
        share_HQ[:, block] = torch.special.entr(weights_HMN).sum(-1).double().cpu().numpy()
    share_HQ /= math.log(attention.num_tokens)
    return HeadEntropy(
        share_HQ.mean(1),
        share_HQ.min(1),
        share_HQ.max(1),
        share_HQ.std(1),
        largest_HQ.mean(1),
    )


def attended(attention: Attention, relevance_N: torch.Tensor, sample: int = 0) -> torch.Tensor:
    """Relevance of queries passed on to the keys they look at: rᵀ·mean_h(A), (N,)."""
    return _pass_on(attention, relevance_N, None, sample)


def attended_by_gradient(
    attention: Attention, relevance_N: torch.Tensor, grad_out_BHNE: torch.Tensor, sample: int = 0
) -> torch.Tensor:
    """rᵀ·mean_h(max(∇A ⊙ A, 0)), (N,).

    The gradient of a weight needs no N×N matrix either: with out = A·v, ∇A is ∇out·vᵀ, block by block.

    Args:
        grad_out_BHNE: gradient of the explained score by what left the heads.

    Source: Chefer et al., Generic Attention-model Explainability (2021), eq. 5.
    """
    return _pass_on(attention, relevance_N, grad_out_BHNE, sample)


def _pass_on(
    attention: Attention, relevance_N: torch.Tensor, grad_out_BHNE: torch.Tensor | None, sample: int
) -> torch.Tensor:
    v_HNE = attention.v_BHNE[sample].to(relevance_N.dtype)
    passed_N = torch.zeros_like(relevance_N)
    for block, weights_HMN in weights_in_blocks(attention, sample):
        if grad_out_BHNE is not None:
            grad_HME = grad_out_BHNE[sample, :, block].to(weights_HMN.dtype)
            weights_HMN = (weights_HMN * (grad_HME @ v_HNE.to(weights_HMN.dtype).transpose(1, 2))).clamp_min_(0)
        passed_N += relevance_N[block] @ weights_HMN.mean(0).to(relevance_N.dtype)
    return passed_N
