"""Cohorts of arrays of images. Oracle: the arrays the file was written from; sizes as MedMNIST publishes them."""

import os
from pathlib import Path

import numpy as np
import pytest

from vitreous.core.errors import SampleError
from vitreous.samples.npz import load_npz_cohort


def write(path: Path, item: tuple[int, ...]) -> Path:
    arrays = {}
    for split, size in (("train", 6), ("val", 4), ("test", 4)):
        arrays[f"{split}_images"] = np.zeros((size, *item), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(size) % 2)[:, None]
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(("item", "axes"), [((4, 5), "HW"), ((4, 5, 3), "HWC"), ((4, 5, 1), "HWC"), ((4, 5, 6), "WDH")])
def test_items_of_the_axes_that_the_study_states(tmp_path: Path, item: tuple[int, ...], axes: str) -> None:
    samples = load_npz_cohort(write(tmp_path / "a.npz", item), ("no", "yes"), item_axes=axes).samples
    assert samples["split"].value_counts().to_dict() == {"train": 6, "val": 4, "test": 4}
    assert samples.loc[samples["relative"] == "val_images", "item"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("item", "axes", "message"),
    [
        (
            (4, 5),
            "HWC",
            r"3 problems.*train_images has the shape \(6, 4, 5\): 2 axes an item, where data\.axes says 'HWC'",
        ),
        ((4, 5, 3), "HW", r"val_images has the shape \(4, 4, 5, 3\): 3 axes an item, where data\.axes says 'HW'"),
        (
            (4, 5, 6),
            "HWC",
            r"the axis C has 6 channels where 1 or 3 are read; if the items are volumes, set data\.axes to",
        ),
        ((4, 5, 6, 3), "DHW", r"4 axes an item"),
    ],
)
def test_items_of_other_axes(tmp_path: Path, item: tuple[int, ...], axes: str, message: str) -> None:
    with pytest.raises(SampleError, match=f"(?s){message}"):
        load_npz_cohort(write(tmp_path / "a.npz", item), ("no", "yes"), item_axes=axes)


@pytest.mark.real
def test_retinamnist() -> None:
    """Sizes as published (Yang et al., MedMNIST v2, Scientific Data 10, 2023); test counts of its own labels."""
    shared = Path(os.environ.get("VITREOUS_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
    path = shared / "medmnist" / "retinamnist.npz"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    cohort = load_npz_cohort(path, ("0", "1", "2", "3", "4"), item_axes="HWC")
    assert cohort.samples["split"].value_counts().to_dict() == {"train": 1080, "val": 120, "test": 400}
    counts = cohort.count_by(["split", "class"])
    assert counts.loc[counts["split"] == "test", "volumes"].tolist() == [174, 46, 92, 68, 20]
    with pytest.raises(SampleError, match=r"data\.axes says 'HW'"):
        load_npz_cohort(path, ("0", "1", "2", "3", "4"), item_axes="HW")
