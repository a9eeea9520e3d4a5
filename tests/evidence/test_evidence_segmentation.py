"""Intersection over union. Oracle: scikit-learn's Jaccard score of all labelled pixels."""

import numpy as np
import pytest
from sklearn.metrics import jaccard_score

from vitreous.core.undefined import Undefined
from vitreous.evidence.segmentation import intersection_over_union, map_confusion

CLASSES = ("a", "b", "c", "d")


@pytest.mark.parametrize("seed", range(20))
def test_each_class_and_the_mean_are_those_of_a_second_implementation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks, maps = rng.integers(0, 4, size=(3, 8, 8)), rng.integers(0, 4, size=(3, 8, 8))
    masks[rng.random(masks.shape) < 0.3] = 255
    kept = masks != 255
    expected = jaccard_score(masks[kept], maps[kept], labels=range(4), average=None)
    found = intersection_over_union(map_confusion(masks, maps, 4), CLASSES)
    np.testing.assert_allclose([found[f"iou_{name}"] for name in CLASSES], expected, rtol=1e-12)
    assert found["miou"] == pytest.approx(expected.mean(), abs=1e-12)


def test_a_class_that_no_mask_shows_is_undefined_and_not_part_of_the_mean() -> None:
    found = intersection_over_union(map_confusion(np.array([0, 0, 1, 1]), np.array([0, 3, 1, 1]), 4), CLASSES)
    assert found["iou_d"] == Undefined("no mask shows the class 'd'")
    assert (found["iou_a"], found["iou_b"], found["miou"]) == (0.5, 1.0, 0.75)


def test_without_masks_nothing_is_defined() -> None:
    found = intersection_over_union(map_confusion(np.full(4, 255), np.zeros(4, int), 4), CLASSES)
    assert all(isinstance(value, Undefined) for value in found.values())
    assert found["miou"] == Undefined("no row has a mask")


def test_wrong_inputs() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        map_confusion(np.zeros(3, int), np.zeros(4, int), 2)
    with pytest.raises(ValueError, match="maps must lie in"):
        map_confusion(np.zeros(3, int), np.full(3, 2), 2)
