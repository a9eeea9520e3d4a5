"""The small parts of a probe: class weights, standardiser, schedule, batches, early stopping, patient scores.

Oracles: scikit-learn's balanced weights, StandardScaler and balanced accuracy; torch's schedulers; loops.
"""

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_class_weight

from vitreous.core.errors import SampleError
from vitreous.recipes.batches import batch_bounds, draw_dropout, draw_initial_layers, draw_order
from vitreous.recipes.class_weights import class_weight_vector
from vitreous.recipes.early_stopping import EarlyStopping
from vitreous.recipes.feature_set import FeatureSet, check_feature_sets, shuffled_labels
from vitreous.recipes.patient_scores import PatientScorer
from vitreous.recipes.schedule import cosine_with_warmup
from vitreous.recipes.standardiser import fit_standardiser


def test_balanced_class_weights_are_those_of_scikit_learn():
    y_P = np.repeat([0, 1, 2, 3], [369, 242, 321, 129])
    expected = compute_class_weight("balanced", classes=np.arange(4), y=y_P)
    np.testing.assert_allclose(class_weight_vector("balanced", y_P, 4), expected)
    assert class_weight_vector("none", y_P, 4).tolist() == [1, 1, 1, 1]
    assert class_weight_vector((1, 2.5, 1, 4), y_P, 4).tolist() == [1, 2.5, 1, 4]


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("auto", r"'none', 'balanced' or 3 numbers; got 'auto'"),
        ((1.0, 2.0), r"one number for each of 3 classes; got \[1.0, 2.0\]"),
        ((1.0, 0.0, 1.0), r"must be positive and finite; got \[1.0, 0.0, 1.0\].*Leave a class out"),
        ((1.0, float("nan"), 1.0), "must be positive and finite"),
    ],
)
def test_wrong_class_weights_are_refused(policy, message):
    with pytest.raises(ValueError, match=message):
        class_weight_vector(policy, np.array([0, 1, 2]), 3)


@pytest.mark.parametrize("policy", ["none", "balanced", (1.0, 1.0, 1.0)])
def test_a_class_without_participants_is_refused(policy):
    with pytest.raises(SampleError, match=r"train: no participant of class 1; .* are \[2, 0, 1\]"):
        class_weight_vector(policy, np.array([0, 0, 2]), 3)
    with pytest.raises(SampleError, match=r"labels must lie in 0…2; got 0…3"):
        class_weight_vector(policy, np.array([0, 1, 2, 3]), 3)


def test_standardiser_is_scikit_learns_with_patient_weights(make_rows):
    rows = make_rows("train", 30)
    ours = fit_standardiser(rows.features_ND, rows.weight_N)
    theirs = StandardScaler().fit(rows.features_ND.astype(np.float64), sample_weight=rows.weight_N)
    np.testing.assert_allclose(ours.mean_D, theirs.mean_)
    np.testing.assert_allclose(ours.std_D, np.sqrt(theirs.var_))
    np.testing.assert_allclose(ours.apply(rows.features_ND), theirs.transform(rows.features_ND.astype(np.float64)))
    with pytest.raises(ValueError, match=r"shape \(rows, 12\), as in training; got \(30, 5\)"):
        ours.apply(np.zeros((30, 5)))


def test_constant_features_are_centred_and_counted():
    features = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    features[:, 1] = 0.3  # its float64 mean is not exactly 0.3
    features[:, 2] = 5000.0 + 1e-3 * features[:, 2]  # spread is float32 rounding
    fitted = fit_standardiser(features, np.linspace(0.1, 1, 50))
    assert fitted.num_constant == 2
    assert fitted.std_D[1] == fitted.std_D[2] == 1.0
    assert np.abs(fitted.apply(features)[:, 1]).max() < 1e-7


def test_schedule_is_torchs_warmup_then_cosine():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / 5, 1.0, total_iters=4)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=15)
    both = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, cosine], milestones=[5])
    for step in range(20):
        ours = cosine_with_warmup(step, num_steps=20, num_warmup_steps=5)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        both.step()


def test_batches_cover_every_row_once_and_never_end_with_one_row():
    for rows in range(1, 40):
        for size in (None, 1, 2, 7, 16, 100):
            bounds = batch_bounds(rows, size)
            assert [row for begin, end in bounds for row in range(begin, end)] == list(range(rows))
            if size not in (None, 1) and rows > 1:
                assert min(end - begin for begin, end in bounds) > 1


def test_streams_are_named_by_seed_epoch_and_step():
    assert sorted(draw_order(3, 1, 50)) == list(range(50))
    assert draw_order(3, 1, 50).tolist() == draw_order(3, 1, 50).tolist()
    drawn = {tuple(draw_order(seed, epoch, 50)) for seed in range(3) for epoch in range(3)}
    assert len(drawn) == 9
    masks = {
        draw_dropout(*name, (4, 5)).tobytes()
        for name in [(0, 1, 0, 0), (1, 1, 0, 0), (0, 2, 0, 0), (0, 1, 1, 0), (0, 1, 0, 1)]
    }
    assert len(masks) == 5


def test_initial_layers_have_the_documented_spread():
    hidden, output = draw_initial_layers(0, [400, 300, 100])
    assert abs(hidden[0]).max() <= 0.05 < abs(hidden[0]).max() * 1.01
    assert output[0].std() == pytest.approx(0.01, rel=0.02)
    assert not output[1].any()


