"""The grid as its callers meet it: bytes, tensors from a file, divergence, memory, bad settings.

Oracles: safetensors on disk, torch modules in evaluation mode, the profiler's allocations.
"""

import gc

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from vitreous.core.errors import UserError
from vitreous.core.undefined import Undefined
from vitreous.recipes.probe_cost import GridSize, num_parameters, split_members
from vitreous.recipes.probe_grid import (
    FeatureSet,
    ProbeMember,
    ProbeSettings,
    estimate_probe_flops,
    estimate_probe_memory,
    fit_probe_grid,
    probe_logits,
)

QUICK = ProbeSettings(epochs=5, batch_size=16, warmup_epochs=1, patience=None)
MIXED = [
    ProbeMember(1e-2, seed=0),
    ProbeMember(1e-3, seed=1, hidden=(8,), dropout=0.2, batch_norm=True),
    ProbeMember(1e-2, 0.1, dropout=0.3, seed=1, class_weights="balanced"),
    ProbeMember(1e-3, seed=0, hidden=(8,)),
]


def test_probes_learn_what_is_there_and_nothing_else(make_rows):
    train, val = make_rows("train", 90, signal=1.0), make_rows("val", 60, signal=1.0)
    settings = ProbeSettings(epochs=20, batch_size=32, warmup_epochs=2)
    members = [ProbeMember(1e-2), ProbeMember(1e-2, hidden=(16,), batch_norm=True, dropout=0.2)]
    for probe in fit_probe_grid(train, val, members, settings, num_classes=3):
        assert probe.val_score > 0.8
        assert probe.history[-1]["train_loss"] < probe.history[0]["train_loss"]
        assert probe.history[probe.best_epoch - 1]["train_balanced_accuracy"] > 0.6
    no_signal = [make_rows(split, 90, signal=0.0) for split in ("train", "val")]
    for probe in fit_probe_grid(*no_signal, members, QUICK, num_classes=3):
        assert probe.val_score < 0.55


