"""`vitreous export`. Oracles: the run's own predictions; timm without Vitreous; ONNX Runtime."""

import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from cohorts import CLASSES
from safetensors.numpy import load_file
from torch import nn
from trained_models import GRADES, run_on_images, run_on_volumes
from typer.testing import CliRunner

import vitreous as vt
from vitreous.cli import app
from vitreous.core.errors import CheckpointError, RunError, UserError
from vitreous.encoders.catalog import build_random_encoder
from vitreous.inputs.decode import decode_volume
from vitreous.inputs.image_files import decode_image
from vitreous.inputs.prepare import finish_input, prepare_input
from vitreous.inputs.volume import DeclaredAxes
from vitreous.recipes.exported_model import (
    ExportedModel,
    HeadShape,
    build_exported_head,
    build_exported_model,
    fold_probe,
)
from vitreous.recipes.exported_timm import as_timm
from vitreous.recipes.probe_logits import probe_logits
from vitreous.study.export import export_model
from vitreous.study.export_onnx import write_onnx


@pytest.fixture(scope="module", autouse=True)
def id_key(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VITREOUS_ID_KEY", str(tmp_path_factory.mktemp("key") / "id_key"))
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_on_images(tmp_path_factory.mktemp("images"), ["linear", "mlp", "lora"])


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_on_volumes(tmp_path_factory.mktemp("volumes"), ["linear", "knn", "full"])


def unit(run_dir: Path, recipe: str) -> Path:
    (folder,) = run_dir.glob(f"*/{recipe}/seed0")
    return folder


def prepared(run_dir: Path, names: list[str], spec: Any) -> torch.Tensor:
    """Normalised inputs of files of the run's cohort."""
    root = run_dir.parents[1]
    inputs = []
    for name in names:
        if name.endswith(".png"):
            decoded: Any = decode_image(root / "photographs" / name, max_bytes=10**9)
        else:
            decoded = decode_volume(root / name, declared=DeclaredAxes("DHW"), max_bytes=10**9)
        inputs.append(finish_input(prepare_input(decoded, spec), spec))
    x = torch.stack(inputs)
    return x[:, :, 0] if names[0].endswith(".png") else x


def check_equal_to_the_run(run_dir: Path, recipe: str, model: nn.Module, spec: Any, classes: list[str]) -> None:
    expected = pd.read_parquet(unit(run_dir, recipe) / "test_preds.parquet").iloc[:3]
    with torch.no_grad():
        found = model(prepared(run_dir, expected["sample_id"].tolist(), spec)).numpy()
    logits = expected[[f"logit_{name}" for name in classes]].to_numpy()
    np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-5 * np.abs(logits).max())


