"""The Python face of a study."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from vitreous.config.compose import load_study, validate_study
from vitreous.config.study import StudyConfig
from vitreous.study.plan import Plan, make_plan
from vitreous.study.run import Result, run_study

__all__ = ["Plan", "Result", "Study"]


@dataclass(frozen=True)
class Study:
    """A question: data × encoders × recipes × seeds.

    >>> study = Study.from_yaml("demo", ["seeds=[0]"])
    >>> study.config.seeds
    (0,)
    """

    config: StudyConfig

    @classmethod
    def from_yaml(cls, study: str, overrides: Sequence[str] = ()) -> Self:
        """Read a study file, or the packaged one of that name.

        Args:
            overrides: ``key=value`` in Hydra's grammar.

        Raises:
            ConfigError: with every problem at once.
        """
        return cls(load_study(str(study), overrides))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The same from plain values."""
        return cls(validate_study(values))

    def plan(self) -> Plan:
        """What would be read, encoded and trained. Writes nothing."""
        return make_plan(self.config)

    def run(self) -> Result:
        """Run it, or what is left of it."""
        return run_study(self.config)
