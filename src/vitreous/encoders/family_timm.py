"""Family `timm`: every image model of timm, by its name; weights from a file or from timm's own source."""

import difflib
import math
from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Annotated, Any

import torch
from pydantic import Field, field_validator
from torch import nn

from vitreous.core.errors import CheckpointError, ConfigError, StorageError
from vitreous.core.input_spec import ImageSpec
from vitreous.core.torchvision_schema import declare_torchvision_schemas
from vitreous.encoders.family import Architecture, Family, Fetched, Inferred
from vitreous.encoders.frame_by_frame import clip_spec_of
from vitreous.encoders.timm_backbone import HOLDER, TimmBackbone, wrap_timm

declare_torchvision_schemas()

import timm  # noqa: E402
from timm.models import get_arch_pretrained_cfgs, get_pretrained_cfg, is_model  # noqa: E402

Positive = Annotated[int, Field(gt=0)]

_COUNTER = "num_batches_tracked"


class TimmArchitecture(Architecture):
    """A name of timm, with or without the tag of its weights, and the pixels (H, W) its positions are made for.

    The tag decides the input (size, mean, crop); without one it is that of the weights timm takes first. `img_size`
    is None for models without positions, and where it is the one that timm states.
    """

    model: str
    img_size: tuple[Positive, Positive] | None = None

    @field_validator("model")
    @classmethod
    def _known(cls, name: str) -> str:
        bare, _, tag = name.partition(".")
        if not is_model(bare):
            near = difflib.get_close_matches(bare, timm.list_models(), n=5, cutoff=0.5)
            raise ValueError(f"timm has no model {bare!r}; near are {', '.join(near) or 'none'}")
        tags = [known for known in get_arch_pretrained_cfgs(bare) if "." in known]
        if tag and name not in tags:
            raise ValueError(f"timm has no weights {name!r}; it has {', '.join(tags) or 'none of this model'}")
        return name


def _native_size(architecture: TimmArchitecture) -> tuple[int, int]:
    """Pixels (H, W) of the model as it is built."""
    if architecture.img_size is not None:
        return architecture.img_size
    rows, columns = get_pretrained_cfg(architecture.model).input_size[1:]  # type: ignore[union-attr]
    return rows, columns


def _maker(architecture: TimmArchitecture, **settings: Any) -> partial[nn.Module]:
    size: dict[str, Any] = {"img_size": architecture.img_size} if architecture.img_size is not None else {}
    return partial(timm.create_model, architecture.model, pretrained=False, **size, **settings)


def build_timm(architecture: TimmArchitecture) -> TimmBackbone:
    """The model without classifier and pooling.

    Raises:
        ValueError: it takes no `img_size`, or gives no tokens.
    """
    try:
        return wrap_timm(_maker(architecture, num_classes=0), _native_size(architecture))
    except (TypeError, RuntimeError, AssertionError) as error:
        size = architecture.img_size or "its own size"
        raise ValueError(f"timm's {architecture.model} cannot be built for {size}: {error}") from error


@lru_cache(maxsize=8)
def _whole(architecture: TimmArchitecture) -> nn.Module:
    """The model with classifier and pooling, without data."""
    with torch.device("meta"):
        return _maker(architecture)()


@lru_cache(maxsize=8)
def _names(architecture: TimmArchitecture) -> tuple[str, ...]:
    """Names of the encoder's tensors, in timm's order."""
    with torch.device("meta"):
        return tuple(build_timm(architecture).model.state_dict())


def infer_timm(
    where: str, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], options: Mapping[str, Any]
) -> Inferred:
    """The model is named by the option; the size of its positions follows from their number.

    Raises:
        CheckpointError: the number of positions fits no square image.
    """
    architecture = TimmArchitecture(**options)
    sources = {"model": "option model"}
    if architecture.img_size is not None:
        sources["img_size"] = "option img_size"
    elif (size := _size_of_positions(where, architecture, tensors)) is not None:
        architecture = architecture.model_copy(update={"img_size": size})
        sources["img_size"] = "number of positions, square"
    encoder = _names(architecture)
    heads = _heads(architecture.model, set(_whole(architecture).state_dict()) - set(encoder))
    left_out = tuple(sorted(name for name in tensors if name in heads or name.startswith(_prefixes_of(heads))))
    kept = {name: tensor for name, tensor in tensors.items() if name not in left_out}
    for name in encoder:
        if name.endswith(_COUNTER) and name not in kept and name.replace(_COUNTER, "running_mean") in kept:
            kept[name] = torch.zeros((), dtype=torch.int64)
            sources[_COUNTER] = "absent from the file, counted from 0; evaluation does not use it"
    return Inferred(architecture, sources, kept, {"classifier and pooling": left_out} if left_out else {})


