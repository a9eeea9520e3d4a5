"""Where a model looks, and what of it speaks for a class: one value for each token of the grid.

| method | what | speaks of the class | needs |
|---|---|---|---|
| `attention_pooling` | where an attentive probe's query looks, mean over heads | with a query per label | that probe |
| `attention` | the last block's attention, mean over heads | no | attention over all tokens |
| `rollout` | attention followed back through all blocks, half of each the residual | no | the same |
| `grad_attention` | the same way back, weights by what raising them does for the class | yes | the same |
| `token_gradients` | gradient × token at the last block's input, summed over the width, where positive | yes | tokens |
| `gradcam` | tokens (of a CNN: its last map) weighed by their mean gradient, where positive | yes | tokens or map |

A transformer is walked back block by block: a block is computed anew with gradients, so that memory holds one block
and the inputs of the others; attention is gone through in blocks of queries. All is exact.

Axes: B batch (1), H head, N token of the grid, F frame that is encoded by itself (1 elsewhere), P all its tokens
(prefix first), D width, T·H·W the token grid.
Sources: Abnar and Zuidema, Quantifying Attention Flow (2020): rollout; Chefer et al., Generic Attention-model
Explainability (2021): grad_attention; Selvaraju et al., Grad-CAM (2017); Draelos and Carin, HiResCAM (2020):
gradient × activation.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from vitreous.core.errors import UserError
from vitreous.diagnosis.attention_capture import Attention, AttentionCapture
from vitreous.diagnosis.attention_weights import attended, attended_by_gradient
from vitreous.diagnosis.attentive_read_out import AttentiveReadOut
from vitreous.diagnosis.explained_model import ExplainedModel
from vitreous.encoders.encoder import Tokens

Method = Literal["attention_pooling", "attention", "rollout", "grad_attention", "token_gradients", "gradcam"]
METHODS: tuple[Method, ...] = (
    "attention_pooling", "attention", "rollout", "grad_attention", "token_gradients", "gradcam",
)  # fmt: skip
ATTENTION_METHODS: frozenset[Method] = frozenset({"attention", "rollout", "grad_attention"})
CLASS_FREE: frozenset[Method] = frozenset({"attention", "rollout"})  # the same for every class

_MOST_EXTRA = 16  # tokens before those of the grid: a class token and registers
T = TypeVar("T")
Map = npt.NDArray[np.float32]


def fitting_methods(model: ExplainedModel, x_BCDHW: torch.Tensor) -> tuple[Method, ...]:
    """The methods that this model allows, found by one pass over an input of its size."""
    of_read_out: tuple[Method, ...] = ("attention_pooling",) if isinstance(model.read_out, AttentiveReadOut) else ()
    with torch.no_grad():
        hidden = _inputs_of_blocks(model, x_BCDHW[:1])
        if not _is_on_tokens(model, hidden[-1]):
            return (*of_read_out, "gradcam")
        captured: list[Attention] = []
        with AttentionCapture(captured.append):
            model.backbone.run_blocks(hidden[-1], model.backbone.num_blocks - 1, model.backbone.num_blocks)
    if not _is_over_all_tokens(captured, hidden[-1]):
        return (*of_read_out, "token_gradients", "gradcam")
    return (*of_read_out, "attention", "rollout", "grad_attention", "token_gradients", "gradcam")


def check_methods(asked: Sequence[Method], fitting: Sequence[Method], family: str) -> None:
    """Raise UserError where a method does not fit the model."""
    if wrong := [method for method in asked if method not in fitting]:
        reasons = []
        if "attention_pooling" in wrong:
            reasons.append("its head attends to nothing")
        if set(wrong) & ATTENTION_METHODS:
            reasons.append("its encoder's attention is over windows, or there is none")
        if "token_gradients" in wrong:
            reasons.append("its encoder has no tokens")
        raise UserError(
            f"--method: {', '.join(wrong)} cannot be had of this model with a {family} encoder: {'; '.join(reasons)}. "
            f"It allows {', '.join(fitting)}."
        )


def explain(model: ExplainedModel, x_BCDHW: torch.Tensor, target: int, methods: Sequence[Method]) -> dict[Method, Map]:
    """Maps (T, H, W) of one input, float32, never negative.

    Args:
        x_BCDHW: one input, prepared and normalised.
        target: index of the class.
        methods: of :func:`fitting_methods`.
    """
    if len(x_BCDHW) != 1:
        raise ValueError(f"one input at a time; got {len(x_BCDHW)}")
    found: dict[Method, torch.Tensor] = {}
    if isinstance(model.read_out, AttentiveReadOut) and "attention_pooling" in methods:
        with torch.no_grad():
            found["attention_pooling"] = model.read_out.pooling_map(model.encoder(x_BCDHW), target)
    if others := [method for method in methods if method != "attention_pooling"]:
        with torch.no_grad():
            hidden = _inputs_of_blocks(model, x_BCDHW)
        if _is_on_tokens(model, hidden[-1]):
            found |= _Walk(model, hidden, target).run(others)
        else:
            found["gradcam"] = _grad_cam_at_end(model, x_BCDHW, target)
    return {method: _shaped(found[method], model) for method in methods}


def _inputs_of_blocks(model: ExplainedModel, x_BCDHW: torch.Tensor) -> list[torch.Tensor]:
    """What enters each block."""
    model.encoder.check_input(x_BCDHW)
    hidden = [model.backbone.embed(x_BCDHW)]
    for index in range(model.backbone.num_blocks - 1):
        hidden.append(model.backbone.run_blocks(hidden[-1], index, index + 1))
    return hidden


def _is_on_tokens(model: ExplainedModel, hidden: torch.Tensor) -> bool:
    """Whether what enters the last block is tokens, the prefix first, then those of the grid (or of each frame)."""
    if hidden.ndim not in (3, 4) or hidden.shape[-1] != model.encoder.width:
        return False
    of_frame = math.prod(model.encoder.grid) // _num_frames(hidden)
    return model.backbone.num_prefix_tokens <= hidden.shape[-2] - of_frame < _MOST_EXTRA


def _num_frames(hidden: torch.Tensor) -> int:
    """Frames that an image encoder sees one by one, each with tokens of its own; else 1."""
    return hidden.shape[1] if hidden.ndim == 4 else 1


def _is_over_all_tokens(captured: Sequence[Attention], hidden: torch.Tensor) -> bool:
    return (
        len(captured) == 1
        and captured[0].q_BHNE.shape[0] == _num_frames(hidden)
        and captured[0].q_BHNE.shape[2] == captured[0].num_tokens == hidden.shape[-2]
    )


def _grad_cam_at_end(model: ExplainedModel, x_BCDHW: torch.Tensor, target: int) -> torch.Tensor:
    with torch.no_grad():
        tokens = model.encoder(x_BCDHW)
    tokens_BND = tokens.tokens_BND.detach().requires_grad_()
    log_odds = model.log_odds(model.read_out(Tokens(tokens_BND, tokens.grid, tokens.cls_BD)), target)
    (grad_BND,) = torch.autograd.grad(log_odds.sum(), tokens_BND)
    return grad_cam(tokens_BND.detach()[0], grad_BND[0])


def grad_cam(tokens_ND: torch.Tensor, grad_ND: torch.Tensor) -> torch.Tensor:
    """max(Σ_d mean_n(gradient) · token, 0), (N,). Source: Selvaraju et al. (2017), eqs. 1 and 2."""
    return (tokens_ND @ grad_ND.mean(0)).clamp_min(0)


def token_gradients(tokens_ND: torch.Tensor, grad_ND: torch.Tensor) -> torch.Tensor:
    """max(Σ_d gradient · token, 0), (N,). Source: Draelos and Carin (2020)."""
    return (tokens_ND * grad_ND).sum(1).clamp_min(0)


def _shaped(map_N: torch.Tensor, model: ExplainedModel) -> Map:
    values: Map = map_N.reshape(model.encoder.grid).float().cpu().numpy()
    return values


@dataclass(frozen=True)
class _Step:
    """One block on the way back; gradients are of the target's log-odds, and None where none are wanted."""

    hidden_FPD: torch.Tensor
    attention: Attention | None
    grad_hidden_FPD: torch.Tensor | None
    grad_out_FHNE: torch.Tensor | None


