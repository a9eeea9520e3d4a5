"""The bound of the cache: what lies in it, what is on its way, and what has to go."""

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from vitreous.storage.locks import Note, exclusive, remove_unless_pinned, sum_notes

_PARTIAL_SUFFIX = ".part"
_ABANDONED_S = 3600.0  # a partial file not written to for so long was left by a killed process
_RECOUNT_EVERY = 32  # reservations between two looks at what other processes do, fewer when little room is left
_LOW_WATER = 0.9  # an eviction goes this far down, so that the next ones are rare


@dataclass(frozen=True)
class _Staged:
    last_used_ns: int
    path: str
    size: int


class Room:
    """Keeps a folder of files below a number of bytes, the least recently used going first.

    Several processes may share the folder; each shows the others what it is about to write. A file pinned by any of
    them stays, so that the folder can exceed the bound by the files that consumers hold at that moment.

    Args:
        folder: holds the files, in subfolders one level deep.
        max_bytes: the bound.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._lock_path = folder.parent / "locks" / "room"
        self._notes = folder.parent / "reserved"
        self._note: Note | None = None
        self._mutex = threading.Lock()
        self._used = 0  # bytes on disk and reserved by others at the last count, and what this process added since
        self._coming = 0  # bytes reserved by downloads of this process that are not yet on disk
        self._until_recount = 0

    def reserve(self, size: int, *, must: bool) -> bool:
        """Make room for a file of `size` bytes that is about to be written.

        Args:
            must: reserve even if pinned files leave too little room (the consumer waits for this very file).
        Returns:
            Whether the room is reserved. If so, :meth:`settle` must follow.
        """
        with self._mutex, exclusive(self._lock_path):
            free = self.max_bytes - self._used - self._coming
            self._until_recount = min(self._until_recount - 1, free // (4 * size + 1))
            if self._until_recount < 0 or free < size:
                self._count_and_evict(size)
            if self._used + self._coming + size > self.max_bytes and not must:
                return False
            self._show(self._coming + size)
            return True

    def settle(self, size: int, *, is_written: bool) -> None:
        """End a reservation: the file now lies in the folder, or never will."""
        with self._mutex:
            self._show(self._coming - size)
            if is_written:
                self._used += size

    def close(self) -> None:
        """Take away what this process shows to others."""
        with self._mutex:
            if self._note is not None:
                self._note.close()
                self._note = None

    def _show(self, coming: int) -> None:
        self._coming = coming
        if self._note is None:
            self._note = Note(self._notes)
        self._note.write(coming)

    def _count_and_evict(self, size: int) -> None:
        staged = self._scan()
        own = self._note.path if self._note is not None else self._notes
        self._used = sum(file.size for file in staged) + sum_notes(self._notes, without=own)
        self._until_recount = _RECOUNT_EVERY
        if self._used + self._coming + size <= self.max_bytes:
            return
        goal = max(int(self.max_bytes * _LOW_WATER) - self._coming - size, 0)
        for file in sorted(staged, key=lambda file: file.last_used_ns):
            if self._used <= goal:
                return
            if remove_unless_pinned(Path(file.path)):
                self._used -= file.size

    def _scan(self) -> list[_Staged]:
        """Finished files; abandoned partial ones are removed, those being written are counted by their writers."""
        found: list[_Staged] = []
        abandoned_ns = time.time_ns() - int(_ABANDONED_S * 1e9)
        for shard in _entries(self.folder):
            for entry in _entries(shard.path):
                try:
                    status = entry.stat()
                except FileNotFoundError:  # renamed or evicted by another process since the scan
                    continue
                if not entry.name.endswith(_PARTIAL_SUFFIX):
                    found.append(_Staged(status.st_mtime_ns, entry.path, status.st_size))
                elif status.st_mtime_ns < abandoned_ns:
                    Path(entry.path).unlink(missing_ok=True)
        return found


def _entries(folder: Path | str) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        return []
