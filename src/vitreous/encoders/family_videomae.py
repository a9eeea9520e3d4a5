"""Family `videomae`: VideoMAE in transformers' layout (a folder, a file, a name at its hub).

Source: Tong et al., VideoMAE (2022); transformers.models.videomae.
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
    from vitreous.encoders.videomae import VideoMAEBackbone

Positive = Annotated[int, Field(gt=0)]
_PATCHES = "embeddings.patch_embeddings.projection"
_BLOCK = re.compile(r"encoder\.layer\.(\d+)\.")
_OLD_BIAS = re.compile(r"^(encoder\.layer\.\d+\.attention\.attention\.)([qv])_bias$")
_HEADS = {384: 6, 768: 12, 1024: 16, 1280: 16}
_STEP = 4  # frames between two of a clip in pretraining on Kinetics


class VideoMAEArchitecture(Architecture):
    """Fields of transformers' `VideoMAEConfig` that decide the encoder.

    Positions are fixed sines over all tokens, made for `num_frames` of `image_size` pixels; `final_norm` is False for
    weights fine-tuned with mean pooling, whose norm belongs to the classifier.
    """

    image_size: Positive = 224
    num_frames: Positive = 16
    patch_size: Positive = 16
    tubelet_size: Positive = 2
    num_channels: Literal[1, 3] = 3
    hidden_size: Positive = 768
    num_hidden_layers: Positive = 12
    num_attention_heads: Positive = 12
    intermediate_size: Positive = 3072
    layer_norm_eps: Annotated[float, Field(gt=0)] = 1e-12
    qv_bias: bool = True
    final_norm: bool = True


def infer_videomae(
    where: str, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], options: Mapping[str, Any]
) -> Inferred:
    """Dimensions from the tensors, checked against the config; heads and input from option, config or rule.

    Raises:
        CheckpointError: tensors and config disagree, or the heads cannot be known.
    """
    parts = {"q": "query.bias", "v": "value.bias"}
    own = {_OLD_BIAS.sub(lambda found: found[1] + parts[found[2]], name): tensor for name, tensor in tensors.items()}
    projection = own[f"{_PATCHES}.weight"]
    if projection.ndim != 5 or projection.shape[3] != projection.shape[4]:
        raise CheckpointError(
            f"{where}: {_PATCHES}.weight has shape {tuple(projection.shape)}; family videomae needs a Conv3d patch "
            "embedding (width, channels, tubelet, patch, patch)."
        )
    width, channels, tubelet, patch, _ = projection.shape
    first = own.get("encoder.layer.0.intermediate.dense.weight")
    seen = {
        "hidden_size": width,
        "num_channels": channels,
        "tubelet_size": tubelet,
        "patch_size": patch,
        "num_hidden_layers": 1 + max((int(found[1]) for name in own if (found := _BLOCK.match(name))), default=-1),
        "intermediate_size": 4 * width if first is None else first.shape[0],
        "qv_bias": any(name.endswith(".attention.attention.query.bias") for name in own),
    }
    known = read_config(where, config, seen, model_type="videomae") if "model_type" in config else {}
    values: dict[str, Any] = {**seen, "final_norm": "layernorm.weight" in own}
    sources = {} if values["final_norm"] else {"final_norm": "none: its norm comes after pooling, with the classifier"}
    for name, rule in (
        ("num_attention_heads", _HEADS.get(width)),
        ("image_size", 224),
        ("num_frames", 16),
        ("layer_norm_eps", 1e-12),
    ):
        place = "option" if name in options else "config" if name in known else "rule"
        value = {"option": options, "config": known, "rule": {name: rule}}[place][name]
        if value is None:
            raise CheckpointError(
                f"{where}: the width {width} is none of the published ones ({', '.join(map(str, _HEADS))}), and no "
                "config says the number of heads. Give the option num_attention_heads."
            )
        values[name], sources[name] = value, f"{place} {name}" if place != "rule" else f"rule: {rule} for this family"
    return Inferred(VideoMAEArchitecture(**values), sources, own)


def _build(architecture: VideoMAEArchitecture) -> "VideoMAEBackbone":
    from transformers import VideoMAEConfig

    from vitreous.encoders.videomae import VideoMAEBackbone  # transformers takes seconds to import

    values = architecture.model_dump()
    final_norm = values.pop("final_norm")
    return VideoMAEBackbone(VideoMAEConfig(**values), has_final_norm=final_norm)


def _clip_spec(architecture: VideoMAEArchitecture) -> ClipSpec:
    """Every fourth frame, shorter side to size, bilinear, centre crop, ImageNet's mean and deviation.

    Source: VideoMAEVideoProcessor of transformers; MCG-NJU/VideoMAE (sampling_rate 4 on Kinetics).
    """
    grey = {"mean": (0.449,), "std": (0.226,)} if architecture.num_channels == 1 else {}
    return ClipSpec(
        size=(architecture.image_size, architecture.image_size),
        channels=architecture.num_channels,
        frames=architecture.num_frames,
        step=_STEP,
        tubelet=architecture.tubelet_size,
        resize="shorter_side",
        **grey,  # type: ignore[arg-type]
    )


def _volume_spec(architecture: VideoMAEArchitecture) -> InputSpec:
    """A volume as a clip whose frames are its slices: brought to frames × size, mean 0 and deviation 1, in grey."""
    size = architecture.image_size
    return InputSpec(
        size=(architecture.num_frames, size, size), channels=architecture.num_channels, normalisation=ZScore()
    )


VIDEOMAE = Family(
    architecture=VideoMAEArchitecture,
    build=_build,
    infer=infer_videomae,
    default_specs={"clip": _clip_spec, "volume": _volume_spec},
    anchor=f"{_PATCHES}.weight",
    prefixes={"only": ("videomae.", "")},
    rules={
        "only": {
            "decoder and mask token": ("decoder.", "encoder_to_decoder.", "mask_token", "position_embeddings"),
            "classifier and its norm": ("classifier.", "fc_norm."),
        }
    },
    options=frozenset({"num_attention_heads", "image_size", "num_frames"}),
    holder="model.",
    fetch=fetch_from_hub,
)
