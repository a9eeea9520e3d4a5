"""Forward pass of the 92.9 M-parameter 3D transformer on one volume of 1×64×384×384 (4.7 TFLOP).

    python benchmarks/encoder_forward.py --repeats 2 --json encoder_forward.json

Four variants, each in a process of its own: plain PyTorch eager with scaled_dot_product_attention (timm's blocks as
they are) and Vitreous, in float32 and in bfloat16, with the same weights and input. The variants take turns, and each
process measures a large matrix product of its own number format right before and after every forward pass, so that
a share of matmul is a share of what the machine gave in those seconds.

Hardware: any CPU, about 3 GB of memory. Minutes: two to three a repeat on two AVX-512 cores.
On a machine that others use, `--clock cpu --threads 1` counts processor time instead, and `--depth 2` takes a sixth of
it at the same ratios.

Goals: float32 at 0.85 of matmul or more; bfloat16 at least twice as fast as plain eager; bfloat16 tokens near
float32 ones.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from vitreous.core.files import write_json
from vitreous.core.streams import torch_stream
from vitreous.encoders.encoder import DTYPES
from vitreous.encoders.vit3d import ViT3D

from timm.models.vision_transformer import Block  # isort: skip  # after vit3d, which lets torchvision be imported

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
VARIANTS = [(kind, precision) for precision in ("fp32", "bf16") for kind in ("eager", "vitreous")]
MATMUL_SIZE = 2048  # as fast here as larger ones, and small beside the memory of a forward pass


class PlainViT3D(ViT3D):
    """The same weights in timm's own blocks, cast as a whole: what one writes without further thought."""

    def __init__(self, img_size: tuple[int, int, int], depth: int) -> None:
        super().__init__(img_size, (4, 16, 16), depth=depth)
        norm = partial(nn.LayerNorm, eps=1e-5)
        self.blocks = nn.ModuleList(Block(768, 12, qkv_bias=True, norm_layer=norm) for _ in range(depth))

    def set_precision(self, dtype: torch.dtype) -> None:
        self.to(dtype)


def forward_flop(num_tokens: int, depth: int, width: int = 768, patch_voxels: int = 4 * 16 * 16) -> float:
    """Multiplications and additions of the matrix products of one forward pass."""
    linear = 2 * num_tokens * 12 * width**2
    attention = 4 * num_tokens**2 * width
    return float(2 * num_tokens * patch_voxels * width + depth * (linear + attention))


def matmul_flops(dtype: torch.dtype, clock: Callable[[], float]) -> float:
    """FLOP/s of a square product, best of five."""
    a = torch.randn(MATMUL_SIZE, MATMUL_SIZE).to(dtype)
    times = []
    for _ in range(6):  # the first warms up
        start = clock()
        a @ a
        times.append(clock() - start)
    return 2 * MATMUL_SIZE**3 / min(times[1:])


