"""Writes small cohorts as files: a table of participants, a manifest and a listing that belong together."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from vitreous.samples.cohort import Cohort
from vitreous.samples.participants import load_participants
from vitreous.storage.location import Location, ObjectInfo

CLASSES = ("healthy", "pre_diabetes", "oral_medication", "insulin_dependent")
SITES = ("UAB", "UCSD", "UW")
DEVICES = ("maestro", "spectralis")


def people_frame(count: int = 24) -> pd.DataFrame:
    """`count` participants: half train, the rest val and test, every class in every split."""
    numbers = range(count)
    return pd.DataFrame(
        {
            "participant_id": [str(1000 + n) for n in numbers],
            "clinical_site": [SITES[n % 3] for n in numbers],
            "study_group": [CLASSES[n % 4] for n in numbers],
            "recommended_split": [("train", "train", "val", "test")[n // 4 % 4] for n in numbers],
            "retinal_oct": "TRUE",
        }
    )


def manifest_frame(people: pd.DataFrame) -> pd.DataFrame:
    """Four volumes a participant: two eyes on two devices."""
    rows = [
        {
            "participant_id": patient,
            "manufacturer": "Maker",
            "manufacturers_model_name": device,
            "anatomic_region": "macula" if device == "maestro" else "disc",
            "laterality": eye,
            "sop_instance_uid": f"1.2.{patient}.{device}.{eye}",
            "filepath": f"/retinal_oct/structural_oct/{device}/{patient}/{patient}_{device}_{eye}.dcm",
        }
        for patient in people["participant_id"]
        for device in DEVICES
        for eye in ("L", "R")
    ]
    return pd.DataFrame(rows)


def listing_of(manifest: pd.DataFrame) -> list[ObjectInfo]:
    """The objects of a manifest in a bucket, each with content of its own."""
    keys = [path.lstrip("/") for path in manifest["filepath"]]
    return [ObjectInfo(Location("s3", "eye", key), key, 1000 + n, f"{n:032x}") for n, key in enumerate(keys)]


@dataclass
class Tables:
    """A cohort to be spoiled: change the frames, then load."""

    folder: Path
    people: pd.DataFrame = field(default_factory=people_frame)
    manifest: pd.DataFrame = field(init=False)
    listing: list[ObjectInfo] = field(init=False)

    def __post_init__(self) -> None:
        self.manifest = manifest_frame(self.people)
        self.listing = listing_of(self.manifest)

    def edit_people(self, column: str, change: Callable[[pd.Series], pd.Series]) -> None:
        self.people[column] = change(self.people[column])

    def load(self, *, with_manifest: bool = True, with_listing: bool = True, **options: Any) -> Cohort:
        self.people.to_csv(self.folder / "participants.tsv", sep="\t", index=False)
        self.manifest.to_csv(self.folder / "manifest.tsv", sep="\t", index=False)
        chosen: dict[str, Any] = {"label": "study_group", "classes": CLASSES, "split": "recommended_split"}
        if with_manifest:
            chosen["manifest"] = self.folder / "manifest.tsv"
        if with_listing:
            chosen["listing"] = self.listing
        return load_participants(self.folder / "participants.tsv", **(chosen | options))
