"""`vitreous explain` on trained models. Oracles: the run's own predictions, and an undisturbed run of the command."""

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
from trained_models import GRADES, run_on_images, run_on_volumes
from typer.testing import CliRunner

from vitreous.cli import app
from vitreous.core.errors import RunError, StudyMismatchError, UserError
from vitreous.core.privacy import keyed_id, load_id_key
from vitreous.study import explain as explain_module
from vitreous.study.explain import ExplainOptions, explain_model

QUICK: dict[str, Any] = {"steps": 3, "orders": 5, "draws": 1}
FIRST, SECOND = "val/none/p04_L.png", "val/mild/p05_R.png"


@pytest.fixture(scope="module", autouse=True)
def id_key(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VITREOUS_ID_KEY", str(tmp_path_factory.mktemp("key") / "id_key"))
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_on_images(tmp_path_factory.mktemp("images"), ["linear", "lora", "knn"])


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_on_volumes(tmp_path_factory.mktemp("volumes"), ["linear"])


def unit(run_dir: Path, recipe: str) -> Path:
    (folder,) = run_dir.glob(f"*/{recipe}/seed0")
    return folder


def own_probs(folder: Path, sample_id: str) -> np.ndarray:
    """Softmax of the run's own logits."""
    frame = pd.read_parquet(folder / "val_preds.parquet").set_index("sample_id")
    logits = frame.loc[sample_id, [f"logit_{name}" for name in GRADES]].to_numpy(float)
    return np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("recipe", ["linear", "lora"])
def test_predictions_explained_are_those_of_the_run_and_files_carry_keyed_ids(
    images: Path, tmp_path: Path, recipe: str
) -> None:
    folder, out = unit(images, recipe), tmp_path / "out"
    arguments = ["explain", str(folder), "--samples", FIRST, SECOND, "--attention", "--out", str(out)]
    result = CliRunner().invoke(app, [*arguments, "--steps", "3", "--orders", "5", "--draws", "1"])
    assert result.exit_code == 0, result.output
    table = pd.read_csv(out / "explanations.csv", keep_default_na=False)
    key = load_id_key()
    assert sorted(table["sample"].unique()) == sorted(keyed_id(name, key) for name in (FIRST, SECOND))
    assert table["method"].tolist()[:5] == ["attention", "rollout", "grad_attention", "token_gradients", "gradcam"]
    for name, label in ((FIRST, "none"), (SECOND, "mild")):
        rows = table[table["sample"] == keyed_id(name, key)]
        probs = own_probs(folder, name)
        np.testing.assert_allclose(rows["probability"], probs.max(), atol=1e-4)
        assert set(rows["predicted"]) == {GRADES[int(probs.argmax())]}
        assert set(rows["label"]) == {label}
        assert set(rows["split"]) == {"val"}
        for method, place in zip(rows["method"], rows["map"], strict=True):
            assert np.load(out / place).shape == (1, 2, 2), method
    assert set(table["verdict"]) <= {"faithful", "not faithful"}
    assert all((row["failed"] == "") == (row["verdict"] == "faithful") for _, row in table.iterrows())
    heads = pd.read_csv(out / "attention.csv")
    states = {"frozen"} if recipe == "linear" else {"frozen", "adapted"}
    assert set(heads["state"]) == states
    assert len(heads) == len(states) * 2 * 6 * 2  # states, samples, layers, heads
    assert heads["entropy"].between(0, 1).all()
    per_sample = pd.read_csv(out / "attention_samples.csv")
    means = heads.groupby(["sample", "state"])["entropy"].mean()
    for _, row in per_sample.iterrows():
        assert row["mean_entropy"] == pytest.approx(means[row["sample"], row["state"]], rel=1e-4)
    written = files_of(out)
    assert {"attention.png", "index.html", "explain_errors.csv", "explain.json"} <= set(written)
    for path, content in written.items():
        assert b"p04" not in content, path
        assert b"p05" not in content, path
        assert "p04" not in path
    assert b"http" not in written["index.html"], "offline"
    assert FIRST in result.output, "the terminal may name samples"


def test_interrupted_and_run_again_the_files_are_those_of_an_undisturbed_run(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = unit(images, "linear")
    options = ExplainOptions(top=1, methods=["rollout", "gradcam"], **QUICK)
    whole = explain_model(folder, tmp_path / "whole", options=options)
    calls = []
    write = explain_module.write_sample

    def write_once(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(*arguments)

    monkeypatch.setattr(explain_module, "write_sample", write_once)
    with pytest.raises(KeyboardInterrupt):
        explain_model(folder, tmp_path / "again", options=options)
    monkeypatch.setattr(explain_module, "write_sample", write)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "again").glob("*/result.json")}
    assert len(kept) == 1
    again = explain_model(folder, tmp_path / "again", options=options)
    assert files_of(again.out) == files_of(whole.out)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items()), "what was done stays"
    with pytest.raises(StudyMismatchError, match="steps"):
        explain_model(folder, tmp_path / "again", options=ExplainOptions(top=1, methods=["rollout", "gradcam"]))


