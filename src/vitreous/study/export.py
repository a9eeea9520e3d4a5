"""`vitreous export MODEL_DIR --to DIR`: one trained model, complete and apart from its run.

Axes: B batch, C channel (of input) or class (of logits), D slice, H row, W column.
"""

import importlib.metadata
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console

from vitreous.core.errors import RunError, UserError
from vitreous.core.files import write_text
from vitreous.core.streams import torch_stream
from vitreous.recipes.attentive_probe import logits_of_tokens
from vitreous.recipes.exported_files import WEIGHTS, is_exported, write_config, write_weights
from vitreous.recipes.exported_model import ExportedModel, read_tokens
from vitreous.recipes.exported_timm import as_timm, relative_difference
from vitreous.recipes.probe_logits import probe_logits
from vitreous.study.adapt_pixels import read_pixel_model
from vitreous.study.encoders import OpenedEncoder
from vitreous.study.export_onnx import ONNX_FILE, check_onnx_packages, write_onnx
from vitreous.study.heads import hash_model, read_tensors
from vitreous.study.model_card import render_model_card
from vitreous.study.model_folder import ModelFolder, open_encoder, open_model_folder
from vitreous.study.plain_model import plain_model
from vitreous.study.runtime import resolve_runtime

MOST_DIFFERENCE = 1e-3
_PACKAGES = ("torch", "timm", "safetensors", "peft")
_TIMM_EXAMPLE = '''\
"""Loads this model with timm alone. How images are prepared: config["model"]["spec"]."""

import json
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file

folder = Path(__file__).parent
config = json.loads((folder / "config.json").read_text())
model = timm.create_model(**config["timm"]).eval()
model.load_state_dict(load_file(folder / "model.safetensors"))
with torch.no_grad():
    logits = model(torch.zeros(config["input"]["example"]))  # in place of normalised images
print(dict(zip(config["classes"], logits.softmax(1)[0].tolist())))
'''
_VITREOUS_EXAMPLE = '''\
"""Loads this model with Vitreous. How inputs are prepared: config["model"]["spec"]."""

import json
from pathlib import Path

import torch
from vitreous import load_exported

folder = Path(__file__).parent
config = json.loads((folder / "config.json").read_text())
model = load_exported(folder)
with torch.no_grad():
    logits = model(torch.zeros(config["input"]["example"]))  # in place of normalised inputs
print(dict(zip(config["classes"], logits.softmax(1)[0].tolist())))
'''


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        form: ``timm`` where timm alone loads it, else ``vitreous``.
        difference: of the exported logits from those of the run's own way, relative to the largest logit.
        onnx_difference: of ONNX Runtime from torch; None without ONNX.
    """

    folder: Path
    form: str
    difference: float
    onnx_difference: float | None


def export_model(
    model_dir: Path, folder: Path, *, checkpoint: str | None = None, onnx: bool = False, console: Console | None = None
) -> Exported:
    """Write weights, config, model card and example; with `onnx` also ``model.onnx``.

    Args:
        folder: new, empty, or of an earlier export, which is replaced.
        checkpoint: where the encoder's file lies now, if it moved.
        console: where progress is told; the error stream if left out.

    Raises:
        UserError: no such model, one that cannot be exported, or a folder that holds something else.
        RunError: the exported model does not say the same; nothing of it is usable then.
    """
    console = console or Console(stderr=True, highlight=False, markup=False)
    if onnx:
        check_onnx_packages()
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not is_exported(folder))):
        raise UserError(f"--to {folder}: holds something else than an exported model; give a new or empty folder.")
    model = open_model_folder(model_dir, checkpoint=checkpoint, device="cpu")
    opened = open_encoder(model, replace(resolve_runtime(model.config), precision="fp32"))
    exported, original = plain_model(model, opened), _original(model, opened)
    x = _example(exported)
    difference = _compare(exported, original, x)
    console.print(f"{model.name}: exported logits differ by {difference:.1e} of the largest.")
    timm_form = as_timm(exported, x)
    folder.mkdir(parents=True, exist_ok=True)
    if onnx:
        onnx_difference: float | None = write_onnx(exported, x, folder)
        console.print(f"ONNX: logits differ by {onnx_difference:.1e} of the largest.")
    else:
        onnx_difference = None
        (folder / ONNX_FILE).unlink(missing_ok=True)  # of an earlier export
    weights_digest = write_weights(exported.tensors() if timm_form is None else timm_form[1], folder)
    form = "vitreous" if timm_form is None else "timm"
    config: dict[str, Any] = {
        "form": form,
        **({} if timm_form is None else {"timm": timm_form[0]}),
        **_describe(model, opened, exported, x),
        "parity": {"export": difference, "onnx": onnx_difference},
    }
    config["hashes"][WEIGHTS] = weights_digest
    write_text(folder / "load_example.py", _VITREOUS_EXAMPLE if timm_form is None else _TIMM_EXAMPLE)
    write_text(folder / "README.md", render_model_card(model, config))
    write_config(config, folder)
    return Exported(folder, form, difference, onnx_difference)


def _original(model: ModelFolder, opened: OpenedEncoder) -> Callable[[torch.Tensor], torch.Tensor]:
    """The run's own way from normalised inputs (B, C, D, H, W) to logits."""
    if model.recipe is not None:
        return read_pixel_model(model.config, opened, model.recipe, int(model.facts["seed"]), model.path)
    tensors, space = read_tensors(model.path), model.facts["feature_space"]
    grid = None if space["grid"] is None else (space["grid"][0], space["grid"][1], space["grid"][2])

    def original(x_BCDHW: torch.Tensor) -> torch.Tensor:
        inputs = read_tokens(opened.encoder(x_BCDHW), space["pooling"], grid)
        if space["pooling"] == "tokens":
            return torch.from_numpy(logits_of_tokens(tensors, inputs))
        return torch.from_numpy(probe_logits(tensors, inputs.numpy()))

    return original


