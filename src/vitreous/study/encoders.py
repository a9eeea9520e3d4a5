"""A study's encoders, opened: every checkpoint is read and checked before any work starts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vitreous.config.attentive_probe import AttentiveProbe
from vitreous.config.clip_data import FramesData
from vitreous.config.study import EncoderConfig, StudyConfig
from vitreous.core.errors import ConfigError, UserError
from vitreous.core.fingerprints import fingerprint
from vitreous.core.input_spec import AnySpec, ClipSpec, Modality
from vitreous.core.streams import stream_seed
from vitreous.encoders.catalog import FAMILIES, build_random_encoder, fetch_checkpoint, fetch_encoder, load_encoder
from vitreous.encoders.encoder import Encoder, Precision
from vitreous.encoders.family_pixels import PIXELS as PIXELS_FAMILY
from vitreous.storage.location import S3Options
from vitreous.storage.staging import StagingCache
from vitreous.study.data import s3_options
from vitreous.study.runtime import Runtime

UNTRAINED = "untrained"  # how names of encoders of the floor of random weights begin
FLOOR = "floor"  # the encoder's name in floor rows without one


@dataclass(frozen=True)
class OpenedEncoder:
    """An encoder under the name the study gives it.

    Args:
        encoder: loaded, on the device of the run.
        source: how to load it again; part of ``model.json``.
        options: of the family.
        overridden: fields of the InputSpec that the study overrides by name.
        is_floor: random weights that serve as the floor `untrained`.
    """

    name: str
    encoder: Encoder
    source: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    overridden: tuple[str, ...] = ()
    is_floor: bool = False

    def describe(self) -> dict[str, Any]:
        """What ``receipts/<encoder>.json`` holds: the load receipt, the input spec and what the study overrides."""
        return {
            **self.encoder.receipt.to_json(),
            "name": self.name,
            "weights_hash": self.encoder.weights_hash,
            "input_spec": self.encoder.spec.model_dump(mode="json"),
            "overridden": list(self.overridden),
            "options": dict(self.options),
            "is_floor": self.is_floor,
        }


def open_encoders(
    config: StudyConfig, runtime: Runtime, cache: StagingCache, modality: Modality
) -> list[OpenedEncoder]:
    """All encoders of the study, then the untrained ones that its floors ask for.

    Args:
        modality: what the study's data are.

    Raises:
        ConfigError: with the problems of every encoder at once.
    """
    opened: list[OpenedEncoder] = []
    problems: list[str] = []
    for name, encoder in config.encoders.items():
        try:
            opened.append(_open(name, encoder, config, runtime, cache, modality))
        except UserError as error:
            problems.append(f"encoders.{name}: {error}")
    if problems:
        raise ConfigError(problems)
    floors = _untrained_floors(config, opened, runtime, cache) + _pixels_floor(config, runtime, cache, modality)
    return opened + floors


def _open(
    name: str,
    encoder: EncoderConfig,
    config: StudyConfig,
    runtime: Runtime,
    cache: StagingCache,
    modality: Modality,
) -> OpenedEncoder:
    if encoder.family not in FAMILIES:
        raise ConfigError(f"unknown family {encoder.family!r}; known are {', '.join(FAMILIES)}.")
    source: dict[str, Any] = {
        "family": encoder.family,
        "options": dict(encoder.options),
        "input": dict(encoder.input),
        "modality": modality,
        **({} if encoder.layer is None else {"layer": encoder.layer}),
    }
    if encoder.random is not None:
        # named by the architecture, not by the encoder: renaming an encoder keeps its features
        seed = stream_seed(0, "random encoder", fingerprint(encoder.random))
        source |= {"random": dict(encoder.random), "seed": seed}
    elif encoder.hub is not None:
        source |= {"hub": encoder.hub}
    else:
        source |= {"checkpoint": encoder.checkpoint, "which": encoder.which, "key_prefix": encoder.key_prefix}
    built = load_source(source, s3_options(config), cache, precision=runtime.precision, device=runtime.device)
    if problem := _sampling_problem(config, built.spec):
        raise ConfigError(problem)
    coarse = config.features.grid
    if coarse is not None and any(cells > tokens for cells, tokens in zip(coarse, built.grid, strict=True)):
        raise ConfigError(f"features.grid {list(coarse)} is finer than this encoder's token grid {list(built.grid)}.")
    on_tokens = [name for name, recipe in config.recipes.items() if isinstance(recipe, AttentiveProbe)]
    if on_tokens and math.prod(built.grid) == 1:
        raise ConfigError(
            f"this encoder (family {encoder.family}) gives no tokens but one vector, and recipes.{on_tokens[0]} "
            "attends to tokens. Take linear_probe or mlp_probe for it, in a study of its own."
        )
    return OpenedEncoder(
        name, built, source, dict(encoder.options), tuple(sorted(encoder.input)), is_floor=encoder.random is not None
    )


def _sampling_problem(config: StudyConfig, spec: AnySpec) -> str | None:
    """Why these frames cannot be sampled as the encoder asks; None where they can."""
    data = config.data
    if not isinstance(spec, ClipSpec) or not isinstance(data, FramesData):
        return None
    if spec.fps is not None and data.fps is None:
        return (
            f"the encoder takes {spec.fps:g} frames a second, and the study does not say how many frame numbers make a "
            "second. Set data.fps, or input: {step: 1, fps: null} for neighbouring frames."
        )
    if spec.fps is None and spec.step is None and data.window is None:
        return (
            "the encoder's frames are spread over the clip, which without data.window is all of the video, the same "
            "for each of its clips. Set data.window, or input.step or input.fps."
        )
    return None


def load_source(
    source: Mapping[str, Any],
    s3: S3Options,
    cache: StagingCache,
    *,
    precision: Precision = "fp32",
    device: str = "cpu",
    trainable: bool = False,
) -> Encoder:
    """The encoder that ``model.json`` describes under `encoder`.

    Args:
        trainable: as recipes on pixels need it; else frozen, as features are made.

    Raises:
        UserError: the checkpoint is not there, or no longer fits.
    """
    how: dict[str, Any] = {
        "modality": source["modality"],
        "spec_override": source["input"],
        "precision": precision,
        "device": device,
        "trainable": trainable,
        "layer": source.get("layer"),
        **source["options"],
    }
    family: str = source["family"]
    if "random" in source:
        return build_random_encoder(family, architecture=source["random"], seed=source["seed"], **how)
    if "hub" in source:
        return fetch_encoder(source["hub"], family, **how)
    path = fetch_checkpoint(source["checkpoint"], s3, cache)
    return load_encoder(path, family, which=source["which"], key_prefix=source["key_prefix"], **how)


def has_pixels_floor(config: StudyConfig, modality: Modality) -> bool:
    """Whether the floor `pixels` is asked for and there is a small copy of such inputs."""
    return "pixels" in config.floors and modality in PIXELS_FAMILY.default_specs


def _pixels_floor(
    config: StudyConfig, runtime: Runtime, cache: StagingCache, modality: Modality
) -> list[OpenedEncoder]:
    """The values of a small copy of each input, for the floor `pixels`."""
    if not has_pixels_floor(config, modality):
        return []
    source = {"family": "pixels", "options": {}, "input": {}, "modality": modality, "random": {}, "seed": 0}
    built = load_source(source, s3_options(config), cache, device=runtime.device)
    return [OpenedEncoder(FLOOR, built, source, is_floor=True)]


def _untrained_floors(
    config: StudyConfig, opened: Sequence[OpenedEncoder], runtime: Runtime, cache: StagingCache
) -> list[OpenedEncoder]:
    """Random weights for each architecture that has none yet in the study, on the same input."""
    if "untrained" not in config.floors:
        return []

    def kind(one: OpenedEncoder) -> str:
        spec = one.encoder.spec.model_dump(mode="json")
        return fingerprint([one.encoder.family, one.encoder.architecture, spec, dict(one.options), one.encoder.layer])

    covered = {kind(one) for one in opened if one.is_floor}
    floors: list[OpenedEncoder] = []
    for one in opened:
        if kind(one) in covered:
            continue
        covered.add(kind(one))
        taken = {other.name for other in [*opened, *floors]}
        name = UNTRAINED if UNTRAINED not in taken else f"{UNTRAINED}_{one.name}"
        architecture = dict(one.encoder.architecture)
        seed = stream_seed(0, "random encoder", fingerprint(architecture))
        overrides = config.encoders[one.name].input
        source = {
            "family": one.encoder.family,
            "options": dict(one.options),
            "input": dict(overrides),
            "modality": one.encoder.modality,
            "random": architecture,
            "seed": seed,
            **({} if one.encoder.layer is None else {"layer": one.encoder.layer}),
        }
        built = load_source(source, s3_options(config), cache, precision=runtime.precision, device=runtime.device)
        floors.append(OpenedEncoder(name, built, source, one.options, one.overridden, is_floor=True))
    return floors
