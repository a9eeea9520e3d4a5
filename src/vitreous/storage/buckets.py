"""Open a bucket: the one place where an obstore store is made."""

import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_never

from vitreous.core.errors import LocationError
from vitreous.storage.credentials import resolve_s3_access
from vitreous.storage.location import Location, S3Options

if TYPE_CHECKING:
    from obstore.store import GCSStore, S3Store

# Few and quick: a page of a listing or a dropped connection is tried again at once; the patient retries, which also
# cover bytes that arrive wrong, are ours (retries.py).
_RETRY: Any = {
    "max_retries": 2,
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2), "base": 2},
    "retry_timeout": timedelta(seconds=30),
}
# The default limit of 30 s counts the whole body, which a checkpoint of gigabytes needs longer for; a stalled
# connection is caught by the read limit.
_CLIENT: Any = {"timeout": "6h", "read_timeout": "60s", "connect_timeout": "10s"}


def open_bucket(
    location: Location, options: S3Options, environment: Mapping[str, str] = os.environ
) -> "S3Store | GCSStore":
    """A store over the whole bucket of `location`; no request is made yet.

    Raises:
        LocationError: the location is local, or endpoint, profile or keys are unusable.
    """
    import obstore.exceptions

    try:
        match location.scheme:
            case "s3":
                return _open_s3(location.bucket, options, environment)
            case "gs":
                return _open_gcs(location.bucket, environment)
            case "file":
                raise LocationError(f"{location}: a local path has no bucket.")
            case _:
                assert_never(location.scheme)
    except (obstore.exceptions.BaseError, ValueError) as error:
        raise LocationError(
            f"{location}: the settings for this bucket are unusable ({_first_line(error)}); "
            f"check the AWS_* or GOOGLE_* environment variables."
        ) from None


def _open_s3(bucket: str, options: S3Options, environment: Mapping[str, str]) -> "S3Store":
    from obstore.store import S3Store

    access = resolve_s3_access(options, environment)
    config: Any = {}
    if access.endpoint:
        config["endpoint"] = access.endpoint
        if environment.get("AWS_ENDPOINT_URL_S3"):  # obstore would let this variable win over an option
            config["aws_endpoint_url_s3"] = access.endpoint
    if access.region:
        config["region"] = access.region
    if access.is_anonymous:
        config["skip_signature"] = True
    client: Any = dict(_CLIENT)
    if access.endpoint and access.endpoint.lower().startswith("http://"):
        client["allow_http"] = True
    elif bundle := environment.get("AWS_CA_BUNDLE"):
        client["root_certificate"] = _read_certificates(Path(bundle))
    provider: Any = access.provider
    return S3Store(bucket, config=config, client_options=client, retry_config=_RETRY, credential_provider=provider)


def _open_gcs(bucket: str, environment: Mapping[str, str]) -> "GCSStore":
    from obstore.store import GCSStore

    client: Any = dict(_CLIENT)
    if environment.get("GOOGLE_BASE_URL", "").lower().startswith("http://"):
        client["allow_http"] = True
    return GCSStore(bucket, client_options=client, retry_config=_RETRY)


def _read_certificates(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise LocationError(f"AWS_CA_BUNDLE is {path}: {error.strerror}; unset it or name a PEM file.") from None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
