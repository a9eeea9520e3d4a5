"""What enters the first trained block, computed once per row and view and kept in a file.

The frozen blocks before it always answer the same, so that training can start behind them. The file is read through
the system's page cache: it takes memory that nobody else wants. Where training computes in bf16, what is kept is
rounded to bf16, which halves it; else it is kept as it is.

Axes: B row of a batch, V·N view and row.
"""

import json
import math
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from vitreous.core.files import write_json
from vitreous.recipes.pixel_model import PixelModel
from vitreous.recipes.pixel_settings import Precision

_SPARE_SHARE = 0.05  # of the disk's free room, left to others


@dataclass(frozen=True)
class KeptPrefix:
    """Hidden states of one set.

    Args:
        hidden: memory-mapped, one row per view and row of the set, views outermost.
        num_rows: of the set.
        dtype: in which they entered the block; they may be kept in a shorter one.
    """

    hidden: torch.Tensor
    num_rows: int
    dtype: torch.dtype

    def take(self, rows_B: npt.NDArray[np.int64], view_B: npt.NDArray[np.int64]) -> torch.Tensor:
        """(B, …) of these rows and views, on the CPU."""
        return self.hidden[torch.from_numpy(rows_B + view_B * self.num_rows)]


def hidden_shape(model: PixelModel, block: int) -> tuple[tuple[int, ...], torch.dtype]:
    """Of what enters `block`, for one row; found by running one."""
    weight = next(model.head.parameters())
    spec = model.encoder.spec
    blank = torch.zeros(1, spec.channels, *spec.size_DHW, device=weight.device, dtype=weight.dtype)
    hidden = model.run_prefix(blank, block)
    return tuple(hidden.shape[1:]), hidden.dtype


def kept_dtype(model: PixelModel, precision: Precision) -> torch.dtype:
    """bf16 where the training computes in it, else the model's own."""
    return torch.bfloat16 if precision == "bf16" else next(model.head.parameters()).dtype


def prefix_bytes(model: PixelModel, rows: int, views: int, dtype: torch.dtype) -> int:
    """Bytes of what enters the first trained block for `views` of each of `rows`; 0 where nothing is frozen.

    Args:
        rows: training rows; val rows have one view each and are asked for apart.
        dtype: in which they are kept, see :func:`kept_dtype`.
    """
    block = model.first_trainable_block
    if not block:
        return 0
    return rows * views * math.prod(hidden_shape(model, block)[0]) * dtype.itemsize


def has_room(folder: Path, needed: int) -> bool:
    """Whether the disk of `folder` takes `needed` bytes more."""
    return needed <= shutil.disk_usage(folder).free * (1 - _SPARE_SHARE)


def keep_prefix(
    path: Path,
    batches: Iterable[torch.Tensor],
    run: Callable[[torch.Tensor], torch.Tensor],
    *,
    num_rows: int,
    num_views: int,
    dtype: torch.dtype,
    after_batch: Callable[[], None],
) -> KeptPrefix:
    """Compute what is not kept yet.

    A file is whole when the note beside it says so; one that is not is made anew, in the same batches.

    Args:
        path: of the file; the note has the suffix ``.json``.
        batches: inputs of all rows in order, view after view; not touched where the file is whole.
        run: from such a batch to what enters the block.
        after_batch: called after each.
    """
    note = path.with_suffix(".json")
    if note.exists():
        said = json.loads(note.read_text())
        entered: torch.dtype = getattr(torch, said["dtype"])
        return KeptPrefix(_map(path, tuple(said["shape"]), dtype), num_rows, entered)
    path.unlink(missing_ok=True)
    hidden, start, entered = None, 0, dtype
    for x_B in batches:
        found_B = run(x_B)
        if hidden is None:
            entered = found_B.dtype
            hidden = _map(path, (num_views * num_rows, *found_B.shape[1:]), dtype)
        hidden[start : start + len(found_B)].copy_(found_B)
        start += len(found_B)
        after_batch()
    if hidden is None or start != len(hidden):
        raise ValueError(f"{path}: {start} rows were given, {num_views * num_rows} announced.")
    with path.open("rb+") as file:
        os.fsync(file.fileno())  # the note must not outlive rows that a crash of the machine lost
    write_json(note, {"shape": list(hidden.shape), "dtype": str(entered).removeprefix("torch.")})
    return KeptPrefix(hidden, num_rows, entered)


def remove_prefix(path: Path) -> None:
    """Remove a file of :func:`keep_prefix`, the note first."""
    path.with_suffix(".json").unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _map(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    size = math.prod(shape)
    if not path.exists() and hasattr(os, "posix_fallocate"):
        with path.open("wb") as file:
            # a full disk raises here, and not as a bus error in the middle of a write
            os.posix_fallocate(file.fileno(), 0, size * dtype.itemsize)
    return torch.from_file(str(path), shared=True, size=size, dtype=dtype).view(shape)
