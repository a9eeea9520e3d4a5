"""Family `vit3d`: V-JEPA-style 3D transformers, as pretrained on retinal OCT volumes."""

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import Field

from vitreous.core.errors import CheckpointError
from vitreous.core.input_spec import InputSpec, ZScore
from vitreous.encoders.family import Architecture, Family, Inferred
from vitreous.encoders.vit3d import ViT3D

Positive = Annotated[int, Field(gt=0)]
Size3 = tuple[Positive, Positive, Positive]

_HEAD_WIDTH = 64
_BLOCK = re.compile(r"blocks\.(\d+)\.")


class ViT3DArchitecture(Architecture):
    """Fields of :class:`vitreous.encoders.vit3d.ViT3D`; sizes in voxels (D, H, W)."""

    img_size: Size3
    patch_size: Size3
    in_chans: Positive = 1
    embed_dim: Positive
    depth: Positive
    num_heads: Positive
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    eps: Annotated[float, Field(gt=0)] = 1e-5
    qkv_bias: bool = True


def infer_vit3d(
    where: str, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], options: Mapping[str, Any]
) -> Inferred:
    """Width, depth, patch and number of tokens from the tensors; grid and heads from config, option or rule.

    Raises:
        CheckpointError: tensors and stored config disagree, or grid or heads cannot be known.
    """
    projection, positions = tensors["patch_embed.proj.weight"], tensors.get("pos_embed")
    if projection.ndim != 5:
        raise CheckpointError(
            f"{where}: patch_embed.proj.weight has shape {tuple(projection.shape)}, so this is no 3D encoder; "
            "family vit3d needs a Conv3d patch embedding (width, channels, d, h, w)."
        )
    embed_dim, in_chans, *patch = projection.shape
    if positions is None or positions.ndim != 3 or positions.shape[0] != 1:
        got = "is missing" if positions is None else f"has shape {tuple(positions.shape)}"
        raise CheckpointError(f"{where}: pos_embed {got}; family vit3d needs learned positions (1, tokens, width).")
    depth = 1 + max((int(found[1]) for name in tensors if (found := _BLOCK.match(name))), default=-1)
    if depth == 0:
        raise CheckpointError(f"{where}: no blocks.N found beside patch_embed. Is this another family?")
    patch_size = (patch[0], patch[1], patch[2])
    for key, value in (("embed_dim", embed_dim), ("depth", depth), ("in_chans", in_chans), ("in_channels", in_chans)):
        _check_stored(where, config, key, value)
    _check_stored_patch(where, config, patch_size)
    img_size, size_source = _image_size(where, config, options, patch_size, positions.shape[1])
    num_heads, heads_source = _num_heads(where, config, options, embed_dim)
    hidden = tensors["blocks.0.mlp.fc1.weight"].shape[0] if "blocks.0.mlp.fc1.weight" in tensors else 4 * embed_dim
    architecture = ViT3DArchitecture(
        img_size=img_size,
        patch_size=patch_size,
        in_chans=in_chans,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        mlp_ratio=hidden / embed_dim,
        eps=float(options.get("eps", 1e-5)),
        qkv_bias=any(name.endswith(".attn.qkv.bias") for name in tensors),
    )
    eps_source = "option eps" if "eps" in options else "rule: 1e-5 for this family"
    return Inferred(architecture, {"img_size": size_source, "num_heads": heads_source, "eps": eps_source})


def _stored(config: Mapping[str, Any], *keys: str) -> list[tuple[str, Any]]:
    """(dotted name, value) for each of `keys` at the top of the config and under `model`."""
    model = config.get("model")
    places = [("", config), ("model.", model if isinstance(model, Mapping) else {})]
    return [(f"config.{at}{key}", place[key]) for at, place in places for key in keys if place.get(key) is not None]


def _check_stored(where: str, config: Mapping[str, Any], key: str, value: int) -> None:
    for name, stored in _stored(config, key):
        if stored != value:
            raise CheckpointError(
                f"{where}: {name} is {stored}, but the tensors say {value}. The config belongs to other weights, "
                "or the file mixes two models."
            )


