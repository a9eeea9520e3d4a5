"""Rules that leave volumes out: duplicates, and the study's choice of volumes."""

import difflib
import re
from collections.abc import Mapping
from typing import Literal

import pandas as pd

from vitreous.core.finding import Finding
from vitreous.samples.choices import Filter, choose_rows
from vitreous.samples.problems import Problems
from vitreous.samples.tables import is_missing

VolumeChoice = Literal["all", "first", "one per eye"] | Filter
_MD5 = re.compile(r"[0-9a-f]{32}")


def exclude(frame: pd.DataFrame, rows: pd.Series, rule: str, detail: pd.Series | str = "") -> None:
    """Give `rule` to the rows that no earlier rule has taken."""
    rows = rows & (frame["rule"] == "")
    frame.loc[rows, "rule"] = rule
    frame.loc[rows, "detail"] = detail[rows] if isinstance(detail, pd.Series) else detail


def exclude_duplicates(frame: pd.DataFrame) -> list[Finding]:
    """Keep one of the files that are one volume: same path, same SOP instance, or same content (an MD5 ETag).

    Of one patient's duplicates the first by path stays. A volume under two patients is left out altogether: nobody
    can say whose it is, and it would carry a patient across splits.
    """
    shared = 0
    for what, key in _identities(frame):
        live = frame.loc[(frame["rule"] == "") & (key != "")]
        key = key[live.index]
        of_several = live.groupby(key)["patient_id"].transform("nunique") > 1
        foreign = of_several.reindex(frame.index, fill_value=False)
        shared += int(foreign.sum())
        exclude(frame, foreign, "one volume under two patients", f"same {what}")
        own = live.loc[~of_several].sort_values(["patient_id", "relative"], kind="stable")
        repeated = key[own.index].duplicated().reindex(frame.index, fill_value=False)
        exclude(frame, repeated, "duplicate", f"same {what} as an earlier row of this patient")
    findings: list[Finding] = []
    if shared:
        findings.append(
            Finding(
                "volume_of_two_patients",
                "warning",
                f"{shared} files are one volume under two patients' ids and were left out.",
                "same path, SOP instance or content",
                "Look at the excluded rows and mend the manifest.",
            )
        )
    if repeated_rows := int((frame["rule"] == "duplicate").sum()):
        findings.append(
            Finding("duplicates", "info", f"{repeated_rows} duplicates of a volume were left out.", "one of each stays")
        )
    return findings


def exclude_by_choice(frame: pd.DataFrame, volumes: VolumeChoice, problems: Problems) -> None:
    """Apply the study's ``volumes``: all, the first of a patient, the first of each eye, or a filter on columns."""
    if isinstance(volumes, Mapping):
        _exclude_by_filter(frame, volumes, problems)
        return
    match volumes:
        case "all":
            return
        case "first":
            by = ["patient_id"]
        case "one per eye":
            if "laterality" not in frame.columns:
                problems.add(
                    "volumes: 'one per eye' needs the eye; give a manifest with a column laterality, or "
                    "{laterality} in the pattern."
                )
                return
            exclude(frame, is_missing(frame["laterality"]), "eye unknown", "volumes: one per eye")
            by = ["patient_id", "laterality"]
        case _:
            problems.add(f"volumes must be all, first, 'one per eye' or a filter on columns; got {volumes!r}.")
            return
    live = frame.loc[frame["rule"] == ""].sort_values("relative", kind="stable")
    later = live.duplicated(by).reindex(frame.index, fill_value=False)
    exclude(frame, later, "volumes", f"volumes: {volumes}")


def _exclude_by_filter(frame: pd.DataFrame, chosen: Filter, problems: Problems) -> None:
    known = [column for column in frame.columns if column not in ("rule", "detail", "has_object", "size", "etag")]
    missing = [column for column in chosen if column not in known]
    for column in missing:
        near = difflib.get_close_matches(column, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        problems.add(f"volumes: the files have no column {column!r}; they have {known}.{hint}")
    if not missing:
        keep = choose_rows(frame, chosen, "volumes", problems)
        exclude(frame, ~keep, "volumes", f"volumes: {dict(chosen)}")


def _identities(frame: pd.DataFrame) -> list[tuple[str, pd.Series]]:
    """What makes two rows one volume; an empty text is no identity."""
    etags = frame["etag"].where(frame["etag"].str.fullmatch(_MD5) & (frame["size"] > 0), "")
    content = etags.where(etags == "", etags + "-" + frame["size"].astype("str"))
    identities = [("path", frame["relative"]), ("content", content)]
    if "sop_instance_uid" in frame.columns:
        identities.insert(1, ("SOP instance", frame["sop_instance_uid"]))
    return identities
