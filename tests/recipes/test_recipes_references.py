"""Logistic regression, nearest neighbours and floors.

Oracles: scikit-learn's LogisticRegression (rows repeated instead of weighted), KNeighborsClassifier and
DummyClassifier, and pandas.get_dummies.
"""

import re

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file
from scipy.special import log_softmax, softmax
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from vitreous.core.errors import SampleError
from vitreous.recipes.feature_set import FeatureSet
from vitreous.recipes.floors import (
    fit_column_encoding,
    fit_majority,
    majority_logits,
    shuffled_labels,
)
from vitreous.recipes.probe_logits import probe_logits
from vitreous.recipes.references import fit_knn_sweep, fit_logistic_sweep


def standardised(train: FeatureSet, rows: FeatureSet) -> np.ndarray:
    mean = np.average(train.features_ND.astype(float), axis=0, weights=train.weight_N)
    std = np.sqrt(np.average((train.features_ND - mean) ** 2, axis=0, weights=train.weight_N))
    return (rows.features_ND - mean) / std


@pytest.mark.parametrize("num_classes", [2, 3])
def test_logistic_regression_is_scikit_learns_on_repeated_rows(make_rows, num_classes):
    train = make_rows("train", 40, num_classes=num_classes)
    val = make_rows("val", 20, num_classes=num_classes)
    sixths = np.rint(6 * train.weight_N).astype(int)  # 1, 1/2, 1/3 → 6, 3, 2
    repeated = np.repeat(np.arange(len(sixths)), sixths)
    for fitted in fit_logistic_sweep(train, val, [0.01, 1.0], num_classes=num_classes, tolerance=1e-10):
        model = LogisticRegression(C=fitted.member["C"] / 6, tol=1e-10, max_iter=5000)
        model.fit(standardised(train, train)[repeated], train.y_N[repeated])
        ours = log_softmax(fitted.predict_logits(val.features_ND), axis=1)
        np.testing.assert_allclose(ours, model.predict_log_proba(standardised(train, val)), atol=1e-5)
        assert fitted.converged
        assert fitted.val_score > 0.6


def test_class_weights_reach_the_references(make_rows):
    train, val = make_rows("train", 40, signal=0.2), make_rows("val", 20, signal=0.2)
    for sweep in (
        lambda weights: fit_logistic_sweep(train, val, [0.1], num_classes=3, class_weights=weights),
        lambda weights: fit_knn_sweep(train, val, [9], num_classes=3, class_weights=weights),
    ):
        plain, pressed = (sweep(weights)[0].predict_logits(val.features_ND) for weights in ("none", (1.0, 9.0, 1.0)))
        assert softmax(pressed, axis=1)[:, 1].mean() > 1.5 * softmax(plain, axis=1)[:, 1].mean()


def test_a_solver_that_stops_early_says_so(make_rows):
    train, val = make_rows("train", 40), make_rows("val", 20)
    (fitted,) = fit_logistic_sweep(train, val, [100.0], num_classes=3, max_iterations=2)
    assert not fitted.converged


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_nearest_neighbours_are_scikit_learns(make_rows, metric):
    train, val = make_rows("train", 40), make_rows("val", 20)
    even = FeatureSet(train.features_ND, train.y_N, train.patient_id_N, np.ones(len(train.y_N)))
    for fitted in fit_knn_sweep(even, val, [1, 5, 17], num_classes=3, metric=metric):
        k = fitted.member["k"]
        model = KNeighborsClassifier(k, metric=metric).fit(standardised(even, even), even.y_N)
        share = model.predict_proba(standardised(even, val))
        np.testing.assert_allclose(
            softmax(fitted.predict_logits(val.features_ND), axis=1), (k * share + 1 / 3) / (k + 1), atol=1e-12
        )


def test_neighbours_of_one_patient_vote_once_together():
    """Three volumes of one patient of class 1 lie next to the query; two patients of class 0 behind them."""
    features = np.array([[0.1], [0.2], [0.3], [0.9], [1.0], [50.0], [51.0]], np.float32)
    ids = np.array(["a", "a", "a", "b", "c", "d", "e"])
    train = FeatureSet(features, np.array([1, 1, 1, 0, 0, 0, 1]), ids, np.array([1, 1, 1, 3, 3, 3, 3]) / 3)
    val = FeatureSet(np.array([[0.0], [50.0]], np.float32), np.array([0, 1]), np.array(["x", "y"]), np.ones(2))
    (fitted,) = fit_knn_sweep(train, val, [5], num_classes=2, metric="euclidean")
    expected = (5 * np.array([2 / 3, 1 / 3]) + 0.5) / 6
    np.testing.assert_allclose(softmax(fitted.predict_logits(val.features_ND[:1]))[0], expected)


