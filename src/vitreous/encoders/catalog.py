"""The families of encoders, and the ways to get one: from a checkpoint, from a family's own source, or random."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError

from vitreous.core.errors import CheckpointError, ConfigError
from vitreous.core.input_spec import AnySpec, Modality
from vitreous.encoders.assembly import Wanted, assemble, check_wanted, first_problem, initialise
from vitreous.encoders.checkpoint import CheckpointFile, read_checkpoint
from vitreous.encoders.distance import distance_from_random
from vitreous.encoders.encoder import Encoder, Precision
from vitreous.encoders.family import Family, Inferred
from vitreous.encoders.family_litemedsam import LITEMEDSAM
from vitreous.encoders.family_pixels import PIXELS
from vitreous.encoders.family_resnet3d import RESNET3D
from vitreous.encoders.family_retfound import RETFOUND
from vitreous.encoders.family_timm import TIMM
from vitreous.encoders.family_videomae import VIDEOMAE
from vitreous.encoders.family_vit3d import VIT3D
from vitreous.encoders.family_vjepa2 import VJEPA2
from vitreous.encoders.matching import Selection, check_complete, select_tensors
from vitreous.storage.files import fetch_file
from vitreous.storage.location import DEFAULT_S3, S3Options
from vitreous.storage.staging import DEFAULT_CACHE, StagingCache

FAMILIES: dict[str, Family] = {
    "vit3d": VIT3D,
    "litemedsam": LITEMEDSAM,
    "resnet3d": RESNET3D,
    "timm": TIMM,
    "pixels": PIXELS,
    "retfound": RETFOUND,
    "vjepa2": VJEPA2,
    "videomae": VIDEOMAE,
}


def load_encoder(
    path: str | Path,
    family: str,
    *,
    which: Literal["context", "target"] = "context",
    key_prefix: str | None = None,
    modality: Modality | None = None,
    spec: AnySpec | None = None,
    spec_override: Mapping[str, Any] | None = None,
    precision: Precision = "fp32",
    device: str | torch.device = "cpu",
    trainable: bool = False,
    layer: int | None = None,
    **family_options: Any,
) -> Encoder:
    """Read a checkpoint into an encoder, or refuse it by name.

    Args:
        path: a .pt, .pth, .ckpt, .bin or .safetensors file; a path, or at ``s3://`` or ``gs://`` (the endpoint then
            comes from S3_ENDPOINT_URL). Or a local folder in transformers' layout, config.json and safetensors.
        family: a row of `FAMILIES`.
        which: of the two encoders that joint-embedding pretraining leaves in one file.
        key_prefix: what stands in front of the encoder's names, where the usual prefixes do not fit.
        modality: what the encoder is given; None is the family's usual one.
        spec: replaces the family's InputSpec or ImageSpec as a whole; the receipt says so.
        spec_override: replaces single fields of it; the receipt says so.
        precision: of matrix products; tokens are float32 either way.
        trainable: weights take gradients, stay in float32 and keep their batch norms apart; else all is frozen.
        layer: number of the block, from 1, whose outcome the encoder's end makes tokens of; None is the last.
        family_options: such as `img_size` of vit3d or `model` of timm.

    Raises:
        CheckpointError: the file cannot be read safely, or not every tensor of the encoder is in it, or more is.
        ConfigError: unknown family, option or field of the input; modality or size that the family does not take.

    >>> encoder = load_encoder("multi_scanner.pt", "vit3d")  # doctest: +SKIP
    >>> encoder(volumes_BCDHW).tokens_BND.mean(1)  # doctest: +SKIP
    """
    row = _family(family)
    wanted = check_wanted(
        family, row, modality, family_options, spec, spec_override, precision, device, trainable, layer
    )
    file = read_checkpoint(fetch_checkpoint(str(path), cache=StagingCache(Path(DEFAULT_CACHE[0]), DEFAULT_CACHE[1])))
    role = _role(file, family, row, which)
    training = {"training state": file.left_aside} if file.left_aside else {}
    return _matched(
        file.tensors,
        str(file.path),
        wanted,
        role=role,
        key_prefix=key_prefix,
        config=file.config,
        ignored=training,
        facts={
            "origin": "checkpoint",
            "path": str(file.path),
            "file_sha256": file.sha256,
            "container": file.container,
            "facts": file.facts,
        },
    )


def fetch_checkpoint(text: str, s3: S3Options = DEFAULT_S3, cache: StagingCache | None = None) -> Path:
    """The local path of a checkpoint: of a local folder in transformers' layout itself, of a file as `fetch_file`."""
    folder = Path(text).expanduser()
    return folder if folder.is_dir() else fetch_file(text, s3, cache)


