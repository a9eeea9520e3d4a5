"""A trained model as one plain network in float32, apart from its run: normalised inputs in, logits out.

Standardiser and batch norms of a probe become part of its linear layers, adapters part of the matrices beside which
they stand.

Axes: B batch, C channel (of input) or class (of logits), D slice, H row, W column, I inputs and O outputs of a layer.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from vitreous.core.errors import UserError
from vitreous.core.input_spec import SPEC_OF
from vitreous.encoders.catalog import build_random_encoder
from vitreous.encoders.encoder import Encoder, Tokens
from vitreous.features.pooling import Pooling, coarse_tokens, pool_tokens
from vitreous.recipes.attentive_heads import AttentionShape, attention_maps, attentive_logits, read_shape
from vitreous.recipes.pixel_model import PixelModel, Size3
from vitreous.recipes.probe_logits import BATCH_NORM_EPSILON

Activation = Literal["relu", "gelu"]
ReadOut = Pooling | Literal["tokens"]
_ACTIVATIONS: dict[Activation, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU}


@dataclass(frozen=True)
class HeadShape:
    """Widths of a head from features to classes, and what stands between its linear layers."""

    widths: tuple[int, ...]
    activation: Activation


class AttentiveHead(nn.Module):
    """A head that attends to tokens; weights are to be loaded."""

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__()
        self.shape = shape
        for name, size in shape.parameter_shapes().items():
            self.register_parameter(_plain_name(name), nn.Parameter(torch.zeros(size)))

    def forward(self, tokens_BTD: torch.Tensor) -> torch.Tensor:
        """Logits (B, C)."""
        return attentive_logits(self.shape, self._stacked(), tokens_BTD)[0].T

    def attention(self, tokens_BTD: torch.Tensor) -> torch.Tensor:
        """How much each query and head looks at each token, (B, Q, H, T); sums to 1 over T."""
        return attention_maps(self.shape, self._stacked(), tokens_BTD)[0]

    def _stacked(self) -> dict[str, torch.Tensor]:
        return {name: self.get_parameter(_plain_name(name))[None] for name in self.shape.parameter_shapes()}


def _plain_name(name: str) -> str:
    return name.replace(".", "_")  # a parameter's name has no dots


def read_tokens(tokens: Tokens, pooling: ReadOut, grid: Size3 | None) -> torch.Tensor:
    """What a head is given: a vector a sample (B, D), or with `tokens` all of them, or a grid of cells (B, T, D)."""
    return coarse_tokens(tokens, grid) if pooling == "tokens" else pool_tokens(tokens, pooling, grid)


class ExportedModel(nn.Module):
    """Encoder, pooling and head.

    Args:
        encoder: without adapters.
        head: of :func:`build_exported_head`, or an :class:`AttentiveHead`, whose pooling is `tokens`.
    """

    def __init__(
        self,
        encoder: Encoder,
        head: nn.Sequential | AttentiveHead,
        shape: HeadShape | AttentionShape,
        *,
        pooling: ReadOut,
        grid: Size3 | None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.shape = shape
        self.pooling = pooling
        self.grid = grid

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (B, C) of inputs prepared and normalised by ``encoder.spec``.

        Args:
            x: volumes (B, C, D, H, W), or images (B, C, H, W).
        """
        if x.ndim == 4:
            x = x[:, :, None]
        logits_BC: torch.Tensor = self.head(read_tokens(self.encoder(x), self.pooling, self.grid))
        return logits_BC

    def describe(self) -> dict[str, Any]:
        """Plain values from which :func:`build_exported_model` makes the same network."""
        encoder = self.encoder
        return {
            "family": encoder.family,
            "architecture": encoder.architecture,
            "modality": encoder.modality,
            "layer": encoder.layer,
            "spec": encoder.spec.model_dump(mode="json"),
            "pooling": self.pooling,
            "grid": None if self.grid is None else list(self.grid),
            "head": {"attention": asdict(self.shape)}
            if isinstance(self.shape, AttentionShape)
            else {"widths": list(self.shape.widths), "activation": self.shape.activation},
        }

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor under ``encoder.`` and ``head.``."""
        return {
            **{f"encoder.{name}": tensor for name, tensor in self.encoder.backbone.state_dict().items()},
            **{f"head.{name}": tensor for name, tensor in self.head.state_dict().items()},
        }

    def load_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take what :meth:`tensors` gave.

        Raises:
            RuntimeError: a name or shape is missing or left over.
        """
        for prefix, module in (("encoder.", self.encoder.backbone), ("head.", self.head)):
            own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
            module.load_state_dict(own)


