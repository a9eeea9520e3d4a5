"""What `vitreous data verify` says in words: counts, reading, values, duplicates."""

from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd

from vitreous.core.finding import Finding
from vitreous.core.input_spec import Modality
from vitreous.diagnosis.volumes import ROBUST_Z
from vitreous.inputs.near_duplicates import NUM_BITS
from vitreous.samples.cohort import Cohort

SIZES = ("depth", "height", "width")
VALUES = ("mean", "std", "mean_r", "mean_g", "mean_b")
_SHOWN = 20
_MISSING_FILES = "file missing"
_KINDS = (("exact", "hold the same values"), ("near", "show nearly the same"))


def describe_cohort(cohort: Cohort, modality: Modality) -> Iterator[Finding]:
    """Counts by split and class, what the tables' checks found, and what is left out; missing files are an error."""
    samples, counts = cohort.samples, cohort.count_by(["split", "class"])
    shown = [
        f"{split if split else 'all'} {name} {number}"
        for split, name, number in zip(counts["split"], counts["class"], counts["volumes"], strict=True)
    ]
    patients = samples["patient_id"].nunique()
    yield Finding("counts", "info", f"{len(samples)} {modality}s of {patients} patients.", ", ".join(shown))
    yield from cohort.findings
    rules = cohort.excluded["rule"].value_counts()
    if missing := int(rules.get(_MISSING_FILES, 0)):
        named = cohort.excluded.loc[cohort.excluded["rule"] == _MISSING_FILES, "sample_id"]
        yield Finding(
            "missing_files",
            "error",
            f"{missing} rows of the table have no file.",
            _listed(named),
            "Fetch these files, or remove the rows.",
        )
    if others := {str(rule): int(count) for rule, count in rules.items() if rule != _MISSING_FILES}:
        yield Finding("excluded", "info", f"{sum(others.values())} rows or files are left out by rule.", str(others))


def describe_reading(unreadable: pd.DataFrame, num_samples: int) -> Iterator[Finding]:
    """Files that cannot be decoded, as an error."""
    if unreadable.empty:
        yield Finding("readable", "info", f"All {num_samples} files can be decoded.", "")
        return
    reasons = zip(unreadable["sample_id"], unreadable["reason"])
    yield Finding(
        "unreadable",
        "error",
        f"{len(unreadable)} of {num_samples} samples cannot be decoded.",
        _listed([f"{sample}: {reason}" for sample, reason in reasons], "; "),
        "Fetch these files again; a run quarantines them. All are in unreadable.csv.",
    )


def describe_values(rows: pd.DataFrame, outliers: pd.DataFrame) -> Iterator[Finding]:
    """Sizes, brightness and channels; what lies far from the rest, as a warning."""
    if rows.empty:
        return
    axes = [axis for axis in SIZES if axis in rows.columns]
    sizes = rows[axes].astype(int).astype(str).agg(" × ".join, axis=1).value_counts()
    shown = ", ".join(f"{size} ({count})" for size, count in sizes.head(5).items())
    yield Finding("sizes", "info", f"{len(sizes)} different sizes ({' × '.join(axes)}).", shown)
    values = [column for column in VALUES if column in rows.columns]
    table = rows[values].astype("float64").agg(["mean", "std", "min", "max"])
    shown = "; ".join(
        f"{column} {mean:.4g} ± {sd:.3g} ({low:.4g}…{high:.4g})"
        for column, (mean, sd, low, high) in zip(values, table.T.to_numpy(), strict=True)
    )
    yield Finding("values", "info", "Brightness, contrast and channels: mean ± sd (min…max) over the files.", shown)
    if len(outliers):
        yield Finding(
            "outliers",
            "warning",
            f"{outliers['sample_id'].nunique()} files lie more than {ROBUST_Z:g} robust standard deviations from the "
            "median in brightness, contrast or a channel.",
            _listed(
                f"{row['sample_id']} ({row['statistic']} {row['value']:.4g}, z {row['robust_z']:+.1f})"
                for _, row in outliers.iterrows()
            ),
            "Look at these files: blank, saturated, or of another camera. All are in outliers.csv.",
        )


