"""Every key of every packaged study takes effect, or the tool says why not; unknown and misplaced keys are refused.

A run belongs to its settings: where they differ, it is another run. So each key is changed, and the change must make
another run, be refused with a reason, or be told as one that changes no number. That the settings themselves are read
is looked for in the source: a key that no code reads cannot have an effect.
"""

import ast
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import vitreous
from vitreous.config.compose import _models_in, compose_study, load_study, packaged_studies, validate_study
from vitreous.config.model import Frozen
from vitreous.config.study import PLACES, StudyConfig
from vitreous.core.errors import ConfigError
from vitreous.study.run_directory import (
    comparable_settings,
    differing_keys,
    flatten_keys,
    idle_differences,
    resolved_settings,
)

# what stands where a packaged study says nothing
INSTEAD_OF_NOTHING: dict[str, Any] = {
    "axes": "HWD", "spacing_mm": [1.0, 1.0, 1.0], "columns": ["age"], "key_prefix": "module.",
    "input": {"size": [2, 2, 2]}, "options": {"depth": 2}, "dropout": 0.1, "class_weights": "balanced",
    "folds": {"k": 5}, "few_shot": [5], "grid": [1, 1, 1], "tracker": "tensorboard", "accept": ["near_duplicates"],
    "endpoint": "https://minio.lab:9000", "region": "eu", "patient": "person", "where": {"quality": "good"},
    "domains": ["camera"], "monitor": "auroc", "ema": 0.99, "layers": [0, 1], "patience": 3, "encoder": "cnn",
    "recipe": "full", "cross_validate": 3, "lr_encoder": 1e-5, "batch_size": 8,
    "ensembles": {"both": {"members": ["a/b", "c/d"]}},
}  # fmt: skip
GRID = {"lr": [0.5], "weight_decay": [0.5], "dropout": [0.5], "class_weights": ["none"]}


def candidates(key: str, value: Any) -> list[Any]:
    """Other values of the same kind."""
    *above, last = key.split(".")
    if value is None or value in ({}, []):
        if "grid" in above:
            return [GRID[last]]
        return [INSTEAD_OF_NOTHING[last]] if last in INSTEAD_OF_NOTHING else [2, 0.5, "x", ["x"], *literals(last)]
    match value:
        case bool():
            return [not value]
        case int():
            return [value + 1, value + 2, max(value - 1, 0)]
        case float():
            return [value * 2, value / 2, value + 0.01, 0.5]
        case str():
            return [*literals(last), f"{value}2", f"{value}.tsv", 2, 3]
        case list():
            more = [*value, *([value[-1] * 2] if isinstance(value[-1], float) else [])]
            return [
                value[:-1],
                value[1:],
                more,
                value[::-1],
                [element + 1 for element in value if isinstance(element, int)],
            ]
    raise AssertionError(f"{key}: no other value for {value!r}")


def literals(name: str) -> list[str]:
    """Every text that some key of this name may be."""
    found: list[str] = []
    for model in all_models():
        if name in model.model_fields:
            found += list(_texts_in(model.model_fields[name].annotation))
    return list(dict.fromkeys(found))


def _texts_in(annotation: Any) -> Iterator[str]:
    for part in getattr(annotation, "__args__", ()):
        if isinstance(part, str):
            yield part
        else:
            yield from _texts_in(part)


def all_models() -> list[type[BaseModel]]:
    found: dict[type[BaseModel], None] = {}

    def visit(model: type[BaseModel]) -> None:
        if model not in found:
            found[model] = None
            for field in model.model_fields.values():
                for inner in _models_in(field.annotation):
                    visit(inner)

    visit(StudyConfig)
    return list(found)


