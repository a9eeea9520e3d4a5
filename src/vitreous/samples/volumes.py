"""The files of a cohort: from a manifest of volumes, or from a listing and a path pattern."""

import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from vitreous.core.errors import SampleError
from vitreous.core.finding import Finding
from vitreous.samples.problems import Problems, examples
from vitreous.samples.tables import Table
from vitreous.storage.location import ObjectInfo

DEFAULT_PATTERN = "retinal_oct/structural_oct/{device}/{patient}/*.dcm"
PATIENT_NAMES = ("participant_id", "person_id")  # older and newer releases of the same table
ALIASES = {"device": "manufacturers_model_name", "region": "anatomic_region"}
_PIECES = re.compile(r"\{([^{}]*)\}|(\*\*/?)|(\*)|(\?)|([^*?{}]+)|([{}])")


@dataclass(frozen=True)
class Files:
    """The files found, before anything is known of their patients.

    Args:
        frame: ``relative``, ``patient_id``, ``size`` (-1: not known), ``etag``, ``has_object``, and the manifest's or
            the pattern's columns.
        findings: what deserves a look.
    """

    frame: pd.DataFrame
    findings: tuple[Finding, ...]


def find_patient_column(table: Table, patient: str) -> tuple[str | None, tuple[Finding, ...]]:
    """The id column: `patient`, or ``person_id`` where the default ``participant_id`` is absent (a finding says so)."""
    columns = table.frame.columns
    if patient in columns:
        return patient, ()
    if patient == PATIENT_NAMES[0] and PATIENT_NAMES[1] in columns:
        return PATIENT_NAMES[1], (
            Finding(
                "patient_column",
                "info",
                f"{table.name}: patients are read from the column 'person_id'; there is no 'participant_id'.",
                "newer releases of the table use this name",
                "Set data.patient: person_id to say so in the study.",
            ),
        )
    return None, ()


def files_of_manifest(manifest: Table, patient: str, listing: Sequence[ObjectInfo] | None) -> Files:
    """One row a manifest line; sizes and ETags come from the listing where there is one.

    Paths may begin with ``/`` and are below the root all the same.

    Raises:
        SampleError: no column of ids or of paths, or lines without one of them.
    """
    problems = Problems(manifest.name)
    column, findings = find_patient_column(manifest, patient)
    if column is None and PATIENT_NAMES[0] in manifest.frame.columns:
        column = PATIENT_NAMES[0]  # a table of the newer release beside a manifest of the older
    if column is None:
        problems.add(f"no column {patient!r} for patients; found {list(manifest.frame.columns)}.")
    if "filepath" not in manifest.frame.columns:
        problems.add(f"no column 'filepath' for paths; found {list(manifest.frame.columns)}.")
    problems.check_none()
    assert column is not None
    frame = manifest.frame.copy()
    for needed in (column, "filepath"):
        if len(empty := frame.index[frame[needed] == ""]):
            problems.add(f"lines {examples(empty)} have no {needed}; fill it in or remove them.")
    problems.check_none()
    frame["relative"] = _normal_paths(frame["filepath"])
    if len(escaping := frame.index[frame["relative"].str.startswith("../")]):
        problems.add(f"lines {examples(escaping)}: the path leads out of the root; write it below the root.")
    problems.check_none()
    for alias, name in ALIASES.items():
        if alias not in frame.columns and name in frame.columns:
            frame[alias] = frame[name]
    frame["patient_id"] = frame[column]
    found = _with_objects(frame, listing, manifest.name)
    return Files(found.frame, (*findings, *found.findings))