def test_early_stopping_is_a_plain_loop_per_member():
    rng = np.random.default_rng(0)
    score_KE = rng.integers(0, 8, (60, 25)) / 8
    for patience, min_delta in [(1, 0.0), (3, 0.0), (4, 0.2), (None, 0.0)]:
        stopping, active = EarlyStopping(60, patience, min_delta), np.arange(60)
        stopped_at = {}
        for epoch in range(1, 26):
            _, stop = stopping.update(active, epoch, score_KE[active, epoch - 1])
            stopped_at |= dict.fromkeys(active[stop].tolist(), epoch)
            active = active[~stop]
        for member in range(60):
            best, best_epoch, reference, waited, end = -1.0, 0, -1.0, 0, None
            for epoch, score in enumerate(score_KE[member], start=1):
                if score > best:
                    best, best_epoch = score, epoch
                waited = 0 if score > reference + min_delta else waited + 1
                reference = score if waited == 0 else reference
                if patience is not None and waited >= patience:
                    end = epoch
                    break
            assert stopped_at.get(member) == end
            assert stopping.best_epoch_K[member] == best_epoch
            assert stopping.best_score_K[member] == best


def test_patient_score_is_scikit_learns_on_mean_probabilities(make_rows):
    rows = make_rows("val", 31)
    probs_KCN = np.random.default_rng(0).dirichlet(np.ones(3), size=(5, len(rows.y_N))).transpose(0, 2, 1)
    scores = PatientScorer(rows, 3).balanced_accuracy(probs_KCN)
    for probs_CN, score in zip(probs_KCN, scores):
        truth, guess = [], []
        for patient in set(rows.patient_id_N.tolist()):
            own = rows.patient_id_N == patient
            truth.append(rows.y_N[own][0])
            guess.append(probs_CN[:, own].mean(axis=1).argmax())
        assert score == pytest.approx(balanced_accuracy_score(truth, guess), abs=1e-12)


def test_shuffled_labels_move_whole_participants_and_keep_their_counts(make_rows):
    rows = make_rows("train", 60)
    shuffled = shuffled_labels(rows, seed=5)
    _, before_P, _ = rows.per_participant()
    _, after_P, _ = shuffled.per_participant()  # raises if a participant were torn apart
    assert np.bincount(before_P).tolist() == np.bincount(after_P).tolist()
    assert (before_P != after_P).sum() > 10
    assert shuffled.y_N.tolist() == shuffled_labels(rows, seed=5).y_N.tolist()
    assert shuffled.y_N.tolist() != shuffled_labels(rows, seed=6).y_N.tolist()
    assert shuffled.features_ND is rows.features_ND


def changed(rows: FeatureSet, **arrays) -> FeatureSet:
    return FeatureSet(**{name: arrays.get(name, getattr(rows, name)) for name in rows.__dataclass_fields__})


def test_rows_that_fit_are_accepted(make_rows):
    check_feature_sets(make_rows("train", 12), make_rows("val", 6), 3)


def test_bad_rows_are_refused_by_name(make_rows):
    train, val = make_rows("train", 12), make_rows("val", 6)
    rows = len(train.y_N)
    broken = train.features_ND.copy()
    broken[3, 1], broken[4, 0] = np.nan, np.inf
    two_labels = train.y_N.copy()
    twice = next(p for p in train.patient_id_N if (train.patient_id_N == p).sum() > 1)
    two_labels[np.flatnonzero(train.patient_id_N == twice)[0]] = (two_labels[train.patient_id_N == twice][0] + 1) % 3
    empty = FeatureSet(np.zeros((0, 12), np.float32), np.zeros(0, np.int64), np.zeros(0, np.str_), np.zeros(0))
    cases = [
        (changed(train, features_ND=broken), val, f"train: 2 of {rows} rows have NaN or infinite features"),
        (changed(train, y_N=train.y_N + 1), val, r"train: labels must lie in 0…2; got 1…3"),
        (changed(train, y_N=train.y_N - 1), val, r"train: labels must lie in 0…2; got -1…1"),
        (train, changed(val, y_N=val.y_N + 5), r"val: labels must lie in 0…2"),
        (changed(train, y_N=np.zeros_like(train.y_N)), val, "train: no participant of class 1, 2"),
        (
            train,
            changed(val, y_N=np.where(val.y_N == 2, 1, val.y_N)),
            "val: no participant of class 2.*undefined",
        ),
        (train, empty, "val: no rows"),
        (empty, val, "train: no rows"),
        (changed(train, y_N=two_labels), val, "volumes of 1 participants carry different labels"),
        (
            train,
            changed(val, patient_id_N=np.char.replace(val.patient_id_N, "val", "train")),
            "6 participants lie in train and in val",
        ),
    ]
    for bad_train, bad_val, message in cases:
        with pytest.raises(SampleError, match=message):
            check_feature_sets(bad_train, bad_val, 3)


def test_arrays_that_do_not_fit_are_refused(make_rows):
    train, val = make_rows("train", 12), make_rows("val", 6)
    with pytest.raises(ValueError, match="train has 12 features and val 7"):
        check_feature_sets(train, changed(val, features_ND=val.features_ND[:, :7]), 3)
    with pytest.raises(ValueError, match="at least 2 classes; got num_classes=1"):
        check_feature_sets(train, val, 1)
    with pytest.raises(ValueError, match="train: weights must be positive"):
        check_feature_sets(changed(train, weight_N=train.weight_N * 0), val, 3)
    with pytest.raises(ValueError, match=f"features have {len(train.y_N)} rows, but .*'y': 4"):
        changed(train, y_N=train.y_N[:4])
    with pytest.raises(ValueError, match=r"axes \(rows, features\)"):
        changed(train, features_ND=train.features_ND[None])
