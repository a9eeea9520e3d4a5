"""Images of 8 and 16 bits on their way into a network with batch norms; what workers and repeats may not change.

Axes: N row, C channel, D slice, H row of pixels, W column.
"""

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pixel_training_cases import NUM_CLASSES, STAGE, fit

from vitreous.core.input_spec import ImageSpec
from vitreous.encoders.catalog import build_random_encoder
from vitreous.inputs.augmentation import AugmentSettings
from vitreous.inputs.prepare import finish_input
from vitreous.recipes.pixel_inputs import InputLoader, PreparedRows, finish_stacked, stack_inputs
from vitreous.recipes.pixel_model import PixelModel
from vitreous.recipes.pixel_settings import FitSettings, FittedPixels, PixelSet
from vitreous.recipes.pixel_stage import PixelStage
from vitreous.recipes.pixel_training import predict_pixels

SPEC = ImageSpec(size=(32, 32))
AUGMENT = AugmentSettings(flip=0.5, color=0.2, rotate=10.0)


def make_images(split: str, num_rows: int = 22) -> PixelSet:
    """Every third image has 16 bits."""
    rng = np.random.default_rng(len(split))
    y_N = np.arange(num_rows) % NUM_CLASSES
    bright_N = rng.integers(0, 60, (num_rows, 3, 1, 32, 32)) + 60 * y_N[:, None, None, None, None]
    images = [torch.from_numpy(image.astype(np.uint8)) for image in bright_N]
    images = [image.float() / 255 if row % 3 == 0 else image for row, image in enumerate(images)]
    ids = np.array([f"{split}-{row}" for row in range(num_rows)])
    return PixelSet(lambda row: images[row], y_N, ids, np.ones(num_rows), SPEC)


def make_resnet() -> PixelModel:
    encoder = build_random_encoder("timm", architecture={"model": "test_resnet"}, seed=0, spec=SPEC, trainable=True)
    return PixelModel(
        encoder, pooling="mean", coarse_grid=None, num_classes=NUM_CLASSES, head="linear", head_width=1, dropout=0.1,
        seed=0,
    )  # fmt: skip


def fit_images(folder: Path, settings: FitSettings, **changes: Any) -> tuple[PixelModel, FittedPixels]:
    stage = replace(STAGE, unfreeze="all")
    return fit(
        folder, settings, stage, model=make_resnet(), train=make_images("train"), val=make_images("val"), **changes
    )


def outcome(model: PixelModel, fitted: FittedPixels) -> tuple[object, ...]:
    return (fitted, *(tensor.numpy().tobytes() for tensor in model.state_dict().values()))


def test_a_stacked_batch_is_finished_row_by_row() -> None:
    data = make_images("train", 6)
    for rows in ([0, 1, 2, 3], [1, 2, 4], [0, 3]):
        prepared = [data.read(row) for row in rows]
        expected = torch.stack([finish_input(row, SPEC) for row in prepared])
        stacked = stack_inputs(prepared, SPEC)
        assert (stacked.dtype == torch.uint8) == (rows == [1, 2, 4]), "8-bit images travel as they are"
        torch.testing.assert_close(finish_stacked(stacked, SPEC), expected, rtol=0, atol=0)


def test_a_repeat_is_changed_in_another_way() -> None:
    rows = PreparedRows(make_images("train", 4), augment_settings=AUGMENT, seed=0, stage=0)
    first, again, later = rows[1, (0,)], rows[1, (0, 1)], rows[1, (1,)]
    assert torch.equal(first, rows[1, (0,)])
    assert not torch.equal(first, again)
    assert not torch.equal(first, later)
    assert not torch.equal(first, PreparedRows(make_images("train", 4), augment_settings=AUGMENT, seed=1)[1, (0,)])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_gives_each_pass_its_batches(workers: int) -> None:
    data = make_images("train", 9)
    loader = InputLoader(PreparedRows(data, augment_settings=AUGMENT), workers=workers, is_pinned=False)
    threads, chance = torch.get_num_threads(), torch.random.get_rng_state()
    for epoch in range(2):
        batches = [[(row, (epoch,)) for row in rows] for rows in ([3, 1, 2], [0, 8])]
        given = list(loader.load(batches))
        expected = [
            stack_inputs([PreparedRows(data, augment_settings=AUGMENT)[key] for key in b], SPEC) for b in batches
        ]
        for one, other in zip(given, expected, strict=True):
            assert torch.equal(one, other)
    loader.close()
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), chance)


def test_an_error_in_a_worker_arrives() -> None:
    def read(row: int) -> torch.Tensor:
        raise OSError("the row cannot be read")

    loader = InputLoader(PreparedRows(replace(make_images("train"), read=read)), workers=1, is_pinned=False)
    with pytest.raises(OSError, match="cannot be read"):
        next(loader.load([[(0, None)]]))
    loader.close()


def test_prediction_is_the_models_own_row_by_row() -> None:
    model, data = make_resnet().train(), make_images("val")
    logits_NC = predict_pixels(model, data, batch_size=5, device="cpu", precision="fp32")
    assert not model.training
    assert not model.encoder.training
    for row in (0, 1, 21):
        expected_C = model(finish_input(data.read(row), SPEC)[None]).detach().numpy()[0]
        np.testing.assert_allclose(logits_NC[row], expected_C, rtol=1e-4, atol=1e-6)


def test_batch_norms_train_where_they_may_and_nowhere_else(tmp_path: Path) -> None:
    before = {name: buffer.clone() for name, buffer in make_resnet().named_buffers()}
    for name, settings, unfreeze in (("all", FitSettings(), "all"), ("head", FitSettings(prefix_views=0), 0)):
        stage = replace(STAGE, unfreeze=unfreeze, epochs=1)
        train, val = make_images("train"), make_images("val")
        model, _ = fit(tmp_path / name, settings, stage, model=make_resnet(), train=train, val=val)
        for key, buffer in model.named_buffers():
            assert torch.equal(buffer, before[key]) == (name == "head"), key


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("ema", [None, 0.7])
def test_batch_norms_survive_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ema: float | None
) -> None:
    settings = FitSettings(ema=ema, augment=AUGMENT, mixup=0.2)
    expected = outcome(*fit_images(tmp_path / "whole", settings))
    real, calls = PixelStage.loss, []

    def loss(*args: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 5:
            signal.raise_signal(signal.SIGINT)
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(PixelStage, "loss", loss)
        with pytest.raises(KeyboardInterrupt):
            fit_images(tmp_path / "again", settings)
    assert outcome(*fit_images(tmp_path / "again", settings)) == expected
