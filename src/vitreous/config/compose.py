"""YAML and overrides in, validated study out. Hydra composes, pydantic judges."""

import difflib
import functools
import types
import typing
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from vitreous.config.study import StudyConfig
from vitreous.core.errors import ConfigError

_PACKAGED = "vitreous.studies"


def packaged_studies() -> list[str]:
    """Names of the study files that come with the package."""
    return sorted(
        item.name.removesuffix(".yaml") for item in resources.files(_PACKAGED).iterdir() if item.name.endswith(".yaml")
    )


def find_study(study: str) -> Path:
    """The path of a study file, given as a path or as the name of a packaged one.

    Raises:
        ConfigError: neither exists.
    """
    path = Path(study).expanduser()
    if path.is_file():
        if path.suffix != ".yaml":
            raise ConfigError(f"{study}: a study file must end in .yaml, as Hydra reads no other; rename it.")
        return path.resolve()
    name = study.removesuffix(".yaml")
    if name in packaged_studies():
        return Path(str(resources.files(_PACKAGED) / f"{name}.yaml"))
    raise ConfigError(f"{study}: no such study file; packaged studies are {', '.join(packaged_studies())}.")


def forced(override: str) -> str:
    """Let pydantic alone judge keys: a plain ``key=value`` becomes Hydra's ``++key=value``."""
    return override if override.startswith(("+", "~")) else f"++{override}"


def compose_study(study: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The study as plain values, overrides applied, interpolations resolved, not yet validated.

    Raises:
        ConfigError: the YAML or an override cannot be parsed.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    path = find_study(study)
    parser = OverridesParser.create()
    for override in overrides:
        try:
            parser.parse_override(forced(override))
        except HydraException as error:
            raise ConfigError(
                f"override {override!r} is not of the form key=value, such as seeds=[0,1] "
                f"({str(error).splitlines()[0]})."
            ) from None
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(path.parent), version_base="1.3"):
            composed = compose(path.stem, overrides=[forced(override) for override in overrides])
        values = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {str(error).strip()}") from error
    finally:
        GlobalHydra.instance().clear()
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a study is a mapping of keys; got {type(values).__name__}.")
    return {str(key): value for key, value in values.items()}


def validate_study(values: Mapping[str, Any], where: str = "study") -> StudyConfig:
    """Judge plain values.

    Raises:
        ConfigError: with every problem at once; an unknown key comes with the nearest known one.
    """
    try:
        return StudyConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError([f"{where}: {_describe(details)}" for details in error.errors()]) from None


def load_study(study: str, overrides: Sequence[str] = ()) -> StudyConfig:
    """Compose and validate. Errors as in :func:`compose_study` and :func:`validate_study`."""
    return validate_study(compose_study(study, overrides), where=Path(find_study(study)).name)


def _describe(details: Any) -> str:
    shown, known = _walk([str(part) for part in details["loc"]])
    key = ".".join(shown)
    match details["type"]:
        case "extra_forbidden":
            return f"{key}: unknown key; {_suggest(shown[-1], shown[:-1], known)}"
        case "missing":
            return f"{key}: required, but not given."
        case "union_tag_invalid" | "union_tag_not_found":
            return f"{key}.kind: {details['msg']}"
        case "value_error":
            return f"{key or 'the whole'}: {details['msg'].removeprefix('Value error, ')}"
    return f"{key}: {details['msg'][0].lower()}{details['msg'][1:]}; got {details['input']!r}."


def _suggest(name: str, above: Sequence[str], known: set[str]) -> str:
    """The nearest key of the same place, the places where a key of this name stands, or all keys of this place."""
    close = difflib.get_close_matches(name, known, n=1)
    places = sorted({place for place in _places_of(name) if place != ".".join(above)})
    said = [f"did you mean {close[0]!r}?"] if close else []
    said += [f"{name!r} stands under {', '.join(places)}."] if places and not (close and close[0] == name) else []
    return " ".join(said) or f"known keys are {', '.join(sorted(known))}."


@functools.cache
def _places_of(name: str) -> tuple[str, ...]:
    """Where in a study a key of this name may stand, such as ``recipes.NAME.grid``; ``the top`` is the top level."""
    found: list[str] = []

    def visit(model: type[BaseModel], place: str) -> None:
        if name in model.model_fields:
            found.append(place or "the top")
        for field_name, field in model.model_fields.items():
            below = f"{place}.{field_name}" if place else field_name
            is_named = typing.get_origin(field.annotation) is dict
            for inner in dict.fromkeys(_models_in(field.annotation)):
                visit(inner, f"{below}.NAME" if is_named else below)

    visit(StudyConfig, "")
    return tuple(dict.fromkeys(found))


def _walk(location: Sequence[str]) -> tuple[list[str], set[str]]:
    """The location without the tags of unions, and the field names known where its last part stands."""
    models: list[type[BaseModel]] = [StudyConfig]
    shown: list[str] = []
    for depth, part in enumerate(location):
        tagged = [
            model
            for model in models
            if part not in model.model_fields
            and part in (model.__name__, *typing.get_args(getattr(model.model_fields.get("kind"), "annotation", None)))
        ]
        if tagged:
            models = tagged
            continue
        shown.append(part)
        if depth < len(location) - 1:
            fields = [model.model_fields[part] for model in models if part in model.model_fields]
            models = [found for field in fields for found in _models_in(field.annotation)] or models
    return shown, {name for model in models for name in model.model_fields}


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if isinstance(annotation, types.GenericAlias | types.UnionType) or typing.get_args(annotation):
        return [model for inner in typing.get_args(annotation) for model in _models_in(inner)]
    return []
