"""What decides a synthetic cohort, down to its last byte: the recipe."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vitreous.core.errors import UserError
from vitreous.core.fingerprints import fingerprint

GENERATOR_VERSION = 1
"""Raised whenever the same recipe gives other bytes than before."""

CLASSES = (
    "healthy",
    "pre_diabetes_lifestyle_controlled",
    "oral_medication_and_or_non_insulin_injectable_medication_controlled",
    "insulin_dependent",
)
"""The four study groups; the index is the grade of disease."""

CLASS_SHARES = (369, 242, 321, 129)
"""Participants per class in the cohort that this one imitates."""

SPLITS = ("train", "val", "test")

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Confounding(_Frozen):
    """How strongly class is tied to what is not disease; 0 is independence.

    Site and age always act on the images (see :mod:`vitreous.demo.anatomy` and
    :mod:`vitreous.demo.acquisition`). These knobs only switch on their association with the class.

    Args:
        site: share of participants whose site is decided by their class instead of drawn at random.
        age: years by which mean age rises per grade, divided by 8; at 1 the classes lie 8 years apart.
    """

    site: Share = 0.0
    age: Share = 0.0


class Flaws(_Frozen):
    """Bad inputs that are planted on purpose, each so many times; all fall on different participants.

    The flaws of files are planted among participants of the training split who have at least two volumes,
    so that a participant stays in the study when the bad file is quarantined.

    Args:
        truncated_files: the file ends in the middle of its pixel data.
        empty_files: the file has no bytes.
        mislabelled_files: text under a ``.dcm`` name.
        constant_files: every voxel has the same value.
        oversized_files: the header declares 60,000 x 60,000 pixels in 4,000 frames; the file stays small.
        participants_without_file: the table says ``retinal_oct`` TRUE, yet no volume exists.
        files_without_participant: a whole volume of somebody whom the table does not know.
        participants_in_two_splits: the row stands twice, in train and in test.
        ids_differing_in_spelling: the row stands a second time with a zero before the id.
        unknown_labels: ``study_group`` holds a group that the study does not name.
        missing_labels: ``study_group`` is empty.
    """

    truncated_files: Count = 1
    empty_files: Count = 0
    mislabelled_files: Count = 0
    constant_files: Count = 0
    oversized_files: Count = 0
    participants_without_file: Count = 1
    files_without_participant: Count = 0
    participants_in_two_splits: Count = 0
    ids_differing_in_spelling: Count = 0
    unknown_labels: Count = 0
    missing_labels: Count = 0

    @classmethod
    def none(cls) -> "Flaws":
        """A cohort without any bad input."""
        return cls(truncated_files=0, participants_without_file=0)


class CohortRecipe(_Frozen):
    """Everything that decides a cohort; equal recipes give byte-identical files with one set of library versions.

    Args:
        participants: rows of ``participants.tsv`` (before planted flaws add or repeat rows).
        seed: of every random stream.
        strength: severity gained per grade, in units of the table in ``docs/synthetic_cohort.md``; 0 plants no
            signal at all, 1 is the demo, 2 doubles the distance between neighbouring classes.
        heterogeneity: standard deviation of severity among participants of one class.
        confounding: association of class with site and age.
        split_shares: train, val, test; must sum to 1. Splits are stratified by class.
        participants_without_oct: rows whose ``retinal_oct`` is FALSE and who rightly have no volume.
        flaws: bad inputs planted on purpose.
    """

    participants: Annotated[int, Field(ge=12, le=9000)] = 160
    seed: Annotated[int, Field(ge=0)] = 0
    strength: Annotated[float, Field(ge=0, le=4)] = 1.0
    heterogeneity: Annotated[float, Field(ge=0, le=2)] = 0.30
    confounding: Confounding = Confounding()
    split_shares: tuple[Share, Share, Share] = (0.5, 0.2, 0.3)
    participants_without_oct: Count = 3
    flaws: Flaws = Flaws()

    @model_validator(mode="after")
    def _splits(self) -> "CohortRecipe":
        if abs(sum(self.split_shares) - 1) > 1e-9:
            raise ValueError(f"split_shares must sum to 1; got {self.split_shares}")
        return self

    @property
    def fingerprint(self) -> str:
        """Names the cohort: recipe and generator version."""
        return fingerprint({"generator_version": GENERATOR_VERSION, "recipe": self})


def apportion(total: int, shares: tuple[float, ...]) -> list[int]:
    """Whole numbers in proportion to `shares` that sum to `total` (largest remainder).

    >>> apportion(160, CLASS_SHARES)
    [56, 37, 48, 19]
    """
    scale = total / sum(shares)
    exact = [share * scale for share in shares]
    counts = [int(value) for value in exact]
    by_remainder = sorted(range(len(shares)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


def check_capacity(recipe: CohortRecipe, candidates: int) -> None:
    """Refuse a recipe that plants more flaws than there are participants to carry them.

    Raises:
        UserError: names both numbers and the remedy.
    """
    wanted = sum(recipe.flaws.model_dump().values()) - recipe.flaws.files_without_participant
    if wanted > candidates:
        raise UserError(
            f"The cohort recipe plants {wanted} flaws, but only {candidates} training participants with two or "
            f"more volumes can carry one each. Ask for fewer flaws or more than {recipe.participants} participants."
        )
