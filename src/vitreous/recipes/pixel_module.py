"""A stage in the hands of Lightning's Trainer, which steps, accumulates, casts and places; nothing else of it is on.

Import this module only where training begins: Lightning takes seconds.
"""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from vitreous.core.errors import RunError
from vitreous.core.progress import Advance
from vitreous.core.torchvision_schema import declare_torchvision_schemas
from vitreous.recipes.pixel_sampling import Batch
from vitreous.recipes.pixel_settings import Precision
from vitreous.recipes.pixel_stage import PixelStage

declare_torchvision_schemas()

from lightning.fabric.plugins.environments.lightning import LightningEnvironment  # noqa: E402
from lightning.pytorch import LightningModule, Trainer  # noqa: E402


class EpochBatches:
    """What is left of the epoch under way; not a DataLoader, so that Lightning leaves order and workers alone."""

    def __init__(self, stage: PixelStage, batches: list[Batch]) -> None:
        self._stage = stage
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return self._stage.load(self._batches)


class PixelModule(LightningModule):
    """The hooks of a stage."""

    def __init__(self, stage: PixelStage, advance: Advance) -> None:
        super().__init__()
        self.model = stage.fit.model
        self._stage = stage
        self._advance = advance
        self._batches: list[Batch] = []
        self._trained = list(stage.parameters.values())

    def train_dataloader(self) -> EpochBatches:
        self._batches = self._stage.remaining_batches()
        return EpochBatches(self._stage, self._batches)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self._stage.build_optimizer()

    def on_train_start(self) -> None:
        self._stage.fit.interrupts.listen()  # Lightning's handler of SIGTERM would end between two optimiser steps
        self.model.train()  # what is frozen goes to eval mode, after Lightning has looked for modules left in it

    def training_step(self, x_B: torch.Tensor, batch_idx: int) -> torch.Tensor:
        # Lightning divides by the number of accumulated batches, which the last step of an epoch may not reach
        return self._stage.loss(x_B, self._batches[batch_idx]) * self._stage.fit.settings.accumulate

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self._stage.fit.settings.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._trained, self._stage.fit.settings.clip_norm)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        self._stage.set_learning_rates(self._batches[batch_idx])
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self._stage.after_step()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._advance()
        self._stage.after_batch(self._batches[batch_idx])

    def on_train_epoch_end(self) -> None:
        self._stage.finish_epoch()
        self.trainer.should_stop = self._stage.is_over


def run_stage(stage: PixelStage, advance: Advance) -> None:
    """Train what is left of the stage; the model then lies on the CPU, with the weights of the last epoch."""
    fit = stage.fit
    fit.model.to(fit.device)
    if stage.is_trained:  # interrupted while it validated
        stage.build_optimizer()
        stage.finish_epoch()
        if stage.is_over:
            return
    for module in fit.model.modules():
        module.training = True  # see on_train_start
    with quiet_lightning():
        trainer = build_trainer(
            fit.device,
            fit.precision,
            epochs=stage.stage.epochs - stage.state.epoch,
            accumulate=fit.settings.accumulate,
            folder=fit.state_dir,
        )
        trainer.fit(PixelModule(stage, advance))
    if not stage.is_over:  # Lightning takes a StopIteration, wherever it comes from, for an end
        raise RunError(f"training ended in epoch {stage.state.epoch + 1} without a reason; please report this.")


def build_trainer(device: str, precision: Precision, *, epochs: int, accumulate: int, folder: Path) -> Trainer:
    """One process on one device, without logs, checkpoints, bars and validation of Lightning's own."""
    place = torch.device(device)
    return Trainer(
        accelerator="gpu" if place.type == "cuda" else place.type,
        devices=[place.index or 0] if place.type == "cuda" else 1,
        plugins=[LightningEnvironment()],  # whatever cluster this runs on
        precision="bf16-mixed" if precision == "bf16" else "32-true",
        max_epochs=epochs,
        accumulate_grad_batches=accumulate,
        reload_dataloaders_every_n_epochs=1,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        benchmark=False,  # the fastest kernel of the moment need not be that of the next run
        default_root_dir=folder,
    )


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Without Lightning's advice on devices and its news of each fit."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # a study may ask for the CPU of a machine that has more
            warnings.filterwarnings("ignore", message="GPU available but not used")
            # Lightning 2.6 builds a class that torch 2.13 has renamed
            warnings.filterwarnings("ignore", message=r".*LeafSpec\)` is deprecated", category=FutureWarning)
            yield
    finally:
        log.setLevel(level)
