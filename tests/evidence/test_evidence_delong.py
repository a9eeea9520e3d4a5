"""DeLong against its structural components counted pair by pair, and against simulation."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from vitreous.core.predictions import Predictions
from vitreous.core.undefined import Undefined
from vitreous.evidence.delong import delong_auroc, delong_covariance, delong_test


def literal_delong(is_positive_N, scores_KN):
    """DeLong et al. (1988), equations 4 to 7, by loops over all pairs."""
    psi = lambda x, y: 1.0 if x > y else 0.5 if x == y else 0.0  # noqa: E731
    positives, negatives = np.flatnonzero(is_positive_N), np.flatnonzero(~is_positive_N)
    m, n, num = len(positives), len(negatives), len(scores_KN)
    theta = [sum(psi(s[i], s[j]) for i, j in product(positives, negatives)) / (m * n) for s in scores_KN]
    v10 = [[sum(psi(s[i], s[j]) for j in negatives) / n for i in positives] for s in scores_KN]
    v01 = [[sum(psi(s[i], s[j]) for i in positives) / m for j in negatives] for s in scores_KN]
    covariance = np.empty((num, num))
    for r, q in product(range(num), range(num)):
        s10 = sum((v10[r][i] - theta[r]) * (v10[q][i] - theta[q]) for i in range(m)) / (m - 1)
        s01 = sum((v01[r][j] - theta[r]) * (v01[q][j] - theta[q]) for j in range(n)) / (n - 1)
        covariance[r, q] = s10 / m + s01 / n
    return np.array(theta), covariance


def made_scores(rows: int, seed: int, num: int = 3, digits: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Correlated scores with many ties."""
    rng = np.random.default_rng(seed)
    is_positive_N = np.arange(rows) % 3 == 0
    shared_N = rng.normal(size=rows) + is_positive_N
    return is_positive_N, np.round(shared_N + 0.7 * rng.normal(size=(num, rows)), digits)


def made_predictions(is_positive_N: np.ndarray, score_N: np.ndarray) -> Predictions:
    ids_N = np.array([f"P{n:04d}" for n in range(len(score_N))])
    logits_NC = np.stack([np.zeros_like(score_N), score_N], axis=1)
    return Predictions(ids_N, ids_N, is_positive_N.astype(np.int64), logits_NC, ("healthy", "ill"))


@pytest.mark.parametrize("seed", range(25))
def test_covariance_equals_the_structural_components(seed):
    is_positive_N, scores_KN = made_scores(6 + 3 * (seed % 9), seed, num=1 + seed % 4, digits=seed % 3)
    auroc_K, covariance_KK = delong_covariance(is_positive_N, scores_KN)
    expected_K, expected_KK = literal_delong(is_positive_N, scores_KN)
    np.testing.assert_allclose(auroc_K, expected_K, atol=1e-12, rtol=0)
    np.testing.assert_allclose(covariance_KK, expected_KK, atol=1e-12, rtol=0)
    np.testing.assert_allclose(auroc_K, [roc_auc_score(is_positive_N, s) for s in scores_KN], atol=1e-12)


def test_the_better_row_has_a_positive_z_and_the_test_is_antisymmetric():
    is_positive_N, (good_N, _, _) = made_scores(120, 0)
    poor_N = good_N + np.random.default_rng(1).normal(scale=3, size=120)
    good, poor = made_predictions(is_positive_N, good_N), made_predictions(is_positive_N, poor_N)
    found, turned = delong_test([good], [poor], "ill"), delong_test([poor], [good], "ill")
    assert found.value > 0
    assert found.z > 0
    assert (turned.z, turned.p) == (pytest.approx(-found.z), pytest.approx(found.p))
    theta, covariance = literal_delong(is_positive_N, np.stack([good.probs_NC[:, 1], poor.probs_NC[:, 1]]))
    error = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert found.standard_error == pytest.approx(error, abs=1e-12)
    assert found.p == pytest.approx(2 * (1 - norm.cdf((theta[0] - theta[1]) / error)), abs=1e-12)
    assert found.low == pytest.approx(found.value - 1.959963984540054 * error)


