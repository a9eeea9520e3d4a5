"""Which rows each epoch sees, in which batches and optimiser steps: drawn from streams of their own name.

Streams, for seed s (stages and epochs from 0):

- (s, "pixel order", stage, epoch): the rows of an epoch
- (s, "augment", stage, epoch, row): changes of a row, (s, "augment", stage, epoch, repeat, row) when an epoch sees it
  again; where views are kept (s, "augment", stage, "view", view, row)
- (s, "pixel mix", stage, epoch, batch): MixUp and CutMix of a batch
- (s, "pixel step", stage, epoch, batch): torch's global generator, which dropout and drop path draw from

Axes: N row of the set, M row of an epoch, B row of a batch, U distinct row, G group.
"""

from dataclasses import dataclass
from typing import assert_never

import numpy as np
import numpy.typing as npt

from vitreous.core.streams import numpy_stream
from vitreous.recipes.balanced_sampling import draw_balanced
from vitreous.recipes.batches import batch_bounds
from vitreous.recipes.feature_set import FeatureSet
from vitreous.recipes.pixel_settings import Sampler

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Batch:
    """One batch of an epoch.

    Args:
        index: in its epoch, from 0.
        rows_B: into the set; the balanced sampler may repeat one.
        repeat_B: how often the epoch has seen the row before.
        scale: 1 / (weights of all rows of its optimiser step): summed losses times it average over the step.
        step: optimiser step of the epoch that it belongs to, from 0.
        ends_step: whether the optimiser moves after it.
    """

    index: int
    rows_B: IntArray
    repeat_B: IntArray
    scale: float
    step: int
    ends_step: bool


def draw_rows(
    sampler: Sampler, labels: FeatureSet, *, seed: int, stage: int, epoch: int, num_classes: int = 0
) -> IntArray:
    """The rows of an epoch in order, as many as the set has, shape (M,).

    `natural` is a permutation; `balanced` see :func:`vitreous.recipes.balanced_sampling.draw_balanced`, which
    needs to know the number of labels where rows have several.
    """
    rng = numpy_stream(seed, "pixel order", stage, epoch)
    num_rows = len(labels.y_N)
    match sampler:
        case "natural":
            return rng.permutation(num_rows)
        case "balanced":
            return draw_balanced(labels, num_classes, rng)
    assert_never(sampler)


def row_weights(sampler: Sampler, weight_N: FloatArray, class_weight_C: FloatArray | None, y_N: IntArray) -> FloatArray:
    """What each row counts in the loss, shape (N,).

    The balanced sampler draws participants as often as one another, so that only the class weights are left.

    Args:
        class_weight_C: None for labels, whose weights are in the loss itself.
    """
    by_class_N = np.ones(len(y_N)) if class_weight_C is None else class_weight_C[y_N]
    return by_class_N * (weight_N if sampler == "natural" else 1.0)


def count_steps(num_rows: int, batch_size: int, accumulate: int) -> int:
    """Optimiser steps of an epoch; the last may have fewer batches.

    >>> count_steps(10, 2, 2)
    3
    """
    return -(-len(batch_bounds(num_rows, batch_size)) // accumulate)


def split_epoch(rows_M: IntArray, weight_N: FloatArray, *, batch_size: int, accumulate: int) -> list[Batch]:
    """The batches of an epoch; a remainder of one row joins the batch before it."""
    bounds = batch_bounds(len(rows_M), batch_size)
    repeat_M = count_repeats(rows_M)
    batches = []
    for first in range(0, len(bounds), accumulate):
        together = bounds[first : first + accumulate]
        scale = 1.0 / float(weight_N[rows_M[together[0][0] : together[-1][1]]].sum())
        for index, (start, stop) in enumerate(together, start=first):
            is_last = index == first + len(together) - 1
            batches.append(Batch(index, rows_M[start:stop], repeat_M[start:stop], scale, first // accumulate, is_last))
    return batches


def count_repeats(rows_M: IntArray) -> IntArray:
    """How often each entry stands before its place.

    >>> count_repeats(np.array([4, 2, 4, 4])).tolist()
    [0, 0, 1, 2]
    """
    order_M = np.argsort(rows_M, kind="stable")
    _, first_U, count_U = np.unique(rows_M[order_M], return_index=True, return_counts=True)
    repeat_M = np.empty(len(rows_M), dtype=np.int64)
    repeat_M[order_M] = np.arange(len(rows_M)) - np.repeat(first_U, count_U)
    return repeat_M