def fetch_encoder(
    name: str,
    family: str,
    *,
    modality: Modality | None = None,
    spec: AnySpec | None = None,
    spec_override: Mapping[str, Any] | None = None,
    precision: Precision = "fp32",
    device: str | torch.device = "cpu",
    trainable: bool = False,
    layer: int | None = None,
    **family_options: Any,
) -> Encoder:
    """Published weights by their name at the family's own source, held to the same rules as a file.

    Args:
        name: for timm a name with or without a tag, such as ``vit_small_patch16_224.augreg_in21k_ft_in1k``; for vjepa2
            and videomae that of a model at the hub of transformers, such as ``facebook/vjepa2-vitl-fpc64-256``.

    Raises:
        ConfigError: the family has no such source, or the source no such name.
        StorageError: the weights could not be fetched.
    """
    row = _family(family)
    if row.fetch is None:
        having = ", ".join(known for known, other in FAMILIES.items() if other.fetch is not None)
        raise ConfigError(f"family {family} has no source of published weights; {having} have. Give a checkpoint.")
    if "model" in family_options:
        raise ConfigError("`hub` names the model; leave the option model out.")
    options = {"model": name, **family_options} if "model" in row.options else family_options
    wanted = check_wanted(family, row, modality, options, spec, spec_override, precision, device, trainable, layer)
    _checked(row, options, name)
    fetched = row.fetch(name)
    return _matched(
        fetched.tensors,
        fetched.location,
        wanted,
        role="only" if "only" in row.prefixes else "context",
        key_prefix=None,
        config=dict(fetched.config),
        ignored={},
        facts={"origin": f"hub {name}", "path": fetched.location, "file_sha256": None, "container": "", "facts": {}},
    )


def build_random_encoder(
    family: str,
    *,
    architecture: Mapping[str, Any],
    seed: int,
    modality: Modality | None = None,
    spec: AnySpec | None = None,
    spec_override: Mapping[str, Any] | None = None,
    precision: Precision = "fp32",
    device: str | torch.device = "cpu",
    trainable: bool = False,
    layer: int | None = None,
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
    wanted = check_wanted(
        family, row, modality, family_options, spec, spec_override, precision, device, trainable, layer
    )
    try:
        stated = row.architecture(**{**wanted.options, **architecture})
        repeated = row.architecture(**{**architecture, **wanted.options})
    except ValidationError as error:
        raise ConfigError(f"architecture of a random {family} encoder: {first_problem(error)}") from error
    if stated != repeated:
        raise ConfigError(f"architecture and options of a random {family} encoder disagree: {stated} and {repeated}.")
    try:
        backbone = initialise(row, stated, seed)
    except ValueError as error:
        raise ConfigError(f"architecture of a random {family} encoder: {error}.") from error
    tensors = backbone.state_dict()
    total_bytes = sum(tensor.nbytes for tensor in tensors.values())
    return assemble(
        backbone,
        stated,
        wanted,
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


def _matched(
    stored: Mapping[str, torch.Tensor],
    where: str,
    wanted: Wanted,
    *,
    role: str,
    key_prefix: str | None,
    config: dict[str, Any],
    ignored: Mapping[str, tuple[str, ...]],
    facts: Mapping[str, Any],
) -> Encoder:
    """Every tensor of the encoder from `stored`, and nothing left over but by rule."""
    row, family = wanted.row, wanted.family
    try:
        anchor = row.anchor(wanted.options) if callable(row.anchor) else row.anchor
        selection = select_tensors(
            stored,
            where=where,
            anchor=anchor,
            prefixes=row.prefixes[role],
            rules=row.rules[role],
            key_prefix=key_prefix,
            wanted=f"{role} encoder of family {family}" if role != "only" else f"{family} encoder",
        )
        inferred = row.infer(where, selection.tensors, config, wanted.options)
    except ValidationError as error:
        raise ConfigError(f"{where}: {first_problem(error)}") from error
    selection = _converted(selection, inferred)
    values = inferred.architecture.model_dump(mode="json")
    with torch.device("meta"):
        built = row.build(inferred.architecture).state_dict()
    expected = {name.removeprefix(row.holder): tensor.shape for name, tensor in built.items()}
    check_complete(where, selection, expected, values)

    backbone = initialise(row, inferred.architecture, seed=0)
    fresh = {name.removeprefix(row.holder): tensor for name, tensor in backbone.state_dict().items()}
    distance = distance_from_random(selection.tensors, fresh)
    backbone.load_state_dict({row.holder + name: tensor for name, tensor in selection.tensors.items()}, strict=True)
    stored_bytes = sum(tensor.nbytes for tensor in selection.tensors.values())
    return assemble(
        backbone,
        inferred.architecture,
        wanted,
        facts={
            "which": role,
            "key_prefix": selection.prefix,
            "tensors_matched": len(selection.tensors),
            "tensors_total": len(expected),
            "bytes_matched": stored_bytes,
            "bytes_total": stored_bytes,
            "inferred": {**values, "sources": inferred.sources},
            "config": config,
            "ignored_by_rule": {**selection.ignored, **ignored},
            "distance_from_random": distance,
            **facts,
        },
    )


def _converted(selection: Selection, inferred: Inferred) -> Selection:
    """The selection as the family's architecture reads it."""
    tensors = selection.tensors if inferred.tensors is None else dict(inferred.tensors)
    return Selection(tensors, selection.prefix, {**selection.ignored, **inferred.ignored})


def _family(name: str) -> Family:
    if name not in FAMILIES:
        raise ConfigError(f"unknown encoder family {name!r}; known are {', '.join(FAMILIES)}.")
    return FAMILIES[name]


def _checked(row: Family, options: Mapping[str, Any], where: str) -> None:
    try:
        row.architecture(**options)
    except ValidationError as error:
        raise ConfigError(f"{where}: {first_problem(error)}") from error


def _role(file: CheckpointFile, family: str, row: Family, which: str) -> str:
    if which in row.prefixes:
        return which
    if which == "target":
        raise CheckpointError(f"{file.path}: family {family} has one encoder, and no target. Leave `which` out.")
    return "only"
