"""What the benchmarks of forward passes share: a process for each variant, and a matrix product beside each pass."""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
MATMUL_SIZE = 2048  # as fast here as larger ones, and small beside the memory of a forward pass
MEASURED = ("seconds", "gflops", "matmul_gflops", "share_of_matmul", "peak_memory_mb", "memory_before_forward_mb")
Variant = tuple[str, str]


def forward_flop(num_tokens: int, depth: int, width: int = 768, patch_values: int = 4 * 16 * 16) -> float:
    """Multiplications and additions of the matrix products of one forward pass."""
    linear = 2 * num_tokens * 12 * width**2
    attention = 4 * num_tokens**2 * width
    return float(2 * num_tokens * patch_values * width + depth * (linear + attention))


def matmul_flops(dtype: torch.dtype, clock: Callable[[], float]) -> float:
    """FLOP/s of a square product, best of five."""
    a = torch.randn(MATMUL_SIZE, MATMUL_SIZE).to(dtype)
    times = []
    for _ in range(6):  # the first warms up
        start = clock()
        a @ a
        times.append(clock() - start)
    return 2 * MATMUL_SIZE**3 / min(times[1:])


def time_forward(
    forward: Callable[[], torch.Tensor],
    warm_up: Callable[[], object],
    *,
    flop: float,
    dtype: torch.dtype,
    clock: Callable[[], float],
) -> tuple[torch.Tensor, dict[str, float]]:
    """Tokens of one pass after a warm-up, and the :data:`MEASURED` of it in this process."""
    with torch.inference_mode():
        warm_up()
        before = matmul_flops(dtype, clock)
        rss_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = clock()
        tokens_BND = forward()
        seconds = clock() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        after = matmul_flops(dtype, clock)
    return tokens_BND, {
        "seconds": seconds,
        "gflops": flop / seconds / 1e9,
        "matmul_gflops": (before + after) / 2e9,
        "share_of_matmul": flop / seconds / ((before + after) / 2),
        "peak_memory_mb": peak / 1024,
        "memory_before_forward_mb": rss_before / 1024,
    }


def run_in_processes(
    script: Path, variants: Sequence[Variant], repeats: int, options: Sequence[str]
) -> tuple[list[dict[str, Any]], dict[str, dict[str, float]]]:
    """All repeats of all variants, interleaved: ``script --variant KIND PRECISION --tokens FILE options``.

    Returns:
        What each process printed last, and for each variant its tokens compared with those of the first one.
    """
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(repeats):
            for kind, precision in variants:
                tokens = Path(folder) / f"{kind}-{precision}.pt"
                command = [sys.executable, str(script), "--variant", kind, precision, "--tokens", str(tokens), *options]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                runs.append({"repeat": repeat, **json.loads(done.stdout.splitlines()[-1])})
                print(f"repeat {repeat}: {kind} {precision} {runs[-1]['seconds']:.1f} s", file=sys.stderr)
        loaded = {
            f"{kind}-{precision}": torch.load(Path(folder) / f"{kind}-{precision}.pt", weights_only=True)
            for kind, precision in variants
        }
    reference = next(iter(loaded.values()))
    return runs, {name: compare_tokens(tokens, reference) for name, tokens in loaded.items()}


def compare_tokens(tokens_BND: torch.Tensor, reference_BND: torch.Tensor) -> dict[str, float]:
    """Relative distance over all tokens, and the smallest and mean cosine of a token, to eager float32."""
    cosine_BN = nn.functional.cosine_similarity(tokens_BND, reference_BND, dim=-1)
    return {
        "relative_distance": float((tokens_BND - reference_BND).norm() / reference_BND.norm()),
        "smallest_cosine": float(cosine_BN.min()),
        "mean_cosine": float(cosine_BN.mean()),
    }


def summarise(result: dict[str, Any], variants: Sequence[Variant]) -> dict[str, Any]:
    """Medians over repeats as `rows`, and the ratio of each other kind to Vitreous inside each repeat as `speedup`."""

    def of(kind: str, precision: str, key: str) -> list[float]:
        return [run[key] for run in result["runs"] if (run["kind"], run["precision"]) == (kind, precision)]

    rows = [
        {
            "kind": kind,
            "precision": precision,
            **{key: median(of(kind, precision, key)) for key in MEASURED},
            **result["tokens"][f"{kind}-{precision}"],
        }
        for kind, precision in variants
    ]
    speedup: dict[str, dict[str, float]] = {}
    for kind, precision in variants:
        if kind != "vitreous":
            pairs = zip(of(kind, precision, "seconds"), of("vitreous", precision, "seconds"), strict=True)
            speedup.setdefault(kind, {})[precision] = median(plain / vitreous for plain, vitreous in pairs)
    return {**result, "rows": rows, "speedup": speedup}


def as_table(summary: dict[str, Any], item: str, plain: str) -> str:
    """The rows as Markdown; `item` is what one pass encodes, `plain` what the others are called."""
    columns = (
        "variant", f"{item}s a second", f"s a {item}", "GFLOP/s", "matmul GFLOP/s", "share", "peak MB",
        "above weights MB", "cosine to fp32",
    )  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in summary["rows"]:
        above = row["peak_memory_mb"] - row["memory_before_forward_mb"]
        lines.append(
            f"| {row['kind']} {row['precision']} | {1 / row['seconds']:.3f} | {row['seconds']:.1f} | "
            f"{row['gflops']:.0f} | {row['matmul_gflops']:.0f} | {row['share_of_matmul']:.2f} | "
            f"{row['peak_memory_mb']:.0f} | {above:.0f} | {row['mean_cosine']:.6f} "
            f"(least {row['smallest_cosine']:.6f}) |"
        )
    lines.append("")
    for kind, ratio in summary["speedup"].items():
        lines.append(
            f"Vitreous over {plain} {kind}: {ratio['fp32']:.2f}× in float32, {ratio['bf16']:.2f}× in bfloat16."
        )
    return "\n".join(lines)


def add_shared_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of both scripts; `--variant` and `--tokens` are how a script calls itself."""
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="where to write everything measured")
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall", help="cpu: see above")
    parser.add_argument("--variant", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--tokens", type=Path, help=argparse.SUPPRESS)
