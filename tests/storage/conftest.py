"""One S3 server process for the room's tests."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from s3_server import DamagingProxy, boto_client, running_s3_server, use_test_keys
from vitreous.storage.location import Location, S3Options
from vitreous.storage.objects import ObjectStore
from vitreous.storage.retries import RetryPolicy

QUICK = RetryPolicy(retries=3, first_wait_s=0.01, longest_wait_s=0.05)


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    with running_s3_server() as url:
        yield url


@pytest.fixture(autouse=True)
def _test_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_test_keys(monkeypatch, str(tmp_path))


@pytest.fixture(scope="session")
def boto(s3_url: str) -> Any:
    return boto_client(s3_url)


@pytest.fixture
def bucket(boto: Any, request: pytest.FixtureRequest) -> str:
    """A bucket of this test's own."""
    name = f"bucket{abs(hash(request.node.nodeid))}"
    boto.create_bucket(Bucket=name)
    return name


@pytest.fixture
def proxy(s3_url: str) -> Iterator[DamagingProxy]:
    damaging = DamagingProxy(s3_url)
    yield damaging
    damaging.close()


@pytest.fixture
def store(bucket: str, s3_url: str) -> ObjectStore:
    return ObjectStore(Location("s3", bucket, ""), S3Options(endpoint=s3_url), retry=QUICK)


@pytest.fixture
def damaged_store(bucket: str, proxy: DamagingProxy) -> ObjectStore:
    """The same bucket, seen through the proxy."""
    return ObjectStore(Location("s3", bucket, ""), S3Options(endpoint=proxy.url), retry=QUICK)
