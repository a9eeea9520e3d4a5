"""The rows of the leaderboard to be: every encoder with every recipe, and the floors."""

from collections.abc import Sequence
from dataclasses import dataclass

from vitreous.config.pixel_recipes import PixelRecipe
from vitreous.config.probe_recipes import LinearProbe, LogisticRegression, MlpProbe, ProbeGrid
from vitreous.config.recipes import Recipe
from vitreous.config.study import StudyConfig
from vitreous.study.encoders import FLOOR, OpenedEncoder

MAJORITY = "majority"
PIXELS = "pixels"
# of the untrained floor where the study itself has no recipe on features
FLOOR_PROBE = LinearProbe(kind="linear_probe", grid=ProbeGrid(lr=(1e-4, 1e-3, 1e-2)))
PIXELS_PROBE = LogisticRegression(
    kind="logistic_regression", C=(1e-6, 1e-5, 1e-4, 1e-3, 1e-2), class_weights="balanced"
)


@dataclass(frozen=True)
class Row:
    """One row of the leaderboard to be.

    Args:
        recipe: of the study, or of a floor; None for the majority floor, which looks at no feature.
    """

    encoder: str
    recipe_name: str
    recipe: Recipe | None
    seeds: tuple[int, ...]


def rows_of(config: StudyConfig, encoders: Sequence[OpenedEncoder]) -> list[Row]:
    """Every encoder with every recipe, then the floors without an encoder.

    Random weights that serve as a floor are probed, not trained: with the study's recipes on features, or where it has
    none with one linear probe.
    """
    rows = []
    for opened in encoders:
        recipes = dict(config.recipes)
        if opened.name == FLOOR:
            recipes = {PIXELS: PIXELS_PROBE}
        elif opened.name not in config.encoders:
            recipes = {name: recipe for name, recipe in recipes.items() if not is_on_pixels(recipe)}
            recipes = recipes or {"linear_probe": FLOOR_PROBE}
        rows += [
            Row(opened.name, name, recipe, config.seeds if is_seeded(recipe) else config.seeds[:1])
            for name, recipe in recipes.items()
        ]
    if "majority" in config.floors:
        rows.append(Row(FLOOR, MAJORITY, None, config.seeds[:1]))
    return rows


def is_on_pixels(recipe: Recipe | None) -> bool:
    """Whether the recipe trains on pixels or voxels rather than on features."""
    return isinstance(recipe, PixelRecipe)


def is_seeded(recipe: Recipe | None) -> bool:
    """Whether chance plays a part; L-BFGS and neighbours give the same for every seed and are run once."""
    return isinstance(recipe, LinearProbe | MlpProbe | PixelRecipe)


def encoders_on_pixels(rows: Sequence[Row]) -> frozenset[str]:
    """Names of the encoders that some row trains on pixels."""
    return frozenset(row.encoder for row in rows if is_on_pixels(row.recipe))


def frozen_encoders(rows: Sequence[Row]) -> frozenset[str]:
    """Names of the encoders whose features some row needs."""
    return frozenset(row.encoder for row in rows if row.recipe is not None and not is_on_pixels(row.recipe))
