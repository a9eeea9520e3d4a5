"""The running mean of weights against torch's own, and its closed form."""

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from vitreous.recipes.ema import WeightAverage, decay_at


def test_it_is_torchs_average() -> None:
    layer = nn.Linear(3, 2).double()
    average = WeightAverage(0.9, dict(layer.named_parameters()))

    def average_of(mean: torch.Tensor, weights: torch.Tensor, num_updates: torch.Tensor) -> torch.Tensor:
        decay = decay_at(0.9, int(num_updates))
        return decay * mean + (1 - decay) * weights

    other = AveragedModel(layer, avg_fn=average_of)  # type: ignore[no-untyped-call]
    other.n_averaged += 1  # the first weights are the mean already
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter += torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        average.update()
        other.update_parameters(layer)  # type: ignore[no-untyped-call]
    for name, parameter in other.module.named_parameters():
        torch.testing.assert_close(average.mean[name], parameter.detach())


def test_it_goes_on_where_it_was() -> None:
    layer = nn.Linear(2, 1, bias=False).double()
    whole = WeightAverage(0.5, dict(layer.named_parameters()))
    whole.update()
    part = WeightAverage(0.5, dict(layer.named_parameters()), mean=whole.mean, num_updates=1)
    with torch.no_grad():
        layer.weight += 1
    for average in (whole, part):
        average.update()
    assert torch.equal(whole.mean["weight"], part.mean["weight"])


def test_the_weights_come_back() -> None:
    layer = nn.Linear(2, 1, bias=False)
    average = WeightAverage(0.5, dict(layer.named_parameters()))
    first = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight += 1
    with average.in_place():
        assert torch.equal(layer.weight, first)
    assert torch.equal(layer.weight, first + 1)
    assert torch.equal(average.mean["weight"], first)
