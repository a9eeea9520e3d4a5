"""AdamW for stacked heads: one fused pass over all members, each with its own learning rate and weight decay.

Axes: K member, first axis of every parameter.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class StackedAdamW:
    """``torch.optim.AdamW`` (β 0.9 and 0.999, ε 1e-8, decoupled decay) with a learning rate per member.

    torch takes one learning rate per call. Adam's direction does not depend on it, so we step u = w /
    learning_rate with the schedule's factor alone and write w = learning_rate · u back: all members are
    served by one fused call. Weight decay takes the factor (1 − schedule · learning_rate · weight_decay),
    before the step as torch does. It acts on layer weights; biases and batch norm are not decayed.

    Args:
        parameters: leaf tensors with the members along the first axis. Changed in place.
        learning_rates: peak rate per member, > 0.
        weight_decays: per member, ≥ 0.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        learning_rates: Sequence[float],
        weight_decays: Sequence[float],
    ) -> None:
        first = next(iter(parameters.values()))
        self._rate_K = torch.tensor(learning_rates, dtype=torch.float64, device=first.device)
        self._decay_K = torch.tensor(weight_decays, dtype=torch.float64, device=first.device)
        scaled = {
            name: (parameter.detach() / _along(self._rate_K, parameter)).requires_grad_(True)
            for name, parameter in parameters.items()
        }
        self._bind(parameters, scaled)

    def step(self, schedule: float) -> None:
        """One step with the gradients of the parameters, which are taken away.

        Args:
            schedule: factor on every member's learning rate, > 0.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = schedule
        shrink_K = 1.0 - schedule * self._rate_K * self._decay_K
        for name, parameter in self._parameters.items():
            scaled = self._scaled[name]
            scaled.grad, parameter.grad = parameter.grad, None
            if self._has_decay and name.startswith("layers.") and name.endswith(".weight"):
                scaled.detach().mul_(_along(shrink_K, scaled))
        self._optimizer.step()
        for name, parameter in self._parameters.items():
            torch.mul(self._scaled[name].detach(), _along(self._rate_K, parameter), out=parameter.detach())
            self._scaled[name].grad = None

    def select(self, parameters: Mapping[str, Tensor], member_idx: Tensor) -> None:
        """Keep only these members, in this order.

        Args:
            parameters: those of the kept members, as new leaf tensors.
        """
        moments = {name: self._optimizer.state[scaled] for name, scaled in self._scaled.items()}
        self._rate_K, self._decay_K = self._rate_K[member_idx], self._decay_K[member_idx]
        self._bind(
            parameters,
            {name: scaled.detach()[member_idx].requires_grad_(True) for name, scaled in self._scaled.items()},
        )
        for name, state in moments.items():
            kept = {key: state[key][member_idx] for key in ("exp_avg", "exp_avg_sq")}
            self._optimizer.state[self._scaled[name]] = {"step": state["step"], **kept}

    def _bind(self, parameters: Mapping[str, Tensor], scaled: dict[str, Tensor]) -> None:
        self._parameters, self._scaled = parameters, scaled
        self._has_decay = bool((self._decay_K > 0).any())
        # The decay is ours, per member; torch's is one number for all.
        self._optimizer = torch.optim.AdamW(list(scaled.values()), lr=1.0, weight_decay=0.0, fused=True)


def _along(values_K: Tensor, like: Tensor) -> Tensor:
    """Values per member, shaped to multiply a stacked parameter."""
    return values_K.to(like.dtype).view(-1, *(1 for _ in like.shape[1:]))
