"""Compact letter display: two rows share a letter exactly when they cannot be told apart."""

import string
from collections.abc import Collection, Sequence

_ALPHABET = string.ascii_lowercase + string.ascii_uppercase


def compact_letters(ordered: Sequence[str], apart: Collection[frozenset[str]]) -> dict[str, str]:
    """Letters for each row, by insert and absorb.

    Args:
        ordered: rows, best first; the best one carries the letter a.
        apart: the pairs that can be told apart.
    Returns:
        row → its letters in alphabetical order; beyond 52 groups a letter is followed by a number.
    Source: Piepho (2004), An algorithm for a letter-based representation of all-pairwise comparisons.

    >>> compact_letters(["x", "y", "z"], [frozenset("xz")])
    {'x': 'a', 'y': 'ab', 'z': 'b'}
    """
    position = {row: k for k, row in enumerate(ordered)}
    groups = [frozenset(range(len(ordered)))] if ordered else []
    for i, j in sorted(tuple(sorted(position[row] for row in pair)) for pair in apart):
        split = []
        for group in groups:
            split += [group - {i}, group - {j}] if {i, j} <= group else [group]
        # absorb: a group inside another says nothing new
        distinct = list(dict.fromkeys(split))
        groups = [group for group in distinct if not any(group < other for other in distinct)]
    groups.sort(key=sorted)
    return {row: "".join(_letter(g) for g, group in enumerate(groups) if position[row] in group) for row in ordered}


def _letter(group: int) -> str:
    lap, letter = divmod(group, len(_ALPHABET))
    return _ALPHABET[letter] + (str(lap) if lap else "")
