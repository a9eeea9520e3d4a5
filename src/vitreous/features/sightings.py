"""Sightings kept by content, beside the features: a file is decoded once for the leak gate, whatever study asks.

Axes: B bit.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vitreous.core.errors import CircumstanceError, InputError, StorageError, UserError
from vitreous.core.files import remove_partial_files, replacing, write_json
from vitreous.core.fingerprints import fingerprint
from vitreous.core.progress import Advance, no_progress
from vitreous.core.threads import map_ahead
from vitreous.features.encode import Request, Staged, files_in_use
from vitreous.inputs.near_duplicates import NUM_BITS
from vitreous.inputs.prepare import Decoded
from vitreous.inputs.sighting import SIGHTING_VERSION, Sighting, sight

SCHEMA_VERSION = 1
SHARD_SIZE = 256  # files a shard: at most this many are decoded again after a kill


class SightingStore:
    """Shards of sightings, each whole or absent.

    Args:
        root: folder of the feature store; sightings lie under ``seen``.
        space: what decides how a file is decoded: modality, version of the decoder, axes and spacing that the study
            states for files that do not say.
    """

    def __init__(self, root: Path, space: Mapping[str, Any]) -> None:
        self.root = root
        self.space = {**space, "schema_version": SCHEMA_VERSION, "sighting": SIGHTING_VERSION}
        self.folder = root / "seen" / fingerprint(self.space)

    def read(self, file_ids: Iterable[str]) -> dict[str, Sighting]:
        """What is known of these files."""
        wanted = set(file_ids)
        found: dict[str, Sighting] = {}
        for shard in sorted(self.folder.glob("shard-*.parquet")):
            try:
                rows = pq.read_table(shard).to_pylist()
            except (pa.ArrowInvalid, OSError) as error:
                raise UserError(
                    f"{shard}: cannot be read ({error}). Remove the file; its images are looked at again."
                ) from error
            found |= {row["file_id"]: _sighting_of(row) for row in rows if row["file_id"] in wanted}
        return found

    def write(self, seen: Mapping[str, Sighting]) -> None:
        """Keep some as one shard."""
        if not seen:
            return
        # what is known of images is patient data: a store that is made here is its owner's alone
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / "space.json").exists():
            write_json(self.folder / "space.json", self.space)
        rows = [_row_of(file_id, one) for file_id, one in seen.items()]
        with replacing(self.folder / f"shard-{fingerprint(sorted(seen))[:24]}.parquet") as aside:
            pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), aside, compression="zstd")

    def remove_partial(self) -> None:
        """Remove what a killed process left half-written."""
        if self.folder.is_dir():
            remove_partial_files(self.folder)


def look_at_missing(
    requests: Sequence[Request],
    store: SightingStore,
    *,
    stage: Callable[[Sequence[Request]], Iterable[Staged]],
    load_input: Callable[[Request, Path], Decoded],
    workers: int,
    max_bad: int | None = None,
    again: bool = False,
    progress: Advance = no_progress,
) -> dict[str, Sighting]:
    """Decode the files that no sighting is kept of, and keep one of each.

    What could not be used as things stand (not fetched, beyond a limit, no decoder) is given back and not kept.

    Args:
        stage, load_input, workers: as of :func:`vitreous.features.encode.encode_missing`.
        max_bad: stop when more files than this cannot be used; the rest is then missing from the result.
        again: look at every file, also at those that are known.
        progress: called once per file that is decoded.
    """
    store.remove_partial()
    known = {} if again else store.read([request.file_id for request in requests])
    missing = [request for request in requests if request.file_id not in known]
    fresh: dict[str, Sighting] = {}
    num_bad = sum(not one.is_usable for one in known.values())

    def look(staged: Staged) -> tuple[str, Sighting, bool]:
        request, path = staged
        if isinstance(path, StorageError):
            return request.file_id, _unusable(path), False
        try:
            return request.file_id, sight(load_input(request, path)), True
        except CircumstanceError as error:
            return request.file_id, _unusable(error), False
        except InputError as error:
            return request.file_id, _unusable(error), True

    for file_id, one, is_kept in map_ahead(look, stage(missing), workers=workers, ahead=files_in_use(workers) - 1):
        known[file_id] = one
        num_bad += not one.is_usable
        if is_kept:
            fresh[file_id] = one
            if len(fresh) == SHARD_SIZE:
                store.write(fresh)
                fresh = {}
        progress(1)
        if max_bad is not None and num_bad > max_bad:
            break
    store.write(fresh)
    return known


def _unusable(error: Exception) -> Sighting:
    return Sighting(exception=type(error).__name__, message=str(error))


_SCHEMA = pa.schema(
    [
        ("file_id", pa.string()),
        ("digest", pa.string()),
        ("bits", pa.binary()),
        ("slices", pa.binary()),
        ("statistics", pa.string()),
        ("exception", pa.string()),
        ("message", pa.string()),
    ]
)


def _row_of(file_id: str, one: Sighting) -> dict[str, Any]:
    return {
        "file_id": file_id,
        "digest": one.digest,
        "bits": None if one.bits_B is None else np.packbits(one.bits_B).tobytes(),
        "slices": one.slices_D.tobytes(),
        "statistics": json.dumps(dict(one.statistics), sort_keys=True),
        "exception": one.exception,
        "message": one.message,
    }


def _sighting_of(row: Mapping[str, Any]) -> Sighting:
    packed = None if row["bits"] is None else np.frombuffer(row["bits"], np.uint8)
    return Sighting(
        row["digest"],
        None if packed is None else np.unpackbits(packed)[:NUM_BITS].astype(np.bool_),
        np.frombuffer(row["slices"], np.uint64),
        json.loads(row["statistics"]),
        row["exception"],
        row["message"],
    )
