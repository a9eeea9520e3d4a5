"""The families of encoders, and the two ways to get one: from a checkpoint, or with random weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
from pydantic import ValidationError
from torch import nn

from vitreous.core.errors import CheckpointError, ConfigError
from vitreous.core.input_spec import InputSpec
from vitreous.core.streams import torch_stream
from vitreous.encoders.checkpoint import CheckpointFile, read_checkpoint
from vitreous.encoders.distance import distance_from_random
from vitreous.encoders.encoder import DTYPES, Backbone, Encoder, Precision, hash_weights
from vitreous.encoders.family import Architecture, Family
from vitreous.encoders.family_litemedsam import LITEMEDSAM
from vitreous.encoders.family_resnet3d import RESNET3D
from vitreous.encoders.family_vit3d import VIT3D
from vitreous.encoders.matching import Selection, check_complete, select_tensors
from vitreous.encoders.receipt import Receipt
from vitreous.storage.files import fetch_file
from vitreous.storage.staging import DEFAULT_CACHE, StagingCache

FAMILIES: dict[str, Family] = {"vit3d": VIT3D, "litemedsam": LITEMEDSAM, "resnet3d": RESNET3D}


def load_encoder(
    path: str | Path,
    family: str,
    *,
    which: Literal["context", "target"] = "context",
    key_prefix: str | None = None,
    spec: InputSpec | None = None,
    spec_override: Mapping[str, Any] | None = None,
    precision: Precision = "fp32",
    device: str | torch.device = "cpu",
    **family_options: Any,
) -> Encoder:
    """Read a checkpoint into a frozen encoder, or refuse it by name.

    Args:
        path: a .pt, .pth, .ckpt, .bin or .safetensors file; a path, or at ``s3://`` or ``gs://`` (the endpoint then
            comes from S3_ENDPOINT_URL).
        family: a row of `FAMILIES`.
        which: of the two encoders that joint-embedding pretraining leaves in one file.
        key_prefix: what stands in front of the encoder's names, where the usual prefixes do not fit.
        spec: replaces the family's InputSpec as a whole; the receipt says so.
        spec_override: replaces single fields of the InputSpec; the receipt says so.
        precision: of matrix products; tokens are float32 either way.
        family_options: such as `img_size` of vit3d or `num_slices` of litemedsam.

    Raises:
        CheckpointError: the file cannot be read safely, or not every tensor of the encoder is in it, or more is.
        ConfigError: unknown family, option or InputSpec field.

    >>> encoder = load_encoder("multi_scanner.pt", "vit3d")  # doctest: +SKIP
    >>> encoder(volumes_BCDHW).tokens_BND.mean(1)  # doctest: +SKIP
    """
    row = _family(family)
    _check_options(family, row, family_options)
    file = read_checkpoint(fetch_file(str(path), cache=StagingCache(Path(DEFAULT_CACHE[0]), DEFAULT_CACHE[1])))
    role = _role(file, family, row, which)
    selection = select_tensors(
        file.tensors,
        where=str(file.path),
        anchor=row.anchor,
        prefixes=row.prefixes[role],
        rules=row.rules[role],
        key_prefix=key_prefix,
        wanted=f"{role} encoder of family {family}" if role != "only" else f"{family} encoder",
    )
    try:
        inferred = row.infer(str(file.path), selection.tensors, file.config, family_options)
    except ValidationError as error:
        raise ConfigError(f"{file.path}: {_first_problem(error)}") from error
    values = inferred.architecture.model_dump(mode="json")
    with torch.device("meta"):
        expected = {name: tensor.shape for name, tensor in row.build(inferred.architecture).state_dict().items()}
    check_complete(str(file.path), selection, expected, values)

    backbone = _initialised(row, inferred.architecture, seed=0)
    distance = distance_from_random(selection.tensors, backbone.state_dict())
    backbone.load_state_dict(selection.tensors, strict=True)
    stored_bytes = sum(tensor.nbytes for tensor in selection.tensors.values())
    return _finished(
        backbone,
        row,
        family,
        inferred.architecture,
        spec,
        spec_override,
        precision,
        device,
        facts={
            "origin": "checkpoint",
            "path": str(file.path),
            "file_sha256": file.sha256,
            "which": role,
            "container": file.container,
            "key_prefix": selection.prefix,
            "tensors_matched": len(selection.tensors),
            "tensors_total": len(expected),
            "bytes_matched": stored_bytes,
            "bytes_total": stored_bytes,
            "inferred": {**values, "sources": inferred.sources},
            "config": file.config,
            "facts": file.facts,
            "ignored_by_rule": _ignored(file, selection),
            "distance_from_random": distance,
        },
    )


def build_random_encoder(
    family: str,
    *,
    architecture: Mapping[str, Any],
    seed: int,
    spec: InputSpec | None = None,
    spec_override: Mapping[str, Any] | None = None,
    precision: Precision = "fp32",
    device: str | torch.device = "cpu",
    **family_options: Any,
) -> Encoder:
    """An untrained encoder; the same architecture and seed give the same weights.

    Args:
        architecture: fields of the family's architecture, e.g. `encoder.architecture` of a loaded one.
        family_options: further such fields; they may repeat, but not contradict, those of `architecture`.

    Raises:
        ConfigError: a field is unknown, missing or out of range, or stated twice differently.
    """
    row = _family(family)
    _check_options(family, row, family_options)
    try:
        stated = row.architecture(**{**family_options, **architecture})
        repeated = row.architecture(**{**architecture, **family_options})
    except ValidationError as error:
        raise ConfigError(f"architecture of a random {family} encoder: {_first_problem(error)}") from error
    if stated != repeated:
        raise ConfigError(f"architecture and options of a random {family} encoder disagree: {stated} and {repeated}.")
    try:
        backbone = _initialised(row, stated, seed)
    except ValueError as error:
        raise ConfigError(f"architecture of a random {family} encoder: {error}.") from error
    tensors = backbone.state_dict()
    total_bytes = sum(tensor.nbytes for tensor in tensors.values())
    return _finished(
        backbone,
        row,
        family,
        stated,
        spec,
        spec_override,
        precision,
        device,
        facts={
            "origin": f"random, seed {seed}",
            "path": None,
            "file_sha256": None,
            "which": "only",
            "container": "",
            "key_prefix": "",
            "tensors_matched": len(tensors),
            "tensors_total": len(tensors),
            "bytes_matched": total_bytes,
            "bytes_total": total_bytes,
            "inferred": {},
            "config": {},
            "facts": {},
            "distance_from_random": {},
        },
    )


def _finished(
    backbone: nn.Module,
    row: Family,
    family: str,
    architecture: Architecture,
    spec: InputSpec | None,
    spec_override: Mapping[str, Any] | None,
    precision: Precision,
    device: str | torch.device,
    *,
    facts: dict[str, Any],
) -> Encoder:
    own_spec = row.default_spec(architecture)
    used_spec = _spec_in_force(family, own_spec, spec, spec_override)
    if used_spec.channels != own_spec.channels:
        raise ConfigError(
            f"input.channels of family {family}: the weights take {own_spec.channels}; got {used_spec.channels}."
        )
    values = architecture.model_dump(mode="json")
    weights_hash = hash_weights(family, values, backbone.state_dict())
    prepared = cast(Backbone, backbone)
    try:
        grid = prepared.grid_of(used_spec.size_DHW)
    except ValueError as error:
        raise ConfigError(f"input of family {family}: {error}.") from error
    receipt = Receipt(
        family=family,
        weights_hash=weights_hash,
        precision=precision,
        spec=used_spec.model_dump(mode="json"),
        spec_override=own_spec.model_dump(mode="json") if used_spec != own_spec else None,
        parameters=sum(parameter.numel() for parameter in backbone.parameters()),
        **facts,
    )
    backbone.eval().requires_grad_(False)
    prepared.set_precision(DTYPES[precision])
    encoder = Encoder(
        backbone,
        grid,
        used_spec,
        receipt,
        width=prepared.width,
        family=family,
        architecture=values,
        weights_hash=weights_hash,
        precision=precision,
    )
    return encoder.eval().requires_grad_(False).to(device)


def _initialised(row: Family, architecture: Architecture, seed: int) -> nn.Module:
    with torch.device("meta"):  # spares the modules' own initialisation
        backbone = row.build(architecture)
    backbone.to_empty(device="cpu")
    cast(Backbone, backbone).init_weights(torch_stream(seed, "random encoder"))
    return backbone


def _family(name: str) -> Family:
    if name not in FAMILIES:
        raise ConfigError(f"unknown encoder family {name!r}; known are {', '.join(FAMILIES)}.")
    return FAMILIES[name]


def _check_options(family: str, row: Family, options: Mapping[str, Any]) -> None:
    if unknown := sorted(set(options) - row.options):
        known = ", ".join(sorted(row.options))
        raise ConfigError(f"family {family} has no option {', '.join(unknown)}; it has {known}.")


def _role(file: CheckpointFile, family: str, row: Family, which: str) -> str:
    if which in row.prefixes:
        return which
    if which == "target":
        raise CheckpointError(f"{file.path}: family {family} has one encoder, and no target. Leave `which` out.")
    return "only"


def _spec_in_force(
    family: str, own: InputSpec, spec: InputSpec | None, override: Mapping[str, Any] | None
) -> InputSpec:
    if spec is not None and override:
        raise ConfigError("give either a whole InputSpec or single fields of it, not both.")
    if spec is not None:
        return spec
    try:
        return InputSpec(**{**own.model_dump(), **(override or {})})
    except ValidationError as error:
        raise ConfigError(f"input of family {family}: {_first_problem(error)}") from error


def _ignored(file: CheckpointFile, selection: Selection) -> dict[str, tuple[str, ...]]:
    training = {"training state": file.left_aside} if file.left_aside else {}
    return {**selection.ignored, **training}


def _first_problem(error: ValidationError) -> str:
    problems = [f"{'.'.join(map(str, problem['loc'])) or 'value'}: {problem['msg']}" for problem in error.errors()]
    return "; ".join(problems) + "."
