"""Remote files brought to a bounded local cache: whole or not at all, verified, many in flight.

Layout of the cache folder: ``objects/<2 hex>/<identity><suffix>``, and ``locks`` and ``reserved``, by which processes
that share it know of each other.
"""

import os
import re
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self

from vitreous.core.errors import ConfigError, LocationError, StorageError
from vitreous.core.files import replacing
from vitreous.storage.local_files import look_at
from vitreous.storage.location import ObjectInfo
from vitreous.storage.locks import Pin, exclusive, pin
from vitreous.storage.objects import ObjectStore
from vitreous.storage.refusals import MissingObjectError
from vitreous.storage.room import Room

_GB = 10**9
_SUFFIX = re.compile(r"(\.[A-Za-z0-9]{1,12})?(\.(gz|bz2|xz|zst))?$")  # decoders of packed files look at the name
_HELD_FETCHES = 64


@dataclass(frozen=True)
class _Ahead:
    """A file on its way to the consumer of a stream."""

    info: ObjectInfo
    staged: "Future[tuple[Path, Pin | None]]"
    reserved: int  # bytes that the fetch settles, or that fall free if it never starts


DEFAULT_CACHE = ("~/.cache/vitreous/files", 50.0)  # folder and gigabytes, where no study says otherwise


class StagingCache:
    """A folder of verified copies, by content identity; processes may share it.

    Args:
        dir: made when first needed.
        max_gb: bound in gigabytes (10^9 bytes). Files that a consumer holds at the moment are never removed; several
            consumers at once may together exceed the bound by one file each.
        retries: attempts after the first, replaces the store's own number.
        in_flight: files fetched at the same time, ahead of the consumer.
    """

    def __init__(self, dir: Path, max_gb: float, *, retries: int = 5, in_flight: int = 16) -> None:
        if max_gb <= 0 or in_flight < 1 or retries < 0:
            raise ConfigError(
                f"cache needs max_gb > 0, in_flight >= 1 and retries >= 0; got {max_gb}, {in_flight}, {retries}."
            )
        self.dir = Path(dir).expanduser()
        self.max_bytes = int(max_gb * _GB)
        self._retries = retries
        self._in_flight = in_flight
        self._room = Room(self.dir / "objects", self.max_bytes)
        self._held: OrderedDict[str, tuple[Pin, int]] = OrderedDict()
        self._lent: list[Pin | None] = []  # the last files of the latest stream
        self._holding = threading.Lock()

    def fetch(self, store: ObjectStore, info: ObjectInfo) -> Path:
        """The local path of one object; a local file is its own path and is never copied.

        The copy is held (by this process, against every other) until this cache has fetched 64 more files, or
        files of more than half its size, or is closed.

        Raises:
            LocationError: access is refused, or the object does not exist.
            StorageError: the object did not arrive whole after all retries, or changed since it was listed.
            ConfigError: it is larger than the whole cache.
        """
        if info.location.is_local:
            _check_unchanged(info)
            return info.location.path
        self._check_fits([info])
        path, held = self._stage(store, info, threading.Event(), is_reserved=False)
        if held is not None:
            self._hold(info, held)
        return path

    def stream(
        self, store: ObjectStore, infos: Sequence[ObjectInfo], *, in_use: int = 1
    ) -> Iterator[tuple[ObjectInfo, Path | StorageError]]:
        """Every object in the order given, fetched ahead; a failure takes the place of its path.

        Args:
            in_use: of the files given last, how many the consumer may still be reading; they are not evicted, even
                where the cache exceeds its bound by them. The last ones are freed when the iterator is closed early,
                when this cache streams again, or when it is closed.
        Raises:
            ConfigError: at the start, if an object is larger than the whole cache.
            LocationError: access to the bucket is refused; no file could follow.
        """
        self._check_fits(infos)
        self._take_back()
        stop = threading.Event()
        waiting = deque(infos)
        ahead: deque[_Ahead] = deque()
        read: deque[Pin | None] = deque()
        pool = ThreadPoolExecutor(self._in_flight, thread_name_prefix="staging")
        try:
            while waiting or ahead:
                self._send_ahead(store, waiting, ahead, pool, stop)
                first = ahead[0]
                held: Pin | None = None
                result: Path | StorageError
                try:
                    result, held = first.staged.result()
                except StorageError as error:
                    result = error
                except MissingObjectError as error:  # gone since it was listed: this file's failure alone
                    result = StorageError(str(error))
                ahead.popleft()
                read.append(held)
                yield first.info, result
                while len(read) >= in_use:
                    _release(read.popleft())
            with self._holding:
                self._lent.extend(read)  # the consumer may still be reading what it was given last
            read.clear()
        finally:
            for held in read:
                _release(held)
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            for left in ahead:
                self._abandon(left)

    def close(self) -> None:
        """Let every held file go."""
        self._take_back()
        with self._holding:
            while self._held:
                self._held.popitem()[1][0].release()
        self._room.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take_back(self) -> None:
        with self._holding:
            while self._lent:
                _release(self._lent.pop())

    def _send_ahead(
        self,
        store: ObjectStore,
        waiting: deque[ObjectInfo],
        ahead: deque[_Ahead],
        pool: ThreadPoolExecutor,
        stop: threading.Event,
    ) -> None:
        """Start fetching until enough are on the way or the cache is full of files not yet consumed.

        Room is reserved here, in the order of consumption: the file the consumer waits for always has its room.
        """
        while waiting and len(ahead) < self._in_flight:
            info = waiting[0]
            reserved = 0
            staged: Future[tuple[Path, Pin | None]]
            if info.location.is_local:
                staged = _local(info)
            elif (held := self._pin_staged(info)) is not None:
                staged = Future()
                staged.set_result((self._path(info), held))
            elif self._room.reserve(info.size, must=not ahead):
                reserved = info.size
                staged = pool.submit(self._stage, store, info, stop, is_reserved=True)
            else:
                return
            waiting.popleft()
            ahead.append(_Ahead(info, staged, reserved))

    def _abandon(self, left: _Ahead) -> None:
        """Free what a file that nobody will consume holds."""
        if left.staged.cancelled():
            self._room.settle(left.reserved, is_written=False)
        elif left.staged.exception() is None:
            held = left.staged.result()[1]
            if held is not None:
                held.release()

    def _stage(
        self, store: ObjectStore, info: ObjectInfo, stop: threading.Event, *, is_reserved: bool
    ) -> tuple[Path, Pin | None]:
        """Fetch into the cache unless another thread or process has; the file comes back pinned."""
        path = self._path(info)
        reserved = info.size if is_reserved else 0
        try:
            with exclusive(self.dir / "locks" / info.identity[:2]):
                while (held := self._pin_staged(info)) is None:
                    if not reserved:
                        self._room.reserve(info.size, must=True)
                        reserved = info.size
                    self._download(store, info, path, stop)
                    self._room.settle(reserved, is_written=True)
                    reserved = 0
                return path, held
        finally:
            if reserved:
                self._room.settle(reserved, is_written=False)

    def _download(self, store: ObjectStore, info: ObjectInfo, path: Path, stop: threading.Event) -> None:
        with replacing(path) as aside:
            store.download(info, aside, stop=stop, retry=replace(store.retry, retries=self._retries))

    def _pin_staged(self, info: ObjectInfo) -> Pin | None:
        """The pinned copy if there is one of the right size, marked as just used."""
        path = self._path(info)
        held = pin(path)
        if held is None:
            return None
        if path.stat().st_size != info.size:
            held.release()
            path.unlink(missing_ok=True)
            return None
        os.utime(path)
        return held

    def _hold(self, info: ObjectInfo, held: Pin) -> None:
        with self._holding:
            if info.identity in self._held:
                self._held.pop(info.identity)[0].release()
            self._held[info.identity] = (held, info.size)
            while len(self._held) > 1 and (
                len(self._held) > _HELD_FETCHES or sum(size for _, size in self._held.values()) > self.max_bytes // 2
            ):
                self._held.popitem(last=False)[1][0].release()

    def _path(self, info: ObjectInfo) -> Path:
        identity = info.identity
        found = _SUFFIX.search(PurePosixPath(info.location.key).name)
        return self.dir / "objects" / identity[:2] / (identity + (found[0] if found else ""))

    def _check_fits(self, infos: Sequence[ObjectInfo]) -> None:
        remote = [info for info in infos if not info.location.is_local]
        largest = max(remote, key=lambda info: info.size, default=None)
        if largest is not None and largest.size > self.max_bytes:
            raise ConfigError(
                f"{largest.location} has {largest.size / _GB:.3f} GB, more than the whole cache of "
                f"{self.max_bytes / _GB:.3f} GB. Set cache.max_gb to at least {largest.size / _GB * 1.1:.3f}."
            )


def _release(held: Pin | None) -> None:
    if held is not None:
        held.release()


def _local(info: ObjectInfo) -> "Future[tuple[Path, Pin | None]]":
    """A local file, there at once; or its failure, if it has gone or changed since it was listed."""
    staged: Future[tuple[Path, Pin | None]] = Future()
    try:
        _check_unchanged(info)
    except (LocationError, StorageError) as error:
        staged.set_exception(StorageError(str(error)))
    else:
        staged.set_result((info.location.path, None))
    return staged


def _check_unchanged(info: ObjectInfo) -> None:
    if look_at(info.location, info.relative).identity != info.identity:
        raise StorageError(f"{info.location}: changed since it was listed; run the same command again.")