def test_a_row_is_the_mean_of_its_seeds():
    is_positive_N, scores_KN = made_scores(60, 3, num=4)
    made = [made_predictions(is_positive_N, score_N) for score_N in scores_KN]
    theta, covariance = literal_delong(is_positive_N, np.stack([one.probs_NC[:, 1] for one in made]))
    mean = delong_auroc(made[:3], "ill")
    assert mean.value == pytest.approx(theta[:3].mean())
    assert mean.standard_error == pytest.approx(np.sqrt(covariance[:3, :3].mean()))
    share = np.array([1 / 3, 1 / 3, 1 / 3, -1])
    found = delong_test(made[:3], made[3:], "ill")
    assert found.value == pytest.approx(share @ theta)
    assert found.standard_error == pytest.approx(np.sqrt(share @ covariance @ share))


def test_either_of_two_classes_gives_the_same_and_three_classes_go_one_by_one():
    is_positive_N, (score_N, *_) = made_scores(45, 4, digits=3)
    one = made_predictions(is_positive_N, score_N)
    assert delong_auroc([one], "ill").standard_error == pytest.approx(delong_auroc([one], "healthy").standard_error)
    logits_NC = np.random.default_rng(0).normal(size=(45, 3))
    three = replace(one, y_true_N=np.arange(45) % 3, scores_NC=logits_NC, classes=("a", "b", "c"))
    expected, _ = literal_delong(np.arange(45) % 3 == 1, three.probs_NC[:, 1][None])
    assert delong_auroc([three], "b").value == pytest.approx(expected[0])
    with pytest.raises(ValueError, match="no class 'ill' to hold against the rest"):
        delong_auroc([three], "ill")


def test_bounds_of_an_auroc_end_at_1():
    is_positive_N = np.arange(20) % 2 == 0
    score_N = np.where(is_positive_N, 1.0, 0.0) + np.linspace(0, 0.1, 20)
    score_N[0] = 0.04
    assert delong_auroc([made_predictions(is_positive_N, score_N)], "ill").high == 1.0


def test_what_has_no_variance_says_why():
    is_positive_N, (score_N, *_) = made_scores(30, 5)
    one = made_predictions(is_positive_N, score_N)
    same = delong_test([one], [one], "ill")
    assert (same.value, same.standard_error) == (0.0, 0.0)
    assert same.p == Undefined("nothing varies between patients: the standard error is 0")
    perfect = delong_auroc([made_predictions(is_positive_N, is_positive_N.astype(float))], "ill")
    assert perfect.value == 1.0
    assert isinstance(perfect.low, Undefined)
    lonely = delong_auroc([replace(one, y_true_N=(np.arange(30) == 0).astype(np.int64))], "ill")
    assert lonely.value == Undefined("DeLong's variance needs two patients of 'ill' and two others; got 1 and 29")


def test_what_delong_must_not_be_used_on_is_refused():
    is_positive_N, (score_N, *_) = made_scores(30, 6)
    one = made_predictions(is_positive_N, score_N)
    several = replace(one, patient_id_N=np.repeat(one.patient_id_N[:15], 2))
    with pytest.raises(ValueError, match=r"needs one row per patient.* got 30 rows of 15 patients"):
        delong_auroc([several], "ill")
    with pytest.raises(ValueError, match="needs one row per patient"):
        delong_test([several], [several], "ill")
    with pytest.raises(ValueError, match="not about the same rows"):
        delong_test([one], [replace(one, patient_id_N=one.patient_id_N[::-1])], "ill")
    with pytest.raises(ValueError, match="no predictions to score"):
        delong_test([one], [], "ill")
    with pytest.raises(ValueError, match="no predictions to score"):
        delong_auroc([], "ill")
    with pytest.raises(ValueError, match="got 95"):
        delong_auroc([one], "ill", 95)
    with pytest.raises(ValueError, match="two positives and two negatives; got 0 and 30"):
        delong_covariance(np.zeros(30, dtype=bool), score_N[None])
    with pytest.raises(ValueError, match="must be finite"):
        delong_covariance(is_positive_N, np.full((1, 30), np.nan))


def test_equal_rows_are_told_apart_in_5_percent_of_draws():
    """800 draws: three standard errors are 2.3 points."""
    rng = np.random.default_rng(7)
    is_positive_N = np.arange(120) % 2 == 0
    rejected = 0
    for _ in range(800):
        shared_N = rng.normal(size=120) + is_positive_N
        auroc_K, covariance_KK = delong_covariance(is_positive_N, shared_N + rng.normal(size=(2, 120)))
        error = np.sqrt(covariance_KK[0, 0] + covariance_KK[1, 1] - 2 * covariance_KK[0, 1])
        rejected += abs(auroc_K[0] - auroc_K[1]) > 1.959963984540054 * error
    assert rejected / 800 == pytest.approx(0.05, abs=0.023)
