"""A leaderboard of samples, not patients. Oracle: scikit-learn on the predictions themselves."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from vitreous.core.predictions import Predictions
from vitreous.reports.answer import answer_sentences
from vitreous.reports.leaderboard import RowPredictions, build_leaderboard
from vitreous.reports.leaderboard_tables import leaderboard_frame, leaderboard_markdown
from vitreous.reports.trackers import tracked_rows

CLASSES = ("none", "mild", "severe")


def made() -> Predictions:
    """Two eyes of each of 60 patients; the second of every third has the next grade."""
    rng = np.random.default_rng(0)
    y_N = np.arange(120) // 2 % 3
    y_N[1::6] = (y_N[1::6] + 1) % 3
    names_N = np.array([f"s{row:03d}" for row in range(120)])
    logits_NC = 1.5 * np.eye(3)[y_N] + rng.normal(size=(120, 3))
    return Predictions(names_N, np.array([f"p{row // 2:02d}" for row in range(120)]), y_N, logits_NC, CLASSES)


def test_samples_are_counted_and_patients_named() -> None:
    one = made()
    row = RowPredictions("encoder", "probe", {0: one}, {0: one})
    board = build_leaderboard([row], num_resamples=400, aggregate="none", modality="image")
    assert board.test_size == "120 test images of 60 patients"
    assert board.rows[0].test["balanced_accuracy"].value == pytest.approx(
        balanced_accuracy_score(one.y_true_N, one.y_pred_N)
    )
    assert np.sum(board.rows[0].confusion_CC) == 120
    assert "on 120 test images of 60 patients" in answer_sentences(board)[0]
    assert "on 120 test images of 60 patients" in leaderboard_markdown(board)
    frame = leaderboard_frame(board)
    assert (frame["n_test_patients"][0], frame["n_test_samples"][0]) == (60, 120)
    assert tracked_rows(board, [])[0].settings["n_test_samples"] == "120"
    volumes = build_leaderboard([row], num_resamples=400, aggregate="none")
    assert volumes.test_size == "120 test volumes of 60 patients"


def test_samples_of_other_labels_or_lost_samples_are_refused() -> None:
    one = made()
    with pytest.raises(ValueError, match="different labels"):
        build_leaderboard([RowPredictions("e", "p", {0: one}, {0: one})], num_resamples=400)
    kept = Predictions(one.sample_id_N, one.sample_id_N, one.y_true_N, one.scores_NC, CLASSES).per_patient()
    with pytest.raises(ValueError, match="means over patients"):
        build_leaderboard([RowPredictions("e", "p", {0: kept}, {0: kept})], num_resamples=400, aggregate="none")
