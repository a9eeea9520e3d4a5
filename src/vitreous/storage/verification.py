"""Are these the bytes that the listing promised? Size always, MD5 where the ETag is made of one.

A plain ETag of 32 digits is the MD5 of the bytes. One of an upload in parts, ``<32 digits>-<number of parts>``, is the
MD5 of the parts' MD5s; the size of a part is not told, so the usual ones that give this number of parts are tried. If
none fits, the same bytes read twice are taken as right: damage on the way does not repeat itself.
"""

import hashlib
import re

from vitreous.storage.location import ObjectInfo
from vitreous.storage.retries import TryAgainError

_PLAIN = re.compile(r"[0-9a-f]{32}")
_IN_PARTS = re.compile(r"([0-9a-f]{32})-([1-9]\d*)")
_MIB, _MB = 1 << 20, 10**6
# boto3 and the AWS command line 8 MiB; rclone and others 5; s3cmd 15; MinIO 16, 64; consoles and SDKs the rest
_PART_SIZES = [n * _MIB for n in (5, 6, 8, 10, 12, 15, 16, 20, 24, 25, 32, 50, 64, 100, 128, 256, 512)]
_PART_SIZES += [n * _MB for n in (5, 8, 10, 16, 20, 25, 50, 64, 100)]


class BodyCheck:
    """Fed with the pieces of one body in order, then asked.

    Args:
        info: what was promised.
        etags_are_md5: whether ETags can be trusted to be made of MD5s.
        seen: SHA-256 of the bodies that earlier attempts got for this object; added to.
    """

    def __init__(self, info: ObjectInfo, *, etags_are_md5: bool = True, seen: set[str] | None = None) -> None:
        self._info = info
        self._seen = set() if seen is None else seen
        self._sha256 = hashlib.sha256()
        self._size = 0
        self._is_in_parts = False
        self._md5s: list[_PartsMd5] = []
        if not etags_are_md5:
            return
        if _PLAIN.fullmatch(info.etag):
            self._md5s = [_PartsMd5(None)]
        elif found := _IN_PARTS.fullmatch(info.etag):
            self._is_in_parts = True
            self._md5s = [_PartsMd5(size) for size in _part_sizes(info.size, int(found[2]))]

    def update(self, piece: memoryview) -> None:
        """Take the next piece.

        Raises:
            TryAgainError: more bytes came than were promised.
        """
        self._size += piece.nbytes
        if self._size > self._info.size:
            raise TryAgainError(f"got more than the expected {self._info.size} bytes")
        self._sha256.update(piece)
        for md5 in self._md5s:
            md5.update(piece)

    def finish(self) -> str:
        """The SHA-256 of the verified body, 64 hex digits.

        Raises:
            TryAgainError: size or MD5 differ, with got and expected.
        """
        if self._size != self._info.size:
            raise TryAgainError(f"got {self._size} bytes, expected {self._info.size}")
        sha256 = self._sha256.hexdigest()
        tags = [md5.tag() for md5 in self._md5s]
        if (self._md5s or self._is_in_parts) and self._info.etag not in tags:
            if not self._is_in_parts:
                raise TryAgainError(
                    f"got MD5 {tags[0]}, expected {self._info.etag}; if the bucket is encrypted with SSE-KMS or SSE-C "
                    f"its ETags are no MD5: set s3.etags_are_md5 to false"
                )
            if sha256 not in self._seen:
                self._seen.add(sha256)
                raise TryAgainError(
                    f"got bytes (SHA-256 {sha256}) that fit the expected ETag {self._info.etag} at no usual size of "
                    f"parts, and no two reads were the same"
                )
        return sha256


class _PartsMd5:
    """The ETag of an upload in parts of one size; None: the plain MD5 of the whole."""

    def __init__(self, part_size: int | None) -> None:
        self._part_size = part_size
        self._digests: list[bytes] = []
        self._part = hashlib.md5(usedforsecurity=False)
        self._filled = 0

    def update(self, piece: memoryview) -> None:
        if self._part_size is None:
            self._part.update(piece)
            return
        start = 0
        while start < piece.nbytes:
            taken = min(self._part_size - self._filled, piece.nbytes - start)
            self._part.update(piece[start : start + taken])
            start += taken
            self._filled += taken
            if self._filled == self._part_size:
                self._end_part()

    def tag(self) -> str:
        if self._part_size is None:
            return self._part.hexdigest()
        if self._filled:
            self._end_part()
        whole = hashlib.md5(b"".join(self._digests), usedforsecurity=False).hexdigest()
        return f"{whole}-{len(self._digests)}"

    def _end_part(self) -> None:
        self._digests.append(self._part.digest())
        self._part = hashlib.md5(usedforsecurity=False)
        self._filled = 0


def _part_sizes(size: int, parts: int) -> list[int]:
    """The usual part sizes that cut `size` bytes into `parts` parts."""
    if parts == 1:
        return [max(size, 1)]
    return [part for part in _PART_SIZES if -(-size // part) == parts]
