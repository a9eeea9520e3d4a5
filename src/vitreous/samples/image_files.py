"""Which file an image id of a table means: extensions left out, other extensions, folders in between."""

import posixpath
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from vitreous.samples.identifiers import spelling_key
from vitreous.storage.location import ObjectInfo

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff"})
VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mpeg", ".mpg", ".webm", ".mkv", ".gif", ".wmv", ".mts"})


def is_image_name(path: str) -> bool:
    """Whether the extension, in any case, is one of an image."""
    return posixpath.splitext(path)[1].lower() in IMAGE_SUFFIXES


def is_video_name(path: str) -> bool:
    """Whether the extension, in any case, is one of a video."""
    return posixpath.splitext(path)[1].lower() in VIDEO_SUFFIXES


def without_suffix(path: str, suffixes: frozenset[str] = IMAGE_SUFFIXES) -> str:
    """The path without an image's (or other) extension; other endings (``scan.v2``) belong to the name.

    >>> without_suffix("a/IDRiD_001.JPG"), without_suffix("scan.v2")
    ('a/IDRiD_001', 'scan.v2')
    """
    bare, suffix = posixpath.splitext(path)
    return bare if suffix.lower() in suffixes else path


@dataclass(frozen=True)
class FoundImages:
    """What became of the ids of a table.

    Args:
        relative: path below the folder of each id that has one file.
        several: id → the files that it may mean.
        renamed: ids whose file has another extension than the table says.
        nested: ids without a folder whose file lies in one.
        unused: image files that no id means.
    """

    relative: dict[str, str]
    several: dict[str, list[str]]
    renamed: tuple[str, ...]
    nested: tuple[str, ...]
    unused: tuple[str, ...]


def find_images(
    identifiers: Iterable[str], listing: Sequence[ObjectInfo], suffixes: frozenset[str] = IMAGE_SUFFIXES
) -> FoundImages:
    """The file of each id: the path as written, else with an image's extension, else by name in any folder below.

    Args:
        listing: what lies below the folder of the images.
        suffixes: of the files that are meant, where they are no images.
    """

    def bare(path: str) -> str:
        return without_suffix(path, suffixes)

    def bare_name(path: str) -> str:
        return bare(posixpath.basename(path))

    paths = {info.relative for info in listing}
    images = sorted(path for path in paths if posixpath.splitext(path)[1].lower() in suffixes)
    ways = [_group(images, key_of) for key_of in (bare, posixpath.basename, bare_name)]
    found: dict[str, str] = {}
    several: dict[str, list[str]] = {}
    renamed: list[str] = []
    nested: list[str] = []
    for identifier in dict.fromkeys(identifiers):
        path = posixpath.normpath(identifier.replace("\\", "/").lstrip("/")) if identifier else ""
        if path in paths:
            found[identifier] = path
            continue
        keys = [bare(path), path, bare(path)]
        if "/" in path:
            keys = keys[:1]  # the table names the folder
        files: list[str] = next((way[key] for way, key in zip(ways, keys) if key in way), [])
        if len(files) > 1:
            several[identifier] = files
        elif files:
            found[identifier] = files[0]
            if bare(path) != path and posixpath.splitext(files[0])[1] != posixpath.splitext(path)[1]:
                renamed.append(identifier)
            if posixpath.dirname(files[0]) != posixpath.dirname(path):
                nested.append(identifier)
    used = set(found.values()).union(*several.values())
    unused = tuple(path for path in images if path not in used)
    return FoundImages(found, several, tuple(renamed), tuple(nested), unused)


def match_names(missing: Iterable[str], files: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs (id without a file, file without an id) whose names differ only in zeros, separators or case."""
    by_key = {spelling_key(_name_without_suffix(path)): path for path in sorted(files, reverse=True)}
    keys = ((identifier, spelling_key(_name_without_suffix(identifier))) for identifier in dict.fromkeys(missing))
    return [(identifier, by_key[key]) for identifier, key in keys if key in by_key]


def _name_without_suffix(path: str) -> str:
    return without_suffix(posixpath.basename(path))


def _group(images: Sequence[str], key_of: Callable[[str], str]) -> dict[str, list[str]]:
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for path in images:
        groups[key_of(path)].append(path)
    return groups
