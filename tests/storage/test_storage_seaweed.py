"""The same against SeaweedFS, a server that checks signatures. Oracle: what boto3 wrote."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3_server import SECRET_KEY, boto_client, running_weed, upload_in_parts, weed_binary
from vitreous.core.errors import LocationError
from vitreous.storage.listing import load_key_manifest
from vitreous.storage.location import Location, S3Options
from vitreous.storage.objects import ObjectStore
from vitreous.storage.staging import StagingCache

pytestmark = pytest.mark.seaweed
MIB = 1 << 20


@pytest.fixture(scope="module")
def weed_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_weed(weed_binary(), tmp_path_factory.mktemp("weed")) as url:
        yield url


@pytest.fixture(scope="module")
def weed_bodies(weed_url: str) -> dict[str, bytes]:
    client = boto_client(weed_url)
    client.create_bucket(Bucket="eye")
    bodies = {f"retinal_oct/dev {n % 3}/{1000 + n}/é{n}.dcm": os.urandom(50_000 + n) for n in range(60)}
    for key, body in bodies.items():
        client.put_object(Bucket="eye", Key=key, Body=body)
    bodies["large.bin"] = os.urandom(20 * MIB + 3)
    upload_in_parts(client, "eye", "large.bin", bodies["large.bin"], 8 * MIB)
    return bodies


def test_stage_everything(weed_bodies: dict[str, bytes], weed_url: str, tmp_path: Path) -> None:
    store = ObjectStore(Location.parse("s3://eye"), S3Options(endpoint=weed_url))
    infos = load_key_manifest(store, cache_dir=tmp_path)
    assert [info.relative for info in infos] == sorted(weed_bodies)
    assert next(info.etag for info in infos if info.relative == "large.bin").endswith("-3")  # in parts: no MD5
    with StagingCache(tmp_path, max_gb=0.0225) as cache:
        for info, path in cache.stream(store, infos):
            assert isinstance(path, Path), path
            assert path.read_bytes() == weed_bodies[info.relative]


def test_root_is_a_prefix(weed_bodies: dict[str, bytes], weed_url: str) -> None:
    store = ObjectStore(Location.parse("s3://eye/retinal_oct/dev 1"), S3Options(endpoint=weed_url))
    assert len(store.list()) == 20
    assert store.read("1001/é1.dcm") == weed_bodies["retinal_oct/dev 1/1001/é1.dcm"]


def test_wrong_secret(weed_bodies: dict[str, bytes], weed_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    store = ObjectStore(Location.parse("s3://eye"), S3Options(endpoint=weed_url))
    for call in (store.list, lambda: store.head("large.bin"), lambda: store.read("large.bin")):
        with pytest.raises(LocationError, match=r"refused at http.*HTTP 403.*AWS_SECRET_ACCESS_KEY") as caught:
            call()
        assert SECRET_KEY not in str(caught.value)


def test_unknown_access_key(weed_bodies: dict[str, bytes], weed_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDUNKNOWN")
    with pytest.raises(LocationError, match="HTTP 403 InvalidAccessKeyId") as caught:
        ObjectStore(Location.parse("s3://eye"), S3Options(endpoint=weed_url)).read("large.bin")
    assert "AKIDUNKNOWN" not in str(caught.value)


def test_missing_key_and_bucket(weed_bodies: dict[str, bytes], weed_url: str) -> None:
    with pytest.raises(LocationError, match="s3://eye/none: there is no such object"):
        ObjectStore(Location.parse("s3://eye"), S3Options(endpoint=weed_url)).head("none")
    with pytest.raises(LocationError, match="there is no bucket 'no-such-bucket'"):
        ObjectStore(Location.parse("s3://no-such-bucket"), S3Options(endpoint=weed_url)).list()
