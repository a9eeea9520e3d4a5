"""From a backbone with its weights to an encoder: input, hash, receipt, precision."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from pydantic import ValidationError
from torch import nn

from vitreous.core.errors import ConfigError
from vitreous.core.input_spec import AnySpec, Modality
from vitreous.core.streams import torch_stream
from vitreous.encoders.encoder import DTYPES, Backbone, Encoder, Precision, hash_weights
from vitreous.encoders.family import Architecture, Family
from vitreous.encoders.frame_by_frame import FrameByFrame
from vitreous.encoders.receipt import Receipt


@dataclass(frozen=True)
class Wanted:
    """What a caller asks of an encoder, wherever its weights come from.

    Args:
        family, row: name and row of the catalog.
        options: of the family, with those that the modality decides.
        layer: number of the block, from 1, that the tokens are made of; None is the last.
    """

    family: str
    row: Family
    modality: Modality
    options: Mapping[str, Any]
    spec: AnySpec | None
    spec_override: Mapping[str, Any] | None
    precision: Precision
    device: str | torch.device
    trainable: bool
    layer: int | None = None


def check_wanted(
    family: str,
    row: Family,
    modality: Modality | None,
    options: Mapping[str, Any],
    spec: AnySpec | None,
    spec_override: Mapping[str, Any] | None,
    precision: Precision,
    device: str | torch.device,
    trainable: bool,
    layer: int | None = None,
) -> Wanted:
    """The request, or the reason why it cannot be met.

    Raises:
        ConfigError: unknown option, modality that the family does not take, contradicting wishes.
    """
    taken_modality: Modality = next(iter(row.default_specs)) if modality is None else modality
    if taken_modality not in row.default_specs:
        taken = " and ".join(f"{one}s" for one in row.default_specs)
        raise ConfigError(f"family {family} takes {taken}, no {taken_modality}s.")
    if unknown := sorted(set(options) - row.options):
        raise ConfigError(
            f"family {family} has no option {', '.join(unknown)}; it has {', '.join(sorted(row.options))}."
        )
    fixed = row.fixed.get(taken_modality, {})
    if decided := sorted(set(options) & set(fixed)):
        named = ", ".join(decided)
        raise ConfigError(f"family {family}: the option {named} has no effect on {taken_modality}s. Leave it out.")
    if spec is not None and spec_override:
        raise ConfigError("give either a whole InputSpec or single fields of it, not both.")
    if trainable and precision != "fp32":
        raise ConfigError(f"a trainable encoder keeps its weights in fp32 (training autocasts); got {precision}.")
    return Wanted(
        family, row, taken_modality, {**options, **fixed}, spec, spec_override, precision, device, trainable, layer
    )


def initialise(row: Family, architecture: Architecture, seed: int) -> nn.Module:
    """A backbone with random weights that `seed` alone decides."""
    with torch.device("meta"):  # spares the modules' own initialisation
        backbone = row.build(architecture)
    backbone.to_empty(device="cpu")
    cast(Backbone, backbone).init_weights(torch_stream(seed, "random encoder"))
    return backbone


def assemble(backbone: nn.Module, architecture: Architecture, wanted: Wanted, facts: Mapping[str, Any]) -> Encoder:
    """The encoder, frozen unless it is to be trained.

    Args:
        facts: the fields of the receipt that say where the weights came from.

    Raises:
        ConfigError: the input cannot be that of these weights.
    """
    own_spec = wanted.row.default_specs[wanted.modality](architecture)
    used_spec = _spec_in_force(wanted, own_spec)
    values = architecture.model_dump(mode="json")
    weights_hash = hash_weights(wanted.family, values, backbone.state_dict())
    if wanted.layer is not None:
        _truncate(backbone, wanted.layer, wanted.family)
    size, positions = used_spec.size_DHW, None
    is_by_frame = wanted.modality == "clip" and wanted.row.frame_by_frame
    try:
        if wanted.row.set_input_size is not None:
            positions = wanted.row.set_input_size(backbone, (1, *size[1:]) if is_by_frame else size)
        if is_by_frame:
            backbone = FrameByFrame(backbone)
        prepared = cast(Backbone, backbone)
        grid = prepared.grid_of(size)
    except ValueError as error:
        raise ConfigError(f"input of family {wanted.family}: {error}.") from error
    receipt = Receipt(
        family=wanted.family,
        modality=wanted.modality,
        weights_hash=weights_hash,
        precision=wanted.precision,
        spec=used_spec.model_dump(mode="json"),
        spec_override=own_spec.model_dump(mode="json") if used_spec != own_spec else None,
        positions=positions,
        layer=wanted.layer,
        parameters=sum(parameter.numel() for parameter in backbone.parameters()),
        **facts,
    )
    if not wanted.trainable:
        backbone.eval().requires_grad_(False)
        prepared.set_precision(DTYPES[wanted.precision])
    encoder = Encoder(
        backbone,
        grid,
        used_spec,
        receipt,
        width=prepared.width,
        family=wanted.family,
        architecture=values,
        weights_hash=weights_hash,
        precision=wanted.precision,
        layer=wanted.layer,
    )
    return encoder.eval().requires_grad_(wanted.trainable).to(wanted.device)


def _truncate(backbone: nn.Module, layer: int, family: str) -> None:
    """Leave out what lies after block number `layer`.

    Raises:
        ConfigError: there is no such block, or the end of the encoder does not fit what it gives.
    """
    num_blocks = cast(Backbone, backbone).num_blocks
    if not 1 <= layer <= num_blocks:
        has = f"blocks 1…{num_blocks}" if num_blocks else "no blocks"
        raise ConfigError(f"layer: this {family} encoder has {has}; got {layer}.")
    if layer == num_blocks:
        return
    try:
        cast(Backbone, backbone).truncate(layer)
    except ValueError as error:
        raise ConfigError(f"layer: {error}; got {layer} of {num_blocks}. Leave layer out, or take another.") from error


def _spec_in_force(wanted: Wanted, own: AnySpec) -> AnySpec:
    used = wanted.spec
    if used is None:
        try:
            used = type(own)(**{**own.model_dump(), **(wanted.spec_override or {})})
        except ValidationError as error:
            raise ConfigError(f"input of family {wanted.family}: {first_problem(error)}") from error
    if type(used) is not type(own):
        raise ConfigError(
            f"family {wanted.family} takes {wanted.modality}s here, described by {type(own).__name__}; got "
            f"{type(used).__name__}."
        )
    if used.channels != own.channels:
        raise ConfigError(
            f"input.channels of family {wanted.family}: the weights take {own.channels}; got {used.channels}."
        )
    return used


def first_problem(error: ValidationError) -> str:
    """What pydantic found, in one line."""
    problems = [f"{'.'.join(map(str, problem['loc'])) or 'value'}: {problem['msg']}" for problem in error.errors()]
    return "; ".join(problems) + "."