def test_references_are_served_from_their_file_alone(make_rows, tmp_path):
    train, val = make_rows("train", 30), make_rows("val", 12)
    for fitted in [
        *fit_logistic_sweep(train, val, [1.0], num_classes=3),
        *fit_knn_sweep(train, val, [3], num_classes=3),
        fit_majority(train, val, num_classes=3),
    ]:
        save_file(fitted.tensors, tmp_path / "probe.safetensors")
        stored = load_file(tmp_path / "probe.safetensors")
        logits = fitted.predict_logits(val.features_ND)
        assert logits.shape == (len(val.y_N), 3)
        assert probe_logits(stored, val.features_ND).tobytes() == logits.tobytes()


def test_wrong_sweeps_are_refused(make_rows):
    train, val = make_rows("train", 12), make_rows("val", 6)
    rows = len(train.y_N)
    for Cs in ([], [0.0], [1.0, -1.0], [float("inf")]):
        with pytest.raises(ValueError, match=rf"Cs must be positive and finite.*{re.escape(str(Cs))}"):
            fit_logistic_sweep(train, val, Cs, num_classes=3)
    for ks in ([], [0], [rows + 1]):
        with pytest.raises(ValueError, match=rf"ks must lie in 1…{rows} .*{re.escape(str(ks))}"):
            fit_knn_sweep(train, val, ks, num_classes=3)
    with pytest.raises(ValueError, match="'cosine' or 'euclidean'; got 'manhattan'"):
        fit_knn_sweep(train, val, [1], num_classes=3, metric="manhattan")
    with pytest.raises(SampleError, match="train: no participant of class 3"):
        fit_logistic_sweep(train, val, [1.0], num_classes=4)


def test_majority_says_the_share_of_training_participants(make_rows):
    y_P = np.repeat([0, 1, 2, 3], [369, 242, 321, 129])
    dummy = DummyClassifier(strategy="prior").fit(np.zeros((len(y_P), 1)), y_P)
    np.testing.assert_allclose(np.exp(majority_logits(y_P, 4, 5)), dummy.predict_proba(np.zeros((5, 1))))
    fitted = fit_majority(make_rows("train", 31), make_rows("val", 12), num_classes=3)
    assert fitted.val_score == pytest.approx(1 / 3)
    with pytest.raises(SampleError, match="no participant of class 2"):
        majority_logits(np.array([0, 1]), 3, 5)


def test_shuffled_labels_take_the_signal_away(make_rows):
    train, val = make_rows("train", 200, signal=1.5), make_rows("val", 90, signal=1.5)
    (honest,) = fit_logistic_sweep(train, val, [0.01], num_classes=3)
    scores = [
        one.val_score
        for s in range(4)
        for one in fit_logistic_sweep(shuffled_labels(train, s), val, [0.01], num_classes=3)
    ]
    assert honest.val_score > 0.9
    assert np.mean(scores) < 0.5


def test_columns_become_features_by_what_training_holds():
    rng = np.random.default_rng(0)

    def table(rows: int) -> pd.DataFrame:
        age = 50 + rng.normal(size=rows)
        age[rng.random(rows) < 0.1] = np.nan
        return pd.DataFrame({"clinical_site": np.array(["UW", "UAB", "UCSD"])[np.arange(rows) % 3], "age": age})

    train, val = table(150), table(90)
    val.loc[3, "clinical_site"] = "Mars"
    encoding = fit_column_encoding(train, ["clinical_site", "age"])
    assert encoding.feature_names == [
        "age", "age missing", "clinical_site=UAB", "clinical_site=UCSD", "clinical_site=UW",
    ]  # fmt: skip
    assert encoding.count_unseen(val) == {"clinical_site": 1}
    features = encoding.features(train)
    np.testing.assert_array_equal(features[:, 2:], pd.get_dummies(train["clinical_site"]).to_numpy(np.float32))
    assert encoding.features(val)[3, 2:].tolist() == [0, 0, 0]
    missing = train["age"].isna().to_numpy()
    np.testing.assert_allclose(features[missing, 0], train["age"].mean(), rtol=1e-6)
    np.testing.assert_array_equal(features[:, 1], missing)


def test_wrong_columns_are_refused():
    table = pd.DataFrame(
        {"y": [0, 1], "patient_id": ["a", "b"], "weight": 1.0, "age": [1.0, 2.0], "blank": [None, None]}
    )
    table["site"] = ["x", None]
    assert fit_column_encoding(table, ["site"]).categories == {"site": ("", "x")}
    for columns, message in [
        ([], "needs at least one column"),
        (["weather"], r"lacks the columns \['weather'\]"),
        (["blank"], "column 'blank' has no value"),
    ]:
        with pytest.raises(SampleError, match=message):
            fit_column_encoding(table, columns)
    many = pd.DataFrame({"name": [f"n{row}" for row in range(51)]})
    with pytest.raises(SampleError, match="'name' has 51 values as text"):
        fit_column_encoding(many, ["name"])
    with pytest.raises(SampleError, match="'age' holds numbers in training but text here"):
        fit_column_encoding(table, ["age"]).features(table.assign(age=["old", "young"]))
