"""Classification and segmentation together. Oracle: masks that the pixels show; the plain path for the cached one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pixel_models import vit_encoder

from vitreous.core.errors import ConfigError, SampleError
from vitreous.evidence.segmentation import intersection_over_union, map_confusion
from vitreous.recipes.pixel_artefacts import (
    build_pixel_model,
    pixel_model_config,
    restore_pixel_model,
    save_pixel_model,
)
from vitreous.recipes.pixel_model import PixelModel
from vitreous.recipes.pixel_prediction import predict_pixels
from vitreous.recipes.pixel_settings import FitSettings, FittedPixels, PixelSet, StageSettings
from vitreous.recipes.pixel_training import fit_pixels
from vitreous.recipes.segmentation import SegmentationSettings

SEGMENTATION = SegmentationSettings(num_classes=2, size=(8, 8), class_weights="balanced")


def halves(num_rows: int, *, seed: int, owner: str, masked: bool = True) -> PixelSet:
    """A bright quarter or half whose mask says where it is; every fourth row has no mask."""
    rng = np.random.default_rng(seed)
    y_N = np.arange(num_rows) % 2
    inputs = rng.normal(0, 0.2, size=(num_rows, 1, 4, 16, 16)).astype(np.float32)
    masks_NHW = np.zeros((num_rows, 8, 8), np.uint8)
    for row in range(num_rows):
        top, width = 8 * int(rng.integers(2)), 8 * (1 + int(y_N[row]))
        inputs[row, 0, :, top : top + 8, :width] += 2
        masks_NHW[row, top // 2 : top // 2 + 4, : width // 2] = 1
    return PixelSet(
        lambda row: torch.from_numpy(inputs[row]),
        y_N,
        np.array([f"{owner}{row}" for row in range(num_rows)]),
        np.ones(num_rows),
        vit_encoder().spec,
        mask=lambda row: masks_NHW[row] if masked and row % 4 else None,
    )


def build(segmentation: SegmentationSettings | None = SEGMENTATION) -> PixelModel:
    return PixelModel(
        vit_encoder(), pooling="mean", coarse_grid=None, num_classes=2, head="linear", head_width=8, dropout=0.0,
        seed=0, segmentation=segmentation,
    )  # fmt: skip


def train(
    folder: Path, *, settings: FitSettings | None = None, unfreeze: int | str = "all", epochs: int = 8,
    precise: bool = False, **sets: PixelSet,
) -> tuple[PixelModel, FittedPixels]:  # fmt: skip
    model = build()
    if precise:
        model = model.double()
    fitted = fit_pixels(
        model,
        sets.get("train", halves(48, seed=0, owner="t")),
        sets.get("val", halves(24, seed=1, owner="v")),
        [StageSettings(epochs=epochs, unfreeze=unfreeze, lr_head=0.02, lr_encoder=3e-3, batch_size=12)],  # type: ignore[arg-type]
        settings or FitSettings(segmentation=SEGMENTATION),
        seed=0,
        num_classes=2,
        metric="balanced_accuracy",
        state_dir=folder,
        device="cpu",
        precision="fp32",
        workers=0,
    )
    return model, fitted


def test_masks_that_pixels_show_are_learned_beside_the_classes(tmp_path: Path) -> None:
    model, fitted = train(tmp_path)
    ious = [row["val_miou"] for row in fitted.history]
    assert max(ious) > 0.6 > ious[0]
    assert fitted.best_score > 0.8
    val = halves(24, seed=1, owner="v")
    assert predict_pixels(model, val, batch_size=12, device="cpu", precision="fp32").shape == (24, 2)
    batches: list[torch.Tensor] = []
    predict_pixels(model, val, batch_size=12, device="cpu", precision="fp32", on_maps=batches.append)
    maps = torch.cat(batches)
    masks = np.stack([np.full((8, 8), 255) if val.mask(row) is None else val.mask(row) for row in range(24)])  # type: ignore[misc]
    confusion = map_confusion(masks, maps.argmax(1).numpy(), 2)
    kept = [row["val_miou"] for row in fitted.history if row["epoch"] == fitted.best_epoch]
    assert intersection_over_union(confusion, ("0", "1"))["miou"] == pytest.approx(kept[0])


def test_training_behind_kept_blocks_is_the_plain_training(tmp_path: Path) -> None:
    plain = FitSettings(segmentation=SEGMENTATION, prefix_views=0)
    outcomes = [
        train(tmp_path / name, settings=settings, unfreeze=1, epochs=2, precise=True)
        for name, settings in (("plain", plain), ("kept", replace(plain, prefix_views=1)))
    ]
    for one, other in zip(outcomes[0][0].parameters(), outcomes[1][0].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-8)
    assert outcomes[0][1].history[1]["val_miou"] == outcomes[1][1].history[1]["val_miou"]


def test_a_decoder_is_kept_with_its_model(tmp_path: Path) -> None:
    model, _ = train(tmp_path / "state", epochs=1)
    save_pixel_model(model, tmp_path)
    kept = build_pixel_model(pixel_model_config(model), vit_encoder())
    restore_pixel_model(kept, tmp_path)
    x = torch.randn(2, 1, 4, 16, 16)
    with torch.no_grad(), model.returning_maps(), kept.returning_maps():
        assert torch.equal(model.eval()(x), kept(x))
        assert kept(x).shape == (2, 2 + 2 * 64)


def test_what_cannot_be_segmented(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mixup and cutmix would mix masks"):
        FitSettings(segmentation=SEGMENTATION, mixup=0.2)
    with pytest.raises(SampleError, match="train: no row has a mask"):
        train(tmp_path, train=halves(48, seed=0, owner="t", masked=False))
    with pytest.raises(SampleError, match="val: no row has a mask"):
        train(tmp_path, val=halves(24, seed=1, owner="v", masked=False))
