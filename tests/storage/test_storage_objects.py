"""Listing and reading. Oracle: what boto3 wrote to a real server process, and the local file system."""

import os
import re
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from s3_server import ACCESS_KEY, SECRET_KEY, DamagingProxy, upload_in_parts
from vitreous.core.errors import LocationError, StorageError
from vitreous.storage.location import Location, S3Options
from vitreous.storage.objects import ObjectStore
from vitreous.storage.retries import RetryPolicy

KEYS = ["a/1.dcm", "a/odd name+&#%20é.dcm", "a/b/2.dcm", "ab/3.dcm"]


@pytest.fixture
def filled(boto: Any, bucket: str) -> dict[str, bytes]:
    bodies = {key: os.urandom(2000 + n) for n, key in enumerate(KEYS)}
    for key, body in bodies.items():
        boto.put_object(Bucket=bucket, Key=key, Body=body)
    boto.put_object(Bucket=bucket, Key="a/", Body=b"")  # a folder marker, as consoles write them
    return bodies


def test_list_and_read_what_boto_wrote(filled: dict[str, bytes], store: ObjectStore, boto: Any, bucket: str) -> None:
    infos = store.list()
    assert [info.relative for info in infos] == sorted(KEYS)
    for info in infos:
        theirs = boto.head_object(Bucket=bucket, Key=info.relative)
        assert (info.size, info.etag) == (theirs["ContentLength"], theirs["ETag"].strip('"'))
        assert store.head(info.relative) == info
        assert store.read(info.relative) == filled[info.relative]


def test_root_inside_the_bucket_and_prefix(filled: dict[str, bytes], bucket: str, s3_url: str) -> None:
    store = ObjectStore(Location("s3", bucket, "a"), S3Options(endpoint=s3_url))
    assert [info.relative for info in store.list()] == ["1.dcm", "b/2.dcm", "odd name+&#%20é.dcm"]  # not ab/3.dcm
    assert [info.relative for info in store.list("b")] == ["b/2.dcm"]
    assert store.head("/b/2.dcm").relative == "b/2.dcm"


@pytest.mark.slow  # 1003 requests to a server written in Python
def test_more_keys_than_one_page(boto: Any, bucket: str, store: ObjectStore) -> None:
    for n in range(1003):  # a page has 1000
        boto.put_object(Bucket=bucket, Key=f"k{n:04d}", Body=b"")
    assert [info.relative for info in store.list()] == [f"k{n:04d}" for n in range(1003)]


