"""The key manifest. Oracle: a fresh listing of the server."""

import time
from pathlib import Path
from typing import Any

import pytest

from vitreous.core.errors import LocationError
from vitreous.storage import listing
from vitreous.storage.listing import key_manifest_path, load_key_manifest
from vitreous.storage.location import Location, ObjectInfo, S3Options
from vitreous.storage.objects import ObjectStore


def test_listed_once_until_refreshed(boto: Any, bucket: str, store: ObjectStore, tmp_path: Path) -> None:
    boto.put_object(Bucket=bucket, Key="a/1.dcm", Body=b"one")
    first = load_key_manifest(store, cache_dir=tmp_path)
    assert first == store.list()
    boto.put_object(Bucket=bucket, Key="a/2.dcm", Body=b"two")
    assert load_key_manifest(store, cache_dir=tmp_path) == first
    assert load_key_manifest(store, cache_dir=tmp_path, refresh=True) == store.list()
    assert len(load_key_manifest(store, cache_dir=tmp_path)) == 2


def test_plan_leaves_no_trace(boto: Any, bucket: str, store: ObjectStore, tmp_path: Path) -> None:
    boto.put_object(Bucket=bucket, Key="k", Body=b"one")
    assert len(load_key_manifest(store, cache_dir=tmp_path / "cache", write=False)) == 1
    assert not (tmp_path / "cache").exists()


def test_damaged_or_foreign_manifest_is_made_anew(boto: Any, bucket: str, store: ObjectStore, tmp_path: Path) -> None:
    boto.put_object(Bucket=bucket, Key="k", Body=b"one")
    expected = load_key_manifest(store, cache_dir=tmp_path)
    path = key_manifest_path(store, tmp_path)
    path.write_bytes(path.read_bytes()[:50])
    assert load_key_manifest(store, cache_dir=tmp_path) == expected
    listing._write(path, Location("s3", "another", ""), [])
    assert load_key_manifest(store, cache_dir=tmp_path) == expected


def test_empty_prefix_is_refused(bucket: str, s3_url: str, tmp_path: Path) -> None:
    store = ObjectStore(Location("s3", bucket, "nothing"), S3Options(endpoint=s3_url))
    with pytest.raises(LocationError, match=f"s3://{bucket}/nothing: holds no files"):
        load_key_manifest(store, cache_dir=tmp_path)


def test_local_folder_is_always_fresh(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "1").touch()
    store = ObjectStore(Location.parse(str(tmp_path / "files")))
    assert len(load_key_manifest(store, cache_dir=tmp_path / "cache")) == 1
    (tmp_path / "files" / "2").touch()
    assert len(load_key_manifest(store, cache_dir=tmp_path / "cache")) == 2
    assert not (tmp_path / "cache").exists()


def test_25_000_keys_in_under_a_second(tmp_path: Path) -> None:
    root = Location("s3", "eye-dataset", "")
    keys = [f"retinal_oct/structural_oct/device_{n % 4}/{1000 + n % 1061}/{n:07d}.dcm" for n in range(25_000)]
    infos = [
        ObjectInfo(Location("s3", "eye-dataset", key), key, 30_000_000 + n, f"{n:032x}") for n, key in enumerate(keys)
    ]
    store = ObjectStore(root, S3Options(endpoint="http://127.0.0.1:9"))  # nobody listens: it must come from the disk
    listing._write(key_manifest_path(store, tmp_path), root, infos)
    start = time.process_time()
    assert load_key_manifest(store, cache_dir=tmp_path) == infos
    assert time.process_time() - start < 1
