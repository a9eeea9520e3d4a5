"""The gap of several labels at the source's mix of label sets. Oracle: scikit-learn, patients weighed by their set."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from vitreous.core.label_sets import encode_label_sets
from vitreous.core.predictions import Predictions
from vitreous.core.undefined import Undefined
from vitreous.evidence.intervals import resample_weights
from vitreous.evidence.transfer import find_absent_classes, measure_gaps

LABELS = ("A", "B")


def cohort(prefix: str, count: int, shares: tuple[float, float], seed: int) -> Predictions:
    rng = np.random.default_rng(seed)
    has = rng.random((count, 2)) < shares
    has[:4] = [[False, False], [True, False], [False, True], [True, True]]
    names = np.array([f"{prefix}{n:03d}" for n in range(count)])
    logits = 1.2 * has - 0.5 + rng.normal(size=has.shape)
    return Predictions(names, names, encode_label_sets(has), logits, LABELS, task="multi_label")


def test_the_mix_is_that_of_label_sets() -> None:
    source, target = cohort("s", 80, (0.5, 0.5), 0), cohort("t", 90, (0.8, 0.2), 1)
    weights = [
        resample_weights(one.patient_id_N, num_resamples=200, rng=np.random.default_rng(k))
        for k, one in enumerate((source, target))
    ]
    gaps = measure_gaps([source], [target], *weights)
    share = np.bincount(source.y_true_N, minlength=4) / 80
    here = np.bincount(target.y_true_N, minlength=4) / 90
    weight = (share / here)[target.y_true_N]
    expected = np.mean(
        [average_precision_score(target.targets_NC[:, c], target.probs_NC[:, c], sample_weight=weight) for c in (0, 1)]
    )
    assert gaps["map"].at_source_mix.value == pytest.approx(expected)
    plain = np.mean([average_precision_score(target.targets_NC[:, c], target.probs_NC[:, c]) for c in (0, 1)])
    assert gaps["map"].target.value == pytest.approx(plain)
    assert gaps["map"].due_to_mix.value == pytest.approx(expected - plain)


def test_a_set_that_the_target_lacks_leaves_the_mix_undefined() -> None:
    source, target = cohort("s", 80, (0.5, 0.5), 0), cohort("t", 90, (0.8, 0.2), 1)
    target = target.select(target.y_true_N != 3)
    weights = [
        resample_weights(one.patient_id_N, num_resamples=200, rng=np.random.default_rng(k))
        for k, one in enumerate((source, target))
    ]
    gaps = measure_gaps([source], [target], *weights)
    assert isinstance(gaps["map"].at_source_mix.value, Undefined)
    assert "set of labels 'A + B' does not occur" in gaps["map"].at_source_mix.value.reason
    assert not isinstance(gaps["map"].gap.value, Undefined)


def test_a_label_that_the_target_lacks_is_told() -> None:
    source, target = cohort("s", 80, (0.5, 0.5), 0), cohort("t", 90, (0.8, 0.2), 1)
    target = target.select((target.y_true_N & 2) == 0)
    [finding] = find_absent_classes(target, "there")
    assert finding.title == "The cohort there has no patient of 1 label(s)."
    weights = [
        resample_weights(one.patient_id_N, num_resamples=200, rng=np.random.default_rng(k))
        for k, one in enumerate((source, target))
    ]
    assert "means over different labels" in measure_gaps([source], [target], *weights)["map"].gap.value.reason
    with pytest.raises(ValueError, match="grades are classes"):
        measure_gaps([source], [target], *weights, ordered=True)
