"""Files that appear whole or not at all: written aside, flushed to disk, renamed."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_TEMPORARY_SUFFIX = ".part"


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


_UMASK = _umask()  # once: it can only be read by changing it, which two threads at a time would leave changed


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; on a clean exit it takes the name `path`, else it vanishes.

    The temporary name keeps the suffix of `path` in front of ``.part`` so that writers which look at the
    suffix are not misled, and lies in the same folder so that the rename is atomic.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_TEMPORARY_SUFFIX, dir=path.parent)
    os.close(handle)
    aside = Path(name)
    try:
        yield aside
        with aside.open("rb") as file:
            os.fsync(file.fileno())  # before the rename: a crash may otherwise leave a named, empty file
        # mkstemp gives 0600; a run directory is shared like any other folder of the user
        aside.chmod(0o666 & ~_UMASK)
        aside.replace(path)
        _sync_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` whole or not at all."""
    with replacing(path) as aside:
        aside.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write sorted, indented JSON whole or not at all; NaN is refused, since JSON cannot say it."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def remove_partial_files(folder: Path) -> None:
    """Remove what a killed process left half-written in `folder` (not in its subfolders)."""
    for left in folder.glob(f".*{_TEMPORARY_SUFFIX}"):
        left.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
