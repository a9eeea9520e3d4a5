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
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timed_forward import (
    CLOCKS,
    add_shared_arguments,
    as_table,
    forward_flop,
    run_in_processes,
    summarise,
    time_forward,
)
from torch import nn

from vitreous.core.files import write_json
from vitreous.core.streams import torch_stream
from vitreous.encoders.encoder import DTYPES
from vitreous.encoders.vit3d import ViT3D

from timm.models.vision_transformer import Block  # isort: skip  # after vit3d, which lets torchvision be imported

VARIANTS = [(kind, precision) for precision in ("fp32", "bf16") for kind in ("eager", "vitreous")]


class PlainViT3D(ViT3D):
    """The same weights in timm's own blocks, cast as a whole: what one writes without further thought."""

    def __init__(self, img_size: tuple[int, int, int], depth: int) -> None:
        super().__init__(img_size, (4, 16, 16), depth=depth)
        norm = partial(nn.LayerNorm, eps=1e-5)
        self.blocks = nn.ModuleList(Block(768, 12, qkv_bias=True, norm_layer=norm) for _ in range(depth))

    def set_precision(self, dtype: torch.dtype) -> None:
        self.to(dtype)


def measure(kind: str, precision: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One forward pass in this process, after a warm-up on some tokens."""
    img_size, depth = tuple(arguments.size), arguments.depth
    dtype = DTYPES[precision]
    model = PlainViT3D(img_size, depth) if kind == "eager" else ViT3D(img_size, (4, 16, 16), depth=depth)
    model.init_weights(torch_stream(0, "benchmark weights"))
    model.eval().requires_grad_(False).set_precision(dtype)
    x_BCDHW = torch.randn(1, 1, *img_size, generator=torch_stream(0, "benchmark volume"))
    input_dtype = dtype if kind == "eager" else torch.float32
    tokens_BND, found = time_forward(
        lambda: model(x_BCDHW.to(input_dtype)),
        lambda: model.encode(model.embed(x_BCDHW.to(input_dtype))[:, :512]),
        flop=forward_flop(img_size[0] // 4 * (img_size[1] // 16) * (img_size[2] // 16), depth),
        dtype=dtype,
        clock=CLOCKS[arguments.clock],
    )
    torch.save(tokens_BND.float(), arguments.tokens)
    return {"kind": kind, "precision": precision, **found}


def run_variants(arguments: argparse.Namespace) -> dict[str, Any]:
    """All repeats of all variants, interleaved; tokens compared with eager float32."""
    facts = {name: getattr(arguments, name) for name in ("size", "depth", "threads", "clock")}
    options = ["--size", *map(str, arguments.size)]
    for name in ("depth", "threads", "clock"):
        options += [f"--{name}", str(facts[name])]
    runs, tokens = run_in_processes(Path(__file__), VARIANTS, arguments.repeats, options)
    return {**facts, "torch": torch.__version__, "runs": runs, "tokens": tokens}


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shared_arguments(parser)
    parser.add_argument("--size", type=int, nargs=3, default=[64, 384, 384], metavar=("D", "H", "W"))
    parser.add_argument("--depth", type=int, default=12, help="blocks; fewer for a quick look")
    return parser.parse_args()


def main() -> None:
    """Measure one variant where called for one, else all of them."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    if arguments.variant:
        print(json.dumps(measure(*arguments.variant, arguments)))
        return
    summary = summarise(run_variants(arguments), VARIANTS)
    print(as_table(summary, "volume", "plain"))
    if arguments.json:
        write_json(arguments.json, summary)


if __name__ == "__main__":
    main()
