"""Does the model need what a map marks? Deletion and insertion, against orders of chance.

Cells of the token grid are replaced by a blurred copy of the input. **Deletion**: the most marked cells go first; the
area under the probability of the target should be small. **Insertion**: from the blurred copy, the most marked cells
come back first; the area should be large. Insertion in one order is deletion in the reverse order read backwards, so
the same random orders serve both.

Axes: C channel, D slice, H row, W column, B batch, N cell of the grid, S step.
Source: Petsiuk et al., RISE (2018); Samek et al. (2017), random orders as the baseline. Differences: one fill (blurred)
for both curves, and cells of the model's own grid instead of pixels.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import gaussian_filter
from torch.nn.functional import interpolate

from vitreous.encoders.encoder import Size3

FloatArray = npt.NDArray[np.float64]
Order = npt.NDArray[np.int64]
Score = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Masking:
    """One input and what stands in for its cells.

    Args:
        x_CDHW: prepared and normalised.
        fill_CDHW: of the same shape.
        grid: cells along (T, H, W).
        score: inputs (B, C, D, H, W) → probability of the target (B,).
        steps: of a curve, after the first point.
        batch_size: inputs a forward pass.
    """

    x_CDHW: torch.Tensor
    fill_CDHW: torch.Tensor
    grid: Size3
    score: Score
    steps: int
    batch_size: int


@dataclass(frozen=True)
class RandomOrders:
    """Areas of curves in orders of chance: their mean and the central 95 %."""

    mean: float
    low: float
    high: float


def blurred(x_CDHW: torch.Tensor, grid: Size3) -> torch.Tensor:
    """The input without detail: a Gaussian whose deviation is one cell along each axis, edges repeated.

    Along an axis with one cell, or cells of one slice, nothing is blurred.
    """
    cells = [size / tokens for size, tokens in zip(x_CDHW.shape[1:], grid, strict=True)]
    sigma = [0.0, *(0.0 if tokens == 1 or cell <= 1 else cell for cell, tokens in zip(cells, grid, strict=True))]
    values: npt.NDArray[np.float32] = gaussian_filter(x_CDHW.float().cpu().numpy(), sigma, mode="nearest")
    return torch.from_numpy(values).to(x_CDHW)


def steps_of(num_cells: int, steps: int) -> list[int]:
    """Cells replaced at each point of a curve, from none to all, each number once.

    >>> steps_of(5, 10)
    [0, 1, 2, 3, 4, 5]
    """
    return sorted({round(num_cells * step / steps) for step in range(steps + 1)})


def masking_curves(masking: Masking, orders: Sequence[Order]) -> FloatArray:
    """Probability after the first cells of each order are replaced, (orders, S); the first is the input itself."""
    num_cells = math.prod(masking.grid)
    counts = steps_of(num_cells, masking.steps)
    rank = np.empty((len(orders), num_cells), np.int64)
    for row, order_N in enumerate(orders):
        rank[row, order_N] = np.arange(num_cells)
    # both ends are the same whatever the order
    inner = [(row, count) for row in range(len(orders)) for count in counts[1:-1]]
    ends = _scores(masking, torch.tensor([[False] * num_cells, [True] * num_cells]))
    masks = torch.from_numpy(np.array([rank[row] < count for row, count in inner], bool).reshape(len(inner), num_cells))
    scores = _scores(masking, masks)
    curves = np.empty((len(orders), len(counts)))
    curves[:, 0], curves[:, -1] = ends
    curves[:, 1:-1] = scores.reshape(len(orders), len(counts) - 2)
    return curves


def _scores(masking: Masking, masks_KN: torch.Tensor) -> FloatArray:
    """Probability with the cells of each mask replaced, (K,)."""
    x_CDHW, found = masking.x_CDHW, []
    for masks_BN in torch.split(masks_KN, masking.batch_size):
        cells = masks_BN.reshape(-1, 1, *masking.grid).to(x_CDHW)
        is_filled = interpolate(cells, size=x_CDHW.shape[1:], mode="nearest-exact").bool()
        with torch.no_grad():
            found.append(masking.score(torch.where(is_filled, masking.fill_CDHW, x_CDHW)).double().cpu())
    return torch.cat(found).numpy() if found else np.zeros(0)


def area(curve_S: FloatArray, num_cells: int, steps: int) -> float:
    """Under a curve over the share of cells replaced, by trapezoids; in [0, 1]."""
    return float(np.trapezoid(curve_S, np.array(steps_of(num_cells, steps)) / num_cells))


def order_of(map_THW: npt.NDArray[np.float32], rng: np.random.Generator) -> Order:
    """Cells from the most marked to the least; equal ones in an order of chance."""
    mixed = rng.permutation(map_THW.size)
    order_N: Order = mixed[np.argsort(-map_THW.reshape(-1)[mixed], kind="stable")]
    return order_N


def random_orders(masking: Masking, rng: np.random.Generator, num_orders: int) -> tuple[RandomOrders, FloatArray]:
    """Areas of `num_orders` orders of chance, and the mean of their curves (S,)."""
    num_cells = math.prod(masking.grid)
    curves = masking_curves(masking, [rng.permutation(num_cells) for _ in range(num_orders)])
    areas = [area(curve_S, num_cells, masking.steps) for curve_S in curves]
    low, high = np.percentile(areas, [2.5, 97.5])
    return RandomOrders(float(np.mean(areas)), float(low), float(high)), curves.mean(0)
