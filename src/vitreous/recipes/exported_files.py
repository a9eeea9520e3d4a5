"""An exported model on disk: ``model.safetensors`` and ``config.json``; and read back."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from vitreous.core.errors import CheckpointError, UserError
from vitreous.core.files import replacing, write_json
from vitreous.core.fingerprints import hash_file
from vitreous.recipes.exported_model import build_exported_model

SCHEMA_VERSION = 1
WEIGHTS = "model.safetensors"
CONFIG = "config.json"


def write_weights(tensors: Mapping[str, torch.Tensor], folder: Path) -> str:
    """Write every tensor; returns the file's SHA-256."""
    apart = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in sorted(tensors.items())}
    with replacing(folder / WEIGHTS) as aside:
        save_file(apart, str(aside), metadata={"format": "pt"})
    return hash_file(folder / WEIGHTS)


def write_config(config: Mapping[str, Any], folder: Path) -> None:
    """Write what :func:`load_exported` needs, and what else is known of the model."""
    write_json(folder / CONFIG, {**config, "schema_version": SCHEMA_VERSION})


def is_exported(folder: Path) -> bool:
    """Whether the folder holds an exported model, of whatever version."""
    path = folder / CONFIG
    return path.is_file() and "form" in json.loads(path.read_text())


def load_exported(folder: str | Path) -> nn.Module:
    """The model that ``vitreous export`` wrote, in eval mode: normalised inputs to logits.

    It takes images (B, C, H, W) or volumes (B, C, D, H, W), prepared as ``config.json`` says under ``model.spec``.

    Raises:
        UserError: no exported model, or of another version.
        CheckpointError: the weights are damaged, or not those of the config.
    """
    folder = Path(folder)
    if not is_exported(folder):
        raise UserError(f"{folder}: no exported model (no {CONFIG} of one); give the folder that export wrote.")
    config = json.loads((folder / CONFIG).read_text())
    if config["schema_version"] != SCHEMA_VERSION:
        raise UserError(
            f"{folder}: schema_version {config['schema_version']}; this version of Vitreous reads {SCHEMA_VERSION}."
        )
    path = folder / WEIGHTS
    try:
        if hash_file(path) != config["hashes"][WEIGHTS]:
            raise CheckpointError(
                f"{path}: is not the file that {CONFIG} was written with. Copy the whole folder again."
            )
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: the weights cannot be read ({error}). Copy the whole folder again.") from error
    try:
        if config["form"] == "timm":
            return _build_timm(config["timm"], tensors)
        model = build_exported_model(config["model"])
        model.load_tensors(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: the weights do not fit {CONFIG}: {error}. Copy both again.") from error
    return model


def _build_timm(settings: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    from vitreous.core.torchvision_schema import declare_torchvision_schemas

    declare_torchvision_schemas()
    import timm

    with torch.random.fork_rng(devices=[]):
        model: nn.Module = timm.create_model(**settings)
    model.load_state_dict(dict(tensors))
    return model.eval().requires_grad_(False)
