"""Endpoint, region and keys. Oracle: boto3's session on the same environment and files."""

from pathlib import Path

import boto3
import pytest

from vitreous.core.errors import LocationError
from vitreous.storage.credentials import resolve_s3_access
from vitreous.storage.location import S3Options

SECRET = "very/secret+value"


@pytest.fixture
def aws_files(tmp_path: Path) -> Path:
    folder = tmp_path / ".aws"
    folder.mkdir()
    (folder / "credentials").write_text(
        f"[default]\naws_access_key_id = AKIDDEFAULT\naws_secret_access_key = {SECRET}\n"
        f"[lab]\naws_access_key_id = AKIDLAB\naws_secret_access_key = {SECRET}%(x)s\naws_session_token = tok\n"
    )
    (folder / "config").write_text(
        "[default]\nregion = eu-west-3\n"
        "[profile lab]\nregion = eu-north-1\nendpoint_url = https://s3.lab.example\n"
        "[profile sso]\nsso_session = corp\n"
    )
    return folder


@pytest.mark.parametrize("profile", ["default", "lab"])
def test_profile_as_boto_reads_it(
    aws_files: Path, tmp_path: Path, profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_PROFILE", profile)
    access = resolve_s3_access(S3Options())
    session = boto3.Session()
    theirs = session.get_credentials()
    assert theirs is not None
    assert access.provider is not None
    keys = access.provider()
    assert (keys["access_key_id"], keys["secret_access_key"], keys["token"]) == (
        theirs.access_key, theirs.secret_key, theirs.token,
    )  # fmt: skip
    assert access.region == session.region_name
    assert access.endpoint == {"default": None, "lab": "https://s3.lab.example"}[profile]


def test_keys_of_the_environment_win(aws_files: Path) -> None:
    assert resolve_s3_access(S3Options()).provider is None  # obstore reads the environment itself


def test_rotated_keys_are_read_again(aws_files: Path, tmp_path: Path) -> None:
    access = resolve_s3_access(S3Options(), {"HOME": str(tmp_path)})
    assert access.provider is not None
    before = access.provider()
    text = (aws_files / "credentials").read_text().replace("AKIDDEFAULT", "AKIDNEW")
    (aws_files / "credentials").write_text(text)
    after = access.provider()
    assert (before["access_key_id"], after["access_key_id"]) == ("AKIDDEFAULT", "AKIDNEW")
    assert before["expires_at"] is not None  # else obstore would never ask again


@pytest.mark.parametrize(
    ("environment", "option", "endpoint"),
    [
        ({"S3_ENDPOINT_URL": "http://a:1", "AWS_ENDPOINT_URL": "http://b:2"}, "http://c:3/", "http://c:3"),
        ({"S3_ENDPOINT_URL": "http://a:1", "AWS_ENDPOINT_URL": "http://b:2"}, None, "http://a:1"),
        ({"AWS_ENDPOINT_URL": "http://b:2", "AWS_ENDPOINT_URL_S3": "http://s:4"}, None, "http://s:4"),
        ({"AWS_ENDPOINT_URL": "http://b:2"}, None, "http://b:2"),
        ({}, None, None),
    ],
)
def test_endpoint_order(environment: dict[str, str], option: str | None, endpoint: str | None, tmp_path: Path) -> None:
    environment["HOME"] = str(tmp_path)
    assert resolve_s3_access(S3Options(endpoint=option), environment).endpoint == endpoint


@pytest.mark.parametrize("name", ["AWS_SKIP_SIGNATURE", "AWS_NO_SIGN_REQUEST"])
def test_public_buckets(name: str, tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}
    assert resolve_s3_access(S3Options(), {name: "True", **home}).is_anonymous
    assert not resolve_s3_access(S3Options(), {name: "false", **home}).is_anonymous
    with pytest.raises(LocationError, match=f"{name} must be true or false; got 'perhaps'"):
        resolve_s3_access(S3Options(), {name: "perhaps", **home})


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        ("localhost:9000", "must be http://host.*got 'localhost:9000'"),
        ("ftp://x", "must be http://host"),
        ("https://user:hunter2@host", "carries a user name or password"),
    ],
)
def test_bad_endpoint(endpoint: str, message: str) -> None:
    with pytest.raises(LocationError, match=message) as caught:
        resolve_s3_access(S3Options(endpoint=endpoint))
    assert "hunter2" not in str(caught.value)


def test_unknown_profile_is_named(aws_files: Path, tmp_path: Path) -> None:
    with pytest.raises(LocationError, match="AWS_PROFILE is 'nobody', but neither"):
        resolve_s3_access(S3Options(), {"HOME": str(tmp_path), "AWS_PROFILE": "nobody"})


def test_profile_of_another_kind_tells_the_remedy(aws_files: Path, tmp_path: Path) -> None:
    with pytest.raises(LocationError, match=r"finds its keys by sso_session.*aws configure export-credentials"):
        resolve_s3_access(S3Options(), {"HOME": str(tmp_path), "AWS_PROFILE": "sso"})


def test_broken_file_is_not_quoted(aws_files: Path, tmp_path: Path) -> None:
    (aws_files / "credentials").write_text(f"{SECRET}\n[default]\n")
    with pytest.raises(LocationError, match="cannot be read as an AWS profile file") as caught:
        resolve_s3_access(S3Options(), {"HOME": str(tmp_path)})
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
