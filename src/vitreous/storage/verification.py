"""Are these the bytes that the listing promised? Size always, MD5 where the ETag is one."""

import hashlib
import re

from vitreous.storage.location import ObjectInfo
from vitreous.storage.retries import TryAgainError

_MD5 = re.compile(r"[0-9a-f]{32}")


class BodyCheck:
    """Fed with the pieces of one body in order, then asked.

    Args:
        info: what was promised.
        etags_are_md5: a plain 32-digit ETag is the MD5 of the bytes.
    """

    def __init__(self, info: ObjectInfo, *, etags_are_md5: bool = True) -> None:
        self._info = info
        self._expected_md5 = info.etag if etags_are_md5 and _MD5.fullmatch(info.etag) else None
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._sha256 = hashlib.sha256()
        self._size = 0

    def update(self, piece: memoryview) -> None:
        """Take the next piece.

        Raises:
            TryAgainError: more bytes came than were promised.
        """
        self._size += piece.nbytes
        if self._size > self._info.size:
            raise TryAgainError(f"got more than the expected {self._info.size} bytes")
        self._sha256.update(piece)
        if self._expected_md5:
            self._md5.update(piece)

    def finish(self) -> str:
        """The SHA-256 of the verified body, 64 hex digits.

        Raises:
            TryAgainError: size or MD5 differ, with got and expected.
        """
        if self._size != self._info.size:
            raise TryAgainError(f"got {self._size} bytes, expected {self._info.size}")
        if self._expected_md5 and (got := self._md5.hexdigest()) != self._expected_md5:
            raise TryAgainError(
                f"got MD5 {got}, expected {self._expected_md5}; if the bucket is encrypted with SSE-KMS or SSE-C its "
                f"ETags are no MD5: set s3.etags_are_md5 to false"
            )
        return self._sha256.hexdigest()
