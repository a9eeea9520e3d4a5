"""What an encoder costs: counted operations, over the speed this machine shows on a matrix product."""

import copy
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from vitreous.encoders.encoder import Encoder
from vitreous.study.runtime import Runtime

_MATRIX = 1536  # large enough that the product, not its start, is timed; 7 GFLOP
# share of the matrix-product speed that whole encoders reached on the machines they were measured on
REACHED = {"fp32": 0.85, "bf16": 0.45}


@dataclass(frozen=True)
class EncoderCost:
    """Cost of one volume.

    Args:
        flops: floating-point operations of one forward pass.
        seconds: estimated from the machine's matrix-product speed; a guide, not a promise.
        parameter_bytes: of the weights in memory.
    """

    flops: int
    seconds: float
    parameter_bytes: int


def count_flops(encoder: Encoder) -> int:
    """Operations of one forward pass of one volume, counted without computing it."""
    shadow = copy.deepcopy(encoder).to("meta")
    channels, (depth, height, width) = encoder.spec.channels, encoder.spec.size_DHW
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        shadow(torch.empty(1, channels, depth, height, width, device="meta"))
    return int(counter.get_total_flops())


def measure_matmul_flops(runtime: Runtime) -> float:
    """FLOP/s of a large square matrix product in the run's number format."""
    dtype = torch.bfloat16 if runtime.precision == "bf16" else torch.float32
    a = torch.ones(_MATRIX, _MATRIX, dtype=dtype, device=runtime.torch_device)
    seconds = []
    for _ in range(4):
        begin = time.perf_counter()
        product: Any = a @ a
        product[0, 0].item()  # waits for a device that computes aside
        seconds.append(time.perf_counter() - begin)
    return 2 * _MATRIX**3 / min(seconds)


def estimate_cost(encoder: Encoder, runtime: Runtime, matmul_flops: float) -> EncoderCost:
    """What one volume costs on this machine."""
    flops = count_flops(encoder)
    parameter_bytes = sum(tensor.numel() * tensor.element_size() for tensor in encoder.parameters())
    return EncoderCost(flops, flops / (matmul_flops * REACHED[runtime.precision]), parameter_bytes)
