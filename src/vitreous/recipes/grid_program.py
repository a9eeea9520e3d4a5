"""The training of K heads of one architecture as one batched program.

Axes: K active member, A member of the program (active or stopped), S seed, Q class-weight policy, C class or label,
N row, B row of a batch, D feature, H unit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vitreous.core.label_sets import memberships
from vitreous.core.progress import Advance
from vitreous.recipes.balanced_sampling import draw_balanced_order
from vitreous.recipes.batches import batch_bounds, draw_dropout, draw_order
from vitreous.recipes.early_stopping import EarlyStopping
from vitreous.recipes.feature_set import FeatureSet
from vitreous.recipes.grid_losses import class_losses, label_set_losses
from vitreous.recipes.patient_scores import PatientScorer
from vitreous.recipes.probe_cost import VAL_ROWS
from vitreous.recipes.probe_member import ProbeMember, ProbeSettings, Sampler
from vitreous.recipes.schedule import cosine_with_warmup
from vitreous.recipes.stacked_adamw import StackedAdamW
from vitreous.recipes.stacked_heads import StackedHeads


@dataclass(frozen=True)
class TrainingRows:
    """Rows of one split as tensors.

    Args:
        x_ND: standardised features.
        y_N: class indices, or numbers of sets of labels.
        weight_QN: per policy of class weights, class weight × 1 / (volumes of the patient); without the latter where
            rows are drawn balanced, which draws patients as often as one another.
        share_NC: what each row counts for in the recall of its class, columns sum to 1; of labels, for its side of the
            label, columns sum to 2.
        targets_NC: of labels, 0 or 1; None of classes.
        positive_QC: of labels, per policy the weight of rows with the label.
        labels: the rows without their features, for the balanced sampler.
    """

    x_ND: Tensor
    y_N: Tensor
    weight_QN: Tensor
    share_NC: Tensor
    targets_NC: Tensor | None
    positive_QC: Tensor
    labels: FeatureSet


class Heads(Protocol):
    """Members of one architecture, their tensors stacked along the first axis."""

    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]

    def select(self, member_idx: Tensor) -> None:
        """Keep only these members, in this order."""


@dataclass
class Outcome:
    """What one member came to."""

    best_epoch: int = 0
    diverged_epoch: int | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    tensors: dict[str, npt.NDArray[Any]] = field(default_factory=dict)


def build_rows(
    rows: FeatureSet,
    x_ND: npt.NDArray[np.float64],
    class_weight_QC: npt.NDArray[np.float64],
    *,
    dtype: torch.dtype,
    device: torch.device,
    sampler: Sampler = "natural",
) -> TrainingRows:
    """Tensors of one split.

    Args:
        x_ND: the standardised features of `rows`.
        class_weight_QC: one row per policy of class weights; of labels, the weights of rows with each.
    """
    num_classes = class_weight_QC.shape[1]
    patient_weight_N = rows.weight_N if sampler == "natural" else np.ones(len(rows.y_N))
    has_NC = memberships(rows.y_N, num_classes, rows.task)
    share_NC = has_NC * rows.weight_N[:, None]
    if rows.task == "multi_class":
        weight_QN = class_weight_QC[:, rows.y_N] * patient_weight_N
        share_NC /= share_NC.sum(axis=0)
    else:
        weight_QN = np.tile(patient_weight_N, (len(class_weight_QC), 1))
        rest_NC = ~has_NC * rows.weight_N[:, None]
        share_NC = share_NC / share_NC.sum(axis=0) + rest_NC / rest_NC.sum(axis=0)

    def tensor(values: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(values).to(device=device, dtype=dtype)

    y_N = torch.from_numpy(np.asarray(rows.y_N, dtype=np.int64)).to(device)
    targets_NC = tensor(has_NC) if rows.task == "multi_label" else None
    labels = replace(rows, features_ND=rows.features_ND[:, :0])
    return TrainingRows(
        tensor(x_ND), y_N, tensor(weight_QN), tensor(share_NC), targets_NC, tensor(class_weight_QC), labels
    )


def group_key(member: ProbeMember, *, is_full_batch: bool) -> tuple[Any, ...]:
    """Members with an equal key get the same input at every step, so that one matrix product serves them."""
    if member.hidden:
        return () if is_full_batch else (member.seed,)
    return (() if is_full_batch and member.dropout == 0 else (member.seed,), member.dropout)


class GridProgram:
    """Trains members of one architecture; each is as if it were alone.

    Args:
        train, val: rows with standardised features; `weight_QN` has a row per distinct policy of the members.
        scorer: judges val per patient.
        members: of one architecture, in the order of their :func:`group_key`.
        policy_idx: per member, its row in `weight_QN`.
    """

    def __init__(
        self,
        train: TrainingRows,
        val: TrainingRows,
        scorer: PatientScorer,
        members: Sequence[ProbeMember],
        policy_idx: Sequence[int],
        settings: ProbeSettings,
        *,
        num_classes: int,
    ) -> None:
        self._train, self._val, self._scorer, self._settings = train, val, scorer, settings
        self._members, self._policy_A = list(members), torch.tensor(policy_idx, device=train.x_ND.device)
        self._device = train.x_ND.device
        self._num_classes = num_classes
        self._bounds = batch_bounds(len(train.x_ND), settings.batch_size)
        self._heads = self._make_heads()
        self._optimizer = StackedAdamW(
            self._heads.parameters,
            [member.learning_rate for member in members],
            [member.weight_decay for member in members],
        )
        self._best = {name: value.detach().clone() for name, value in self._state()}
        self._activate(np.arange(len(members)))

    def _make_heads(self) -> Heads:
        member = self._members[0]
        self._stacked = StackedHeads(
            [one.seed for one in self._members],
            num_features=self._train.x_ND.shape[1],
            hidden=member.hidden,
            num_classes=self._num_classes,
            batch_norm=member.batch_norm,
            dtype=self._train.x_ND.dtype,
            device=self._device,
        )
        return self._stacked

    @property
    def _is_full_batch(self) -> bool:
        """Whether every step sees all rows in table order, whatever the seed."""
        return len(self._bounds) == 1 and self._settings.sampler == "natural"

    def run(self, progress: Advance) -> list[Outcome]:
        """Train to the end; outcomes in the order of the members.

        Args:
            progress: told the number of member-epochs done; those a stopped member does not need count as
                done when it stops, so that the total is members × epochs.
        """
        settings, outcomes = self._settings, [Outcome() for _ in self._members]
        stopping = EarlyStopping(len(self._members), settings.patience, settings.min_delta)
        for epoch in range(1, settings.epochs + 1):
            active = self._active
            schedule, train_loss_K, train_accuracy_K = self._train_epoch(epoch)
            val_loss_K, val_scores = self._judge_val()
            val_score_K = val_scores[f"val_{self._scorer.metric}"]
            progress(len(active))
            is_finite_K = np.isfinite(train_loss_K) & np.isfinite(val_loss_K)
            for position, member_idx in enumerate(active):
                outcomes[member_idx].history.append(
                    {
                        "epoch": epoch,
                        "learning_rate": self._members[member_idx].learning_rate * schedule,
                        "train_loss": float(train_loss_K[position]),
                        "val_loss": float(val_loss_K[position]),
                        **{name: float(score_K[position]) for name, score_K in val_scores.items()},
                        "train_balanced_accuracy": float(train_accuracy_K[position]),
                    }
                )
                if not is_finite_K[position]:
                    outcomes[member_idx].diverged_epoch = epoch
            is_best_M, is_stopped_M = stopping.update(active[is_finite_K], epoch, val_score_K[is_finite_K])
            self._keep_best(np.flatnonzero(is_finite_K)[is_best_M])
            kept = np.flatnonzero(is_finite_K)[~is_stopped_M]
            progress((settings.epochs - epoch) * (len(active) - len(kept)))
            if len(kept) == 0:
                break
            if len(kept) < len(active):
                self._select(kept)
        for member_idx, outcome in enumerate(outcomes):
            if outcome.diverged_epoch is None:
                outcome.best_epoch = int(stopping.best_epoch_K[member_idx])
                outcome.tensors = {name: value[member_idx].cpu().numpy() for name, value in self._best.items()}
        return outcomes

    def _train_epoch(self, epoch: int) -> tuple[float, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """The last schedule factor, and per active member the loss and balanced accuracy on the way."""
        train, settings = self._train, self._settings
        num_rows, num_members = len(train.x_ND), len(self._active)
        order_SN = torch.from_numpy(np.stack([self._order(seed, epoch) for seed in self._seeds])).to(self._device)
        # the balanced sampler repeats rows: what is noted on the way then stands by step, not by row
        is_drawn = settings.sampler == "balanced"
        loss_KN = train.x_ND.new_empty(num_members, num_rows)
        correct_KCN = train.x_ND.new_empty(num_members, 1 if train.targets_NC is None else self._num_classes, num_rows)
        schedule = 0.0
        self._begin_epoch(epoch, order_SN)
        for step, (begin, end) in enumerate(self._bounds):
            rows_SB = order_SN[:, begin:end]
            rows_KB = rows_SB[self._seed_K]
            logits_KCB = self._train_logits(epoch, step, rows_SB)
            loss_KB = self._losses(logits_KCB, train, rows_KB)
            weight_KB = train.weight_QN[self._policy_K[:, None], rows_KB]
            # the members' losses share no parameter, so the sum's gradient is each member's own
            total_loss = (loss_KB * (weight_KB / weight_KB.sum(dim=1, keepdim=True))).sum()
            total_loss.backward()  # type: ignore[no-untyped-call]
            schedule = cosine_with_warmup(
                (epoch - 1) * len(self._bounds) + step,
                num_steps=settings.epochs * len(self._bounds),
                num_warmup_steps=settings.warmup_epochs * len(self._bounds),
            )
            self._optimizer.step(schedule)
            with torch.no_grad():
                place_KB = torch.arange(begin, end, device=self._device).expand_as(rows_KB) if is_drawn else rows_KB
                loss_KN.scatter_(1, place_KB, loss_KB)
                is_correct_KCB = self._is_correct(logits_KCB, rows_KB).to(loss_KN.dtype)
                correct_KCN.scatter_(2, place_KB[:, None].expand_as(is_correct_KCB), is_correct_KCB)
        order_KN = order_SN[self._seed_K]
        weight_KN = train.weight_QN[self._policy_K[:, None], order_KN] if is_drawn else train.weight_QN[self._policy_K]
        loss_K = (loss_KN * weight_KN).sum(dim=1) / weight_KN.sum(dim=1)
        return schedule, _numbers(loss_K), _numbers(self._train_accuracy(correct_KCN, order_KN if is_drawn else None))

    def _begin_epoch(self, epoch: int, order_SN: Tensor) -> None:
        """Features are in memory: there is nothing to fetch ahead."""

    def _train_logits(self, epoch: int, step: int, rows_SB: Tensor) -> Tensor:
        """Shape (K, C, B), in training mode."""
        inputs, keep = self._inputs(epoch, step, rows_SB)
        return self._stacked.logits(inputs, self._sizes, keep_KHB=keep)

    def _val_logits(self) -> Iterator[tuple[int, Tensor]]:
        """The first row and the logits (K, C, B) of each part of val, in order."""
        for begin in range(0, len(self._val.x_ND), VAL_ROWS):
            yield begin, self._stacked.logits([self._val.x_ND[begin : begin + VAL_ROWS]], [len(self._active)])

    def _order(self, seed: int, epoch: int) -> npt.NDArray[np.int64]:
        num_rows = len(self._train.x_ND)
        if self._settings.sampler == "balanced":
            return draw_balanced_order(self._train.labels, self._num_classes, seed, epoch)
        return draw_order(seed, epoch, num_rows) if len(self._bounds) > 1 else np.arange(num_rows)

    def _is_correct(self, logits_KCB: Tensor, rows_KB: Tensor) -> Tensor:
        """Whether each row's class is found, (K, 1, B), or each of its labels, (K, C, B)."""
        if self._train.targets_NC is None:
            y_KB = self._train.y_N[rows_KB]
            return logits_KCB.gather(1, y_KB[:, None]) == logits_KCB.amax(dim=1, keepdim=True)
        return (logits_KCB >= 0) == (self._train.targets_NC[rows_KB].transpose(1, 2) > 0)

    def _train_accuracy(self, correct_KCN: Tensor, order_KN: Tensor | None) -> Tensor:
        """Balanced accuracy on the way, mean over classes or labels; of drawn rows the share that was right."""
        if order_KN is not None:
            return correct_KCN.mean(dim=(1, 2))
        if self._train.targets_NC is None:
            return (correct_KCN[:, 0] @ self._train.share_NC).mean(dim=1)
        return 0.5 * torch.einsum("kcn,nc->kc", correct_KCN, self._train.share_NC).mean(dim=1)

    def _losses(self, logits_KCB: Tensor, rows: TrainingRows, rows_KB: Tensor) -> Tensor:
        """Shape (K, B), of these rows of a split."""
        if rows.targets_NC is None:
            return class_losses(logits_KCB, rows.y_N[rows_KB], self._settings.loss)
        targets_KCB = rows.targets_NC[rows_KB].transpose(1, 2)
        # weights are counted on the training split, whichever rows are judged
        return label_set_losses(logits_KCB, targets_KCB, self._train.positive_QC[self._policy_K], self._settings.loss)

    def _inputs(self, epoch: int, step: int, rows_SB: Tensor) -> tuple[list[Tensor], list[Tensor | None]]:
        """The batch of each group of members, and what dropout leaves of each hidden layer."""
        is_full_batch = self._is_full_batch
        first_idx = np.cumsum([0, *self._sizes[:-1]])
        batches: dict[int, Tensor] = {}
        inputs = []
        for member_idx in self._active[first_idx]:
            member = self._members[member_idx]
            seed_idx = self._seeds.index(member.seed)
            if seed_idx not in batches:
                batches[seed_idx] = self._train.x_ND if is_full_batch else self._train.x_ND[rows_SB[seed_idx]]
            x_BD = batches[seed_idx]
            if not member.hidden and member.dropout > 0:
                uniform_BD = self._uniform(member.seed, epoch, step, 0, x_BD.shape[1], len(x_BD))
                x_BD = x_BD * ((uniform_BD >= member.dropout).to(x_BD.dtype) / (1.0 - member.dropout))
            inputs.append(x_BD)
        hidden = self._members[0].hidden
        keep: list[Tensor | None] = [None] * len(hidden)
        if hidden and bool((self._dropout_K > 0).any()):
            for layer, width in enumerate(hidden):
                drawn = [self._uniform(s, epoch, step, layer, width, rows_SB.shape[1]).T for s in self._seeds]
                uniform_KHB = torch.stack(drawn)[self._seed_K]
                drop_K11 = self._dropout_K[:, None, None]
                keep[layer] = ((uniform_KHB >= drop_K11) / (1.0 - drop_K11)).to(self._train.x_ND.dtype)
        return inputs, keep

    def _uniform(self, seed: int, epoch: int, step: int, layer: int, width: int, rows: int) -> Tensor:
        """Compared in float64 with the dropout, as a member trained alone would."""
        return torch.from_numpy(draw_dropout(seed, epoch, step, layer, (rows, width))).to(self._device).double()

    @torch.no_grad()
    def _judge_val(self) -> tuple[npt.NDArray[np.float64], dict[str, npt.NDArray[np.float64]]]:
        """Per active member: weighted loss, and balanced accuracy per patient; of labels mAP too."""
        val, num_members = self._val, len(self._active)
        probs, losses = [], []
        for begin, logits_KCB in self._val_logits():
            rows_B = torch.arange(begin, begin + logits_KCB.shape[2], device=self._device)
            losses.append(self._losses(logits_KCB, val, rows_B.expand(num_members, -1)))
            probs.append(logits_KCB.softmax(dim=1) if val.targets_NC is None else logits_KCB.sigmoid())
        weight_KN = val.weight_QN[self._policy_K]
        loss_K = (torch.cat(losses, dim=1) * weight_KN).sum(dim=1) / weight_KN.sum(dim=1)
        probs_KCN = torch.cat(probs, dim=2).cpu().numpy()
        scores = {"val_balanced_accuracy": self._scorer.balanced_accuracy(probs_KCN)}
        if self._scorer.metric == "map":
            # a diverged member has no order; its loss says so
            scores["val_map"] = self._scorer.score(np.nan_to_num(probs_KCN, nan=0.0))
        return _numbers(loss_K), scores

    def _state(self) -> list[tuple[str, Tensor]]:
        return [*self._heads.parameters.items(), *self._heads.buffers.items()]

    def _keep_best(self, positions: npt.NDArray[np.int64]) -> None:
        if len(positions) == 0:
            return
        members = torch.from_numpy(self._active[positions]).to(self._device)
        kept = torch.from_numpy(positions).to(self._device)
        for name, value in self._state():
            self._best[name][members] = value.detach()[kept]

    def _select(self, positions: npt.NDArray[np.int64]) -> None:
        kept = torch.from_numpy(positions).to(self._device)
        self._heads.select(kept)
        self._optimizer.select(self._heads.parameters, kept)
        self._activate(self._active[positions])

    def _activate(self, active: npt.NDArray[np.int64]) -> None:
        """Set what follows from which members are left."""
        self._active = active
        members = [self._members[member_idx] for member_idx in active]
        is_full_batch = self._is_full_batch
        self._seeds = sorted({member.seed for member in members})
        self._seed_K = torch.tensor([self._seeds.index(member.seed) for member in members], device=self._device)
        self._policy_K = self._policy_A[torch.from_numpy(active).to(self._device)]
        self._dropout_K = torch.tensor([m.dropout for m in members], dtype=torch.float64, device=self._device)
        keys = (group_key(member, is_full_batch=is_full_batch) for member in members)
        self._sizes = [len(list(same)) for _, same in groupby(keys)]


def _numbers(values_K: Tensor) -> npt.NDArray[np.float64]:
    result: npt.NDArray[np.float64] = values_K.detach().double().cpu().numpy()
    return result
