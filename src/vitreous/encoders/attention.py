"""Self-attention over thousands of tokens, exact, without ever holding all scores.

Axes: B batch, H head, N token, E width of one head.

On CPU, `scaled_dot_product_attention` runs in bfloat16 at the speed of float32. Plain matrix products over blocks of
queries use the bfloat16 instructions, which pays where the processor has fast ones, and only one block of scores of one
head exists at a time.
"""

import math

import torch
from torch.nn import functional as F

from vitreous.core.processor import multiplies_bfloat16_faster

_QUERIES_PER_BLOCK = 256  # scores of a block stay in the last-level cache at some 10,000 tokens
_SAFE_EXPONENT = 100.0  # 2^100 times a million keys is still far from the largest bfloat16, 2^-100 from the smallest
_LOG2_E = math.log2(math.e)


def attend(q_BHNE: torch.Tensor, k_BHNE: torch.Tensor, v_BHNE: torch.Tensor) -> torch.Tensor:
    """softmax(q·kᵀ/√E)·v per head; bfloat16 without gradients goes by blocks of queries on CPUs that gain from it.

    Source: Vaswani et al. (2017), eq. 1.
    """
    needs_grad = torch.is_grad_enabled() and (q_BHNE.requires_grad or k_BHNE.requires_grad or v_BHNE.requires_grad)
    is_bf16_on_cpu = q_BHNE.device.type == "cpu" and q_BHNE.dtype == torch.bfloat16
    if is_bf16_on_cpu and not needs_grad and multiplies_bfloat16_faster():
        return attend_in_blocks(q_BHNE, k_BHNE, v_BHNE)
    out_BHNE: torch.Tensor = F.scaled_dot_product_attention(q_BHNE, k_BHNE, v_BHNE)
    return out_BHNE


def attend_in_blocks(q_BHNE: torch.Tensor, k_BHNE: torch.Tensor, v_BHNE: torch.Tensor) -> torch.Tensor:
    """:func:`attend` by blocks of queries; no gradients.

    The mean key is subtracted from every key: a row's scores all shift alike, which softmax does not see, and
    smaller scores lose less to bfloat16. Where norms show that no score can over- or underflow, 2^score is summed
    as it stands, which spares the search for each row's maximum; elsewhere the maximum is subtracted first.
    """
    out_BHNE = torch.empty(q_BHNE.shape, dtype=q_BHNE.dtype, device=q_BHNE.device)
    num_queries, num_keys = q_BHNE.shape[2], k_BHNE.shape[2]
    scores_MN = q_BHNE.new_empty(min(_QUERIES_PER_BLOCK, num_queries), num_keys)
    for q_HNE, k_HNE, v_HNE, out_HNE in zip(q_BHNE, k_BHNE, v_BHNE, out_BHNE):
        for q_NE, k_NE, v_NE, out_NE in zip(q_HNE, k_HNE, v_HNE, out_HNE):
            _attend_head(q_NE.contiguous(), k_NE.contiguous(), v_NE.contiguous(), out_NE, scores_MN)
    return out_BHNE


def _attend_head(
    q_NE: torch.Tensor, k_NE: torch.Tensor, v_NE: torch.Tensor, out_NE: torch.Tensor, scores_MN: torch.Tensor
) -> None:
    centred_NE = (k_NE.float() - k_NE.mean(0, dtype=torch.float32)) * q_NE.shape[-1] ** -0.5
    largest = float(_largest_norm(q_NE) * _largest_norm(centred_NE)) * _LOG2_E  # bounds every |score|
    is_safe = largest < _SAFE_EXPONENT
    # scaled before they are rounded, so that no score is rounded twice
    keys_NE = (centred_NE * _LOG2_E if is_safe else centred_NE).to(k_NE.dtype)
    for start in range(0, len(q_NE), _QUERIES_PER_BLOCK):
        block_ME = q_NE[start : start + _QUERIES_PER_BLOCK]
        weights_MN = scores_MN[: len(block_ME)]
        out_ME = out_NE[start : start + _QUERIES_PER_BLOCK]
        torch.mm(block_ME, keys_NE.t(), out=weights_MN)
        if is_safe:
            torch.exp2(weights_MN, out=weights_MN)
            out_ME.copy_((weights_MN @ v_NE) / _row_sums(weights_MN)[:, None])
        else:
            torch.softmax(weights_MN, dim=-1, out=weights_MN)
            torch.mm(weights_MN, v_NE, out=out_ME)


def _largest_norm(rows_NE: torch.Tensor) -> torch.Tensor:
    largest: torch.Tensor = torch.linalg.vector_norm(rows_NE, dim=1, dtype=torch.float32).amax()
    return largest


def _row_sums(weights_MN: torch.Tensor) -> torch.Tensor:
    """float32 sums; bfloat16 sums of long pieces first, whose rounding averages out and which are twice as fast."""
    piece = math.gcd(weights_MN.shape[1], 1024)
    if weights_MN.dtype != torch.bfloat16 or piece < 256:
        return weights_MN.sum(-1, dtype=torch.float32)
    return weights_MN.view(len(weights_MN), -1, piece).sum(-1).sum(-1, dtype=torch.float32)
