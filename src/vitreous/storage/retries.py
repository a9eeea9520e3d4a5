"""Try again with growing, random pauses; never for ever."""

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from vitreous.core.errors import StorageError

Result = TypeVar("Result")
_JITTER = random.Random()  # of its own: the global stream belongs to whoever seeded it


class TryAgainError(Exception):
    """One attempt failed in a way that another may cure. Never leaves this room."""


class StoppedError(Exception):
    """The consumer of a stream has gone; the attempt is given up. Never leaves this room."""


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential back-off with full jitter.

    Args:
        retries: attempts after the first.
        first_wait_s: upper end of the first pause; each next one doubles it.
        longest_wait_s: no pause is longer.
    Source: Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog (2015).
    """

    retries: int = 5
    first_wait_s: float = 0.2
    longest_wait_s: float = 10.0

    def run(self, attempt: Callable[[], Result], what: str, stop: threading.Event | None = None) -> Result:
        """Call `attempt` until it returns.

        Args:
            attempt: raises TryAgainError with the reason where another attempt may help; all else passes through.
            what: names the object in the final error.
            stop: ends the waiting when set.
        Raises:
            StorageError: every attempt failed; tells the last reason.
            StoppedError: `stop` was set.
        """
        stop = stop or threading.Event()
        for count in range(self.retries + 1):
            try:
                return attempt()
            except TryAgainError as failed:
                reason = str(failed)
            longest = min(self.longest_wait_s, self.first_wait_s * 2**count)
            if count < self.retries and stop.wait(_JITTER.uniform(0, longest)):
                raise StoppedError
        raise StorageError(f"{what}: {reason} (after {self.retries + 1} attempts)")


DEFAULT_RETRY = RetryPolicy()
