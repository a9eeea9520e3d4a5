"""How a member of a grid is chosen, and what choosing costs: nested folds, the best of grid, and the luck of val.

Nothing here reads a test label. Axes: N usable sample, M member.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitreous.config.probe_recipes import Knn, LogisticRegression, Probe
from vitreous.config.recipes import Recipe
from vitreous.config.study import KFolds, StudyConfig
from vitreous.core.files import write_json
from vitreous.core.predictions import Predictions, join_predictions
from vitreous.core.streams import numpy_stream
from vitreous.core.undefined import Undefined
from vitreous.evidence.intervals import mean_scores, resample_weights
from vitreous.evidence.optimism import GridOptimism, grid_optimism
from vitreous.evidence.task_scores import with_chosen_thresholds
from vitreous.recipes.attentive_probe import FittedAttentive
from vitreous.recipes.probe_grid import FittedProbe
from vitreous.recipes.references import FittedReference
from vitreous.study.partitions import Partition

SCHEMA_VERSION = 1
_RESAMPLES = 300  # each costs a score of every member on the patients drawn and on those left out
_FILE = "best_of_grid.json"


@dataclass(frozen=True)
class FittedGrid:
    """Every member of a row's grid in one round.

    Args:
        fitted: with every seed.
        val_preds: of each member on the round's val samples; None where it diverged.
    """

    fitted: Sequence[FittedProbe | FittedReference | FittedAttentive]
    val_preds: Sequence[Predictions | None]


@dataclass(frozen=True)
class BestOfGrid:
    """The setting of the highest pooled val score over all rounds of a K-fold: what is reported without nesting.

    Args:
        setting: everything but the seed.
        num_settings: compared.
        by_seed: its pooled val predictions, each sample once.
    """

    setting: Mapping[str, Any]
    num_settings: int
    by_seed: Mapping[int, Predictions]


def count_settings(recipe: Recipe | None) -> int:
    """Settings that are chosen between, seeds aside."""
    return recipe.num_settings if isinstance(recipe, Probe | LogisticRegression | Knn) else 1


def inner_partitions(partition: Partition, partitions: Sequence[Partition]) -> list[Partition]:
    """The rounds within the training and val samples of one round of a K-fold: every fold but its test chooses once.

    The round's own val fold comes first, so that the first inner round is the round itself.

    Args:
        partitions: of all rounds; who is in test in round k belongs to fold k.
    """
    fold_N = np.full(len(partition.split_N), -1)
    for one in partitions:
        fold_N[one.rows("test")] = one.fold
    inner = [partition]
    own = set(fold_N[partition.rows("val")].tolist())
    for fold in sorted(set(fold_N[partition.split_N != "test"].tolist()) - own):
        split_N = np.where(partition.split_N == "test", "test", np.where(fold_N == fold, "val", "train"))
        inner.append(replace(partition, split_N=split_N))
    return inner


def pooled_predictions(grids: Sequence[FittedGrid]) -> list[Predictions | None]:
    """Each member's val predictions of all inner rounds together (M); None where it diverged in one."""
    pooled: list[Predictions | None] = []
    for parts in zip(*(grid.val_preds for grid in grids), strict=True):
        kept = [part for part in parts if part is not None]
        pooled.append(join_predictions(kept) if len(kept) == len(parts) else None)
    return pooled


def measure_luck(config: StudyConfig, grid: FittedGrid) -> dict[str, Any]:
    """How much the best val score of a grid exceeds what choosing by val gives on other patients; plain values.

    In resamples of the val patients the best member is chosen anew and scored on the patients that were not drawn.
    """
    members = {
        name: by_seed
        for name, by_seed in _by_setting(config, grid).items()
        if all(one is not None for one in by_seed.values())
    }
    whole = {name: [one for one in by_seed.values() if one is not None] for name, by_seed in members.items()}
    rng = numpy_stream(config.intervals.seed, "grid optimism")
    weights_RN = _resampled(next(iter(whole.values()))[0], rng)
    return plain_optimism(grid_optimism(whole, config.metric, weights_RN, config.intervals.level))


def _resampled(val: Predictions, rng: np.random.Generator) -> npt.NDArray[np.uint16]:
    """Weights (R, N); patients are drawn within their class, so that few draws leave a small class out altogether.

    Where patients have several classes or labels they are drawn from all.
    """
    _, patient_N = np.unique(val.patient_id_N, return_inverse=True)
    num_pairs = len(np.unique(np.stack([patient_N, val.y_true_N]), axis=1).T)
    if val.task == "multi_label" or num_pairs > patient_N.max() + 1:
        return resample_weights(val.patient_id_N, num_resamples=_RESAMPLES, rng=rng)
    weights_RN = np.empty((_RESAMPLES, len(patient_N)), dtype=np.uint16)
    for y in np.unique(val.y_true_N):
        rows_N = val.y_true_N == y
        weights_RN[:, rows_N] = resample_weights(val.patient_id_N[rows_N], num_resamples=_RESAMPLES, rng=rng)
    return weights_RN


