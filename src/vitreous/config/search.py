"""The `search` part of a study: which values `vitreous search` tries. Only that verb reads it."""

import json
from typing import Annotated, Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from vitreous.config.model import Frozen
from vitreous.config.probe_recipes import PositiveInt

Scalar = bool | int | float | str | None


class Axis(Frozen):
    """The values of one key: a range, or a list of choices.

    Args:
        low, high: inclusive; whole numbers where the key takes whole numbers.
        log: drawn on a logarithmic scale; low must be above 0.
        choices: at least two, each once; the order between them is not used.
    """

    low: float | int | None = None
    high: float | int | None = None
    log: bool = False
    choices: Annotated[tuple[Any, ...], Field(min_length=2)] | None = None

    @model_serializer(mode="wrap")
    def _effective(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Only the form that was given."""
        without = {"choices"} if self.choices is None else {"low", "high", "log"}
        return {name: value for name, value in dump(self).items() if name not in without}

    @model_validator(mode="after")
    def _one_form(self) -> "Axis":
        if self.choices is not None:
            if {"low", "high", "log"} & self.model_fields_set:
                raise ValueError("has either choices, or low and high (and log); got both")
            labels = [label(choice) for choice in self.choices]
            if len(set(map(str, labels))) != len(labels):
                raise ValueError(f"choices lists a value twice: {list(self.choices)}")
        elif self.low is None or self.high is None:
            raise ValueError("needs choices: [a, b, …], or low: a and high: b")
        elif self.low >= self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        elif self.log and self.low <= 0:
            raise ValueError(f"log: true needs low above 0; got {self.low:g}")
        return self

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values that a check has to try: both ends, or every choice."""
        return (self.low, self.high) if self.choices is None else self.choices


def label(choice: Any) -> Scalar:
    """A choice as it is named in tables: a list, such as [qkv, proj], as its JSON text.

    >>> label(["qkv", "proj"]), label(8)
    ('["qkv", "proj"]', 8)
    """
    return choice if isinstance(choice, Scalar) else json.dumps(choice)


class SearchConfig(Frozen):
    """What is searched, on val alone.

    Args:
        encoder: may be left out where the study has one, or one that is not random.
        recipe: may be left out where the study has one.
        space: keys of the recipe, dotted below `augment` and `loss`, with the values to try; if left out, that of the
            recipe's kind, without the keys that the recipe fixes.
        trials: finished ones, in all starts together.
        prune: recipes on pixels: a trial whose val curve lies below the median of those before it ends early.
        seed: of the suggestions and of the folds.
        seeds_per_trial: the first so many of the study's seeds; the score is their mean.
        cross_validate: number of folds of train and val together, by patient; the score is their mean. Null: the
            study's own val.
    """

    encoder: str | None = None
    recipe: str | None = None
    space: Annotated[dict[str, Axis], Field(min_length=1)] | None = None
    trials: PositiveInt = 30
    prune: bool = True
    seed: Annotated[int, Field(ge=0)] = 0
    seeds_per_trial: PositiveInt = 1
    cross_validate: Annotated[int, Field(ge=2, le=20)] | None = None
