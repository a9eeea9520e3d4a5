"""Several labels a row in recipes on pixels. Oracle: torch's own losses, and labels that pixels show."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pixel_models import vit_encoder
from torch.nn import functional as F

from vitreous.core.errors import SampleError
from vitreous.core.label_sets import encode_label_sets
from vitreous.recipes.pixel_losses import row_losses
from vitreous.recipes.pixel_model import PixelModel
from vitreous.recipes.pixel_prediction import predict_pixels, score_logits
from vitreous.recipes.pixel_settings import FitSettings, FittedPixels, PixelSet, StageSettings
from vitreous.recipes.pixel_training import fit_pixels

NUM_LABELS = 3


def label_set(num_rows: int, *, seed: int, owner: str) -> PixelSet:
    """Each label brightens a column of patches of its own."""
    rng = np.random.default_rng(seed)
    has_NC = rng.random((num_rows, NUM_LABELS)) < 0.5
    inputs = rng.normal(0, 0.3, size=(num_rows, 1, 4, 16, 16)).astype(np.float32)
    for c, place in enumerate((np.s_[:, :8, :8], np.s_[:, :8, 8:], np.s_[:, 8:, :8])):
        block = inputs[(has_NC[:, c], 0, *place)]
        inputs[(has_NC[:, c], 0, *place)] = block + 2
    patients = np.array([f"{owner}{row}" for row in range(num_rows)])
    return PixelSet(
        lambda row: torch.from_numpy(inputs[row]),
        encode_label_sets(has_NC),
        patients,
        np.ones(num_rows),
        vit_encoder().spec,
        task="multi_label",
    )


def train(folder: Path, settings: FitSettings, **changes: int) -> tuple[PixelModel, FittedPixels, PixelSet]:
    model = PixelModel(
        vit_encoder(),
        pooling="mean",
        coarse_grid=None,
        num_classes=NUM_LABELS,
        head="linear",
        head_width=8,
        dropout=0.0,
        seed=0,
        gradient_checkpointing=False,
    )
    val = label_set(40, seed=1, owner="v")
    fitted = fit_pixels(
        model,
        label_set(96, seed=0, owner="t"),
        val,
        [StageSettings(epochs=changes.get("epochs", 14), unfreeze="all", lr_head=0.05, lr_encoder=5e-3, batch_size=16)],
        settings,
        seed=0,
        num_classes=NUM_LABELS,
        metric="map",
        state_dir=folder,
        device="cpu",
        precision="fp32",
        workers=0,
    )
    return model, fitted, val


def test_cross_entropy_is_torchs_with_its_weights_of_positives() -> None:
    generator = torch.Generator().manual_seed(0)
    logits_BC = torch.randn(50, NUM_LABELS, generator=generator, dtype=torch.float64) * 3
    targets_BC = torch.rand(50, NUM_LABELS, generator=generator, dtype=torch.float64)
    positive_C = torch.tensor([1.0, 5.0, 0.5], dtype=torch.float64)
    expected_BC = F.binary_cross_entropy_with_logits(logits_BC, targets_BC, pos_weight=positive_C, reduction="none")
    torch.testing.assert_close(
        row_losses(logits_BC, targets_BC, FitSettings(), positive_C), expected_BC.mean(1), rtol=1e-12, atol=1e-12
    )


def test_losses_for_the_other_kind_of_target_are_refused() -> None:
    logits_BC = torch.zeros(2, NUM_LABELS)
    with pytest.raises(ValueError, match="grades"):
        row_losses(logits_BC, logits_BC, FitSettings(loss="ordinal"), torch.ones(NUM_LABELS))
    with pytest.raises(ValueError, match="several labels"):
        row_losses(logits_BC, logits_BC, FitSettings(loss="asymmetric"))


@pytest.mark.parametrize(
    "settings",
    [
        FitSettings(class_weights="balanced"),
        FitSettings(loss="focal", sampler="balanced"),
        FitSettings(loss="asymmetric"),
        FitSettings(class_weights=(1.0, 5.0, 1.0), mixup=0.2, label_smoothing=0.1),
    ],
    ids=["balanced weights", "focal, balanced sampler", "asymmetric", "5x, mixup, smoothing"],
)
def test_labels_that_pixels_show_are_learned(settings: FitSettings, tmp_path: Path) -> None:
    model, fitted, val = train(tmp_path, settings)
    assert fitted.best_score > 0.85  # chance is 0.5
    logits_NC = predict_pixels(model, val, batch_size=16, device="cpu", precision="fp32")
    assert score_logits(logits_NC, val, "map") == fitted.best_score
    assert {"train_loss", "val_loss", "val_map"} <= set(fitted.history[0])


def test_the_weight_of_a_label_raises_its_probabilities(tmp_path: Path) -> None:
    plain, _, val = train(tmp_path / "a", FitSettings(), epochs=1)
    heavy, _, _ = train(tmp_path / "b", FitSettings(class_weights=(1.0, 5.0, 1.0)), epochs=1)
    means = [
        predict_pixels(model, val, batch_size=16, device="cpu", precision="fp32").mean(0) for model in (plain, heavy)
    ]
    assert means[1][1] > means[0][1]


def test_a_label_that_everybody_has_is_refused(tmp_path: Path) -> None:
    rows = label_set(20, seed=0, owner="t")
    always = PixelSet(
        rows.read, rows.y_N | 2, rows.patient_id_N, rows.weight_N, rows.spec, rows.aggregate, rows.task
    )  # label 1 is on everywhere
    model = PixelModel(
        vit_encoder(), pooling="mean", coarse_grid=None, num_classes=NUM_LABELS, head="linear", head_width=8,
        dropout=0.0, seed=0, gradient_checkpointing=False,
    )  # fmt: skip
    with pytest.raises(SampleError, match="label 1"):
        fit_pixels(
            model, always, label_set(20, seed=1, owner="v"), [StageSettings(epochs=1)], FitSettings(), seed=0,
            num_classes=NUM_LABELS, metric="map", state_dir=tmp_path, device="cpu", precision="fp32", workers=0,
        )  # fmt: skip
