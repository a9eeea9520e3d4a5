"""Cohorts of images opened by a study: files found, staged and decoded. Oracle: the pixels they were written from."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from PIL import Image as PillowImage

from s3_server import boto_client, running_s3_server, use_test_keys
from vitreous.config.compose import load_study, validate_study
from vitreous.core.errors import CircumstanceError, InputError, LocationError
from vitreous.inputs.image import Image
from vitreous.inputs.volume import Volume
from vitreous.study.data import OpenedData, open_data

CLASSES = ["no_dr", "dr"]
FRAME = {"label": "grade", "image": "name", "label_map": {0: "no_dr", 1: "dr"}}


def pixels_of(n: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(n).integers(0, 256, size=(8, 10, 3), dtype=np.uint8)


def write_images(folder: Path, names: list[str], first: int = 0) -> dict[str, npt.NDArray[np.uint8]]:
    """PNG files of random pixels."""
    made = {}
    for n, name in enumerate(names):
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        made[name] = pixels_of(first + n)
        PillowImage.fromarray(made[name]).save(path)
    return made


def write_idrid_like(root: Path) -> dict[str, npt.NDArray[np.uint8]]:
    """Tables and folders for train and test, the same names in both, other people."""
    root.mkdir(exist_ok=True)
    made = {}
    for split, count, first in (("train", 16, 0), ("test", 4, 100)):
        names = [f"IM_{n:03d}" for n in range(count)]
        frame = pd.DataFrame({"name": names, "grade": [n % 2 for n in range(count)], "edema ": 0, "": "", " ": ""})
        frame.to_csv(root / f"{split}.csv", index=False)
        made |= {f"{split}/{name}.png": p for name, p in write_images(root / split, names, first).items()}
    return made


def open_study(data: dict[str, Any], **changes: Any) -> OpenedData:
    encoders = {"multi": {"family": "vit3d", "checkpoint": "m.pt"}}
    values = {"name": "dr", "data": data, "encoders": encoders, "recipes": {"l": {"kind": "linear_probe"}}}
    return open_data(validate_study(values | changes))


def decoded(opened: OpenedData) -> dict[str, npt.NDArray[Any]]:
    """Pixels of every request, by source and item."""
    found = {}
    for request, path in opened.stage(opened.requests):
        assert isinstance(path, Path)
        image = opened.load_input(request, path)
        assert isinstance(image, Image)
        found[request.source if request.item < 0 else f"{request.source}/{request.item}"] = image.pixels_HWC
    return found


def assert_same(found: dict[str, npt.NDArray[Any]], made: dict[str, npt.NDArray[Any]]) -> None:
    assert found.keys() == made.keys()
    for name, pixels in made.items():
        np.testing.assert_array_equal(found[name], pixels)


def csv_of(root: Path | str, **changes: Any) -> dict[str, Any]:
    each = {key: {s: f"{root}/{s}{end}" for s in ("train", "test")} for key, end in (("table", ".csv"), ("files", ""))}
    return {"kind": "csv", "classes": CLASSES, "split": {"val_fraction": 0.25}, **each, **FRAME, **changes}


def test_tables_and_folders_for_each_split(tmp_path: Path) -> None:
    made = write_idrid_like(tmp_path)
    opened = open_study(csv_of(tmp_path))
    assert opened.modality == "image"
    assert_same(decoded(opened), made)
    assert opened.file_ids.is_unique
    assert opened.cohort.samples["split"].value_counts().to_dict() == {"train": 12, "val": 4, "test": 4}
    assert opened.describe_declared() == {"axes": None}


def test_a_bucket_gives_the_same_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_test_keys(monkeypatch, str(tmp_path))
    made = write_idrid_like(tmp_path / "data")
    on_disk = open_study(csv_of(tmp_path / "data")).cohort.samples
    cache = {"cache": {"dir": str(tmp_path / "cache")}}
    with running_s3_server() as url:
        client = boto_client(url)
        for bucket in ("eye", "other"):
            client.create_bucket(Bucket=bucket)
            for path in sorted((tmp_path / "data").rglob("*.*")):
                client.upload_file(str(path), bucket, f"a/{path.relative_to(tmp_path / 'data')}")
        opened = open_study(csv_of("s3://eye/a"), s3={"endpoint": url}, **cache)
        assert_same(decoded(opened), made)
        columns = ["sample_id", "patient_id", "relative", "split", "y", "weight"]
        pd.testing.assert_frame_equal(opened.cohort.samples[columns], on_disk[columns])
        mixed = {"train": str(tmp_path / "data" / "train"), "test": "s3://eye/a/test"}
        assert_same(decoded(open_study(csv_of("s3://eye/a", files=mixed), s3={"endpoint": url}, **cache)), made)
        two = {"train": "s3://eye/a/train", "test": "s3://other/a/test"}
        with pytest.raises(LocationError, match=r"lie in one bucket; got s3://eye/a/train, s3://other/a/test"):
            open_study(csv_of("s3://eye/a", files=two), s3={"endpoint": url}, **cache)


def test_one_table_with_split_column_fractions_or_folds(tmp_path: Path) -> None:
    names = [f"n{n:02d}" for n in range(24)]
    write_images(tmp_path / "images", names)
    parts = [("train", "train", "val", "test")[n // 2 % 4] for n in range(24)]
    frame = pd.DataFrame({"name": names, "grade": [n % 2 for n in range(24)], "part": parts})
    frame.to_csv(tmp_path / "labels.tsv", index=False, sep="\t")
    data = csv_of("", table=str(tmp_path / "labels.tsv"), files=str(tmp_path / "images"))
    opened = open_study(data | {"split": "part"})
    by_name = opened.cohort.samples.set_index("relative")["split"]
    assert by_name[[f"{name}.png" for name in names]].tolist() == parts
    drawn = open_study(data | {"split": {"fractions": [0.5, 0.25, 0.25]}}).cohort.samples
    assert drawn["split"].value_counts().to_dict() == {"train": 12, "val": 6, "test": 6}
    whole = open_study({key: value for key, value in data.items() if key != "split"}, folds={"k": 4}).cohort
    assert (whole.samples["split"] == "").all()


def test_class_folders(tmp_path: Path) -> None:
    made: dict[str, npt.NDArray[Any]] = {}
    for n, (split, name) in enumerate((s, c) for s in ("train", "val", "test") for c in CLASSES):
        written = write_images(tmp_path / split / name, [f"P{10 * n + k}_L" for k in range(4)], 10 * n)
        made |= {f"{split}/{name}/{stem}.png": pixels for stem, pixels in written.items()}
    (tmp_path / "train" / "dr" / "Thumbs.db").write_bytes(b"x")
    data = {"kind": "folder", "files": str(tmp_path), "classes": CLASSES, "patient_pattern": r"^(?P<patient>P\d+)_"}
    opened = open_study(data)
    assert_same(decoded(opened), made)
    assert opened.cohort.excluded["rule"].tolist() == ["not an image"]
    assert open_study(data | {"files": str(tmp_path / "train")}, folds={"k": 4}).cohort.samples["split"].eq("").all()


@pytest.mark.parametrize(("item", "axes"), [((6, 7), "HW"), ((6, 7, 3), "HWC")])
def test_arrays_of_images(tmp_path: Path, item: tuple[int, ...], axes: str) -> None:
    rng = np.random.default_rng(0)
    arrays: dict[str, npt.NDArray[Any]] = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = rng.integers(0, 256, size=(4, *item), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(4)[:, None] % 2
    np.savez(tmp_path / "a.npz", **arrays)
    opened = open_study({"kind": "npz", "table": str(tmp_path / "a.npz"), "axes": axes, "classes": CLASSES})
    assert opened.modality == "image"
    stacks = {name: stack for name, stack in arrays.items() if name.endswith("images")}
    assert_same(
        decoded(opened),
        {f"{name}/{n}": item.reshape(6, 7, -1) for name, stack in stacks.items() for n, item in enumerate(stack)},
    )
    assert opened.describe_declared() == {"axes": axes}


def test_volumes_keep_their_feature_keys(tmp_path: Path) -> None:
    """What the study declares is part of every key: the same keys and values as before there were images."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = np.arange(120, dtype=np.uint8).reshape(2, 3, 4, 5)
        arrays[f"{split}_labels"] = np.arange(2)
    np.savez(tmp_path / "a.npz", **arrays)
    data = {"kind": "npz", "table": str(tmp_path / "a.npz"), "axes": "DHW", "classes": CLASSES}
    opened = open_study(data | {"spacing_mm": [1, 2, 3]})
    assert opened.modality == "volume"
    assert opened.describe_declared() == {"axes": "DHW", "spacing_mm": (1.0, 2.0, 3.0)}
    bounded = open_study(data | {"max_volume_gb": 239e-9})
    (request, path), *_ = bounded.stage(bounded.requests)
    assert isinstance(path, Path)
    with pytest.raises(
        CircumstanceError, match=r"take 240 bytes in memory; at most 239 are allowed.*data\.max_volume_gb"
    ):
        bounded.load_input(request, path)
    assert isinstance(opened.load_input(request, path), Volume)


