"""Forward pass of V-JEPA 2 ViT-L (303.9 M parameters) on one clip of 16×256×256: 2,048 tokens, 1.65 TFLOP.

    python benchmarks/vjepa2_forward.py --repeats 2 --json vjepa2_forward.json

Random weights, made on the spot and the same in all variants. Six variants, each in a process of its own: plain
transformers `VJEPA2Model` (its encoder, without the predictor) with eager attention and with
scaled_dot_product_attention, and Vitreous' encoder, in float32 and in bfloat16. The variants take turns, and each
process measures a large matrix product of its own number format right before and after every forward pass, so that a
share of matmul is a share of what the machine gave in those seconds.

Hardware: any CPU, about 4 GB of memory. Minutes: three to six a repeat on two AVX-512 cores; `--quick` (one block of
a small width, a clip of 4×64×64) half of one.
On a machine that others use, `--clock cpu --threads 1` counts processor time instead.

Goals: no slower than SDPA; less memory above the weights than either; tokens equal to eager's in float32, near in
bfloat16.
"""

import argparse
import json
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
from vitreous.encoders.vjepa2 import VJEPA2Backbone

from transformers import VJEPA2Config, VJEPA2Model  # isort: skip  # after vjepa2, which lets torchvision be imported

KINDS = ("eager", "sdpa", "vitreous")
VARIANTS = [(kind, precision) for precision in ("fp32", "bf16") for kind in KINDS]
PATCH_VALUES = 3 * 2 * 16 * 16
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
QUICK = {"hidden_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2}


class PlainVJEPA2(nn.Module):
    """transformers' model as one calls it for features."""

    def __init__(self, config: VJEPA2Config) -> None:
        super().__init__()
        self.vjepa2 = VJEPA2Model(config)
        self.vjepa2.predictor = nn.Identity()  # not called, and not part of its memory here

    def forward(self, x_BCDHW: torch.Tensor) -> torch.Tensor:
        tokens_BND: torch.Tensor = self.vjepa2(x_BCDHW.transpose(1, 2), skip_predictor=True).last_hidden_state
        return tokens_BND


def build_model(kind: str, size: tuple[int, int, int], architecture: dict[str, int]) -> nn.Module:
    """The model of a variant, with the weights that all have."""
    config = VJEPA2Config(
        **architecture,
        crop_size=size[1],
        frames_per_clip=size[0],
        attn_implementation="eager" if kind == "eager" else "sdpa",
        pred_num_hidden_layers=1,
    )
    own = VJEPA2Backbone(config)
    own.init_weights(torch_stream(0, "benchmark weights"))
    if kind == "vitreous":
        return own
    with torch.device("meta"):  # one copy of the weights, so that memory before the pass is alike
        plain = PlainVJEPA2(config)
    plain.vjepa2.encoder.load_state_dict(own.model.state_dict(), assign=True)
    return plain


def measure(kind: str, precision: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One forward pass in this process, after a warm-up on a short clip."""
    size, dtype = tuple(arguments.size), DTYPES[precision]
    architecture = {"hidden_size": arguments.width, "num_hidden_layers": arguments.depth}
    architecture |= {"num_attention_heads": arguments.heads}
    model = build_model(kind, size, architecture).eval().requires_grad_(False)
    input_dtype = torch.float32
    if kind == "vitreous":
        model.set_precision(dtype)
    else:
        model.to(dtype)
        input_dtype = dtype
    x_BCDHW = torch.randn(1, 3, *size, generator=torch_stream(0, "benchmark clip")).to(input_dtype)
    warm_BCDHW = x_BCDHW[:, :, :2]

    def warm_up() -> None:
        if kind == "vitreous":
            model.set_input_size((2, *size[1:]))
        model(warm_BCDHW)
        if kind == "vitreous":
            model.set_input_size(size)

    num_tokens = size[0] // 2 * (size[1] // 16) * (size[2] // 16)
    flop = forward_flop(num_tokens, arguments.depth, arguments.width, PATCH_VALUES)
    tokens_BND, found = time_forward(
        lambda: model(x_BCDHW), warm_up, flop=flop, dtype=dtype, clock=CLOCKS[arguments.clock]
    )
    torch.save(tokens_BND.float(), arguments.tokens)
    return {"kind": kind, "precision": precision, **found}


def run_variants(arguments: argparse.Namespace) -> dict[str, Any]:
    """All repeats of all variants, interleaved; tokens compared with eager float32."""
    names = ("size", "width", "depth", "heads", "threads", "clock")
    options = ["--size", *map(str, arguments.size)]
    for name in names[1:]:
        options += [f"--{name}", str(getattr(arguments, name))]
    runs, tokens = run_in_processes(Path(__file__), VARIANTS, arguments.repeats, options)
    facts = {name: getattr(arguments, name) for name in names}
    return {**facts, "torch": torch.__version__, "runs": runs, "tokens": tokens}


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shared_arguments(parser)
    parser.add_argument("--size", type=int, nargs=3, default=[16, 256, 256], metavar=("D", "H", "W"))
    parser.add_argument("--width", type=int, default=LARGE["hidden_size"])
    parser.add_argument("--depth", type=int, default=LARGE["num_hidden_layers"], help="blocks; fewer for a quick look")
    parser.add_argument("--heads", type=int, default=LARGE["num_attention_heads"])
    parser.add_argument("--quick", action="store_true", help="one small block, one repeat")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.repeats, arguments.size = 1, [4, 64, 64]
        arguments.width, arguments.depth, arguments.heads = QUICK.values()
    return arguments


def main() -> None:
    """Measure one variant where called for one, else all of them."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    if arguments.variant:
        print(json.dumps(measure(*arguments.variant, arguments)))
        return
    summary = summarise(run_variants(arguments), VARIANTS)
    print(as_table(summary, "clip", "transformers"))
    if arguments.json:
        write_json(arguments.json, summary)


if __name__ == "__main__":
    main()
