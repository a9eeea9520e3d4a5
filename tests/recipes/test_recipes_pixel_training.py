"""The engine against a bare PyTorch loop, and each of its promises by itself.

Axes: N row, C class.
"""

import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pixel_training_cases import NUM_CLASSES, STAGE, TWO_STAGES, fit, make_model, make_set, result_bytes
from rich.console import Console

from vitreous.core.errors import ConfigError, RunError, SampleError, StudyMismatchError
from vitreous.core.streams import numpy_stream
from vitreous.inputs.augmentation import AugmentSettings
from vitreous.recipes import pixel_stage
from vitreous.recipes.pixel_settings import FitSettings, PixelSet, StageSettings
from vitreous.recipes.pixel_training import predict_pixels
from vitreous.recipes.trainable import set_trainable

DOUBLE: dict[str, Any] = {"dtype": torch.float64, "dropout": 0.0}


def bare_loop(settings: FitSettings, stage: StageSettings, train: PixelSet) -> tuple[torch.nn.Module, list[float]]:
    """The same training written down plainly: torch's losses, AdamW, scheduler and clipping. One pass, no chance."""
    model = make_model(**DOUBLE)
    set_trainable(model, stage.unfreeze)  # type: ignore[arg-type]
    x_N = torch.stack([train.read(row) for row in range(len(train))]).double()
    counts_C = np.bincount(train.y_N[np.unique(train.patient_id_N, return_index=True)[1]])
    class_weight_C = counts_C.sum() / NUM_CLASSES / counts_C if settings.class_weights == "balanced" else np.ones(3)
    weight_N = torch.from_numpy(train.weight_N * class_weight_C[train.y_N])
    y_N = torch.from_numpy(train.y_N)
    head, encoder = model.head.parameters(), model.encoder.parameters()
    with_decay: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.encoder.named_parameters():
        if parameter.requires_grad:
            with_decay[parameter.ndim > 1 and "pos_embed" not in name].append(parameter)
    del encoder
    weight, bias = head
    optimizer = torch.optim.AdamW(
        [
            {"params": with_decay[True], "lr": stage.lr_encoder, "weight_decay": settings.weight_decay},
            {"params": with_decay[False], "lr": stage.lr_encoder, "weight_decay": 0.0},
            {"params": [weight], "lr": stage.lr_head, "weight_decay": settings.weight_decay},
            {"params": [bias], "lr": stage.lr_head, "weight_decay": 0.0},
        ]
    )
    size = stage.batch_size * settings.accumulate
    steps = math.ceil(len(train) / size)
    warmup = int(settings.warmup_epochs) * steps

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if settings.schedule == "constant":
            return 1.0
        return (1 + math.cos(math.pi * (step - warmup) / (stage.epochs * steps - warmup))) / 2

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    model.train()
    losses = []
    for epoch in range(stage.epochs):
        order = numpy_stream(0, "pixel order", 0, epoch).permutation(len(train))
        total = 0.0
        for start in range(0, len(train), size):
            rows = torch.from_numpy(order[start : start + size])
            loss_B = torch.nn.functional.cross_entropy(
                model(x_N[rows]), y_N[rows], reduction="none", label_smoothing=settings.label_smoothing
            )
            total += (loss_B * weight_N[rows]).sum().item()
            optimizer.zero_grad()
            ((loss_B * weight_N[rows]).sum() / weight_N[rows].sum()).backward()
            if settings.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
            optimizer.step()
            scheduler.step()
        losses.append(total / weight_N.sum().item())
    return model, losses


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        (FitSettings(warmup_epochs=1, clip_norm=None), {}),
        (FitSettings(warmup_epochs=0, clip_norm=0.05, accumulate=2, schedule="constant"), {"batch_size": 4}),
        (FitSettings(warmup_epochs=1, class_weights="balanced", label_smoothing=0.1), {"unfreeze": "all"}),
        (FitSettings(warmup_epochs=0, weight_decay=0.5, accumulate=3), {"unfreeze": 0, "batch_size": 5}),
    ],
    ids=["warm-up", "accumulate and clip", "weights and smoothing", "head alone"],
)
def test_it_trains_as_a_bare_loop_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: FitSettings, changes: dict[str, Any]
) -> None:
    train = make_set("train", 17)
    stage = replace(STAGE, **changes)
    # the last epoch's weights are compared, so that the last epoch must be the best
    scores = iter([0.1, 0.2, 0.3])
    monkeypatch.setattr(pixel_stage, "score_logits", lambda *_: next(scores))
    model, fitted = fit(tmp_path, settings, stage, model=make_model(**DOUBLE), train=train)
    expected, losses = bare_loop(settings, stage, train)
    assert [row["train_loss"] for row in fitted.history] == pytest.approx(losses, rel=1e-9)
    moved = 0
    first = make_model(**DOUBLE).state_dict()
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=1e-9, atol=1e-12, msg=name)
        moved += not torch.equal(first[name], tensor)
    assert moved >= 2


