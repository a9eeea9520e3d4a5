"""The feature stage and the spread of features. Oracles: closed forms; a double loop."""

import numpy as np
import pandas as pd
import pytest

from vitreous.features.leaks import find_near_features, nearest_samples
from vitreous.features.spread import effective_rank


def test_effective_rank_counts_equal_directions() -> None:
    matrix_ND = np.concatenate([np.eye(8), -np.eye(8)])
    assert effective_rank(matrix_ND) == pytest.approx(8, abs=1e-4)
    assert effective_rank(np.ones((10, 5))) == 1.0
    assert effective_rank(matrix_ND + 1e3) == pytest.approx(8, abs=1e-4), "the mean is no direction"
    line = np.outer(np.arange(30.0), np.ones(6))
    assert effective_rank(line) == pytest.approx(1, abs=1e-3)


def test_nearest_samples_against_a_double_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitreous.features.leaks._BLOCK", 7)
    rng = np.random.default_rng(0)
    features_ND = rng.normal(50, 1, (40, 6)).astype(np.float32)
    group_N = rng.integers(0, 3, 40)
    others_N, which_N, all_N = nearest_samples(features_ND, group_N)
    for row in range(40):
        distances = np.linalg.norm(features_ND - features_ND[row], axis=1)
        distances[row] = np.inf
        assert all_N[row] == pytest.approx(distances.min(), abs=1e-3)
        distances[group_N == group_N[row]] = np.inf
        assert which_N[row] == distances.argmin()
        assert others_N[row] == pytest.approx(distances.min(), abs=1e-3)


def cohort(count: int = 60) -> pd.DataFrame:
    ids = [f"s{n}" for n in range(count)]
    return pd.DataFrame(
        {"sample_id": ids, "patient_id": ids, "split": ["train", "train", "val", "test"] * (count // 4)}
    )


def test_a_copy_that_every_encoder_sees_is_refused() -> None:
    rng = np.random.default_rng(1)
    samples = cohort()
    one, other = rng.normal(size=(60, 32)).astype(np.float32), rng.normal(size=(60, 48)).astype(np.float32)
    assert list(find_near_features({"one": one, "other": other}, samples, [])) == []
    one[3] = one[0] + 0.001
    assert list(find_near_features({"one": one, "other": other}, samples, [])) == [], "the other tells them apart"
    other[3] = other[0]
    [leak] = find_near_features({"one": one, "other": other}, samples, [])
    assert (leak.code, leak.refuses) == ("near_features", True)
    assert leak.rows[0].startswith("s0 ≈ s3")
    assert list(find_near_features({"one": one, "other": other}, samples, [("s0", "s3")])) == [], "told before"
    other[3] += 0.5 * rng.normal(size=48).astype(np.float32) / 4
    [close] = find_near_features({"one": one, "other": other}, samples, [])
    assert not close.refuses


def test_features_without_spread_prove_nothing() -> None:
    rng = np.random.default_rng(2)
    flat = (rng.normal(size=(60, 2)) @ rng.normal(size=(2, 32))).astype(np.float32)
    flat[3] = flat[0]
    assert list(find_near_features({"flat": flat}, cohort(), [])) == []
    assert list(find_near_features({}, cohort(), [])) == []