def changed(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """The study with one key changed, or given where it was left out."""
    values = copy.deepcopy(values)
    *above, last = key.split(".")
    place: Any = values
    while above:
        name = above.pop(0)
        while isinstance(place, dict) and above and any(str(known).startswith(f"{name}.") for known in place):
            name = f"{name}.{above.pop(0)}"  # keys of search.space hold dots of their own
        place = place[int(name)] if isinstance(place, list) else place.setdefault(name, {})
    place[last] = value
    return values


def leaves(config: StudyConfig) -> dict[str, Any]:
    """Dotted key → value; lists of mappings are told by number."""
    flat: dict[str, Any] = {}
    for key, value in flatten_keys(config.model_dump(mode="json")).items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            for number, item in enumerate(value):
                flat |= flatten_keys(item, f"{key}.{number}")
        else:
            flat[key] = value
    return flat


def effect(config: StudyConfig, values: dict[str, Any], key: str, other: Any) -> str:
    """``another run``, ``told idle``, ``refused: …`` or nothing."""
    try:
        mutated = validate_study(changed(values, key, other))
    except ConfigError as error:
        return f"refused: {error}"
    before, after = (resolved_settings(one) for one in (config, mutated))
    if differing_keys(comparable_settings(before), comparable_settings(after)):
        return "another run"
    if key.startswith("search."):
        assert config.resolved_search() != mutated.resolved_search() or config.search != mutated.search
        return "another search"
    said = idle_differences(before, after)
    return "told idle" if any(sentence.startswith(key.split(".")[0]) for sentence in said) else ""


@pytest.mark.parametrize("name", packaged_studies())
def test_every_key_of_a_packaged_study_takes_effect_or_says_why_not(name: str) -> None:
    config, values = load_study(name), compose_study(name)
    tried = leaves(config)
    assert len(tried) > 40
    for key, value in tried.items():
        found = [effect(config, values, key, other) for other in candidates(key, value) if other != value]
        assert found, f"{name}: nothing else to try for {key}"
        assert "" not in found, f"{name}: {key} changes and nothing is said of it"
        is_idle = key.split(".")[0] in PLACES or key == "data.refresh_listing"
        assert ("told idle" in found) == is_idle, f"{name}: {key} {found}"
        if not {"another run", "another search", "told idle"} & set(found):
            # nothing else is allowed beside the rest of this study: the reason must name the key, and be no mere type
            named = key.split(".")[-2:]
            reasons = [one for one in found if any(part in one for part in named) and "input should be" not in one]
            assert reasons, f"{name}: {key} cannot be changed: {found}"


def test_every_field_is_read_outside_the_configuration() -> None:
    """A key that is validated, fingerprinted and never read is the experiment that never was."""
    package = Path(vitreous.__file__).parent
    read: set[str] = set()
    for path in package.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                # in config itself only what a validator or property makes of self counts as read elsewhere
                if path.parent.name != "config":
                    read.add(node.attr)
            elif isinstance(node, ast.MatchClass) and path.parent.name != "config":
                read |= set(node.kwd_attrs)
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "getattr" and len(node.args) > 1:
                read |= {node.args[1].value} if isinstance(node.args[1], ast.Constant) else set()
    through_properties = {
        # field: the property or method of its own model that code outside reads instead
        "leave_out": "column", "each": "column", "stages": "plan", "unfreeze_at_epoch": "plan",
    }  # fmt: skip
    unread = []
    for model in all_models():
        if issubclass(model, Frozen):
            for field in model.model_fields:
                if field not in read and through_properties.get(field) not in read:
                    unread.append(f"{model.__name__}.{field}")
    assert unread == []


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("sedes", [0], r"sedes: unknown key; did you mean 'seeds'\?"),
        ("label", "x", r"label: unknown key; .*'label' stands under data"),
        ("lr", 0.1, r"lr: unknown key; 'lr' stands under recipes\.NAME, recipes\.NAME\.grid"),
        ("data.floors", ["majority"], r"data\.floors: unknown key; .*'floors' stands under the top"),
        ("recipes.linear.resamples", 500, r"resamples: unknown key; .*'resamples' stands under intervals"),
        ("recipes.linear.k", [5], r"recipes\.linear\.k: unknown key; .*stands under.* recipes\.NAME"),
        ("encoders.multi_scanner.domains", ["x"], r"domains: unknown key; .*'domains' stands under data"),
        ("nonsense", 1, r"nonsense: unknown key; known keys are baseline, batch_size"),
    ],
)
def test_unknown_and_misplaced_keys_come_with_a_suggestion(path: str, value: Any, message: str) -> None:
    values = load_study("demo").model_dump(mode="json")
    with pytest.raises(ConfigError, match=message):
        validate_study(changed(values, path, value))


def test_a_key_that_changes_no_number_says_so_where_a_run_goes_on() -> None:
    config = load_study("demo")
    before = resolved_settings(config)
    after = resolved_settings(validate_study({**before, "workers": 3, "cache": {"dir": "elsewhere"}}))
    assert idle_differences(before, after) == [
        "cache differs from the first start and changes no number: it says where copies of remote files are kept.",
        "workers differs from the first start and changes no number: it says how many threads decode files.",
    ]
    assert idle_differences(before, before) == []