def test_what_is_frozen_does_not_move(tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in make_model().named_parameters()}
    for unfreeze in (0, 1, "all"):
        model, _ = fit(tmp_path / str(unfreeze), None, replace(STAGE, unfreeze=unfreeze))
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


def test_a_stage_begins_with_the_best_weights_and_the_best_of_all_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = FitSettings(prefix_views=0)
    for name, scores, best in (("late", [0.5, 0.4, 0.3, 0.6], (2, 2)), ("early", [0.5, 0.5, 0.3, 0.5], (1, 1))):
        given = iter(scores)
        monkeypatch.setattr(pixel_stage, "score_logits", lambda *_, given=given: next(given))
        model, fitted = fit(tmp_path / name, settings, *TWO_STAGES)
        assert (fitted.stage, fitted.best_epoch) == best
        assert fitted.best_score == max(scores)
        assert [(row["stage"], row["epoch"]) for row in fitted.history] == [(1, 1), (1, 2), (2, 1), (2, 2)]
        assert fitted.num_epochs == 4
        if name == "late":
            continue
        again = iter([0.5, 0.1])
        monkeypatch.setattr(pixel_stage, "score_logits", lambda *_, given=again: next(given))
        only, _ = fit(tmp_path / "only", settings, TWO_STAGES[0])
        for key, tensor in model.state_dict().items():
            assert torch.equal(tensor, only.state_dict()[key]), key


def test_the_model_holds_what_was_validated(tmp_path: Path) -> None:
    for ema in (None, 0.5):
        model, fitted = fit(tmp_path / str(ema), FitSettings(ema=ema), replace(STAGE, epochs=4))
        val = make_set("val")
        logits_NC = predict_pixels(model, val, batch_size=STAGE.batch_size, device="cpu", precision="fp32")
        assert logits_NC.dtype == np.float64
        assert pixel_stage.score_logits(logits_NC, val, "balanced_accuracy") == fitted.best_score
        assert fitted.best_score == max(row["val_balanced_accuracy"] for row in fitted.history)
        assert not model.training
        row = fitted.history[fitted.best_epoch - 1]
        patients = np.unique(val.patient_id_N)
        loss_N = torch.nn.functional.cross_entropy(
            torch.from_numpy(logits_NC), torch.from_numpy(val.y_N), reduction="none"
        ).numpy()
        per_patient = [loss_N[val.patient_id_N == patient].mean() for patient in patients]
        assert row["val_loss"] == pytest.approx(np.mean(per_patient), rel=1e-6)


def test_it_learns(tmp_path: Path) -> None:
    stage = replace(STAGE, epochs=14, unfreeze="all", lr_encoder=3e-3)
    _, fitted = fit(tmp_path, None, stage, train=make_set("train", 60))
    assert fitted.best_score >= 0.8


