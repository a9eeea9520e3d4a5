"""What `vitreous data verify` says in words: counts, reading, values, duplicates."""

from collections.abc import Collection, Iterable, Iterator, Sequence

import pandas as pd

from vitreous.core.finding import Finding
from vitreous.core.input_spec import Modality
from vitreous.core.leak import Leak
from vitreous.diagnosis.volumes import ROBUST_Z
from vitreous.inputs.near_duplicates import NUM_BITS
from vitreous.samples.cohort import Cohort

SIZES = ("depth", "height", "width")
VALUES = ("mean", "std", "mean_r", "mean_g", "mean_b")
_SHOWN = 20
_MISSING_FILES = "file missing"


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


def describe_leaks(
    leaks: Sequence[Leak], pairs: pd.DataFrame, max_distance: int, accepted: Collection[str]
) -> Iterator[Finding]:
    """What the leak gate says of table and pixels, with the rows; what would refuse a run is an error."""
    if pairs.empty:
        measure = f"perceptual hash, at most {max_distance} of {NUM_BITS} bits differ"
        yield Finding("duplicates", "info", "No two files show the same thing.", measure)
    for leak in leaks:
        yield leak.as_finding(accepted=leak.refuses and leak.code in accepted, with_ids=True)


def _listed(items: Iterable[object], separator: str = ", ") -> str:
    named = [str(item) for item in items]
    more = f" and {len(named) - _SHOWN} more" if len(named) > _SHOWN else ""
    return separator.join(named[:_SHOWN]) + more
