"""Probes of several labels: each member as if alone, and against a plain torch loop and scikit-learn."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from vitreous.core.errors import SampleError
from vitreous.core.label_sets import encode_label_sets, memberships
from vitreous.core.streams import numpy_stream
from vitreous.recipes.balanced_sampling import draw_balanced
from vitreous.recipes.class_weights import positive_weights
from vitreous.recipes.feature_set import FeatureSet, shuffled_labels
from vitreous.recipes.floors import fit_majority
from vitreous.recipes.grid_losses import LossSettings
from vitreous.recipes.patient_scores import PatientScorer
from vitreous.recipes.probe_grid import ProbeMember, ProbeSettings, fit_probe_grid
from vitreous.recipes.references import fit_knn_sweep, fit_logistic_sweep

L = 3


def rows(prefix: str, patients: int, seed: int) -> FeatureSet:
    """Two rows a patient; each label is a direction of the features."""
    rng = np.random.default_rng(seed)
    has = rng.random((patients, L)) < [0.5, 0.35, 0.25]
    has[0], has[1] = True, False
    x = rng.normal(size=(2 * patients, 6)) + np.repeat(has, 2, axis=0) @ rng.normal(size=(L, 6)) * 0.8
    names = np.repeat([f"{prefix}{n:02d}" for n in range(patients)], 2)
    y = np.repeat(encode_label_sets(has), 2)
    return FeatureSet(x.astype(np.float32), y, names, np.full(2 * patients, 0.5), "mean_probability", "multi_label")


TRAIN, VAL = rows("t", 30, 0), rows("v", 20, 1)
SETTINGS = ProbeSettings(epochs=6, batch_size=16, warmup_epochs=1, patience=None)
LOSSES = [
    LossSettings(label_smoothing=0.1),
    LossSettings("focal", gamma=2.0),
    LossSettings("asymmetric", gamma_positive=0.5),
]
MEMBERS = [
    ProbeMember(1e-2, 0.0, 0.0, 0),
    ProbeMember(3e-2, 1e-2, 0.2, 1, "balanced"),
    ProbeMember(1e-2, 0.0, 0.1, 0, (1.0, 5.0, 1.0), hidden=(8,), batch_norm=True),
    ProbeMember(1e-2, 1e-3, 0.0, 1, hidden=(8,), batch_norm=True),
]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
@pytest.mark.parametrize("sampler", ["natural", "balanced"])
def test_a_member_is_as_if_alone(loss: LossSettings, sampler) -> None:
    settings = replace(SETTINGS, loss=loss, sampler=sampler)
    together = fit_probe_grid(TRAIN, VAL, MEMBERS, settings, num_classes=L, dtype=torch.float64)
    for member, one in zip(MEMBERS, together):
        alone = fit_probe_grid(TRAIN, VAL, [member], settings, num_classes=L, dtype=torch.float64)[0]
        assert alone.best_epoch == one.best_epoch
        for name, tensor in alone.tensors.items():
            np.testing.assert_allclose(one.tensors[name], tensor, atol=1e-8, err_msg=name)


def test_a_linear_member_is_a_plain_torch_loop() -> None:
    member = ProbeMember(2e-2, 0.0, 0.0, 3, (1.0, 4.0, 2.0))
    settings = replace(SETTINGS, warmup_epochs=0)
    found = fit_probe_grid(TRAIN, VAL, [member], settings, num_classes=L, dtype=torch.float64)[0]
    mean, std = TRAIN.features_ND.astype(float).mean(0), TRAIN.features_ND.astype(float).std(0)
    x = torch.from_numpy((TRAIN.features_ND - mean) / std)
    x_val = torch.from_numpy((VAL.features_ND - mean) / std)
    targets = torch.from_numpy(memberships(TRAIN.y_N, L, "multi_label")).double()
    head = nn.Linear(6, L).double()
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(numpy_stream(3, "probe", "init", 0).normal(0, 0.01, (L, 6))))
        head.bias.zero_()
    criterion = nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 4.0, 2.0]))
    optimizer = torch.optim.AdamW(head.parameters(), lr=2e-2, weight_decay=0.0)
    steps, t, best = 4, 0, (-1.0, 0, None)
    has_val = memberships(VAL.y_N[::2], L, "multi_label")
    for epoch in range(1, 7):
        order = numpy_stream(3, "probe", "order", epoch).permutation(60)
        for chunk in (order[:16], order[16:32], order[32:48], order[48:]):
            optimizer.param_groups[0]["lr"] = 2e-2 * (1 + np.cos(np.pi * t / (6 * steps))) / 2
            optimizer.zero_grad()
            criterion(head(x[chunk]), targets[chunk]).backward()
            optimizer.step()
            t += 1
        probs = torch.sigmoid(head(x_val)).detach().numpy().reshape(-1, 2, L).mean(1)
        score = np.mean([average_precision_score(has_val[:, c], probs[:, c]) for c in range(L)])
        if score > best[0] + 1e-12:
            best = (score, epoch, {name: value.detach().numpy().copy() for name, value in head.named_parameters()})
        decided = [balanced_accuracy_score(has_val[:, c], probs[:, c] >= 0.5) for c in range(L)]
        assert found.history[epoch - 1]["val_map"] == pytest.approx(score, abs=1e-10)
        assert found.history[epoch - 1]["val_balanced_accuracy"] == pytest.approx(np.mean(decided), abs=1e-10)
    assert found.best_epoch == best[1]
    assert found.val_score == pytest.approx(best[0], abs=1e-10)
    np.testing.assert_allclose(found.tensors["layers.0.weight"], best[2]["weight"], atol=1e-8)
    np.testing.assert_allclose(found.tensors["layers.0.bias"], best[2]["bias"], atol=1e-8)


def test_logistic_regression_is_scikit_learns_per_label() -> None:
    found = fit_logistic_sweep(TRAIN, VAL, [0.1], num_classes=L, class_weights="balanced")[0]
    has = memberships(TRAIN.y_N, L, "multi_label")
    mean, std = TRAIN.features_ND.astype(float).mean(0), TRAIN.features_ND.astype(float).std(0)
    for c in range(L):
        positive = (~has[:, c]).sum() / has[:, c].sum()
        model = LogisticRegression(C=0.1, max_iter=1000).fit(
            (TRAIN.features_ND - mean) / std, has[:, c], sample_weight=np.where(has[:, c], positive, 1.0) * 0.5
        )
        expected = model.decision_function((VAL.features_ND - mean) / std)
        np.testing.assert_allclose(found.predict_logits(VAL.features_ND)[:, c], expected, atol=1e-4)


def test_neighbours_vote_on_each_label() -> None:
    found = fit_knn_sweep(TRAIN, VAL, [5], num_classes=L, metric="euclidean")[0]
    has = memberships(TRAIN.y_N, L, "multi_label").astype(int)
    mean, std = TRAIN.features_ND.astype(float).mean(0), TRAIN.features_ND.astype(float).std(0)
    model = KNeighborsClassifier(5).fit((TRAIN.features_ND - mean) / std, has)
    share = np.stack([part[:, 1] for part in model.predict_proba((VAL.features_ND - mean) / std)], axis=1)
    expected = np.log((5 * share + 0.5) / (5 * (1 - share) + 0.5))
    np.testing.assert_allclose(found.predict_logits(VAL.features_ND), expected, atol=1e-6)


def test_floors_know_prevalence_and_whole_sets_change_places() -> None:
    floor = fit_majority(TRAIN, VAL, num_classes=L)
    has = memberships(TRAIN.y_N[::2], L, "multi_label")
    probs = 1 / (1 + np.exp(-floor.predict_logits(VAL.features_ND)[0]))
    np.testing.assert_allclose(probs, has.mean(axis=0))
    val = memberships(VAL.y_N[::2], L, "multi_label")
    assert floor.val_score == pytest.approx(val.mean())  # of constant scores AP is the prevalence
    shuffled = shuffled_labels(TRAIN, 0)
    assert sorted(shuffled.y_N) == sorted(TRAIN.y_N)
    assert (shuffled.y_N[::2] == shuffled.y_N[1::2]).all()
    assert (shuffled.y_N != TRAIN.y_N).any()


def test_average_precision_of_members_is_scikit_learns_with_ties() -> None:
    scores = np.random.default_rng(0).random((2, L, len(VAL.y_N))).round(1)
    rows_alone = replace(VAL, aggregate="none")
    has = memberships(VAL.y_N, L, "multi_label")
    for k, value in enumerate(PatientScorer(rows_alone, L).mean_precision(scores)):
        expected = np.mean([average_precision_score(has[:, c], scores[k, c]) for c in range(L)])
        assert value == pytest.approx(expected, abs=1e-12)


def test_balanced_drawing_gives_both_sides_of_each_label_their_share() -> None:
    rare = np.zeros((40, 2), bool)
    rare[:2, 0], rare[:20, 1] = True, True
    names = np.array([f"p{n:02d}" for n in range(40)])
    labels = FeatureSet(
        np.zeros((40, 1), np.float32), encode_label_sets(rare), names, np.ones(40), "none", "multi_label"
    )
    rng = np.random.default_rng(0)
    drawn = np.concatenate([draw_balanced(labels, 2, rng) for _ in range(400)])
    # half the draws are for the first label, half of them for rows with it; of the others 2 of 20 + 0 of 20 have it
    assert rare[drawn, 0].mean() == pytest.approx(0.25 + 0.25 * 0.1, abs=0.01)


def test_positive_weights_and_labels_that_cannot_be_learned() -> None:
    has = memberships(TRAIN.y_N[::2], L, "multi_label")
    expected = (len(has) - has.sum(axis=0)) / has.sum(axis=0)
    np.testing.assert_allclose(positive_weights("balanced", has), expected)
    with pytest.raises(SampleError, match="nobody or everybody has the label 1"):
        positive_weights("balanced", np.array([[True, True], [False, True]]))
    everybody = replace(VAL, y_N=VAL.y_N | 2)
    with pytest.raises(SampleError, match="val: nobody or everybody has the label 1"):
        fit_probe_grid(TRAIN, everybody, MEMBERS[:1], SETTINGS, num_classes=L)
