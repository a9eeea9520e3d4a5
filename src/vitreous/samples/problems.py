"""Problems of a table, collected and refused together."""

from collections.abc import Iterable

from vitreous.core.errors import SampleError

_EXAMPLES = 10


class Problems:
    """One sentence each; `check_none` raises them all at once.

    Args:
        where: names the table in the heading.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._sentences: list[str] = []
        self._leaks: list[str] = []

    def add(self, sentence: str, *, leak: str = "") -> None:
        """Note one problem.

        Args:
            leak: its code, where it is a leak.
        """
        self._sentences.append(f"{sentence} (leak: {leak})" if leak else sentence)
        self._leaks += [leak] if leak else []

    def check_none(self) -> None:
        """Raise what has been noted, if anything.

        Raises:
            SampleError: with every problem.
        """
        if len(self._sentences) == 1:
            raise SampleError(f"{self._where}: {self._sentences[0]}", self._leaks)
        if self._sentences:
            listed = "\n  - ".join(self._sentences)
            raise SampleError(f"{self._where}: {len(self._sentences)} problems:\n  - {listed}", self._leaks)


def examples(values: Iterable[object], most: int = _EXAMPLES) -> str:
    """At most `most` values, then how many more there are.

    >>> examples(["a", "b", "c"], most=2)
    "'a', 'b' and 1 more"
    """
    named = [repr(value) if isinstance(value, str) else str(value) for value in values]
    more = f" and {len(named) - most} more" if len(named) > most else ""
    return ", ".join(named[:most]) + more
