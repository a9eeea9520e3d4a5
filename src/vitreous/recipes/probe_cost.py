"""What a grid will need, before it is trained.

Axes: K member, D feature, B row of a batch, C class, P parameter of a member, U unit (hidden and output).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from vitreous.recipes.batches import batch_bounds
from vitreous.recipes.probe_member import ProbeMember, ProbeSettings

VAL_ROWS = 1024  # rows judged at once after an epoch; bounds the memory of hidden layers

# weight, weight / learning rate, gradient, two moments, best epoch
_COPIES_OF_PARAMETERS = 6
# before and after batch norm, ReLU, dropout, its uniform numbers in float64 (twice the size), two gradients
_COPIES_OF_UNITS = 8


@dataclass(frozen=True)
class GridSize:
    """What a grid is trained on.

    Args:
        num_train, num_val: rows (volumes).
        bytes_per_number: of the training: 4 for float32, 8 for float64.
        num_targets: what a row is judged by: one class, or the number of labels.
    """

    num_train: int
    num_val: int
    num_features: int
    num_classes: int
    bytes_per_number: int = 4
    num_targets: int = 1


def estimate_probe_memory(members: Sequence[ProbeMember], settings: ProbeSettings, size: GridSize) -> int:
    """Peak bytes of :func:`vitreous.recipes.probe_grid.fit_probe_grid` beyond its arguments.

    bytes = rows + best weights + largest part in training, with s bytes per number::

        rows         = (num_train + num_val) · D · (s + 16) + 3 · s · B · D · inputs
        best weights = s · Σ P
        part         = Σ over its members of s · (6 · P + activations)
        activations  = 8 · U · max(B, min(num_val, 1024)) + C · num_val + (2 + targets) · num_train

    where `inputs` is the number of distinct batches per step: one per seed, and for linear heads per seed and
    dropout. The parts are those of :func:`split_members`.
    """
    number, batch = size.bytes_per_number, _largest_batch(settings, size)
    inputs = len({(member.seed, 0.0 if member.hidden else member.dropout) for member in members})
    rows = (size.num_train + size.num_val) * size.num_features * (number + 16)
    batches = 3 * number * batch * size.num_features * inputs
    best = number * sum(num_parameters(member, size.num_features, size.num_classes) for member in members)
    parts = split_members(members, settings, size)
    part = max(sum(_member_bytes(members[position], settings, size) for position in part) for part in parts)
    return rows + batches + best + part


def estimate_probe_flops(members: Sequence[ProbeMember], settings: ProbeSettings, size: GridSize) -> int:
    """Floating-point operations of the matrix products, if no member stops early.

    Per member and epoch 2 · num_train · (3 · W − W_first) + 2 · num_val · W, where W counts the weights of
    all layers and W_first those of the first, whose input needs no gradient. The optimiser adds about 20
    operations per parameter and step, bound by memory rather than arithmetic.
    """
    total = 0
    for member in members:
        weights = [wide * narrow for wide, narrow in pairwise(_widths(member, size.num_features, size.num_classes))]
        train = 2 * size.num_train * (3 * sum(weights) - weights[0])
        total += settings.epochs * (train + 2 * size.num_val * sum(weights))
    return total


def num_parameters(member: ProbeMember, num_features: int, num_classes: int) -> int:
    """Weights and biases of a head, and batch norm with its running statistics.

    >>> num_parameters(ProbeMember(1e-3), 768, 4)
    3076
    """
    layers = sum((wide + 1) * narrow for wide, narrow in pairwise(_widths(member, num_features, num_classes)))
    return layers + (4 * sum(member.hidden) if member.batch_norm else 0)


def split_members(members: Sequence[ProbeMember], settings: ProbeSettings, size: GridSize) -> list[list[int]]:
    """Positions of the members trained together: one architecture, and within `settings.max_member_bytes`.

    A single member is a part however large it is. Which member lies in which part follows from the arguments
    alone, never from the memory that is free, so that the same call computes the same.
    """
    architectures: dict[tuple[tuple[int, ...], bool], list[int]] = {}
    for position, member in enumerate(members):
        architectures.setdefault((member.hidden, member.batch_norm), []).append(position)
    parts = []
    for positions in architectures.values():
        most = max(1, settings.max_member_bytes // _member_bytes(members[positions[0]], settings, size))
        num_parts = math.ceil(len(positions) / most)
        even = math.ceil(len(positions) / num_parts)
        parts += [positions[start : start + even] for start in range(0, len(positions), even)]
    return parts


def _member_bytes(member: ProbeMember, settings: ProbeSettings, size: GridSize) -> int:
    rows_at_once = max(_largest_batch(settings, size), min(size.num_val, VAL_ROWS))
    units = sum(member.hidden) + size.num_classes
    parameters = _COPIES_OF_PARAMETERS * num_parameters(member, size.num_features, size.num_classes)
    activations = _COPIES_OF_UNITS * units * rows_at_once + size.num_classes * size.num_val
    activations += (2 + size.num_targets) * size.num_train
    return size.bytes_per_number * (parameters + activations)


def _largest_batch(settings: ProbeSettings, size: GridSize) -> int:
    return max(end - begin for begin, end in batch_bounds(size.num_train, settings.batch_size))


def _widths(member: ProbeMember, num_features: int, num_classes: int) -> list[int]:
    return [num_features, *member.hidden, num_classes]
