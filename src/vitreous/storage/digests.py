"""SHA-256 of contents already seen, remembered by content identity, so that a second run reads nothing."""

import sqlite3
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vitreous.core.errors import LocationError

_AT_ONCE = 500  # identities in one query; SQLite allows 999 in old builds


class DigestBook:
    """A table identity → SHA-256 in one SQLite file, shared by threads and processes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mutex = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    def recall(self, identities: Sequence[str]) -> dict[str, str]:
        """The digests that are known; the others are absent."""
        known: dict[str, str] = {}
        with self._table() as table:
            for start in range(0, len(identities), _AT_ONCE):
                some = identities[start : start + _AT_ONCE]
                marks = ",".join("?" * len(some))
                rows = table.execute(f"SELECT identity, sha256 FROM digests WHERE identity IN ({marks})", some)
                known |= dict(rows)
        return known

    def remember(self, identity: str, sha256: str) -> None:
        """Keep one digest; the same identity always has the same."""
        with self._table() as table:
            table.execute("INSERT OR REPLACE INTO digests VALUES (?, ?)", (identity, sha256))

    def close(self) -> None:
        """Close the file; it opens again when needed."""
        with self._mutex:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self._path, timeout=60, isolation_level=None, check_same_thread=False)
            # no write-ahead log: it would need shared memory, which folders on a network drive do not have
            connection.execute("PRAGMA journal_mode=TRUNCATE")
            # one commit a file must not cost a flush of the disk; a power cut may damage the table, which is then
            # made anew (killing the process cannot)
            connection.execute("PRAGMA synchronous=OFF")
            connection.execute("CREATE TABLE IF NOT EXISTS digests (identity TEXT PRIMARY KEY, sha256 TEXT)")
            weakref.finalize(self, connection.close)
            self._connection = connection
        return self._connection

    @contextmanager
    def _table(self) -> Iterator[sqlite3.Connection]:
        with self._mutex:
            try:
                yield self._open()
            except sqlite3.DatabaseError as error:
                raise LocationError(
                    f"{self._path}: cannot be used as the table of digests ({error}). If the folder is writable, "
                    f"remove the file; it is made anew."
                ) from error
