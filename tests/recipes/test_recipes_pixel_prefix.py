"""Training behind a kept frozen prefix against the plain path, which runs the frozen blocks in every step."""

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pixel_training_cases import STAGE, TWO_STAGES, fit, make_model, make_set, result_bytes

from vitreous.core.errors import RunError
from vitreous.inputs.augmentation import AugmentSettings
from vitreous.recipes import prefix_cache
from vitreous.recipes.lora import add_adapters
from vitreous.recipes.pixel_model import PixelModel
from vitreous.recipes.pixel_settings import FitSettings, FittedPixels, StageSettings
from vitreous.recipes.prefix_cache import has_room, keep_prefix, prefix_bytes
from vitreous.recipes.trainable import set_trainable

AUGMENT = AugmentSettings(flip=0.5, rotate=20.0, noise=0.2)
STAGED = (
    *TWO_STAGES,
    StageSettings(epochs=2, unfreeze=1, lr_head=1e-3, lr_encoder=1e-3, batch_size=8, patience=None),
)


def make_lora() -> PixelModel:
    model = make_model(dtype=torch.float64)
    add_adapters(
        model, rank=2, alpha=4.0, dropout=0.1, targets=("qkv",), layers=(1, 2), rslora=False, dora=False, seed=0
    )
    return model.double()


def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))


@pytest.mark.parametrize(
    ("stages", "is_lora"),
    [((STAGE,), False), (STAGED, False), ((replace(STAGE, unfreeze="adapters", epochs=4),), True)],
    ids=["partial", "staged", "lora"],
)
def test_in_float64_it_is_the_plain_path(tmp_path: Path, stages: tuple[StageSettings, ...], is_lora: bool) -> None:
    runs: list[tuple[PixelModel, FittedPixels]] = []
    for views in ("auto", 0):
        model = make_lora() if is_lora else make_model(dtype=torch.float64)
        runs.append(fit(tmp_path / str(views), FitSettings(prefix_views=views), *stages, model=model))  # type: ignore[arg-type]
    assert_same(*runs, rtol=0, atol=1e-8)


def test_in_float32_it_is_the_plain_path_within_rounding(tmp_path: Path) -> None:
    runs = [fit(tmp_path / str(views), FitSettings(prefix_views=views), STAGE) for views in ("auto", 0)]  # type: ignore[arg-type]
    assert_same(*runs, rtol=1e-3, atol=1e-5)


def test_kept_views_are_the_plain_paths_views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = FitSettings(augment=AUGMENT, prefix_views=2)
    stage = replace(STAGE, epochs=5)
    kept = fit(tmp_path / "kept", settings, stage, model=make_model(dtype=torch.float64))
    assert kept[1].findings == ()
    no_room(monkeypatch)
    plain = fit(tmp_path / "plain", settings, stage, model=make_model(dtype=torch.float64))
    assert [finding.code for finding in plain[1].findings] == ["prefix_not_kept"]
    assert_same(kept, plain, rtol=0, atol=1e-8)
    other = fit(tmp_path / "3", replace(settings, prefix_views=3), stage, model=make_model(dtype=torch.float64))
    assert other[1].history[0] == plain[1].history[0]
    assert other[1].history[2] != plain[1].history[2], "the third epoch sees a third view"


def test_each_row_and_view_is_encoded_once(tmp_path: Path) -> None:
    reads: list[int] = []
    train = make_set("train")

    def read(row: int) -> torch.Tensor:
        reads.append(row)
        return train.read(row)

    counted = replace(train, read=read)
    for settings, times in (
        (FitSettings(), 1),
        (FitSettings(augment=AUGMENT, prefix_views=2), 2),
        (FitSettings(prefix_views=4), 1),  # without augmentation all views are one
        (FitSettings(augment=AUGMENT), STAGE.epochs),
        (FitSettings(mixup=0.2), STAGE.epochs),
        (FitSettings(prefix_views=0), STAGE.epochs),
    ):
        reads.clear()
        fit(tmp_path / f"{times}{settings.prefix_views}{settings.mixup}", settings, train=counted)
        assert sorted(reads) == sorted(list(range(len(train))) * times), settings


def test_prefix_bytes_is_the_size_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: dict[str, int] = {}
    real = os.posix_fallocate

    def allocate(handle: int, offset: int, size: int) -> None:
        sizes[os.readlink(f"/proc/self/fd/{handle}").split("-")[-1]] = size
        real(handle, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", allocate)
    train, val = make_set("train"), make_set("val")
    model = make_model()
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        fit(tmp_path / precision, FitSettings(augment=AUGMENT, prefix_views=3), model=model, precision=precision)
        assert sizes["train.bin"] == prefix_bytes(model, len(train), 3, dtype)
        assert sizes["val.bin"] == prefix_bytes(model, len(val), 1, dtype) == len(val) * 16 * 16 * dtype.itemsize
    set_trainable(model, "all")
    assert prefix_bytes(model, 10, 1, torch.float32) == 0


def test_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert has_room(tmp_path, 10)
    no_room(monkeypatch)
    assert has_room(tmp_path, 900)
    assert not has_room(tmp_path, 990)


def test_a_file_without_its_note_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "prefix.bin"
    options: dict[str, Any] = {"num_rows": 4, "num_views": 1, "dtype": torch.float32, "after_batch": lambda: None}
    batches = [torch.arange(4.0).reshape(2, 2), torch.arange(4.0, 8.0).reshape(2, 2)]
    with pytest.raises(ValueError, match="2 rows were given"):
        keep_prefix(path, batches[:1], lambda x: x, **options)
    assert path.exists()
    kept = keep_prefix(path, batches, lambda x: x + 1, **options)
    assert torch.equal(kept.hidden, torch.cat(batches) + 1)
    again = keep_prefix(path, [], lambda x: x, **options)
    assert torch.equal(again.hidden, kept.hidden)


def test_bf16_is_kept_in_bf16(tmp_path: Path) -> None:
    kept = fit(tmp_path / "kept", None, STAGE, precision="bf16")
    plain = fit(tmp_path / "plain", FitSettings(prefix_views=0), STAGE, precision="bf16")
    for row, other in zip(kept[1].history, plain[1].history, strict=True):
        assert row["train_loss"] == pytest.approx(other["train_loss"], rel=0.02)


def test_a_broken_row_is_named_behind_the_prefix_too(tmp_path: Path) -> None:
    train = make_set("train")
    with pytest.raises(RunError, match="epoch 1, batch 1"):
        fit(tmp_path, train=replace(train, read=lambda row: train.read(row) * float("nan")))


def test_workers_change_nothing(tmp_path: Path) -> None:
    settings = FitSettings(augment=AUGMENT, prefix_views=2)
    assert result_bytes(*fit(tmp_path / "0", settings)) == result_bytes(*fit(tmp_path / "2", settings, workers=2))


def assert_same(
    one: tuple[PixelModel, FittedPixels], other: tuple[PixelModel, FittedPixels], *, rtol: float, atol: float
) -> None:
    assert (one[1].best_epoch, one[1].stage) == (other[1].best_epoch, other[1].stage)
    for row, expected in zip(one[1].history, other[1].history, strict=True):
        assert row == pytest.approx(expected, rel=rtol, abs=atol)
    for name, tensor in one[0].state_dict().items():
        torch.testing.assert_close(tensor, other[0].state_dict()[name], rtol=rtol, atol=atol, msg=name)
