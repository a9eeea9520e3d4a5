"""What a grid will need, before it is trained.

Axes: K member, N training row, D feature, P parameter of a member, U unit (hidden and output) of a member.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch

from vitreous.recipes.batches import batch_bounds
from vitreous.recipes.grid_program import VAL_ROWS
from vitreous.recipes.probe_member import ProbeMember, ProbeSettings

# weight, weight / learning rate, gradient, two moments, best epoch
_COPIES_OF_PARAMETERS = 6
# of each unit and row of a batch: pre-activation, normalised, ReLU, dropout, its uniform number in float64 (2), two gradients
_COPIES_OF_UNITS = 8


def estimate_probe_memory(
    members: Sequence[ProbeMember], settings: ProbeSettings, *, num_train: int, num_val: int, num_features: int,
    num_classes: int, dtype: torch.dtype = torch.float32,
) -> int:
    """Peak bytes of :func:`vitreous.recipes.probe_grid.fit_probe_grid` beyond its arguments.

    bytes = rows + all best weights + the largest part in training, with s bytes per number::

        rows              = (num_train + num_val) · D · (s + 16) + 3 · B · D · s · inputs
        all best weights  = s · Σ_k P_k
        part in training  = Σ_k in part (6 · s · P_k + member's activations)
        activations       = 8 · s · U_k · max(B, min(num_val, 1024)) + s · C · num_val + 3 · s · num_train

    where `inputs` is the number of distinct batches per step: one per seed, and for linear heads per seed and dropout. The
    parts are those of :func:`split_members`, each at most `settings.max_member_bytes` unless it is a single member.
    """
    size = dtype.itemsize
    shape = {"num_train": num_train, "num_val": num_val, "num_features": num_features, "num_classes": num_classes}
    largest_batch = max(end - begin for begin, end in batch_bounds(num_train, settings.batch_size))
    inputs = len({(member.seed, 0.0 if member.hidden else member.dropout) for member in members})
    rows = (num_train + num_val) * num_features * (size + 16) + 3 * largest_batch * num_features * size * inputs
    best = size * sum(num_parameters(member, num_features, num_classes) for member in members)
    parts = split_members(members, settings, dtype=dtype, **shape)
    in_training = max(
        sum(_member_bytes(members[position], settings, dtype=dtype, **shape) for position in part) for part in parts
    )
    return rows + best + in_training


def estimate_probe_flops(
    members: Sequence[ProbeMember], settings: ProbeSettings, *, num_train: int, num_val: int, num_features: int,
    num_classes: int,
) -> int:
    """Floating-point operations of the matrix products, if no member stops early.

    Per member and epoch 2 · num_train · (3 · W − W_first) + 2 · num_val · W, where W counts the weights of all layers and
    W_first those of the first, whose input needs no gradient. The optimiser adds about 20 operations per parameter and
    step, which are bound by memory, not by arithmetic.
    """
    total = 0
    for member in members:
        weights = [wide * narrow for wide, narrow in pairwise([num_features, *member.hidden, num_classes])]
        train = 2 * num_train * (3 * sum(weights) - weights[0])
        total += settings.epochs * (train + 2 * num_val * sum(weights))
    return total


def num_parameters(member: ProbeMember, num_features: int, num_classes: int) -> int:
    """Weights and biases of a head, batch norm with its running statistics.

    >>> num_parameters(ProbeMember(1e-3), 768, 4)
    3076
    """
    layers = sum((wide + 1) * narrow for wide, narrow in pairwise([num_features, *member.hidden, num_classes]))
    return layers + (4 * sum(member.hidden) if member.batch_norm else 0)


def split_members(
    members: Sequence[ProbeMember], settings: ProbeSettings, *, num_train: int, num_val: int, num_features: int,
    num_classes: int, dtype: torch.dtype = torch.float32,
) -> list[list[int]]:
    """Positions of the members that are trained together: one architecture, within `settings.max_member_bytes`.

    Which member lies in which part follows from the arguments alone, never from the memory that is free.
    """
    architectures: dict[tuple[tuple[int, ...], bool], list[int]] = {}
    for position, member in enumerate(members):
        architectures.setdefault((member.hidden, member.batch_norm), []).append(position)
    parts = []
    for positions in architectures.values():
        one = _member_bytes(
            members[positions[0]], settings, num_train=num_train, num_val=num_val, num_features=num_features,
            num_classes=num_classes, dtype=dtype,
        )
        most = max(1, settings.max_member_bytes // one)
        even = math.ceil(len(positions) / math.ceil(len(positions) / most))
        parts += [positions[start : start + even] for start in range(0, len(positions), even)]
    return parts


def _member_bytes(
    member: ProbeMember, settings: ProbeSettings, *, num_train: int, num_val: int, num_features: int,
    num_classes: int, dtype: torch.dtype,
) -> int:
    largest_batch = max(end - begin for begin, end in batch_bounds(num_train, settings.batch_size))
    rows_at_once = max(largest_batch, min(num_val, VAL_ROWS))
    units = sum(member.hidden) + num_classes
    parameters = _COPIES_OF_PARAMETERS * num_parameters(member, num_features, num_classes)
    activations = _COPIES_OF_UNITS * units * rows_at_once + num_classes * num_val + 3 * num_train
    return dtype.itemsize * (parameters + activations)
