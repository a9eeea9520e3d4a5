"""Low-rank adapters beside chosen matrices of the encoder's blocks, through PEFT.

W x becomes W x + scale · B A x, where A and B alone train. Which modules that concerns is resolved here, name by name:
PEFT's own patterns would also take a module of the same name outside the blocks, and one whose matrix the encoder uses
without calling it would never train.

Source: Hu et al., LoRA (2022); Kalajdzievski, rank-stabilised LoRA (2023); Liu et al., DoRA (2024).
"""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, cast

import torch
from torch import nn

from vitreous.core.errors import UserError
from vitreous.core.streams import torch_stream
from vitreous.core.torchvision_schema import declare_torchvision_schemas
from vitreous.recipes.adapter_settings import AdapterSettings
from vitreous.recipes.pixel_model import PixelModel
from vitreous.recipes.trainable import set_trainable

declare_torchvision_schemas()  # PEFT imports torchvision

ADAPTER_NAME = "default"  # PEFT's; a name inside the model, not in the file

_ALIASES = {"mlp": ("fc1", "fc2")}
# exactly these: a subclass may standardise W first, or (the output of torch's own attention) never be called
_ADAPTABLE = (nn.Linear, nn.Conv2d, nn.Conv3d)


def add_adapters(
    model: PixelModel,
    *,
    rank: int,
    alpha: float,
    dropout: float,
    targets: Sequence[str],
    layers: Sequence[int] | None,
    rslora: bool,
    dora: bool,
    seed: int,
) -> None:
    """Put adapters into the encoder's blocks, freeze the rest of it, let the head train.

    The first outcome is that of the encoder without adapters, since B is 0. A is drawn from the stream
    (seed, "adapter", module), so that the adapters of one module do not depend on which others there are.

    Args:
        alpha: the scale is alpha / rank, or alpha / √rank with `rslora`.
        dropout: on what enters A.
        targets: last parts of names of linear layers or convolutions inside the blocks; `mlp` is fc1 and fc2.
        layers: numbers of the blocks; None is all.

    Raises:
        UserError: a target or block does not exist, a block has none of the targets, the encoder uses a target's matrix
            without calling the module, or there are adapters already.
    """
    if model.adapters is not None:
        raise UserError("this model has adapters already; merge them before others are added.")
    settings = AdapterSettings(
        rank, alpha, dropout, tuple(targets), None if layers is None else tuple(layers), rslora, dora
    )
    names = resolve_targets(model, settings.targets, settings.layers)
    called = _called_modules(model, names)
    if silent := [name for name in names if name not in called]:
        more = f" and {len(silent) - 1} more" if len(silent) > 1 else ""
        raise UserError(
            f"adapters on {silent[0]}{more} would have no effect: this {model.encoder.family} encoder uses the "
            "matrix without calling the module. Leave these targets out."
        )
    network, prefix = _network(model)
    inner_names = [name.removeprefix(prefix) for name in names]
    _inject(network, _peft_config(settings, inner_names))
    model.adapters = settings
    for name in inner_names:
        _initialise(network.get_submodule(name), torch_stream(seed, "adapter", name))
    set_trainable(model, 0)


def merge_adapters(model: PixelModel) -> None:
    """Add scale · B A to each matrix and leave the encoder's own modules, frozen; the outcome is that of before.

    Raises:
        UserError: there are no adapters.
    """
    if model.adapters is None:
        raise UserError("this model has no adapters to merge.")
    network, _ = _network(model)
    for name, module in list(network.named_modules()):
        if "base_layer" in module._modules:
            adapted = cast(Any, module)
            adapted.merge(safe_merge=True)
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, adapted.get_base_layer())
    del network.peft_config
    model.adapters = None
    set_trainable(model, 0)


