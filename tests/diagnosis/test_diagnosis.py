"""Outliers of a cohort and the small probe. Oracles: planted values, scipy's median absolute deviation."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import median_abs_deviation

from vitreous.diagnosis.small_probe import find_unlearnable
from vitreous.diagnosis.volumes import ROBUST_Z, find_volume_outliers, summarise_volumes
from vitreous.recipes.feature_set import FeatureSet
from vitreous.recipes.probe_grid import ProbeMember


def cohort(count: int = 60) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"depth": 64, "height": 496, "width": 512, "mean": rng.normal(80, 5, count), "std": 20.0})
    table.index = [f"s{row}" for row in range(count)]
    return table


def codes(table: pd.DataFrame) -> list[str]:
    return [finding.code for finding in find_volume_outliers(table)]


def test_a_clean_cohort_has_no_outlier() -> None:
    assert codes(cohort()) == []
    assert summarise_volumes(cohort()).loc["depth", "median"] == 64


def test_a_rare_size_is_named() -> None:
    table = cohort()
    table.loc["s3", "depth"] = 7
    finding = find_volume_outliers(table)[0]
    assert (finding.code, finding.severity) == ("rare_size", "warning")
    assert "7×496×512 (1)" in finding.evidence


@pytest.mark.parametrize("count", [24, 60, 200])
def test_several_accidents_are_named_together(count: int) -> None:
    table = cohort(count)
    table.loc[["s3", "s4", "s5"], "depth"] = [7, 8, 9]  # more rare sizes than usual ones
    finding = find_volume_outliers(table)[0]
    assert finding.title == f"3 of {count} volumes have a size that hardly any other has."


def test_where_every_size_differs_none_stands_out() -> None:
    table = cohort(24)
    table["depth"] = np.arange(24) + 30
    assert codes(table) == []


def test_two_protocols_are_no_accident() -> None:
    table = cohort()
    table.loc[table.index[:20], "depth"] = 128
    assert codes(table) == []


def test_brightness_far_from_the_rest_is_named() -> None:
    table = cohort()
    scale = median_abs_deviation(table["mean"], scale="normal")
    table.loc["s5", "mean"] = table["mean"].median() + 1.1 * ROBUST_Z * scale + scale
    finding = find_volume_outliers(table)[0]
    assert finding.code == "far_brightness"
    assert "s5" in finding.evidence


def small(features_ND: np.ndarray) -> FeatureSet:
    rows = len(features_ND)
    return FeatureSet(features_ND.astype(np.float32), np.arange(rows) % 2, np.arange(rows).astype(str), np.ones(rows))


def test_the_probe_learns_distinct_samples_and_not_equal_ones() -> None:
    rng = np.random.default_rng(0)
    assert find_unlearnable(small(rng.normal(size=(8, 32))), 2).code == "probe_learns"
    same = find_unlearnable(small(np.tile(rng.normal(size=(1, 32)), (8, 1))), 2)
    assert (same.code, same.severity) == ("probe_cannot_learn", "error")


def test_a_probe_that_diverges_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    # features are standardised, so only a learning rate beyond all measure makes it diverge
    monkeypatch.setattr("vitreous.diagnosis.small_probe.ProbeMember", lambda _: ProbeMember(1e38))
    diverged = find_unlearnable(small(np.random.default_rng(0).normal(size=(8, 32))), 2)
    assert (diverged.code, diverged.severity) == ("probe_cannot_learn", "error")
    assert "diverged" in diverged.evidence
