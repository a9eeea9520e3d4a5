"""A trained model as it lies on disk: ``<run>/<encoder>/<recipe>/[foldN/]seedK``, or a copy of such a folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import TypeAdapter

from vitreous.config.compose import validate_study
from vitreous.config.pixel_recipes import PixelRecipe
from vitreous.config.recipes import RecipeOnPixels
from vitreous.config.study import StudyConfig
from vitreous.core.errors import LocationError, StudyMismatchError, UserError
from vitreous.core.input_spec import Modality
from vitreous.core.label_sets import Task
from vitreous.study.data import OpenedData, open_cache, s3_options
from vitreous.study.encode import feature_store, token_stores
from vitreous.study.encoders import OpenedEncoder, load_source
from vitreous.study.heads import SCHEMA_VERSION, read_model
from vitreous.study.run_directory import RunDirectory, differing_keys, flatten_keys, kept_study
from vitreous.study.runtime import Runtime

Device = Literal["auto", "cpu", "cuda", "mps"]


@dataclass(frozen=True)
class ModelFolder:
    """One trained model.

    Args:
        facts: its ``model.json``.
        config: of the run that trained it, on the device asked for and in the precision it was trained in; of a copy
            outside a run, what ``model.json`` tells of it.
        run: that run, where the folder still lies in it.
        recipe: of a model trained on pixels; None for a head on features.
        source: of the encoder, a moved checkpoint put in place.
    """

    path: Path
    facts: Mapping[str, Any]
    config: StudyConfig
    run: RunDirectory | None
    recipe: PixelRecipe | None
    source: Mapping[str, Any]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in index order."""
        return tuple(self.facts["classes"])

    @property
    def task(self) -> Task:
        """Whether a sample has one class, or any number of labels."""
        task: Task = self.facts.get("task", "multi_class")
        return task

    @property
    def thresholds(self) -> list[float] | None:
        """Of labels, the probability from which each is present, chosen on val."""
        return None if self.task == "multi_class" else [self.facts["thresholds"][name] for name in self.classes]

    @property
    def modality(self) -> Modality:
        """What the model reads."""
        modality: Modality = self.facts["modality"]
        return modality

    @property
    def name(self) -> str:
        """``encoder / recipe, seed k``, as far as the folder's own names tell the recipe."""
        return f"{self.facts['encoder']['name']} / {self.recipe_name}, seed {self.facts['seed']}"

    @property
    def recipe_name(self) -> str:
        """The name that the study gives the recipe; of a copy, its kind."""
        if self.run is None:
            return str(_read_recipe(self.path)["kind"])
        return self.path.resolve().relative_to(self.run.root).parts[1]


def open_model_folder(path: Path, *, checkpoint: str | None = None, device: Device = "auto") -> ModelFolder:
    """Read what a folder says of its model; no weights are read yet.

    Args:
        checkpoint: where the encoder's file lies now, if it moved.

    Raises:
        UserError: it is no such folder, of another version, the majority floor, or its encoder has no checkpoint.
    """
    if not (path / "model.json").is_file() or not (path / "best.safetensors").is_file():
        raise UserError(
            f"{path}: no finished model (it has no model.json with best.safetensors); give a folder such as "
            "runs/<study>/<encoder>/<recipe>/seed0."
        )
    facts = read_model(path)
    if facts["schema_version"] != SCHEMA_VERSION:
        raise UserError(
            f"{path}: model.json has schema_version {facts['schema_version']}; this version of Vitreous reads "
            f"{SCHEMA_VERSION}. Use the version that wrote it."
        )
    if "ensemble" in facts:
        members = ", ".join(name for name, count in facts["ensemble"].items() if count)
        raise UserError(
            f"{path}: an ensemble averages the models of other rows and has none of its own; take those: {members}."
        )
    if "encoder" not in facts:
        floor = facts.get("floor", "majority")
        why = "learned from shuffled labels" if floor == "shuffled" else "reads no file"
        raise UserError(f"{path}: the floor {floor} {why}; give the model of a row with an encoder.")
    source = dict(facts["encoder"])
    if checkpoint is not None:
        if "checkpoint" not in source:
            kind = f"hub name {source['hub']}" if "hub" in source else "random weights"
            raise UserError(f"--checkpoint: this model's encoder comes from a {kind}, not from a file; leave it out.")
        source["checkpoint"] = checkpoint
    recipe: PixelRecipe | None = None
    if "pixel_model" in facts:
        recipe = TypeAdapter[PixelRecipe](RecipeOnPixels).validate_python(_read_recipe(path))
    run = _run_of(path, str(source["name"]))
    config = _implied_study(facts) if run is None else kept_study(run)
    config = config.model_copy(update={"device": device, "precision": facts["feature_space"]["precision"]})
    return ModelFolder(path, facts, config, run, recipe, source)


