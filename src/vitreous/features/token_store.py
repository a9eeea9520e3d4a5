"""The token store: all tokens of each file, or a coarser grid of them, kept once and read by memory map.

As the feature store, a folder per space, in shards that appear whole or not at all. A shard is two files:
``tokens-<key>.npy``, the tokens of its usable files one after another, and after it ``tokens-<key>.parquet``, which
file stands where, or why a file has none. Readers map the first and copy the rows of one batch: memory stays that of a
batch.

Axes: N file (or row of a cohort), B row of a batch, T token, D width.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from vitreous.core.errors import RunError, UserError
from vitreous.core.files import remove_partial_files, replacing, write_json
from vitreous.core.fingerprints import fingerprint
from vitreous.features.store import EncodedFile, FeatureSpace, to_bf16_bits

SCHEMA_VERSION = 1
SHARD_BYTES = 256 << 20  # of tokens a writer holds before they are on disk, at most where one file is smaller
_MOST_FILES = 64

BYTES_OF: dict[str, int] = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True)
class View:
    """One augmented look at every file.

    Args:
        number: from 1; names the random stream of each file, (0, "view", number, file id).
        augment: strengths by name, as the study has them.
    """

    number: int
    augment: Mapping[str, Any]


@dataclass(frozen=True)
class TokenSpace:
    """All that decides a file's tokens, apart from the file.

    Args:
        vectors: of the same encoder, inputs and number formats; its own pooling takes no part.
        grid: cells that tokens are averaged to; None keeps every token.
        view: None is the file as it is.
    """

    vectors: FeatureSpace
    grid: tuple[int, int, int] | None
    view: View | None = None

    def describe(self) -> dict[str, Any]:
        """Plain values, as written to ``space.json``."""
        return {
            **self.vectors.describe(),
            "pooling": "tokens",
            "grid": list(self.grid) if self.grid else None,
            **({} if self.view is None else {"view": self.view.number, "augment": dict(self.view.augment)}),
            "token_schema_version": SCHEMA_VERSION,
        }

    @property
    def key(self) -> str:
        """Fingerprint of :meth:`describe`; names the folder."""
        return fingerprint(self.describe())

    @property
    def dtype(self) -> Literal["fp32", "bf16"]:
        """The number format that is kept."""
        return self.vectors.dtype


@dataclass(frozen=True)
class EncodedTokens:
    """One row of a shard: tokens (T, D) in float32, or why there are none."""

    file_id: str
    tokens_TD: npt.NDArray[np.float32] | None
    statistics: Mapping[str, Any] = field(default_factory=dict)
    exception: str = ""
    message: str = ""


class TokenStore:
    """The shards of one token space.

    Args:
        root: folder of the feature store; tokens lie under ``tokens``.
    """

    def __init__(self, root: Path, space: TokenSpace) -> None:
        self.space = space
        self.root = root
        self.folder = root / "tokens" / space.key

    def known_files(self) -> set[str]:
        """Ids that need no encoding: encoded before, or quarantined before by the same decoder."""
        ids: set[str] = set()
        for index in self._indices():
            ids.update(_read_index(index, ["file_id"])["file_id"].to_pylist())
        return ids

    def write_shard(self, rows: Sequence[EncodedTokens]) -> Path:
        """Keep rows as one new shard, whole or not at all.

        Raises:
            ValueError: the rows have tokens of different shapes.
        """
        usable = [row.tokens_TD for row in rows if row.tokens_TD is not None]
        if len(shapes := {tokens_TD.shape for tokens_TD in usable}) > 1:
            raise ValueError(f"tokens of one space have one shape; got {sorted(shapes)}")
        # tokens are patient data: a store that is made here is its owner's alone
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (self.folder / "space.json").exists():
            write_json(self.folder / "space.json", self.space.describe())
        name = f"tokens-{fingerprint([row.file_id for row in rows])[:24]}"
        if usable:
            stored = np.float32 if self.space.dtype == "fp32" else np.uint16
            with replacing(self.folder / f"{name}.npy") as aside:
                kept_NTD = np.lib.format.open_memmap(aside, "w+", dtype=stored, shape=(len(usable), *usable[0].shape))
                for place, tokens_TD in enumerate(usable):
                    kept_NTD[place] = tokens_TD if self.space.dtype == "fp32" else to_bf16_bits(tokens_TD)
                kept_NTD.flush()
                del kept_NTD
        places = np.cumsum([row.tokens_TD is not None for row in rows]) - 1
        table = pa.table(
            {
                "file_id": [row.file_id for row in rows],
                "place": [-1 if row.tokens_TD is None else int(place) for row, place in zip(rows, places, strict=True)],
                "exception": [row.exception for row in rows],
                "message": [row.message for row in rows],
                "statistics": [json.dumps(dict(row.statistics), sort_keys=True) for row in rows],
            }
        )
        with replacing(self.folder / f"{name}.parquet") as aside:
            pq.write_table(table.replace_schema_metadata({"schema_version": str(SCHEMA_VERSION)}), aside)
        return self.folder / f"{name}.parquet"

    def read_facts(self, file_ids: Sequence[str]) -> list[EncodedFile | None]:
        """Statistics, or error, of these files in the order asked for; None for a file not encoded yet."""
        wanted, found = set(file_ids), dict[str, EncodedFile]()
        for index in self._indices():
            for row in _read_index(index).to_pylist():
                if row["file_id"] in wanted:
                    facts = EncodedFile(
                        row["file_id"], None, json.loads(row["statistics"]), row["exception"], row["message"]
                    )
                    found.setdefault(row["file_id"], facts)
        return [found.get(file_id) for file_id in file_ids]

    def places(self) -> dict[str, tuple[Path, int]]:
        """Where the tokens of each usable file lie: array and position in it."""
        found: dict[str, tuple[Path, int]] = {}
        for index in self._indices():
            table = _read_index(index, ["file_id", "place"])
            for file_id, place in zip(table["file_id"].to_pylist(), table["place"].to_pylist(), strict=True):
                if place >= 0:
                    found.setdefault(file_id, (index.with_suffix(".npy"), place))
        return found

    def remove_partial(self) -> None:
        """Remove what a killed process left half-written."""
        if self.folder.is_dir():
            remove_partial_files(self.folder)

    def _indices(self) -> list[Path]:
        # sorted: should two shards hold one file, every reader takes the same one
        return sorted(self.folder.glob("tokens-*.parquet"))


class TokenRows:
    """Tokens of the rows of a cohort, read when they are asked for.

    Args:
        stores: of the files as they are, then of their views.
        file_ids: content identity of each row's file.
    """

    def __init__(self, stores: Sequence[TokenStore], file_ids: Sequence[str]) -> None:
        self._places = [store.places() for store in stores]
        self._keys = [store.space.key for store in stores]
        self._dtype = stores[0].space.dtype
        self.file_ids = list(file_ids)
        self._maps: dict[Path, npt.NDArray[Any]] = {}

    def __len__(self) -> int:
        return len(self.file_ids)

    @property
    def num_views(self) -> int:
        """Augmented views beside the file as it is."""
        return len(self._places) - 1

    @property
    def identity(self) -> list[Any]:
        """What decides the tokens: spaces and files, for fingerprints."""
        return [self._keys, self.file_ids]

    @property
    def shape(self) -> tuple[int, int]:
        """Tokens and width of a file.

        Raises:
            RunError: there are no rows.
        """
        if not self.file_ids:
            raise RunError("there are no rows whose tokens could be read; please report this with the study file.")
        path, _ = self._places[0][self.file_ids[0]]
        _, num_tokens, width = self._map(path).shape
        return num_tokens, width

    def select(self, rows: npt.NDArray[np.int64]) -> "TokenRows":
        """The rows at these positions."""
        part = TokenRows.__new__(TokenRows)
        part._places, part._keys, part._dtype, part._maps = self._places, self._keys, self._dtype, self._maps
        part.file_ids = [self.file_ids[row] for row in rows]
        return part

    def read(self, rows_B: npt.NDArray[np.int64], views_B: npt.NDArray[np.int64] | None = None) -> torch.Tensor:
        """Tokens (B, T, D) in float32.

        Args:
            views_B: 0 is the file as it is; all of them where left out.
        Raises:
            RunError: tokens are not there.
        """
        read = []
        for position, row in enumerate(rows_B.tolist()):
            view = 0 if views_B is None else int(views_B[position])
            place = self._places[view].get(self.file_ids[row])
            if place is None:
                raise RunError(
                    f"the token store lacks view {view} of a file; it was changed during the run. Run the same command "
                    "again."
                )
            read.append(self._map(place[0])[place[1]])
        stacked_BTD = np.stack(read)
        if self._dtype == "bf16":
            return torch.from_numpy(stacked_BTD.view(np.int16)).view(torch.bfloat16).float()
        return torch.from_numpy(stacked_BTD)

    def _map(self, path: Path) -> npt.NDArray[Any]:
        if path not in self._maps:
            try:
                self._maps[path] = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError) as error:
                raise UserError(
                    f"{path}: these tokens cannot be read ({error}). Remove the file and its .parquet; they are "
                    "encoded again on the next run."
                ) from error
        return self._maps[path]


def files_per_shard(num_tokens: int, width: int) -> int:
    """A power of two: as many files as fit into :data:`SHARD_BYTES` in float32, 1 to 64.

    >>> files_per_shard(2048, 1024)
    32
    """
    fitting = max(1, SHARD_BYTES // (4 * num_tokens * width))
    return int(min(_MOST_FILES, 1 << (fitting.bit_length() - 1)))


def _read_index(path: Path, columns: list[str] | None = None) -> pa.Table:
    try:
        return pq.read_table(path, columns=columns)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(
            f"{path}: this shard of the token store cannot be read ({error}). Remove the file and its .npy; its tokens "
            "are encoded again on the next run."
        ) from error
