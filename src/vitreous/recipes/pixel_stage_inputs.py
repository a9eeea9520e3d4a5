"""What the model is given in a stage: prepared inputs, or what enters the first trained block where that is kept.

Axes: N row of a set, B row of a batch, C class; x_B stands for either kind of input, rows along its first axis.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from vitreous.core.progress import Advance
from vitreous.core.threads import map_ahead
from vitreous.recipes.interrupts import Interrupts
from vitreous.recipes.pixel_inputs import InputLoader, Key, PreparedRows, View
from vitreous.recipes.pixel_model import PixelModel
from vitreous.recipes.pixel_prediction import autocast, hand_over_maps, input_finisher, plain_batches, run_batches
from vitreous.recipes.pixel_sampling import Batch
from vitreous.recipes.pixel_settings import FitSettings, PixelSet, Precision
from vitreous.recipes.prefix_cache import KeptPrefix, keep_prefix, kept_dtype, remove_prefix


class StageInputs:
    """Inputs of train and val for one stage.

    Args:
        model: with the stage's trained parameters chosen.
        number: of the stage, from 0.
        is_cached: whether the frozen prefix is kept, in `folder`; training and validation then start behind it.
    """

    def __init__(
        self,
        model: PixelModel,
        train: PixelSet,
        val: PixelSet,
        settings: FitSettings,
        *,
        number: int,
        batch_size: int,
        is_cached: bool,
        seed: int,
        folder: Path,
        device: str,
        precision: Precision,
        workers: int,
        interrupts: Interrupts,
    ) -> None:
        self._model = model
        self._num_train, self._num_val = len(train), len(val)
        self._settings = settings
        self._is_cached = is_cached
        self._folder = folder
        self._number = number
        self._device = device
        self._precision: Precision = precision
        self._interrupts = interrupts
        self._block = model.first_trainable_block
        self._finish = input_finisher(model, train.spec, device)
        is_pinned = torch.device(device).type == "cuda"
        self._is_pinned = is_pinned
        augment_settings = settings.augment if settings.is_augmenting else None
        rows = PreparedRows(train, augment_settings=augment_settings, seed=seed, stage=number)
        self._train_loader = InputLoader(rows, workers=workers, is_pinned=is_pinned)
        self._val_loader = InputLoader(PreparedRows(val), workers=workers, is_pinned=is_pinned)
        self._train_batches = plain_batches(len(train), batch_size)
        self._val_batches = plain_batches(len(val), batch_size)
        self._train_prefix: KeptPrefix | None = None
        self._val_prefix: KeptPrefix | None = None

    def load(self, batches: Sequence[Batch], epoch: int) -> Iterator[torch.Tensor]:
        """These training batches, as :meth:`forward` takes them."""
        kept = self._train_prefix
        if kept is None:
            keys = [
                [(int(row), self._view(epoch, int(repeat))) for row, repeat in zip(batch.rows_B, batch.repeat_B)]
                for batch in batches
            ]
            yield from self._train_loader.load(keys)
        else:
            views = self._num_kept_views
            yield from map_ahead(
                lambda batch: self._pinned(kept.take(batch.rows_B, (epoch + batch.repeat_B) % views)),
                batches,
                workers=1,
            )

    def forward(
        self,
        x_B: torch.Tensor,
        both_BC: torch.Tensor,
        mix: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The model's outcome for a training batch (with the maps of its decoder, if it has one), and its targets.

        Args:
            mix: changes finished inputs and targets together; kept prefixes are never mixed.
        """
        with self._model.returning_maps():
            if self._train_prefix is not None:
                return self._model.run_suffix(x_B.to(self._train_prefix.dtype), self._block), both_BC
            x_B, both_BC = mix(self._finish(x_B), both_BC)
            return self._model(x_B), both_BC

    def val_logits(self, on_maps: Callable[[torch.Tensor], None] | None = None) -> npt.NDArray[np.float64]:
        """Logits (N, C) of val; the model is left in eval mode.

        Args:
            on_maps: given the decoder's logits (B, K, H, W) of each batch, rows in order.

        Raises:
            NotFiniteError: logits that are not finite.
        """
        kept, model = self._val_prefix, self._model
        batches: Iterator[torch.Tensor]
        if kept is None:
            batches = self._val_loader.load(self._val_batches)
            forward: Callable[[torch.Tensor], torch.Tensor] = lambda x_B: model(self._finish(x_B))  # noqa: E731
        else:
            rows = (np.array([row for row, _ in batch]) for batch in self._val_batches)
            batches = map_ahead(lambda rows_B: self._pinned(kept.take(rows_B, 0 * rows_B)), rows, workers=1)
            forward = lambda x_B: model.run_suffix(x_B.to(self._device, kept.dtype), self._block)  # noqa: E731

        with model.returning_maps(on_maps is not None):
            return run_batches(
                model,
                lambda x_B: hand_over_maps(model, forward(x_B), on_maps),
                batches,
                precision=self._precision,
                after_batch=self._interrupts.check,
            )

    @property
    def num_prefix_batches(self) -> int:
        """Batches that :meth:`keep_prefixes` goes through; 0 where no prefix is kept."""
        return len(self._train_batches) * self._num_kept_views + len(self._val_batches) if self._is_cached else 0

    def keep_prefixes(self, advance: Advance) -> None:
        """Compute what enters the first trained block, for train and val, unless it is kept already.

        The model must lie on its device.
        """
        views = self._num_kept_views
        keys = [
            [(row, self._view(view, 0)) for row, _ in batch] for view in range(views) for batch in self._train_batches
        ]
        self._train_prefix = self._keep("train", self._train_loader, keys, self._num_train, views, advance)
        self._val_prefix = self._keep("val", self._val_loader, self._val_batches, self._num_val, 1, advance)
        self.close()  # nothing is read any more

    def remove_prefixes(self) -> None:
        """Remove the files of :meth:`keep_prefixes`."""
        self._train_prefix = self._val_prefix = None
        for split in ("train", "val"):
            remove_prefix(self._path(split))

    def close(self) -> None:
        """End the workers."""
        self._train_loader.close()
        self._val_loader.close()

    @property
    def _num_kept_views(self) -> int:
        return max(self._settings.num_views, 1)

    def _view(self, epoch: int, repeat: int) -> View:
        if not self._settings.is_augmenting:
            return None
        # as many views as are asked for wherever something is frozen, whether or not the disk has room to keep them
        has_views = self._settings.num_views and self._block
        if has_views:
            return ("view", (epoch + repeat) % self._settings.num_views)
        return (epoch, repeat) if repeat else (epoch,)

    def _keep(
        self, split: str, loader: InputLoader, keys: list[list[Key]], num_rows: int, num_views: int, advance: Advance
    ) -> KeptPrefix:
        def after_batch() -> None:
            advance()
            self._interrupts.check()

        with autocast(self._model, self._precision):
            return keep_prefix(
                self._path(split),
                loader.load(keys),
                lambda x_B: self._model.run_prefix(self._finish(x_B), self._block),
                num_rows=num_rows,
                num_views=num_views,
                dtype=kept_dtype(self._model, self._precision),
                after_batch=after_batch,
            )

    def _pinned(self, hidden_B: torch.Tensor) -> torch.Tensor:
        return hidden_B.pin_memory() if self._is_pinned else hidden_B

    def _path(self, split: str) -> Path:
        return self._folder / f"prefix-stage{self._number + 1}-{split}.bin"
