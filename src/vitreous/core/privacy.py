"""Keyed ids: a log, report or tracker may name a patient only by an HMAC of the id."""

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from vitreous.core.errors import UserError

_KEY_BYTES = 32


def default_key_path() -> Path:
    """``$VITREOUS_ID_KEY``, else ``~/.config/vitreous/id_key``."""
    return Path(os.environ.get("VITREOUS_ID_KEY", "~/.config/vitreous/id_key")).expanduser()


def load_id_key(path: Path | None = None) -> bytes:
    """Read the key, making it on first use with permissions for its owner alone.

    Raises:
        UserError: others may read the key, or it is too short.
    """
    path = path or default_key_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        pass
    else:
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(_KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
    if os.name == "posix" and path.stat().st_mode & 0o077:
        raise UserError(f"{path}: the key for patient ids may be read by others; run chmod 600 {path}.")
    key = path.read_bytes()
    if len(key) < _KEY_BYTES:
        raise UserError(f"{path}: the key for patient ids has {len(key)} bytes, needs {_KEY_BYTES}; remove the file.")
    return key


def keyed_id(identifier: str, key: bytes) -> str:
    """Ten hex digits that stand for an id; the same id and key give the same digits."""
    return hmac.new(key, identifier.encode(), hashlib.sha256).hexdigest()[:10]
