"""Attentive probes on kept tokens: a grid of settings and seeds, trained together on each loaded batch.

Everything but the head is as in :mod:`vitreous.recipes.probe_grid`. The order of the rows, and which view of a row an
epoch sees, come from streams without a seed, (0, "attentive", "order" or "view", epoch): all members then learn from
one loaded batch, and a seed names initial weights and dropout. A member is as if alone, whatever its company.

Axes: N row, B row of a batch, T token, D width, K member, Q query, E width of the attention, C class or label.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vitreous.core.errors import UserError
from vitreous.core.progress import Advance, no_progress
from vitreous.core.streams import numpy_stream
from vitreous.core.threads import map_ahead
from vitreous.core.undefined import Undefined
from vitreous.features.token_store import TokenRows
from vitreous.recipes.attentive_heads import (
    AttentionShape,
    AttentiveHeads,
    attention_maps,
    attentive_logits,
    read_shape,
)
from vitreous.recipes.balanced_sampling import draw_balanced_order
from vitreous.recipes.batches import batch_bounds, draw_dropout
from vitreous.recipes.feature_set import FeatureSet, check_feature_sets, class_weights_of
from vitreous.recipes.grid_program import GridProgram, Heads, Outcome, TrainingRows, build_rows
from vitreous.recipes.patient_scores import PatientScorer
from vitreous.recipes.probe_grid import check_any_converged, check_members
from vitreous.recipes.probe_member import ProbeMember, ProbeSettings

FloatArray = npt.NDArray[np.float64]
Tensors = Mapping[str, npt.NDArray[Any]]

_ORDER_SEED = 0  # of the streams that all members share
_COPIES_OF_PARAMETERS = 6  # weight, weight / learning rate, gradient, two moments, best epoch
_BLOCK_ACTIVATIONS = 24  # of a self-attention block while it is gone through backward, in widths of a token


@dataclass(frozen=True)
class FittedAttentive:
    """One trained head, with the weights of its best epoch; fields as of
    :class:`~vitreous.recipes.probe_member.FittedProbe`."""

    member: ProbeMember
    best_epoch: int
    val_score: float | Undefined
    history: list[dict[str, float]] = field(repr=False)
    tensors: dict[str, npt.NDArray[Any]] = field(repr=False)
    diverged_epoch: int | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What is chosen between: the member without its seed."""
        names = ("learning_rate", "weight_decay", "dropout", "class_weights")
        return {name: getattr(self.member, name) for name in names}

    @property
    def seed(self) -> int:
        """The member's seed."""
        return self.member.seed

    def predict_logits(self, rows: TokenRows) -> FloatArray:
        """Logits of shape (N, C).

        Raises:
            UserError: the member diverged, so there is nothing to predict with.
        """
        if self.diverged_epoch is not None:
            raise UserError(f"{self.member} diverged in epoch {self.diverged_epoch}; lower its learning_rate.")
        return token_logits(self.tensors, rows)


def fit_attentive_grid(
    train: FeatureSet,
    val: FeatureSet,
    members: Sequence[ProbeMember],
    shape: AttentionShape,
    settings: ProbeSettings,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    progress: Advance = no_progress,
) -> list[FittedAttentive]:
    """Train all members; results in their order.

    Args:
        train, val: with `tokens`; their features take no part.
        members: without hidden layers of their own.
        shape: of all of them; `outputs` is the number of classes or labels.
        progress: told member-epochs; the total is members × epochs.
    Raises:
        SampleError: see :func:`vitreous.recipes.feature_set.check_feature_sets`.
        ValueError: members that are missing, repeated or do not fit, or rows without tokens.
        UserError: every member diverged.
    """
    check_feature_sets(train, val, shape.outputs)
    check_members(members, settings)
    num_tokens, width = tokens_of(train).shape
    if width != shape.width:
        raise ValueError(f"tokens have the width {width}; the heads take {shape.width}.")
    policies = list(dict.fromkeys(member.class_weights for member in members))
    class_weight_QC = np.stack([class_weights_of(train, policy, shape.outputs) for policy in policies])
    place, scorer = torch.device(device), PatientScorer(val, shape.outputs)

    def rows_of(rows: FeatureSet, sampler: Any) -> TrainingRows:
        nothing_ND = np.zeros((len(rows.y_N), 0))
        return build_rows(rows, nothing_ND, class_weight_QC, dtype=dtype, device=place, sampler=sampler)

    train_rows, val_rows = rows_of(train, settings.sampler), rows_of(val, "natural")
    outcomes: dict[int, Outcome] = {}
    for part in split_members(len(members), settings, shape, num_tokens, dtype.itemsize):
        together = [members[position] for position in part]
        policy_idx = [policies.index(member.class_weights) for member in together]
        program = AttentiveProgram(
            train_rows, val_rows, scorer, together, policy_idx, settings, shape, tokens_of(train), tokens_of(val)
        )
        outcomes |= dict(zip(part, program.run(progress), strict=True))
    fitted = []
    for position, member in enumerate(members):
        outcome = outcomes[position]
        one = FittedAttentive(
            member, outcome.best_epoch, Undefined(f"training diverged in epoch {outcome.diverged_epoch}"),
            outcome.history, {}, outcome.diverged_epoch,
        )  # fmt: skip
        if outcome.diverged_epoch is None:
            tensors = outcome.tensors | {"attentive.heads": np.array([shape.heads], dtype=np.int64)}
            score = scorer.score_logits(token_logits(tensors, tokens_of(val)))
            one = replace(one, tensors=tensors, val_score=score)
        fitted.append(one)
    check_any_converged(fitted)
    return fitted