def measure(kind: str, precision: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One forward pass in this process, after a warm-up on some tokens."""
    clock = CLOCKS[arguments.clock]
    img_size, depth = tuple(arguments.size), arguments.depth
    dtype = DTYPES[precision]
    model = PlainViT3D(img_size, depth) if kind == "eager" else ViT3D(img_size, (4, 16, 16), depth=depth)
    model.init_weights(torch_stream(0, "benchmark weights"))
    model.eval().requires_grad_(False).set_precision(dtype)
    x_BCDHW = torch.randn(1, 1, *img_size, generator=torch_stream(0, "benchmark volume"))
    input_dtype = dtype if kind == "eager" else torch.float32
    with torch.inference_mode():
        model.encode(model.embed(x_BCDHW.to(input_dtype))[:, :512])
        before = matmul_flops(dtype, clock)
        rss_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = clock()
        tokens_BND = model(x_BCDHW.to(input_dtype))
        seconds = clock() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        after = matmul_flops(dtype, clock)
    torch.save(tokens_BND.float(), arguments.tokens)
    achieved = forward_flop(tokens_BND.shape[1], depth) / seconds
    return {
        "kind": kind,
        "precision": precision,
        "seconds": seconds,
        "gflops": achieved / 1e9,
        "matmul_gflops": (before + after) / 2e9,
        "share_of_matmul": achieved / ((before + after) / 2),
        "peak_memory_mb": peak / 1024,
        "memory_before_forward_mb": rss_before / 1024,
    }


def run_variants(arguments: argparse.Namespace) -> dict[str, Any]:
    """All repeats of all variants, interleaved; tokens compared in pairs."""
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(arguments.repeats):
            for kind, precision in VARIANTS:
                tokens = Path(folder) / f"{kind}-{precision}.pt"
                command = [
                    sys.executable,
                    __file__,
                    "--variant",
                    kind,
                    precision,
                    "--tokens",
                    str(tokens),
                    "--size",
                    *map(str, arguments.size),
                    "--depth",
                    str(arguments.depth),
                    "--threads",
                    str(arguments.threads),
                    "--clock",
                    arguments.clock,
                ]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                runs.append({"repeat": repeat, **json.loads(done.stdout.splitlines()[-1])})
                print(f"repeat {repeat}: {kind} {precision} {runs[-1]['seconds']:.1f} s", file=sys.stderr)
        loaded = {
            name: torch.load(Path(folder) / f"{name}.pt", weights_only=True)
            for name in ("eager-fp32", "vitreous-fp32", "eager-bf16", "vitreous-bf16")
        }
    reference = loaded["eager-fp32"]
    return {
        "size": arguments.size,
        "depth": arguments.depth,
        "threads": arguments.threads,
        "clock": arguments.clock,
        "torch": torch.__version__,
        "runs": runs,
        "tokens": {name: compare_tokens(tokens, reference) for name, tokens in loaded.items()},
    }


def compare_tokens(tokens_BND: torch.Tensor, reference_BND: torch.Tensor) -> dict[str, float]:
    """Relative distance over all tokens, and the smallest and mean cosine of a token, to eager float32."""
    cosine_BN = nn.functional.cosine_similarity(tokens_BND, reference_BND, dim=-1)
    return {
        "relative_distance": float((tokens_BND - reference_BND).norm() / reference_BND.norm()),
        "smallest_cosine": float(cosine_BN.min()),
        "mean_cosine": float(cosine_BN.mean()),
    }


def summarise(result: dict[str, Any]) -> dict[str, Any]:
    """Medians over repeats, and the ratio of plain eager to Vitreous inside each repeat."""

    def of(kind: str, precision: str, key: str) -> list[float]:
        return [run[key] for run in result["runs"] if (run["kind"], run["precision"]) == (kind, precision)]

    keys = ("seconds", "gflops", "matmul_gflops", "share_of_matmul", "peak_memory_mb", "memory_before_forward_mb")
    rows = [
        {
            "kind": kind,
            "precision": precision,
            **{key: median(of(kind, precision, key)) for key in keys},
            **result["tokens"][f"{kind}-{precision}"],
        }
        for kind, precision in VARIANTS
    ]
    speedup = {}
    for precision in ("fp32", "bf16"):
        pairs = zip(of("eager", precision, "seconds"), of("vitreous", precision, "seconds"))
        speedup[precision] = median(eager / vitreous for eager, vitreous in pairs)
    return {**result, "rows": rows, "speedup_over_eager": speedup}


def as_table(summary: dict[str, Any]) -> str:
    """The rows as Markdown."""
    columns = (
        "variant",
        "s a volume",
        "GFLOP/s",
        "matmul GFLOP/s",
        "share",
        "peak MB",
        "above weights MB",
        "cosine to fp32",
    )
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in summary["rows"]:
        above = row["peak_memory_mb"] - row["memory_before_forward_mb"]
        lines.append(
            f"| {row['kind']} {row['precision']} | {row['seconds']:.1f} | {row['gflops']:.0f} | "
            f"{row['matmul_gflops']:.0f} | {row['share_of_matmul']:.2f} | {row['peak_memory_mb']:.0f} | {above:.0f} | "
            f"{row['mean_cosine']:.6f} (least {row['smallest_cosine']:.6f}) |"
        )
    ratio = summary["speedup_over_eager"]
    lines.append(f"\nVitreous over plain eager: {ratio['fp32']:.2f}× in float32, {ratio['bf16']:.2f}× in bfloat16.")
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    """Command line; `--variant` is how this script calls itself."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--size", type=int, nargs=3, default=[64, 384, 384], metavar=("D", "H", "W"))
    parser.add_argument("--depth", type=int, default=12, help="blocks; fewer for a quick look")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="where to write everything measured")
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall", help="cpu: see above")
    parser.add_argument("--variant", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--tokens", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure one variant where called for one, else all of them."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    if arguments.variant:
        kind, precision = arguments.variant
        print(json.dumps(measure(kind, precision, arguments)))
        return
    summary = summarise(run_variants(arguments))
    print(as_table(summary))
    if arguments.json:
        write_json(arguments.json, summary)


if __name__ == "__main__":
    main()