def resolve_targets(model: PixelModel, targets: Sequence[str], layers: Sequence[int] | None) -> list[str]:
    """Names, in the encoder's order, of the modules in the chosen blocks whose last part is one of the targets.

    Raises:
        UserError: see :func:`add_adapters`.
    """
    num_blocks, depth_of = model.backbone.num_blocks, model.backbone.depth_of
    if missing := [layer for layer in layers or () if not 0 <= layer < num_blocks]:
        raise UserError(
            f"layers: {', '.join(map(str, missing))} {'does' if len(missing) == 1 else 'do'} not exist; the blocks of "
            f"this encoder are 0…{num_blocks - 1}."
        )
    blocks = range(num_blocks) if layers is None else layers
    # last part of the name → (block, name)
    present: dict[str, list[tuple[int, str]]] = {}
    for name, module in model.encoder.backbone.named_modules():
        block = depth_of(name) - 1
        if _is_adaptable(module) and block in blocks:
            present.setdefault(name.rpartition(".")[2], []).append((block, name))
    where = "of this encoder" if layers is None else f"{', '.join(map(str, layers))} of this encoder"
    chosen: set[tuple[int, str]] = set()
    for target in targets:
        found = [place for part in _ALIASES.get(target, (target,)) for place in present.get(part, ())]
        if not found:
            aliases = [alias for alias, parts in _ALIASES.items() if any(part in present for part in parts)]
            raise UserError(
                f"targets: {target} matches no linear layer or convolution in the blocks {where}; there are "
                f"{', '.join(sorted([*present, *aliases])) or 'none'}."
            )
        chosen.update(found)
    if bare := sorted(set(layers or ()) - {block for block, _ in chosen}):
        raise UserError(f"layers: none of the targets ({', '.join(targets)}) is in block {', '.join(map(str, bare))}.")
    names = {name for _, name in chosen}
    return [name for name, _ in model.encoder.backbone.named_modules() if name in names]


def adapter_tensors(model: PixelModel) -> dict[str, torch.Tensor]:
    """The adapters' tensors, not copies, under the names that PEFT's files have."""
    from peft import get_peft_model_state_dict

    network, _ = _network(model)
    tensors = get_peft_model_state_dict(network, adapter_name=ADAPTER_NAME, save_embedding_layers=False)
    return {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}


def adapter_config(model: PixelModel) -> dict[str, Any]:
    """What PEFT's ``adapter_config.json`` holds; plain values."""
    network, _ = _network(model)
    config: dict[str, Any] = cast(Any, network).peft_config[ADAPTER_NAME].to_dict()
    return {**config, "inference_mode": True}


def _network(model: PixelModel) -> tuple[nn.Module, str]:
    """What PEFT is given, and what stands in front of its names in the backbone.

    Where the backbone only holds another library's model, it is that model, so that the saved adapters fit it.
    """
    backbone = model.encoder.backbone
    held = backbone._modules.get("model")
    return (backbone, "") if held is None else (held, "model.")


def _peft_config(settings: AdapterSettings, names: Sequence[str]) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=settings.rank,
        lora_alpha=cast(int, settings.alpha),  # annotated as int, used as a number
        lora_dropout=settings.dropout,
        # a string is matched against the whole name; a list would match ends of names
        target_modules="|".join(re.escape(name) for name in names),
        use_rslora=settings.rslora,
        use_dora=settings.dora,
        bias="none",
    )


def _inject(network: nn.Module, config: Any) -> None:
    from peft import inject_adapter_in_model

    with torch.random.fork_rng(devices=[]):  # PEFT draws first weights of its own, on the CPU
        inject_adapter_in_model(config, network, adapter_name=ADAPTER_NAME)


def _initialise(adapted: nn.Module, generator: torch.Generator) -> None:
    """A as PEFT draws it, uniform within 1/√(its inputs), but from `generator` on the CPU; B is 0 already."""
    weight = cast(torch.Tensor, cast(Any, adapted).lora_A[ADAPTER_NAME].weight)
    drawn = torch.empty(weight.shape, dtype=torch.float32)
    nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
    with torch.no_grad():
        weight.copy_(drawn)


def _is_adaptable(module: nn.Module) -> bool:
    if type(module) not in _ADAPTABLE:
        return False
    if isinstance(module, nn.Conv2d | nn.Conv3d):
        # PEFT's A has the kernel, stride and padding of the convolution, and nothing else of it
        return module.groups == 1 and set(module.dilation) == {1} and module.padding_mode == "zeros"
    return True


def _called_modules(model: PixelModel, names: Sequence[str]) -> set[str]:
    """Those of `names` that a forward pass calls, found on the meta device: shapes alone, nothing is computed."""
    backbone = model.encoder.backbone
    tensors = {name: tensor.to("meta") for name, tensor in chain(backbone.named_parameters(), backbone.named_buffers())}
    spec = model.encoder.spec
    dtype = next(backbone.parameters()).dtype
    x_BCDHW = torch.empty(1, spec.channels, *spec.size_DHW, device="meta", dtype=dtype)
    with torch.no_grad(), _recorded_calls(backbone, names) as called, _evaluating(model):
        torch.func.functional_call(backbone, tensors, (x_BCDHW,))
    return called


@contextmanager
def _recorded_calls(backbone: nn.Module, names: Sequence[str]) -> Iterator[set[str]]:
    called: set[str] = set()

    def record(name: str) -> Any:
        return lambda module, inputs: called.add(name)

    handles = [backbone.get_submodule(name).register_forward_pre_hook(record(name)) for name in names]
    try:
        yield called
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _evaluating(model: PixelModel) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