def test_a_broken_image_and_one_beyond_the_limit_are_input_errors(tmp_path: Path) -> None:
    made = write_idrid_like(tmp_path)
    (tmp_path / "train" / "IM_003.png").write_bytes(b"no image")
    opened = open_study(csv_of(tmp_path))
    (staged,) = opened.stage([request for request in opened.requests if request.source == "train/IM_003.png"])
    assert isinstance(staged[1], Path)
    with pytest.raises(InputError):
        opened.load_input(staged[0], staged[1])
    bounded = open_study(csv_of(tmp_path, max_image_mb=0.0005))
    (first, path), *_ = bounded.stage(bounded.requests)
    assert isinstance(path, Path)
    assert made[first.source].nbytes * 4 > 500
    with pytest.raises(CircumstanceError, match=r"at most 500 are allowed.*data\.max_image_mb"):
        bounded.load_input(first, path)


def test_an_empty_or_absent_folder_is_named(tmp_path: Path) -> None:
    write_idrid_like(tmp_path)
    (tmp_path / "empty").mkdir()
    for folder, message in (("empty", "holds no files"), ("absent", "does not exist")):
        with pytest.raises(LocationError, match=rf"{folder}: {message}"):
            open_study(csv_of(tmp_path, files={"train": str(tmp_path / "train"), "test": str(tmp_path / folder)}))


