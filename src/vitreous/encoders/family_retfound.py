"""Family `retfound`: vision transformers pretrained on retinal photographs and OCT slices, in the layouts published.

- `mae`: RETFound (Zhou et al., 2023), the encoder of a masked autoencoder: ViT-L/16, class token.
- `dinov2`: RETFound's later releases, the teacher of DINOv2: ViT-L/14, LayerScale; blocks may lie in chunks.
- `green`: RETFound-Green (Engelmann and Bernabeu, 2025): ViT-S/14 with four registers, 392 pixels.

Source: rmaphoh/RETFound_MAE (models_vit.py, main_finetune.py, util/datasets.py), facebookresearch/dinov2,
justinengelmann/RETFound_Green.
"""

import math
import re
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from vitreous.core.errors import CheckpointError
from vitreous.core.input_spec import ImageSpec
from vitreous.core.torchvision_schema import declare_torchvision_schemas
from vitreous.encoders.family import Architecture, Family, Inferred
from vitreous.encoders.frame_by_frame import clip_spec_of
from vitreous.encoders.initialisation import truncated_normal_
from vitreous.encoders.timm_backbone import HOLDER, TimmBackbone, TimmTransformer

declare_torchvision_schemas()

from timm.layers import LayerScale  # type: ignore[attr-defined]  # noqa: E402
from timm.models.vision_transformer import VisionTransformer  # noqa: E402

Positive = Annotated[int, Field(gt=0)]
Tensors = Mapping[str, torch.Tensor]

_HEAD_WIDTH = 64
_EPS = 1e-6
_LAYER_SCALE = 1e-5  # of an untrained DINOv2
_CHUNKED = re.compile(r"^blocks\.\d+\.(\d+)\.")
_BLOCK = re.compile(r"^blocks\.(\d+)\.")
_HEADS = ("head.", "fc_norm.", "dino_head.", "ibot_head.")


class RETFoundArchitecture(Architecture):
    """A vision transformer with a class token; the defaults are those of the first RETFound.

    Args:
        img_size: pixels (H, W) that the learned positions are made for.
        class_position: whether the class token has a position of its own.
        final_norm: False for files fine-tuned with global pooling, whose norm comes after pooling, in the head.
    """

    variant: Literal["mae", "dinov2", "green"] = "mae"
    img_size: tuple[Positive, Positive] = (224, 224)
    patch_size: Positive = 16
    embed_dim: Positive = 1024
    depth: Positive = 24
    num_heads: Positive = 16
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    layer_scale: bool = False
    num_registers: Annotated[int, Field(ge=0)] = 0
    class_position: bool = True
    final_norm: bool = True


