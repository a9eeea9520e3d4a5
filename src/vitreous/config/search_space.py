"""What a search tries, resolved against the recipe: every value of the space makes a valid recipe."""

import difflib
import itertools
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from vitreous.config.pixel_recipes import PixelRecipe
from vitreous.config.probe_recipes import Knn, LogisticRegression, Probe
from vitreous.config.recipes import Recipe
from vitreous.config.search import Axis, SearchConfig, label

Model = TypeVar("Model", bound=BaseModel)

_PROBE = {
    "lr": Axis(low=1e-4, high=1e-1, log=True),
    "weight_decay": Axis(low=1e-6, high=1e-1, log=True),
    "dropout": Axis(low=0.0, high=0.5),
    "batch_size": Axis(choices=(16, 32, 64, 128)),
    "class_weights": Axis(choices=("none", "balanced")),
}
_PIXELS = {
    "lr_head": Axis(low=1e-4, high=1e-2, log=True),
    "lr_encoder": Axis(low=1e-6, high=1e-3, log=True),
    "weight_decay": Axis(low=1e-3, high=0.3, log=True),
    "dropout": Axis(low=0.0, high=0.5),
    "batch_size": Axis(choices=(16, 32, 64)),
    "head": Axis(choices=("linear", "mlp")),
    "augment.rotate": Axis(low=0.0, high=30.0),
    "augment.crop": Axis(low=0.0, high=0.3),
}
# tried where a study gives no space, by kind of recipe
DEFAULT_SPACES: dict[str, dict[str, Axis]] = {
    "linear_probe": _PROBE,
    "mlp_probe": {**_PROBE, "hidden": Axis(choices=([128], [512], [512, 256]))},
    "attentive_probe": {**_PROBE, "batch_size": Axis(choices=(8, 16, 32)), "heads": Axis(choices=(4, 8, 16))},
    "logistic_regression": {
        "C": Axis(low=1e-4, high=1e2, log=True),
        "class_weights": Axis(choices=("none", "balanced")),
    },
    "knn": {"k": Axis(low=1, high=30), "distance": Axis(choices=("cosine", "euclidean"))},
    "finetune": {**_PIXELS, "layer_decay": Axis(low=0.6, high=1.0)},
    "partial": _PIXELS,
    "staged": _PIXELS,
    "from_scratch": {**_PIXELS, "lr_encoder": Axis(low=1e-4, high=1e-2, log=True)},
    "lora": {
        **_PIXELS,
        "lr_encoder": Axis(low=5e-5, high=5e-3, log=True),
        "rank": Axis(choices=(4, 8, 16, 32)),
        "alpha": Axis(low=4.0, high=64.0, log=True),
        "adapter_dropout": Axis(low=0.0, high=0.3),
    },
}


@dataclass(frozen=True)
class Search:
    """One search, everything decided.

    Args:
        recipe: as the study has it; trials put values into it.
        space: key → values, in the order of the study.
        settings: how it is searched.
    """

    encoder: str
    recipe_name: str
    recipe: Recipe
    space: Mapping[str, Axis]
    settings: SearchConfig

    @property
    def is_on_pixels(self) -> bool:
        """Whether a trial trains on pixels; else on kept features."""
        return isinstance(self.recipe, PixelRecipe)

    @property
    def is_pruned(self) -> bool:
        """Whether a trial may end early."""
        return self.is_on_pixels and self.settings.prune

    def is_whole(self, key: str) -> bool:
        """Whether the key takes whole numbers alone."""
        return numbers_of(self.recipe, key) == {int}


