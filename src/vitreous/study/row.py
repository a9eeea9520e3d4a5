"""The rows of the leaderboard to be: every encoder with every recipe, and the floors."""

from collections.abc import Sequence
from dataclasses import dataclass

from vitreous.config.attentive_probe import AttentiveProbe
from vitreous.config.ensembles import Ensemble
from vitreous.config.pixel_recipes import PixelRecipe
from vitreous.config.probe_recipes import LinearProbe, LogisticRegression, Probe, ProbeGrid
from vitreous.config.recipes import Recipe
from vitreous.config.study import StudyConfig
from vitreous.recipes.floors import FLOOR_CS
from vitreous.study.encoders import FLOOR, OpenedEncoder

MAJORITY = "majority"
SHUFFLED = "shuffled"
PIXELS = "pixels"
COLUMNS = "columns"
ENSEMBLE = "ensemble"
# of the floors `untrained` and `shuffled` where the study itself has no recipe on features
FLOOR_PROBE = LinearProbe(kind="linear_probe", grid=ProbeGrid(lr=(1e-4, 1e-3, 1e-2)))
PIXELS_PROBE = LogisticRegression(
    kind="logistic_regression", C=(1e-6, 1e-5, 1e-4, 1e-3, 1e-2), class_weights="balanced"
)
COLUMNS_PROBE = LogisticRegression(kind="logistic_regression", C=FLOOR_CS, class_weights="balanced")


@dataclass(frozen=True)
class Row:
    """One row of the leaderboard to be.

    Args:
        recipe: of the study, or of a floor; None for the majority floor, which looks at no feature.
        features_of: the encoder whose features or prepared inputs it reads; None for the floors `majority` and
            `columns`, which read none.
        notes: plain sentences to print with the row.
        ensemble: of a row that averages others; it has no recipe.
    """

    encoder: str
    recipe_name: str
    recipe: Recipe | None
    seeds: tuple[int, ...]
    features_of: str | None
    notes: tuple[str, ...] = ()
    ensemble: Ensemble | None = None

    @property
    def floor(self) -> str | None:
        """Which floor without an encoder of its own it is."""
        return self.recipe_name if self.encoder == FLOOR else None

    @property
    def is_shuffled(self) -> bool:
        """Whether it learns from labels permuted between training patients."""
        return self.floor == SHUFFLED

    @property
    def is_seeded(self) -> bool:
        """Whether chance plays a part; L-BFGS and neighbours give the same for every seed and are run once."""
        return self.is_shuffled or _is_seeded(self.recipe)


def rows_of(config: StudyConfig, encoders: Sequence[OpenedEncoder], columns: Sequence[str]) -> list[Row]:
    """Every encoder with every recipe, then ensembles of them, then the floors without an encoder.

    Random weights that serve as a floor are probed, not trained: with the study's recipes on features, or where it has
    none with one linear probe.

    Args:
        columns: of the table, for the floor `columns`; see :func:`vitreous.study.floors.plan_floors`. Without any, or
            where the study takes the floor off, there is no such row.
    """
    rows = []
    for opened in encoders:
        recipes = dict(config.recipes)
        if opened.name == FLOOR:
            recipes = {PIXELS: PIXELS_PROBE}
        elif opened.name not in config.encoders:
            recipes = on_features(config)
        rows += [_row(config, opened.name, name, recipe, opened.name) for name, recipe in recipes.items()]
    rows += [_ensemble_row(config, name, ensemble) for name, ensemble in config.ensembles.items()]
    if SHUFFLED in config.floors:
        rows.append(_shuffled_row(config))
    if COLUMNS in config.floors and columns:
        note = f"logistic regression on {', '.join(columns)}"
        rows.append(_row(config, FLOOR, COLUMNS, COLUMNS_PROBE, None, (note,)))
    if MAJORITY in config.floors:
        rows.append(_row(config, FLOOR, MAJORITY, None, None))
    return rows


def on_features(config: StudyConfig) -> dict[str, Recipe]:
    """The study's recipes on features, or where it has none one linear probe."""
    recipes = {name: recipe for name, recipe in config.recipes.items() if not is_on_pixels(recipe)}
    return recipes or {"linear_probe": FLOOR_PROBE}


def _shuffled_row(config: StudyConfig) -> Row:
    """The first encoder and the first recipe on features; each seed permutes the labels anew."""
    encoder, (name, recipe) = next(iter(config.encoders)), next(iter(on_features(config).items()))
    note = f"{encoder} / {name}, labels permuted between training patients"
    return _row(config, FLOOR, SHUFFLED, recipe, encoder, (note,))


def _ensemble_row(config: StudyConfig, name: str, ensemble: Ensemble) -> Row:
    chosen = "" if ensemble.choose == "all" else ", chosen on val"
    note = f"mean probability of {', '.join(ensemble.members)}{chosen}"
    members = [config.recipes[member.split("/")[1]] for member in ensemble.members]
    seeds = config.seeds if any(_is_seeded(recipe) for recipe in members) else config.seeds[:1]
    return Row(ENSEMBLE, name, None, seeds, None, (note,), ensemble)


def _row(
    config: StudyConfig,
    encoder: str,
    recipe_name: str,
    recipe: Recipe | None,
    features_of: str | None,
    notes: tuple[str, ...] = (),
) -> Row:
    row = Row(encoder, recipe_name, recipe, config.seeds, features_of, notes)
    return row if row.is_seeded else Row(encoder, recipe_name, recipe, config.seeds[:1], features_of, notes)


def _is_seeded(recipe: Recipe | None) -> bool:
    return isinstance(recipe, Probe | PixelRecipe)


def is_on_pixels(recipe: Recipe | None) -> bool:
    """Whether the recipe trains on pixels or voxels rather than on features."""
    return isinstance(recipe, PixelRecipe)


def is_on_tokens(recipe: Recipe | None) -> bool:
    """Whether the recipe reads all kept tokens of a sample rather than one vector."""
    return isinstance(recipe, AttentiveProbe)


def encoders_on_pixels(rows: Sequence[Row]) -> frozenset[str]:
    """Names of the encoders that some row trains on pixels."""
    return frozenset(row.encoder for row in rows if is_on_pixels(row.recipe))


def frozen_encoders(rows: Sequence[Row]) -> frozenset[str]:
    """Names of the encoders whose vectors some row needs."""
    others = (row for row in rows if not is_on_pixels(row.recipe) and not is_on_tokens(row.recipe))
    return frozenset(row.features_of for row in others if row.features_of is not None)


def encoders_on_tokens(rows: Sequence[Row]) -> frozenset[str]:
    """Names of the encoders whose tokens some row needs."""
    return frozenset(row.features_of for row in rows if is_on_tokens(row.recipe) and row.features_of is not None)
