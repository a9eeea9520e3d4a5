"""A trained pixel model on disk: what training changed, and nothing else.

``best.safetensors`` holds the head and those tensors of the encoder (parameters and statistics) whose bytes differ from
what was loaded, under the names the encoder has without adapters; ``adapter/`` holds the adapters in PEFT's format.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vitreous.core.errors import CheckpointError
from vitreous.core.files import replacing, write_json
from vitreous.encoders.encoder import Encoder
from vitreous.recipes.lora import adapter_config, adapter_tensors, add_adapters
from vitreous.recipes.pixel_model import PixelModel
from vitreous.recipes.segmentation import SegmentationSettings
from vitreous.recipes.trainable import is_adapter
from vitreous.recipes.weights_digest import digest_tensor

SCHEMA_VERSION = 1
WEIGHTS_FILE = "best.safetensors"
ADAPTER_FOLDER = "adapter"

_ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_WEIGHTS = "adapter_model.safetensors"
_METADATA_KEY = "vitreous"  # one key: safetensors writes several in an order of chance


def pixel_model_config(model: PixelModel) -> dict[str, Any]:
    """Plain values from which :func:`build_pixel_model` makes the same model around the same encoder."""
    return {
        "pooling": model.pooling,
        "grid": None if model.coarse_grid is None else list(model.coarse_grid),
        "num_classes": model.num_classes,
        "head": model.head_kind,
        "head_width": model.head_width,
        "dropout": model.dropout,
        "segmentation": None
        if model.decoder is None
        else {"num_classes": model.decoder.num_classes, "size": list(model.decoder.size)},
        "adapters": None if model.adapters is None else model.adapters.as_config(),
    }


def build_pixel_model(config: Mapping[str, Any], encoder: Encoder) -> PixelModel:
    """The model of :func:`pixel_model_config`, in eval mode; head and adapters are to be restored.

    Args:
        encoder: the one that was trained from, in trainable form.

    Raises:
        UserError: the encoder has not the blocks or modules that the adapters stand beside.
    """
    grid = config["grid"]
    model = PixelModel(
        encoder,
        pooling=config["pooling"],
        coarse_grid=None if grid is None else (grid[0], grid[1], grid[2]),
        num_classes=config["num_classes"],
        head=config["head"],
        head_width=config["head_width"],
        dropout=config["dropout"],
        seed=0,
        segmentation=_segmentation(config.get("segmentation")),
    )
    if config["adapters"] is not None:
        add_adapters(model, **config["adapters"], seed=0)
    return model.eval()


def _segmentation(config: Mapping[str, Any] | None) -> SegmentationSettings | None:
    if config is None:
        return None
    return SegmentationSettings(config["num_classes"], (config["size"][0], config["size"][1]))


def save_pixel_model(model: PixelModel, folder: Path) -> None:
    """Write head, changed tensors of the encoder, and adapters; each file whole or not at all."""
    encoder_tensors = _encoder_tensors(model)
    changed = {
        name: tensor for name, tensor in encoder_tensors.items() if digest_tensor(tensor) != model.loaded_digests[name]
    }
    facts = {
        "schema_version": SCHEMA_VERSION,
        "family": model.encoder.family,
        "encoder_weights": model.encoder.weights_hash,
        "is_whole_encoder": len(changed) == len(encoder_tensors),
        "has_adapters": model.adapters is not None,
    }
    adapter = folder / ADAPTER_FOLDER
    if model.adapters is None:
        for name in (_ADAPTER_WEIGHTS, _ADAPTER_CONFIG):
            (adapter / name).unlink(missing_ok=True)
    else:
        _save_tensors(adapter / _ADAPTER_WEIGHTS, adapter_tensors(model), {"format": "pt"})
        write_json(adapter / _ADAPTER_CONFIG, adapter_config(model))
    tensors = {
        **{f"encoder.{name}": tensor for name, tensor in changed.items()},
        **_own_tensors(model),
    }
    _save_tensors(folder / WEIGHTS_FILE, tensors, {_METADATA_KEY: json.dumps(facts, sort_keys=True)})


def restore_pixel_model(model: PixelModel, folder: Path) -> None:
    """Bring a freshly built model to what :func:`save_pixel_model` wrote, bit by bit.

    Raises:
        CheckpointError: a file is missing or damaged, was made from another encoder, holds a tensor that the model has
            not or in another shape, or misses one of the head or the adapters. The model is then as it was.
    """
    path = folder / WEIGHTS_FILE
    tensors, metadata = _load_tensors(path)
    if _METADATA_KEY not in metadata:
        raise CheckpointError(
            f"{path}: not written by a recipe that trains on pixels. Give the folder of such a model."
        )
    facts = json.loads(metadata[_METADATA_KEY])
    if facts["schema_version"] != SCHEMA_VERSION:
        raise CheckpointError(
            f"{path}: schema_version {facts['schema_version']}; this version of Vitreous reads {SCHEMA_VERSION}. "
            "Read it with the version that wrote it."
        )
    if not facts["is_whole_encoder"] and facts["encoder_weights"] != model.encoder.weights_hash:
        raise CheckpointError(
            f"{path}: holds changes to the {facts['family']} encoder {facts['encoder_weights'][:12]}…; this one is "
            f"{model.encoder.family} {model.encoder.weights_hash[:12]}…. Give the encoder that was trained from."
        )
    if facts["has_adapters"] != (model.adapters is not None):
        got, built = ("adapters", "none") if facts["has_adapters"] else ("no adapters", "some")
        raise CheckpointError(f"{path}: was saved with {got}, the model was built with {built}.")
    encoder_tensors = {f"encoder.{name}": tensor for name, tensor in _encoder_tensors(model).items()}
    head_tensors = _own_tensors(model)
    required = set(head_tensors) | (set(encoder_tensors) if facts["is_whole_encoder"] else set())
    pairs = _pairs(path, tensors, {**encoder_tensors, **head_tensors}, required)
    if model.adapters is not None:
        pairs += _adapter_pairs(model, folder / ADAPTER_FOLDER)
    with torch.no_grad():
        for target, stored in pairs:
            target.copy_(stored)


def _encoder_tensors(model: PixelModel) -> dict[str, torch.Tensor]:
    """The encoder's own tensors, not copies, under the names they have without adapters."""
    state = model.encoder.backbone.state_dict()
    return {name.replace(".base_layer.", "."): tensor for name, tensor in state.items() if not is_adapter(name)}