def test_top_takes_the_most_and_the_least_confident(images: Path, tmp_path: Path) -> None:
    folder = unit(images, "linear")
    options = ExplainOptions(top=1, methods=["gradcam"], target="mild", **QUICK)
    done = explain_model(folder, tmp_path / "out", options=options)
    frame = pd.read_parquet(folder / "val_preds.parquet")["sample_id"]
    confidence = {name: own_probs(folder, name).max() for name in frame}
    assert set(done.keys) == {max(confidence, key=confidence.__getitem__), min(confidence, key=confidence.__getitem__)}
    table = pd.read_csv(done.out / "explanations.csv")
    assert set(table["target"]) == {"mild"}


def test_maps_of_volumes_are_nifti_with_the_size_of_their_cells(volumes: Path, tmp_path: Path) -> None:
    folder = unit(volumes, "linear")
    options = ExplainOptions(top=1, methods=["rollout"], **QUICK)
    done = explain_model(folder, tmp_path / "out", options=options)
    manifest = pd.read_parquet(volumes / "manifest.parquet").set_index("sample_id")
    for sample_id, key in done.keys.items():
        image = nibabel.load(done.out / key / "rollout.nii.gz")
        spec = json.loads((folder / "model.json").read_text())["feature_space"]["spec"]
        assert image.shape == (2, 2, 2)
        shape = manifest.loc[sample_id, ["volume_depth", "volume_height", "volume_width"]].to_numpy(float)
        np.testing.assert_allclose(np.abs(np.diag(image.affine))[[2, 1, 0]], shape / 2)
        assert spec["spacing_mm"] is None
        assert (done.out / key / "rollout_slices.png").read_bytes().startswith(b"\x89PNG")


def test_new_files_are_explained_by_a_copy_outside_its_run_and_a_bad_one_is_listed(
    images: Path, tmp_path: Path
) -> None:
    copied = shutil.copytree(unit(images, "lora"), tmp_path / "copied")
    new = shutil.copytree(images.parents[1] / "photographs" / "test" / "none", tmp_path / "new")
    kept = sorted(new.iterdir())
    for path in kept[1:]:
        path.unlink()
    (new / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and nothing")
    options = ExplainOptions(inputs=[str(new)], methods=["gradcam"], **QUICK)
    done = explain_model(copied, options=options)
    assert done.out == copied / "explanations"
    errors = pd.read_csv(done.out / "explain_errors.csv")
    assert errors["sample"].tolist() == list(done.errors) == [done.keys["broken.png"]]
    assert len(pd.read_csv(done.out / "explanations.csv")) == 1
    kept[0].unlink()
    with pytest.raises(RunError, match="none of the 1 samples"):
        explain_model(copied, tmp_path / "none", options=options)
    with pytest.raises(UserError, match="--input PATH"):
        explain_model(copied, tmp_path / "other", options=ExplainOptions(samples=[FIRST], **QUICK))


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        ("linear", {"samples": ["val/none/p04_X.png"]}, r"not among the 32 samples.*Near are .*p04"),
        ("linear", {}, "give --samples ID"),
        ("linear", {"samples": [FIRST], "target": "severe"}, "those are none, mild"),
        ("linear", {"top": 1, "inputs": ["anything"]}, "does not go with --input"),
        ("knn", {"samples": [FIRST]}, "nearest neighbours have no gradient"),
        ("majority", {"samples": [FIRST]}, "floor majority"),
    ],
)
def test_what_cannot_be_explained_is_refused(
    images: Path, tmp_path: Path, recipe: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        explain_model(unit(images, recipe), tmp_path / "out", options=ExplainOptions(**options, **QUICK))
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_else_is_left_alone(images: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="holds something else"):
        explain_model(unit(images, "linear"), tmp_path, options=ExplainOptions(samples=[FIRST], **QUICK))
    assert (tmp_path / "mine.txt").read_text() == "keep"
