"""Warnings and log lines of the reading libraries, caught per thread: they become facts of what was read.

`warnings.catch_warnings` changes state of the whole process and is not safe in a thread pool; here the
process-wide part is one filter and one hook, installed while any thread is reading, and the messages go to
the reading thread alone.
"""

import ctypes
import logging
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TextIO

#: Loggers of pydicom and its decoding plugins; most say there what they say as a Python warning too.
_LOGGERS = (
    "pydicom", "pydicom.pixels.decoders.base", "pydicom.pixels.utils", "openjpeg._openjpeg", "openjpeg.utils",
    "openjpeg.decode", "jpeg_ls._CharLS", "PIL.Image", "PIL.ImageFile",
    "PIL.PngImagePlugin", "PIL.TiffImagePlugin",
)  # fmt: skip
_MODULES = r"(pydicom|pylibjpeg|openjpeg|rle|jpeg_ls|PIL|nibabel|numpy)(\.|$)"
_CATEGORIES = (UserWarning, RuntimeWarning)

_QUOTED = re.compile(r"(?<!\w)'[^']*'(?!\w)|\"[^\"]*\"")  # not the apostrophe of a word
_MAX_LENGTH = 160


class _Reader(threading.local):
    messages: list[str] | None = None


class _LogFilter(logging.Filter):
    """Takes a record away from a reading thread's log; lets everybody else's through."""

    def filter(self, record: logging.LogRecord) -> bool:
        if _reader.messages is None:
            return True
        _note(record.getMessage())
        return False


_reader = _Reader()
_log_filter = _LogFilter()
_lock = threading.Lock()
_num_readers = 0
_show_elsewhere = warnings.showwarning


@contextmanager
def library_messages() -> Iterator[list[str]]:
    """Collect what the reading libraries have to say in this thread, each message once.

    Quoted values are cut out of the messages, since a quoted value may be one of the patient's. Deprecation
    warnings are not caught: they are for developers. Blocks may nest; the inner one collects.
    """
    before, _reader.messages = _reader.messages, []
    _install()
    try:
        yield _reader.messages
    finally:
        _uninstall()
        _reader.messages = before


@cache
def silence_libtiff() -> None:
    """Keep the TIFF library inside Pillow from writing to the process's standard error; what it says fails anyway.

    For the rest of the process, and only where the library can be reached by name (not in Pillow for Windows).
    """
    from PIL import _imaging

    library = ctypes.CDLL(_imaging.__file__)  # a name is looked up in the libraries that it loaded, too
    for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
        set_handler = getattr(library, name, None)
        if set_handler is not None:
            set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
            set_handler(None)


def without_values(message: str) -> str:
    """A library's message on one line, without quoted values, of at most 160 characters."""
    return " ".join(_QUOTED.sub("…", message).split())[:_MAX_LENGTH]


def _note(message: str) -> None:
    text = without_values(message)
    if _reader.messages is not None and text not in _reader.messages:
        _reader.messages.append(text)


def _show(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if _reader.messages is not None and issubclass(category, _CATEGORIES):
        _note(str(message))
    else:
        _show_elsewhere(message, category, filename, lineno, file, line)


def _install() -> None:
    global _num_readers, _show_elsewhere
    with _lock:
        _num_readers += 1
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(_log_filter)  # adding it twice does nothing
        if warnings.showwarning is not _show:
            _show_elsewhere = warnings.showwarning
            warnings.showwarning = _show
        for category in _CATEGORIES:
            if not _has_filter(category):
                warnings.filterwarnings("always", category=category, module=_MODULES)


def _uninstall() -> None:
    global _num_readers
    with _lock:
        _num_readers -= 1
        if _num_readers:
            return
        if warnings.showwarning is _show:
            warnings.showwarning = _show_elsewhere
        for entry in [entry for entry in warnings.filters if _is_ours(entry)]:
            warnings.filters.remove(entry)  # type: ignore[attr-defined]


def _has_filter(category: type[Warning]) -> bool:
    return bool(warnings.filters) and any(_is_ours(entry) and entry[2] is category for entry in warnings.filters[:2])


def _is_ours(entry: tuple[object, ...]) -> bool:
    return entry[0] == "always" and getattr(entry[3], "pattern", None) == _MODULES
