"""Family `vjepa2`: V-JEPA 2 in transformers' layout (a folder, a file, a name at its hub) and as first published.

The two layouts hold the same numbers under other names; the published one joins query, key and value in one matrix.

Source: facebookresearch/vjepa2 (src/models/vision_transformer.py, hubconf.py); transformers.models.vjepa2.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field

from vitreous.core.errors import CheckpointError
from vitreous.core.input_spec import ClipSpec, InputSpec, ZScore
from vitreous.encoders.family import Architecture, Family, Inferred
from vitreous.encoders.hub_models import fetch_from_hub, read_config

if TYPE_CHECKING:
    from vitreous.encoders.vjepa2 import VJEPA2Backbone

Positive = Annotated[int, Field(gt=0)]
Tensors = Mapping[str, torch.Tensor]

#: Width → heads of the sizes that were published (S, B, L, H, g, G).
_HEADS = {384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 22, 1664: 26}
_BLOCK = re.compile(r"(?:layer|blocks)\.(\d+)\.")
_PATCHES = "embeddings.patch_embeddings.proj"
_PUBLISHED_PATCHES = "patch_embed.proj"
_FPS = 4.0  # of the clips it was pretrained on
_TO_OWN = (
    (re.compile(r"^patch_embed\.proj\."), f"{_PATCHES}."),
    (re.compile(r"^blocks\.(\d+)\.attn\.proj\."), r"layer.\1.attention.proj."),
    (re.compile(r"^blocks\.(\d+)\."), r"layer.\1."),
    (re.compile(r"^norm\."), "layernorm."),
)
_TO_PUBLISHED = (
    (re.compile(rf"^{re.escape(_PATCHES)}\."), f"{_PUBLISHED_PATCHES}."),
    (re.compile(r"^layer\.(\d+)\.attention\.proj\."), r"blocks.\1.attn.proj."),
    (re.compile(r"^layer\.(\d+)\."), r"blocks.\1."),
    (re.compile(r"^layernorm\."), "norm."),
)
_QKV = re.compile(r"^blocks\.(\d+)\.attn\.qkv\.(weight|bias)$")
_QUERY = re.compile(r"^layer\.(\d+)\.attention\.query\.(weight|bias)$")
_PARTS = ("query", "key", "value")


class VJEPA2Architecture(Architecture):
    """Fields of transformers' `VJEPA2Config` that decide the encoder; what it leaves out is the predictor's.

    `crop_size` (pixels) and `frames_per_clip` are the input it was trained on; another one is set by the input's `size`
    and `frames`, as positions are rotary.
    """

    crop_size: Positive = 256
    frames_per_clip: Positive = 64
    patch_size: Positive = 16
    tubelet_size: Positive = 2
    in_chans: Literal[1, 3] = 3
    hidden_size: Positive = 1024
    num_hidden_layers: Positive = 24
    num_attention_heads: Positive = 16
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    layer_norm_eps: Annotated[float, Field(gt=0)] = 1e-6
    qkv_bias: bool = True
    hidden_act: Literal["gelu"] = "gelu"


def to_own_names(published: Tensors) -> dict[str, torch.Tensor]:
    """Tensors of the published layout under transformers' names; query, key and value apart."""
    own: dict[str, torch.Tensor] = {}
    for name, tensor in published.items():
        if found := _QKV.match(name):
            for part, piece in zip(_PARTS, tensor.chunk(3), strict=True):
                own[f"layer.{found[1]}.attention.{part}.{found[2]}"] = piece
            continue
        own[_renamed(name, _TO_OWN)] = tensor
    return own


def to_published_names(own: Tensors) -> dict[str, torch.Tensor]:
    """The inverse of :func:`to_own_names`: what facebookresearch/vjepa2 loads below ``module.backbone.``."""
    published: dict[str, torch.Tensor] = {}
    for name, tensor in own.items():
        if found := _QUERY.match(name):
            parts = [own[f"layer.{found[1]}.attention.{part}.{found[2]}"] for part in _PARTS]
            published[f"blocks.{found[1]}.attn.qkv.{found[2]}"] = torch.cat(parts)
        elif not re.match(r"^layer\.\d+\.attention\.(key|value)\.", name):
            published[_renamed(name, _TO_PUBLISHED)] = tensor
    return published


def _renamed(name: str, rules: tuple[tuple[re.Pattern[str], str], ...]) -> str:
    for pattern, replacement in rules:
        if pattern.match(name):
            return pattern.sub(replacement, name)
    return name


