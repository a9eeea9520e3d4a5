"""An exported model as timm itself builds it, so that it loads without Vitreous.

Which arguments of ``timm.create_model`` give the same network is tried, not assumed: a candidate counts only if it
takes every tensor and gives the same logits.

Axes: B batch, C channel, H row, W column.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from vitreous.core.input_spec import ImageSpec
from vitreous.core.torchvision_schema import declare_torchvision_schemas
from vitreous.encoders.timm_backbone import HOLDER, TimmBackbone
from vitreous.recipes.exported_model import ExportedModel, HeadShape

declare_torchvision_schemas()

import timm  # noqa: E402

_POOLS = {"mean": "avg", "max": "max", "cls": "token"}
_MOST_DIFFERENCE = 1e-4  # of logits, relative to the largest: rounding of another order of sums


def as_timm(model: ExportedModel, x_BCHW: torch.Tensor) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
    """Arguments of ``timm.create_model``, and the tensors that its model loads; None where timm has no such network.

    Args:
        x_BCHW: normalised images, on which both must agree.
    """
    backbone = model.encoder.backbone
    shape, head = model.shape, model.head
    if not isinstance(shape, HeadShape) or not isinstance(head, nn.Sequential) or len(shape.widths) != 2:
        return None
    if not isinstance(backbone, TimmBackbone) or model.pooling not in _POOLS:
        return None
    with torch.no_grad():
        expected_BC = model(x_BCHW)
    encoder = {name.removeprefix(HOLDER): tensor for name, tensor in backbone.state_dict().items()}
    for settings in _candidates(model, shape.widths[-1]):
        try:
            with torch.random.fork_rng(devices=[]):
                built = timm.create_model(**settings).eval()
            classifier = _name_of_classifier(built)
            tensors = encoder | {f"{classifier}.{name}": tensor for name, tensor in head[0].state_dict().items()}
            built.load_state_dict(tensors)
            with torch.no_grad():
                logits_BC = built(x_BCHW)
        except (TypeError, ValueError, RuntimeError, AssertionError, AttributeError):
            continue  # timm's models do not all take the same arguments
        if relative_difference(logits_BC, expected_BC) <= _MOST_DIFFERENCE:
            return settings, tensors
    return None


def relative_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, relative to the largest expected value.

    >>> relative_difference(torch.tensor([1.0, 2.02]), torch.tensor([1.0, 2.0]))  # doctest: +ELLIPSIS
    0.0099...
    """
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(torch.finfo(torch.float32).tiny))


def _candidates(model: ExportedModel, num_classes: int) -> Iterator[dict[str, Any]]:
    architecture, spec = model.encoder.architecture, model.encoder.spec
    assert isinstance(spec, ImageSpec)
    plain = {"pretrained": False, "num_classes": num_classes, "global_pool": _POOLS[model.pooling]}
    size = {"img_size": list(spec.size)}
    # timm moves the last norm of a transformer behind mean pooling unless told not to
    if model.encoder.family == "retfound":
        given = {
            "img_size": list(spec.size),
            "patch_size": architecture["patch_size"],
            "embed_dim": architecture["embed_dim"],
            "depth": architecture["depth"],
            "num_heads": architecture["num_heads"],
            "mlp_ratio": architecture["mlp_ratio"],
            "init_values": 1e-5 if architecture["layer_scale"] else None,
            "reg_tokens": architecture["num_registers"],
            "no_embed_class": not architecture["class_position"],
            "final_norm": architecture["final_norm"],
        }
        yield {"model_name": "vit_base_patch16_224", **plain, **given, "fc_norm": False}
        return
    named = {"model_name": architecture["model"], **plain}
    yield {**named, **size, "fc_norm": False}
    yield {**named, "fc_norm": False}
    yield {**named, **size}
    yield named


def _name_of_classifier(built: nn.Module) -> str:
    classifier = built.get_classifier()  # type: ignore[operator]
    found: str = next(name for name, module in built.named_modules() if module is classifier)
    return found
