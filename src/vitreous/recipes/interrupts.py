"""Ctrl-C and SIGTERM taken at a moment when the state of a training is whole."""

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StoppedBySignal(BaseException):
    """Leaves the training; whoever was to be told of the signal is told after it."""


class Interrupts:
    """Says whether a signal has arrived. Made by :func:`deferred_interrupts`."""

    def __init__(self, signals: Iterable[signal.Signals]) -> None:
        self.signum: int | None = None
        self._signals = tuple(signals)
        self._owner = os.getpid()

    def listen(self) -> None:
        """Take the signals, also from whoever took them since."""
        for signum in self._signals:
            signal.signal(signum, self.receive)

    def receive(self, signum: int, frame: FrameType | None) -> None:
        """The handler: a first signal waits for :meth:`check`, a second one does not."""
        if os.getpid() != self._owner:  # a worker process, which the training ends itself
            return
        if self.signum is not None:
            raise StoppedBySignal
        self.signum = signum

    def check(self, save: Callable[[], None] | None = None) -> None:
        """Stop here if a signal has arrived, after `save`.

        Raises:
            StoppedBySignal: one has.
        """
        if self.signum is not None:
            if save is not None:
                save()
            raise StoppedBySignal


@contextmanager
def deferred_interrupts() -> Iterator[Interrupts]:
    """Take SIGINT and SIGTERM; what handled them before handles the one that arrived, after the block.

    Signals that are ignored stay so. Outside the main thread, where Python takes no signals, nothing changes.

    Raises:
        KeyboardInterrupt: a signal arrived, and its handler did not raise.
    """
    if threading.current_thread() is not threading.main_thread():
        yield Interrupts([])
        return
    # a handler that was not installed from Python is None, and cannot be put back
    previous = {signum: signal.getsignal(signum) for signum in _SIGNALS}
    taken = {signum: handler for signum, handler in previous.items() if handler not in (None, signal.SIG_IGN)}
    interrupts = Interrupts(taken)
    try:
        interrupts.listen()
        yield interrupts
    except BaseException:  # what ends the work after a signal is of no account: the signal is told again below
        if interrupts.signum is None:
            raise
    finally:
        for signum, handler in taken.items():
            signal.signal(signum, handler)
    if interrupts.signum is not None:
        signal.raise_signal(interrupts.signum)
        raise KeyboardInterrupt