def _check_stored_patch(where: str, config: Mapping[str, Any], patch_size: tuple[int, int, int]) -> None:
    tubelet = dict(_stored(config, "tubelet_size"))
    for name, stored in _stored(config, "patch_size"):
        if isinstance(stored, int):  # a scalar is the patch in a slice; its depth is the tubelet's, or the same
            depth = tubelet.get(name.replace("patch_size", "tubelet_size"), stored)
            stored = [depth, stored, stored]
        if list(stored) != list(patch_size):
            raise CheckpointError(
                f"{where}: {name} is {list(stored)}, but patch_embed.proj was made for {list(patch_size)} voxels. "
                "The config belongs to other weights."
            )


def _image_size(
    where: str, config: Mapping[str, Any], options: Mapping[str, Any], patch_size: tuple[int, int, int], tokens: int
) -> tuple[tuple[int, int, int], str]:
    said = _stored(config, "image_size", "img_size")
    if "img_size" in options:
        said.insert(0, ("option img_size", options["img_size"]))
    if not said:
        raise CheckpointError(
            f"{where}: pos_embed has {tokens} tokens, and nothing says how they lie along D, H and W: the stored "
            "config names no image_size. Give the option img_size: [D, H, W]."
        )
    sizes = []
    for name, value in said:
        size = _as_size(where, name, value)
        grid = [extent // patch for extent, patch in zip(size, patch_size)]
        if any(extent % patch for extent, patch in zip(size, patch_size)) or math.prod(grid) != tokens:
            raise CheckpointError(
                f"{where}: {name} is {list(size)}, which in patches of {list(patch_size)} makes a grid of {grid}, "
                f"{math.prod(grid)} tokens; pos_embed has {tokens}. Give the size the weights were trained on."
            )
        sizes.append(size)
    if len(set(sizes)) > 1:
        both = ", ".join(f"{name} is {list(size)}" for (name, _), size in zip(said, sizes))
        raise CheckpointError(f"{where}: the image size is stated differently: {both}. Correct the wrong one.")
    return sizes[0], said[0][0]


def _as_size(where: str, name: str, value: Any) -> tuple[int, int, int]:
    extents = [value] * 3 if isinstance(value, int) else value
    if not isinstance(extents, list | tuple) or len(extents) != 3 or not all(isinstance(e, int) for e in extents):
        raise CheckpointError(f"{where}: {name} is {value!r}; an image size has three whole numbers [D, H, W].")
    return extents[0], extents[1], extents[2]


def _num_heads(where: str, config: Mapping[str, Any], options: Mapping[str, Any], embed_dim: int) -> tuple[int, str]:
    said = _stored(config, "num_heads")
    if "num_heads" in options:
        said.insert(0, ("option num_heads", options["num_heads"]))
    if len({value for _, value in said}) > 1:
        both = ", ".join(f"{name} is {value}" for name, value in said)
        raise CheckpointError(f"{where}: the number of heads is stated differently: {both}. Correct the wrong one.")
    if not said and embed_dim % _HEAD_WIDTH:
        raise CheckpointError(
            f"{where}: the stored config names no num_heads, and the width {embed_dim} is no multiple of the usual "
            f"head width {_HEAD_WIDTH}. Give the option num_heads."
        )
    name, heads = said[0] if said else (f"rule: head width {_HEAD_WIDTH}", embed_dim // _HEAD_WIDTH)
    if not isinstance(heads, int) or heads < 1 or embed_dim % heads:
        raise CheckpointError(f"{where}: {name} is {heads!r}, which does not divide the width {embed_dim}.")
    return heads, name


def _build(architecture: ViT3DArchitecture) -> ViT3D:
    return ViT3D(**architecture.model_dump())


def _default_spec(architecture: ViT3DArchitecture) -> InputSpec:
    """Rescaled values, trilinear resize to `img_size`, z-score over all voxels: the pretraining's input."""
    return InputSpec(size=architecture.img_size, channels=architecture.in_chans, normalisation=ZScore())


VIT3D = Family(
    architecture=ViT3DArchitecture,
    build=_build,
    infer=infer_vit3d,
    default_specs={"volume": _default_spec},
    anchor="patch_embed.proj.weight",
    prefixes={
        "context": ("context_encoder.encoder.", "context_encoder.", ""),
        "target": ("target_encoder.encoder.", "target_encoder."),
    },
    rules={
        "context": {"predictor": ("predictor.",), "the other encoder (target)": ("target_encoder.",)},
        "target": {"predictor": ("predictor.",), "the other encoder (context)": ("context_encoder.",)},
    },
    options=frozenset({"img_size", "num_heads", "eps"}),
)
