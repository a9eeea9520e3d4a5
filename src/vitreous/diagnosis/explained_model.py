"""What is explained: an encoder with whatever turns its tokens into logits, in float32.

Axes: B batch, C class (of logits) or channel (of input), D slice, H row, W column, N token.
"""

from typing import cast

import torch
from torch import nn

from vitreous.core.label_sets import Task
from vitreous.diagnosis.attentive_read_out import AttentiveReadOut
from vitreous.encoders.encoder import Backbone, Encoder, Size3, Tokens
from vitreous.features.pooling import Pooling, pool_tokens
from vitreous.recipes.exported_model import ExportedModel


class PooledHead(nn.Module):
    """Tokens pooled, then a head."""

    def __init__(self, head: nn.Module, pooling: Pooling, grid: Size3 | None) -> None:
        super().__init__()
        self.head = head
        self.pooling = pooling
        self.grid = grid

    def forward(self, tokens: Tokens) -> torch.Tensor:
        logits_BC: torch.Tensor = self.head(pool_tokens(tokens, self.pooling, self.grid))
        return logits_BC

    def start_N(self, tokens: Tokens) -> torch.Tensor | None:
        """Share of each token of the grid in the features of one sample, (N,); None where the class token is all.

        Mean and grid take every token alike; max by the share of the width in which a token is the largest.
        """
        num_tokens = tokens.tokens_BND.shape[1]
        device = tokens.tokens_BND.device
        if self.pooling == "cls":
            return None
        if self.pooling == "max":
            winners_D = tokens.tokens_BND[0].argmax(0)
            return torch.bincount(winners_D, minlength=num_tokens).float() / len(winners_D)
        return torch.full((num_tokens,), 1 / num_tokens, device=device)


class ExplainedModel(nn.Module):
    """Input to logits through tokens.

    Args:
        encoder: without adapters (merged), frozen, in eval mode.
        read_out: :class:`Tokens` → logits (B, C), with ``start_N`` as :class:`PooledHead` has it.
        classes: names of the logits.
        task: whether logits are of one choice (softmax), or of labels each for itself (logistic function).
    """

    def __init__(
        self,
        encoder: Encoder,
        read_out: "PooledHead | AttentiveReadOut",
        classes: tuple[str, ...],
        task: Task = "multi_class",
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.read_out = read_out
        self.classes = classes
        self.task = task

    def forward(self, x_BCDHW: torch.Tensor) -> torch.Tensor:
        """Logits (B, C) of inputs prepared and normalised by ``encoder.spec``."""
        logits_BC: torch.Tensor = self.read_out(self.encoder(x_BCDHW))
        return logits_BC

    @property
    def backbone(self) -> Backbone:
        """The encoder's network."""
        return cast(Backbone, self.encoder.backbone)

    def probs(self, logits_BC: torch.Tensor) -> torch.Tensor:
        """Probabilities (B, C): softmax of classes, logistic function of labels."""
        return logits_BC.softmax(1) if self.task == "multi_class" else logits_BC.sigmoid()

    def log_odds(self, logits_BC: torch.Tensor, target: int) -> torch.Tensor:
        """log(p / (1 − p)) of the target, (B,): what gradients are taken of.

        A logit of a softmax means nothing alone: all may rise alike without any probability changing.
        """
        if self.task == "multi_label":
            return logits_BC[:, target]
        others = [index for index in range(logits_BC.shape[1]) if index != target]
        return logits_BC[:, target] - logits_BC[:, others].logsumexp(1)


def explain_exported(exported: ExportedModel, classes: tuple[str, ...], task: Task) -> ExplainedModel:
    """A probe or a model trained on pixels, as `export` puts it together."""
    assert exported.pooling != "tokens"  # attentive heads have a read-out of their own
    read_out = PooledHead(exported.head, exported.pooling, exported.grid)
    return ExplainedModel(exported.encoder, read_out, classes, task).eval().requires_grad_(False)