def plain_optimism(found: GridOptimism) -> dict[str, Any]:
    """For ``selection.json``: numbers as they are, what is undefined as null with its reason beside it."""
    values = {
        "best_of_grid": found.best_score,
        "corrected": found.corrected.value,
        "optimism": found.optimism,
    }
    plain: dict[str, Any] = {"num_settings": found.num_members, "num_resamples": found.corrected.num_resamples}
    for name, value in values.items():
        plain[name] = None if isinstance(value, Undefined) else value
        if isinstance(value, Undefined):
            plain[f"{name}_undefined"] = value.reason
    return plain


def write_best_of_grid(
    config: StudyConfig, folder: Path, grids: Sequence[FittedGrid], sample_ids: npt.NDArray[np.str_], *, unit: str
) -> None:
    """Find the setting of the highest pooled val score over all rounds and keep its val predictions, by seed.

    Args:
        grids: of each round of a K-fold, whose val folds together hold every sample once.
        sample_ids: the order to keep them in: that of the pooled test predictions.
        unit: fingerprint of all rounds; see :func:`is_best_of_grid_finished`.
    """
    rounds = [_by_setting(config, grid) for grid in grids]
    scores: dict[str, float] = {}
    pooled: dict[str, dict[int, Predictions]] = {}
    for name in rounds[0]:
        by_seed = {}
        for seed in rounds[0][name]:
            parts = [one[name][seed] for one in rounds]
            kept = [part for part in parts if part is not None]
            if len(kept) == len(parts):
                by_seed[seed] = _in_order(join_predictions(kept), sample_ids)
        score = mean_scores(list(by_seed.values()))[config.metric] if len(by_seed) == len(rounds[0][name]) else None
        if isinstance(score, float):
            scores[name], pooled[name] = score, by_seed
    best = max(scores, key=lambda name: scores[name]) if scores else None
    if best is not None:
        for seed, predictions in pooled[best].items():
            predictions.write(folder / f"seed{seed}_val_preds.parquet")
    write_json(
        folder / _FILE,
        {
            "schema_version": SCHEMA_VERSION,
            "unit": unit,
            "setting": None if best is None else json.loads(best),
            "num_settings": len(rounds[0]),
            "val_score": None if best is None else scores[best],
            "seeds": [] if best is None else sorted(pooled[best]),
        },
    )


def is_best_of_grid_finished(folder: Path, unit: str) -> bool:
    """Whether the folder holds what the same rounds gave."""
    path = folder / _FILE
    return path.exists() and json.loads(path.read_text())["unit"] == unit


def read_best_of_grid(folder: Path, classes: Sequence[str]) -> BestOfGrid | None:
    """What :func:`write_best_of_grid` kept; None for rows without a choice, or where no setting has a score."""
    if not (folder / _FILE).exists():
        return None
    kept = json.loads((folder / _FILE).read_text())
    if kept["setting"] is None:
        return None
    by_seed = {seed: Predictions.read(folder / f"seed{seed}_val_preds.parquet", classes) for seed in kept["seeds"]}
    return BestOfGrid(kept["setting"], kept["num_settings"], by_seed)


def pools_val(config: StudyConfig, recipe: Recipe | None) -> bool:
    """Whether the best of a row's grid over all folds is worth keeping: there are folds, and something to choose."""
    return isinstance(config.folds, KFolds) and count_settings(recipe) > 1


def is_nested(config: StudyConfig, recipe: Recipe | None) -> bool:
    """Whether a row's settings are chosen on every fold but the one that is tested."""
    return isinstance(config.folds, KFolds) and config.folds.nested and count_settings(recipe) > 1


def _by_setting(config: StudyConfig, grid: FittedGrid) -> dict[str, dict[int, Predictions | None]]:
    """Setting as JSON → seed → what metrics count of its val predictions."""
    by_setting: dict[str, dict[int, Predictions | None]] = {}
    for member, predictions in zip(grid.fitted, grid.val_preds, strict=True):
        name = json.dumps(member.settings, sort_keys=True)
        scored = None
        if predictions is not None:
            scored = predictions.scored(config.data.aggregate)
            scored = with_chosen_thresholds(scored, scored)  # of labels; classes need none
        by_setting.setdefault(name, {})[member.seed] = scored
    return by_setting


def _in_order(predictions: Predictions, sample_ids: npt.NDArray[np.str_]) -> Predictions:
    """The same rows in the order of `sample_ids`, or of patients sorted by id where these are the rows."""
    position = {name: row for row, name in enumerate(predictions.sample_id_N.tolist())}
    order = sorted(position) if predictions.is_per_patient else sample_ids.tolist()
    return predictions.select(np.array([position[name] for name in order], dtype=np.int64))
