"""The feature store: what a frozen encoder said about each file, kept once, addressed by content.

A folder per feature space (weights, input spec, pooling, number format, versions) holds shards in Parquet. A shard
appears whole or not at all and is never changed, so a killed encode continues where it stopped and a second
study on the same encoder and files encodes nothing.

Axes: N file, D feature.
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

from vitreous.core.errors import UserError
from vitreous.core.files import remove_partial_files, replacing, write_json
from vitreous.core.fingerprints import fingerprint
from vitreous.core.input_spec import AnySpec
from vitreous.features.pooling import Pooling

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class FeatureSpace:
    """All that decides what a file's features are, apart from the file.

    Args:
        weights_hash: of the encoder's tensors.
        encoder_options: what else decides the forward pass (family, options).
        spec: the input the volumes are brought to.
        pooling: how tokens become one vector; `grid` keeps a coarser token grid, flattened.
        precision: the number format the encoder computes in.
        dtype: the number format that is kept.
        versions: of decoder and preprocessing.
        declared: axes and spacing the study states for files that do not say.
    """

    weights_hash: str
    encoder_options: Mapping[str, Any]
    spec: AnySpec
    pooling: Pooling
    grid: tuple[int, int, int] | None
    precision: Literal["fp32", "bf16"]
    dtype: Literal["fp32", "bf16"]
    versions: Mapping[str, int]
    declared: Mapping[str, Any]

    def describe(self) -> dict[str, Any]:
        """Plain values, as written to ``space.json``."""
        return {
            "weights_hash": self.weights_hash,
            "encoder_options": dict(self.encoder_options),
            "spec": self.spec.model_dump(mode="json"),
            "pooling": self.pooling,
            "grid": list(self.grid) if self.grid else None,
            "precision": self.precision,
            "dtype": self.dtype,
            "versions": dict(self.versions),
            "declared": dict(self.declared),
            "schema_version": SCHEMA_VERSION,
        }

    @property
    def key(self) -> str:
        """Fingerprint of :meth:`describe`; names the folder."""
        return fingerprint(self.describe())


@dataclass(frozen=True)
class EncodedFile:
    """One row of a shard: features, or why there are none.

    Args:
        file_id: content identity of the file (and of the item inside it).
        features_D: float32, or None where the file was quarantined.
        statistics: plain facts of the decoded volume (shape, spacing, value range), for the doctor.
        exception: class name of the error that quarantined the file, else empty.
        message: its text, else empty.
    """

    file_id: str
    features_D: npt.NDArray[np.float32] | None
    statistics: Mapping[str, Any] = field(default_factory=dict)
    exception: str = ""
    message: str = ""


class FeatureStore:
    """The shards of one feature space.

    Args:
        root: folder of all spaces.
        space: what this store holds.
    """

    def __init__(self, root: Path, space: FeatureSpace) -> None:
        self.space = space
        self.root = root
        self.folder = root / space.key[:2] / space.key

    def known_files(self) -> set[str]:
        """Ids that need no encoding: encoded before, or quarantined before by the same decoder."""
        ids: set[str] = set()
        for shard in self._shards():
            ids.update(_read_shard(shard, ["file_id"])["file_id"].to_pylist())
        return ids

    def write_shard(self, rows: Sequence[EncodedFile]) -> Path:
        """Keep rows as one new shard, whole or not at all.

        Raises:
            ValueError: the rows have features of different width.
        """
        widths = {len(row.features_D) for row in rows if row.features_D is not None}
        if len(widths) > 1:
            raise ValueError(f"features of one space have one width; got {sorted(widths)}")
        # features are patient data: a store that is made here is its owner's alone
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        description = self.folder / "space.json"
        if not description.exists():
            write_json(description, self.space.describe())
        path = self.folder / f"shard-{fingerprint([row.file_id for row in rows])[:24]}.parquet"
        with replacing(path) as aside:
            pq.write_table(self._table(rows, widths.pop() if widths else 0), aside, compression="zstd")
        return path

    def read(self, file_ids: Sequence[str]) -> list[EncodedFile | None]:
        """The rows of these files in the order asked for; None for a file not encoded yet."""
        return read_kept(self.folder, file_ids)

    def remove_partial(self) -> None:
        """Remove what a killed process left half-written."""
        if self.folder.is_dir():
            remove_partial_files(self.folder)

    def _shards(self) -> list[Path]:
        return sorted(self.folder.glob("shard-*.parquet"))

    def _table(self, rows: Sequence[EncodedFile], width: int) -> pa.Table:
        features_ND = np.zeros((len(rows), width), np.float32)
        for index, row in enumerate(rows):
            if row.features_D is not None:
                features_ND[index] = row.features_D
        stored = to_bf16_bits(features_ND) if self.space.dtype == "bf16" else features_ND
        column = (
            pa.FixedSizeListArray.from_arrays(pa.array(stored.reshape(-1)), width)
            if width
            else pa.array([[]] * len(rows), pa.list_(pa.float32()))
        )
        table = pa.table(
            {
                "file_id": [row.file_id for row in rows],
                "exception": [row.exception for row in rows],
                "message": [row.message for row in rows],
                "statistics": [json.dumps(dict(row.statistics), sort_keys=True) for row in rows],
                "features": column,
            }
        )
        metadata = {"schema_version": str(SCHEMA_VERSION), "features_dtype": self.space.dtype, "width": str(width)}
        return table.replace_schema_metadata(metadata)


def read_kept(folder: Path, file_ids: Sequence[str]) -> list[EncodedFile | None]:
    """The rows of these files from the shards of one space's folder; None for a file that is not there.

    Raises:
        UserError: a shard cannot be read.
    """
    wanted = set(file_ids)
    found: dict[str, EncodedFile] = {}
    # sorted: should two shards hold one file, every reader takes the same one
    for shard in sorted(folder.glob("shard-*.parquet")):
        table = _read_shard(shard)
        ids = table["file_id"].to_pylist()
        rows = [row for row, file_id in enumerate(ids) if file_id in wanted and file_id not in found]
        if not rows:
            continue
        features_ND = _features_of(table)
        statistics, exceptions, messages = (table[name].to_pylist() for name in ("statistics", "exception", "message"))
        for row in rows:
            features_D = None if exceptions[row] else features_ND[row]
            found[ids[row]] = EncodedFile(
                ids[row], features_D, json.loads(statistics[row]), exceptions[row], messages[row]
            )
    return [found.get(file_id) for file_id in file_ids]


def _features_of(table: pa.Table) -> npt.NDArray[np.float32]:
    width = int(table.schema.metadata[b"width"])
    if width == 0:
        return np.zeros((table.num_rows, 0), np.float32)
    flat = table["features"].combine_chunks().flatten().to_numpy()
    if table.schema.metadata[b"features_dtype"] == b"bf16":
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    features_ND: npt.NDArray[np.float32] = flat.reshape(table.num_rows, width)
    return features_ND


def to_bf16_bits(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Round to nearest even; Arrow has no bfloat16, so its 16 bits are kept as unsigned integers."""
    bits = values.view(np.uint32)
    rounded: npt.NDArray[np.uint16] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return rounded


def _read_shard(path: Path, columns: list[str] | None = None) -> pa.Table:
    try:
        return pq.read_table(path, columns=columns)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(
            f"{path}: this shard of the feature store cannot be read ({error}). Remove the file; "
            "its features are encoded again on the next run."
        ) from error
