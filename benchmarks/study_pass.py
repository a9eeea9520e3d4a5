"""Benchmark 1: the three-checkpoint study against the plain way, on the same files, encoders and machine.

The study: three checkpoints and an untrained floor, 50 epochs, a grid of 27 members (3 learning rates × 3 weight
decays × 3 seeds), intervals, leaderboard and report, from an empty feature store. The plain way: for each checkpoint,
50 epochs of one linear head, every volume decoded, preprocessed and encoded again in every epoch. Only `--plain-epochs`
of them are measured, for one checkpoint; the rest is scaled, as the table says.

    python benchmarks/study_pass.py --json study_pass.json
"""

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from vitreous.config.compose import validate_study
from vitreous.config.study import StudyConfig
from vitreous.core.errors import InputError, StorageError
from vitreous.demo.cohort import write_cohort
from vitreous.demo.recipe import CLASSES, CohortRecipe
from vitreous.encoders.catalog import build_random_encoder
from vitreous.features.pooling import pool_tokens
from vitreous.inputs.prepare import finish_input, prepare_input
from vitreous.study.data import OpenedData, open_data
from vitreous.study.encoders import OpenedEncoder, open_encoders
from vitreous.study.run import run_study
from vitreous.study.runtime import resolve_runtime

EPOCHS = 50
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "demo": {"img_size": [16, 96, 96], "patch_size": [4, 16, 16], "embed_dim": 128, "depth": 4, "num_heads": 2},
    "small": {"img_size": [32, 192, 192], "patch_size": [4, 16, 16], "embed_dim": 384, "depth": 6, "num_heads": 6},
    "base": {"img_size": [64, 384, 384], "patch_size": [4, 16, 16], "embed_dim": 768, "depth": 12, "num_heads": 12},
}


