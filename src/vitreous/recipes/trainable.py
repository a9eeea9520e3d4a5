"""What of a pixel model trains, in which mode the rest runs, and at which learning rate each part moves.

A part of the encoder is counted by its depth (see `Backbone.depth_of`): 0 stem, i + 1 block i, num_blocks + 1 the end.
Adapters (see `recipes.lora`) stand at the depth of their block.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from vitreous.core.errors import UserError

if TYPE_CHECKING:
    from vitreous.recipes.pixel_model import PixelModel

# beginnings of a name's last parts whose parameters say where or who, not how much: decay would pull them to nothing
_UNDECAYED_NAMES = (
    "pos_embed",
    "position_embedding",
    "relative_position",
    "attention_biases",
    "cls_token",
    "class_token",
    "reg_token",
    "register_token",
    "mask_token",
    "dist_token",
    "gamma",
    "layer_scale",
    "lora_magnitude_vector",
)
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, _NormBase)


@dataclass(frozen=True)
class ParameterCount:
    """Numbers (not tensors) that training can change, and of the whole model."""

    trainable: int
    total: int


def set_trainable(model: "PixelModel", unfreeze: int | Literal["all"]) -> None:
    """Freeze the encoder but for what is asked; the head, and adapters and a decoder where there are any, always train.

    Args:
        unfreeze: 0 the head alone; k the last k blocks and the encoder's end; `all` stem, positions and tokens too.

    Raises:
        UserError: the encoder has fewer blocks.
    """
    blocks = model.backbone.num_blocks
    if unfreeze != "all" and not 0 <= unfreeze <= blocks:
        raise UserError(
            f"cannot unfreeze the last {unfreeze} blocks: this encoder has {blocks}; take 0…{blocks} or all."
        )
    lowest = 0 if unfreeze == "all" else blocks + 1 - unfreeze if unfreeze else blocks + 2
    for name, parameter in model.encoder.backbone.named_parameters():
        parameter.requires_grad_(is_adapter(name) or model.backbone.depth_of(name) >= lowest)
    model.head.requires_grad_(True)
    if model.decoder is not None:
        model.decoder.requires_grad_(True)
    model.train(model.training)


def is_adapter(name: str) -> bool:
    """Whether a parameter or module of that name belongs to a low-rank adapter.

    >>> is_adapter("blocks.0.attn.qkv.lora_A.default.weight"), is_adapter("blocks.0.attn.qkv.base_layer.weight")
    (True, False)
    """
    return any(part.startswith("lora_") for part in name.split("."))


def trained_depths(model: "PixelModel") -> set[int]:
    """Depths at which a parameter of the encoder, that of an adapter included, trains."""
    named = model.encoder.backbone.named_parameters()
    return {model.backbone.depth_of(name) for name, parameter in named if parameter.requires_grad}


def freeze_modes(model: "PixelModel") -> None:
    """Eval mode for every part of the encoder of which adapters alone, or nothing, train; adapters keep their mode.

    A part without parameters (an end that only pools) goes with the block before it.
    """
    depth_of = model.backbone.depth_of
    trained: dict[int, bool] = {}
    for name, parameter in model.encoder.backbone.named_parameters():
        if not is_adapter(name):
            trained[depth_of(name)] = trained.get(depth_of(name), False) or parameter.requires_grad
    for depth in range(model.backbone.num_blocks + 2):
        trained.setdefault(depth, trained.get(depth - 1, False))
    for name, module in model.encoder.backbone.named_modules():
        carries_adapter = "base_layer" in module._modules
        if not (trained[depth_of(name)] or is_adapter(name) or carries_adapter):
            module.training = False


def parameter_groups(
    model: "PixelModel", *, lr_head: float, lr_encoder: float, layer_decay: float, weight_decay: float
) -> list[dict[str, Any]]:
    """What AdamW takes: trained parameters by learning rate and weight decay, in a fixed order, each with a `name`.

    Args:
        layer_decay: factor on `lr_encoder` for each part between a parameter and the encoder's end.
        weight_decay: of matrices; norms, biases, positions, tokens and scales have none.
    """
    end = model.backbone.num_blocks + 1
    undecayed = {id(parameter) for parameter in _undecayed(model)}
    groups: dict[str, dict[str, Any]] = {}

    def add(place: str, parameter: nn.Parameter, lr: float) -> None:
        has_decay = id(parameter) not in undecayed
        name = place if has_decay else f"{place} without decay"
        empty = {"name": name, "params": [], "lr": lr, "weight_decay": weight_decay if has_decay else 0.0}
        groups.setdefault(name, empty)["params"].append(parameter)

    named = [
        (model.backbone.depth_of(name), parameter) for name, parameter in model.encoder.backbone.named_parameters()
    ]
    for depth, parameter in sorted(named, key=lambda pair: (pair[0], id(pair[1]) in undecayed)):
        if parameter.requires_grad:
            # one pair of groups where depth makes no difference: the optimiser steps group by group
            place = "encoder" if layer_decay == 1.0 else _place(depth, end)
            add(place, parameter, lr_encoder * layer_decay ** (end - depth))
    for part in (model.head, model.decoder):
        for parameter in [] if part is None else part.parameters():
            add("head", parameter, lr_head)
    return list(groups.values())


def count_parameters(model: nn.Module) -> ParameterCount:
    """Trainable and total, adapters and head included."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return ParameterCount(sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes))


def _place(depth: int, end: int) -> str:
    return "encoder stem" if depth == 0 else "encoder end" if depth == end else f"encoder block {depth - 1}"


def _undecayed(model: nn.Module) -> Iterator[nn.Parameter]:
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            parts = [*prefix.split("."), name]
            by_name = any(part.startswith(_UNDECAYED_NAMES) for part in parts)
            if parameter.ndim <= 1 or isinstance(module, _NORMS) or by_name:
                yield parameter
