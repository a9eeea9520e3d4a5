"""One file by its location: tables and checkpoints, wherever they lie."""

from pathlib import Path

from vitreous.core.errors import LocationError
from vitreous.storage.location import DEFAULT_S3, Location, S3Options
from vitreous.storage.objects import ObjectStore
from vitreous.storage.staging import StagingCache


def fetch_file(
    text: str, s3: S3Options = DEFAULT_S3, cache: StagingCache | None = None, *, relative_to: Path | None = None
) -> Path:
    """The local path of one file; a remote one is staged to `cache`, verified.

    Args:
        text: a path, ``s3://bucket/key`` or ``gs://bucket/key``.
        cache: needed for a remote file.
        relative_to: the folder that a relative local path starts from; the working directory if left out.
    Raises:
        LocationError: it does not exist or may not be read, or it is remote and there is no cache.
        StorageError: it did not arrive whole after all retries.
    """
    location = Location.parse(text, relative_to=relative_to)
    if not location.name:
        raise LocationError(f"{location}: names no file; write the whole key.")
    store = ObjectStore(location.parent, s3)
    info = store.head(location.name)
    if location.is_local:
        return location.path
    if cache is None:
        raise LocationError(f"{location}: is remote and there is no cache to stage it to; set cache.dir.")
    return cache.fetch(store, info)