def infer_vjepa2(where: str, tensors: Tensors, config: Mapping[str, Any], options: Mapping[str, Any]) -> Inferred:
    """Dimensions from the tensors, checked against the config; heads, input and epsilon from option, config or rule.

    Raises:
        CheckpointError: tensors and config disagree, positions are learned (V-JEPA 1), or heads cannot be known.
    """
    is_published = f"{_PUBLISHED_PATCHES}.weight" in tensors
    if is_published and "pos_embed" in tensors:
        raise CheckpointError(
            f"{where}: pos_embed is there, so positions are added and not rotary: these are weights of V-JEPA 1, or of "
            "another family. Family vjepa2 reads V-JEPA 2."
        )
    own = to_own_names(tensors) if is_published else dict(tensors)
    projection = own.get(f"{_PATCHES}.weight")
    if projection is None or projection.ndim != 5 or projection.shape[3] != projection.shape[4]:
        got = "is missing" if projection is None else f"has shape {tuple(projection.shape)}"
        raise CheckpointError(
            f"{where}: {_PATCHES}.weight {got}; family vjepa2 needs a Conv3d patch embedding (width, channels, "
            "tubelet, patch, patch). Is this an image model?"
        )
    width, channels, tubelet, patch, _ = projection.shape
    depth = 1 + max((int(found[1]) for name in own if (found := _BLOCK.match(name))), default=-1)
    hidden = own["layer.0.mlp.fc1.weight"].shape[0] if "layer.0.mlp.fc1.weight" in own else 4 * width
    seen = {
        "hidden_size": width,
        "in_chans": channels,
        "tubelet_size": tubelet,
        "patch_size": patch,
        "num_hidden_layers": depth,
        "qkv_bias": any(name.endswith(".attention.query.bias") for name in own),
    }
    known = read_config(where, config, seen, model_type="vjepa2") if "model_type" in config else {}
    sources = {"layout": "published (patch_embed, blocks, norm)" if is_published else "transformers"}
    values: dict[str, Any] = {**seen, "mlp_ratio": hidden / width}
    for name, rule in (
        ("num_attention_heads", _HEADS.get(width)),
        ("crop_size", 256),
        ("frames_per_clip", 64),
        ("layer_norm_eps", 1e-6),
        ("hidden_act", "gelu"),
    ):
        place = "option" if name in options else "config" if name in known else "rule"
        value = {"option": options, "config": known, "rule": {name: rule}}[place][name]
        if value is None:
            raise CheckpointError(
                f"{where}: the width {width} is none of the published ones ({', '.join(map(str, _HEADS))}), and no "
                "config says the number of heads. Give the option num_attention_heads."
            )
        values[name], sources[name] = value, f"{place} {name}" if place != "rule" else f"rule: {rule} for this family"
    return Inferred(VJEPA2Architecture(**values), sources, own)


def _build(architecture: VJEPA2Architecture) -> "VJEPA2Backbone":
    from transformers import VJEPA2Config

    from vitreous.encoders.vjepa2 import VJEPA2Backbone  # transformers takes seconds to import

    return VJEPA2Backbone(VJEPA2Config(**architecture.model_dump()))


def _set_input_size(backbone: "VJEPA2Backbone", size: tuple[int, int, int]) -> None:
    backbone.set_input_size(size)


def _clip_spec(architecture: VJEPA2Architecture) -> ClipSpec:
    """Four frames a second, shorter side to size · 256/224, bilinear, centre crop, ImageNet's mean and deviation.

    Source: VJEPA2VideoProcessor of transformers; configs/train of facebookresearch/vjepa2 (fps).
    """
    size = (architecture.crop_size, architecture.crop_size)
    grey = {"mean": (0.449,), "std": (0.226,)} if architecture.in_chans == 1 else {}
    return ClipSpec(
        size=size,
        channels=architecture.in_chans,
        frames=architecture.frames_per_clip,
        fps=_FPS,
        tubelet=architecture.tubelet_size,
        resize="shorter_side",
        crop_pct=0.875,
        **grey,  # type: ignore[arg-type]
    )


def _volume_spec(architecture: VJEPA2Architecture) -> InputSpec:
    """A volume as a clip whose frames are its slices: brought to frames × size, mean 0 and deviation 1, in grey."""
    size = architecture.crop_size
    return InputSpec(
        size=(architecture.frames_per_clip, size, size), channels=architecture.in_chans, normalisation=ZScore()
    )


_PRETRAINING = {"predictor": ("predictor.", "vjepa2.predictor."), "classifier": ("pooler.", "classifier.")}

VJEPA2 = Family(
    architecture=VJEPA2Architecture,
    build=_build,
    infer=infer_vjepa2,
    default_specs={"clip": _clip_spec, "volume": _volume_spec},
    anchor=(f"{_PATCHES}.weight", f"{_PUBLISHED_PATCHES}.weight"),
    prefixes={
        "context": ("encoder.backbone.", "encoder.", "vjepa2.encoder.", "backbone.", ""),
        "target": ("target_encoder.backbone.", "target_encoder."),
    },
    rules={
        "context": {**_PRETRAINING, "the other encoder (target)": ("target_encoder.",)},
        "target": {**_PRETRAINING, "the other encoder (context)": ("encoder.",)},
    },
    options=frozenset({"num_attention_heads", "crop_size", "frames_per_clip"}),
    holder="model.",
    set_input_size=_set_input_size,
    fetch=fetch_from_hub,
)