def build_exported_model(config: Mapping[str, Any]) -> ExportedModel:
    """The network of :meth:`ExportedModel.describe`, in eval mode; weights are to be loaded."""
    encoder = build_random_encoder(
        config["family"],
        architecture=config["architecture"],
        seed=0,
        modality=config["modality"],
        layer=config.get("layer"),
        spec=SPEC_OF[config["modality"]](**config["spec"]),
        trainable=True,  # batch norms stay apart, as they were exported
    ).requires_grad_(False)
    grid, kept = config["grid"], config["head"]
    shape: HeadShape | AttentionShape
    if "attention" in kept:
        shape = AttentionShape(**kept["attention"])
    else:
        shape = HeadShape(tuple(kept["widths"]), kept["activation"])
    model = ExportedModel(
        encoder,
        AttentiveHead(shape) if isinstance(shape, AttentionShape) else build_exported_head(shape),
        shape,
        pooling=config["pooling"],
        grid=None if grid is None else (grid[0], grid[1], grid[2]),
    )
    return model.eval()


def build_exported_head(shape: HeadShape) -> nn.Sequential:
    """Linear layers with the activation between them; weights are to be loaded."""
    layers: list[nn.Module] = []
    for num_in, num_out in pairwise(shape.widths):
        if layers:
            layers.append(_ACTIVATIONS[shape.activation]())
        layers.append(nn.Linear(num_in, num_out))
    return nn.Sequential(*layers)


def export_probe(
    encoder: Encoder, tensors: Mapping[str, npt.NDArray[Any]], *, pooling: ReadOut, grid: Size3 | None
) -> ExportedModel:
    """A probe with its encoder.

    Args:
        encoder: in trainable form, float32.
        tensors: of the probe.

    Raises:
        UserError: nearest neighbours, whose tensors are the features of the training patients.
    """
    if "knn.features" in tensors:
        raise UserError(
            "nearest neighbours consist of the features of the training patients, which are patient data; they are not "
            "exported. Take another recipe."
        )
    if "attentive.query" in tensors:
        attention = read_shape(tensors)
        attentive = AttentiveHead(attention)
        attentive.load_state_dict(
            {_plain_name(name): torch.from_numpy(np.array(tensors[name])) for name in attention.parameter_shapes()}
        )
        return ExportedModel(encoder.requires_grad_(False), attentive, attention, pooling=pooling, grid=grid).eval()
    layers = fold_probe(tensors)
    shape = HeadShape((layers[0][0].shape[1], *(len(bias_O) for _, bias_O in layers)), "relu")
    head = build_exported_head(shape)
    linear = [layer for layer in head if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for layer, (weight_OI, bias_O) in zip(linear, layers, strict=True):
            layer.weight.copy_(torch.from_numpy(weight_OI))
            layer.bias.copy_(torch.from_numpy(bias_O))
    return ExportedModel(encoder.requires_grad_(False), head, shape, pooling=pooling, grid=grid).eval()


def fold_probe(
    tensors: Mapping[str, npt.NDArray[Any]],
) -> list[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]:
    """Weight (O, I) and bias (O,) of each linear layer, standardiser and batch norms included, in float64."""

    def read(name: str) -> npt.NDArray[np.float64]:
        return np.array(tensors[name], dtype=np.float64)

    num_layers = sum(name.startswith("layers.") and name.endswith(".weight") for name in tensors)
    folded = []
    for index in range(num_layers):
        weight_OI, bias_O = read(f"layers.{index}.weight"), read(f"layers.{index}.bias")
        if index == 0:
            weight_OI = weight_OI / read("standardiser.std")
            bias_O = bias_O - weight_OI @ read("standardiser.mean")
        if f"norms.{index}.weight" in tensors:
            scale_O = read(f"norms.{index}.weight") / np.sqrt(read(f"norms.{index}.running_var") + BATCH_NORM_EPSILON)
            weight_OI = weight_OI * scale_O[:, None]
            bias_O = (bias_O - read(f"norms.{index}.running_mean")) * scale_O + read(f"norms.{index}.bias")
        folded.append((weight_OI, bias_O))
    return folded


def export_pixel_model(model: PixelModel) -> ExportedModel:
    """A model trained on pixels; it shares its tensors, and its adapters must be merged already."""
    if model.adapters is not None:
        raise ValueError("merge the adapters first: they are no part of an exported model")
    linear = [layer for layer in model.head if isinstance(layer, nn.Linear)]
    shape = HeadShape((linear[0].in_features, *(layer.out_features for layer in linear)), "gelu")
    head = build_exported_head(shape)
    own = [layer for layer in head if isinstance(layer, nn.Linear)]
    for layer, trained in zip(own, linear, strict=True):
        layer.load_state_dict(trained.state_dict())
    encoder = model.encoder.requires_grad_(False)
    return ExportedModel(encoder, head, shape, pooling=model.pooling, grid=model.coarse_grid).eval()
