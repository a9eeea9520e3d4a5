"""One stage of a training on pixels: its epochs, what an epoch learns from, how it is judged, what is kept.

It knows nothing of the engine that steps through it; `pixel_module` hands it to Lightning.

Axes: N row of a set, B row of a batch, C class (of targets) or channel (of input), D slice, H row of pixels, W column.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from vitreous.core.errors import RunError
from vitreous.core.label_sets import memberships
from vitreous.core.streams import stream_seed, torch_stream
from vitreous.inputs.mixing import mix_batch
from vitreous.recipes.early_stopping import EarlyStopping
from vitreous.recipes.ema import WeightAverage
from vitreous.recipes.feature_set import FeatureSet
from vitreous.recipes.interrupts import Interrupts
from vitreous.recipes.pixel_checkpoints import Snapshot, TrainingState, copy_to_cpu, model_tensors, write_state
from vitreous.recipes.pixel_losses import row_losses
from vitreous.recipes.pixel_model import PixelModel
from vitreous.recipes.pixel_prediction import NotFiniteError, score_logits
from vitreous.recipes.pixel_sampling import Batch, count_steps, draw_rows, split_epoch
from vitreous.recipes.pixel_settings import FitSettings, PixelSet, Precision, StageSettings
from vitreous.recipes.pixel_stage_inputs import StageInputs
from vitreous.recipes.schedule import cosine_with_warmup
from vitreous.recipes.trainable import parameter_groups
from vitreous.recipes.training_masks import TrainingMasks, predicted_classes

OnEpoch = Callable[[int, float], None]

_BATCHES_BETWEEN_LOOKS = 50  # at the losses of an accelerator, which has to finish them first


@dataclass(frozen=True)
class Fit:
    """What all stages share.

    Args:
        weight_N: what each training row counts in the loss, class weights included.
        masks: class maps beside the labels; None without segmentation.
        positive_C: of labels, what a row with the label counts more; None for classes.
        fingerprint: of everything that decides the result.
        on_epoch: told the number of epochs so far and the val metric, after the state is written.
    """

    model: PixelModel
    train: PixelSet
    val: PixelSet
    settings: FitSettings
    labels: FeatureSet
    weight_N: npt.NDArray[np.float64]
    val_weight_N: npt.NDArray[np.float64]
    num_classes: int
    metric: str
    seed: int
    device: str
    precision: Precision
    workers: int
    state_dir: Path
    fingerprint: str
    interrupts: Interrupts
    on_epoch: OnEpoch | None = None
    positive_C: torch.Tensor | None = None
    masks: TrainingMasks | None = None

    def targets(self, data: PixelSet, rows: npt.NDArray[np.int64] | None = None) -> torch.Tensor:
        """Which classes or labels rows have, as float64 (N, C)."""
        y_N = data.y_N if rows is None else data.y_N[rows]
        return torch.from_numpy(memberships(y_N, self.num_classes, data.task)).double()


class PixelStage:
    """A stage under way.

    Args:
        state: where the training stands; kept up to date.
        trained: names of the parameters that train in this stage or trained before.
    """

    def __init__(self, fit: Fit, stage: StageSettings, state: TrainingState, trained: Sequence[str]) -> None:
        self.fit = fit
        self.stage = stage
        self.state = state
        self._trained = trained
        self._pending: list[torch.Tensor] = []
        self._split: tuple[int, list[Batch]] | None = None
        self._steps_per_epoch = count_steps(len(fit.train), stage.batch_size, fit.settings.accumulate)
        self._num_warmup_steps = stage.num_warmup_epochs(fit.settings.warmup_epochs) * self._steps_per_epoch
        self.num_batches = len(self._split_epoch(0))  # as many in every epoch
        self._ema: WeightAverage | None = None
        self._optimizer: torch.optim.AdamW
        self._peaks: list[float] = []
        self.inputs = StageInputs(
            fit.model,
            fit.train,
            fit.val,
            fit.settings,
            number=state.stage,
            batch_size=stage.batch_size,
            is_cached=state.is_cached[state.stage],
            seed=fit.seed,
            folder=fit.state_dir,
            device=fit.device,
            precision=fit.precision,
            workers=fit.workers,
            interrupts=fit.interrupts,
        )

    # ---- what an epoch learns from

    def remaining_batches(self) -> list[Batch]:
        """Batches of the epoch that is under way which were not done before an interruption."""
        return self._split_epoch(self.state.epoch)[len(self.state.losses) :]

    def load(self, batches: Sequence[Batch]) -> Iterator[torch.Tensor]:
        """What the model takes for each."""
        return self.inputs.load(batches, self.state.epoch)

    def loss(self, x_B: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The batch's share of the mean loss over its optimiser step; the sum of its weighted losses is noted."""
        fit, state = self.fit, self.state
        seed_generators(stream_seed(fit.seed, "pixel step", state.stage, state.epoch, batch.index), x_B.device)
        # the weight goes along as one more target, so that it is mixed as the targets are
        targets_BC = fit.targets(fit.train, batch.rows_B)
        weight_B1 = torch.from_numpy(fit.weight_N[batch.rows_B])[:, None]
        both = torch.cat([targets_BC, weight_B1], dim=1).to(self._dtype).to(x_B.device, non_blocking=True)
        logits_BC, both = self.inputs.forward(x_B, both, partial(self._mix, batch))
        logits_BC, maps_BKHW = fit.model.split_maps(logits_BC)
        positive_C = None if fit.positive_C is None else fit.positive_C.to(self._dtype).to(x_B.device)
        losses_B = row_losses(logits_BC.to(self._dtype), both[:, :-1], fit.settings, positive_C)
        if maps_BKHW is not None and fit.masks is not None:
            losses_B = losses_B + fit.masks.losses(maps_BKHW.to(self._dtype), batch.rows_B)
        total = (losses_B * both[:, -1]).sum()
        self._pending.append(total.detach())
        return total * batch.scale

    # ---- how far it moves

    def _learning_rate_factor(self, step: int) -> float:
        if self.fit.settings.schedule == "constant":
            return min(1.0, (step + 1) / self._num_warmup_steps) if self._num_warmup_steps else 1.0
        num_steps = self.stage.epochs * self._steps_per_epoch
        return cosine_with_warmup(step, num_steps=num_steps, num_warmup_steps=self._num_warmup_steps)

    def after_batch(self, batch: Batch) -> None:
        """Look at the losses, and stop here if a signal has arrived.

        Raises:
            RunError: the loss is not finite.
        """
        is_cheap = self._pending[-1].device.type == "cpu"
        if is_cheap or batch.index == self.num_batches - 1 or len(self._pending) >= _BATCHES_BETWEEN_LOOKS:
            self._look_at_losses()
        if batch.ends_step:
            self.fit.interrupts.check(self.save)

    def build_optimizer(self) -> torch.optim.AdamW:
        """AdamW as the state left it, and the running mean of the weights; the model lies where it trains."""
        fit, state = self.fit, self.state
        groups = parameter_groups(
            fit.model,
            lr_head=self.stage.lr_head,
            lr_encoder=self.stage.lr_encoder,
            layer_decay=fit.settings.layer_decay,
            weight_decay=fit.settings.weight_decay,
        )
        self._peaks = [group["lr"] for group in groups]
        self._optimizer = torch.optim.AdamW(groups, fused=torch.device(fit.device).type in ("cpu", "cuda"))
        if state.optimizer is not None:
            self._optimizer.load_state_dict(state.optimizer)
        if fit.settings.ema is not None:
            done = state.epoch * self._steps_per_epoch - (-len(state.losses) // fit.settings.accumulate)
            self._ema = WeightAverage(fit.settings.ema, self.parameters, mean=state.ema, num_updates=done)
        return self._optimizer

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """What trains, by name."""
        return {name: parameter for name, parameter in self.fit.model.named_parameters() if parameter.requires_grad}

    def set_learning_rates(self, batch: Batch) -> None:
        """Those of the optimiser step that the batch ends."""
        factor = self._learning_rate_factor(self.state.epoch * self._steps_per_epoch + batch.step)
        for group, peak in zip(self._optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * factor

    def after_step(self) -> None:
        """Take the weights after an optimiser step into their running mean."""
        if self._ema is not None:
            self._ema.update()

    # ---- how it is judged

    @property
    def is_trained(self) -> bool:
        """Whether all batches of the epoch under way are done, and only its validation is missing."""
        return len(self.state.losses) == self.num_batches

    def finish_epoch(self) -> None:
        """Validate, note the epoch, keep the weights if they are the best, write the state."""
        fit, state = self.fit, self.state
        try:
            if self._ema is None:
                score, val_loss, agreement = self._validate()
                weights = None
            else:
                with self._ema.in_place():
                    score, val_loss, agreement = self._validate()
                    weights = model_tensors(fit.model, self._trained)
        except BaseException:  # an interrupt too: the batches are done, only what they came to is still unknown
            fit.interrupts.check(self.save)
            raise
        factor = self._learning_rate_factor((state.epoch + 1) * self._steps_per_epoch - 1)
        has_encoder = any(parameter.requires_grad for parameter in fit.model.encoder.parameters())
        state.history.append(
            {
                "stage": state.stage + 1,
                "epoch": state.epoch + 1,
                "lr_head": self.stage.lr_head * factor,
                "lr_encoder": self.stage.lr_encoder * factor if has_encoder else 0.0,
                "train_loss": self._train_loss(),
                "val_loss": val_loss,
                f"val_{fit.metric}": score,
                **agreement,
            }
        )
        state.losses.clear()
        state.epoch += 1
        if state.best is None or score > state.best.score:
            weights = model_tensors(fit.model, self._trained) if weights is None else weights
            state.best = Snapshot(state.stage, state.epoch, score, copy_to_cpu(weights))
        self.save()
        fit.interrupts.check()
        if fit.on_epoch is not None:
            fit.on_epoch(len(state.history), score)

    @property
    def is_over(self) -> bool:
        """Whether all epochs are done or patience has run out."""
        if self.state.epoch == self.stage.epochs:
            return True
        stopping = EarlyStopping(1, self.stage.patience, self.fit.settings.min_delta)
        rows = [row for row in self.state.history if row["stage"] == self.state.stage + 1]
        ends = [
            stopping.update(np.zeros(1, np.int64), row["epoch"], np.array([row[f"val_{self.fit.metric}"]]))[1].item()
            for row in rows
        ]
        return bool(ends and ends[-1])

    # ---- what is kept

    def save(self) -> None:
        """Write where the training stands; between two optimiser steps only."""
        self._look_at_losses()
        self.state.weights = model_tensors(self.fit.model, self._trained)
        self.state.ema = None if self._ema is None else self._ema.mean
        self.state.optimizer = self._optimizer.state_dict()
        write_state(self.fit.state_dir, self.state, self.fit.fingerprint)

    # ----

    @property
    def _dtype(self) -> torch.dtype:
        return torch.float64 if next(self.fit.model.head.parameters()).dtype == torch.float64 else torch.float32

    def _split_epoch(self, epoch: int) -> list[Batch]:
        fit = self.fit
        if self._split is None or self._split[0] != epoch:
            rows = draw_rows(
                fit.settings.sampler,
                fit.labels,
                seed=fit.seed,
                stage=self.state.stage,
                epoch=epoch,
                num_classes=fit.num_classes,
            )
            size, accumulate = self.stage.batch_size, fit.settings.accumulate
            self._split = epoch, split_epoch(rows, fit.weight_N, batch_size=size, accumulate=accumulate)
        return self._split[1]

    def _mix(self, batch: Batch, x_BCDHW: torch.Tensor, both_BC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        settings = self.fit.settings
        if not settings.is_mixing:
            return x_BCDHW, both_BC
        chance = torch_stream(self.fit.seed, "pixel mix", self.state.stage, self.state.epoch, batch.index)
        return mix_batch(x_BCDHW, both_BC, mixup=settings.mixup, cutmix=settings.cutmix, generator=chance)

    def _look_at_losses(self) -> None:
        if not self._pending:
            return
        first = len(self.state.losses)
        losses = torch.stack(self._pending).cpu().double().tolist()
        self._pending.clear()
        for position, loss in enumerate(losses, start=first):
            if not math.isfinite(loss):
                raise RunError(
                    f"the training loss became {loss} in {self._where()}, "
                    f"batch {position + 1} of {self.num_batches}. Lower lr_head ({self.stage.lr_head:g}) and "
                    f"lr_encoder ({self.stage.lr_encoder:g}), lengthen warmup_epochs, or set clip_norm."
                )
        self.state.losses.extend(losses)

    def _where(self) -> str:
        return f"stage {self.state.stage + 1}, epoch {self.state.epoch + 1}"

    def _train_loss(self) -> float:
        weights = [self.fit.weight_N[batch.rows_B].sum() for batch in self._split_epoch(self.state.epoch)]
        return math.fsum(self.state.losses) / math.fsum(weights)

    def _validate(self) -> tuple[float, float, dict[str, float]]:
        fit = self.fit
        try:
            maps: list[npt.NDArray[np.uint8]] = []
            on_maps = None if fit.masks is None else lambda batch: maps.append(predicted_classes(batch))
            logits_NC = self.inputs.val_logits(on_maps)
        except NotFiniteError as error:
            raise RunError(f"validation in {self._where()}: {error}") from error
        fit.model.train()
        losses_N = row_losses(torch.from_numpy(logits_NC), fit.targets(fit.val), fit.settings, fit.positive_C).numpy()
        val_loss = math.fsum(losses_N * fit.val_weight_N) / math.fsum(fit.val_weight_N)
        agreement = {} if fit.masks is None else {"val_miou": fit.masks.mean_iou_on_val(np.concatenate(maps))}
        return score_logits(logits_NC, fit.val, fit.metric), val_loss, agreement


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the global generators of the CPU and of `device`.

    ``torch.manual_seed`` also notes a stack trace for every kind of device that is not there, a millisecond a call.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