class RETFound(TimmTransformer):
    """timm's VisionTransformer with an initialisation that is quick at full size."""

    def init_weights(self, generator: torch.Generator) -> None:
        """Matrices, positions and tokens from a normal of deviation 0.02 cut at ±0.04; biases 0, norms 1."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                truncated_normal_(module.weight, generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, LayerScale):
                nn.init.constant_(module.gamma, _LAYER_SCALE)
        for name, parameter in self.model.named_parameters(recurse=False):
            if name in ("pos_embed", "cls_token", "reg_token"):
                truncated_normal_(parameter, generator)


def _build(architecture: RETFoundArchitecture) -> RETFound:
    if architecture.embed_dim % architecture.num_heads:
        raise ValueError(
            f"embed_dim must be a multiple of num_heads; got {architecture.embed_dim} and {architecture.num_heads}"
        )
    if any(extent % architecture.patch_size for extent in architecture.img_size):
        raise ValueError(
            f"img_size must be a multiple of patch_size; got {architecture.img_size} and {architecture.patch_size}"
        )
    make = partial(
        VisionTransformer,
        img_size=architecture.img_size,
        patch_size=architecture.patch_size,
        num_classes=0,
        global_pool="token",
        embed_dim=architecture.embed_dim,
        depth=architecture.depth,
        num_heads=architecture.num_heads,
        mlp_ratio=architecture.mlp_ratio,
        init_values=_LAYER_SCALE if architecture.layer_scale else None,
        reg_tokens=architecture.num_registers,
        no_embed_class=not architecture.class_position,
        final_norm=architecture.final_norm,
        norm_layer=partial(nn.LayerNorm, eps=_EPS),
    )
    return RETFound(make(), make, architecture.img_size)


def _infer(where: str, tensors: Tensors, config: Mapping[str, Any], options: Mapping[str, Any]) -> Inferred:
    """Every dimension from the tensors; heads by their usual width of 64, or the option.

    Raises:
        CheckpointError: no image transformer, or its size or heads cannot be known.
    """
    named, heads = _own_names(tensors)
    _check_kind(where, named)
    embed_dim, _, patch_size, _ = named["patch_embed.proj.weight"].shape
    blocks = [int(found[1]) for name in named if (found := _BLOCK.match(name))]
    registers = named["reg_token"].shape[1] if "reg_token" in named else 0
    has_scale = any(name.endswith(".ls1.gamma") for name in named)
    variant, reason = _recognise(tensors, patch_size, registers, has_scale)
    if registers and "register_tokens" in tensors:
        # DINOv2 gives the class token a position but its registers none: added to the token once and for all
        positions = named["pos_embed"]
        named["cls_token"] = named["cls_token"] + positions[:, :1]
        named["pos_embed"] = positions[:, 1:]
    class_position = registers == 0
    img_size, size_source = _image_size(where, options, patch_size, named["pos_embed"].shape[1] - class_position)
    num_heads, heads_source = _num_heads(where, options, embed_dim)
    hidden = named["blocks.0.mlp.fc1.weight"].shape[0] if "blocks.0.mlp.fc1.weight" in named else 4 * embed_dim
    sources = {"variant": reason, "img_size": size_source, "num_heads": heads_source, "eps": "rule: 1e-6"}
    final_norm = not ("norm.weight" not in named and any(name.startswith("fc_norm.") for name in heads))
    if not final_norm:
        sources["final_norm"] = (
            "none: fine-tuned with global pooling, its norm comes after pooling and left with the head"
        )
    architecture = RETFoundArchitecture(
        variant=variant,
        img_size=img_size,
        patch_size=patch_size,
        embed_dim=embed_dim,
        depth=1 + max(blocks),
        num_heads=num_heads,
        mlp_ratio=hidden / embed_dim,
        layer_scale=has_scale,
        num_registers=registers,
        class_position=class_position,
        final_norm=final_norm,
    )
    return Inferred(architecture, sources, named, {"heads": heads} if heads else {})


def _own_names(tensors: Tensors) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """Tensors under timm's names, and those of the heads."""
    named = {}
    for name, tensor in tensors.items():
        if not name.startswith(_HEADS):
            plain = _CHUNKED.sub(r"blocks.\1.", name)
            named["reg_token" if plain == "register_tokens" else plain] = tensor
    return named, tuple(sorted(name for name in tensors if name.startswith(_HEADS)))


def _check_kind(where: str, named: Tensors) -> None:
    projection = named["patch_embed.proj.weight"]
    if projection.ndim != 4 or projection.shape[2] != projection.shape[3]:
        raise CheckpointError(
            f"{where}: patch_embed.proj.weight has shape {tuple(projection.shape)}; family retfound needs a patch "
            "embedding of images (width, 3, patch, patch). Is this another family?"
        )
    for name in ("pos_embed", "cls_token"):
        if name not in named or named[name].ndim != 3:
            got = "is missing" if name not in named else f"has shape {tuple(named[name].shape)}"
            raise CheckpointError(f"{where}: {name} {got}; family retfound needs it as (1, tokens, width).")
    if not any(_BLOCK.match(name) for name in named):
        raise CheckpointError(f"{where}: no blocks.N found beside patch_embed. Is this another family?")


