"""Finished small runs with probes and models trained on pixels, for what works on one trained model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cohorts import study_values, write_cohort
from PIL import Image as PillowImage
from safetensors.torch import save_file

from vitreous.config.compose import validate_study
from vitreous.encoders.catalog import build_random_encoder
from vitreous.study.run import run_study

GRADES = ["none", "mild"]
TIMM = {"model": "test_vit", "img_size": [32, 32]}
ON_PIXELS = {"epochs": 1, "batch_size": 8, "lr_encoder": 1e-3, "lr_head": 1e-2}
RECIPES: dict[str, Any] = {
    "linear": {"kind": "linear_probe", "epochs": 8, "warmup_epochs": 1, "lr": 1e-2},
    "mlp": {"kind": "mlp_probe", "epochs": 4, "warmup_epochs": 1, "lr": 1e-2, "hidden": [8]},
    "knn": {"kind": "knn", "k": [3]},
    "lora": {**ON_PIXELS, "kind": "lora", "rank": 2, "targets": ["qkv"]},
    "full": {**ON_PIXELS, "kind": "finetune"},
}
PATIENT = r"(?P<patient>p\d+)_"


def run_on_volumes(root: Path, recipes: Sequence[str]) -> Path:
    """A run on volumes (vit3d); the files lie under ``retinal_oct``."""
    write_cohort(root, participants=24)
    values = study_values(
        root,
        recipes={name: RECIPES[name] for name in recipes},
        seeds=[0],
        intervals={"resamples": 200},
        floors=["majority"],
    )
    del values["encoders"]["second"]
    return run_study(validate_study(values)).run_dir


def write_photographs(folder: Path, *, patients: int = 16) -> Path:
    """``<split>/<grade>/p<number>_<eye>.png``; the second grade is redder."""
    rng = np.random.default_rng(0)
    for number in range(patients):
        grade, split = number % 2, ("train", "train", "val", "test")[(number // 2) % 4]
        for eye in ("L", "R"):
            pixels = rng.integers(0, 160, size=(40, 44, 3), dtype=np.uint8)
            pixels[..., 0] += np.uint8(60 * grade)
            path = folder / split / GRADES[grade] / f"p{number:02d}_{eye}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            PillowImage.fromarray(pixels).save(path)
    return folder


def run_on_images(root: Path, recipes: Sequence[str]) -> Path:
    """A run on photographs (timm), which lie under ``photographs``."""
    write_photographs(root / "photographs")
    encoder = build_random_encoder("timm", architecture=TIMM, seed=1, modality="image")
    checkpoint = root / "checkpoints" / "vit.safetensors"
    checkpoint.parent.mkdir()
    weights = {name.removeprefix("model."): tensor for name, tensor in encoder.backbone.state_dict().items()}
    save_file(weights, checkpoint)
    values = {
        "name": "photographs",
        "data": {
            "kind": "folder",
            "files": str(root / "photographs"),
            "classes": GRADES,
            "patient_pattern": PATIENT,
            "max_quarantined": 0.3,
        },
        "encoders": {"vit": {"family": "timm", "checkpoint": str(checkpoint), "options": TIMM}},
        "recipes": {name: RECIPES[name] for name in recipes},
        "seeds": [0],
        "device": "cpu",
        "precision": "fp32",
        "floors": ["majority"],
        "intervals": {"resamples": 200},
        "runs": str(root / "runs"),
        "store": str(root / "features"),
        "cache": {"dir": str(root / "cache")},
    }
    return run_study(validate_study(values)).run_dir
