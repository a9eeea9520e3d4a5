"""Locations. Oracle: written out by hand; properties with hypothesis."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitreous.core.errors import LocationError
from vitreous.storage.location import Location, ObjectInfo

PIECES = st.text(st.characters(codec="utf-8", exclude_characters="/\\\0", exclude_categories=["C"]), min_size=1).filter(
    lambda piece: piece not in (".", "..")
)


@pytest.mark.parametrize(
    ("text", "scheme", "bucket", "key"),
    [
        ("s3://eye-dataset", "s3", "eye-dataset", ""),
        ("s3://eye-dataset/", "s3", "eye-dataset", ""),
        ("S3://eye-dataset/a/b c.dcm", "s3", "eye-dataset", "a/b c.dcm"),
        ("gs://b/folder/", "gs", "b", "folder"),
        ("file:///data/x", "file", "", "/data/x"),
        ("/data//x/../y", "file", "", "/data/y"),
        ("x/y", "file", "", "/root-of-study/x/y"),
    ],
)
def test_parse(text: str, scheme: str, bucket: str, key: str) -> None:
    assert Location.parse(text, relative_to=Path("/root-of-study")) == Location(scheme, bucket, key)  # type: ignore[arg-type]


def test_parse_relative_to_working_folder_and_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert Location.parse("a.tsv").path == tmp_path / "a.tsv"
    assert Location.parse("~/a.tsv").path == Path.home() / "a.tsv"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("http://host/x", "unknown scheme 'http'; known are a local path, s3://bucket/key and gs://"),
        ("azure://c/x", "unknown scheme 'azure'"),
        ("s3:///key", "names no bucket; write s3://bucket/key"),
        ("s3:/bucket/key", "names no bucket"),
        ("s3://b/a//c", "empty, '.' or '..' piece"),
        ("s3://b/../c", "empty, '.' or '..' piece"),
        ("  ", "a location is empty"),
    ],
)
def test_parse_refuses(text: str, message: str) -> None:
    with pytest.raises(LocationError, match=message.replace(".", r"\.")):
        Location.parse(text)


@given(st.sampled_from(["s3", "gs"]), st.lists(PIECES, max_size=4))
def test_text_and_back(scheme: str, pieces: list[str]) -> None:
    location = Location(scheme, "bucket", "/".join(pieces))  # type: ignore[arg-type]
    assert Location.parse(str(location)) == location


@given(st.lists(st.sampled_from(["a", "b", "..", ".", ""]), max_size=6))
def test_child_never_escapes(pieces: list[str]) -> None:
    root = Location("s3", "bucket", "root")
    try:
        child = root.child("/".join(pieces))
    except LocationError:
        return
    assert child.bucket == "bucket"
    assert child.key == "root" or child.key.startswith("root/")
    assert ".." not in child.key.split("/")


def test_child_drops_leading_slash_and_refuses_escape() -> None:
    root = Location("file", "", "/data/eye")
    assert root.child("/retinal_oct/1.dcm").path == Path("/data/eye/retinal_oct/1.dcm")
    with pytest.raises(LocationError, match=r"'/a/../../other' leads out of /data/eye"):
        root.child("/a/../../other")


def test_path_of_a_bucket_is_refused() -> None:
    with pytest.raises(LocationError, match="s3://b/k: is not a local path"):
        _ = Location("s3", "b", "k").path


def test_identity_changes_with_location_etag_and_size() -> None:
    at = Location("s3", "b", "k")
    infos = [
        ObjectInfo(at, "k", 1, "e"), ObjectInfo(at, "k", 2, "e"), ObjectInfo(at, "k", 1, "f"),
        ObjectInfo(Location("gs", "b", "k"), "k", 1, "e"),
    ]  # fmt: skip
    assert len({info.identity for info in infos}) == 4
    assert ObjectInfo(at, "other/k", 1, "e").identity == infos[0].identity  # the root listed does not matter