class _Walk:
    """From the logits back through the blocks of a transformer, whose tokens of F frames do not see each other."""

    def __init__(self, model: ExplainedModel, hidden: list[torch.Tensor], target: int) -> None:
        self.model = model
        self.hidden = hidden
        self.target = target
        self.num_frames = _num_frames(hidden[-1])
        self.num_extra = hidden[-1].shape[-2] - math.prod(model.encoder.grid) // self.num_frames

    def run(self, methods: Sequence[Method]) -> dict[Method, torch.Tensor]:
        """One value for each token of the grid, by method."""
        start_FP = self._start()
        through: dict[Method, torch.Tensor] = {method: start_FP for method in methods if method in ATTENTION_METHODS}
        found: dict[Method, torch.Tensor] = {}
        needs_all = bool(set(through) - {"attention"})
        needs_gradients = bool(set(methods) - CLASS_FREE)
        for number, step in enumerate(self._steps(with_gradients=needs_gradients)):
            if number == 0:
                found |= self._at_last_block(step, methods)
                if "attention" in through:
                    found["attention"] = self._of_grid(self._attended(step, through.pop("attention")))
            if not needs_all:
                break
            if "rollout" in through:
                relevance_FP = through["rollout"]
                through["rollout"] = 0.5 * relevance_FP + 0.5 * self._attended(step, relevance_FP)
            if "grad_attention" in through:
                relevance_FP = through["grad_attention"]
                through["grad_attention"] = relevance_FP + self._attended(step, relevance_FP, by_gradient=True)
        for method, relevance_FP in through.items():
            # the residual path alone carries the start to itself: the same for every input
            kept = 0.5 ** len(self.hidden) if method == "rollout" else 1.0
            found[method] = self._of_grid((relevance_FP - kept * start_FP).clamp_min(0))
        return found

    def _attended(self, step: _Step, relevance_FP: torch.Tensor, *, by_gradient: bool = False) -> torch.Tensor:
        attention = _present(step.attention)
        if by_gradient:
            grad_FHNE = _present(step.grad_out_FHNE)
            passed = [attended_by_gradient(attention, row_P, grad_FHNE, f) for f, row_P in enumerate(relevance_FP)]
        else:
            passed = [attended(attention, row_P, f) for f, row_P in enumerate(relevance_FP)]
        return torch.stack(passed)

    def _start(self) -> torch.Tensor:
        """Share of each token in what the read-out takes, (F, P)."""
        model = self.model
        with torch.no_grad():
            last = model.backbone.run_blocks(self.hidden[-1], len(self.hidden) - 1, len(self.hidden))
            start_N = model.read_out.start_N(model.encoder.split(model.backbone.finish(last)))
        shape = (self.num_frames, self.hidden[-1].shape[-2])
        start_FP = torch.zeros(shape, dtype=torch.float32, device=last.device)
        if start_N is None:
            start_FP[:, 0] = 1.0 / self.num_frames
        else:
            start_FP[:, self.num_extra :] = start_N.float().view(self.num_frames, -1)
        return start_FP

    def _steps(self, *, with_gradients: bool) -> Iterator[_Step]:
        gradient: torch.Tensor | None = None
        for index in reversed(range(len(self.hidden))):
            captured: list[Attention] = []
            if not with_gradients:
                with torch.no_grad(), AttentionCapture(captured.append):
                    self.model.backbone.run_blocks(self.hidden[index], index, index + 1)
                yield _Step(_frames(self.hidden[index]), captured[0] if captured else None, None, None)
                continue
            hidden = self.hidden[index].detach().requires_grad_()
            with torch.enable_grad(), AttentionCapture(captured.append):
                left = self.model.backbone.run_blocks(hidden, index, index + 1)
                score: torch.Tensor = self._log_odds(left) if gradient is None else (left * gradient).sum()
            # after the block's own attention may come that of a read-out
            gradient, *of_heads = torch.autograd.grad(score, [hidden, *(one.out_BHNE for one in captured[:1])])
            yield _Step(
                _frames(hidden.detach()),
                _detached(captured[0]) if captured else None,
                _frames(gradient),
                of_heads[0] if of_heads else None,
            )

    def _log_odds(self, left: torch.Tensor) -> torch.Tensor:
        model = self.model
        tokens = model.encoder.split(model.backbone.finish(left))
        return model.log_odds(model.read_out(tokens), self.target).sum()

    def _at_last_block(self, step: _Step, methods: Sequence[Method]) -> dict[Method, torch.Tensor]:
        rules: dict[Method, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
            "token_gradients": token_gradients,
            "gradcam": grad_cam,
        }
        return {
            method: rules[method](
                step.hidden_FPD[:, self.num_extra :].flatten(0, 1),
                _present(step.grad_hidden_FPD)[:, self.num_extra :].flatten(0, 1),
            )
            for method in methods
            if method in rules
        }

    def _of_grid(self, relevance_FP: torch.Tensor) -> torch.Tensor:
        return relevance_FP[:, self.num_extra :].flatten()


def _frames(hidden: torch.Tensor) -> torch.Tensor:
    """(F, P, D) of one sample."""
    return hidden[0] if hidden.ndim == 4 else hidden


def _detached(attention: Attention) -> Attention:
    return Attention(
        attention.q_BHNE.detach(),
        attention.k_BHNE.detach(),
        attention.v_BHNE.detach(),
        attention.out_BHNE.detach(),
        None if attention.bias is None else attention.bias.detach(),
        attention.scale,
    )


def _present(value: T | None) -> T:
    if value is None:
        raise ValueError("this block runs no attention that can be watched; ask for the methods that fit the model")
    return value
