"""Cohorts of arrays. Oracle: the arrays the file was written from."""

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitreous.core.errors import SampleError
from vitreous.samples.npz import load_npz_cohort

SIZES = {"train": 12, "val": 6, "test": 5}


@pytest.fixture
def arrays() -> dict[str, Any]:
    made: dict[str, Any] = {}
    for split, size in SIZES.items():
        made[f"{split}_images"] = np.zeros((size, 4, 4, 4), dtype=np.uint8)
        made[f"{split}_labels"] = (np.arange(size) % 2).astype(np.uint8)[:, None]
    return made


def save(path: Path, arrays: dict[str, Any]) -> Path:
    np.savez_compressed(path, **arrays)
    return path


def test_rows_are_samples(tmp_path: Path, arrays: dict[str, Any]) -> None:
    cohort = load_npz_cohort(save(tmp_path / "a.npz", arrays), ("no", "yes"))
    samples = cohort.samples.set_index("sample_id")
    assert samples["split"].value_counts().to_dict() == SIZES
    row = samples.loc["val_images/000003"]
    assert (row["relative"], row["item"], row["patient_id"], row["y"]) == ("val_images", 3, "val_images/000003", 1)
    assert (samples.loc[samples["split"] == "test", "y"] == -1).all()
    truth = {f"test_images/{n:06d}": n % 2 for n in range(5)}
    assert cohort.open_test_labels() == truth
    assert (samples["weight"] == 1).all()
    assert [finding.code for finding in cohort.findings] == ["patients_are_rows"]
    assert cohort.excluded.empty


def test_patients_of_several_rows(tmp_path: Path, arrays: dict[str, Any]) -> None:
    for n, split in enumerate(SIZES):
        arrays[f"{split}_ids"] = np.array([f"{n}{item % 2}" for item in range(SIZES[split])])
    cohort = load_npz_cohort(save(tmp_path / "a.npz", arrays), ("no", "yes"), patients="ids")
    assert cohort.findings == ()
    assert set(cohort.samples["patient_id"]) == {"00", "01", "10", "11", "20", "21"}
    assert np.allclose(cohort.samples.groupby("patient_id")["weight"].sum(), 1)
    arrays["val_ids"] = arrays["train_ids"][:6]
    with pytest.raises(SampleError, match="2 patients have items with different splits: '00', '01'"):
        load_npz_cohort(save(tmp_path / "a.npz", arrays), ("no", "yes"), patients="ids")


def test_images_are_not_loaded(tmp_path: Path, arrays: dict[str, Any]) -> None:
    """A file whose header promises 1 TB of images that are not there is read as quickly as any."""
    path = save(tmp_path / "a.npz", {name: array for name, array in arrays.items() if name != "train_images"})
    with zipfile.ZipFile(path, "a") as archive, archive.open("train_images.npy", "w") as file:
        shape = (12, 4096, 4096, 5000)
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    assert len(load_npz_cohort(path, ("no", "yes")).samples) == sum(SIZES.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"val_labels": None}, r"no array 'val_labels'; the file holds \['test_images'"),
        ({"val_labels": np.zeros((3, 1), int)}, "val_images has 6 items and val_labels 3; they must agree"),
        ({"train_labels": np.full(12, 2)}, r"train_labels holds 2 \(items 0, 1.* and 2 more\), outside the 2 classes"),
        ({"train_labels": np.zeros((12, 3), int)}, r"must be whole numbers of the shape \(N,\) or \(N, 1\); got int64"),
        ({"train_labels": np.zeros(12)}, "must be whole numbers.*got float64"),
        ({"train_labels": np.zeros(12, int)}, "no patient of the split 'train' has the class 'yes'"),
        ({"test_images": np.zeros((5, 4))}, r"test_images has the shape \(5, 4\); it must be \(items, …\)"),
        ({"train_labels": np.array([{}] * 12)}, "train_labels cannot be read.*allow_pickle"),
    ],
)
def test_bad_arrays(tmp_path: Path, arrays: dict[str, Any], change: dict[str, Any], message: str) -> None:
    arrays = {name: array for name, array in (arrays | change).items() if array is not None}
    with pytest.raises(SampleError, match=message):
        load_npz_cohort(save(tmp_path / "a.npz", arrays), ("no", "yes"))


def test_not_an_npz(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"no archive")
    with pytest.raises(SampleError, match=r"a\.npz: cannot be read as an npz file"):
        load_npz_cohort(tmp_path / "a.npz", ("no", "yes"))
    with pytest.raises(SampleError, match=r"none\.npz: cannot be read as an npz file"):
        load_npz_cohort(tmp_path / "none.npz", ("no", "yes"))


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "sizes"), [("adrenalmnist3d_64", (1188, 98, 298)), ("vesselmnist3d_64", (1335, 191, 382))]
)
def test_medmnist(name: str, sizes: tuple[int, int, int]) -> None:
    """Sizes as published: Yang et al., MedMNIST v2, Scientific Data 10 (2023), table 3."""
    shared = Path(os.environ.get("VITREOUS_SHARED_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
    path = shared / "medmnist" / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    cohort = load_npz_cohort(path, ("class 0", "class 1"))
    patients = cohort.count_by(["split"]).set_index("split")["patients"]
    assert tuple(patients[["train", "val", "test"]]) == sizes