def test_every_setting_changes_the_outcome(tmp_path: Path) -> None:
    settings = [
        FitSettings(),
        FitSettings(loss="focal"),
        FitSettings(loss="focal", focal_gamma=1.0),
        FitSettings(loss="ordinal"),
        FitSettings(loss="ordinal", ordinal_weight=2.0),
        FitSettings(label_smoothing=0.1),
        FitSettings(class_weights=(1.0, 2.0, 3.0)),
        FitSettings(sampler="balanced"),
        FitSettings(layer_decay=0.5),
        FitSettings(weight_decay=0.5),
        FitSettings(schedule="constant"),
        FitSettings(warmup_epochs=1),
        FitSettings(accumulate=2),
        FitSettings(clip_norm=0.01),
        FitSettings(ema=0.9),
        FitSettings(cutmix=0.5),
    ]
    stage = replace(STAGE, epochs=2)
    outcomes = [result_bytes(*fit(tmp_path / str(index), one, stage)) for index, one in enumerate(settings)]
    assert len(set(outcomes)) == len(settings)


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "auroc"])
def test_patience_on_any_metric(tmp_path: Path, metric: str) -> None:
    stage = replace(STAGE, epochs=12, patience=2, lr_head=1e-12, lr_encoder=1e-12)
    _, fitted = fit(tmp_path, FitSettings(min_delta=0.5), stage, metric=metric)
    assert fitted.num_epochs == 3, "nothing can be learnt, so the second epoch without a rise is the last"
    assert f"val_{metric}" in fitted.history[0]


def test_learning_rates_are_told(tmp_path: Path) -> None:
    stage = replace(STAGE, epochs=4)
    _, fitted = fit(tmp_path, FitSettings(warmup_epochs=2, schedule="constant"), stage)
    assert [row["lr_head"] / stage.lr_head for row in fitted.history] == pytest.approx([0.5, 1, 1, 1])
    assert [row["lr_encoder"] / stage.lr_encoder for row in fitted.history] == pytest.approx([0.5, 1, 1, 1])
    _, fitted = fit(tmp_path / "head", FitSettings(warmup_epochs="auto"), replace(stage, unfreeze=0))
    assert {row["lr_encoder"] for row in fitted.history} == {0.0}


def test_workers_threads_and_the_callers_chance_change_nothing(tmp_path: Path) -> None:
    settings = FitSettings(augment=AugmentSettings(flip=0.5, noise=0.1), mixup=0.4, cutmix=0.4)
    torch.manual_seed(1)
    expected = result_bytes(*fit(tmp_path / "a", settings))
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    assert result_bytes(*fit(tmp_path / "b", settings, workers=2)) == expected
    assert torch.equal(torch.random.get_rng_state(), before)
    assert result_bytes(*fit(tmp_path / "c", settings, seed=1)) != expected
    assert result_bytes(*fit(tmp_path / "d", replace(settings, augment=None))) != expected
    assert result_bytes(*fit(tmp_path / "e", replace(settings, mixup=0.0))) != expected


def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    stage = replace(STAGE, unfreeze="all")
    plain, _ = fit(tmp_path / "plain", None, stage, model=make_model(dtype=torch.float64))
    model = make_model(dtype=torch.float64, gradient_checkpointing=True)
    saving, _ = fit(tmp_path / "saving", None, stage, model=model)
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(saving.state_dict()[name], tensor, rtol=1e-10, atol=1e-12, msg=name)


def test_bf16(tmp_path: Path) -> None:
    _, fitted = fit(tmp_path / "bf16", None, replace(STAGE, unfreeze="all"), precision="bf16")
    _, exact = fit(tmp_path / "fp32", None, replace(STAGE, unfreeze="all"))
    for row, other in zip(fitted.history, exact.history, strict=True):
        assert row["train_loss"] == pytest.approx(other["train_loss"], rel=0.02)
        assert row["train_loss"] != other["train_loss"]


def test_it_leaves_one_file_and_prints_only_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    fit(tmp_path / "state", None, *TWO_STAGES)
    assert [path.name for path in tmp_path.rglob("*")] == ["state", "training.pt"]
    out, err = capfd.readouterr()
    assert out == ""
    lines = [line.split(":")[0] for line in err.splitlines()]
    assert sorted(set(lines)) == [
        "Computing the frozen blocks, stage 1 of 2", "Training, stage 1 of 2", "Training, stage 2 of 2",
    ]  # fmt: skip