def _own_tensors(model: PixelModel) -> dict[str, torch.Tensor]:
    """Those of head and decoder, which no encoder brings."""
    decoder = {} if model.decoder is None else model.decoder.state_dict()
    return {
        **{f"head.{name}": tensor for name, tensor in model.head.state_dict().items()},
        **{f"decoder.{name}": tensor for name, tensor in decoder.items()},
    }


def _adapter_pairs(model: PixelModel, folder: Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    path = folder / _ADAPTER_CONFIG
    if not path.is_file():
        raise CheckpointError(f"{path}: the settings of the adapters do not exist. Copy the whole folder.")
    stored, built = json.loads(path.read_text()), json.loads(json.dumps(adapter_config(model)))
    decisive = ("r", "lora_alpha", "target_modules", "use_rslora", "use_dora")
    if differing := [key for key in decisive if stored.get(key) != built[key]]:
        raise CheckpointError(
            f"{path}: "
            + "; ".join(f"{key} is {stored.get(key)!r}, the model has {built[key]!r}" for key in differing)
            + ". Build the model by its own settings."
        )
    tensors, _ = _load_tensors(folder / _ADAPTER_WEIGHTS)
    expected = adapter_tensors(model)
    return _pairs(folder / _ADAPTER_WEIGHTS, tensors, expected, set(expected))


def _pairs(
    path: Path, stored: Mapping[str, torch.Tensor], present: Mapping[str, torch.Tensor], required: set[str]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    problems = [
        *(f"{name} is missing" for name in sorted(required - set(stored))),
        *(f"{name} has no place in the model" for name in sorted(set(stored) - set(present))),
        *(
            f"{name} is {_form(stored[name])}, the model's {_form(present[name])}"
            for name in sorted(set(stored) & set(present))
            if _form(stored[name]) != _form(present[name])
        ),
    ]
    if problems:
        more = f" and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise CheckpointError(f"{path}: {'; '.join(problems[:10])}{more}. Build the model that was saved.")
    return [(present[name], tensor) for name, tensor in stored.items()]


def _form(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> None:
    plain = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    with replacing(path) as aside:
        save_file(plain, str(aside), metadata=metadata)


def _load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    if not path.is_file():
        raise CheckpointError(f"{path}: the weights do not exist. Give the folder of a finished model.")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{path}: the file is damaged ({error}). Copy it again.") from error
