"""Linear and MLP probes on kept features: a whole grid of settings and seeds, trained together.

Every member is trained as if it were alone: AdamW (decoupled weight decay), cosine schedule with linear
warm-up per step, cross-entropy averaged over a batch with the weights class weight × 1 / (volumes of the
patient), early stopping on val balanced accuracy per patient. With several labels a row the loss is the mean over
labels of binary cross-entropy (or of another loss of :mod:`vitreous.recipes.label_losses`), class weights are those of
rows with the label, and epochs are judged by mAP. A member's row order, dropout and initial weights
come from streams of its own seed (see :mod:`vitreous.recipes.batches`), so that its company changes nothing
but the last bits of the arithmetic; the same call gives the same bytes on one machine with one number of
threads.

Axes: N row (volume), D feature, C class or label, Q class-weight policy, U what is scored: participant or row.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from vitreous.core.errors import UserError
from vitreous.core.progress import Advance, no_progress
from vitreous.core.undefined import Undefined
from vitreous.recipes.batches import batch_bounds
from vitreous.recipes.feature_set import FeatureSet, check_feature_sets, class_weights_of
from vitreous.recipes.grid_program import GridProgram, Outcome, build_rows, group_key
from vitreous.recipes.patient_scores import PatientScorer
from vitreous.recipes.probe_cost import GridSize, estimate_probe_flops, estimate_probe_memory, split_members
from vitreous.recipes.probe_logits import head_logits, probe_logits
from vitreous.recipes.probe_member import FittedProbe, ProbeMember, ProbeSettings
from vitreous.recipes.standardiser import fit_standardiser

__all__ = [
    "FeatureSet", "FittedProbe", "ProbeMember", "ProbeSettings", "estimate_probe_flops",
    "estimate_probe_memory", "fit_probe_grid", "probe_logits",
]  # fmt: skip


def fit_probe_grid(
    train: FeatureSet,
    val: FeatureSet,
    members: Sequence[ProbeMember],
    settings: ProbeSettings,
    *,
    num_classes: int,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    progress: Advance = no_progress,
) -> list[FittedProbe]:
    """Train all members; results in their order.

    Args:
        train, val: no participant in both, every class in each.
        members: any mixture of architectures; those of one architecture share their matrix products.
        dtype: of the training; prediction is in float64 whatever it is.
        progress: told member-epochs; the total is members × epochs.
    Raises:
        SampleError: see :func:`vitreous.recipes.feature_set.check_feature_sets`.
        ValueError: members that are missing, repeated or do not fit the settings.
        UserError: every member diverged.
    """
    check_feature_sets(train, val, num_classes)
    check_members(members, settings)
    policies = list(dict.fromkeys(member.class_weights for member in members))
    class_weight_QC = np.stack([class_weights_of(train, policy, num_classes) for policy in policies])
    standardiser = fit_standardiser(train.features_ND, train.weight_N)
    place = torch.device(device)
    train_rows = build_rows(train, standardiser.apply(train.features_ND), class_weight_QC, dtype=dtype, device=place,
                            sampler=settings.sampler)  # fmt: skip
    val_x_ND = standardiser.apply(val.features_ND)
    val_rows = build_rows(val, val_x_ND, class_weight_QC, dtype=dtype, device=place)
    scorer = PatientScorer(val, num_classes)
    num_targets = 1 if train.task == "multi_class" else num_classes
    size = GridSize(len(train.y_N), len(val.y_N), train.features_ND.shape[1], num_classes, dtype.itemsize, num_targets)
    parts = split_members(members, settings, size)
    is_one_step = len(batch_bounds(len(train.y_N), settings.batch_size)) == 1
    is_full_batch = is_one_step and settings.sampler == "natural"
    outcomes: dict[int, Outcome] = {}
    for part in parts:
        positions = sorted(part, key=lambda position: group_key(members[position], is_full_batch=is_full_batch))
        together = [members[position] for position in positions]
        policy_idx = [policies.index(member.class_weights) for member in together]
        program = GridProgram(train_rows, val_rows, scorer, together, policy_idx, settings, num_classes=num_classes)
        outcomes |= dict(zip(positions, program.run(progress), strict=True))
    fitted = []
    for position, member in enumerate(members):
        outcome = outcomes[position]
        if outcome.diverged_epoch is None:
            logits_NC = head_logits(outcome.tensors, val_x_ND)
            val_score: float | Undefined = scorer.score_logits(logits_NC)
            tensors = standardiser.tensors() | outcome.tensors
        else:
            val_score, tensors = Undefined(f"training diverged in epoch {outcome.diverged_epoch}"), {}
        fitted.append(FittedProbe(
            member, outcome.best_epoch, val_score, outcome.history, tensors, standardiser.num_constant,
            outcome.diverged_epoch,
        ))  # fmt: skip
    check_any_converged(fitted)
    return fitted


class Trained(Protocol):
    """What is asked of every trained head."""

    @property
    def member(self) -> ProbeMember: ...
    @property
    def diverged_epoch(self) -> int | None: ...


def check_members(members: Sequence[ProbeMember], settings: ProbeSettings) -> None:
    """Raise ValueError for members that are missing, repeated or do not fit the settings."""
    if not members:
        raise ValueError("the grid has no members.")
    if repeated := len(members) - len(set(members)):
        raise ValueError(f"{repeated} of {len(members)} members repeat another; leave repeated values out of the grid.")
    if settings.batch_size == 1 and any(member.batch_norm for member in members):
        raise ValueError("batch_norm cannot learn from batches of one row; raise batch_size.")


def check_any_converged(fitted: Sequence[Trained]) -> None:
    """Raise UserError where every member diverged."""
    if any(probe.diverged_epoch is None for probe in fitted):
        return
    smallest = min(probe.member.learning_rate for probe in fitted)
    raise UserError(
        f"all {len(fitted)} members of the grid diverged (their loss became NaN or infinite), down to the "
        f"learning rate {smallest:g}. Lower the learning rates of the grid, or lengthen warmup_epochs."
    )