def _example(exported: ExportedModel) -> torch.Tensor:
    """Normalised inputs of noise: two images (B, C, H, W), or one volume (B, C, D, H, W)."""
    spec = exported.encoder.spec
    is_image = exported.encoder.modality == "image"
    shape = (2, spec.channels, *spec.size_DHW[1:]) if is_image else (1, spec.channels, *spec.size_DHW)
    return torch.randn(shape, generator=torch_stream(0, "export"))


def _compare(exported: ExportedModel, original: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> float:
    with torch.no_grad():
        expected_BC = original(x[:, :, None] if x.ndim == 4 else x)
        difference = relative_difference(exported(x).double(), expected_BC.double())
    if not difference <= MOST_DIFFERENCE:
        raise RunError(
            f"the exported model's logits differ from the run's by {difference:.1e} of the largest logit; at most "
            f"{MOST_DIFFERENCE:.0e} is allowed. A feature of hardly any spread in training may be the reason."
        )
    return difference


def _describe(model: ModelFolder, opened: OpenedEncoder, exported: ExportedModel, x: torch.Tensor) -> dict[str, Any]:
    """Plain values for ``config.json``; no places of files, which name people's disks."""
    receipt = opened.encoder.receipt
    return {
        "study": model.config.name,
        "recipe": {"name": model.recipe_name, **_settings(model)},
        "encoder": {
            "name": model.facts["encoder"]["name"],
            "origin": receipt.origin,
            "which": receipt.which,
            "positions": receipt.positions,
        },
        "model": exported.describe(),
        "input": {"shape": ["B", *x.shape[1:]], "example": [1, *x.shape[1:]], "normalised": True},
        "classes": list(model.classes),
        "seed": model.facts["seed"],
        "trained_precision": model.facts["feature_space"]["precision"],
        "preprocessing_versions": model.facts["feature_space"]["versions"],
        "hashes": {
            "encoder_weights": opened.encoder.weights_hash,
            "encoder_file": receipt.file_sha256,
            "trained_model": hash_model(model.path),
        },
        "versions": _versions(),
    }


def _settings(model: ModelFolder) -> Mapping[str, Any]:
    values: Mapping[str, Any] = yaml.safe_load((model.path / "config.yaml").read_text())
    return json.loads(json.dumps(values))  # type: ignore[no-any-return]


def _versions() -> dict[str, str]:
    from vitreous import __version__

    packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"vitreous": __version__, "python": sys.version.split()[0], **packages}


def print_export(model_dir: Path, folder: Path, *, checkpoint: str | None = None, onnx: bool = False) -> None:
    """Export, and say how the result is loaded."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    done = export_model(model_dir, folder, checkpoint=checkpoint, onnx=onnx)
    loader = "timm alone" if done.form == "timm" else "Vitreous"
    console.print(f"model    {done.folder}  (loads with {loader}: load_example.py)")
    console.print(f"card     {done.folder / 'README.md'}")