def write_checkpoints(folder: Path, architecture: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Three checkpoints of that architecture; time does not depend on the values of the weights."""
    folder.mkdir(parents=True)
    config = {"image_size": architecture["img_size"], "patch_size": architecture["patch_size"]}
    config |= {"num_heads": architecture["num_heads"]}
    encoders = {}
    for seed in range(3):
        built = build_random_encoder("vit3d", architecture=architecture, seed=seed)
        path = folder / f"checkpoint_{seed}.safetensors"
        save_file(built.backbone.state_dict(), path, metadata={"config": json.dumps(config)})
        encoders[f"checkpoint_{seed}"] = {"family": "vit3d", "checkpoint": str(path)}
    return encoders


def make_study(root: Path, encoders: dict[str, dict[str, str]], precision: str) -> StudyConfig:
    """The three-checkpoint comparison with 50 epochs and 27 members."""
    grid = {"lr": [1e-4, 1e-3, 1e-2], "weight_decay": [0.0, 1e-4, 1e-2]}
    linear = {"kind": "linear_probe", "epochs": EPOCHS, "patience": EPOCHS, "class_weights": "balanced", "grid": grid}
    return validate_study(
        {
            "name": "study_pass",
            "data": {
                "kind": "participants",
                "table": str(root / "cohort" / "participants.tsv"),
                "files": str(root / "cohort"),
                "manifest": str(root / "cohort" / "manifest.tsv"),
                "label": "study_group",
                "classes": list(CLASSES),
                "where": {"retinal_oct": True},
            },
            "encoders": encoders,
            "recipes": {"linear": linear},
            "seeds": [0, 1, 2],
            "precision": precision,
            "runs": str(root / "runs"),
            "store": str(root / "features"),
            "cache": {"dir": str(root / "cache")},
        }
    )


def time_plain_epochs(config: StudyConfig, data: OpenedData, opened: OpenedEncoder, epochs: int) -> float:
    """Seconds of `epochs` epochs of the plain way: decode, preprocess, encode and step for every volume."""
    runtime = resolve_runtime(config)
    encoder = opened.encoder
    head = torch.nn.Linear(encoder.width, len(config.data.classes))
    optimiser = torch.optim.AdamW(head.parameters(), lr=1e-3)
    split_of = dict(zip(data.file_ids, data.cohort.samples["split"], strict=True))
    label_of = dict(zip(data.file_ids, data.cohort.samples["y"], strict=True))
    requests = [request for request in data.requests if split_of[request.file_id] in ("train", "val")]
    batch_size = runtime.batch_size_for(encoder.spec)
    begin = time.perf_counter()
    for _ in range(epochs):
        waiting: list[tuple[torch.Tensor, int, bool]] = []
        for index, (request, path) in enumerate(data.stage(requests)):
            if isinstance(path, StorageError):
                raise path
            try:
                tensor = finish_input(prepare_input(data.load_input(request, path), encoder.spec), encoder.spec)
            except InputError:  # the truncated file of the cohort
                continue
            waiting.append((tensor, int(label_of[request.file_id]), split_of[request.file_id] == "train"))
            if len(waiting) == batch_size or index == len(requests) - 1:
                with torch.no_grad():
                    tokens = encoder(torch.stack([one for one, _, _ in waiting]))
                    features_BD = pool_tokens(tokens, "mean")
                is_train = torch.tensor([train for _, _, train in waiting])
                labels = torch.tensor([label for _, label, _ in waiting])
                if is_train.any():
                    loss = torch.nn.functional.cross_entropy(head(features_BD[is_train]), labels[is_train])
                    optimiser.zero_grad()
                    torch.autograd.backward(loss)
                    optimiser.step()
                waiting = []
    return time.perf_counter() - begin


def measure(root: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Both ways on one cohort."""
    write_cohort(root / "cohort", CohortRecipe(participants=arguments.participants))
    encoders = write_checkpoints(root / "checkpoints", ARCHITECTURES[arguments.architecture])
    config = make_study(root, encoders, arguments.precision)
    begin = time.perf_counter()
    run_study(config)
    study_s = time.perf_counter() - begin
    runtime, data = resolve_runtime(config), open_data(config)
    opened = open_encoders(config, runtime, data.cache)
    begin = time.perf_counter()
    run_study(config.model_copy(update={"name": "known_features"}))
    rest_s = time.perf_counter() - begin
    plain_s = time_plain_epochs(config, data, opened[0], arguments.plain_epochs) / arguments.plain_epochs
    return {
        "volumes": len(data.requests),
        "study_s": study_s,
        "not_encoding_s": rest_s,
        "share_not_encoding": rest_s / study_s,
        "plain_epoch_s": plain_s,
        "plain_epochs_measured": arguments.plain_epochs,
        "plain_s": plain_s * EPOCHS * 3,
        "ratio": plain_s * EPOCHS * 3 / study_s,
    }


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--participants", type=int, default=40)
    parser.add_argument("--architecture", choices=sorted(ARCHITECTURES), default="small")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--plain-epochs", type=int, default=1, help="epochs of the plain way that are measured")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["VITREOUS_ID_KEY"] = str(Path(folder) / "id_key")
        found = measure(Path(folder), arguments)
    found |= {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    found |= {name: getattr(arguments, name) for name in ("participants", "architecture", "precision")}
    print(f"{found['volumes']} volumes, architecture {arguments.architecture}, {arguments.precision}")
    print(f"{'study: 4 encoders, 27 members, 50 epochs':<52} {found['study_s']:>9.1f} s")
    print(f"{'  of it not encoding (same study, features known)':<52} {found['not_encoding_s']:>9.1f} s")
    print(f"{'  share not encoding':<52} {found['share_not_encoding']:>9.1%}")
    print(f"{'plain way: 3 encoders, 1 member, 50 epochs (scaled)':<52} {found['plain_s']:>9.1f} s")
    print(f"{'plain way / study':<52} {found['ratio']:>9.1f} x")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