def test_endpoint_from_the_environment(
    filled: dict[str, bytes], bucket: str, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    monkeypatch.setenv("S3_ENDPOINT_URL", s3_url)
    assert ObjectStore(Location("s3", bucket, "")).read("a/1.dcm") == filled["a/1.dcm"]


def test_public_bucket_needs_no_keys(
    filled: dict[str, bytes], bucket: str, s3_url: str, boto: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    boto.put_object_acl(Bucket=bucket, Key="a/1.dcm", ACL="public-read")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "true")
    store = ObjectStore(Location("s3", bucket, ""), S3Options(endpoint=s3_url))
    assert store.read("a/1.dcm") == filled["a/1.dcm"]
    with pytest.raises(LocationError, match=r"a/b/2\.dcm: access was refused.*AWS_SKIP_SIGNATURE=true"):
        store.read("a/b/2.dcm")


def test_keys_from_a_profile(
    filled: dict[str, bytes], bucket: str, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text(
        f"[lab]\naws_access_key_id={ACCESS_KEY}\naws_secret_access_key={SECRET_KEY}\n"
    )
    monkeypatch.setenv("AWS_PROFILE", "lab")
    assert ObjectStore(Location("s3", bucket, ""), S3Options(endpoint=s3_url)).read("a/1.dcm") == filled["a/1.dcm"]


def test_no_keys_at_all(bucket: str, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")  # no machine role either
    store = ObjectStore(Location("s3", bucket, ""), S3Options(endpoint=s3_url))
    with pytest.raises(LocationError, match=r"no credentials were found\. Check AWS_ACCESS_KEY_ID"):
        store.list()


def test_gs_through_the_same_code(
    filled: dict[str, bytes], bucket: str, s3_url: str, boto: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Google's XML interface answers these requests like S3 does, so the local server can stand in for it."""
    boto.put_bucket_acl(Bucket=bucket, ACL="public-read")
    boto.put_object_acl(Bucket=bucket, Key="a/1.dcm", ACL="public-read")
    monkeypatch.setenv("GOOGLE_BASE_URL", s3_url)
    monkeypatch.setenv("GOOGLE_SKIP_SIGNATURE", "true")
    store = ObjectStore(Location("gs", bucket, ""))
    assert [info.relative for info in store.list()] == sorted(KEYS)
    assert store.read("a/1.dcm") == filled["a/1.dcm"]
    with pytest.raises(LocationError, match=f"gs://{bucket}/none: there is no such object"):
        store.head("none")


@pytest.mark.parametrize("call", [lambda s: s.head("none.dcm"), lambda s: s.read("none.dcm")], ids=["head", "read"])
def test_missing_key(filled: dict[str, bytes], store: ObjectStore, call: Callable[[ObjectStore], object]) -> None:
    with pytest.raises(LocationError, match=r"none\.dcm: there is no such object at http.*HTTP 404 NoSuchKey"):
        call(store)


@pytest.mark.parametrize(
    "call", [lambda s: s.list(), lambda s: s.head("k"), lambda s: s.read("k")], ids=["list", "head", "read"]
)
def test_missing_bucket_is_told_at_once(s3_url: str, call: Callable[[ObjectStore], object]) -> None:
    store = ObjectStore(Location("s3", "no-such-bucket", ""), S3Options(endpoint=s3_url))
    start = time.monotonic()
    with pytest.raises(LocationError, match=r"there is no bucket 'no-such-bucket' at http.*s3\.endpoint"):
        call(store)
    assert time.monotonic() - start < 3  # no retries


def test_refused_keys_are_told_once_and_never_shown(
    filled: dict[str, bytes], damaged_store: ObjectStore, proxy: DamagingProxy
) -> None:
    proxy.plan["a/1.dcm"] = ["always-403"]  # the answer's body repeats the access key, as the real one does
    with pytest.raises(LocationError, match=r"access was refused.*HTTP 403 InvalidAccessKeyId.*AWS_PROFILE") as caught:
        damaged_store.read("a/1.dcm")
    assert proxy.gets["a/1.dcm"] == 1
    shown = "".join(traceback.format_exception(caught.value))
    assert ACCESS_KEY not in shown
    assert SECRET_KEY not in shown


@pytest.mark.parametrize("damage", ["flip", "shorten", "cut", "503"])
def test_damage_is_noticed_and_cured(
    filled: dict[str, bytes], damaged_store: ObjectStore, proxy: DamagingProxy, damage: str
) -> None:
    proxy.plan["a/1.dcm"] = [damage]
    assert damaged_store.read("a/1.dcm") == filled["a/1.dcm"]
    assert proxy.gets["a/1.dcm"] >= 2


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("flip", r"a/1\.dcm: got MD5 [0-9a-f]{32}, expected [0-9a-f]{32}.*\(after 4 attempts\)"),
        ("503", r"a/1\.dcm: HTTP 503 SlowDown from http.*\(after 4 attempts\)"),
        ("cut", r"a/1\.dcm: no answer \(connection failed or broke off\) from http.*\(after 4 attempts\)"),
    ],
)
def test_damage_that_stays_is_an_error(
    filled: dict[str, bytes], damaged_store: ObjectStore, proxy: DamagingProxy, damage: str, message: str
) -> None:
    proxy.plan["a/1.dcm"] = [f"always-{damage}"]
    with pytest.raises(StorageError, match=message):
        damaged_store.read("a/1.dcm")


@pytest.mark.parametrize(
    ("part", "size", "gets"),
    [
        (8 << 20, (8 << 20) * 2 + 5, 1),  # the AWS tools' size: verified by one read
        (8 << 20, 100, 1),  # a single part
        ((7 << 20) + 1, 15 << 20, 2),  # nobody's size: two equal reads
    ],
)
def test_uploads_in_parts(
    boto: Any, bucket: str, damaged_store: ObjectStore, proxy: DamagingProxy, part: int, size: int, gets: int
) -> None:
    body = os.urandom(size)
    upload_in_parts(boto, bucket, "large", body, part)
    assert re.fullmatch(r"[0-9a-f]{32}-\d", damaged_store.head("large").etag)
    assert damaged_store.read("large") == body
    assert proxy.gets["large"] == gets
    proxy.plan["large"] = ["flip"]
    proxy.gets.clear()
    assert damaged_store.read("large") == body
    assert proxy.gets["large"] == gets + 1  # the damaged one, and as many as before


def test_nobody_answers() -> None:
    store = ObjectStore(
        Location("s3", "b", ""), S3Options(endpoint="http://127.0.0.1:9"), retry=RetryPolicy(1, first_wait_s=0.01)
    )
    with pytest.raises(StorageError, match=r"no answer.*from http://127\.0\.0\.1:9 \(after 2 attempts\)"):
        store.list()


def test_local_folder(tmp_path: Path) -> None:
    for name in ("b/2.dcm", "a.dcm", ".hidden", "b/.part"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "linked").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    store = ObjectStore(Location("file", "", str(tmp_path)))
    infos = {info.relative: info for info in store.list()}
    assert len(infos) == 2  # each file once, although links lead to it again
    assert infos["a.dcm"] == store.head("a.dcm")
    assert store.read("a.dcm") == b"a.dcm"
    before = store.head("a.dcm")
    os.utime(tmp_path / "a.dcm", ns=(1, 1))
    assert store.head("a.dcm").identity != before.identity


def test_local_faults(tmp_path: Path) -> None:
    with pytest.raises(LocationError, match="none: does not exist; name the folder"):
        ObjectStore(Location.parse(str(tmp_path / "none"))).list()
    (tmp_path / "file").write_text("x")
    with pytest.raises(LocationError, match="is a file, not a folder"):
        ObjectStore(Location.parse(str(tmp_path / "file"))).list()
    store = ObjectStore(Location.parse(str(tmp_path)))
    with pytest.raises(LocationError, match="missing: there is no such file"):
        store.head("missing")
    with pytest.raises(LocationError, match="leads out of"):
        store.read("../x")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(LocationError, match=r"1 links lead nowhere, e.g. .*gone.*datalad get"):
        store.list()


def test_local_listing_is_quick(tmp_path: Path) -> None:
    for device in range(10):
        (tmp_path / str(device)).mkdir()
        for n in range(500):
            (tmp_path / str(device) / f"{n}.dcm").touch()
    start = time.process_time()
    infos = ObjectStore(Location.parse(str(tmp_path))).list()
    assert len(infos) == 5000
    assert time.process_time() - start < 1
