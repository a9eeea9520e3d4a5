"""Four frozen rows on one token cache against encoding every clip again in every epoch.

    python benchmarks/video_study.py --json video_study.json

The study: attentive probes with cross-entropy, focal loss, balanced sampling, and focal loss with balanced sampling,
three labels, a synthetic surgical cohort of frames, from an empty store to the report. The plain way: for each row, in
each epoch, every train and val clip is decoded, prepared and encoded, and a head takes a step. Only `--plain-epochs` of
them are measured, for the first row (the rows differ in their losses, not in encoding); the rest is scaled, as the
table says.

Hardware: any CPU, about 2 GB of memory. Minutes: about ten on two cores; `--quick` well under one.
Measures: plain way / study, and the share of the study's time that is not spent encoding (the same study with its
          tokens known).
"""

import argparse
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from vitreous.config.compose import validate_study
from vitreous.config.study import StudyConfig
from vitreous.core.errors import StorageError
from vitreous.core.files import write_json
from vitreous.demo.surgical_cohort import write_surgical_cohort
from vitreous.inputs.prepare import finish_input, prepare_input
from vitreous.recipes.attentive_heads import AttentionShape, AttentiveHeads
from vitreous.study.data import OpenedData, open_data
from vitreous.study.encoders import OpenedEncoder, open_encoders
from vitreous.study.run import run_study
from vitreous.study.runtime import resolve_runtime

