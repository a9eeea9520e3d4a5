"""A metric that cannot be computed is a value with a reason, never 0 or 0.5."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Undefined:
    """Says why there is no number. Prints as an empty cell with a footnote in tables.

    Deliberately not a number: arithmetic with it raises.
    """

    reason: str

    def __bool__(self) -> bool:
        return False
