"""Mean probabilities as logits. Oracle: the means written out."""

import numpy as np
import pytest
from scipy.special import expit, softmax

from vitreous.core.predictions import Predictions
from vitreous.recipes.ensembles import average_logits, choose_members

RNG = np.random.default_rng(0)
LOGITS = [RNG.normal(0, 4, size=(30, 3)) for _ in range(3)]
COUNTS = np.array([1, 0, 2])


@pytest.mark.parametrize("task", ["multi_class", "multi_label"])
def test_probabilities_are_the_weighted_means_of_the_members(task) -> None:
    probabilities = softmax if task == "multi_class" else lambda x, axis: expit(x)
    expected_NC = sum(count * probabilities(one, axis=1) for count, one in zip(COUNTS, LOGITS)) / COUNTS.sum()
    names = np.arange(30).astype(str)
    joint = Predictions(
        names, names, np.zeros(30, np.int64), average_logits(LOGITS, COUNTS, task), ("a", "b", "c"), task=task
    )
    np.testing.assert_allclose(joint.probs_NC, expected_NC, rtol=1e-12)


@pytest.mark.parametrize("task", ["multi_class", "multi_label"])
def test_certain_members_give_finite_logits(task) -> None:
    certain = [np.array([[800.0, -800.0]]), np.array([[-800.0, 800.0]])]
    assert np.isfinite(average_logits(certain, np.array([1, 1]), task)).all()


def test_the_greedy_choice_adds_while_the_score_rises() -> None:
    values = np.array([0.5, 0.7, 0.2])
    # a mean that is best at one part of the first and two of the second
    counts = choose_members(3, lambda counts_M: -abs(float(counts_M @ values) / counts_M.sum() - (0.5 + 2 * 0.7) / 3))
    assert counts.tolist() == [1, 2, 0]
    assert choose_members(3, lambda counts_M: 1.0).tolist() == [1, 0, 0]
