"""Locks between processes that the system frees when their holder dies, however it dies."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

if sys.platform == "win32":
    import msvcrt
    import time

    _FAR = 1 << 40  # a byte beyond every file: the lock there hinders no reader

    def _lock(file: IO[bytes], *, shared: bool, wait: bool) -> bool:
        # Windows has no shared byte locks in its C library; an open handle alone keeps a file from being removed
        while not shared:
            file.seek(_FAR)
            try:
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
                return True
            except OSError:
                if not wait:
                    return False
                time.sleep(0.05)
        return True
else:
    import fcntl

    def _lock(file: IO[bytes], *, shared: bool, wait: bool) -> bool:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        return True


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, waiting for whoever holds it; threads of one process exclude each other too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        _lock(file, shared=False, wait=True)
        yield  # closing the file frees the lock


class Pin:
    """Keeps one cached file from being evicted, by this or any other process, until released."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def release(self) -> None:
        """Let the file go. Harmless when repeated."""
        self._file.close()


def pin(path: Path) -> Pin | None:
    """Pin the file `path`; None if it does not exist or is being evicted."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    if _lock(file, shared=True, wait=True) and _is_still(file, path):
        return Pin(file)
    file.close()
    return None


def remove_unless_pinned(path: Path) -> bool:
    """Remove a cached file nobody holds; whether it is gone."""
    try:
        with path.open("rb") as file:
            if not _lock(file, shared=False, wait=False):
                return False
            if sys.platform != "win32":
                path.unlink(missing_ok=True)
        if sys.platform == "win32":
            path.unlink(missing_ok=True)
    except FileNotFoundError:
        return True
    except PermissionError:  # Windows: somebody has it open
        return False
    return True


def _is_still(file: IO[bytes], path: Path) -> bool:
    """Whether `path` still names the open file: it may have been evicted while the lock was waited for."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
