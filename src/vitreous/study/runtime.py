"""Where and in which number format to compute: what the study asks for, or what the device gains from."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, assert_never

from vitreous.config.study import StudyConfig
from vitreous.core.errors import ConfigError
from vitreous.core.input_spec import AnySpec
from vitreous.core.processor import multiplies_bfloat16_faster

if TYPE_CHECKING:
    import torch

# voxels a batch holds when `batch_size: auto`: one 64×384×384 volume on a CPU, sixteen on a GPU
_BATCH_VOXELS = {"cpu": 64 * 384 * 384, "cuda": 16 * 64 * 384 * 384, "mps": 2 * 64 * 384 * 384}
_MAX_BATCH = 32


@dataclass(frozen=True)
class Runtime:
    """Device, number format and threads of a run."""

    device: Literal["cpu", "cuda", "mps"]
    precision: Literal["fp32", "bf16"]
    workers: int
    batch_size: int | Literal["auto"]

    @property
    def torch_device(self) -> "torch.device":
        import torch

        return torch.device(self.device)

    @property
    def pixel_workers(self) -> int:
        """Processes that read training inputs beside an accelerator; a CPU reads them in the training itself."""
        return 0 if self.device == "cpu" else self.workers

    def batch_size_for(self, spec: AnySpec) -> int:
        """Volumes a forward pass; fixed by the input's size, so that it is the same on every run."""
        if self.batch_size != "auto":
            return self.batch_size
        depth, height, width = spec.size_DHW
        return max(1, min(_MAX_BATCH, _BATCH_VOXELS[self.device] // (depth * height * width * spec.channels)))


def resolve_runtime(config: StudyConfig) -> Runtime:
    """Turn `auto` into facts.

    Raises:
        ConfigError: the study names a device this machine lacks, or a format the device cannot compute in.
    """
    device = _resolve_device(config.device)
    workers = config.workers if config.workers != "auto" else max(1, min(8, os.cpu_count() or 1))
    return Runtime(device, _resolve_precision(config.precision, device), workers, config.batch_size)


def _resolve_device(asked: Literal["auto", "cpu", "cuda", "mps", "xla"]) -> Literal["cpu", "cuda", "mps"]:
    import torch

    match asked:
        case "cpu":
            return "cpu"
        case "auto":
            return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        case "cuda":
            if not torch.cuda.is_available():
                raise ConfigError(
                    "device: cuda was asked for, but torch finds no CUDA device; set device: cpu or auto."
                )
            return "cuda"
        case "mps":
            if not torch.backends.mps.is_available():
                raise ConfigError("device: mps was asked for, but torch finds none; set device: cpu or auto.")
            return "mps"
        case "xla":
            raise ConfigError(
                "device: xla is not served by this version; encoders and recipes run on cpu, cuda and mps."
            )
    assert_never(asked)


def _resolve_precision(asked: Literal["auto", "fp32", "bf16"], device: str) -> Literal["fp32", "bf16"]:
    import torch

    match asked:
        case "fp32":
            return "fp32"
        case "bf16":
            if device == "cuda" and not torch.cuda.is_bf16_supported():
                raise ConfigError("precision: bf16 was asked for, but this CUDA device lacks it; set precision: fp32.")
            return "bf16"
        case "auto":
            if device == "cuda":
                return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
            return "bf16" if device == "cpu" and multiplies_bfloat16_faster() else "fp32"
    assert_never(asked)
