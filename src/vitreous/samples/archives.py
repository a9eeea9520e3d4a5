"""A downloaded archive, looked at and read without trusting it: zip, tar, or a folder that is already unpacked.

Every name and declared size is checked before anything is written, and again while it is. What is read goes where the
caller says, never where a name of the archive points.
"""

import bz2
import gzip
import io
import lzma
import os
import re
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

from vitreous.core.errors import UserError
from vitreous.core.files import replacing
from vitreous.core.progress import Advance, no_progress
from vitreous.samples.problems import examples

MAX_RATIO = 100  # unpacked over packed bytes; photographs hardly shrink at all, a zip bomb starts at about 1000
MAX_MEMBERS = 1_000_000
_RATIO_COUNTS_FROM = 100 * 2**20  # unpacked bytes below which no ratio is dangerous
_LONGEST_READ = 64 * 2**20  # of a tar's header; a real one has a few hundred bytes
_CHUNK = 1 << 20
_JUNK_FOLDERS = {"__macosx"}
_JUNK_FILES = {".ds_store", "thumbs.db", "desktop.ini"}
_DRIVE = re.compile(r"^[A-Za-z]:")


@dataclass(frozen=True)
class Member:
    """One file of an archive.

    Args:
        name: path inside the archive, parts joined by ``/``, no part empty, ``.`` or ``..``.
        size: bytes once unpacked, as declared.
    """

    name: str
    size: int


class Archive(ABC):
    """The files of an archive, checked: no path that leads out, no link, no two names that one folder cannot hold.

    Args:
        path: where the archive lies.
        members: by name, in the archive's order; what operating systems strew about (``.DS_Store``, ``__MACOSX``)
            is left out.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self._raw_names: dict[str, str] = {}
        self._contents: dict[str, bytes] = {}
        self.members: dict[str, Member] = {}
        spellings: dict[str, str] = {}
        total, packed = 0, self._packed_bytes()
        for raw, size in self._list():
            total += size
            _check_total(path, total, packed, max_bytes)
            name = _checked_name(path, raw)
            if _is_junk(name):
                continue
            spelling = unicodedata.normalize("NFC", name).casefold()
            if spelling in spellings:
                raise UserError(
                    f"{path}: holds {spellings[spelling]!r} and {name!r}, which are one file where names do not tell "
                    f"capitals apart; remove one of them."
                )
            if len(spellings) >= MAX_MEMBERS:
                raise UserError(f"{path}: holds more than {MAX_MEMBERS:,} files; this is no archive of a cohort.")
            spellings[spelling] = name
            self._raw_names[name] = raw
            self.members[name] = Member(name, size)

    def read(self, names: Collection[str], *, max_bytes: int) -> dict[str, bytes]:
        """Whole content of small files, such as tables.

        Raises:
            UserError: one is larger than `max_bytes`, or the archive is damaged.
        """
        for name, file in self._open([name for name in names if name not in self._contents]):
            content = file.read(max_bytes + 1)
            if len(content) > max_bytes:
                raise UserError(f"{self.path}: {name} has more than {max_bytes:,} bytes; a label table is smaller.")
            self._contents[name] = content  # kept: to find it again, a packed tar is read from its start
        return {name: self._contents[name] for name in names}

    def extract(self, targets: Mapping[str, Path], progress: Advance = no_progress) -> None:
        """Write files, each whole or not at all.

        Args:
            targets: where each member goes.
            progress: called once per file.
        Raises:
            UserError: the archive is damaged, or a file has another size than declared.
        """
        for name, file in self._open(targets):
            with replacing(targets[name]) as aside, aside.open("wb") as out:
                self._copy(self.members[name], file, out)
            progress(1)

    def _copy(self, member: Member, file: IO[bytes], out: BinaryIO) -> None:
        written = 0
        while chunk := file.read(_CHUNK):
            written += len(chunk)
            if written > member.size:
                break
            out.write(chunk)
        if written != member.size:
            raise UserError(
                f"{self.path}: {member.name} should have {member.size:,} bytes and has "
                f"{'more' if written > member.size else f'{written:,}'}; the archive is damaged, download it again."
            )

    def _open(self, names: Collection[str]) -> Iterator[tuple[str, IO[bytes]]]:
        """Each of `names` with its content, in the order of the archive."""
        wanted = {self._raw_names[name]: name for name in names}
        try:
            for raw, file in self._stream(wanted.keys()):
                with file:
                    yield wanted[raw], file
        except _DAMAGES as error:
            raise _damage(self.path, error) from error
        except NotImplementedError as error:
            raise UserError(f"{self.path}: is packed in a way not read here ({error}); unpack it first.") from error

    @abstractmethod
    def close(self) -> None:
        """Close what was opened."""

    @abstractmethod
    def _packed_bytes(self) -> int | None:
        """Size of the packed file; None where nothing is packed."""

    @abstractmethod
    def _list(self) -> Iterator[tuple[str, int]]:
        """Name and declared size of every file; links and devices are refused."""

    @abstractmethod
    def _stream(self, raw_names: Collection[str]) -> Iterator[tuple[str, IO[bytes]]]:
        """The files asked for, in the order of the archive."""


# bz2 and gzip raise OSError
_DAMAGES = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError)


def _damage(path: Path, error: Exception) -> Exception:
    """What to raise; a failure that has a number comes from the disk, not from the archive."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    return UserError(f"{path}: the archive is damaged ({error}); download it again.")


