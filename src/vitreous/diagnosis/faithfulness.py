"""Whether a map may be believed: three checks of each map, with what they found.

A map is called not faithful when one of these fails:

- it marks something: a map that is the same everywhere says nothing;
- deletion: its area lies below the central 95 % of the areas of random orders;
- insertion: its area lies above them;
- randomisation: the map of the model with random weights has a mean rank correlation with it of at most
  `MOST_CORRELATION`, for a random encoder and, where the method speaks of a class, for a random head.

Sources: Petsiuk et al. (2018), Samek et al. (2017), Adebayo et al. (2018). Adebayo gives no threshold; half is ours.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from vitreous.core.streams import numpy_stream
from vitreous.diagnosis.explain_maps import CLASS_FREE, Map, Method, explain
from vitreous.diagnosis.explain_perturbation import (
    Masking,
    RandomOrders,
    area,
    blurred,
    masking_curves,
    order_of,
    random_orders,
    steps_of,
)
from vitreous.diagnosis.explain_randomisation import RandomisedModels, rank_correlation, ssim
from vitreous.diagnosis.explained_model import ExplainedModel

MOST_CORRELATION = 0.5
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class CheckSettings:
    """How thoroughly maps are checked.

    Args:
        steps: points of a deletion curve after the first.
        orders: random orders.
        draws: random encoders, and random heads.
        batch_size: inputs a forward pass.
    """

    steps: int = 16
    orders: int = 20
    draws: int = 3
    batch_size: int = 16


@dataclass(frozen=True)
class Faithfulness:
    """What the checks of one map found.

    Args:
        is_empty: whether the map has one value everywhere.
        deletion, insertion: areas under the probability of the target.
        random: areas of random orders.
        encoder_correlation, head_correlation: mean Spearman correlation with the maps of randomised models; None for
            a random head where the method does not look at the head.
        encoder_ssim, head_ssim: mean structural similarity with them.
        share_S: of the cells replaced at each point of a deletion curve.
        deletion_curve, random_curve: (S,) over `share_S`.
        insertion_curve: (S,) over the share of the cells put back, 1 − `share_S` in reverse.
    """

    is_empty: bool
    deletion: float
    insertion: float
    random: RandomOrders
    encoder_correlation: float
    encoder_ssim: float
    head_correlation: float | None
    head_ssim: float | None
    share_S: FloatArray
    deletion_curve: FloatArray
    insertion_curve: FloatArray
    random_curve: FloatArray

    @property
    def failures(self) -> tuple[str, ...]:
        """Names of the checks that failed."""
        checks = {
            "empty": not self.is_empty,
            "deletion": self.deletion < self.random.low,
            "insertion": self.insertion > self.random.high,
            "random encoder": self.encoder_correlation <= MOST_CORRELATION,
            "random head": self.head_correlation is None or self.head_correlation <= MOST_CORRELATION,
        }
        return tuple(name for name, passed in checks.items() if not passed)

    @property
    def is_faithful(self) -> bool:
        """Whether no check failed."""
        return not self.failures


@dataclass(frozen=True)
class CheckedMap:
    """A map with what its checks found."""

    map_THW: Map
    checks: Faithfulness


def explain_and_check(
    model: ExplainedModel,
    randomised: RandomisedModels,
    x_BCDHW: torch.Tensor,
    target: int,
    methods: Sequence[Method],
    settings: CheckSettings,
) -> dict[Method, CheckedMap]:
    """Maps of one input and their checks; the same input and settings give the same numbers."""
    maps = explain(model, x_BCDHW, target, methods)
    similar = _similarities(randomised, x_BCDHW, target, maps, settings.draws)
    masking = Masking(
        x_BCDHW[0],
        blurred(x_BCDHW[0], model.encoder.grid),
        model.encoder.grid,
        lambda x: model.probs(model(x))[:, target],
        settings.steps,
        settings.batch_size,
    )
    random, random_curve = random_orders(masking, numpy_stream(0, "random orders"), settings.orders)
    num_cells = math.prod(masking.grid)
    share_S = np.array(steps_of(num_cells, settings.steps)) / num_cells
    checked = {}
    for method, map_THW in maps.items():
        order_N = order_of(map_THW, numpy_stream(0, "equal cells", method))
        deletion_curve, reverse_curve = masking_curves(masking, [order_N, order_N[::-1]])
        checked[method] = CheckedMap(
            map_THW,
            Faithfulness(
                bool(np.ptp(map_THW) == 0),
                area(deletion_curve, num_cells, settings.steps),
                area(reverse_curve, num_cells, settings.steps),
                random,
                *similar[method],
                share_S,
                deletion_curve,
                reverse_curve[::-1],
                random_curve,
            ),
        )
    return checked


def _similarities(
    randomised: RandomisedModels, x_BCDHW: torch.Tensor, target: int, maps: dict[Method, Map], draws: int
) -> dict[Method, tuple[float, float, float | None, float | None]]:
    """Rank correlation and SSIM with the maps under random encoders, then under random heads."""
    methods = tuple(maps)
    of_head = tuple(method for method in methods if method not in CLASS_FREE)
    encoders = [explain(randomised.with_random_encoder(draw), x_BCDHW, target, methods) for draw in range(draws)]
    heads = (
        [explain(randomised.with_random_head(draw), x_BCDHW, target, of_head) for draw in range(draws)]
        if of_head
        else []
    )
    found: dict[Method, tuple[float, float, float | None, float | None]] = {}
    for method, map_THW in maps.items():
        encoder = _mean_similarity(map_THW, [one[method] for one in encoders])
        head = _mean_similarity(map_THW, [one[method] for one in heads]) if method in of_head else (None, None)
        found[method] = (*encoder, *head)
    return found


def _mean_similarity(map_THW: Map, others: Sequence[Map]) -> tuple[float, float]:
    return (
        float(np.mean([rank_correlation(map_THW, other) for other in others])),
        float(np.mean([ssim(map_THW, other) for other in others])),
    )
