"""Prepared inputs in batches, read and changed by worker processes or here; who does it changes nothing.

Axes: B row of a batch, C channel, D slice, H row of pixels, W column.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch.utils.data import DataLoader, Dataset

from vitreous.core.input_spec import AnySpec
from vitreous.core.streams import stream_seed
from vitreous.inputs.augmentation import AugmentSettings, augment
from vitreous.inputs.prepare import finish_input
from vitreous.recipes.pixel_settings import PixelSet

# what decides how a training row is changed, see `pixel_sampling`: (epoch,), (epoch, repeat), or ("view", number) where
# views are kept; None changes nothing
View = tuple[str | int, ...] | None
Key = tuple[int, View]


class PreparedRows(Dataset[torch.Tensor]):
    """Rows of a set by (row, view).

    Args:
        seed, stage: with view and row they name the stream of a change.
    """

    def __init__(
        self, data: PixelSet, *, augment_settings: AugmentSettings | None = None, seed: int = 0, stage: int = 0
    ) -> None:
        self.spec = data.spec
        self._data = data
        self._augment = augment_settings
        self._seed = seed
        self._stage = stage

    def __getitem__(self, key: Key) -> torch.Tensor:
        row, view = key
        prepared_CDHW = self._data.read(row)
        if view is None or self._augment is None:
            return prepared_CDHW
        chance = stream_seed(self._seed, "augment", self._stage, *view, row)
        return augment(prepared_CDHW, self._augment, self._data.spec, chance)


class InputLoader:
    """Batches of :class:`PreparedRows`, again and again by the same workers.

    Args:
        workers: processes; 0 reads here. More than the machine's cores are not started. Where processes are spawned
            rather than forked (macOS, Windows), the set's `read` must be picklable.
        is_pinned: batches lie in memory that an accelerator copies from without waiting.
    """

    def __init__(self, rows: PreparedRows, *, workers: int, is_pinned: bool) -> None:
        self._rows = rows
        self._is_pinned = is_pinned
        self._batches: list[list[Key]] = []
        self._loader: DataLoader[torch.Tensor] | None = None
        if workers:
            self._loader = DataLoader(
                rows,
                batch_sampler=self._batches,
                num_workers=min(workers, os.cpu_count() or 1),
                collate_fn=partial(stack_inputs, spec=rows.spec),
                pin_memory=is_pinned,
                persistent_workers=True,
                generator=torch.Generator(),  # the loader draws a seed at each pass; it must not be the global one's
            )

    def load(self, batches: Sequence[Sequence[Key]]) -> Iterator[torch.Tensor]:
        """One (B, C, D, H, W) per batch, as :func:`stack_inputs` makes it."""
        if self._loader is not None:
            self._batches[:] = [list(batch) for batch in batches]
            yield from self._loader
            return
        for batch in batches:
            with single_threaded():  # as in a worker: sums of many numbers depend on the number of threads
                stacked = stack_inputs([self._rows[key] for key in batch], self._rows.spec)
            yield stacked.pin_memory() if self._is_pinned else stacked

    def close(self) -> None:
        """End the workers."""
        self._loader = None


@contextmanager
def single_threaded() -> Iterator[None]:
    """torch computes in one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def stack_inputs(prepared: Sequence[torch.Tensor], spec: AnySpec) -> torch.Tensor:
    """Rows along a new first axis; images of 8 bits as they are, everything else as the model takes it.

    An accelerator finishes 8-bit images itself (:func:`finish_stacked`), and a quarter of the bytes travels. Where they
    meet images of 16 bits, all are brought to [0, 1] first.
    """
    if len({row.dtype for row in prepared}) > 1:
        prepared = [row.float() / 255 if row.dtype == torch.uint8 else row for row in prepared]
    stacked_BCDHW = torch.stack(list(prepared))
    return stacked_BCDHW if stacked_BCDHW.dtype == torch.uint8 else finish_input(stacked_BCDHW, spec)


def finish_stacked(stacked_BCDHW: torch.Tensor, spec: AnySpec) -> torch.Tensor:
    """What the model takes, from what :func:`stack_inputs` gave, where that lies."""
    return finish_input(stacked_BCDHW, spec) if stacked_BCDHW.dtype == torch.uint8 else stacked_BCDHW
