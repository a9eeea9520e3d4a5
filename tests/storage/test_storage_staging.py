"""The staging cache. Oracle: the bytes boto3 wrote; requests counted by the proxy; sizes by the file system."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from s3_server import DamagingProxy
from vitreous.core.errors import ConfigError, LocationError, StorageError
from vitreous.core.threads import map_ahead
from vitreous.features.encode import files_in_use
from vitreous.storage.files import fetch_file
from vitreous.storage.location import Location, ObjectInfo, S3Options
from vitreous.storage.objects import ObjectStore
from vitreous.storage.staging import StagingCache

COUNT, SIZE = 16, 10_000

_CONSUMER = """
import sys, time
from pathlib import Path
from vitreous.storage.location import Location, S3Options
from vitreous.storage.objects import ObjectStore
from vitreous.storage.staging import StagingCache
bucket, endpoint, folder, max_gb, pause = sys.argv[1:]
store = ObjectStore(Location("s3", bucket, ""), S3Options(endpoint=endpoint))
with StagingCache(Path(folder), float(max_gb), in_flight=8) as cache:
    for info, path in cache.stream(store, store.list()):
        print(info.relative, len(path.read_bytes()), flush=True)
        time.sleep(float(pause))
        path.read_bytes()  # still there
"""


@pytest.fixture
def bodies(boto: Any, bucket: str) -> dict[str, bytes]:
    made = {f"{n:03d}.dcm": os.urandom(SIZE) for n in range(COUNT)}
    for key, body in made.items():
        boto.put_object(Bucket=bucket, Key=key, Body=body)
    return made


def staged_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in (folder / "objects").rglob("*") if path.is_file())


def test_stream_in_order_and_from_the_cache(
    bodies: dict[str, bytes], damaged_store: ObjectStore, proxy: DamagingProxy, tmp_path: Path
) -> None:
    infos = damaged_store.list()
    infos = [infos[n] for n in (3, 1, 2, *range(10, COUNT), 3)]  # any order, one twice
    with StagingCache(tmp_path, max_gb=1) as cache:
        for _ in range(2):
            got = [(info, path.read_bytes()) for info, path in cache.stream(damaged_store, infos)]  # type: ignore[union-attr]
            assert [info for info, _ in got] == infos
            assert all(body == bodies[info.relative] for info, body in got)
    assert set(proxy.gets.values()) == {1}  # the listing, and each object once
    assert len(list((tmp_path / "objects").rglob("*.dcm"))) == len(set(infos))


def test_many_in_flight_bounded(
    bodies: dict[str, bytes], damaged_store: ObjectStore, proxy: DamagingProxy, tmp_path: Path
) -> None:
    infos = damaged_store.list()
    proxy.delay_s = 0.05
    proxy.most_at_once = 0
    with StagingCache(tmp_path, max_gb=1, in_flight=6) as cache:
        assert len(list(cache.stream(damaged_store, infos))) == COUNT
    assert 4 <= proxy.most_at_once <= 6


def test_read_ahead_of_a_slow_consumer(
    bodies: dict[str, bytes], damaged_store: ObjectStore, proxy: DamagingProxy, tmp_path: Path
) -> None:
    with StagingCache(tmp_path, max_gb=1, in_flight=4) as cache:
        stream = cache.stream(damaged_store, damaged_store.list())
        next(stream)
        deadline = time.monotonic() + 5
        while len(proxy.gets) < 5 and time.monotonic() < deadline:  # the listing and four objects
            time.sleep(0.01)
        assert len(proxy.gets) == 5
        stream.close()  # type: ignore[attr-defined]


def test_small_cache_never_drops_what_is_not_consumed(
    bodies: dict[str, bytes], store: ObjectStore, tmp_path: Path
) -> None:
    max_bytes = int(5.5 * SIZE)
    with StagingCache(tmp_path, max_gb=max_bytes / 1e9, in_flight=16) as cache:
        for _ in range(2):
            for info, path in cache.stream(store, store.list()):
                assert isinstance(path, Path)
                time.sleep(0.002)
                assert path.read_bytes() == bodies[info.relative]
                assert staged_bytes(tmp_path) <= max_bytes


def test_least_recently_used_goes_first(
    bodies: dict[str, bytes], damaged_store: ObjectStore, proxy: DamagingProxy, tmp_path: Path
) -> None:
    infos = damaged_store.list()
    with StagingCache(tmp_path, max_gb=4.5 * SIZE / 1e9, in_flight=1) as cache:
        list(cache.stream(damaged_store, infos[:4]))
        list(cache.stream(damaged_store, infos[:1]))  # used again
        list(cache.stream(damaged_store, infos[4:5]))
        proxy.gets.clear()
        list(cache.stream(damaged_store, infos[:1]))
        assert proxy.gets == {}
        list(cache.stream(damaged_store, infos[1:2]))
        assert list(proxy.gets) == [infos[1].relative]


@pytest.mark.parametrize("damage", ["flip", "shorten", "cut", "503"])
def test_damage_is_cured(
    bodies: dict[str, bytes], damaged_store: ObjectStore, proxy: DamagingProxy, tmp_path: Path, damage: str
) -> None:
    for key in bodies:
        proxy.plan[key] = [damage]
    with StagingCache(tmp_path, max_gb=1) as cache:
        for info, path in cache.stream(damaged_store, damaged_store.list()):
            assert isinstance(path, Path)
            assert path.read_bytes() == bodies[info.relative]


def test_damage_that_stays_takes_the_place_of_its_path(
    bodies: dict[str, bytes], damaged_store: ObjectStore, proxy: DamagingProxy, tmp_path: Path, boto: Any, bucket: str
) -> None:
    infos = damaged_store.list()
    proxy.plan = {"001.dcm": ["always-flip"], "002.dcm": ["always-shorten"], "003.dcm": ["always-503"]}
    boto.delete_object(Bucket=bucket, Key="004.dcm")
    boto.put_object(Bucket=bucket, Key="005.dcm", Body=b"changed since it was listed")
    with StagingCache(tmp_path, max_gb=1, retries=1) as cache:
        results = {info.relative: path for info, path in cache.stream(damaged_store, infos)}
    texts = {key: str(result) for key, result in results.items() if isinstance(result, StorageError)}
    right = hashlib.md5(bodies["001.dcm"], usedforsecurity=False).hexdigest()
    assert sorted(texts) == ["001.dcm", "002.dcm", "003.dcm", "004.dcm", "005.dcm"]
    assert "001.dcm: got MD5 " in texts["001.dcm"]
    assert f"expected {right}" in texts["001.dcm"]
    assert "(after 2 attempts)" in texts["001.dcm"]
    assert f"got {SIZE - 7} bytes, expected {SIZE}" in texts["002.dcm"]
    assert "HTTP 503 SlowDown" in texts["003.dcm"]
    assert "there is no such object" in texts["004.dcm"]
    assert "is no longer the object that was listed: got ETag" in texts["005.dcm"]
    assert len(list((tmp_path / "objects").rglob("*.*"))) == COUNT - 5  # nothing of the failed ones is left


def test_etags_that_are_no_md5(bodies: dict[str, bytes], bucket: str, proxy: DamagingProxy, tmp_path: Path) -> None:
    proxy.plan["000.dcm"] = ["always-flip"]  # what an SSE-KMS bucket looks like: bytes and ETag never agree
    store = ObjectStore(Location("s3", bucket, ""), S3Options(endpoint=proxy.url, etags_are_md5=False))
    with StagingCache(tmp_path, max_gb=1) as cache:
        assert cache.fetch(store, store.head("000.dcm")).stat().st_size == SIZE


def test_refused_access_ends_the_stream(
    bodies: dict[str, bytes], damaged_store: ObjectStore, proxy: DamagingProxy, tmp_path: Path
) -> None:
    infos = damaged_store.list()
    proxy.plan = {key: ["always-403"] for key in bodies}
    with StagingCache(tmp_path, max_gb=1) as cache, pytest.raises(LocationError, match="access was refused"):
        list(cache.stream(damaged_store, infos))
    assert max(proxy.gets.values()) == 1


def test_larger_than_the_cache_is_refused_at_once(
    bodies: dict[str, bytes], damaged_store: ObjectStore, proxy: DamagingProxy, tmp_path: Path
) -> None:
    infos = damaged_store.list()
    proxy.gets.clear()
    cache = StagingCache(tmp_path, max_gb=0.5 * SIZE / 1e9)
    with pytest.raises(ConfigError, match=r"000\.dcm has 0\.000 GB, more than the whole cache.*Set cache\.max_gb"):
        next(iter(cache.stream(damaged_store, infos)))
    with pytest.raises(ConfigError, match="more than the whole cache"):
        cache.fetch(damaged_store, infos[0])
    assert proxy.gets == {}
    with pytest.raises(ConfigError, match="cache needs max_gb > 0"):
        StagingCache(tmp_path, max_gb=0)


def test_closing_a_stream_early_frees_everything(
    bodies: dict[str, bytes], damaged_store: ObjectStore, proxy: DamagingProxy, tmp_path: Path
) -> None:
    infos = damaged_store.list()
    proxy.plan = {key: ["always-503"] for key in list(bodies)[5:]}  # workers asleep between retries
    cache = StagingCache(tmp_path, max_gb=10 * SIZE / 1e9, retries=50)
    stream = cache.stream(damaged_store, infos)
    next(stream)
    start = time.monotonic()
    stream.close()  # type: ignore[attr-defined]
    assert time.monotonic() - start < 5
    proxy.plan.clear()
    assert len(list(cache.stream(damaged_store, infos))) == COUNT  # no room and no pin was lost
    assert cache._room._coming == 0
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("staging")]


def test_local_files_are_not_copied(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    for name in ("1.dcm", "2.dcm"):
        (tmp_path / "files" / name).write_bytes(name.encode())
    store = ObjectStore(Location.parse(str(tmp_path / "files")))
    infos = store.list()
    (tmp_path / "files" / "2.dcm").unlink()
    cache = StagingCache(tmp_path / "cache", max_gb=1e-9)
    (_, first), (_, second) = cache.stream(store, infos)
    assert first == tmp_path / "files" / "1.dcm" == cache.fetch(store, infos[0])
    assert isinstance(second, StorageError)
    assert "2.dcm: there is no such file" in str(second)
    with pytest.raises(LocationError, match="there is no such file"):
        cache.fetch(store, infos[1])
    assert not (tmp_path / "cache").exists()


def test_truncated_copy_is_fetched_again(
    bodies: dict[str, bytes], damaged_store: ObjectStore, proxy: DamagingProxy, tmp_path: Path
) -> None:
    info = damaged_store.head("000.dcm")
    with StagingCache(tmp_path, max_gb=1) as cache:
        cache.fetch(damaged_store, info).write_bytes(b"cut by hand")
        assert cache.fetch(damaged_store, info).read_bytes() == bodies["000.dcm"]
    assert proxy.gets["000.dcm"] == 2


def test_fetched_files_are_held(bodies: dict[str, bytes], store: ObjectStore, tmp_path: Path) -> None:
    infos = store.list()
    with StagingCache(tmp_path, max_gb=4.5 * SIZE / 1e9) as cache:
        held = [cache.fetch(store, info) for info in infos[:2]]
        assert len(list(cache.stream(store, infos[5:]))) == COUNT - 5
        assert all(path.exists() for path in held)


def test_fetch_file(bodies: dict[str, bytes], bucket: str, s3_url: str, tmp_path: Path) -> None:
    s3 = S3Options(endpoint=s3_url)
    (tmp_path / "t.tsv").write_text("x")
    assert fetch_file("t.tsv", s3, None, relative_to=tmp_path) == tmp_path / "t.tsv"
    with StagingCache(tmp_path / "cache", max_gb=1) as cache:
        assert fetch_file(f"s3://{bucket}/000.dcm", s3, cache).read_bytes() == bodies["000.dcm"]
    with pytest.raises(LocationError, match="is remote and there is no cache"):
        fetch_file(f"s3://{bucket}/000.dcm", s3)
    with pytest.raises(LocationError, match="names no file"):
        fetch_file(f"s3://{bucket}", s3)
    with pytest.raises(LocationError, match="none: there is no such file"):
        fetch_file(str(tmp_path / "none"))


def start_consumer(bucket: str, url: str, folder: Path, max_bytes: float, pause_s: float) -> "subprocess.Popen[str]":
    arguments = [bucket, url, str(folder), str(max_bytes / 1e9), str(pause_s)]
    return subprocess.Popen(
        [sys.executable, "-c", _CONSUMER, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_two_processes_share_a_cache(
    bodies: dict[str, bytes], bucket: str, proxy: DamagingProxy, tmp_path: Path
) -> None:
    """Both read everything through a cache of a third of it; neither loses a file, none is cut."""
    both = [start_consumer(bucket, proxy.url, tmp_path, COUNT * SIZE / 3, 0.005) for _ in range(2)]
    for process in both:
        out, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        assert out.splitlines() == [f"{key} {SIZE}" for key in bodies]
    assert staged_bytes(tmp_path) <= COUNT * SIZE / 3 + 2 * SIZE  # and one file for each consumer at most


def test_killed_while_fetching(
    bodies: dict[str, bytes], bucket: str, proxy: DamagingProxy, store: ObjectStore, tmp_path: Path
) -> None:
    proxy.delay_s = 0.05
    process = start_consumer(bucket, proxy.url, tmp_path, 1e9, 0)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)
    whole = list((tmp_path / "objects").rglob("*.dcm"))
    assert whole
    assert all(path.stat().st_size == SIZE for path in whole)  # whole or not at all
    with StagingCache(tmp_path, max_gb=1) as cache:  # the locks of the dead process hinder nobody
        for info, path in cache.stream(store, store.list()):
            assert isinstance(path, Path)
            assert path.read_bytes() == bodies[info.relative]


def test_files_still_in_use_are_not_evicted(
    bodies: dict[str, bytes], damaged_store: ObjectStore, tmp_path: Path
) -> None:
    given: list[Path] = []
    with StagingCache(tmp_path, max_gb=3.5 * SIZE / 1e9, in_flight=2) as cache:
        for _, path in cache.stream(damaged_store, damaged_store.list(), in_use=6):
            assert isinstance(path, Path)
            given.append(path)
            assert all(one.exists() for one in given[-6:])
    assert len([one for one in given if one.exists()]) < COUNT, "the cache is bounded all the same"


def test_a_local_file_that_changed_since_it_was_listed(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "a.npy"
    path.write_bytes(b"first")
    store = ObjectStore(Location.parse(str(tmp_path / "data")))
    infos = store.list()
    path.write_bytes(b"second, longer")
    with StagingCache(tmp_path / "cache", max_gb=1) as cache:
        ((_, result),) = cache.stream(store, infos)
    assert isinstance(result, StorageError)
    assert "changed since it was listed; run the same command again" in str(result)
    path.write_bytes(b"once more")
    with StagingCache(tmp_path / "cache", max_gb=1) as cache:
        with pytest.raises(StorageError, match="changed since it was listed"):
            cache.fetch(store, infos[0])
        assert cache.fetch(store, store.head("a.npy")) == path


def test_no_file_vanishes_before_it_is_decoded(
    bodies: dict[str, bytes], damaged_store: ObjectStore, tmp_path: Path
) -> None:
    """Slow decoders behind a cache of three files."""
    workers = 2
    infos = damaged_store.list()

    def decode(given: tuple[ObjectInfo, Path | StorageError]) -> bytes:
        time.sleep(0.02)
        assert isinstance(given[1], Path)
        return given[1].read_bytes()

    with StagingCache(tmp_path, max_gb=3.5 * SIZE / 1e9, in_flight=4) as cache:
        given = cache.stream(damaged_store, infos, in_use=files_in_use(workers))
        decoded = list(map_ahead(decode, given, workers=workers, ahead=files_in_use(workers) - 1))
    assert decoded == [bodies[info.relative] for info in infos]


def test_the_last_files_of_a_stream_stay_until_the_next(
    bodies: dict[str, bytes], store: ObjectStore, tmp_path: Path
) -> None:
    infos, max_gb = store.list(), 3.5 * SIZE / 1e9
    with StagingCache(tmp_path, max_gb=max_gb) as cache, StagingCache(tmp_path, max_gb=max_gb) as other:
        last = [path for _, path in cache.stream(store, infos[:6], in_use=4)][-3:]  # asking on frees the fourth
        list(other.stream(store, infos[6:]))
        assert all(isinstance(path, Path) and path.exists() for path in last)
        list(cache.stream(store, infos[:1]))
        list(other.stream(store, infos[6:]))
        assert not any(isinstance(path, Path) and path.exists() for path in last)