def describe_duplicates(
    pairs: pd.DataFrame, max_distance: int, *, has_splits: bool, knows_patients: bool
) -> Iterator[Finding]:
    """Pairs across splits (without splits: across patients) as errors; the rest as warnings or facts.

    Args:
        pairs: kind (exact, near), bits, and sample, split, patient and class (empty where sealed) of both.
        max_distance: bits in which near duplicates may differ.
        has_splits: whether the cohort comes with splits; folds make them later.
        knows_patients: whether ids say which items are one person's.
    """
    if pairs.empty:
        yield Finding("duplicates", "info", "No two files show the same thing.", _measure(max_distance))
        return
    across_splits = pairs["first_split"] != pairs["second_split"]
    across_patients = pairs["first_patient"] != pairs["second_patient"]
    labelled = (pairs["first_class"] != "") & (pairs["second_class"] != "")
    conflict = (pairs["kind"] == "exact") & labelled & (pairs["first_class"] != pairs["second_class"])
    # without splits, folds are drawn by patient: what two patients share may stand on both sides
    leaks = across_splits if has_splits else across_patients
    what = "splits" if has_splits else "patients, whom folds put apart"
    for kind, words in _KINDS:
        found = pairs[(pairs["kind"] == kind) & leaks]
        if len(found):
            yield Finding(
                f"{kind}_leak",
                "error",
                f"{len(found)} pairs across {what} {words}: a leak.",
                _listed((_pair_text(pair) for pair in _records(found)), "; ") + _note(kind, max_distance),
                "Leave one of each pair out, or put both into one split, before anything is trained.",
            )
    if len(found := pairs[conflict]):
        yield Finding(
            "label_conflict",
            "error",
            f"{len(found)} pairs hold the same values under two classes.",
            _listed(
                (
                    f"{row['first']} ({row['first_class']}) = {row['second']} ({row['second_class']})"
                    for row in _records(found)
                ),
                "; ",
            ),
            "One of the two labels is wrong; ask who labelled them.",
        )
    patients = "patients" if knows_patients else "items (patients are not known)"
    for kind, words in _KINDS:
        for of_two, whose in ((True, f"two {patients}"), (False, "one patient")):
            found = pairs[(pairs["kind"] == kind) & ~leaks & (across_patients == of_two)]
            if len(found):
                yield Finding(
                    f"{kind}_duplicates",
                    "warning" if of_two else "info",
                    f"{len(found)} pairs of {whose} {'in one split ' if has_splits else ''}{words}.",
                    _listed((_pair_text(pair) for pair in _records(found)), "; ") + _note(kind, max_distance),
                    "They may be one person's, whose images count as two people's; look at them.",
                )


def _records(pairs: pd.DataFrame) -> list[dict[str, Any]]:
    return [dict(zip(pairs.columns, row, strict=True)) for row in pairs.itertuples(index=False)]


def _pair_text(pair: dict[str, Any]) -> str:
    first, second = (
        pair[side] + (f" ({pair[f'{side}_split']})" if pair[f"{side}_split"] else "") for side in ("first", "second")
    )
    return f"{first} = {second}" if pair["kind"] == "exact" else f"{first} ≈ {second}, {pair['bits']} bits"


def _note(kind: str, max_distance: int) -> str:
    return f" ({_measure(max_distance)})" if kind == "near" else ""


def _measure(max_distance: int) -> str:
    return f"perceptual hash, at most {max_distance} of {NUM_BITS} bits differ"


def _listed(items: Iterable[object], separator: str = ", ") -> str:
    named = [str(item) for item in items]
    more = f" and {len(named) - _SHOWN} more" if len(named) > _SHOWN else ""
    return separator.join(named[:_SHOWN]) + more