def resolve_search(
    settings: SearchConfig,
    *,
    encoders: Mapping[str, bool],
    recipes: Mapping[str, Recipe],
    num_seeds: int,
    num_classes: int,
    has_folds: bool,
) -> tuple[Search | None, list[str]]:
    """What is searched, or every reason why it cannot be.

    Args:
        encoders: name → whether it has random weights.
        num_seeds: of the study.
    """
    problems = []
    if has_folds:
        problems.append(
            "search: with folds every patient is tested in some round, and none is left to choose on; give data.split "
            "and leave folds out"
        )
    candidates = [name for name, is_random in encoders.items() if not is_random] or list(encoders)
    encoder = _chosen("encoder", settings.encoder, list(encoders), candidates, problems)
    name = _chosen("recipe", settings.recipe, list(recipes), list(recipes), problems)
    if settings.seeds_per_trial > num_seeds:
        problems.append(f"search.seeds_per_trial: the study has {num_seeds} seeds; got {settings.seeds_per_trial}")
    if name is None:
        return None, problems
    recipe = recipes[name]
    if getattr(recipe, "segmentation", None) is not None:
        problems.append(f"recipes.{name}.segmentation: a search trains the head alone; leave the second task out of it")
    if not isinstance(recipe, PixelRecipe) and "prune" in settings.model_fields_set and settings.prune:
        problems.append(f"search.prune has no effect: {recipe.kind} takes no epochs one by one; leave it out")
    if isinstance(recipe, LogisticRegression | Knn) and settings.seeds_per_trial > 1:
        problems.append(f"search.seeds_per_trial has no effect: nothing about {recipe.kind} is random; leave it out")
    if isinstance(recipe, Probe) and (axes := [axis for axis, values in recipe.grid if values]):
        problems.append(f"recipes.{name}.grid ({', '.join(axes)}) and search both choose; leave the grid out")
        return None, problems
    space = settings.space
    if space is None:
        space = {key: axis for key, axis in DEFAULT_SPACES[recipe.kind].items() if not _is_fixed(recipe, key)}
        if not space:
            problems.append(f"search.space: recipes.{name} fixes every key that is tried by default; give a space")
    problems += _check_space(recipe, name, space, num_classes)
    if problems or encoder is None:
        return None, problems
    return Search(encoder, name, recipe, space, settings), []


def put_values(recipe: Model, values: Mapping[str, Any]) -> Model:
    """The recipe with these values; one value for a key that takes a list makes a list of one.

    Raises:
        ValidationError: a value is outside the key's range, or has no effect.
    """
    settings = recipe.model_dump(exclude_unset=True)
    for key, value in values.items():
        owner, field = _owner(recipe, key)
        place = settings
        if owner is not recipe:
            outer = key.partition(".")[0]
            # a nested model is told by its kind, which a study may have left to the default
            kind = {"kind": owner.kind} if "kind" in type(owner).model_fields else {}  # type: ignore[attr-defined]
            place = settings[outer] = {**kind, **settings.get(outer, {})}
        is_list = _takes_lists_alone(type(owner).model_fields[field].annotation)
        place[field] = [value] if is_list and value is not None and not isinstance(value, list | tuple) else value
    return type(recipe).model_validate(settings)


def numbers_of(recipe: BaseModel, key: str) -> set[type]:
    """Which of int and float the key takes."""
    owner, field = _owner(recipe, key)
    return _number_types(type(owner).model_fields[field].annotation)


def _chosen(
    what: str, named: str | None, known: Sequence[str], candidates: Sequence[str], problems: list[str]
) -> str | None:
    if named is None:
        if len(candidates) == 1:
            return candidates[0]
        problems.append(f"search.{what}: required, since the study has {', '.join(candidates)}")
        return None
    if named not in known:
        problems.append(f"search.{what}: {named!r} is none of the study's {', '.join(known)}")
        return None
    return named


def _check_space(recipe: Recipe, name: str, space: Mapping[str, Axis], num_classes: int) -> list[str]:
    problems: list[str] = []
    sound: dict[str, Axis] = {}
    for key, axis in space.items():
        found = _check_key(recipe, name, key, axis)
        found = found or [problem for end in axis.ends for problem in _check_values(recipe, {key: end}, num_classes)]
        problems += list(dict.fromkeys(found))
        if not found:
            sound[key] = axis
    for (one, first), (other, second) in itertools.combinations(sound.items(), 2):
        for ends in itertools.product(first.ends, second.ends):
            if found := _check_values(recipe, dict(zip((one, other), ends, strict=True)), num_classes):
                problems += found[:1]
                break  # one example says it
    return problems


