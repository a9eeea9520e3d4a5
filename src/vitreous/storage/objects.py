"""List, look at and read objects below a root, whatever holds them."""

import posixpath
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vitreous.core.errors import LocationError, StorageError
from vitreous.storage.buckets import open_bucket
from vitreous.storage.credentials import resolve_s3_access
from vitreous.storage.local_files import list_folder, look_at, read_local
from vitreous.storage.location import DEFAULT_S3, Location, ObjectInfo, S3Options
from vitreous.storage.refusals import read_answer, refusal_of
from vitreous.storage.retries import DEFAULT_RETRY, RetryPolicy, StoppedError, TryAgainError
from vitreous.storage.verification import BodyCheck

if TYPE_CHECKING:
    from obstore.store import GCSStore, S3Store

Result = TypeVar("Result")
Listing = list[ObjectInfo]  # inside the class, `list` is the method
_PIECE = 4 << 20  # bytes asked of the network at a time
_PAGE = 1000  # keys of one listing request


class ObjectStore:
    """Everything below one root. Safe to share between threads; no request is made before it is needed.

    Args:
        root: a folder or a prefix of a bucket.
        s3: endpoint and region, for an ``s3://`` root.
        retry: how often a failed or damaged answer is asked for again.
    """

    def __init__(self, root: Location, s3: S3Options = DEFAULT_S3, *, retry: RetryPolicy = DEFAULT_RETRY) -> None:
        self.root = root
        self.s3 = s3
        self.retry = retry
        self._bucket: S3Store | GCSStore | None = None
        self._opening = threading.Lock()

    @property
    def endpoint(self) -> str | None:
        """The S3 server in use; None is the provider's own, and for local roots."""
        return resolve_s3_access(self.s3).endpoint if self.root.scheme == "s3" else None

    def list(self, prefix: str = "") -> Listing:
        """All objects below `prefix` (a folder below the root), sorted by relative path.

        Names beginning with a dot are left out of local folders; folder markers (empty objects whose name other
        keys continue) are left out of buckets.

        Raises:
            LocationError: folder or bucket does not exist, or access is refused.
            StorageError: the server did not answer after all retries.
        """
        folder = self.root.child(prefix)
        if folder.is_local:
            return list_folder(self.root.path, folder.path)
        entries = self.retry.run(lambda: self._ask(folder, lambda: self._list_bucket(folder)), str(folder))
        return sorted(_drop_folder_markers(entries, folder), key=lambda info: info.relative)

    def head(self, relative: str) -> ObjectInfo:
        """Size and ETag of one object.

        Raises:
            LocationError: it does not exist, or access is refused.
            StorageError: the server did not answer after all retries.
        """
        location = self.root.child(relative)
        if location.is_local:
            return look_at(location, self._relative(location))
        meta = self.retry.run(lambda: self._ask(location, lambda: self._head_bucket(location)), str(location))
        return self._info(location, meta)

    def read(self, relative: str) -> bytes:
        """The whole content of a small object, verified.

        Raises:
            LocationError: it does not exist, or access is refused.
            StorageError: it did not arrive whole after all retries.
        """
        location = self.root.child(relative)
        if location.is_local:
            return read_local(location)
        seen: set[str] = set()
        return self.retry.run(lambda: self._read_once(location, seen), str(location))

    def download(
        self,
        info: ObjectInfo,
        path: Path,
        *,
        stop: threading.Event | None = None,
        retry: RetryPolicy | None = None,
    ) -> str:
        """Write an object of a bucket to `path`, verified, with retries; returns its SHA-256.

        Args:
            path: overwritten; holds undefined bytes after an error.
            stop: gives up between two pieces when set.
            retry: in place of the store's own policy.
        Raises:
            LocationError: access is refused or the object is gone.
            StorageError: the object did not arrive whole after all retries, or is no longer the one listed.
        """
        ended = stop or threading.Event()
        policy = retry or self.retry
        seen: set[str] = set()
        return policy.run(lambda: self._download_once(info, path, ended, seen), str(info.location), ended)

    def _list_bucket(self, folder: Location) -> Listing:
        import obstore

        pages = obstore.list(self._open(), folder.key or None, chunk_size=_PAGE)
        where = [(Location(folder.scheme, folder.bucket, meta["path"]), meta) for page in pages for meta in page]
        return [self._info(location, meta) for location, meta in where]

    def _head_bucket(self, location: Location) -> Any:
        import obstore

        try:
            return obstore.head(self._open(), location.key)
        except FileNotFoundError:
            # the answer to HEAD has no body, so it cannot tell a missing key from a missing bucket; GET can
            return obstore.get(self._open(), location.key).meta

    def _read_once(self, location: Location, seen: set[str]) -> bytes:
        pieces: list[bytes] = []
        result = self._get(location)
        promised = self._info(location, result.meta)
        check = BodyCheck(promised, etags_are_md5=self.s3.etags_are_md5, seen=seen)
        for piece in self._pieces(location, result):
            check.update(piece)
            pieces.append(bytes(piece))
        check.finish()
        return b"".join(pieces)

    def _download_once(self, info: ObjectInfo, path: Path, stop: threading.Event, seen: set[str]) -> str:
        result = self._get(info.location)
        now = self._info(info.location, result.meta)
        if info.etag and now.etag and now.etag != info.etag:
            raise StorageError(
                f"{info.location}: is no longer the object that was listed: got ETag {now.etag}, expected {info.etag}. "
                f"Refresh the listing and run again."
            )
        check = BodyCheck(info, etags_are_md5=self.s3.etags_are_md5, seen=seen)
        with path.open("wb") as file:
            for piece in self._pieces(info.location, result):
                check.update(piece)
                file.write(piece)
                if stop.is_set():
                    raise StoppedError
        return check.finish()

    def _get(self, location: Location) -> Any:
        import obstore

        return self._ask(location, lambda: obstore.get(self._open(), location.key))

    def _pieces(self, location: Location, result: Any) -> Iterator[memoryview]:
        pieces = result.stream(min_chunk_size=_PIECE)
        while True:
            piece = self._ask(location, lambda: next(pieces, None))
            if piece is None:
                return
            yield memoryview(piece)

    def _ask(self, location: Location, request: Callable[[], Result]) -> Result:
        """One request; what it raises becomes a LocationError (pointless to repeat) or a TryAgainError."""
        from obstore.exceptions import BaseError, InvalidPathError

        try:
            return request()
        except InvalidPathError:
            raise LocationError(
                f"{location}: a key holds an empty, '.' or '..' piece, which cannot be addressed; rename it."
            ) from None
        except (BaseError, FileNotFoundError, TimeoutError, ConnectionError) as error:
            # from None: obstore's text may quote the access key
            if refusal := refusal_of(error, location, self.endpoint):
                raise refusal from None
            at = f" from {self.endpoint}" if self.endpoint else ""
            raise TryAgainError(f"{read_answer(error)}{at}") from None

    def _open(self) -> "S3Store | GCSStore":
        with self._opening:
            if self._bucket is None:
                self._bucket = open_bucket(self.root, self.s3)
            return self._bucket

    def _info(self, location: Location, meta: Any) -> ObjectInfo:
        etag = (meta["e_tag"] or "").removeprefix("W/").strip('"')
        return ObjectInfo(location, self._relative(location), int(meta["size"]), etag)

    def _relative(self, location: Location) -> str:
        if location.is_local:
            return posixpath.relpath(location.key, self.root.key)
        return location.key[len(self.root.key) :].lstrip("/") if self.root.key else location.key


def _drop_folder_markers(entries: Listing, folder: Location) -> Listing:
    """Without the empty objects that consoles write to show a folder."""
    folders = {folder.key}
    for info in entries:
        parent = posixpath.dirname(info.location.key)
        while parent and parent not in folders:
            folders.add(parent)
            parent = posixpath.dirname(parent)
    return [info for info in entries if info.size > 0 or info.location.key not in folders]
