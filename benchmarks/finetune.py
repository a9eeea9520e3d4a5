"""Training on images: four ways to adapt one ViT, and what the engine costs beside a plain PyTorch loop.

    python benchmarks/finetune.py --json finetune.json
    python benchmarks/finetune.py --part overhead --model vit_tiny_patch16_224 --size 32 --images 320 --repeats 5
    python benchmarks/finetune.py --gpu --json finetune_gpu.json

`adaptations`: full fine-tuning, LoRA of rank 8 on qkv, and the last two blocks with and without the frozen-prefix
cache, on the same images, each in a process of its own. An epoch is its optimiser steps, at the mean time from the end
of one to the end of the next, without the first of each epoch. The prefix, computed once, is stated apart: from the
first image read to the begin of the first step. A whole call is `fit_pixels` with set-up, validation on a quarter as
many images, and state files. Peak memory is what came on top of the imports; on the CPU pages of the kept prefix's
file, which the system may take back, count too. FLOPs are those of the engine's own steps, counted.

`overhead`: `fit_pixels` against the bare loop (forward, backward, clip, AdamW; inputs finished, in memory) of the same
model, and of timm's own; they take turns in one process. On a machine that others use, compare the CPU seconds.

Hardware: any CPU, about 2 GB of memory; minutes on two cores. `--gpu` is ViT-L/16 in bf16 on CUDA (15 GB: reckoned).

Goal: the engine's step within 5 % of the bare one.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import vitreous.recipes.pixel_module  # noqa: F401  # Lightning, before anything is timed
from vitreous.core.files import write_json
from vitreous.inputs.augmentation import AugmentSettings
from vitreous.recipes.pixel_settings import Unfreeze
from vitreous.recipes.trainable import count_parameters

from timed_training import NUM_CLASSES, Images, StepClock, make_model, run_engine, run_plain  # isort: skip

import peft  # isort: skip  # noqa: F401  # after vitreous, which lets torchvision be imported
import timm  # isort: skip

# what trains beside the head, and views that the frozen-prefix cache keeps; the first is the baseline
ADAPTATIONS: dict[str, tuple[Unfreeze, int]] = {
    "finetune": ("all", 0),
    "lora": ("adapters", 0),
    "partial": (2, 0),
    "partial, cached": (2, 1),
}
AUGMENT = AugmentSettings(flip=0.5, rotate=15, scale=0.1, color=0.2)
GPU_PRESET = {
    "model": "vit_large_patch16_224",
    "batch": 32,
    "images": 640,
    "device": "cuda",
    "precision": "bf16",
    "workers": 8,
}


def peak_memory_mb(device: str) -> float:
    """Largest so far: resident memory of this process, or what its tensors took of the GPU."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def count_flops(name: str, arguments: argparse.Namespace) -> float:
    """FLOPs of one image in one training step of the engine, matrix products and convolutions."""
    unfreeze, views = ADAPTATIONS[name]
    model = make_model(arguments, unfreeze)
    train, val = (Images(split, 4, model.encoder.spec) for split in ("train", "val"))
    # in the other backends attention is one operation, which the counter does not know on every device
    with (
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
        StepClock("cpu", steps_per_epoch=2, counter=counter) as clock,
    ):
        run_engine(model, train, val, arguments, unfreeze=unfreeze, epochs=1, batch_size=2, prefix_views=views)
    return float(clock.per_step()[0, 2]) / 2