class AttentiveProgram(GridProgram):
    """Trains members of one architecture on tokens that are read ahead of each step."""

    def __init__(
        self,
        train: TrainingRows,
        val: TrainingRows,
        scorer: PatientScorer,
        members: Sequence[ProbeMember],
        policy_idx: Sequence[int],
        settings: ProbeSettings,
        shape: AttentionShape,
        train_tokens: TokenRows,
        val_tokens: TokenRows,
    ) -> None:
        self._shape, self._train_tokens, self._val_tokens = shape, train_tokens, val_tokens
        self._ahead: Iterator[Tensor] = iter(())
        super().__init__(train, val, scorer, members, policy_idx, settings, num_classes=shape.outputs)

    def _make_heads(self) -> Heads:
        seeds, dtype = [member.seed for member in self._members], self._train.x_ND.dtype
        self._attentive = AttentiveHeads(self._shape, seeds, dtype=dtype, device=self._device)
        return self._attentive

    def _order(self, seed: int, epoch: int) -> npt.NDArray[np.int64]:
        """The same for every seed."""
        if self._settings.sampler == "balanced":
            return draw_balanced_order(self._train.labels, self._num_classes, _ORDER_SEED, epoch)
        order_N: npt.NDArray[np.int64] = numpy_stream(_ORDER_SEED, "attentive", "order", epoch).permutation(
            len(self._train_tokens)
        )
        return order_N

    def _begin_epoch(self, epoch: int, order_SN: Tensor) -> None:
        order_N, views = order_SN[0].cpu().numpy(), self._train_tokens.num_views
        view_N = None
        if views:
            view_N = numpy_stream(_ORDER_SEED, "attentive", "view", epoch).integers(1, views + 1, size=len(order_N))

        def read(bounds: tuple[int, int]) -> Tensor:
            begin, end = bounds
            return self._train_tokens.read(order_N[begin:end], None if view_N is None else view_N[begin:end])

        self._ahead = map_ahead(read, self._bounds, workers=1)

    def _train_logits(self, epoch: int, step: int, rows_SB: Tensor) -> Tensor:
        tokens_BTD = self._placed(next(self._ahead))
        if step == len(self._bounds) - 1:
            # run to its end here: a reader left to the garbage collector may stop its thread while another starts
            next(self._ahead, None)
        return self._attentive.logits(tokens_BTD, keep_KBQE=self._keep(epoch, step, len(tokens_BTD)))

    def _keep(self, epoch: int, step: int, rows: int) -> Tensor | None:
        """What dropout leaves of the pooled vectors."""
        if not bool((self._dropout_K > 0).any()):
            return None
        queries, width = self._shape.queries, self._shape.hidden
        drawn = [draw_dropout(seed, epoch, step, 0, (rows, queries * width)) for seed in self._seeds]
        uniform_SBJ = torch.from_numpy(np.stack(drawn)).to(self._device).double()
        drop_K11 = self._dropout_K[:, None, None]
        keep_KBJ = (uniform_SBJ[self._seed_K] >= drop_K11) / (1.0 - drop_K11)
        return keep_KBJ.to(self._train.x_ND.dtype).view(-1, rows, queries, width)

    def _val_logits(self) -> Iterator[tuple[int, Tensor]]:
        bounds = batch_bounds(len(self._val_tokens), self._settings.batch_size)
        read = map_ahead(lambda part: self._val_tokens.read(np.arange(*part)), bounds, workers=1)
        for (begin, _), tokens_BTD in zip(bounds, read, strict=True):
            yield begin, self._attentive.logits(self._placed(tokens_BTD))

    def _placed(self, tokens_BTD: Tensor) -> Tensor:
        return tokens_BTD.to(device=self._device, dtype=self._train.x_ND.dtype)