STUDY = """
name: dr
data: {data}
encoders: {{e: {{family: vit3d, checkpoint: m.pt}}}}
recipes: {{l: {{kind: linear_probe}}}}
"""
GRADES = """
  classes: [no_dr, mild, moderate, severe, proliferative]"""
IDRID = (
    """
  kind: csv
  table: {train: "DATA/idrid/a. IDRiD_Disease Grading_Training Labels.csv",
          test: "DATA/idrid/b. IDRiD_Disease Grading_Testing Labels.csv"}
  files: {train: DATA/idrid/train, test: DATA/idrid/test}
  image: Image name
  label: Retinopathy grade
  label_map: {0: no_dr, 1: mild, 2: moderate, 3: severe, 4: proliferative}
  split: {val_fraction: 0.2, seed: 0}"""
    + GRADES
)
RETINAMNIST = "\n  kind: npz\n  table: DATA/medmnist/retinamnist.npz\n  axes: HWC" + GRADES


@pytest.mark.real
@pytest.mark.parametrize(
    ("data", "train_and_val", "test", "shape"),
    [
        (IDRID, [134, 20, 136, 74, 49], [34, 5, 32, 19, 13], (448, 674, 3)),
        (RETINAMNIST, [540, 140, 234, 214, 72], [174, 46, 92, 68, 20], (28, 28, 3)),
    ],
)
def test_published_cohorts(
    tmp_path: Path, data: str, train_and_val: list[int], test: list[int], shape: tuple[int, ...]
) -> None:
    """Study files of IDRiD and RetinaMNIST. Oracle: counts as published; RetinaMNIST's train and val by its arrays."""
    shared = Path(os.environ.get("VITREOUS_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
    if not shared.exists():
        pytest.skip(f"{shared} is not here")
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.format(data=data.replace("DATA", str(shared))))
    opened = open_data(load_study(str(path)), keep_listing=False)
    counts = opened.cohort.count_by(["split", "class"]).pivot(index="class", columns="split", values="volumes")
    counts = counts.loc[list(opened.cohort.classes)]
    assert (counts["train"] + counts["val"]).tolist() == train_and_val
    assert counts["test"].tolist() == test
    assert opened.cohort.excluded.empty
    (request, file), *_ = opened.stage(opened.requests[:1])
    assert isinstance(file, Path)
    image = opened.load_input(request, file)
    assert isinstance(image, Image)
    assert image.pixels_HWC.shape == shape