@contextmanager
def open_archive(path: Path, *, max_bytes: int) -> Iterator[Archive]:
    """Look at a zip, a tar (plain, gzip, bzip2 or xz) or a folder; the content decides, not the name.

    Args:
        max_bytes: the most that the files may take once unpacked.
    Raises:
        UserError: the path is missing or no archive; a name leads out of the archive, is a link, or clashes with
            another; it is encrypted, damaged, or would unpack to too much.
    """
    archive: Archive
    if path.is_dir():
        archive = _Folder(path, max_bytes)
    elif not path.is_file():
        raise UserError(f"{path}: does not exist; name the downloaded archive or the folder it was unpacked into.")
    else:
        try:
            if zipfile.is_zipfile(path):
                archive = _Zip(path, max_bytes)
            elif _is_tar(path):
                archive = _Tar(path, max_bytes)
            else:
                raise UserError(
                    f"{path}: is neither a zip nor a tar archive nor a folder. Unpack it with its own program and "
                    f"name the folder; a part of a split zip (.zip.001) has to be joined with the others first."
                )
        except _DAMAGES as error:
            raise _damage(path, error) from error
    try:
        yield archive
    finally:
        archive.close()


class _Folder(Archive):
    def _packed_bytes(self) -> None:
        return None

    def _list(self) -> Iterator[tuple[str, int]]:
        for folder, folders, files in os.walk(self.path):
            folders.sort()
            for name in sorted([*files, *folders]):
                path = Path(folder) / name
                state = path.lstat()
                if stat.S_ISDIR(state.st_mode):
                    continue
                raw = path.relative_to(self.path).as_posix()
                if not stat.S_ISREG(state.st_mode):
                    raise UserError(f"{self.path}: {raw!r} is a link or no plain file; put the file itself there.")
                yield raw, state.st_size

    def _stream(self, raw_names: Collection[str]) -> Iterator[tuple[str, IO[bytes]]]:
        for raw in raw_names:
            yield raw, (self.path / raw).open("rb")

    def close(self) -> None:
        """Nothing stays open."""


class _Zip(Archive):
    def __init__(self, path: Path, max_bytes: int) -> None:
        self._zip = zipfile.ZipFile(path)
        super().__init__(path, max_bytes)

    def _packed_bytes(self) -> int:
        return self.path.stat().st_size

    def _list(self) -> Iterator[tuple[str, int]]:
        for info in self._zip.infolist():
            if info.flag_bits & 0x1:
                raise UserError(f"{self.path}: is encrypted ({info.filename!r}); unpack it with its password first.")
            mode = info.external_attr >> 16
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise UserError(f"{self.path}: {info.filename!r} is a link or no plain file; this archive is not safe.")
            if info.is_dir():
                _checked_name(self.path, info.filename)
                continue
            yield info.filename, info.file_size

    def _stream(self, raw_names: Collection[str]) -> Iterator[tuple[str, IO[bytes]]]:
        for info in self._zip.infolist():
            if info.filename in raw_names:
                yield info.filename, self._zip.open(info)

    def close(self) -> None:
        self._zip.close()