def files_of_listing(listing: Sequence[ObjectInfo], pattern: str) -> Files:
    """One row a key that matches the pattern; every ``{name}`` of it becomes a column.

    Args:
        pattern: path below the root; ``{patient}`` is the id, ``*`` and ``?`` stand within a folder, ``**`` across.
    Raises:
        SampleError: the pattern is malformed, or no key matches.
    """
    expression = compile_pattern(pattern)
    keys = pd.Series([info.relative for info in listing], dtype="str")
    groups = keys.str.extract(expression)
    matched = groups["patient"].notna()
    if not matched.any():
        raise SampleError(
            f"no key matches the pattern {pattern!r}; {len(keys)} keys were listed, e.g. {examples(keys, 3)}. "
            f"Set data.pattern to the layout of these keys."
        )
    frame = groups.loc[matched].rename(columns={"patient": "patient_id"})
    frame["relative"] = keys[matched]
    frame["size"] = pd.Series([info.size for info in listing], dtype="int64")[matched]
    frame["etag"] = pd.Series([info.etag for info in listing], dtype="str")[matched]
    frame["has_object"] = True
    findings: tuple[Finding, ...] = ()
    if unmatched := int((~matched).sum()):
        findings = (
            Finding(
                "unmatched_keys",
                "info",
                f"{unmatched} of {len(keys)} listed files do not match the pattern and are not part of the cohort.",
                f"pattern {pattern}",
            ),
        )
    return Files(frame.reset_index(drop=True), findings)


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """The regular expression of a path pattern, anchored at both ends.

    Raises:
        SampleError: unbalanced braces, a name that is no identifier or stands twice, or no ``{patient}``.
    """
    names: list[str] = []
    pieces: list[str] = []
    problems = Problems(f"pattern {pattern!r}")
    for found in _PIECES.finditer(pattern.lstrip("/")):
        name, across, star, mark, text, brace = found.groups()
        if name is not None:
            if not name.isidentifier() or name in names:
                problems.add(f"{{{name}}} is not a new name; write e.g. {{device}}, each name once.")
            names.append(name)
            pieces.append(f"(?P<{name}>[^/]+)")
        elif across:
            pieces.append("(?:.*/)?" if across.endswith("/") else ".*")
        elif star or mark:
            pieces.append("[^/]*" if star else "[^/]")
        elif brace:
            problems.add(f"an unbalanced {brace!r} at position {found.start() + 1}; write {{name}}.")
        else:
            pieces.append(re.escape(text))
    if "patient" not in names:
        problems.add("it has no {patient}, which says whose a file is.")
    problems.check_none()
    return re.compile("^" + "".join(pieces) + "$", re.DOTALL)


def _normal_paths(paths: pd.Series) -> pd.Series:
    return pd.Series(
        [posixpath.normpath(path.replace("\\", "/").lstrip("/")) for path in paths], index=paths.index, dtype="str"
    )


def _with_objects(frame: pd.DataFrame, listing: Sequence[ObjectInfo] | None, name: str) -> Files:
    if listing is None:
        return Files(frame.assign(size=-1, etag="", has_object=True), ())
    objects = pd.DataFrame(
        {"size": [info.size for info in listing], "etag": [info.etag for info in listing]},
        index=pd.Index([info.relative for info in listing], dtype="str"),
    )
    found = objects.reindex(frame["relative"])
    has_object = found["size"].notna().to_numpy()
    frame = frame.assign(
        size=found["size"].fillna(-1).astype("int64").to_numpy(),
        etag=found["etag"].fillna("").to_numpy(),
        has_object=has_object,
    )
    findings: list[Finding] = []
    if unknown := int((~objects.index.isin(frame["relative"])).sum()):
        findings.append(
            Finding(
                "objects_without_manifest_row",
                "info",
                f"{unknown} of {len(objects)} files below the root have no row in the manifest and are not read.",
                f"{name}: {len(frame)} rows",
            )
        )
    if not has_object.any():
        raise SampleError(
            f"{name}: none of its {len(frame)} paths exists below the root; e.g. {examples(frame['relative'], 3)}, "
            f"while the root holds {examples(objects.index, 3)}. Check data.files and the column filepath."
        )
    return Files(frame, tuple(findings))
