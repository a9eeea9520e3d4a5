"""Names of places and objects: a local path, ``s3://bucket/key`` or ``gs://bucket/key``."""

import posixpath
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from vitreous.core.errors import LocationError
from vitreous.core.fingerprints import fingerprint

Scheme = Literal["file", "s3", "gs"]
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")  # two letters or more: C:\ is a drive, not a scheme


@dataclass(frozen=True, slots=True)
class Location:
    """A folder or an object.

    Args:
        scheme: ``file`` for a local path.
        bucket: empty for a local path.
        key: without leading or trailing slash in a bucket (empty: the whole bucket); absolute for a local path.
    """

    scheme: Scheme
    bucket: str
    key: str

    @classmethod
    def parse(cls, text: str, *, relative_to: Path | None = None) -> Self:
        """Read a location as a study file writes it.

        Args:
            relative_to: the folder that a relative local path starts from; the working directory if left out.
        Raises:
            LocationError: unknown scheme, no bucket, an empty text, or a key with an empty piece (``a//b``).

        >>> str(Location.parse("s3://eye-dataset/retinal_oct/"))
        's3://eye-dataset/retinal_oct'
        """
        if not text.strip():
            raise LocationError("a location is empty; give a path, s3://bucket/key or gs://bucket/key.")
        found = _SCHEME.match(text)
        if found is None:
            return cls("file", "", _absolute(text, relative_to))
        scheme = found[1].lower()
        if scheme == "file":
            return cls("file", "", _absolute(text[len("file:") :].removeprefix("//"), relative_to))
        if scheme == "s3":
            return cls("s3", *_bucket_and_key(text))
        if scheme == "gs":
            return cls("gs", *_bucket_and_key(text))
        raise LocationError(
            f"{text}: unknown scheme {found[1]!r}; known are a local path, s3://bucket/key and gs://bucket/key."
        )

    @property
    def is_local(self) -> bool:
        """Whether the bytes lie in this machine's file system."""
        return self.scheme == "file"

    @property
    def path(self) -> Path:
        """The local path.

        Raises:
            LocationError: the location lies in a bucket.
        """
        if not self.is_local:
            raise LocationError(f"{self}: is not a local path; stage it first.")
        return Path(self.key)

    @property
    def name(self) -> str:
        """The last piece of the key; empty for a whole bucket."""
        return posixpath.basename(self.key)

    @property
    def parent(self) -> "Location":
        """The folder that holds this object."""
        return Location(self.scheme, self.bucket, posixpath.dirname(self.key))

    def child(self, relative: str) -> "Location":
        """What lies at `relative` below this location; a leading slash of `relative` is dropped.

        Raises:
            LocationError: ``..`` leads out of this location.
        """
        below = posixpath.normpath(relative.lstrip("/") or ".")
        if below == ".." or below.startswith("../"):
            raise LocationError(f"{relative!r} leads out of {self}; paths stay below the root.")
        if below == ".":
            return self
        return Location(self.scheme, self.bucket, posixpath.join(self.key, below) if self.key else below)

    def __str__(self) -> str:
        if self.is_local:
            return self.key
        return f"{self.scheme}://{self.bucket}/{self.key}" if self.key else f"{self.scheme}://{self.bucket}"


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object of a listing.

    Args:
        location: where it lies.
        relative: its posix path below the root that was listed.
        size: bytes.
        etag: the server's content tag without quotes; for a local file ``<mtime in ns>-<inode>``.
    """

    location: Location
    relative: str
    size: int
    etag: str

    @property
    def identity(self) -> str:
        """Content identity, 64 hex digits: changes when location, ETag or size change."""
        return fingerprint([str(self.location), self.etag, self.size])


@dataclass(frozen=True, slots=True)
class S3Options:
    """How to reach an S3 server. Keys never stand here: they come from the environment or the AWS files.

    Args:
        endpoint: ``http(s)://host[:port]``; None takes ``S3_ENDPOINT_URL``, ``AWS_ENDPOINT_URL_S3``,
            ``AWS_ENDPOINT_URL``, the AWS profile's ``endpoint_url``, else AWS itself.
        region: None takes ``AWS_REGION``, ``AWS_DEFAULT_REGION``, the AWS profile's, else ``us-east-1``.
        etags_are_md5: ETags are made of the MD5 of the bytes, as S3 says, and are checked. False for buckets encrypted
            with SSE-KMS or SSE-C, whose ETags look alike and are not: then the size alone is checked.
    """

    endpoint: str | None = None
    region: str | None = None
    etags_are_md5: bool = True


DEFAULT_S3 = S3Options()


def _absolute(text: str, relative_to: Path | None) -> str:
    path = Path(text).expanduser()
    return posixpath.normpath(((relative_to or Path.cwd()) / path).absolute().as_posix())


def _bucket_and_key(text: str) -> tuple[str, str]:
    bucket, _, key = text.split(":", 1)[1].removeprefix("//").partition("/")
    if not bucket or text.split(":", 1)[1][:2] != "//":
        raise LocationError(f"{text}: names no bucket; write {text.split(':', 1)[0].lower()}://bucket/key.")
    key = key.rstrip("/")
    if any(piece in ("", ".", "..") for piece in key.split("/")) and key:
        raise LocationError(f"{text}: the key has an empty, '.' or '..' piece, which cannot be addressed; rename it.")
    return bucket, key