def open_encoder(model: ModelFolder, runtime: Runtime) -> OpenedEncoder:
    """The encoder that the model was trained on.

    Raises:
        StudyMismatchError: the weights are others.
        UserError: its checkpoint is not there, or no longer fits.
    """
    source = model.source
    try:
        encoder = load_source(
            source,
            s3_options(model.config),
            open_cache(model.config),
            precision=runtime.precision,
            device=runtime.device,
        )
    except LocationError as error:
        moved = " If the checkpoint moved, give its place: --checkpoint PATH." if "checkpoint" in source else ""
        raise LocationError(f"encoder {source['name']}: {error}{moved}") from error
    expected = model.facts["feature_space"]["weights_hash"]
    if encoder.weights_hash != expected:
        raise StudyMismatchError(
            f"encoder {source['name']}: {source.get('checkpoint', source.get('hub', 'the random encoder'))} holds "
            f"the {encoder.family} weights {encoder.weights_hash[:12]}…, and {model.path} was trained on "
            f"{expected[:12]}…. Give the checkpoint that the run was made with."
        )
    return OpenedEncoder(str(source["name"]), encoder, source, dict(source["options"]))


def check_feature_space(model: ModelFolder, runtime: Runtime, data: OpenedData, opened: OpenedEncoder) -> None:
    """Inputs are decoded, prepared and encoded as those that the model was trained on.

    What the data declare of themselves (axes, spacing) may differ.

    Raises:
        StudyMismatchError: they would not be; with the keys that differ.
    """
    kept = dict(model.facts["feature_space"])
    if kept["pooling"] == "tokens":
        now = token_stores(model.config, runtime, data, opened, with_views=False)[0].space.describe()
    else:
        now = feature_store(model.config, runtime, data, opened).space.describe()
    for values in (kept, now):
        values.pop("declared", None)
    if different := differing_keys(flatten_keys(kept), flatten_keys(now)):
        raise StudyMismatchError(
            f"{model.path}: was trained on other features; different: {', '.join(different)}. Use the version of "
            "Vitreous that trained it."
        )


def _read_recipe(path: Path) -> dict[str, Any]:
    file = path / "config.yaml"
    if not file.is_file():
        raise UserError(f"{file}: the recipe's settings do not exist. Copy the whole folder.")
    values: dict[str, Any] = yaml.safe_load(file.read_text())
    return values


def _run_of(path: Path, encoder: str) -> RunDirectory | None:
    """The run two or, with folds, three folders above."""
    above = path.resolve().parents
    for depth in (2, 3):
        if len(above) > depth and above[depth - 1].name == encoder and (above[depth] / "study.yaml").is_file():
            return RunDirectory(above[depth])
    return None


def _implied_study(facts: Mapping[str, Any]) -> StudyConfig:
    """The study that a copied folder comes from, as far as predicting depends on it; its data are not known."""
    unknown = "unknown"
    of_labels = facts.get("task", "multi_class") == "multi_label"
    tables = {"table": unknown, "files": unknown, "label": facts["classes"] if of_labels else unknown}
    if facts["modality"] == "volume":
        data = {"kind": "participants", **tables}
    elif facts["modality"] == "clip":
        data = {"kind": "csv", "video": unknown, "split": unknown, **tables}
    elif of_labels:
        data = {"kind": "csv", "image": unknown, "split": unknown, **tables}
    else:
        data = {"kind": "folder", "files": unknown}
    space = facts["feature_space"]
    source = {key: value for key, value in facts["encoder"].items() if key not in ("name", "modality", "seed")}
    return validate_study(
        {
            "name": unknown,
            "data": {**data, "classes": facts["classes"]},
            "encoders": {"encoder": source},
            "recipes": {"recipe": {"kind": "linear_probe"}},
            "features": {
                "pooling": "grid" if space["grid"] else space["pooling"],
                "grid": space["grid"],
                "dtype": space["dtype"],
            },
        },
        where="model.json",
    )
