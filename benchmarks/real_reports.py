"""RetinaMNIST and IDRiD probed and reported: what can be told apart, in words.

EfficientNet-Lite0 (ImageNet weights, converted by real_images.py) at 112 px, a linear probe and logistic regression,
the floors that need no columns, few-shot curves. IDRiD holds six photographs twice, one of them across the published
split: what the leak gate finds there is accepted by name.

    python benchmarks/real_reports.py --data DIR --effnet real/tf_efficientnet_lite0.safetensors --out reported
"""

import argparse
from pathlib import Path

from real_images import cohorts, encoders
from rich.console import Console

from vitreous.config.compose import validate_study
from vitreous.reports.leaderboard_tables import render_terminal
from vitreous.study.run import run_study

KNOWN_LEAKS = {"idrid": ["exact_duplicates", "conflicting_labels"], "retinamnist": []}


def main() -> None:
    """Run both cohorts, print both leaderboards."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with medmnist/ and idrid/")
    parser.add_argument("--effnet", type=Path, required=True, help="weights under timm's names")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    encoder, _ = encoders(Path("unused"), args.effnet)["effnet_lite0"]
    for name, data in cohorts(args.data).items():
        study = {
            "name": name,
            "data": data,
            "encoders": {"effnet_lite0": encoder},
            "recipes": {
                "probe": {
                    "kind": "linear_probe",
                    "class_weights": "balanced",
                    "grid": {"lr": [1e-4, 1e-3, 1e-2], "weight_decay": [0, 1e-4, 1e-2]},
                },
                "logistic": {"kind": "logistic_regression", "class_weights": "balanced"},
            },
            "floors": ["majority", "shuffled", "untrained", "pixels"],
            "few_shot": [5, 10],
            "leaks": {"accept": KNOWN_LEAKS[name]},
            "precision": "fp32",
            "runs": str(args.out / "runs"),
            "store": str(args.out / "features"),
        }
        result = run_study(validate_study(study, where="real_reports"))
        Console().print(render_terminal(result.standing))


if __name__ == "__main__":
    main()