class _Tar(Archive):
    def _packed_bytes(self) -> int:
        return self.path.stat().st_size

    @contextmanager
    def _opened(self) -> Iterator[tarfile.TarFile]:
        with _decompressed(self.path) as plain, tarfile.open(fileobj=_BoundedReads(plain), mode="r:") as tar:
            yield tar

    def _list(self) -> Iterator[tuple[str, int]]:
        with self._opened() as tar:
            for info in tar:
                if info.isdir():
                    _checked_name(self.path, info.name)
                    continue
                if not info.isreg() or info.issparse():
                    raise UserError(f"{self.path}: {info.name!r} is a link or no plain file; this archive is not safe.")
                yield info.name, info.size

    def _stream(self, raw_names: Collection[str]) -> Iterator[tuple[str, IO[bytes]]]:
        left = set(raw_names)
        with self._opened() as tar:
            for info in tar:
                if info.name in left and (file := tar.extractfile(info)) is not None:
                    left.discard(info.name)
                    yield info.name, file
                if not left:
                    return

    def close(self) -> None:
        """Nothing stays open."""


class _BoundedReads(io.RawIOBase):
    """Refuses a single read so large that only a forged header can have asked for it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int = -1, /) -> bytes:
        if not 0 <= size <= _LONGEST_READ:
            raise tarfile.ReadError(f"a header declares {size:,} bytes")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


@contextmanager
def _decompressed(path: Path) -> Iterator[IO[bytes]]:
    with path.open("rb") as file:
        start = file.read(6)
    if start.startswith(b"\x1f\x8b"):
        with gzip.open(path, "rb") as unzipped:
            yield unzipped  # type: ignore[misc]
    elif start.startswith(b"BZh"):
        with bz2.open(path, "rb") as unzipped:
            yield unzipped
    elif start.startswith(b"\xfd7zXZ\x00"):
        with lzma.open(path, "rb") as unzipped:
            yield unzipped
    else:
        with path.open("rb") as plain:
            yield plain


def _is_tar(path: Path) -> bool:
    try:
        with _decompressed(path) as plain, tarfile.open(fileobj=_BoundedReads(plain), mode="r:"):
            return True
    except tarfile.ReadError:
        return False


def _checked_name(path: Path, raw: str) -> str:
    """The name with ``/`` between parts.

    Raises:
        UserError: it is absolute, leads out of the archive, or holds a control character.
    """
    name = raw.replace("\\", "/")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or _DRIVE.match(name):
        raise UserError(f"{path}: {raw!r} is an absolute path; this archive is not safe.")
    if ".." in parts:
        raise UserError(f"{path}: {raw!r} leads out of the archive; this archive is not safe.")
    if any(unicodedata.category(character) == "Cc" for character in name):
        raise UserError(f"{path}: {raw!r} holds a control character; this archive is not safe.")
    return "/".join(parts)


def _is_junk(name: str) -> bool:
    *folders, last = name.casefold().split("/")
    return last in _JUNK_FILES or last.startswith("._") or not _JUNK_FOLDERS.isdisjoint(folders)


def _check_total(path: Path, total: int, packed: int | None, max_bytes: int) -> None:
    if total > max_bytes:
        raise UserError(
            f"{path}: unpacks to more than {max_bytes:,} bytes; if that is right, allow more with --max-gb."
        )
    if packed is not None and total > _RATIO_COUNTS_FROM and total > MAX_RATIO * packed:
        raise UserError(
            f"{path}: unpacks to more than {MAX_RATIO} times its {packed:,} bytes, which no archive of photographs "
            f"does; if it is what it should be, unpack it yourself and name the folder."
        )


def describe_members(archive: Archive) -> str:
    """What is in an archive, in a line: files by kind, and some names."""
    counts: dict[str, int] = {}
    for name in archive.members:
        suffix = Path(name).suffix.casefold() or "no suffix"
        counts[suffix] = counts.get(suffix, 0) + 1
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(counts.items(), key=lambda item: -item[1])[:5])
    return f"{kinds}; e.g. {examples(archive.members, 3)}" if counts else "no file"
