"""Who takes part: class, site, age, split, visit and the volumes that are taken of them."""

from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np

from vitreous.core.streams import numpy_stream
from vitreous.demo.disease import draw_severity
from vitreous.demo.recipe import CLASS_SHARES, SPLITS, CohortRecipe, apportion
from vitreous.demo.scanners import SCANNERS, SITE_OF_GRADE, SITES

FIRST_ID = 1001
FIRST_VISIT = date(2024, 1, 8)
VISIT_DAYS = 360
AGE_MEAN, AGE_SD, AGE_RANGE = 60.0, 9.0, (40, 85)
YEARS_PER_GRADE = 8.0

OTHER_MODALITIES = {
    "cardiac_ecg": 0.98,
    "retinal_flio": 0.85,
    "retinal_octa": 0.95,
    "retinal_photography": 0.99,
    "wearable_activity_monitor": 0.93,
    "wearable_blood_glucose": 0.90,
}
"""Columns besides ``retinal_oct`` and the share of TRUE; no such files are written."""


@dataclass(frozen=True)
class VolumeOrder:
    """One volume to take of one participant."""

    participant_id: str
    device: str
    laterality: str

    @property
    def relative(self) -> str:
        """Path below the cohort's root."""
        name = f"{self.participant_id}_{self.device}_{SCANNERS[self.device].region}_{self.laterality}.dcm"
        return f"retinal_oct/structural_oct/{self.device}/{self.participant_id}/{name}"


@dataclass(frozen=True)
class Participant:
    """One participant.

    Args:
        grade: index of the class.
        severity: of the disease.
        split: train, val or test.
        has_oct: whether ``retinal_oct`` is TRUE.
        modalities: the other columns of the table.
        volumes: what is taken of them; empty without OCT.
    """

    participant_id: str
    grade: int
    severity: float
    site: str
    age: int
    visit: date
    split: str
    has_oct: bool
    modalities: dict[str, bool]
    volumes: tuple[VolumeOrder, ...]


def draw_volumes(participant_id: str, site: str, rng: np.random.Generator) -> tuple[VolumeOrder, ...]:
    """Both eyes on a first scanner, one eye or both on a second; in one of eight only one eye at all."""
    weights = np.asarray(SITES[site].scanner_weights)
    first, second = rng.choice(list(SCANNERS), size=2, replace=False, p=weights / weights.sum())
    eyes = ("R", "L") if rng.uniform() < 0.875 else (str(rng.choice(["R", "L"])),)
    again = eyes if rng.uniform() < 0.3 else (str(rng.choice(eyes)),)
    return (
        *(VolumeOrder(participant_id, str(first), eye) for eye in eyes),
        *(VolumeOrder(participant_id, str(second), eye) for eye in again),
    )


def _draw_site(grade: int, association: float, rng: np.random.Generator) -> str:
    free = str(rng.choice(list(SITES), p=[site.share for site in SITES.values()]))
    return SITE_OF_GRADE[grade] if rng.uniform() < association else free


def _draw_participant(number: int, grade: int, split: str, has_oct: bool, recipe: CohortRecipe) -> Participant:
    participant_id = str(FIRST_ID + number)
    rng = numpy_stream(recipe.seed, "participant", number)
    site = _draw_site(grade, recipe.confounding.site, rng)
    centred_grade = grade - float(np.average(range(len(CLASS_SHARES)), weights=CLASS_SHARES))
    mean_age = AGE_MEAN + recipe.confounding.age * YEARS_PER_GRADE * centred_grade
    age = int(np.clip(round(rng.normal(mean_age, AGE_SD)), *AGE_RANGE))
    return Participant(
        participant_id=participant_id,
        grade=grade,
        severity=draw_severity(grade, recipe.strength, recipe.heterogeneity, rng),
        site=site,
        age=age,
        visit=FIRST_VISIT + timedelta(days=int(rng.integers(VISIT_DAYS))),
        split=split,
        has_oct=has_oct,
        modalities={name: bool(rng.uniform() < share) for name, share in OTHER_MODALITIES.items()},
        volumes=draw_volumes(participant_id, site, rng) if has_oct else (),
    )


def draw_participants(recipe: CohortRecipe) -> list[Participant]:
    """All participants in the order of their ids; class counts and splits are exact, not drawn.

    Classes follow `CLASS_SHARES`, splits follow the recipe inside every class, both by largest remainder;
    chance decides only who it is.
    """
    rng = numpy_stream(recipe.seed, "allocation")
    slots = [
        (grade, split)
        for grade, count in enumerate(apportion(recipe.participants, CLASS_SHARES))
        for split, share in zip(SPLITS, apportion(count, recipe.split_shares))
        for _ in range(share)
    ]
    order = rng.permutation(len(slots))
    without_oct = set(rng.permutation(len(slots))[: recipe.participants_without_oct].tolist())
    return [
        _draw_participant(number, slots[slot][0], slots[slot][1], number not in without_oct, recipe)
        for number, slot in enumerate(order.tolist())
    ]
