"""Labels where they stand alone. Oracles: scikit-learn's AUROC and a planted label that follows another."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from vitreous.core.undefined import Undefined
from vitreous.evidence.blindness import (
    _weighted_auroc,
    alone_confusion,
    examine_alone,
    find_blindness,
    group_names,
    label_groups,
)

LABELS = ("C1", "C2", "C3")


def cohort(seed: int = 0, videos: int = 120, *, blind: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three clips a video; C2 mostly comes with C1, and a blind model scores it by C1 alone."""
    rng = np.random.default_rng(seed)
    rows = 3 * videos
    c1 = rng.random(rows) < 0.4
    c2 = np.where(rng.random(rows) < 0.8, c1, rng.random(rows) < 0.5)
    c3 = rng.random(rows) < 0.3
    y = np.stack([c1, c2, c3], 1)
    seen = np.stack([c1, c1 if blind else c2, c3], 1)
    scores = 1 / (1 + np.exp(-(4.0 * seen - 2 + rng.normal(0, 0.8, (rows, 3)))))
    return y, scores, np.repeat(np.arange(videos), 3).astype(np.str_)


def test_groups_and_confusion_count_every_row_once() -> None:
    y = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]], bool)
    assert label_groups(y).tolist() == [0, 1, 2, 3, 4]
    predicted = np.array([[0, 0, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1]], bool)
    counts = alone_confusion(y, predicted)
    assert counts.sum() == len(y)
    assert counts[2].tolist() == [0, 1, 0, 0, 0], "only C2 was taken for only C1"
    assert group_names(LABELS) == ("none", "only C1", "only C2", "only C3", "several")


def test_a_label_that_follows_another_is_found_blind_and_the_others_are_not() -> None:
    y, scores, videos = cohort()
    alone = examine_alone(y, scores, videos, LABELS, num_resamples=300, rng=np.random.default_rng(1))
    by_label = {one.label: one for one in alone}
    assert {label: one.is_blind for label, one in by_label.items()} == {"C1": False, "C2": True, "C3": False}
    assert "only C3" in by_label["C2"].confused_with
    overall = roc_auc_score(y[:, 1], scores[:, 1])
    assert overall > 0.75, "over all samples the label looks detected"
    (finding,) = [one for one in find_blindness(alone, "vit / linear") if "does not see" in one.title]
    assert (finding.code, finding.severity) == ("label_blindness", "warning")
    assert "C2" in finding.title
    assert f"of {by_label['C2'].num_alone} samples with only C2" in finding.evidence


def test_a_model_that_sees_every_label_has_no_finding() -> None:
    y, scores, videos = cohort(blind=False)
    alone = examine_alone(y, scores, videos, LABELS, num_resamples=300, rng=np.random.default_rng(1))
    assert find_blindness(alone, "good") == []
    assert all(one.detected / one.num_alone > 0.8 for one in alone)


def test_areas_are_those_of_scikit_learn_with_weights() -> None:
    y, scores, videos = cohort()
    alone = examine_alone(y, scores, videos, LABELS, num_resamples=50, rng=np.random.default_rng(1))
    groups = label_groups(y)
    for index, one in enumerate(alone):
        for group, interval in one.ranked.items():
            other = group_names(LABELS).index(group)
            rows = np.isin(groups, [index + 1, other])
            expected = roc_auc_score(groups[rows] == index + 1, scores[rows, index])
            assert interval.value == pytest.approx(expected, abs=1e-12)
            if not isinstance(interval.low, Undefined):
                assert interval.low <= interval.value <= interval.high
    rng = np.random.default_rng(2)
    positive, negative = rng.integers(0, 5, 20).astype(float), rng.integers(0, 5, 30).astype(float)
    weights = rng.integers(0, 3, (4, 50)).astype(float)
    found = _weighted_auroc(positive, negative, weights[:, :20], weights[:, 20:])
    truth = np.r_[np.ones(20), np.zeros(30)]
    expected = [roc_auc_score(truth, np.r_[positive, negative], sample_weight=row) for row in weights]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert np.isnan(_weighted_auroc(positive, negative, np.zeros((1, 20)), np.ones((1, 30)))[0])


def test_groups_without_samples_or_participants_are_undefined_not_blind() -> None:
    y, scores, videos = cohort()
    y[:, 2] = y[:, 0]  # C3 never stands alone
    alone = examine_alone(y, scores, videos, LABELS, num_resamples=50, rng=np.random.default_rng(1))
    third = alone[2]
    assert third.num_alone == 0
    assert isinstance(third.ranked["none"].value, Undefined)
    assert not third.is_blind
    few = examine_alone(y, scores, np.full(len(y), "one video"), LABELS, num_resamples=50, rng=np.random.default_rng(1))
    assert isinstance(few[1].ranked["none"].low, Undefined)


def test_never_detected_is_blind_whatever_the_ranking() -> None:
    y, scores, videos = cohort(blind=False)
    scores[:, 1] *= 0.3
    alone = examine_alone(y, scores, videos, LABELS, num_resamples=50, rng=np.random.default_rng(1))
    assert alone[1].is_never_detected
    assert alone[1].is_blind
    lower = examine_alone(
        y, scores, videos, LABELS, thresholds_NL=np.array([[0.5, 0.15, 0.5]]), num_resamples=50,
        rng=np.random.default_rng(1),
    )  # fmt: skip
    assert not lower[1].is_blind


def test_shapes_and_values_are_checked() -> None:
    y, scores, videos = cohort()
    with pytest.raises(ValueError, match="must be"):
        examine_alone(y[:5], scores, videos, LABELS, rng=np.random.default_rng(1))
    scores[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        examine_alone(y, scores, videos, LABELS, rng=np.random.default_rng(1))
