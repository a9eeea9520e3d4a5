"""Study files: what is accepted, what is refused, and that all errors come at once."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from vitreous.config.compose import compose_study, load_study, packaged_studies, validate_study
from vitreous.core.errors import ConfigError

MINIMAL: dict[str, Any] = {
    "name": "oct",
    "data": {
        "kind": "participants",
        "table": "p.tsv",
        "files": "s3://bucket/",
        "label": "study_group",
        "classes": ["a", "b"],
    },
    "encoders": {"multi": {"family": "vit3d", "checkpoint": "m.pt"}},
    "recipes": {"linear": {"kind": "linear_probe"}},
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """MINIMAL with one key set."""
    study = yaml.safe_load(yaml.safe_dump(MINIMAL))
    *parents, last = path.split(".")
    target = study
    for parent in parents:
        target = target.setdefault(parent, {})
    target[last] = value
    return study


def test_minimal_study_takes_the_documented_defaults() -> None:
    config = validate_study(MINIMAL)
    assert config.seeds == (0, 1, 2)
    assert config.floors == ("majority", "shuffled", "untrained", "pixels", "columns")
    assert config.metric == "balanced_accuracy"
    assert config.data.max_quarantined == 0.05
    assert config.data.kind == "participants"
    assert config.data.pattern == "retinal_oct/structural_oct/{device}/{patient}/*.dcm"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("data.patern", "x", r"data.patern: unknown key; did you mean 'pattern'\?"),
        ("recipes.linear.epocs", 3, r"recipes.linear.epocs: unknown key; did you mean 'epochs'\?"),
        ("data.kind", "cvs", r"data.kind: .*'participants', 'npz', 'csv', 'folder'"),
        ("recipes.linear.kind", "linear", r"recipes.linear.kind: .*'linear_probe'"),
        ("seeds", [0, 0], r"seeds: lists a value twice"),
        ("data.classes", ["a", "a"], r"data.classes: class names must differ"),
        ("recipes.linear.class_weights", [1.0, 2.0, 3.0], r"3 weights for 2 classes"),
        ("recipes.linear.grid", {"lr": [1e-3, 1e-3]}, r"grid.lr lists a value twice"),
        ("encoders.multi", {"family": "vit3d"}, r"either `checkpoint: PATH`, `hub: NAME` or `random"),
        ("encoders.multi", {"family": "vit3d", "random": {}, "which": "target"}, r"random weights have none"),
        ("encoders.floor", {"family": "vit3d", "checkpoint": "x"}, r"encoders.floor: the name is taken"),
        ("data.split", {"fractions": [0.5, 0.2, 0.2]}, r"must add up to 1; got 0.9"),
        ("data.axes", "HWC", r"letters D, H and W"),
        ("features.pooling", "grid", r"features.grid, such as"),
        (
            "floors",
            ["majority", "ruffled"],
            r"floors.1: input should be 'majority', 'shuffled', 'untrained', 'pixels' or 'columns'; got 'ruffled'",
        ),
        ("name", "a/b", r"name: string should match pattern"),
        ("data.max_quarantined", 3, r"less than or equal to 1; got 3"),
    ],
)
def test_wrong_values_are_refused_with_their_key(path: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate_study(changed(path, value))


def test_an_axis_stands_either_at_the_top_or_under_grid() -> None:
    study = changed("recipes.linear", {"kind": "linear_probe", "lr": 1e-3, "grid": {"lr": [1e-3, 1e-2]}})
    with pytest.raises(ConfigError, match="lr stands both at the top and under grid"):
        validate_study(study)


def test_all_problems_come_at_once() -> None:
    study = changed("data.patern", "x") | {"seeds": [], "sedes": 1}
    with pytest.raises(ConfigError) as caught:
        validate_study(study)
    assert len(caught.value.problems) == 3
    assert str(caught.value).startswith("3 problems in the study:")


def test_auto_is_another_name_for_balanced() -> None:
    recipe = {"kind": "linear_probe", "grid": {"class_weights": ["auto", "none"]}}
    config = validate_study(changed("recipes.linear", recipe))
    linear = config.recipes["linear"]
    assert linear.kind == "linear_probe"
    assert linear.grid.class_weights == ("balanced", "none")


def test_an_npz_study_must_state_its_axes() -> None:
    study = MINIMAL | {"data": {"kind": "npz", "table": "x.npz", "classes": ["a", "b"]}}
    with pytest.raises(ConfigError, match=r"data.axes: required"):
        validate_study(study)


def test_overrides_use_hydras_grammar(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    config = load_study(str(path), ["seeds=[4,5]", "recipes.linear.grid.lr=[1e-3,1e-2]", "data.where.retinal_oct=true"])
    assert config.seeds == (4, 5)
    linear = config.recipes["linear"]
    assert linear.kind == "linear_probe"
    assert linear.grid.lr == (1e-3, 1e-2)
    assert config.data.kind == "participants"
    assert config.data.where == {"retinal_oct": True}


def test_a_misspelt_override_is_refused_with_a_suggestion(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    with pytest.raises(ConfigError, match=r"recipes.linear.epocs: unknown key; did you mean 'epochs'\?"):
        load_study(str(path), ["recipes.linear.epocs=3"])
    with pytest.raises(ConfigError, match="not of the form key=value"):
        load_study(str(path), ["epochs"])
    with pytest.raises(ConfigError, match=r"override 'seeds=\[0' is not of the form"):
        load_study(str(path), ["seeds=[0"])


def test_broken_yaml_and_missing_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("name: [")
    with pytest.raises(ConfigError, match=r"s\.yaml"):
        compose_study(str(tmp_path / "s.yaml"))
    with pytest.raises(ConfigError, match="no such study file; packaged studies are"):
        compose_study(str(tmp_path / "absent.yaml"))


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("name: a\nname: b\n")
    with pytest.raises(ConfigError, match="duplicate key name"):
        compose_study(str(tmp_path / "s.yaml"))


@pytest.mark.parametrize("name", packaged_studies())
def test_packaged_studies_are_valid(name: str) -> None:
    assert load_study(name).name


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"folds": {"k": 5}},
        {"recipes": {"linear": {"kind": "linear_probe", "grid": {"lr": [1e-3], "dropout": [0.1]}}}},
        {"encoders": {"small": {"family": "vit3d", "random": {"depth": 1}}}},
        {"features": {"pooling": "grid", "grid": [1, 2, 2]}},
    ],
)
def test_a_resolved_study_is_a_study(changes: dict[str, Any]) -> None:
    config = validate_study(MINIMAL | changes)
    assert validate_study(config.model_dump(mode="json")).model_dump(mode="json") == config.model_dump(mode="json")


def test_a_resolved_study_shows_only_what_takes_effect() -> None:
    recipe = {"kind": "linear_probe", "grid": {"lr": [1e-3]}}
    shown = validate_study(changed("recipes.linear", recipe)).model_dump(mode="json")["recipes"]["linear"]
    assert "lr" not in shown
    assert shown["weight_decay"] == 1e-4
