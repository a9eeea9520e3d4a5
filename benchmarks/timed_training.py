"""What the training benchmarks share: a clock of optimiser steps, images, a ViT, and the two loops that train it.

Axes: N row, B row of a batch, C channel or class, D slice (one), H row of pixels, W column.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.flop_counter import FlopCounterMode

from vitreous.core.input_spec import AnySpec
from vitreous.core.streams import torch_stream
from vitreous.encoders.catalog import build_random_encoder
from vitreous.inputs.augmentation import AugmentSettings
from vitreous.inputs.prepare import finish_input
from vitreous.recipes.lora import add_adapters
from vitreous.recipes.pixel_model import PixelModel
from vitreous.recipes.pixel_settings import FitSettings, PixelSet, StageSettings, Unfreeze
from vitreous.recipes.pixel_training import fit_pixels
from vitreous.recipes.trainable import set_trainable

NUM_CLASSES = 2


class StepClock:
    """Wall time and CPU seconds of all threads at the end of every optimiser step in this process, whoever takes it.

    A GPU is waited for at the first and last step of an epoch alone, so that work may run ahead in between.

    Args:
        counter: of FLOPs, read at each step.
    """

    def __init__(self, device: str, steps_per_epoch: int, counter: FlopCounterMode | None = None) -> None:
        self.first_step_s = 0.0
        self._is_cuda = device.startswith("cuda")
        self._steps = steps_per_epoch
        self._counter = counter
        self._marks: list[tuple[float, float, float]] = []

    def __enter__(self) -> "StepClock":
        self._handles = [
            register_optimizer_step_pre_hook(self._begin),
            register_optimizer_step_post_hook(self._end),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def per_step(self) -> npt.NDArray[np.float64]:
        """Wall seconds, CPU seconds and FLOPs of steps, (readings, 3); on a GPU a reading is the mean of an epoch."""
        stride = self._steps - 1 if self._is_cuda else 1
        marks = np.array(self._marks).reshape(-1, self._steps, 3)[:, ::stride]
        per_step: npt.NDArray[np.float64] = (np.diff(marks, axis=1) / stride).reshape(-1, 3)
        return per_step

    def _begin(self, *_: object) -> None:
        if not self._marks:
            self.first_step_s = time.perf_counter()

    def _end(self, *_: object) -> None:
        if self._is_cuda and len(self._marks) % self._steps in (0, self._steps - 1):
            torch.cuda.synchronize()
        flops = self._counter.get_total_flops() if self._counter else 0
        self._marks.append((time.perf_counter(), time.process_time(), float(flops)))


class Images:
    """Random 8-bit images in memory, and when the first was read."""

    def __init__(self, split: str, num_images: int, spec: AnySpec) -> None:
        self.first_read_s = 0.0
        shape = (num_images, spec.channels, *spec.size_DHW)
        self.x_NCDHW = torch.randint(
            256, shape, dtype=torch.uint8, generator=torch_stream(0, "benchmark images", split)
        )
        self.y_N = np.arange(num_images) % NUM_CLASSES
        ids_N = np.array([f"{split}{row}" for row in range(num_images)])
        self.pixels = PixelSet(self._read, self.y_N, ids_N, np.ones(num_images), spec)

    def _read(self, row: int) -> torch.Tensor:
        self.first_read_s = self.first_read_s or time.perf_counter()
        return self.x_NCDHW[row]


def make_model(arguments: argparse.Namespace, unfreeze: Unfreeze) -> PixelModel:
    """The ViT with random weights, a linear head, and adapters where those train."""
    architecture = {"model": arguments.model, "img_size": [arguments.size, arguments.size]}
    encoder = build_random_encoder("timm", architecture=architecture, seed=0, modality="image", trainable=True)
    model = PixelModel(
        encoder,
        pooling="mean",
        coarse_grid=None,
        num_classes=NUM_CLASSES,
        head="linear",
        head_width=1,
        dropout=0.0,
        seed=0,
    )
    if unfreeze == "adapters":
        add_adapters(
            model, rank=8, alpha=16, dropout=0.0, targets=("qkv",), layers=None, rslora=False, dora=False, seed=0
        )
    elif unfreeze is not None:
        set_trainable(model, unfreeze)
    return model


def run_engine(
    model: PixelModel,
    train: Images,
    val: Images,
    arguments: argparse.Namespace,
    *,
    unfreeze: Unfreeze,
    epochs: int,
    batch_size: int,
    prefix_views: int = 0,
    augment: AugmentSettings | None = None,
    workers: int = 0,
) -> float:
    """Seconds of a whole call of `fit_pixels`."""
    settings = FitSettings(augment=augment, prefix_views=prefix_views)
    stage = StageSettings(epochs=epochs, unfreeze=unfreeze, batch_size=batch_size, patience=None)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        fit_pixels(
            model,
            train.pixels,
            val.pixels,
            [stage],
            settings,
            seed=0,
            num_classes=NUM_CLASSES,
            metric="balanced_accuracy",
            state_dir=Path(folder),
            device=arguments.device,
            precision=arguments.precision,
            workers=workers,
        )
        return time.perf_counter() - begin


def run_plain(model: nn.Module, train: Images, arguments: argparse.Namespace, *, is_volume: bool) -> float:
    """Seconds of one epoch as anyone would write it, its batches ready in (pinned) memory.

    Args:
        is_volume: the model takes (B, C, D, H, W) rather than (B, C, H, W).
    """
    device = torch.device(arguments.device)
    model.to(device).train()
    x_NCDHW = finish_input(train.x_NCDHW, train.pixels.spec)
    x_N, y_N = (x_NCDHW if is_volume else x_NCDHW[:, :, 0]), torch.from_numpy(train.y_N)
    if device.type == "cuda":
        x_N, y_N = x_N.pin_memory(), y_N.pin_memory()
    batches = list(zip(torch.split(x_N, arguments.batch), torch.split(y_N, arguments.batch)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.05, fused=True)
    begin = time.perf_counter()
    for x_B, y_B in batches:
        with torch.autocast(device.type, torch.bfloat16, enabled=arguments.precision == "bf16"):
            logits_BC = model(x_B.to(device, non_blocking=True))
        loss = nn.functional.cross_entropy(logits_BC.float(), y_B.to(device, non_blocking=True))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.to("cpu")
    return time.perf_counter() - begin
