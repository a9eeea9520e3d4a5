"""One pass over the data: every file is staged, decoded and preprocessed once for all encoders that need it.

Reading, decoding and encoding overlap: files are staged ahead, decoded by a few threads, and encoded in the order
of the study. Batches are fixed inside a shard, and a shard is written when it is full, so a killed pass
that is started again ends in the same bytes.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from vitreous.core.errors import CircumstanceError, InputError, StorageError
from vitreous.core.input_spec import AnySpec
from vitreous.core.progress import Advance, no_progress
from vitreous.core.streams import stream_seed
from vitreous.core.threads import map_ahead
from vitreous.encoders.encoder import Encoder
from vitreous.features.pixel_store import PixelStore
from vitreous.features.pooling import coarse_tokens, pool_tokens
from vitreous.features.store import EncodedFile, FeatureStore
from vitreous.features.token_store import EncodedTokens, TokenStore, files_per_shard
from vitreous.inputs.augmentation import AugmentSettings, augment
from vitreous.inputs.prepare import Decoded, describe_decoded, describe_prepared, finish_input, prepare_input


@dataclass(frozen=True)
class Request:
    """One file (or one item inside a file) that needs features.

    Args:
        file_id: content identity; equal content is encoded once.
        source: what `stage` and `load_input` understand.
        item: index inside the file, -1 for the whole file.
    """

    file_id: str
    source: Any
    item: int = -1


@dataclass(frozen=True)
class EncoderTask:
    """One encoder, where its features go, and volumes a forward pass.

    Args:
        store: of vectors, or None where only tokens are wanted.
        missing: ids of the files whose vectors are missing.
        tokens: of tokens, if wanted, and the ids of the files whose tokens are missing.
    """

    name: str
    encoder: Encoder
    store: FeatureStore | None
    missing_vectors: frozenset[str]
    batch_size: int = 1
    tokens: TokenStore | None = None
    missing_tokens: frozenset[str] = frozenset()

    @property
    def missing(self) -> frozenset[str]:
        """Ids of the files it still has to see."""
        return self.missing_vectors | self.missing_tokens

    @property
    def spec(self) -> AnySpec:
        """The input that the encoder takes."""
        return self.encoder.spec


@dataclass(frozen=True)
class PixelTask:
    """Prepared inputs to be kept for training on pixels, and the ids of the files that are not there yet."""

    name: str
    spec: AnySpec
    store: PixelStore
    missing: frozenset[str]


@dataclass
class PassSummary:
    """What one pass did.

    Args:
        num_files: files decoded, each once.
        num_encoded: per encoder name, rows written.
        seconds: wall time of the pass.
        unusable: file ids that could not be used as things stand (not fetched, beyond a limit, no decoder), with the
            error; nothing is kept of them, and they are asked for again on the next run.
        is_stopped: the pass ended early, since more files than allowed could not be used.
    """

    num_files: int = 0
    num_encoded: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    unusable: dict[str, StorageError | CircumstanceError] = field(default_factory=dict)
    is_stopped: bool = False


Staged = tuple[Request, Path | StorageError]


@dataclass(frozen=True)
class _Prepared:
    """What a file became: a tensor or an error for each input spec that asked for it.

    Args:
        details: for each input spec, statistics that only hold for it.
    """

    request: Request
    statistics: Mapping[str, Any]
    inputs: Mapping[str, torch.Tensor | InputError]
    unusable: StorageError | CircumstanceError | None = None
    details: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def statistics_for(self, spec_key: str) -> dict[str, Any]:
        """All that is known of the file for one input spec."""
        return {**self.statistics, **self.details.get(spec_key, {})}

    @property
    def is_bad(self) -> bool:
        """Whether some encoder gets no tensor of this file."""
        return self.unusable is not None or any(isinstance(one, InputError) for one in self.inputs.values())


class _ShardWriter:
    """Collects the rows of one encoder and writes them in shards of a fixed number of files."""

    def __init__(self, task: EncoderTask, *, shard_size: int, device: torch.device) -> None:
        if task.tokens is not None:
            t, h, w = task.tokens.space.grid or task.encoder.grid
            shard_size = min(shard_size, files_per_shard(t * h * w, task.encoder.width))
        self.task, self.shard_size, self.device = task, shard_size, device
        self.tokens: dict[str, npt.NDArray[np.float32]] = {}
        self.spec_key = _spec_key(task.spec)
        self.rows: list[EncodedFile] = []
        self.waiting: list[tuple[int, torch.Tensor]] = []
        self.num_seen = 0
        self.num_written = 0

    def add(self, prepared: _Prepared) -> None:
        file_id = prepared.request.file_id
        statistics = prepared.statistics_for(self.spec_key)
        match prepared.inputs.get(self.spec_key):
            case InputError() as error:
                self.rows.append(EncodedFile(file_id, None, statistics, type(error).__name__, str(error)))
            case torch.Tensor() as tensor:
                self.waiting.append((len(self.rows), self._viewed(tensor, file_id)))
                self.rows.append(EncodedFile(file_id, None, statistics))
        self.num_seen += 1
        # by the file's place in its shard, so that no boundary moves when a file could not be used or a pass is resumed
        place = self.num_seen % self.shard_size
        if place == 0:
            self.flush()
        elif place % self.task.batch_size == 0:
            self._encode()

    def _viewed(self, prepared_CDHW: torch.Tensor, file_id: str) -> torch.Tensor:
        view = None if self.task.tokens is None else self.task.tokens.space.view
        if view is None:
            return prepared_CDHW
        chance = stream_seed(0, "view", view.number, file_id)
        return augment(prepared_CDHW, AugmentSettings(**view.augment), self.task.spec, chance)

    def flush(self) -> None:
        self._encode()
        if self.rows:
            self._write()
            self.num_written += len(self.rows)
            self.rows, self.tokens = [], {}

    def _write(self) -> None:
        task = self.task
        if task.store is not None and (rows := [row for row in self.rows if row.file_id in task.missing_vectors]):
            task.store.write_shard(rows)
        if task.tokens is not None and (rows := [row for row in self.rows if row.file_id in task.missing_tokens]):
            task.tokens.write_shard(
                [
                    EncodedTokens(row.file_id, self.tokens.get(row.file_id), row.statistics, row.exception, row.message)
                    for row in rows
                ]
            )

    def _encode(self) -> None:
        if not self.waiting:
            return
        task = self.task
        batch_BCDHW = _stack([tensor for _, tensor in self.waiting], task.spec).to(self.device)
        kept_BTD = None
        with torch.inference_mode():
            tokens = task.encoder(batch_BCDHW)
            if task.tokens is not None:
                kept_BTD = coarse_tokens(tokens, task.tokens.space.grid).float().cpu().numpy()
            if task.store is not None:
                features_BD = pool_tokens(tokens, task.store.space.pooling, task.store.space.grid).cpu().numpy()
            else:
                features_BD = pool_tokens(tokens, "mean").cpu().numpy()  # only to see whether it is finite
        for place, ((row, _), features_D) in enumerate(zip(self.waiting, features_BD, strict=True)):
            before = self.rows[row]
            if np.isfinite(features_D).all():
                self.rows[row] = EncodedFile(before.file_id, features_D, before.statistics)
                if kept_BTD is not None and before.file_id in task.missing_tokens:
                    self.tokens[before.file_id] = kept_BTD[place]
            else:
                self.rows[row] = EncodedFile(
                    before.file_id,
                    None,
                    before.statistics,
                    "NonFiniteFeatures",
                    f"encoder {self.task.name} gave NaN or infinite features for this file",
                )
        self.waiting = []


class _PixelWriter:
    """Keeps the prepared inputs of one spec, each as soon as it is there."""

    def __init__(self, task: PixelTask) -> None:
        self.task = task
        self.spec_key = _spec_key(task.spec)
        self.num_written = 0

    def add(self, prepared: _Prepared) -> None:
        file_id = prepared.request.file_id
        statistics = prepared.statistics_for(self.spec_key)
        match prepared.inputs.get(self.spec_key):
            case InputError() as error:
                self.task.store.write_error(file_id, statistics, type(error).__name__, str(error))
            case torch.Tensor() as tensor:
                self.task.store.write(file_id, tensor, statistics)
                self.num_written += 1

    def flush(self) -> None:
        """Nothing waits."""


def _stack(prepared: Sequence[torch.Tensor], spec: AnySpec) -> torch.Tensor:
    """A batch (B, C, D, H, W); files of 8 and of 16 bits may stand side by side."""
    if len({tensor.dtype for tensor in prepared}) == 1:
        return finish_input(torch.stack(list(prepared)), spec)
    return torch.stack([finish_input(tensor, spec) for tensor in prepared])


def encode_missing(
    requests: Sequence[Request],
    tasks: Sequence[EncoderTask | PixelTask],
    *,
    stage: Callable[[Sequence[Request]], Iterable[Staged]],
    load_input: Callable[[Request, Path], Decoded],
    shard_size: int = 64,
    workers: int = 2,
    max_bad: int | None = None,
    device: torch.device | None = None,
    progress: Advance = no_progress,
) -> PassSummary:
    """Fill the stores of all tasks in one pass over the files that any of them misses.

    Args:
        requests: all files of the study in its fixed order, each id once.
        tasks: encoders with their stores and what they miss; prepared inputs to be kept likewise.
        stage: brings files to disk ahead of use, in the order asked for.
        load_input: decodes a staged file; raises InputError for one that cannot be used.
        shard_size: files a shard; a killed pass repeats at most this many.
        workers: decoding threads.
        max_bad: the pass stops when more files than this cannot be used; None goes through all.
        progress: called once per file.
    """
    begin = time.perf_counter()
    device = device or torch.device("cpu")
    writers = [
        _PixelWriter(task) if isinstance(task, PixelTask) else _ShardWriter(task, shard_size=shard_size, device=device)
        for task in tasks
    ]
    union = frozenset().union(*(task.missing for task in tasks))
    summary = PassSummary()
    num_bad = 0

    def prepare(staged: Staged) -> _Prepared:
        request, path = staged
        specs = [task.spec for task in tasks if request.file_id in task.missing]
        return _prepare(request, path, specs, load_input)

    staged = stage([request for request in requests if request.file_id in union])
    for prepared in map_ahead(prepare, staged, workers=workers, ahead=files_in_use(workers) - 1):
        if prepared.unusable is not None:
            summary.unusable[prepared.request.file_id] = prepared.unusable
        else:
            summary.num_files += 1
        num_bad += prepared.is_bad
        for writer in writers:
            if prepared.request.file_id in writer.task.missing:
                writer.add(prepared)
        progress(1)
        if max_bad is not None and num_bad > max_bad:
            summary.is_stopped = True
            break
    for writer in writers:
        writer.flush()
        summary.num_encoded[writer.task.name] = writer.num_written
    summary.seconds = time.perf_counter() - begin
    return summary


def _prepare(
    request: Request,
    path: Path | StorageError,
    specs: Sequence[AnySpec],
    load_input: Callable[[Request, Path], Decoded],
) -> _Prepared:
    if isinstance(path, StorageError):
        return _Prepared(request, {}, {}, unusable=path)
    distinct = {_spec_key(spec): spec for spec in specs}
    try:
        decoded = load_input(request, path)
        # frames of a clip are only read here, so that what stops them may still be a circumstance
        inputs = {key: _try_prepare(decoded, spec) for key, spec in distinct.items()}
        statistics = describe_decoded(decoded)
        usable = [key for key, one in inputs.items() if isinstance(one, torch.Tensor)]
        details = {key: describe_prepared(decoded, distinct[key]) for key in usable}
    except (CircumstanceError, StorageError) as error:
        return _Prepared(request, {}, {}, unusable=error)
    except InputError as error:
        return _Prepared(request, {}, dict.fromkeys(distinct, error))
    return _Prepared(request, statistics, inputs, details=details)


def _try_prepare(decoded: Decoded, spec: AnySpec) -> torch.Tensor | InputError:
    try:
        return prepare_input(decoded, spec)
    except CircumstanceError:
        raise
    except InputError as error:
        return error


def files_in_use(workers: int) -> int:
    """How many staged files the decoders may hold at once: those being read and those that wait their turn."""
    return 2 * workers + 2


def _spec_key(spec: AnySpec) -> str:
    return spec.model_dump_json()
