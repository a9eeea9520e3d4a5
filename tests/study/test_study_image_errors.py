"""Wrong inputs of an image study on the command line: one clear error, exit status, nothing half done."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from vitreous.cli import app
from vitreous.core.errors import UserError, VitreousError
from vitreous.encoders.catalog import build_random_encoder

MODEL = "vit_tiny_patch16_224"
Change = Callable[[dict[str, Any], Path], object]


def write_images(root: Path) -> None:
    rng = np.random.default_rng(0)
    rows = []
    (root / "images").mkdir(parents=True)
    for number in range(36):
        grade = number % 2
        pixels = rng.integers(0, 120, (40, 40, 3), dtype=np.uint8)
        pixels[:20] += np.uint8(100 * grade)
        Image.fromarray(pixels).save(root / "images" / f"eye{number:02d}.png")
        split = ("train", "train", "val", "test")[(number // 2) % 4]
        rows.append({"id_code": f"eye{number:02d}", "diagnosis": grade, "split": split})
    pd.DataFrame(rows).to_csv(root / "labels.csv", index=False)


def study(root: Path) -> dict[str, Any]:
    return {
        "name": "wrong",
        "data": {
            "kind": "csv",
            "table": str(root / "labels.csv"),
            "files": str(root / "images"),
            "image": "id_code",
            "label": "diagnosis",
            "classes": ["none", "some"],
            "label_map": {0: "none", 1: "some"},
            "split": "split",
        },
        "encoders": {"vit": {"family": "timm", "random": {"model": MODEL, "img_size": [32, 32]}}},
        "recipes": {"full": {"kind": "finetune", "epochs": 1, "batch_size": 8}},
        "seeds": [0],
        "floors": ["majority"],
        "device": "cpu",
        "precision": "fp32",
        "intervals": {"resamples": 200},
        "runs": str(root / "runs"),
        "store": str(root / "features"),
    }


def run(root: Path, change: Change) -> Result:
    write_images(root)
    values = study(root)
    change(values, root)
    (root / "study.yaml").write_text(yaml.safe_dump(values))
    return CliRunner().invoke(app, ["run", str(root / "study.yaml")])


def relabel(values: dict[str, Any], root: Path) -> None:
    table = pd.read_csv(root / "labels.csv")
    table.loc[3, "diagnosis"] = 7
    table.to_csv(root / "labels.csv", index=False)


def one_class_in_val(values: dict[str, Any], root: Path) -> None:
    table = pd.read_csv(root / "labels.csv")
    table = table[~((table["split"] == "val") & (table["diagnosis"] == 1))]
    table.to_csv(root / "labels.csv", index=False)


def other_family(values: dict[str, Any], root: Path) -> None:
    shape = {"img_size": [2, 32, 32], "patch_size": [2, 16, 16], "embed_dim": 64, "depth": 1, "num_heads": 1}
    save_file(build_random_encoder("vit3d", architecture=shape, seed=0).backbone.state_dict(), root / "oct.safetensors")
    values["encoders"] = {"vit": {"family": "retfound", "checkpoint": str(root / "oct.safetensors")}}


def indivisible(values: dict[str, Any], root: Path) -> None:
    values["encoders"]["vit"]["input"] = {"size": [40, 40]}


def no_weights(values: dict[str, Any], root: Path) -> None:
    torch.save({"model": {"anything": torch.zeros(2)}}, root / "empty.pth")
    values["encoders"] = {"vit": {"family": "retfound", "checkpoint": str(root / "empty.pth")}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (relabel, r"unknown label .7. in column .diagnosis., 1 rows"),
        (one_class_in_val, r"the split 'val' has the class 'some'"),
        (lambda values, root: values["data"].update(files=str(root / "nowhere")), r"nowhere"),
        (lambda values, root: values["data"].update(label="grade"), r"grade"),
        (other_family, r"oct\.safetensors: .*needs a patch embedding of images"),
        (no_weights, r"empty\.pth: no retfound encoder found"),
        (indivisible, r"does not divide 40×40; the nearest sizes that work are 32×32 and 48×48"),
        (
            lambda values, root: values["recipes"].update(bad={"kind": "lora", "targets": ["query"]}),
            r"targets: query matches no linear layer.*qkv",
        ),
        (
            lambda values, root: values["encoders"]["vit"].update(family="vit3d"),
            r"encoders\.vit: family vit3d takes volumes, no images",
        ),
        (
            lambda values, root: values["recipes"]["full"].update(augment={"noise": 0.1}),
            r"recipes\.full\.augment: .*noise",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "__name__", ""),
)
def test_refused_before_anything_is_encoded(tmp_path: Path, change: Change, message: str) -> None:
    result = run(tmp_path, change)
    assert isinstance(result.exception, UserError), result.exception
    text = " ".join(str(result.exception).split())
    assert re.search(message, text), text
    assert not (tmp_path / "features").exists()
    assert not (tmp_path / "runs").exists()


def truncate(name: str) -> Change:
    def change(values: dict[str, Any], root: Path) -> None:
        path = root / "images" / name
        path.write_bytes(path.read_bytes()[:100])

    return change


def test_an_unreadable_image_is_quarantined_and_the_run_goes_on_if_few(tmp_path: Path) -> None:
    result = run(tmp_path, truncate("eye00.png"))
    assert result.exception is None, result.exception
    errors = pd.read_csv(tmp_path / "runs" / "wrong" / "data_errors.csv")
    assert errors["key"].tolist() == ["eye00.png"]
    board = pd.read_csv(tmp_path / "runs" / "wrong" / "leaderboard.csv")
    floors = board.set_index("recipe")["is_floor"].to_dict()
    assert floors == {"full": 0, "majority": 1}, "random weights that were trained are no floor"
    assert "damaged" in errors["message"][0] or "truncated" in errors["message"][0]
    manifest = pd.read_parquet(tmp_path / "runs" / "wrong" / "manifest.parquet")
    assert manifest["fate"].value_counts().to_dict() == {"encoded": 35, "quarantined": 1}


def test_too_many_unreadable_images_stop_the_run(tmp_path: Path) -> None:
    def several(values: dict[str, Any], root: Path) -> None:
        for number in range(6):
            truncate(f"eye{number:02d}.png")(values, root)

    result = run(tmp_path, several)
    assert isinstance(result.exception, VitreousError)
    assert "data.max_quarantined allows 5.0%" in str(result.exception)
    assert len(pd.read_csv(tmp_path / "runs" / "wrong" / "data_errors.csv")) >= 2


def test_missing_images_are_named(tmp_path: Path) -> None:
    def remove(values: dict[str, Any], root: Path) -> None:
        (root / "images" / "eye00.png").unlink()

    result = run(tmp_path, remove)
    assert result.exception is None, result.exception
    manifest = pd.read_parquet(tmp_path / "runs" / "wrong" / "manifest.parquet")
    assert manifest.query("fate == 'excluded'")["why"].tolist() == ["file missing"]