def test_progress_goes_to_the_console_given(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    console = Console(file=io.StringIO())
    fit(tmp_path, None, STAGE, console=console)
    assert "Training: done" in console.file.getvalue()  # type: ignore[attr-defined]
    assert capfd.readouterr() == ("", "")


def test_each_epoch_is_told_and_may_end_the_training(tmp_path: Path) -> None:
    told: list[tuple[int, float]] = []

    def prune(epoch: int, score: float) -> None:
        told.append((epoch, score))
        if epoch == 3:
            raise LookupError

    with pytest.raises(LookupError):
        fit(tmp_path, None, *TWO_STAGES, on_epoch=prune)
    assert [epoch for epoch, _ in told] == [1, 2, 3]
    again: list[tuple[int, float]] = []
    model, fitted = fit(tmp_path, None, *TWO_STAGES, on_epoch=lambda *epoch: again.append(epoch))
    assert again[:3] == told, "those before are told again"
    assert [score for _, score in again] == [row["val_balanced_accuracy"] for row in fitted.history]
    assert result_bytes(model, fitted) == result_bytes(*fit(tmp_path / "whole", None, *TWO_STAGES))


def test_a_finished_training_answers_again_without_training(tmp_path: Path) -> None:
    expected = result_bytes(*fit(tmp_path, None, *TWO_STAGES))

    def unread(row: int) -> torch.Tensor:
        raise AssertionError("read")

    again = fit(tmp_path, None, *TWO_STAGES, train=replace(make_set("train"), read=unread))
    assert result_bytes(*again) == expected


def test_another_training_in_the_folder_is_refused(tmp_path: Path) -> None:
    fit(tmp_path)
    with pytest.raises(StudyMismatchError, match="remove"):
        fit(tmp_path, FitSettings(weight_decay=0.1))
    with pytest.raises(StudyMismatchError):
        fit(tmp_path, seed=1)
    with pytest.raises(StudyMismatchError):
        fit(tmp_path, train=replace(make_set("train"), aggregate="none"))


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    fit(tmp_path)
    path = tmp_path / "training.pt"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(RunError, match=r"training\.pt"):
        fit(tmp_path)


def test_a_state_holds_no_code(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "harm",))

    torch.save({"schema_version": 1, "x": Harmful()}, tmp_path / "training.pt")
    with pytest.raises(RunError, match="cannot be read"):
        fit(tmp_path)
    assert not (tmp_path / "harm").exists()


def test_divergence_says_where_and_what_to_lower(tmp_path: Path) -> None:
    train = make_set("train")

    def read(row: int) -> torch.Tensor:
        return train.read(row) * (math.inf if row == 5 else 1)

    with pytest.raises(RunError, match=r"epoch 1, batch \d of 3.*lr_head \(0\.01\)"):
        fit(tmp_path, FitSettings(prefix_views=0), train=replace(train, read=read))
    val = make_set("val")
    with pytest.raises(RunError, match="NaN or infinite"):
        fit(tmp_path / "val", FitSettings(), val=replace(val, read=lambda row: val.read(row) * math.nan))


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("can't allocate memory")]
)
def test_out_of_memory_names_what_to_lower(tmp_path: Path, error: Exception) -> None:
    def read(row: int) -> torch.Tensor:
        raise error

    train = replace(make_set("train"), read=read)
    with pytest.raises(RunError, match=r"batch_size \(now 8\).*gradient_checkpointing.*bf16.*1x16x16"):
        fit(tmp_path, train=train)


def test_other_errors_pass(tmp_path: Path) -> None:
    def read(row: int) -> torch.Tensor:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        fit(tmp_path, train=replace(make_set("train"), read=read))


def test_wrong_input_is_refused(tmp_path: Path) -> None:
    val = make_set("val")
    with pytest.raises(SampleError, match="labels"):
        fit(tmp_path, val=replace(val, y_N=val.y_N + 1))
    with pytest.raises(SampleError, match="no participant of class"):
        fit(tmp_path, num_classes=4)
    with pytest.raises(SampleError, match="in train and in val"):
        fit(tmp_path, val=make_set("train"))
    with pytest.raises(ConfigError, match="warmup_epochs"):
        fit(tmp_path, FitSettings(warmup_epochs=3))
    with pytest.raises(ConfigError, match="prefix_views"):
        FitSettings(prefix_views=2, mixup=0.2)
    with pytest.raises(ValueError, match="length"):
        replace(val, weight_N=val.weight_N[:-1])