def measure_adaptation(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One way to adapt, in this process."""
    unfreeze, views = ADAPTATIONS[name]
    floor_mb = peak_memory_mb(arguments.device)
    model = make_model(arguments, unfreeze)
    train = Images("train", arguments.images, model.encoder.spec)
    val = Images("val", max(arguments.images // 4, NUM_CLASSES), model.encoder.spec)
    num_steps = arguments.images // arguments.batch
    with StepClock(arguments.device, num_steps) as clock:
        call_s = run_engine(
            model,
            train,
            val,
            arguments,
            unfreeze=unfreeze,
            epochs=arguments.epochs,
            batch_size=arguments.batch,
            prefix_views=views,
        )
    peak_mb = peak_memory_mb(arguments.device)
    wall_s, cpu_s, _ = clock.per_step().mean(axis=0) * num_steps
    prefix_s = clock.first_step_s - train.first_read_s if views else 0.0
    counted = count_parameters(model)
    return {
        "name": name,
        "epoch_s": wall_s,
        "epoch_cpu_s": cpu_s,
        "prefix_s": prefix_s,
        "amortised_epoch_s": wall_s + prefix_s / arguments.epochs,
        "call_s": call_s,
        "images_per_s": arguments.images / wall_s,
        "peak_memory_mb": peak_mb - floor_mb,
        "trainable": counted.trainable,
        "total": counted.total,
        "flops_per_image": count_flops(name, arguments),
    }


def compare_adaptations(arguments: argparse.Namespace) -> dict[str, Any]:
    """All of them, in turns, each in a process of its own; ratios to the first inside each repeat."""
    runs: list[dict[str, Any]] = []
    for repeat in range(arguments.repeats):
        for name in ADAPTATIONS:
            command = [sys.executable, __file__, *sys.argv[1:], "--adaptation", name]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            runs.append({"repeat": repeat, **json.loads(done.stdout.splitlines()[-1])})
    rows = []
    baseline = [run for run in runs if run["name"] == next(iter(ADAPTATIONS))]
    for name in ADAPTATIONS:
        own = [run for run in runs if run["name"] == name]
        row = {key: median(run[key] for run in own) for key in own[0] if key not in ("name", "repeat")}
        for key in ("epoch_s", "epoch_cpu_s", "amortised_epoch_s", "call_s", "peak_memory_mb", "flops_per_image"):
            row[f"{key}_ratio"] = median(run[key] / first[key] for run, first in zip(own, baseline, strict=True))
        rows.append({"name": name, **row})
    return {"baseline": baseline[0]["name"], "runs": runs, "rows": rows}


def measure_overhead(arguments: argparse.Namespace) -> dict[str, Any]:
    """An epoch of each loop, in turns; ratios of the engine to the bare loop of the same model."""
    model = make_model(arguments, "all")
    size = (arguments.size, arguments.size)
    plain = timm.create_model(arguments.model, img_size=size, num_classes=NUM_CLASSES, global_pool="avg")
    train = Images("train", arguments.images, model.encoder.spec)
    val = Images("val", NUM_CLASSES, model.encoder.spec)

    engine = partial(run_engine, model, train, val, arguments, unfreeze="all", epochs=1, batch_size=arguments.batch)
    loops: dict[str, Callable[[], float]] = {
        "timm": lambda: run_plain(plain, train, arguments, is_volume=False),
        "bare": lambda: run_plain(model, train, arguments, is_volume=True),
        "engine": engine,
        "engine, augmented": partial(engine, augment=AUGMENT, workers=arguments.workers),
    }
    steps: dict[str, list[npt.NDArray[np.float64]]] = {name: [] for name in loops}
    call_s: dict[str, list[float]] = {name: [] for name in loops}
    peak_mb: dict[str, float] = {}
    for _ in range(arguments.repeats):
        for name, run in loops.items():
            if arguments.device.startswith("cuda"):
                torch.cuda.reset_peak_memory_stats()
            with StepClock(arguments.device, arguments.images // arguments.batch) as clock:
                call_s[name].append(run())
            steps[name].append(clock.per_step()[:, :2])
            peak_mb[name] = peak_memory_mb(arguments.device)
    rows = [describe_loop(name, np.concatenate(steps[name]), call_s[name], arguments) for name in loops]
    if arguments.device.startswith("cuda"):  # a process has but one peak of resident memory
        for row in rows:
            row["peak_memory_mb"] = peak_mb[row["name"]]
    bare = next(row for row in rows if row["name"] == "bare")
    keys = ("least_ms", "median_ms", "least_cpu_ms", "median_cpu_ms")
    for row in rows:
        row |= {f"{key}_over_bare": row[key] / bare[key] - 1 for key in keys}
    readings = {name: np.concatenate(steps[name]).tolist() for name in loops}
    return {"baseline": "bare", "rows": rows, "wall_and_cpu_s_per_step": readings}


def describe_loop(
    name: str, steps_S2: npt.NDArray[np.float64], call_s: Sequence[float], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Least and median of a step, and what a call took beside its steps (set-up, validation, state files)."""
    steps_ms_S2 = 1e3 * steps_S2
    (least_ms, least_cpu_ms), (median_ms, median_cpu_ms) = steps_ms_S2.min(axis=0), np.median(steps_ms_S2, axis=0)
    return {
        "name": name,
        "least_ms": least_ms,
        "median_ms": median_ms,
        "least_cpu_ms": least_cpu_ms,
        "median_cpu_ms": median_cpu_ms,
        "images_per_s": 1e3 * arguments.batch / median_ms,
        "beside_steps_s": fmean(call_s) - arguments.images // arguments.batch * steps_S2[:, 0].mean(),
    }


def as_table(columns: dict[str, str], rows: Sequence[dict[str, Any]]) -> str:
    """Rows as Markdown; `columns` maps a heading to how its cell is written."""
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += [f"| {' | '.join(template.format(**row) for template in columns.values())} |" for row in rows]
    return "\n".join(lines)


ADAPTATION_COLUMNS = {
    "variant": "{name}",
    "trains": "{share:.2%}",
    "GFLOP an image": "{gflops:.1f}",
    "s an epoch": "{epoch_s:.2f}",
    "CPU s": "{epoch_cpu_s:.1f}",
    "images/s": "{images_per_s:.1f}",
    "prefix s, once": "{prefix_s:.2f}",
    "s an epoch with it": "{amortised_epoch_s:.2f}",
    "whole call s": "{call_s:.1f}",
    "peak MB": "{peak_memory_mb:.0f}",
    "ratio: FLOP": "{flops_per_image_ratio:.2f}",
    "epoch": "{epoch_s_ratio:.2f}",
    "CPU": "{epoch_cpu_s_ratio:.2f}",
    "with prefix": "{amortised_epoch_s_ratio:.2f}",
    "call": "{call_s_ratio:.2f}",
    "memory": "{peak_memory_mb_ratio:.2f}",
}
OVERHEAD_COLUMNS = {
    "loop": "{name}",
    "least ms a step": "{least_ms:.2f}",
    "median": "{median_ms:.2f}",
    "least CPU ms": "{least_cpu_ms:.2f}",
    "median CPU ms": "{median_cpu_ms:.2f}",
    "over bare: least": "{least_ms_over_bare:+.1%}",
    "over bare: median": "{median_ms_over_bare:+.1%}",
    "least CPU": "{least_cpu_ms_over_bare:+.1%}",
    "median CPU": "{median_cpu_ms_over_bare:+.1%}",
    "images/s": "{images_per_s:.1f}",
    "beside steps s": "{beside_steps_s:.2f}",
}


def print_tables(found: dict[str, Any]) -> None:
    """What was measured, as Markdown."""
    if "adaptations" in found:
        rows = [
            row | {"share": row["trainable"] / row["total"], "gflops": row["flops_per_image"] / 1e9}
            for row in found["adaptations"]["rows"]
        ]
        print(as_table(ADAPTATION_COLUMNS, rows), end="\n\n")
    if "overhead" in found:
        rows = found["overhead"]["rows"]
        memory = {"peak MB": "{peak_memory_mb:.0f}"} if "peak_memory_mb" in rows[0] else {}
        print(as_table(OVERHEAD_COLUMNS | memory, rows))


def parse_arguments() -> argparse.Namespace:
    """Command line; `--adaptation` is how this script calls itself."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["adaptations", "overhead"], nargs="+", default=["adaptations", "overhead"])
    parser.add_argument("--model", default="vit_small_patch16_224", help="a ViT of timm")
    parser.add_argument("--size", type=int, default=224, help="pixels a side")
    parser.add_argument("--images", type=int, default=64, help="of an epoch; a multiple of --batch, twice at least")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=2, help="of the adaptations")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--workers", type=int, default=0, help="processes that augment, in the last loop")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--gpu", action="store_true", help=f"other defaults: {GPU_PRESET}")
    parser.add_argument("--json", type=Path, help="where to write everything measured")
    parser.add_argument("--adaptation", choices=list(ADAPTATIONS), help=argparse.SUPPRESS)
    if parser.parse_known_args()[0].gpu:
        parser.set_defaults(**GPU_PRESET)
    arguments = parser.parse_args()
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("torch finds no CUDA here, which --gpu and --device cuda need; leave them out for the CPU.")
    if arguments.images % arguments.batch or arguments.images < 2 * arguments.batch:
        parser.error(
            f"--images must be a multiple of --batch, twice it at least; got {arguments.images} and {arguments.batch}."
        )
    return arguments


def main() -> None:
    """Measure one adaptation where called for one, else what was asked for."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    if arguments.adaptation:
        print(json.dumps(measure_adaptation(arguments.adaptation, arguments)))
        return
    stated = ("model", "size", "images", "batch", "epochs", "repeats", "device", "precision", "workers", "threads")
    found: dict[str, Any] = {name: getattr(arguments, name) for name in stated}
    is_cuda = arguments.device.startswith("cuda")
    found["machine"] = torch.cuda.get_device_name() if is_cuda else platform.processor() or platform.machine()
    found["torch"] = torch.__version__
    if "adaptations" in arguments.part:
        found["adaptations"] = compare_adaptations(arguments)
    if "overhead" in arguments.part:
        found["overhead"] = measure_overhead(arguments)
    print_tables(found)
    if arguments.json:
        write_json(arguments.json, found)


if __name__ == "__main__":
    main()
