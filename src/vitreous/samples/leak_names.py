"""Leaks that names tell: the other eye of a patient, one recording cut twice, a path that spells the class.

Names are read only where they are all there is: with ids of patients, these; without, the files' names.
"""

import posixpath
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitreous.core.leak import Leak
from vitreous.samples.image_files import without_suffix

_SIDES = {"left": "left", "l": "left", "os": "left", "le": "left"}
_SIDES |= {"right": "right", "r": "right", "od": "right", "re": "right"}
_SIDE_AFTER_NUMBER = re.compile(r"(.*\d)(l|r|od|os|le|re)")
_PIECE = re.compile(
    r"(?:^|[\W_])(?:clip|part|seg|segment|frames?|shot|cut|chunk|take|t)[\W_]?\d+(?:[\W_]\d+)?(?=$|[\W_])"
)
_SEPARATORS = re.compile(r"[\W_]+")
# fewer stems than this (or than a twentieth of the names) are sites or batches, not recordings
FEWEST_RECORDINGS = 6
# a path spells the class where it does so for this share of the samples, and rightly in this share of them
SPELT_SHARE, RIGHT_SHARE = 0.9, 0.98
_FEWEST_LABELLED = 10
_FEWEST_LETTERS = 3


def find_fellow_eyes(samples: pd.DataFrame) -> Iterator[Leak]:
    """Ids that differ only in the side, ``P12_L`` and ``P12_R``: two eyes of one patient, taken for two.

    Across splits (without splits, folds put them apart) that is a leak; inside one it is a warning, since intervals
    and weights take one person for two.
    """
    groups: defaultdict[str, list[int]] = defaultdict(list)
    sides: dict[int, str] = {}
    firsts = samples.drop_duplicates("patient_id")
    for row, name in zip(firsts.index, _names(firsts), strict=True):
        if (found := _side_of(name)) is not None:
            groups[found[0]].append(row)
            sides[row] = found[1]
    pairs = [rows for rows in groups.values() if len({sides[row] for row in rows}) > 1]
    yield from _describe_groups(
        samples,
        pairs,
        "fellow_eye",
        "eyes of one patient stand under two ids",
        "Give both eyes one patient id (data.patient, or patient_pattern without the side).",
    )


def find_same_recordings(samples: pd.DataFrame) -> Iterator[Leak]:
    """Names that differ only in the number of a clip, part or frame: one recording, taken for several patients."""
    groups: defaultdict[str, list[int]] = defaultdict(list)
    firsts = samples.drop_duplicates("patient_id")
    for row, name in zip(firsts.index, _names(firsts), strict=True):
        found = _PIECE.search(name)
        stem = _SEPARATORS.sub("_", name[: found.start()] + "_" + name[found.end() :]).strip("_") if found else ""
        if any(letter.isdigit() for letter in stem):
            groups[stem].append(row)
    if len(groups) < max(FEWEST_RECORDINGS, len(firsts) / 20):
        return
    yield from _describe_groups(
        samples,
        [rows for rows in groups.values() if len(rows) > 1],
        "same_recording",
        "pieces of one recording stand under different ids",
        "Give all pieces of a recording one patient id.",
    )


def find_label_in_path(samples: pd.DataFrame, y_N: npt.NDArray[np.int64], classes: Sequence[str]) -> Iterator[Leak]:
    """Paths that spell the class: then names tell the labels of test, which are sealed for this reason.

    Args:
        y_N: class index of each sample; below 0 where it may not be seen.
        classes: those with fewer than three letters cannot be told from other text.
    """
    words = {index: _words(name) for index, name in enumerate(classes)}
    spelt = {index: word for index, word in words.items() if sum(map(str.isalpha, word)) >= _FEWEST_LETTERS}
    longest_first = sorted(spelt.items(), key=lambda item: -len(item[1]))
    known = np.flatnonzero(y_N >= 0)
    if len(known) < _FEWEST_LABELLED or len(spelt) < 2:
        return
    paths = samples["relative"].to_numpy()[known]
    read_N = np.array([_class_in(_words(path), longest_first) for path in paths])
    is_read_N = read_N >= 0
    if is_read_N.mean() < SPELT_SHARE or len(np.unique(read_N[is_read_N])) < 2:
        return
    right = float((read_N == y_N[known])[is_read_N].mean())
    if right >= RIGHT_SHARE:
        named = dict(zip(paths[is_read_N], read_N[is_read_N]))
        yield Leak(
            "label_in_path",
            True,
            "The paths of the files spell the class, those of test too.",
            "Rename the files, if anybody is to choose or read without knowing the answer; no encoder reads names.",
            tuple(f"{path} ({classes[read]})" for path, read in named.items()),
            f"{is_read_N.mean():.0%} of {len(known)} train and val samples name a class, {right:.0%} of them rightly",
        )


def _describe_groups(
    samples: pd.DataFrame, groups: Sequence[Sequence[int]], code: str, what: str, remedy: str
) -> Iterator[Leak]:
    split = samples["split"]
    has_splits = bool((split != "").any())
    apart: list[Sequence[int]] = []
    together: list[Sequence[int]] = []
    for rows in groups:
        is_apart = not has_splits or split.loc[list(rows)].nunique() > 1
        (apart if is_apart else together).append(rows)
    where = "in different splits" if has_splits else "where folds may put them apart"
    for found, refuses, place in ((apart, True, where), (together, False, "inside one split")):
        if found:
            named = tuple(
                " = ".join(f"{samples['patient_id'][row]}{f' ({split[row]})' if split[row] else ''}" for row in rows)
                for rows in found
            )
            yield Leak(code, refuses, f"{len(found)} times {what}, {place}.", remedy, named)


def _names(firsts: pd.DataFrame) -> list[str]:
    """Ids to be compared, in small letters; of paths the file's name, where no two paths have the same."""
    ids = [without_suffix(identifier).casefold() for identifier in firsts["patient_id"]]
    bare = [posixpath.basename(identifier) for identifier in ids]
    return bare if len(set(bare)) == len(bare) else ids


def _side_of(name: str) -> tuple[str, str] | None:
    """(what is left without the side, the side), where a name has exactly one."""
    tokens = [token for token in _SEPARATORS.split(name) if token]
    sided = [position for position, token in enumerate(tokens) if token in _SIDES]
    if len(sided) == 1 and len(tokens) > 1:
        rest = "_".join(tokens[: sided[0]] + tokens[sided[0] + 1 :])
        return (rest, _SIDES[tokens[sided[0]]])
    if not sided and tokens and (found := _SIDE_AFTER_NUMBER.fullmatch(tokens[-1])):
        return ("_".join([*tokens[:-1], found[1]]), _SIDES[found[2]])
    return None


def _words(text: str) -> str:
    return f"_{_SEPARATORS.sub('_', text.casefold()).strip('_')}_"


def _class_in(path: str, longest_first: Sequence[tuple[int, str]]) -> int:
    return next((index for index, word in longest_first if word in path), -1)
