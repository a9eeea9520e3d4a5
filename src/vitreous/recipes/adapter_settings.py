"""How a model's low-rank adapters are made: plain values that rebuild them."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class AdapterSettings:
    """What :func:`vitreous.recipes.lora.add_adapters` was given, but for the seed.

    Args:
        layers: numbers of the blocks that have adapters; None is all.
    """

    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]
    layers: tuple[int, ...] | None
    rslora: bool
    dora: bool

    def as_config(self) -> dict[str, Any]:
        """For JSON: tuples as lists."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