def test_the_same_call_gives_the_same_bytes(make_rows):
    train, val = make_rows("train", 40), make_rows("val", 20)
    first, second = (fit_probe_grid(train, val, MIXED, QUICK, num_classes=3) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert one.history == other.history
        assert {name: values.tobytes() for name, values in one.tensors.items()} == {
            name: values.tobytes() for name, values in other.tensors.items()
        }


def test_logits_come_from_the_file_alone(make_rows, tmp_path):
    train, val = make_rows("train", 40), make_rows("val", 20)
    for position, probe in enumerate(fit_probe_grid(train, val, MIXED, QUICK, num_classes=3)):
        save_file(probe.tensors, tmp_path / f"{position}.safetensors")
        stored = load_file(tmp_path / f"{position}.safetensors")
        logits = probe_logits(stored, val.features_ND)
        assert logits.dtype == np.float64
        assert logits.tobytes() == probe.predict_logits(val.features_ND).tobytes()

        x = torch.from_numpy((val.features_ND - stored["standardiser.mean"]) / stored["standardiser.std"])
        layers = sum(name.startswith("layers.") for name in stored) // 2
        for layer in range(layers):
            weight, bias = (torch.from_numpy(stored[f"layers.{layer}.{part}"]).double() for part in ("weight", "bias"))
            x = torch.nn.functional.linear(x, weight, bias)
            if f"norms.{layer}.weight" in stored:
                norm = torch.nn.BatchNorm1d(len(bias)).double().eval()
                state = {
                    part: torch.from_numpy(stored[f"norms.{layer}.{part}"])
                    for part in ("weight", "bias", "running_mean", "running_var")
                }
                norm.load_state_dict(state, strict=False)
                x = norm(x)
            x = x.relu() if layer < layers - 1 else x
        np.testing.assert_allclose(logits, x.detach().numpy(), atol=1e-12)


def test_logits_of_other_tensors_or_features_are_refused(make_rows):
    train, val = make_rows("train", 12), make_rows("val", 6)
    (probe,) = fit_probe_grid(train, val, [ProbeMember(1e-2)], QUICK, num_classes=3)
    with pytest.raises(ValueError, match=r"no probe: \['blocks.0.weight'\]"):
        probe_logits({"blocks.0.weight": np.zeros(3)}, val.features_ND)
    with pytest.raises(ValueError, match=r"shape \(rows, 12\), as in training"):
        probe.predict_logits(val.features_ND[:, :5])
    with pytest.raises(ValueError, match="NaN or infinite"):
        probe.predict_logits(np.full((2, 12), np.nan))


def test_diverged_members_are_marked_and_do_not_touch_the_others(make_rows):
    train, val = make_rows("train", 40), make_rows("val", 20)
    sound = ProbeMember(1e-2)
    (alone,) = fit_probe_grid(train, val, [sound], QUICK, num_classes=3, dtype=torch.float64)
    both = fit_probe_grid(train, val, [ProbeMember(1e308), sound], QUICK, num_classes=3, dtype=torch.float64)
    assert both[0].diverged_epoch == 1
    assert isinstance(both[0].val_score, Undefined)
    assert both[0].tensors == {}
    assert len(both[0].history) == 1
    with pytest.raises(UserError, match="diverged in epoch 1; lower its learning_rate"):
        both[0].predict_logits(val.features_ND)
    np.testing.assert_allclose(both[1].tensors["layers.0.weight"], alone.tensors["layers.0.weight"], atol=1e-8)
    with pytest.raises(
        UserError, match=r"all 2 members .* down to the learning rate 1e\+307. Lower the learning rates"
    ):
        fit_probe_grid(train, val, [ProbeMember(1e308), ProbeMember(1e307)], QUICK, num_classes=3, dtype=torch.float64)


def test_progress_ends_at_members_times_epochs(make_rows):
    train, val = make_rows("train", 40), make_rows("val", 20)
    told: list[int] = []
    settings = ProbeSettings(epochs=9, batch_size=16, warmup_epochs=1, patience=2)
    members = [*MIXED, ProbeMember(1e38)]
    fitted = fit_probe_grid(train, val, members, settings, num_classes=3, progress=lambda done=1: told.append(done))
    assert min(len(probe.history) for probe in fitted) < 9, "no member stopped early: the test means nothing"
    assert sum(told) == len(members) * 9


def test_parts_bounded_in_memory_train_the_same(make_rows):
    train, val = make_rows("train", 40), make_rows("val", 20)
    members = [ProbeMember(rate, seed=seed) for rate in (1e-3, 1e-2, 1e-1) for seed in (0, 1)]
    small = ProbeSettings(epochs=5, batch_size=16, warmup_epochs=1, patience=None, max_member_bytes=30_000)
    size = GridSize(len(train.y_N), len(val.y_N), 12, 3, 8)
    parts = split_members(members, small, size)
    assert 1 < len(parts) < 6
    assert sorted(position for part in parts for position in part) == list(range(6))
    whole, split = (
        fit_probe_grid(train, val, members, settings, num_classes=3, dtype=torch.float64) for settings in (QUICK, small)
    )
    for one, other in zip(whole, split, strict=True):
        np.testing.assert_allclose(one.tensors["layers.0.weight"], other.tensors["layers.0.weight"], atol=1e-8)
    assert split_members(MIXED, QUICK, size) == [[0, 2], [1], [3]]  # architectures are trained apart


@pytest.mark.parametrize(
    ("hidden", "count", "batch_size"),
    [((), 60, 64), ((), 60, None), ((256, 64), 6, 64), ((256, 64), 6, None)],
)
def test_memory_estimate_bounds_what_is_allocated(hidden, count, batch_size):
    """Oracle: the peak of torch's own allocations, replayed from the profiler's record."""
    rng = np.random.default_rng(0)
    train, val = (
        FeatureSet(
            rng.normal(size=(rows, 256)).astype(np.float32),
            np.arange(rows) % 4,
            np.array([f"{split}{row}" for row in range(rows)]),
            np.ones(rows),
        )
        for split, rows in (("t", 600), ("v", 300))
    )
    members = [
        ProbeMember(rate, dropout=0.1, seed=seed, hidden=hidden, batch_norm=bool(hidden))
        for rate in np.geomspace(1e-4, 1e-2, count // 2)
        for seed in (0, 1)
    ]
    settings = ProbeSettings(epochs=2, batch_size=batch_size, warmup_epochs=0, patience=None)
    gc.collect()
    with torch.profiler.profile(profile_memory=True) as record:
        fit_probe_grid(train, val, members, settings, num_classes=4)
    held = peak = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    estimate = estimate_probe_memory(members, settings, GridSize(600, 300, 256, 4))
    assert peak <= estimate <= 5 * peak


def test_flops_and_parameters_are_counted_by_hand():
    size = GridSize(num_train=100, num_val=10, num_features=8, num_classes=2)
    settings = ProbeSettings(epochs=3, warmup_epochs=0)
    assert estimate_probe_flops([ProbeMember(1e-3)], settings, size) == 3 * (2 * 100 * 16 * 2 + 2 * 10 * 16)
    mlp = ProbeMember(1e-3, hidden=(4,), batch_norm=True)
    assert num_parameters(mlp, 8, 2) == (8 * 4 + 4) + (4 * 2 + 2) + 4 * 4
    assert estimate_probe_flops([mlp], settings, size) == 3 * (2 * 100 * (2 * 32 + 3 * 8) + 2 * 10 * 40)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\)"),
        ({"hidden": (8, 0)}, r"hidden widths must be at least 1; got \(8, 0\)"),
        ({"batch_norm": True}, "batch_norm needs a hidden layer"),
    ],
)
def test_wrong_members_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        ProbeMember(**({"learning_rate": 1e-3} | wrong))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"epochs": 5, "warmup_epochs": 5}, r"warmup_epochs must lie in 0…4"),
        ({"patience": 0}, "patience must be at least 1"),
        ({"min_delta": -0.1}, "min_delta must be at least 0"),
        ({"max_member_bytes": 0}, "max_member_bytes must be positive"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        ProbeSettings(**wrong)


def test_wrong_grids_are_refused(make_rows):
    train, val = make_rows("train", 12), make_rows("val", 6)
    with pytest.raises(ValueError, match="no members"):
        fit_probe_grid(train, val, [], QUICK, num_classes=3)
    with pytest.raises(ValueError, match="1 of 2 members repeat another"):
        fit_probe_grid(train, val, [ProbeMember(1e-2), ProbeMember(1e-2)], QUICK, num_classes=3)
    with pytest.raises(ValueError, match="batches of one row"):
        fit_probe_grid(
            train,
            val,
            [ProbeMember(1e-2, hidden=(4,), batch_norm=True)],
            ProbeSettings(epochs=1, warmup_epochs=0, batch_size=1),
            num_classes=3,
        )
    with pytest.raises(ValueError, match="one number for each of 3 classes"):
        fit_probe_grid(train, val, [ProbeMember(1e-2, class_weights=(1.0, 2.0))], QUICK, num_classes=3)
    with pytest.raises(UserError, match="train: no participant of class 3"):
        fit_probe_grid(train, val, [ProbeMember(1e-2)], QUICK, num_classes=4)


def test_two_classes_and_one_volume_a_patient(make_rows):
    train, val = (make_rows(split, 40, num_classes=2) for split in ("train", "val"))
    first = [np.unique(rows.patient_id_N, return_index=True)[1] for rows in (train, val)]
    train, val = (
        FeatureSet(rows.features_ND[k], rows.y_N[k], rows.patient_id_N[k], np.ones(len(k)))
        for rows, k in zip((train, val), first)
    )
    (probe,) = fit_probe_grid(train, val, [ProbeMember(1e-2)], QUICK, num_classes=2)
    assert probe.predict_logits(val.features_ND).shape == (40, 2)
    assert probe.val_score > 0.7