def tokens_of(rows: FeatureSet) -> TokenRows:
    """The tokens of a set that has some.

    Raises:
        ValueError: it has none.
    """
    if rows.tokens is None:
        raise ValueError("an attentive probe reads tokens; these rows have none.")
    return rows.tokens


def token_logits(tensors: Tensors, rows: TokenRows) -> FloatArray:
    """Logits (N, C) of a kept head; each row by itself, so that its company changes no bit."""
    parts = [logits_of_tokens(tensors, tokens_1TD) for tokens_1TD in _each(rows)]
    return np.concatenate(parts) if parts else np.zeros((0, read_shape(tensors).outputs))


def logits_of_tokens(tensors: Tensors, tokens_BTD: Tensor) -> FloatArray:
    """Logits (B, C) of a kept head, in the number format of its weights."""
    shape, parameters = _kept(tensors)
    with torch.inference_mode():
        tokens_BTD = tokens_BTD.to(next(iter(parameters.values())).dtype)
        logits_BC: FloatArray = attentive_logits(shape, parameters, tokens_BTD)[0].T.double().numpy()
    return logits_BC


def token_attention(tensors: Tensors, rows: TokenRows) -> Iterator[npt.NDArray[np.float32]]:
    """For each row how much a kept head looks at each token, (Q, H, T) for queries and heads; sums to 1 over T.

    Tokens are in the order of the encoder's grid (T, H, W), or of the cells of ``features.grid``.
    """
    shape, parameters = _kept(tensors)
    with torch.inference_mode():
        for tokens_1TD in _each(rows):
            tokens_1TD = tokens_1TD.to(next(iter(parameters.values())).dtype)
            yield attention_maps(shape, parameters, tokens_1TD)[0, 0].float().numpy()


def _each(rows: TokenRows) -> Iterator[Tensor]:
    return map_ahead(lambda row: rows.read(np.array([row])), range(len(rows)), workers=1)


def _kept(tensors: Tensors) -> tuple[AttentionShape, dict[str, Tensor]]:
    shape = read_shape(tensors)
    return shape, {name: torch.from_numpy(np.array(tensors[name]))[None] for name in shape.parameter_shapes()}


def split_members(
    num_members: int, settings: ProbeSettings, shape: AttentionShape, num_tokens: int, bytes_per_number: int = 4
) -> list[list[int]]:
    """Positions of the members trained together, within `settings.max_member_bytes`, from the arguments alone."""
    most = max(1, settings.max_member_bytes // member_bytes(settings, shape, num_tokens, bytes_per_number))
    num_parts = -(-num_members // most)
    even = -(-num_members // num_parts)
    return [list(range(start, min(start + even, num_members))) for start in range(0, num_members, even)]


def member_bytes(settings: ProbeSettings, shape: AttentionShape, num_tokens: int, bytes_per_number: int = 4) -> int:
    """What one member adds to the memory of training: parameters, and activations of a batch."""
    rows, paths = settings.batch_size or 1, shape.queries * shape.heads
    if shape.blocks == 1:
        # scores, attention and their gradients; what each head has seen, before and after the norm
        activations = 4 * rows * num_tokens * paths + 6 * rows * paths * shape.width
    else:
        # the input of every block, one block in full, and keys and values of the last
        activations = (shape.blocks + _BLOCK_ACTIVATIONS + 6) * rows * num_tokens * shape.width
        activations += 4 * rows * num_tokens * paths
    return bytes_per_number * (_COPIES_OF_PARAMETERS * shape.num_parameters + activations)


def estimate_attentive_flops(shape: AttentionShape, num_tokens: int, num_train: int, num_val: int, epochs: int) -> int:
    """Operations of one member's matrix products, if it does not stop early."""
    width = shape.width
    if shape.blocks == 1:
        row = 4 * num_tokens * width * shape.queries * shape.heads
    else:
        row = (shape.blocks - 1) * (24 * num_tokens * width**2 + 4 * num_tokens**2 * width) + 4 * num_tokens * width**2
    return epochs * row * (3 * num_train + num_val)
