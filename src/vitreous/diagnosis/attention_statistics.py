"""How evenly an encoder's heads look, layer by layer, and what fine-tuning changed of it.

Statistics are taken while the forward pass runs, so that no layer's queries and keys outlive it.

Axes: B batch (1), L layer, H head, C channel, D slice.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vitreous.core.errors import UserError
from vitreous.diagnosis.attention_capture import Attention, AttentionCapture
from vitreous.diagnosis.attention_weights import HeadEntropy, head_entropy
from vitreous.encoders.encoder import Encoder
from vitreous.encoders.frame_by_frame import FrameByFrame


@dataclass(frozen=True)
class SampleAttention:
    """Attention of one sample: entropies as shares of log N.

    Args:
        layers: of each layer, its heads.
        num_tokens: N.
        mean, lowest, highest, spread: over all layers and heads of their mean entropies.
        largest_weight: mean over layers, heads and queries of a query's largest weight.
    """

    layers: tuple[HeadEntropy, ...]
    num_tokens: int
    mean: float
    lowest: float
    highest: float
    spread: float
    largest_weight: float


def attention_of(encoder: Encoder, x_BCDHW: torch.Tensor) -> SampleAttention:
    """Entropy of every layer and head for one input.

    Raises:
        UserError: the encoder has no attention over all its tokens.
    """
    layers: list[HeadEntropy] = []
    sizes: set[int] = set()
    num_frames = encoder.grid[0] if isinstance(encoder.backbone, FrameByFrame) else 1

    def read(attention: Attention) -> None:
        if attention.q_BHNE.shape[0] != num_frames or attention.q_BHNE.shape[2] != attention.num_tokens:
            raise UserError(no_attention(encoder))
        sizes.add(attention.num_tokens)
        layers.append(_over_frames([head_entropy(attention, frame) for frame in range(num_frames)]))

    with torch.no_grad(), AttentionCapture(read):
        encoder(x_BCDHW)
    if len(sizes) != 1:
        raise UserError(no_attention(encoder))
    means = np.concatenate([layer.mean_H for layer in layers])
    return SampleAttention(
        tuple(layers),
        sizes.pop(),
        float(means.mean()),
        float(means.min()),
        float(means.max()),
        float(means.std()),
        float(np.mean(np.concatenate([layer.largest_weight_H for layer in layers]))),
    )


def mean_entropies(samples: Sequence[SampleAttention]) -> list[list[float]]:
    """Mean over samples of each layer's heads' entropies, one list a layer."""
    return [
        np.mean([sample.layers[layer].mean_H for sample in samples], axis=0).tolist()
        for layer in range(len(samples[0].layers))
    ]


def _over_frames(frames: Sequence[HeadEntropy]) -> HeadEntropy:
    """Of frames encoded one by one, as if their queries were those of one attention."""
    means = np.mean([frame.mean_H for frame in frames], axis=0)
    squares = np.mean([frame.spread_H**2 + frame.mean_H**2 for frame in frames], axis=0)
    return HeadEntropy(
        means,
        np.min([frame.lowest_H for frame in frames], axis=0),
        np.max([frame.highest_H for frame in frames], axis=0),
        np.sqrt(np.maximum(squares - means**2, 0.0)),
        np.mean([frame.largest_weight_H for frame in frames], axis=0),
    )


def no_attention(encoder: Encoder) -> str:
    """Why `--attention` cannot be had of an encoder."""
    return (
        f"--attention: this {encoder.family} encoder has no attention over all its tokens (it is convolutional, or "
        "looks inside windows). Leave the option out."
    )
