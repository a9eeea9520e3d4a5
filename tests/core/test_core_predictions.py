"""Predictions. Oracles: scipy's softmax, pandas' groupby."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax

from vitreous.core.errors import UserError
from vitreous.core.predictions import Predictions


def made(rows: int = 12, classes: tuple[str, ...] = ("a", "b", "c")) -> Predictions:
    rng = np.random.default_rng(0)
    patients = np.array([f"p{i % 4:02d}" for i in range(rows)])
    labels = np.array([i % 4 % 3 for i in range(rows)])
    logits = rng.normal(size=(rows, len(classes))) * 5
    return Predictions(np.array([f"s{i}" for i in range(rows)]), patients, labels, logits, classes)


def test_per_patient_is_the_mean_probability() -> None:
    predictions = made()
    oracle = pd.DataFrame(softmax(predictions.scores_NC, axis=1)).groupby(predictions.patient_id_N).mean()
    patients = predictions.per_patient()
    assert list(patients.patient_id_N) == list(oracle.index)
    np.testing.assert_allclose(patients.probs_NC, oracle.to_numpy(), atol=1e-12)


def test_two_labels_of_one_patient_are_refused() -> None:
    predictions = made()
    predictions.y_true_N[0] = 2
    with pytest.raises(ValueError, match="one patient carry different labels"):
        predictions.per_patient()


@pytest.mark.parametrize("per_patient", [False, True])
def test_written_and_read_back(tmp_path: Path, per_patient: bool) -> None:
    predictions = made().per_patient() if per_patient else made()
    predictions.write(tmp_path / "a.parquet")
    predictions.write(tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    back = Predictions.read(tmp_path / "a.parquet", predictions.classes)
    np.testing.assert_array_equal(back.scores_NC, predictions.scores_NC)
    assert list(back.sample_id_N) == list(predictions.sample_id_N)
    assert back.is_per_patient == per_patient


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    pd.DataFrame({"patient_id": ["a"], "y_true": [0], "logit_a": [0.1]}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"lack the columns \['logit_b'\]"):
        Predictions.read(tmp_path / "x.parquet", ["a", "b"])


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"scores must be \(1, 2\); got \(1, 3\)"):
        Predictions(np.array(["s"]), np.array(["p"]), np.array([0]), np.zeros((1, 3)), ("a", "b"))


def test_equal_samples_give_exactly_their_value() -> None:
    logits = np.tile(np.log([0.3, 0.1, 0.6]), (7, 1))
    patients = np.array(["a", "a", "a", "b", "b", "c", "c"])
    made = Predictions(np.arange(7).astype(str), patients, np.zeros(7, np.int64), logits, ("a", "b", "c"))
    probs = made.per_patient().probs_NC
    assert (probs == probs[0]).all()
