"""A tiny transformer and a cohort that it can learn; run as a script, one training for the tests that kill it.

Axes: N row, C channel, D slice, H row of pixels, W column.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitreous.core.input_spec import InputSpec
from vitreous.encoders.catalog import build_random_encoder
from vitreous.recipes.pixel_model import PixelModel
from vitreous.recipes.pixel_settings import FitSettings, FittedPixels, PixelSet, StageSettings
from vitreous.recipes.pixel_training import fit_pixels, predict_pixels

NUM_CLASSES = 3
SIZE = (1, 16, 16)
ARCHITECTURE = {"img_size": SIZE, "patch_size": (1, 4, 4), "in_chans": 1, "embed_dim": 16, "depth": 3, "num_heads": 2}
STAGE = StageSettings(epochs=3, unfreeze=2, lr_head=1e-2, lr_encoder=1e-3, batch_size=8, patience=None)
TWO_STAGES = (
    StageSettings(epochs=2, unfreeze=0, lr_head=1e-2, batch_size=8, patience=None),
    StageSettings(epochs=2, unfreeze="all", lr_head=1e-3, lr_encoder=1e-3, batch_size=6, patience=None),
)


def make_set(split: str, num_patients: int = 18, *, seed: int = 0) -> PixelSet:
    """One or two rows a patient; the class is the place of a bright square."""
    rng = np.random.default_rng([seed, len(split)])
    y_P = np.arange(num_patients) % NUM_CLASSES
    rows_P = rng.integers(1, 3, num_patients)
    owner_N = rng.permutation(np.repeat(np.arange(num_patients), rows_P))
    y_N = y_P[owner_N]
    x_NCDHW = rng.normal(size=(len(y_N), 1, *SIZE)).astype(np.float32)
    for row, label in enumerate(y_N):
        x_NCDHW[row, :, :, 4 * label : 4 * label + 6, 4:10] += 2.0
    inputs = torch.from_numpy(x_NCDHW)
    ids = np.array([f"{split}-{patient:03d}" for patient in owner_N])
    return PixelSet(lambda row: inputs[row], y_N, ids, 1.0 / rows_P[owner_N], InputSpec(size=SIZE))


def make_model(*, dtype: torch.dtype = torch.float32, dropout: float = 0.1, **changes: Any) -> PixelModel:
    """Three blocks and a linear head, the same at each call."""
    spec = InputSpec(size=SIZE)
    encoder = build_random_encoder("vit3d", architecture=ARCHITECTURE, seed=0, spec=spec, trainable=True)
    options: dict[str, Any] = {"pooling": "mean", "coarse_grid": None, "head": "linear", "head_width": 8, "seed": 0}
    return PixelModel(encoder, num_classes=NUM_CLASSES, dropout=dropout, **(options | changes)).to(dtype)


def fit(
    folder: Path,
    settings: FitSettings | None = None,
    *stages: StageSettings,
    model: PixelModel | None = None,
    train: PixelSet | None = None,
    val: PixelSet | None = None,
    **changes: Any,
) -> tuple[PixelModel, FittedPixels]:
    """Train on the cohort; what is left out is as small as it gets."""
    model = make_model() if model is None else model
    options: dict[str, Any] = {
        "seed": 0, "num_classes": NUM_CLASSES, "metric": "balanced_accuracy", "device": "cpu", "precision": "fp32",
        "workers": 0,
    }  # fmt: skip
    fitted = fit_pixels(
        model,
        make_set("train") if train is None else train,
        make_set("val") if val is None else val,
        stages or (STAGE,),
        FitSettings() if settings is None else settings,
        state_dir=folder,
        **(options | changes),
    )
    return model, fitted


def result_bytes(model: PixelModel, fitted: FittedPixels) -> bytes:
    """Everything a training answers, to be compared byte by byte."""
    logits_NC = predict_pixels(model, make_set("val"), batch_size=8, device="cpu", precision="fp32")
    weights = b"".join(tensor.detach().numpy().tobytes() for tensor in model.state_dict().values())
    told = [fitted.history, fitted.best_epoch, fitted.best_score, fitted.num_epochs, fitted.stage]
    return json.dumps(told).encode() + weights + logits_NC.tobytes()
