"""Which rows each seed sees at each step, and what dropout leaves out: drawn from streams of its own name.

A member draws the same whether it is trained alone or beside two hundred others. Members of one seed share
order and masks, which is what lets one matrix product serve them all. Streams, for seed s (epochs from 1,
steps of an epoch from 0, layers from 0):

- (s, "probe", "init", layer): initial weights of a layer
- (s, "probe", "order", epoch): the order of the training rows
- (s, "probe", "dropout", epoch, step, layer): one uniform number per row and unit, kept where ≥ dropout

Axes: N row, B row of a batch, H unit.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from vitreous.core.streams import numpy_stream


def batch_bounds(num_rows: int, batch_size: int | None) -> list[tuple[int, int]]:
    """Where each batch begins and ends in the order; None is one batch of all rows.

    A remainder of a single row joins the batch before it, since batch norm cannot learn from one row.

    >>> batch_bounds(9, 4)
    [(0, 4), (4, 9)]
    """
    size = num_rows if batch_size is None else min(batch_size, num_rows)
    starts = list(range(0, num_rows, size))
    if len(starts) > 1 and num_rows - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], num_rows], strict=True))


def draw_order(seed: int, epoch: int, num_rows: int) -> npt.NDArray[np.int64]:
    """A permutation of the training rows."""
    return numpy_stream(seed, "probe", "order", epoch).permutation(num_rows)


def draw_dropout(seed: int, epoch: int, step: int, layer: int, shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Uniform numbers in [0, 1), shape (B, H). Single precision whatever the training's: masks then agree."""
    return numpy_stream(seed, "probe", "dropout", epoch, step, layer).random(shape, dtype=np.float32)


def draw_initial_layers(
    seed: int, widths: Sequence[int]
) -> list[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]:
    """Weight (out, in) and bias (out,) of each layer between consecutive `widths`.

    Hidden layers: uniform within ±1/√in, as ``torch.nn.Linear``. Output layer: normal with standard
    deviation 0.01 and bias 0, as in linear probing since MoCo (He et al., 2020) and MAE (He et al., 2022).
    """
    layers = []
    last = len(widths) - 2
    for layer, (num_in, num_out) in enumerate(pairwise(widths)):
        rng = numpy_stream(seed, "probe", "init", layer)
        if layer == last:
            layers.append((rng.normal(0.0, 0.01, (num_out, num_in)), np.zeros(num_out)))
            continue
        bound = num_in**-0.5
        layers.append((rng.uniform(-bound, bound, (num_out, num_in)), rng.uniform(-bound, bound, num_out)))
    return layers