@pytest.mark.parametrize(("recipe", "form"), [("linear", "timm"), ("lora", "timm"), ("mlp", "vitreous")])
def test_an_image_model_says_what_the_run_said(
    images: Path, tmp_path: Path, recipe: str, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    done = export_model(unit(images, recipe), tmp_path / "out")
    assert done.form == form
    assert done.difference < 1e-5
    config = json.loads((done.folder / "config.json").read_text())
    spec = vt.load_encoder(
        images.parents[1] / "checkpoints" / "vit.safetensors",
        "timm",
        modality="image",
        **config["model"]["architecture"],
    ).spec
    assert spec.model_dump(mode="json") == config["model"]["spec"]
    check_equal_to_the_run(images, recipe, vt.load_exported(done.folder), spec, GRADES)
    capsys.readouterr()
    example = runpy.run_path(str(done.folder / "load_example.py"))
    assert ("vitreous" in (done.folder / "load_example.py").read_text()) == (form == "vitreous")
    check_equal_to_the_run(images, recipe, example["model"], spec, GRADES)
    assert capsys.readouterr().out.startswith("{'none': 0.")
    assert not any("lora" in name for name in load_file(done.folder / "model.safetensors"))


@pytest.mark.parametrize("recipe", ["linear", "full"])
def test_a_volume_model_in_onnx(volumes: Path, tmp_path: Path, recipe: str) -> None:
    import onnxruntime

    done = export_model(unit(volumes, recipe), tmp_path / "out", onnx=recipe == "full")
    assert done.form == "vitreous"
    spec = vt.load_encoder(volumes.parents[1] / "checkpoints" / "a.safetensors", "vit3d").spec
    check_equal_to_the_run(volumes, recipe, vt.load_exported(done.folder), spec, CLASSES)
    runpy.run_path(str(done.folder / "load_example.py"))
    if recipe == "linear":
        assert not (done.folder / "model.onnx").exists()
        return
    assert done.onnx_difference is not None
    assert done.onnx_difference < 1e-4
    assert json.loads((done.folder / "config.json").read_text())["parity"]["onnx"] == done.onnx_difference
    session = onnxruntime.InferenceSession(str(done.folder / "model.onnx"), providers=["CPUExecutionProvider"])

    class Session(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(session.run(["logits"], {"input": x.numpy()})[0])

    check_equal_to_the_run(volumes, recipe, Session(), spec, CLASSES)


class _Drawing(nn.Module):
    """Says something else each time: ONNX keeps what was drawn while tracing or draws anew."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :2] + torch.rand_like(x.flatten(1)[:, :2])


def test_onnx_that_says_something_else_is_refused_and_not_kept(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"ONNX Runtime's logits differ from torch's by .* at most 1e-03"):
        write_onnx(_Drawing(), torch.zeros(2, 3, 4, 4), tmp_path)
    assert not list(tmp_path.iterdir())


class _Deciding(nn.Module):
    """Takes another way by its input's values, which a graph cannot."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) if x.sum() > 0 else -x.flatten(1)


def test_a_network_that_onnx_cannot_say_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--onnx: this network cannot be exported to ONNX \(.*Leave --onnx out"):
        write_onnx(_Deciding(), torch.zeros(2, 3, 4, 4), tmp_path)
    assert not list(tmp_path.iterdir())


def test_onnx_without_its_packages_names_the_remedy(
    volumes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitreous.study.export_onnx._PACKAGES", ("onnx", "onnxscript_of_nobody"))
    with pytest.raises(UserError, match=r"--onnx needs onnxscript_of_nobody; .*pip install 'vitreous\[export\]'"):
        export_model(unit(volumes, "linear"), tmp_path / "out", onnx=True)
    assert not (tmp_path / "out").exists()


def test_the_card_says_what_it_is_and_names_no_patient(images: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["export", str(unit(images, "linear")), "--to", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "loads with timm alone" in result.output
    card = (tmp_path / "out" / "README.md").read_text()
    board = pd.read_csv(images / "leaderboard.csv").set_index(["encoder", "recipe"])
    value = board.loc[("vit", "linear"), "test_balanced_accuracy"]
    assert f"| balanced accuracy | {value:.3f}" in card
    assert "| none | 4 (8) | 2 (4) | 2 (4) |" in card, "patients (images) of train, val, test"
    for words in ("Intended use", "Not for", "floor / majority", "not tested on another cohort", "SHA-256"):
        assert words in card, words
    written = card + (tmp_path / "out" / "config.json").read_text()
    samples = pd.read_parquet(images / "manifest.parquet")
    for text in {*samples["patient_id"], *samples["relative"], str(images.parents[1])}:
        assert text not in written, text


def test_a_copy_outside_its_run_says_that_counts_and_intervals_are_unknown(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    copied = shutil.copytree(unit(images, "linear"), tmp_path / "copy")
    card = (export_model(copied, tmp_path / "out").folder / "README.md").read_text()
    assert "Intervals are not known: the model was exported from a copy outside its run." in card


def test_nearest_neighbours_hold_patient_data_and_are_refused(volumes: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="features of the training patients"):
        export_model(unit(volumes, "knn"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folders_of_something_else_are_refused_and_own_ones_replaced(volumes: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="holds something else"):
        export_model(unit(volumes, "linear"), tmp_path / "mine")
    with pytest.raises(UserError, match="no exported model"):
        vt.load_exported(tmp_path / "mine")
    first = export_model(unit(volumes, "linear"), tmp_path / "out").folder
    before = {path.name: path.read_bytes() for path in first.iterdir()}
    export_model(unit(volumes, "linear"), tmp_path / "out")
    assert {path.name: path.read_bytes() for path in first.iterdir()} == before
    weights = first / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"abcd")
    with pytest.raises(CheckpointError, match=r"is not the file that config\.json was written with"):
        vt.load_exported(first)


def test_folding_a_probe_keeps_its_logits() -> None:
    """Oracle: `probe_logits`, which standardises and applies batch norms one after another."""
    rng = np.random.default_rng(0)
    tensors = {
        "standardiser.mean": rng.normal(size=5),
        "standardiser.std": rng.uniform(0.01, 3, size=5),
        "layers.0.weight": rng.normal(size=(4, 5)),
        "layers.0.bias": rng.normal(size=4),
        "norms.0.weight": rng.normal(size=4),
        "norms.0.bias": rng.normal(size=4),
        "norms.0.running_mean": rng.normal(size=4),
        "norms.0.running_var": rng.uniform(0.1, 2, size=4),
        "layers.1.weight": rng.normal(size=(3, 4)),
        "layers.1.bias": rng.normal(size=3),
    }
    x_ND = rng.normal(size=(7, 5))
    (first_w, first_b), (last_w, last_b) = fold_probe(tensors)
    folded = np.maximum(x_ND @ first_w.T + first_b, 0) @ last_w.T + last_b
    np.testing.assert_allclose(folded, probe_logits(tensors, x_ND), rtol=1e-10)


@pytest.mark.parametrize(
    ("family", "architecture", "pooling", "is_timm"),
    [
        ("timm", {"model": "resnet10t"}, "mean", True),
        ("timm", {"model": "test_convnext"}, "mean", False),  # timm normalises behind the pooling
        ("retfound", {"img_size": (32, 32), "embed_dim": 64, "depth": 1, "num_heads": 1}, "mean", True),
        ("retfound", {"img_size": (32, 32), "embed_dim": 64, "depth": 1, "num_heads": 1}, "cls", True),
    ],
)
def test_timm_is_named_only_where_it_gives_the_same_logits(
    family: str, architecture: dict[str, Any], pooling: Any, is_timm: bool
) -> None:
    import timm

    encoder = build_random_encoder(
        family,
        architecture=architecture,
        seed=0,
        modality="image",
        spec_override={"size": (32, 32)},
        trainable=True,
    ).requires_grad_(False)
    shape = HeadShape((encoder.width, 2), "relu")
    model = ExportedModel(encoder, build_exported_head(shape), shape, pooling=pooling, grid=None).eval()
    x_BCHW = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = as_timm(model, x_BCHW)
    assert (found is not None) == is_timm
    again = build_exported_model(json.loads(json.dumps(model.describe())))
    again.load_tensors(model.tensors())
    torch.testing.assert_close(again(x_BCHW), model(x_BCHW), rtol=0, atol=0)
    if found is not None:
        settings, tensors = found
        built = timm.create_model(**settings).eval()
        built.load_state_dict(tensors)
        torch.testing.assert_close(built(x_BCHW).detach(), model(x_BCHW), rtol=1e-4, atol=1e-5)
