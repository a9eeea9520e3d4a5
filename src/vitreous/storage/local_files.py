"""Local folders, listed and read like a bucket."""

import os
from pathlib import Path

from vitreous.core.errors import LocationError
from vitreous.storage.location import Location, ObjectInfo
from vitreous.storage.refusals import MissingObjectError

_NAMED = 3  # examples in an error text


def list_folder(root: Path, folder: Path) -> list[ObjectInfo]:
    """Every file below `folder`, sorted by its path relative to `root`; names beginning with a dot are left out.

    Links are followed; a folder reached twice through links is listed once.

    Raises:
        LocationError: the folder does not exist or may not be read, or links below it lead nowhere.
    """
    if not folder.is_dir():
        got = "is a file, not a folder" if folder.exists() else "does not exist"
        raise LocationError(f"{folder}: {got}; name the folder that holds the files.")
    found: list[ObjectInfo] = []
    dangling: list[str] = []
    seen: set[tuple[int, int]] = set()
    pending = [str(folder)]
    start = len(str(root).rstrip(os.sep)) + 1
    while pending:
        current = pending.pop()
        state = os.stat(current)
        if (state.st_dev, state.st_ino) in seen:
            continue
        seen.add((state.st_dev, state.st_ino))
        for entry in _scan(current):
            if entry.name.startswith("."):
                continue
            try:
                if entry.is_dir():
                    pending.append(entry.path)
                    continue
                # on Windows an entry of a listing carries no inode, and would never equal the file looked at later
                status = os.stat(entry.path) if os.name == "nt" else entry.stat()
            except FileNotFoundError:
                dangling.append(entry.path)
                continue
            path = entry.path.replace(os.sep, "/")
            found.append(ObjectInfo(Location("file", "", path), path[start:], status.st_size, _tag(status)))
    if dangling:
        raise LocationError(
            f"{folder}: {len(dangling)} links lead nowhere, e.g. {sorted(dangling)[:_NAMED]}. Fetch their content "
            f"(git annex get, datalad get) or remove them."
        )
    return sorted(found, key=lambda info: info.relative)


def look_at(location: Location, relative: str) -> ObjectInfo:
    """Size and tag of one local file.

    Raises:
        LocationError: there is no such file, it is a folder, or it may not be read.
    """
    path = location.path
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise MissingObjectError(f"{path}: there is no such file. Check the path.") from error
    except OSError as error:
        raise LocationError(f"{path}: {error.strerror}. Check the path and its permissions.") from error
    if path.is_dir():
        raise LocationError(f"{path}: is a folder; name a file.")
    return ObjectInfo(location, relative, status.st_size, _tag(status))


def read_local(location: Location) -> bytes:
    """The content of a local file.

    Raises:
        LocationError: there is no such file, it is a folder, or it may not be read.
    """
    try:
        return location.path.read_bytes()
    except FileNotFoundError as error:
        raise MissingObjectError(f"{location.path}: there is no such file. Check the path.") from error
    except OSError as error:
        raise LocationError(f"{location.path}: {error.strerror}. Check the path and its permissions.") from error


def _scan(folder: str) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except PermissionError as error:
        raise LocationError(f"{folder}: {error.strerror}; let this user read the folder.") from error


def _tag(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns}-{status.st_ino}"
