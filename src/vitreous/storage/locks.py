"""Locks between processes that the system frees when their holder dies, however it dies."""

import os
import sys
import uuid
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
    import time

    _FAR = 1 << 40  # a byte beyond every file: the lock there hinders no reader

    def _lock(handle: int, *, shared: bool, wait: bool) -> bool:
        # Windows has no shared byte locks in its C library; an open handle alone keeps a file from being removed
        while not shared:
            os.lseek(handle, _FAR, os.SEEK_SET)
            try:
                msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
                return True
            except OSError:
                if not wait:
                    return False
                time.sleep(0.05)
        return True
else:
    import fcntl

    def _lock(handle: int, *, shared: bool, wait: bool) -> bool:
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        return True


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, waiting for whoever holds it; threads of one process exclude each other too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _lock(handle, shared=False, wait=True)
        yield
    finally:
        os.close(handle)  # frees the lock


class Pin:
    """Keeps one cached file from being evicted, by this or any other process, until released or forgotten."""

    def __init__(self, handle: int) -> None:
        self._close = weakref.finalize(self, os.close, handle)

    def release(self) -> None:
        """Let the file go. Harmless when repeated."""
        self._close()


def pin(path: Path) -> Pin | None:
    """Pin the file `path`; None if it does not exist or is being evicted."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    held = Pin(handle)
    if _lock(handle, shared=True, wait=True) and _is_still(handle, path):
        return held
    held.release()
    return None


def remove_unless_pinned(path: Path) -> bool:
    """Remove a file nobody holds; whether it is gone."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        if not _lock(handle, shared=False, wait=False):
            return False
        if sys.platform != "win32":
            path.unlink(missing_ok=True)
            return True
    finally:
        os.close(handle)
    try:
        path.unlink(missing_ok=True)
    except PermissionError:  # Windows: somebody has it open
        return False
    return True


class Note:
    """A number that this process shows to the others in `folder`, as long as it lives."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / uuid.uuid4().hex
        self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        _lock(self._handle, shared=True, wait=True)
        self._close = weakref.finalize(self, _end_note, self._handle, self.path)

    def write(self, number: int) -> None:
        """Show another number; its width is fixed, so that a reader never sees a part of one."""
        os.lseek(self._handle, 0, os.SEEK_SET)
        os.write(self._handle, f"{number:020d}".encode())

    def close(self) -> None:
        """Take the note away."""
        self._close()


def sum_notes(folder: Path, without: Path) -> int:
    """The sum of all notes in `folder` but `without`; those of dead processes are removed."""
    if not folder.is_dir():
        return 0
    total = 0
    for path in folder.iterdir():
        if path != without and not remove_unless_pinned(path):
            try:
                total += int(path.read_text() or "0")
            except FileNotFoundError:  # taken away since the look at the folder
                continue
    return total


def _end_note(handle: int, path: Path) -> None:
    os.close(handle)
    path.unlink(missing_ok=True)


def _is_still(handle: int, path: Path) -> bool:
    """Whether `path` still names the open file: it may have been evicted while the lock was waited for."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