def _check_key(recipe: Recipe, name: str, key: str, axis: Axis) -> list[str]:
    """A key of the recipe, free, and of a type that the axis can give."""
    where = f"search.space.{key}"
    try:
        owner, field = _owner(recipe, key)
    except KeyError as error:
        return [f"{where}: recipes.{name} ({recipe.kind}) has no such key; {error.args[0]}"]
    if field in ("kind", "grid", "stages") or isinstance(getattr(owner, field), BaseModel):
        return [f"{where}: cannot be searched as a whole"]
    if _is_fixed(recipe, key):
        return [f"{where}: stands in recipes.{name} with a value of its own as well; leave one of them out"]
    if axis.choices is None:
        taken = numbers_of(recipe, key)
        if not taken:
            return [f"{where}: is no number; give choices"]
        if taken == {int} and not (float(axis.low or 0).is_integer() and float(axis.high or 0).is_integer()):
            return [f"{where}: takes whole numbers; got low {axis.low:g} and high {axis.high:g}"]
    return []


def _check_values(recipe: Recipe, values: Mapping[str, Any], num_classes: int) -> list[str]:
    shown = " with ".join(f"{key}={label(value)}" for key, value in values.items())
    try:
        made = put_values(recipe, values)
    except ValidationError as error:
        return [f"search.space: {shown}: {_plain(details['msg'])}" for details in error.errors()]
    weights = made.class_weights if "class_weights" in type(made).model_fields else "none"  # type: ignore[union-attr]
    if isinstance(weights, tuple) and len(weights) != num_classes:
        return [f"search.space: {shown}: {len(weights)} weights for {num_classes} classes"]
    return []


def _plain(message: str) -> str:
    message = message.removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def _owner(recipe: BaseModel, key: str) -> tuple[BaseModel, str]:
    """The model that has the key's last part as a field: the recipe, or its `augment` or `loss`.

    Raises:
        KeyError: there is no such key; says the nearest one.
    """
    outer, _, inner = key.partition(".")
    owner: Any = recipe
    if inner:
        owner = getattr(recipe, outer, None)
        if not isinstance(owner, BaseModel):
            raise KeyError(_nearest(key, recipe))
        outer = inner
    if outer not in type(owner).model_fields:
        raise KeyError(_nearest(key, recipe))
    return owner, outer


def _nearest(key: str, recipe: BaseModel) -> str:
    known = []
    for field in type(recipe).model_fields:
        value = getattr(recipe, field)
        nested = type(value).model_fields if isinstance(value, BaseModel) else None
        known += [field] if nested is None else [f"{field}.{inner}" for inner in nested]
    known = [one for one in known if one.rpartition(".")[2] not in ("kind", "grid")]
    close = difflib.get_close_matches(key, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known keys are {', '.join(known)}"


def _is_fixed(recipe: BaseModel, key: str) -> bool:
    owner, field = _owner(recipe, key)
    is_owner_given = owner is recipe or key.partition(".")[0] in recipe.model_fields_set
    return is_owner_given and field in owner.model_fields_set


def _number_types(annotation: Any) -> set[type]:
    if annotation in (int, float):
        return {annotation}
    if typing.get_origin(annotation) is typing.Literal:
        return set()
    return {found for inner in typing.get_args(annotation) for found in _number_types(inner)}


def _takes_lists_alone(annotation: Any) -> bool:
    """Whether every form of the key but null is a list."""
    origin = typing.get_origin(annotation)
    if origin is tuple:
        return True
    if origin is typing.Annotated:
        return _takes_lists_alone(typing.get_args(annotation)[0])
    inner = [one for one in typing.get_args(annotation) if one is not NoneType]
    return bool(inner) and origin is not typing.Literal and all(map(_takes_lists_alone, inner))
