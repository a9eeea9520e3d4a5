"""The `ensembles` part of a study: rows whose probabilities are averaged."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from vitreous.config.model import Frozen


class Ensemble(Frozen):
    """The mean of other rows' probabilities, as a row of its own.

    Args:
        members: ``encoder/recipe`` each, rows of the same study.
        choose: ``all`` weighs every member alike; ``greedy`` adds members one by one, again if need be, while the
            study's metric on val rises.
    """

    members: Annotated[tuple[str, ...], Field(min_length=2)]
    choose: Literal["all", "greedy"] = "all"

    @field_validator("members")
    @classmethod
    def _distinct(cls, members: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(members)) != len(members):
            raise ValueError(f"lists a row twice: {list(members)}")
        return members


def ensemble_problems(
    ensembles: dict[str, Ensemble], encoders: dict[str, object], recipes: dict[str, object]
) -> list[str]:
    """Members that are no row of the study, and names that are taken."""
    known = [f"{encoder}/{recipe}" for encoder in encoders for recipe in recipes]
    problems = [
        f"ensembles.{name}.members: {member!r} is no row encoder/recipe of this study; its rows are {', '.join(known)}"
        for name, ensemble in ensembles.items()
        for member in ensemble.members
        if member not in known
    ]
    if ensembles and "ensemble" in encoders:
        problems.append("encoders.ensemble: the name is taken by the rows of `ensembles`")
    return problems
