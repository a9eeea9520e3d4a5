"""Ids that differ only in spelling: 1001, 01001, P1001, sub-1001, 1001.0."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

_FORM = re.compile(r"(?P<prefix>\D*)0*(?P<rest>.*)", re.DOTALL)
_SEPARATORS = re.compile(r"[\W_]+")


def spelling_key(identifier: str) -> tuple[str, str]:
    """Letters in front, and what follows without leading zeros and a trailing ``.0``.

    >>> spelling_key("P01001"), spelling_key("sub-1001.0")
    (('p', '1001'), ('sub', '1001'))
    """
    found = _FORM.fullmatch(identifier)
    assert found is not None  # the pattern matches every text
    rest = found["rest"].casefold()
    return _SEPARATORS.sub("", found["prefix"]).casefold(), rest[:-2] if rest.endswith(".0") else rest


def find_spelling_variants(identifiers: Iterable[str]) -> list[tuple[str, ...]]:
    """Groups of different ids that may be one patient's.

    Two ids belong together when they agree after the letters in front, and these are the same or absent in one:
    ``A1001`` and ``B1001`` are two patients, ``1001`` and ``P1001`` may be one.
    """
    groups: defaultdict[str, defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for identifier in sorted(set(identifiers)):
        prefix, rest = spelling_key(identifier)
        groups[rest][prefix].append(identifier)
    variants: list[tuple[str, ...]] = []
    for by_prefix in groups.values():
        if "" in by_prefix:
            together = [identifier for ids in by_prefix.values() for identifier in ids]
            variants.append(tuple(sorted(together)))
        else:
            variants.extend(tuple(ids) for ids in by_prefix.values())
    return sorted(group for group in variants if len(group) > 1)


def match_spelling(unknown: Iterable[str], known: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs (unknown id, known id) that differ only in spelling; at most one a pair for each unknown id."""
    by_rest: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for identifier in known:
        prefix, rest = spelling_key(identifier)
        by_rest[rest].append((prefix, identifier))
    pairs: list[tuple[str, str]] = []
    for identifier in sorted(set(unknown)):
        prefix, rest = spelling_key(identifier)
        near = [other for theirs, other in by_rest.get(rest, []) if not prefix or not theirs or prefix == theirs]
        if near:
            pairs.append((identifier, near[0]))
    return pairs
