"""Small cohorts of real files with a planted signal, and checkpoints for them. Made on the spot, in a second."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.torch import save_file

from vitreous.core.files import write_text
from vitreous.encoders.catalog import build_random_encoder

CLASSES = ["healthy", "early", "late"]
ARCHITECTURE = {"img_size": [4, 32, 32], "patch_size": [2, 16, 16], "embed_dim": 64, "depth": 1, "num_heads": 1}


def write_cohort(folder: Path, *, participants: int = 48, seed: int = 0) -> Path:
    """participants.tsv and one or two .npy volumes a participant; class k brightens k bands of rows."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(participants):
        name = f"{2000 + number}"
        grade = number % len(CLASSES)
        split = ("train", "train", "val", "test")[(number // len(CLASSES)) % 4]
        rows.append(
            {
                "participant_id": name,
                "clinical_site": f"site{number % 2}",
                "study_group": CLASSES[grade],
                "age": 40 + number % 30,
                "recommended_split": split,
                "retinal_oct": "TRUE",
            }
        )
        for volume in range(1 + number % 2):
            voxels = rng.normal(100, 10, size=(5, 40, 36))
            voxels[:, : 12 * grade] += 25
            path = folder / "retinal_oct" / "structural_oct" / f"device{volume}" / name / f"{name}_{volume}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, voxels.astype(np.float32))
    pd.DataFrame(rows).to_csv(folder / "participants.tsv", sep="\t", index=False)
    return folder


def write_checkpoint(path: Path, seed: int) -> Path:
    """A vit3d checkpoint of random weights, as a lab would hand it over."""
    encoder = build_random_encoder("vit3d", architecture=ARCHITECTURE, seed=seed)
    config = {"image_size": ARCHITECTURE["img_size"], "patch_size": ARCHITECTURE["patch_size"], "num_heads": 1}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(encoder.backbone.state_dict(), path, metadata={"config": json.dumps(config)})
    return path


def study_values(root: Path, **changes: Any) -> dict[str, Any]:
    """A study on the cohort below `root`, as plain values."""
    values: dict[str, Any] = {
        "name": "small",
        "data": {
            "kind": "participants",
            "table": str(root / "participants.tsv"),
            "files": str(root),
            "pattern": "retinal_oct/structural_oct/{device}/{patient}/*.npy",
            "axes": "DHW",
            "label": "study_group",
            "classes": CLASSES,
            "where": {"retinal_oct": True},
            "domains": ["clinical_site", "device"],
        },
        "encoders": {
            "first": {
                "family": "vit3d",
                "checkpoint": str(write_checkpoint(root / "checkpoints" / "a.safetensors", 1)),
            },
            "second": {
                "family": "vit3d",
                "checkpoint": str(write_checkpoint(root / "checkpoints" / "b.safetensors", 2)),
            },
        },
        "recipes": {
            "linear": {
                "kind": "linear_probe",
                "epochs": 12,
                "warmup_epochs": 2,
                "class_weights": "balanced",
                "grid": {"lr": [1e-3, 1e-2], "weight_decay": [0.0, 1e-2]},
            }
        },
        "floors": ["majority", "untrained"],  # the others have tests of their own
        "seeds": [0, 1],
        "device": "cpu",
        "precision": "fp32",
        "intervals": {"resamples": 400},
        "runs": str(root / "runs"),
        "store": str(root / "features"),
        "cache": {"dir": str(root / "cache")},
    }
    return values | changes


def write_study(path: Path, values: dict[str, Any]) -> Path:
    """The study as a YAML file."""
    import yaml

    write_text(path, yaml.safe_dump(values, sort_keys=False))
    return path


def contents(folder: Path, *patterns: str) -> dict[str, bytes]:
    """Bytes of the files below a folder that match."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for pattern in patterns
        for path in sorted(folder.rglob(pattern))
        if path.is_file()
    }
