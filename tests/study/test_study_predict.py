"""`vitreous predict` on new files. Oracle: the run's own test predictions of the same files."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cohorts import CLASSES, write_checkpoint
from safetensors.numpy import load_file, save_file
from trained_models import GRADES, PATIENT, run_on_images, run_on_volumes
from typer.testing import CliRunner

from s3_server import boto_client, running_s3_server, use_test_keys
from vitreous.cli import app
from vitreous.core.errors import LocationError, StudyMismatchError, TooManyQuarantinedError, UserError
from vitreous.study.predict import predict_files
from vitreous.study.predict_inputs import InputOptions


@pytest.fixture(scope="module", autouse=True)
def id_key(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VITREOUS_ID_KEY", str(tmp_path_factory.mktemp("key") / "id_key"))
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_on_images(tmp_path_factory.mktemp("images"), ["linear", "lora", "full"])


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_on_volumes(tmp_path_factory.mktemp("volumes"), ["linear", "full"])


def photographs(images: Path) -> Path:
    return images.parents[1] / "photographs"


def unit(run_dir: Path, recipe: str) -> Path:
    (folder,) = run_dir.glob(f"*/{recipe}/seed0")
    return folder


def logits(frame: pd.DataFrame, classes: list[str]) -> np.ndarray:
    return frame[[f"logit_{name}" for name in classes]].to_numpy()


def own(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "test_preds.parquet").set_index("sample_id")


@pytest.mark.parametrize("recipe", ["linear", "lora", "full"])
def test_predictions_of_the_test_files_are_those_of_the_run(images: Path, tmp_path: Path, recipe: str) -> None:
    folder = unit(images, recipe)
    options = InputOptions(patient_pattern=PATIENT)
    done = predict_files(
        folder, [str(photographs(images) / "test")], tmp_path / "o.parquet", options=options, per_patient=True
    )
    made, expected = pd.read_parquet(done.out), own(folder)
    assert (done.num_predicted, done.num_quarantined) == (8, 0)
    assert made["sample_id"].tolist() == [name.removeprefix("test/") for name in expected.index]
    assert np.array_equal(logits(made, GRADES), logits(expected, GRADES)), "equal batches give equal bits"
    assert made["y_pred"].tolist() == expected["y_pred"].tolist()
    assert [GRADES[k] for k in made["y_pred"]] == made["class_pred"].tolist()
    np.testing.assert_allclose(made[[f"prob_{name}" for name in GRADES]].sum(axis=1), 1)
    assert not {"y_true", "label"} & set(made.columns)
    assert done.patients == tmp_path / "o_patient.parquet"
    patients = pd.read_parquet(done.patients)
    kept = pd.read_parquet(folder / "test_preds_patient.parquet")
    assert patients["patient_id"].tolist() == kept["patient_id"].tolist()
    assert patients["num_samples"].tolist() == [2, 2, 2, 2]
    assert np.array_equal(patients["prob_mild"], kept["prob_mild"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "o.parquet",
        "o.parquet.errors.csv",
        "o_patient.parquet",
    ]


@pytest.mark.parametrize("recipe", ["linear", "full"])
def test_volumes_are_read_by_the_axes_of_the_run(volumes: Path, tmp_path: Path, recipe: str) -> None:
    folder = unit(volumes, recipe)
    expected = own(folder)
    files = [str(volumes.parents[1] / name) for name in expected.index]
    done = predict_files(folder, files, tmp_path / "o.parquet")
    made = pd.read_parquet(done.out)
    in_order = expected.loc["retinal_oct/structural_oct/" + made["sample_id"]]
    np.testing.assert_allclose(logits(made, CLASSES), logits(in_order, CLASSES), rtol=1e-5, atol=1e-6)
    assert "patient_id" not in made.columns


def test_pieces_make_no_difference_and_finished_ones_are_not_made_again(
    volumes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, place = unit(volumes, "full"), str(volumes.parents[1] / "retinal_oct")
    predict_files(folder, [place], tmp_path / "whole.parquet")
    monkeypatch.setattr("vitreous.study.predict._MAX_PREPARED_BYTES", 8 * 4 * 32 * 32 * 4)
    seen: list[int] = []
    from vitreous.study import predict

    real = predict.encode_study

    def interrupted(*given: Any, **named: Any) -> Any:
        seen.append(len(given[2].cohort.samples))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(*given, **named)

    monkeypatch.setattr("vitreous.study.predict.encode_study", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict_files(folder, [place], tmp_path / "o.parquet")
    assert not (tmp_path / "o.parquet").exists()
    predict_files(folder, [place], tmp_path / "o.parquet")
    assert seen == [8, 8, 8, 8, 8, 4], "36 volumes in five pieces; two were finished before"
    assert (tmp_path / "o.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_bad_inputs_are_listed_and_too_many_end_in_exit_1(images: Path, tmp_path: Path) -> None:
    place = shutil.copytree(photographs(images) / "test" / "mild", tmp_path / "new")
    (place / "torn.png").write_bytes((place / "p07_L.png").read_bytes()[:200])
    (place / "notes.txt").write_text("no image")
    folder = unit(images, "linear")
    done = predict_files(folder, [str(place)], tmp_path / "o.parquet")  # the study allows 0.3
    errors = pd.read_csv(done.errors)
    assert list(errors.columns) == ["sample_id", "exception", "message"]
    assert errors["sample_id"].tolist() == ["torn.png"]
    assert (done.num_predicted, done.num_quarantined) == (4, 1)
    command = ["predict", str(folder), str(place), "--out", str(tmp_path / "p.parquet")]
    failed = CliRunner().invoke(app, [*command, "--max-quarantined", "0.1"])
    assert isinstance(failed.exception, TooManyQuarantinedError)
    assert "1 of 5 inputs (20.0%) cannot be used; --max-quarantined allows 10.0%" in str(failed.exception)
    assert (tmp_path / "p.parquet").read_bytes() == done.out.read_bytes()
    assert (tmp_path / "p.parquet.errors.csv").read_bytes() == done.errors.read_bytes()
    with pytest.raises(TooManyQuarantinedError, match=r"1 of 1 inputs"):
        predict_files(folder, [str(place / "notes.txt")], tmp_path / "q.parquet", max_quarantined=1.0)
    assert len(pd.read_parquet(tmp_path / "q.parquet")) == 0


def test_patterns_files_and_folders_share_the_names_below_their_common_folder(images: Path, tmp_path: Path) -> None:
    folder, place = unit(images, "linear"), photographs(images)
    mild = predict_files(folder, [f"{place}/test/*/p07_*.png"], tmp_path / "a.parquet").out
    assert pd.read_parquet(mild)["sample_id"].tolist() == ["mild/p07_L.png", "mild/p07_R.png"]
    both = predict_files(folder, [str(place / "test"), f"{place}/val/mild/p05_L.png"], tmp_path / "b.parquet").out
    names = pd.read_parquet(both)["sample_id"].tolist()
    assert len(names) == 9
    assert names[-1] == "val/mild/p05_L.png"
    one = predict_files(folder, [str(place / "test" / "mild" / "p07_L.png")], tmp_path / "c.parquet").out
    assert pd.read_parquet(one)["sample_id"].tolist() == ["p07_L.png"]
    np.testing.assert_allclose(
        logits(pd.read_parquet(one), GRADES), logits(pd.read_parquet(mild), GRADES)[:1], rtol=1e-5
    )


def test_rows_of_a_table(images: Path, tmp_path: Path) -> None:
    rows = [("p07_L", "seven"), ("p07_R", "seven"), ("p06_L.png", "six"), ("gone", "nobody")]
    pd.DataFrame(rows, columns=["photo", "person"]).to_csv(tmp_path / "new.csv", index=False)
    options = InputOptions(table=str(tmp_path / "new.csv"), image="photo", patient="person")
    folder, place = unit(images, "linear"), str(photographs(images) / "test")
    done = predict_files(folder, [place], tmp_path / "o.parquet", options=options, per_patient=True)
    made = pd.read_parquet(done.out)
    assert made[["sample_id", "patient_id"]].to_numpy().tolist() == [
        ["mild/p07_L.png", "seven"],
        ["mild/p07_R.png", "seven"],
        ["none/p06_L.png", "six"],
    ]
    assert pd.read_csv(done.errors)["message"].tolist() == ["line 5 of the table: there is no such file"]
    assert done.patients is not None
    mean = made.groupby("patient_id")["prob_mild"].mean()
    np.testing.assert_allclose(pd.read_parquet(done.patients)["prob_mild"], mean, rtol=1e-12)


def test_items_of_an_array_equal_the_same_pixels_in_files(images: Path, tmp_path: Path) -> None:
    from PIL import Image as PillowImage

    files = sorted((photographs(images) / "test").rglob("*.png"))
    np.savez(tmp_path / "new.npz", photos=np.stack([np.asarray(PillowImage.open(file)) for file in files]))
    folder = unit(images, "linear")
    options = InputOptions(array="photos", axes="HWC")
    made = pd.read_parquet(
        predict_files(folder, [str(tmp_path / "new.npz")], tmp_path / "o.parquet", options=options).out
    )
    assert made["sample_id"].tolist() == [f"photos/{item:06d}" for item in range(8)]
    of_files = pd.read_parquet(predict_files(folder, [str(photographs(images) / "test")], tmp_path / "f.parquet").out)
    np.testing.assert_allclose(logits(made, GRADES), logits(of_files, GRADES), rtol=1e-5, atol=1e-6)


def test_a_bucket(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_test_keys(monkeypatch, str(tmp_path))
    folder = unit(images, "linear")
    with running_s3_server() as url:
        monkeypatch.setenv("S3_ENDPOINT_URL", url)
        client = boto_client(url)
        client.create_bucket(Bucket="eye")
        for path in sorted((photographs(images) / "test").rglob("*.png")):
            client.upload_file(str(path), "eye", f"new/{path.relative_to(photographs(images) / 'test')}")
        far = pd.read_parquet(predict_files(folder, ["s3://eye/new/"], tmp_path / "o.parquet").out)
        one = predict_files(folder, ["s3://eye/new/mild/p07_L.png"], tmp_path / "one.parquet").out
    near = pd.read_parquet(predict_files(folder, [str(photographs(images) / "test")], tmp_path / "f.parquet").out)
    assert far["sample_id"].tolist() == near["sample_id"].tolist()
    np.testing.assert_allclose(logits(far, GRADES), logits(near, GRADES), rtol=1e-5, atol=1e-6)
    assert pd.read_parquet(one)["sample_id"].tolist() == ["p07_L.png"]


def test_a_copied_folder_with_a_moved_checkpoint(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    checkpoint = images.parents[1] / "checkpoints" / "vit.safetensors"
    moved = str(shutil.copy(checkpoint, tmp_path / "moved.safetensors"))
    copied = shutil.copytree(unit(images, "lora"), tmp_path / "model")
    place = str(photographs(images) / "test")
    expected = pd.read_parquet(predict_files(unit(images, "lora"), [place], tmp_path / "a.parquet").out)
    away = checkpoint.rename(tmp_path / "away")
    try:
        with pytest.raises(
            LocationError, match=r"encoder vit: .*If the checkpoint moved, give its place: --checkpoint"
        ):
            predict_files(copied, [place], tmp_path / "b.parquet")
        found = predict_files(copied, [place], tmp_path / "b.parquet", checkpoint=moved)
    finally:
        away.rename(checkpoint)
    assert pd.read_parquet(found.out).equals(expected)


def test_other_weights_are_refused_by_name(volumes: Path, tmp_path: Path) -> None:
    place, folder = str(volumes.parents[1] / "retinal_oct"), unit(volumes, "linear")
    other = write_checkpoint(tmp_path / "other.safetensors", 7)
    with pytest.raises(StudyMismatchError, match=r"encoder first: .*other.safetensors holds the vit3d weights"):
        predict_files(folder, [place], tmp_path / "o.parquet", checkpoint=str(other))
    changed = load_file(volumes.parents[1] / "checkpoints" / "a.safetensors")
    changed["norm.bias"] += np.float32(1e-3)
    assert changed["norm.bias"].shape == (64,)
    save_file(changed, tmp_path / "changed.safetensors")
    with pytest.raises(UserError):
        predict_files(folder, [place], tmp_path / "o.parquet", checkpoint=str(tmp_path / "changed.safetensors"))
    assert not (tmp_path / "o.parquet").exists()


@pytest.mark.parametrize(
    ("inputs", "named", "message"),
    [
        (["nowhere"], {}, "there is no such file"),
        (["empty"], {}, "no images found. Left out by their names: 1 .txt"),
        (["test/*.jpeg"], {}, "no file matches this pattern"),
        (["test"], {"per_patient": True}, "--per-patient: say whose each sample is"),
        (["test"], {"options": InputOptions(patient_pattern="p07")}, "needs the group patient"),
        (["test"], {"options": InputOptions(patient_pattern=r"(?P<patient>q\d+)")}, "finds no patient in 'mild/p07_L"),
        (["test"], {"options": InputOptions(axes="HWC")}, "--axes has no effect on image files"),
        (["test"], {"options": InputOptions(array="x", axes="HWC")}, "--array reads one npz file"),
        (["test"], {"options": InputOptions(table="t.csv")}, "--table and --image .* go together"),
        (["test", "s3://bucket/x.png"], {}, "lie in several stores|bucket"),
        (["test"], {"out": "o.csv"}, "must|ends with .parquet"),
    ],
)
def test_what_cannot_be_read_is_refused(
    images: Path, tmp_path: Path, inputs: list[str], named: dict[str, Any], message: str
) -> None:
    (photographs(images) / "empty").mkdir(exist_ok=True)
    (photographs(images) / "empty" / "a.txt").write_text("x")
    places = [text if text.startswith("s3:") else str(photographs(images) / text) for text in inputs]
    out = tmp_path / named.pop("out", "o.parquet") if "out" in named else tmp_path / "o.parquet"
    if any(text.startswith("s3:") for text in inputs):
        places = [places[0], "s3://"]
        message = "names no bucket"
    with pytest.raises(UserError, match=message):
        predict_files(unit(images, "linear"), places, out, **named)
    shutil.rmtree(photographs(images) / "empty")


def test_folders_that_hold_no_model_are_refused(images: Path, tmp_path: Path) -> None:
    place = [str(photographs(images) / "test")]
    with pytest.raises(UserError, match=r"no finished model \(it has no model.json"):
        predict_files(images, place, tmp_path / "o.parquet")
    with pytest.raises(UserError, match="the floor majority reads no file"):
        predict_files(images / "floor" / "majority" / "seed0", place, tmp_path / "o.parquet")
