"""A listing read once and kept: the key manifest, with sizes and ETags, as Parquet."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vitreous.core.errors import LocationError
from vitreous.core.files import replacing
from vitreous.core.fingerprints import fingerprint
from vitreous.storage.location import Location, ObjectInfo
from vitreous.storage.objects import ObjectStore

SCHEMA_VERSION = 1
_SCHEMA = pa.schema([("relative", pa.string()), ("size", pa.int64()), ("etag", pa.string())])


def key_manifest_path(store: ObjectStore, cache_dir: Path) -> Path:
    """Where the listing of this root, on this server, is kept."""
    name = fingerprint([str(store.root), store.endpoint])[:16]
    return Path(cache_dir).expanduser() / "key_manifests" / f"{name}.parquet"


def load_key_manifest(
    store: ObjectStore, *, cache_dir: Path, refresh: bool = False, write: bool = True
) -> list[ObjectInfo]:
    """Every object below the store's root, sorted by relative path.

    The listing of a bucket is read once and kept in `cache_dir`, keyed by root and endpoint. A local folder is
    scanned every time: that is as quick, and a kept listing would miss changed files.

    Args:
        refresh: list again, whatever is kept.
        write: keep a new listing; False (``vitreous plan``) leaves the disk untouched.
    Raises:
        LocationError: the root does not exist, may not be listed, or holds nothing.
        StorageError: the server did not answer after all retries.
    """
    path = key_manifest_path(store, cache_dir)
    infos = None if refresh or store.root.is_local else _read(path, store.root)
    if infos is None:
        infos = store.list()
        if not infos:
            raise LocationError(f"{store.root}: holds no files; check the location, or that the data have arrived.")
        if write and not store.root.is_local:
            _write(path, store.root, infos)
    return infos


def _write(path: Path, root: Location, infos: list[ObjectInfo]) -> None:
    columns = [[info.relative for info in infos], [info.size for info in infos], [info.etag for info in infos]]
    facts = {"schema_version": str(SCHEMA_VERSION), "root": str(root)}
    table = pa.table(columns, schema=_SCHEMA.with_metadata(facts))
    with replacing(path) as aside:
        pq.write_table(table, aside, compression="zstd")


def _read(path: Path, root: Location) -> list[ObjectInfo] | None:
    """The kept listing; None if there is none, or one of another version or damaged: then it is listed anew."""
    try:
        table = pq.read_table(path)
    except (FileNotFoundError, pa.ArrowInvalid):
        return None
    facts = table.schema.metadata or {}
    if facts.get(b"schema_version") != str(SCHEMA_VERSION).encode() or facts.get(b"root") != str(root).encode():
        return None
    stem = f"{root.key}/" if root.key else ""
    rows = zip(*(table.column(name).to_pylist() for name in _SCHEMA.names), strict=True)
    return [
        ObjectInfo(Location(root.scheme, root.bucket, stem + relative), relative, size, etag)
        for relative, size, etag in rows
    ]
