"""Running mean of the weights, which is validated and kept in place of the weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn


def decay_at(decay: float, num_updates: int) -> float:
    """The decay of update `num_updates` (from 1): it rises to `decay`, so that the first weights are soon forgotten.

    Source: TensorFlow, ``ExponentialMovingAverage(num_updates=...)``.

    >>> decay_at(0.999, 1), decay_at(0.999, 100_000)
    (0.18181818181818182, 0.999)
    """
    return min(decay, (1 + num_updates) / (10 + num_updates))


class WeightAverage:
    """mean ← d·mean + (1 - d)·weights, after each optimiser step, with d of :func:`decay_at`.

    Args:
        parameters: what trains, where it trains.
        mean: to go on from, by the same names; None begins with the weights as they are.
        num_updates: how many updates `mean` has seen.
    """

    def __init__(
        self,
        decay: float,
        parameters: Mapping[str, nn.Parameter],
        *,
        mean: Mapping[str, torch.Tensor] | None = None,
        num_updates: int = 0,
    ) -> None:
        self._decay = decay
        self._parameters = dict(parameters)
        self._num_updates = num_updates
        self.mean = {
            name: (parameter if mean is None else mean[name]).detach().to(parameter.device, copy=True)
            for name, parameter in self._parameters.items()
        }

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after an optimiser step."""
        self._num_updates += 1
        share = 1.0 - decay_at(self._decay, self._num_updates)
        torch._foreach_lerp_(list(self.mean.values()), [p.detach() for p in self._parameters.values()], share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model holds the mean; afterwards its weights again."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            parameter.data, self.mean[name] = self.mean[name], parameter.data
