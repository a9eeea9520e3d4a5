"""Recipes on pixels inside a study. Oracles: the kept model read back; an undisturbed run; PEFT's own reader."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cohorts import CLASSES, study_values, write_cohort
from safetensors.numpy import load_file

from vitreous.config.compose import validate_study
from vitreous.core.errors import ConfigError
from vitreous.study.plan import make_plan
from vitreous.study.run import Result, run_study

FINETUNE = {"kind": "finetune", "epochs": 3, "batch_size": 8, "lr_encoder": 1e-3, "lr_head": 1e-2}
RECIPES: dict[str, Any] = {
    "probe": {"kind": "linear_probe", "epochs": 5},
    "full": FINETUNE,
    "lora": {**FINETUNE, "kind": "lora", "rank": 2, "targets": ["qkv"]},
    "last": {**FINETUNE, "kind": "partial", "blocks": 1, "augment": {"flip": 0.5}},
    "staged": {
        "kind": "staged",
        "batch_size": 8,
        "stages": [{"epochs": 2, "unfreeze": 0, "lr_head": 1e-2}, {"epochs": 2, "unfreeze": "all", "lr_encoder": 1e-3}],
    },
    "scratch": {**FINETUNE, "kind": "from_scratch"},
}


def values(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    root = write_cohort(tmp_path / "cohort", participants=48)
    study = study_values(root, runs=str(tmp_path / "runs"), store=str(tmp_path / "features"), **changes)
    study["encoders"].pop("second")
    return study


def run(study: dict[str, Any]) -> Result:
    return run_study(validate_study(study, where="test"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return run(
        values(tmp_path_factory.mktemp("pixels"), recipes=RECIPES, seeds=[0, 1], floors=["majority", "untrained"])
    )


def test_every_recipe_is_a_row_and_floors_are_probed_not_trained(finished: Result) -> None:
    board = finished.leaderboard.set_index(["encoder", "recipe"])
    assert {recipe for encoder, recipe in board.index if encoder == "first"} == set(RECIPES)
    assert [recipe for encoder, recipe in board.index if encoder == "untrained"] == ["probe"]
    assert board["test_balanced_accuracy"].notna().all()


def test_trainable_and_total_parameters_stand_in_the_leaderboard(finished: Result) -> None:
    board = finished.leaderboard.query("encoder == 'first'").set_index("recipe")
    width, classes = 64, len(CLASSES)
    head = width * classes + classes
    adapters = 2 * (width + 3 * width)
    assert board.loc["lora", "trainable_parameters"] == adapters + head
    assert board.loc["full", "trainable_parameters"] == board.loc["full", "total_parameters"]
    assert board.loc["lora", "total_parameters"] == board.loc["full", "total_parameters"] + adapters
    assert head < board.loc["last", "trainable_parameters"] < board.loc["full", "trainable_parameters"]


def test_only_what_training_changed_is_kept(finished: Result) -> None:
    def kept(recipe: str) -> dict[str, np.ndarray]:
        return load_file(finished.run_dir / "first" / recipe / "seed0" / "best.safetensors")

    assert len(kept("lora")) == 2, "the head alone: adapters lie apart"
    assert (finished.run_dir / "first" / "lora" / "seed0" / "adapter" / "adapter_model.safetensors").exists()
    assert len(kept("last")) < len(kept("full"))
    assert not list(finished.run_dir.rglob("training")), "no training state is left behind"


def test_staged_history_names_its_stages(finished: Result) -> None:
    history = pd.read_csv(finished.run_dir / "first" / "staged" / "seed0" / "history.csv")
    assert history["stage"].tolist() == [1, 1, 2, 2]
    assert {"train_loss", "val_loss", "val_balanced_accuracy"} <= set(history.columns)


def test_a_second_run_trains_nothing(finished: Result) -> None:
    folder = finished.run_dir / "first" / "full" / "seed0"
    before = {
        path.name: path.stat().st_mtime_ns
        for path in folder.iterdir()
        if path.name in ("best.safetensors", "model.json")
    }
    study = validate_study(json.loads(json.dumps(_settings(finished))), where="test")
    again = run_study(study)
    after = {name: (folder / name).stat().st_mtime_ns for name in before}
    assert before == after
    assert again.leaderboard.equals(finished.leaderboard)


def _settings(result: Result) -> dict[str, Any]:
    import yaml

    settings: dict[str, Any] = yaml.safe_load((result.run_dir / "study.yaml").read_text())
    return settings


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"kind": "lora", "targets": ["query"]}, r"recipes.bad with encoders.first: targets: query matches no linear"),
        ({"kind": "lora", "layers": [5]}, r"layers: 5 does not exist; the blocks of this encoder are 0…0"),
        ({"kind": "partial", "blocks": 4}, r"cannot unfreeze the last 4 blocks: this encoder has 1"),
        ({"kind": "finetune", "augment": {"hue": 0.1}}, r"recipes.bad.augment: .*hue"),
        ({"kind": "finetune", "head_width": 64}, r"head_width has no effect with head: linear"),
        ({"kind": "staged"}, r"either stages or unfreeze_at_epoch"),
        ({"kind": "staged", "epochs": 4, "unfreeze_at_epoch": 4}, r"must be fewer than epochs"),
        ({"kind": "partial", "prefix_views": 2, "mixup": 0.2}, r"set prefix_views: 0"),
        ({"kind": "finetune", "rank": 8}, r"recipes.bad.*rank"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_encoded(
    tmp_path: Path, recipe: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(values(tmp_path, recipes={"bad": recipe}))
    assert not (tmp_path / "features").exists()


def test_a_study_of_pixel_recipes_alone_encodes_only_for_its_floor(tmp_path: Path) -> None:
    result = run(values(tmp_path, recipes={"full": FINETUNE}, seeds=[0], floors=["majority", "untrained"]))
    assert sorted(result.leaderboard["recipe"]) == ["full", "linear_probe", "majority"]
    spaces = [json.loads(path.read_text()) for path in (tmp_path / "features").glob("[!s]*/*/space.json")]
    assert len([space for space in spaces if "weights_hash" in space]) == 1
    assert len([space for space in spaces if "weights_hash" not in space]) == 1


def test_the_plan_counts_what_trains_and_what_the_cache_saves(tmp_path: Path) -> None:
    study = values(tmp_path, recipes={name: RECIPES[name] for name in ("full", "lora", "staged")}, seeds=[0, 1])
    plan = make_plan(validate_study(study, where="test"))
    rows = {row.recipe: row for row in plan.on_pixels}
    assert rows["full"].flops == rows["full"].plain_flops
    assert rows["full"].prefix_bytes == 0
    assert rows["full"].trainable == rows["full"].total
    assert rows["staged"].flops < rows["staged"].plain_flops
    # stage 1 trains the head alone: what enters the end is kept, one row of 8 tokens × 64 numbers a sample
    num_rows = int(plan.counts.query("column == 'class' and split in ['train', 'val']")["volumes"].sum())
    assert rows["staged"].prefix_bytes == num_rows * 8 * 64 * 4
    assert {row.num_runs for row in plan.on_pixels} == {2}
    assert plan.pixel_bytes == plan.num_files * 4 * 32 * 32 * 4
    assert not (tmp_path / "features").exists()