def _heads(model: str, absent: set[str]) -> set[str]:
    """Names of a whole model that the encoder lacks, and the classifiers', which a file may have in other shapes."""
    classifier = getattr(get_pretrained_cfg(model), "classifier", None) or ()
    classifiers = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    return absent | {f"{name}.{leaf}" for name in classifiers for leaf in ("weight", "bias")}


def _prefixes_of(heads: set[str]) -> tuple[str, ...]:
    return tuple(name + "." for name in heads)


def _size_of_positions(
    where: str, architecture: TimmArchitecture, tensors: Mapping[str, torch.Tensor]
) -> tuple[int, int] | None:
    """Another size than timm's own where the file's positions are those of another square; else None."""
    stored = tensors.get("pos_embed")
    model: Any = _whole(architecture)
    own, grid = getattr(model, "pos_embed", None), getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if stored is None or grid is None or not isinstance(own, torch.Tensor) or own.ndim != 3 or stored.ndim != 3:
        return None
    if stored.shape[1] == own.shape[1]:
        return None
    num_tokens = stored.shape[1] - (own.shape[1] - math.prod(grid))
    side = math.isqrt(max(num_tokens, 0))
    if side * side != num_tokens or side == 0:
        raise CheckpointError(
            f"{where}: pos_embed has {stored.shape[1]} positions, which fit no square image of {architecture.model}. "
            "Give the size of the pretraining: the option img_size: [H, W]."
        )
    patch = model.patch_embed.patch_size
    return side * patch[0], side * patch[1]


def timm_spec(architecture: TimmArchitecture) -> ImageSpec:
    """What timm states of the weights: size, mean and std, interpolation, crop.

    A squash or border with a crop, and a random interpolation, have no counterpart here: the whole image is taken,
    and bicubic.
    """
    stated: Any = get_pretrained_cfg(architecture.model)
    resize = {"squash": "squash", "border": "pad"}.get(stated.crop_mode, "shorter_side")
    interpolation = stated.interpolation if stated.interpolation in ("bicubic", "bilinear", "nearest") else "bicubic"
    return ImageSpec(
        size=_native_size(architecture),
        channels=stated.input_size[0],
        resize=resize,  # type: ignore[arg-type]
        crop_pct=stated.crop_pct if resize == "shorter_side" else 1.0,
        interpolation=interpolation,  # type: ignore[arg-type]
        mean=stated.mean,
        std=stated.std,
    )


def _anchor(options: Mapping[str, Any]) -> str:
    """The first weight of the model that the options name."""
    return _names(TimmArchitecture(**options))[0]


def fetch_timm(name: str) -> Fetched:
    """Published weights from timm's own source, all of them, the classifier too.

    Raises:
        ConfigError: timm knows no such model, or no weights of it.
        StorageError: they could not be fetched.
    """
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of its client

    stated = get_pretrained_cfg(name)
    if stated is None or not stated.has_weights:
        raise ConfigError(f"timm has no published weights of {name!r}. Give a checkpoint, or random weights.")
    location = f"hf-hub:{stated.hf_hub_id}" if stated.hf_hub_id else str(stated.url)
    try:
        model = timm.create_model(name, pretrained=True)
    except (OSError, HTTPError, RuntimeError) as error:
        first_line = str(error).partition("\n")[0]
        raise StorageError(
            f"{location}: the weights of {name!r} could not be fetched ({type(error).__name__}: {first_line}). Check "
            "the network, or give a local file as `checkpoint`, with `options: {model: …}`."
        ) from error
    return Fetched(model.state_dict(), location)


TIMM = Family(
    architecture=TimmArchitecture,
    build=build_timm,
    infer=infer_timm,
    default_specs={"image": timm_spec, "clip": lambda architecture: clip_spec_of(timm_spec(architecture))},
    anchor=_anchor,
    prefixes={"only": ("", "model.", "backbone.")},
    rules={"only": {}},
    options=frozenset({"model", "img_size"}),
    holder=HOLDER,
    set_input_size=TimmBackbone.set_input_size,
    fetch=fetch_timm,
    frame_by_frame=True,
)
