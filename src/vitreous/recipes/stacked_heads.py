"""K heads of one architecture, trained as one: their parameters are stacked along the first axis.

Axes: K member, G group of members that share their input, O and H units, C class, B row of a batch, D
feature.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vitreous.recipes.batches import draw_initial_layers
from vitreous.recipes.probe_logits import BATCH_NORM_EPSILON

_MOMENTUM = 0.1  # as torch.nn.BatchNorm1d


class _SharedInputProduct(torch.autograd.Function):
    """weight_KOD · x_BD → (K, O, B), one matrix product per group of members with the same x.

    Written out because plain broadcasting copies x per member in the backward pass (five times slower).
    """

    @staticmethod
    def forward(ctx: Any, weight_KOD: Tensor, sizes: Sequence[int], *inputs_BD: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs_BD)
        ctx.sizes, ctx.shape = sizes, weight_KOD.shape
        num_members, num_out, _ = weight_KOD.shape
        result_KOB = weight_KOD.new_empty(num_members, num_out, len(inputs_BD[0]))
        for begin, end, x_BD in _spans(sizes, inputs_BD):
            torch.mm(weight_KOD[begin:end].flatten(0, 1), x_BD.T, out=result_KOB[begin:end].flatten(0, 1))
        return result_KOB

    @staticmethod
    def backward(ctx: Any, grad_KOB: Tensor) -> Any:
        inputs_BD = ctx.saved_tensors
        grad_KOD = grad_KOB.new_empty(ctx.shape)
        for begin, end, x_BD in _spans(ctx.sizes, inputs_BD):
            torch.mm(grad_KOB[begin:end].flatten(0, 1), x_BD, out=grad_KOD[begin:end].flatten(0, 1))
        return (grad_KOD, None, *(None for _ in inputs_BD))


def _spans(sizes: Sequence[int], inputs_BD: Sequence[Tensor]) -> list[tuple[int, int, Tensor]]:
    spans, begin = [], 0
    for size, x_BD in zip(sizes, inputs_BD, strict=True):
        spans.append((begin, begin + size, x_BD))
        begin += size
    return spans


class StackedHeads:
    """Linear → batch norm (if asked) → ReLU → dropout for each hidden width, then a linear output.

    Args:
        seeds: one per member; members of one seed begin with the same weights.
        num_features: D.
        hidden: widths of the hidden layers; none for a linear head.
        batch_norm: whether a batch norm follows each hidden layer.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        *,
        num_features: int,
        hidden: Sequence[int],
        num_classes: int,
        batch_norm: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        widths = [num_features, *hidden, num_classes]
        drawn = {seed: draw_initial_layers(seed, widths) for seed in sorted(set(seeds))}
        self.num_layers = len(widths) - 1
        self.parameters: dict[str, Tensor] = {}
        self.buffers: dict[str, Tensor] = {}
        for layer in range(self.num_layers):
            for position, part in enumerate(("weight", "bias")):
                stacked = torch.stack([torch.from_numpy(drawn[seed][layer][position]) for seed in seeds])
                self.parameters[f"layers.{layer}.{part}"] = stacked.to(dtype=dtype, device=device)
        for layer in range(self.num_layers - 1 if batch_norm else 0):
            shape = (len(seeds), hidden[layer])
            self.parameters[f"norms.{layer}.weight"] = torch.ones(shape, dtype=dtype, device=device)
            self.parameters[f"norms.{layer}.bias"] = torch.zeros(shape, dtype=dtype, device=device)
            self.buffers[f"norms.{layer}.running_mean"] = torch.zeros(shape, dtype=dtype, device=device)
            self.buffers[f"norms.{layer}.running_var"] = torch.ones(shape, dtype=dtype, device=device)
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)

    def logits(
        self,
        inputs_BD: Sequence[Tensor],
        sizes: Sequence[int],
        *,
        keep_KHB: Sequence[Tensor | None] | None = None,
    ) -> Tensor:
        """Logits of shape (K, C, B).

        Args:
            inputs_BD: one batch per group of members; `sizes` says how many members each serves, in order.
            keep_KHB: training mode: per hidden layer what dropout multiplies with, or None for nothing;
                batch norm then takes the statistics of the batch and updates its running ones. None is
                prediction mode.
        """
        is_training = keep_KHB is not None
        weight, bias = self._layer(0)
        product_KHB: Tensor = _SharedInputProduct.apply(  # type: ignore[no-untyped-call]
            weight, sizes, *inputs_BD
        )
        z_KHB = product_KHB + bias[:, :, None]
        for layer in range(1, self.num_layers):
            h_KHB = F.relu(self._normalised(layer - 1, z_KHB, is_training))
            keep = keep_KHB[layer - 1] if keep_KHB is not None else None
            if keep is not None:
                h_KHB = h_KHB * keep
            weight, bias = self._layer(layer)
            z_KHB = torch.baddbmm(bias[:, :, None], weight, h_KHB)
        return z_KHB

    def select(self, member_idx: Tensor) -> None:
        """Keep only these members, in this order. Parameters become new tensors."""
        for name, parameter in self.parameters.items():
            self.parameters[name] = parameter.detach()[member_idx].requires_grad_(True)
        for name, buffer in self.buffers.items():
            self.buffers[name] = buffer[member_idx]

    def _layer(self, layer: int) -> tuple[Tensor, Tensor]:
        return self.parameters[f"layers.{layer}.weight"], self.parameters[f"layers.{layer}.bias"]

    def _normalised(self, layer: int, z_KHB: Tensor, is_training: bool) -> Tensor:
        if f"norms.{layer}.weight" not in self.parameters:
            return z_KHB
        norm = {part: self.parameters[f"norms.{layer}.{part}"].flatten() for part in ("weight", "bias")}
        mean, var = (self.buffers[f"norms.{layer}.{part}"].view(-1) for part in ("running_mean", "running_var"))
        # (1, K·H, B): to batch_norm, each unit of each member is a channel
        result_1JB = F.batch_norm(
            z_KHB.flatten(0, 1)[None],
            mean,
            var,
            norm["weight"],
            norm["bias"],
            training=is_training,
            momentum=_MOMENTUM,
            eps=BATCH_NORM_EPSILON,
        )
        return result_1JB[0].view_as(z_KHB)