LABELS = ["C1", "C2", "C3"]
ROWS: dict[str, dict[str, Any]] = {
    "attention": {},
    "focal": {"loss": {"kind": "focal"}},
    "balanced": {"sampler": "balanced"},
    "focal_balanced": {"loss": {"kind": "focal"}, "sampler": "balanced"},
}
ARCHITECTURES: dict[str, dict[str, int]] = {
    "quick": {"hidden_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2, "crop_size": 32},
    "small": {"hidden_size": 384, "num_attention_heads": 6, "num_hidden_layers": 12, "crop_size": 96},
    "large": {"hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 24, "crop_size": 256},
}


def make_study(root: Path, arguments: argparse.Namespace) -> StudyConfig:
    """Four rows on the tokens of one encoder."""
    architecture = ARCHITECTURES[arguments.architecture] | {"frames_per_clip": arguments.frames_per_clip}
    probe = {"kind": "attentive_probe", "epochs": arguments.epochs, "patience": arguments.epochs}
    probe |= {"heads": 2, "hidden": 64}
    return validate_study(
        {
            "name": "video_study",
            "data": {
                "kind": "frames",
                "table": str(root / "cohort" / "metadata.csv"),
                "files": str(root / "cohort" / "frames"),
                "label": LABELS,
                "agreement": 0.5,
                "split": {split: str(root / "cohort" / f"{split}_vids.txt") for split in ("train", "val", "test")},
                "aggregate": "none",
                "stride": 2,
            },
            "encoders": {
                "vjepa2": {
                    "family": "vjepa2",
                    "random": architecture,
                    "input": {"step": 1, "fps": None, "padding": "repeat"},
                }
            },
            "recipes": {name: probe | row for name, row in ROWS.items()},
            "features": {"pooling": "tokens", "dtype": "bf16"},
            "floors": ["majority"],
            "seeds": [0],
            "device": "cpu",
            "precision": arguments.precision,
            "runs": str(root / "runs"),
            "store": str(root / "features"),
        }
    )


def time_plain_epochs(config: StudyConfig, data: OpenedData, opened: OpenedEncoder, epochs: int) -> float:
    """Seconds of `epochs` epochs of the plain way: decode, prepare, encode and step for every train and val clip."""
    runtime, encoder = resolve_runtime(config), opened.encoder
    shape = AttentionShape(encoder.width, hidden=64, heads=2, queries=1, outputs=len(LABELS))
    head = AttentiveHeads(shape, [0], dtype=torch.float32, device=torch.device("cpu"))
    parameters = list(head.parameters.values())
    optimiser = torch.optim.AdamW(parameters, lr=1e-3)
    split_of = dict(zip(data.file_ids, data.cohort.samples["split"], strict=True))
    requests = [request for request in data.requests if split_of[request.file_id] in ("train", "val")]
    batch_size = runtime.batch_size_for(encoder.spec)
    begin = time.perf_counter()
    for _ in range(epochs):
        waiting: list[tuple[torch.Tensor, bool]] = []
        for index, (request, path) in enumerate(data.stage(requests)):
            if isinstance(path, StorageError):
                raise path
            tensor = finish_input(prepare_input(data.load_input(request, path), encoder.spec), encoder.spec)
            waiting.append((tensor, split_of[request.file_id] == "train"))
            if len(waiting) == batch_size or index == len(requests) - 1:
                with torch.no_grad():
                    tokens_BND = encoder(torch.stack([one for one, _ in waiting])).tokens_BND.float()
                is_train = torch.tensor([train for _, train in waiting])
                if is_train.any():
                    logits_KBC = head.logits(tokens_BND[is_train])
                    # time does not depend on the labels
                    loss = torch.nn.functional.softplus(logits_KBC).mean()
                    optimiser.zero_grad()
                    torch.autograd.backward(loss)
                    optimiser.step()
                waiting = []
    return time.perf_counter() - begin


def measure(root: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Both ways on one cohort."""
    write_surgical_cohort(
        root / "cohort",
        num_videos=arguments.videos,
        seed=0,
        frames_per_video=arguments.frames_per_video,
        size_px=arguments.size_px,
    )
    config = make_study(root, arguments)
    begin = time.perf_counter()
    run_study(config)
    study_s = time.perf_counter() - begin
    begin = time.perf_counter()
    run_study(config.model_copy(update={"name": "known_tokens"}))
    rest_s = time.perf_counter() - begin
    runtime, data = resolve_runtime(config), open_data(config)
    [opened] = open_encoders(config, runtime, data.cache, data.modality)
    plain_s = time_plain_epochs(config, data, opened, arguments.plain_epochs) / arguments.plain_epochs
    scaled_s = plain_s * arguments.epochs * len(ROWS)
    return {
        "clips": len(data.requests),
        "study_s": study_s,
        "not_encoding_s": rest_s,
        "share_not_encoding": rest_s / study_s,
        "plain_epoch_s": plain_s,
        "plain_epochs_measured": arguments.plain_epochs,
        "plain_s": scaled_s,
        "ratio": scaled_s / study_s,
    }


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=40)
    parser.add_argument("--frames-per-video", type=int, default=12)
    parser.add_argument("--size-px", type=int, default=96)
    parser.add_argument("--frames-per-clip", type=int, default=8)
    parser.add_argument("--architecture", choices=sorted(ARCHITECTURES), default="small")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--plain-epochs", type=int, default=1, help="epochs of the plain way that are measured")
    parser.add_argument("--quick", action="store_true", help="40 videos of 8 frames, a tiny encoder, 2 epochs")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.videos, arguments.frames_per_video, arguments.size_px, arguments.frames_per_clip = 40, 8, 48, 4
        arguments.architecture, arguments.epochs = "quick", 2
    return arguments


def main() -> None:
    """Measure, print a table, write JSON."""
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["VITREOUS_ID_KEY"] = str(Path(folder) / "id_key")
        found = measure(Path(folder), arguments)
    found |= {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    found |= {name: getattr(arguments, name) for name in ("videos", "architecture", "precision", "epochs")}
    print(f"{found['clips']} clips, architecture {arguments.architecture}, {arguments.precision}")
    print(f"{f'study: 4 rows, {arguments.epochs} epochs, one token cache':<60} {found['study_s']:>9.1f} s")
    print(f"{'  of it not encoding (same study, tokens known)':<60} {found['not_encoding_s']:>9.1f} s")
    print(f"{'  share not encoding':<60} {found['share_not_encoding']:>9.1%}")
    print(f"{f'plain way: 4 rows, {arguments.epochs} epochs (scaled)':<60} {found['plain_s']:>9.1f} s")
    print(f"{'plain way / study':<60} {found['ratio']:>9.1f} x")
    if arguments.json:
        write_json(arguments.json, found)


if __name__ == "__main__":
    main()