def _recognise(
    tensors: Tensors, patch: int, registers: int, has_scale: bool
) -> tuple[Literal["mae", "dinov2", "green"], str]:
    if "reg_token" in tensors:
        return "green", f"{registers} registers in timm's layout (reg_token), patch {patch}"
    if has_scale or registers:
        chunks = ", blocks in chunks" if any(_CHUNKED.match(name) for name in tensors) else ""
        return "dinov2", f"LayerScale, {registers} registers, patch {patch}{chunks}"
    return "mae", f"neither LayerScale nor registers, patch {patch}"


def _image_size(where: str, options: Mapping[str, Any], patch: int, num_tokens: int) -> tuple[tuple[int, int], str]:
    stated = options.get("img_size")
    side = math.isqrt(max(num_tokens, 0))
    if stated is None:
        if side == 0 or side * side != num_tokens:
            raise CheckpointError(
                f"{where}: pos_embed has {num_tokens} tokens besides the class token, which make no square. Give the "
                "size of the pretraining: the option img_size: [H, W]."
            )
        return (side * patch, side * patch), "number of positions, square"
    size = RETFoundArchitecture(img_size=stated).img_size
    grid = (size[0] // patch, size[1] // patch)
    if size != (grid[0] * patch, grid[1] * patch) or math.prod(grid) != num_tokens:
        raise CheckpointError(
            f"{where}: option img_size is {list(size)}, which in patches of {patch} makes {grid[0]}×{grid[1]} tokens; "
            f"pos_embed has {num_tokens}. Give the size of the pretraining here, and another size of the images as "
            "the input's size: positions are then interpolated."
        )
    return size, "option img_size"


def _num_heads(where: str, options: Mapping[str, Any], embed_dim: int) -> tuple[int, str]:
    if "num_heads" not in options and embed_dim % _HEAD_WIDTH:
        raise CheckpointError(
            f"{where}: the width {embed_dim} is no multiple of the usual head width {_HEAD_WIDTH}. Give the option "
            "num_heads."
        )
    heads = options.get("num_heads", embed_dim // _HEAD_WIDTH)
    if not isinstance(heads, int) or heads < 1 or embed_dim % heads:
        raise CheckpointError(f"{where}: option num_heads is {heads!r}, which does not divide the width {embed_dim}.")
    return heads, "option num_heads" if "num_heads" in options else f"rule: head width {_HEAD_WIDTH}"


def _spec(architecture: RETFoundArchitecture) -> ImageSpec:
    """The evaluation input of each release.

    `mae` and `dinov2`: shorter side to size / 0.875, bicubic, centre crop, ImageNet's mean and deviation; weights with
    DINOv2's own 518-pixel positions are brought to 224, as they are fine-tuned. `green`: squashed, bilinear, mean and
    deviation 0.5.
    """
    if architecture.variant == "green":
        half = (0.5, 0.5, 0.5)
        return ImageSpec(size=architecture.img_size, interpolation="bilinear", mean=half, std=half)
    is_dinov2_own = architecture.variant == "dinov2" and architecture.img_size == (518, 518)
    size = (224, 224) if is_dinov2_own else architecture.img_size
    return ImageSpec(size=size, resize="shorter_side", crop_pct=0.875)


RETFOUND = Family(
    architecture=RETFoundArchitecture,
    build=_build,
    infer=_infer,
    default_specs={"image": _spec, "clip": lambda architecture: clip_spec_of(_spec(architecture))},
    anchor="patch_embed.proj.weight",
    prefixes={"only": ("", "backbone.", "teacher.backbone.", "teacher.", "model.")},
    rules={
        "only": {
            "decoder and mask token": ("decoder_", "mask_token"),
            "the other network (student)": ("student.",),
            "heads and losses of pretraining": (
                "teacher.dino_head.",
                "teacher.ibot_head.",
                "dino_loss.",
                "ibot_patch_loss.",
            ),
        }
    },
    options=frozenset({"img_size", "num_heads"}),
    holder=HOLDER,
    set_input_size=TimmBackbone.set_input_size,
    frame_by_frame=True,
)
