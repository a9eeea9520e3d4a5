"""Every row: fit, choose on val, write one folder per seed. Test labels are not read here.

Axes: N row, D feature.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, assert_never

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitreous.config.attentive_probe import AttentiveProbe
from vitreous.config.losses import Asymmetric, CrossEntropy, Focal, Ordinal
from vitreous.config.pixel_recipes import PixelRecipe
from vitreous.config.probe_recipes import Knn, LinearProbe, LogisticRegression, MlpProbe, Probe
from vitreous.config.recipes import Recipe
from vitreous.config.study import KFolds, StudyConfig
from vitreous.core.errors import ConfigError, RunError
from vitreous.core.files import replacing, write_json
from vitreous.core.finding import Finding
from vitreous.core.fingerprints import fingerprint, hash_bytes
from vitreous.core.predictions import Aggregate, Predictions
from vitreous.core.progress import progress_bar
from vitreous.core.undefined import Undefined
from vitreous.evidence.task_scores import score_rows, with_chosen_thresholds
from vitreous.features.token_store import TokenRows
from vitreous.recipes.attentive_heads import AttentionShape
from vitreous.recipes.attentive_probe import FittedAttentive, fit_attentive_grid, tokens_of
from vitreous.recipes.floors import fit_majority, shuffled_labels
from vitreous.recipes.grid_losses import LossSettings
from vitreous.recipes.probe_grid import FeatureSet, FittedProbe, ProbeMember, ProbeSettings, fit_probe_grid
from vitreous.recipes.references import FittedReference, fit_knn_sweep, fit_logistic_sweep
from vitreous.recipes.selection import Selection, select_member
from vitreous.study.adapt_pixels import PixelRun, adapt_on_pixels
from vitreous.study.ensembles import adapt_ensembles
from vitreous.study.floors import RowInputs, row_features
from vitreous.study.grid_choice import (
    FittedGrid,
    inner_partitions,
    is_best_of_grid_finished,
    is_nested,
    measure_luck,
    pooled_predictions,
    pools_val,
    write_best_of_grid,
)
from vitreous.study.heads import Head, is_finished, write_head, write_tensors
from vitreous.study.partitions import Partition, feature_set
from vitreous.study.row import PIXELS, Row, is_on_pixels, is_on_tokens

Fitted = FittedProbe | FittedReference | FittedAttentive

# of what ``model.json`` says of an encoder, what holds for heads on its tokens
TOKENS = "tokens"
# what decides a head besides its settings; raised when the training of heads changes its numbers
TRAINING_VERSION = 1


def adapt_all(
    run: PixelRun,
    rows: Sequence[Row],
    partitions: Sequence[Partition],
    models: Mapping[str, Mapping[str, Any]],
    columns: Sequence[str],
) -> None:
    """Fit whatever is not finished yet: rows on features first, since they cost seconds; ensembles of rows last.

    Test labels are not read, and neither is the luck of any member on test.

    Args:
        partitions: of the usable samples.
        models: per encoder, what its ``model.json`` says of it.
        columns: of the table, for the floor `columns`.
    """
    on_features = [row for row in rows if not is_on_pixels(row.recipe) and row.ensemble is None]
    with progress_bar("Adapting", len(on_features)) as advance:
        for row in on_features:
            fed = [row_features(row, partition, run.features, columns) for partition in partitions]
            _adapt(run, row, partitions, fed, _describe_model(row, models))
            advance(1)
    for row in rows:
        for partition in partitions:
            if isinstance(row.recipe, PixelRecipe):
                adapt_on_pixels(run, row, row.recipe, partition, models[row.encoder])
    adapt_ensembles(run.config, run.directory, rows, partitions)


def _describe_model(row: Row, models: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """What ``model.json`` says of the input; a floor other than pixels has no encoder there, so that none predicts."""
    about = {} if row.features_of is None else dict(models[row.features_of])
    of_tokens = about.pop(TOKENS, {})
    if is_on_tokens(row.recipe):
        about |= of_tokens
    if row.floor is None or row.floor == PIXELS:
        return about
    return {**{name: value for name, value in about.items() if name != "encoder"}, "floor": row.floor}


def _adapt(
    run: PixelRun,
    row: Row,
    partitions: Sequence[Partition],
    fed: Sequence[RowInputs],
    model: Mapping[str, Any],
) -> None:
    """Fit one row in every round, choose in each, and keep the best of its grid over all folds."""
    config, samples = run.config, run.features.samples
    units = [
        _unit(run, row, partition, partitions, inputs, model) for partition, inputs in zip(partitions, fed, strict=True)
    ]
    best_folder, best_unit = run.directory.best_of_grid(row.encoder, row.recipe_name), fingerprint(units)
    is_pooled = not pools_val(config, row.recipe) or is_best_of_grid_finished(best_folder, best_unit)
    grids = []
    for partition, inputs, unit in zip(partitions, fed, units, strict=True):
        folders = {seed: run.directory.unit(row.encoder, row.recipe_name, seed, partition.fold) for seed in row.seeds}
        is_done = all(is_finished(folder, unit) for folder in folders.values())
        if is_done and is_pooled:
            continue
        grid = _fit_grid(run, row, partition, inputs)
        grids.append(grid)
        if not is_done:
            inner = inner_partitions(partition, partitions)[1:] if is_nested(config, row.recipe) else []
            rounds = [grid, *(_fit_grid(run, row, one, inputs) for one in inner)]
            _choose(config, row, rounds, folders, unit=unit, model=model)
    if not is_pooled:
        ids = samples["sample_id"].to_numpy(np.str_)
        tested = np.concatenate([ids[partition.rows("test")] for partition in partitions])
        write_best_of_grid(config, best_folder, grids, tested, unit=best_unit)


def _unit(
    run: PixelRun,
    row: Row,
    partition: Partition,
    partitions: Sequence[Partition],
    inputs: RowInputs,
    model: Mapping[str, Any],
) -> str:
    """Fingerprint of all that decides the heads of one round."""
    seen = partition.split_N != "test"
    nested = {}
    if is_nested(run.config, row.recipe):
        nested = {"nested": [one.split_N.tolist() for one in inner_partitions(partition, partitions)]}
    return fingerprint(
        {
            "version": TRAINING_VERSION,
            "model": dict(model),
            "recipe": _plain_recipe(row),
            "seeds": list(row.seeds),
            "metric": run.config.metric,
            "samples": run.features.samples["sample_id"].to_numpy()[seen].tolist(),
            "split": partition.split_N[seen].tolist(),
            "y": partition.y_N[seen].tolist(),
            "features": _identify(inputs, seen),
            **nested,
        }
    )


def _plain_recipe(row: Row) -> dict[str, Any]:
    return {} if row.recipe is None else row.recipe.model_dump(mode="json")


def _fit_grid(run: PixelRun, row: Row, partition: Partition, inputs: RowInputs) -> FittedGrid:
    config, samples = run.config, run.features.samples
    train, val = (feature_set(partition, split, samples, inputs, config.data.aggregate) for split in ("train", "val"))
    val_ids = samples["sample_id"].to_numpy(np.str_)[partition.rows("val")]
    fitted = fit_row(row, train, val, len(config.data.classes), run.runtime.device)
    return FittedGrid(fitted, [predict_val(one, val, val_ids, config.data.classes) for one in fitted])


def _choose(
    config: StudyConfig,
    row: Row,
    rounds: Sequence[FittedGrid],
    folders: Mapping[int, Path],
    *,
    unit: str,
    model: Mapping[str, Any],
) -> None:
    """Choose on the val samples of all inner rounds together, and write the chosen members of the first."""
    own = rounds[0]
    scores = [score_on_val(one, config.metric, config.data.aggregate) for one in pooled_predictions(rounds)]
    chosen = select_member(own.fitted, scores)
    # the luck of choosing among several; with folds it is told by the best of grid against the pooled test instead
    luck = measure_luck(config, own) if len(chosen.ranking) > 1 and not isinstance(config.folds, KFolds) else None
    _write_selection(next(iter(folders.values())).parent, own.fitted, scores, chosen, luck)
    # selection lists the chosen members by rising seed; a recipe without chance has the seed 0, whatever the study's
    for seed, member in zip(sorted(row.seeds), chosen.member_idx, strict=True):
        one, predictions = own.fitted[member], own.val_preds[member]
        if predictions is None or (row.is_seeded and one.seed != seed):
            raise RunError(f"{row.encoder}/{row.recipe_name}: the wrong member was chosen; please report this.")
        predictions = with_chosen_thresholds(predictions, predictions.scored(config.data.aggregate))
        write = partial(write_tensors, one.tensors)
        head = Head(seed, one.settings, write, one.history, one.best_epoch, _number(scores[member]), predictions)
        write_head(folders[seed], head, unit=unit, model=model, recipe=_plain_recipe(row))


def _identify(inputs: RowInputs, seen_N: npt.NDArray[np.bool_]) -> str:
    """A fingerprint of what a row is fed; tokens, which may not fit into memory, are known by their content keys."""
    if isinstance(inputs, TokenRows):
        return fingerprint(inputs.select(np.flatnonzero(seen_N)).identity)
    return hash_bytes(np.ascontiguousarray(inputs[seen_N]).tobytes())


def fit_row(row: Row, train: FeatureSet, val: FeatureSet, num_classes: int, device: str) -> Sequence[Fitted]:
    """Every member of a row's grid with every seed.

    The floor of shuffled labels permutes those of training patients anew for each seed; val keeps its own.
    """
    if not row.is_shuffled:
        return _fit(row.recipe, row.seeds, train, val, num_classes, device)
    fitted: list[Fitted] = []
    for seed in row.seeds:
        members = _fit(row.recipe, (seed,), shuffled_labels(train, seed), val, num_classes, device)
        fitted += [replace(one, seed=seed) if isinstance(one, FittedReference) else one for one in members]
    return fitted


def _fit(
    recipe: Recipe | None, seeds: Sequence[int], train: FeatureSet, val: FeatureSet, num_classes: int, device: str
) -> Sequence[Fitted]:
    match recipe:
        case None:
            return [fit_majority(train, val, num_classes=num_classes)]
        case LinearProbe() | MlpProbe() as probe:
            return fit_probe_grid(
                train,
                val,
                grid_members(probe, seeds),
                probe_settings(probe),
                num_classes=num_classes,
                device=device,
            )
        case AttentiveProbe() as probe:
            return fit_attentive_grid(
                train,
                val,
                grid_members(probe, seeds),
                attention_shape(probe, train, num_classes),
                probe_settings(probe),
                device=device,
            )
        case LogisticRegression(C=Cs, class_weights=class_weights):
            return fit_logistic_sweep(train, val, Cs, num_classes=num_classes, class_weights=class_weights)
        case Knn(k=ks, distance=distance):
            return fit_knn_sweep(train, val, ks, num_classes=num_classes, metric=distance)
        case PixelRecipe():
            raise RunError("a recipe on pixels has no features; please report this with the study file.")
    assert_never(recipe)


def attention_shape(probe: AttentiveProbe, train: FeatureSet, num_classes: int) -> AttentionShape:
    """The architecture of a recipe's heads on these tokens."""
    return shape_of(probe, tokens_of(train).shape[1], num_classes)


def shape_of(probe: AttentiveProbe, width: int, num_classes: int) -> AttentionShape:
    """The architecture of a recipe's heads on tokens of this width.

    Raises:
        ConfigError: the tokens' width is no multiple of the heads of the blocks.
    """
    hidden = probe.hidden if probe.blocks == 1 else width
    if hidden % probe.heads:
        raise ConfigError(
            f"attentive_probe: blocks have the tokens' width, and {width} is no multiple of heads: {probe.heads}."
        )
    return AttentionShape(
        width,
        hidden,
        probe.heads,
        1 if probe.queries == "shared" else num_classes,
        num_classes,
        probe.blocks,
        probe.head_width if probe.head == "mlp" else None,
    )


def grid_members(probe: Probe, seeds: Sequence[int]) -> list[ProbeMember]:
    """Every combination of the axes under `grid` with every seed; an axis left out takes the recipe's own value."""
    grid = probe.grid
    axes = itertools.product(
        grid.lr or (probe.lr,),
        grid.weight_decay or (probe.weight_decay,),
        grid.dropout or (probe.dropout,),
        grid.class_weights or (probe.class_weights,),
        seeds,
    )
    hidden, batch_norm = (probe.hidden, probe.batch_norm) if isinstance(probe, MlpProbe) else ((), False)
    return [
        ProbeMember(lr, weight_decay, dropout, seed, class_weights, hidden, batch_norm)
        for lr, weight_decay, dropout, class_weights, seed in axes
    ]


def probe_settings(probe: Probe) -> ProbeSettings:
    """How all members of a recipe's grid are trained."""
    return ProbeSettings(
        epochs=probe.epochs,
        batch_size=None if probe.batch_size == "full" else probe.batch_size,
        warmup_epochs=min(5, probe.epochs // 10) if probe.warmup_epochs == "auto" else probe.warmup_epochs,
        patience=probe.patience,
        min_delta=probe.min_delta,
        loss=loss_settings(probe),
        sampler=probe.sampler,
        **({"max_member_bytes": int(probe.max_member_gb * 10**9)} if isinstance(probe, AttentiveProbe) else {}),
    )


def loss_settings(probe: Probe) -> LossSettings:
    """The loss of a recipe's heads."""
    match probe.loss:
        case CrossEntropy():
            return LossSettings(label_smoothing=probe.label_smoothing)
        case Focal(gamma=gamma):
            return LossSettings("focal", gamma=gamma)
        case Ordinal(weight=weight):
            return LossSettings("ordinal", ordinal_weight=weight)
        case Asymmetric(gamma_positive=positive, gamma_negative=negative, clip=clip):
            return LossSettings("asymmetric", gamma_positive=positive, gamma_negative=negative, clip=clip)
    assert_never(probe.loss)


def predict_val(
    one: Fitted, val: FeatureSet, val_ids: npt.NDArray[np.str_], classes: tuple[str, ...]
) -> Predictions | None:
    """Predictions of the val samples; None of a member that diverged."""
    if one.diverged_epoch is not None:
        return None
    return Predictions(val_ids, val.patient_id_N, val.y_N, logits_of(one, val), classes, task=val.task)


def logits_of(one: Fitted, rows: FeatureSet) -> npt.NDArray[np.float64]:
    """Logits (N, C) of a trained head on the kind of features it reads."""
    if isinstance(one, FittedAttentive):
        return one.predict_logits(tokens_of(rows))
    return one.predict_logits(rows.features_ND)


def score_on_val(predictions: Predictions | None, metric: str, aggregate: Aggregate) -> float | Undefined:
    """The study's metric of what it scores; Undefined for a member that diverged.

    Labels are decided at the thresholds that are best on these rows, as those of the chosen member will be.
    """
    if predictions is None:
        return Undefined("training diverged")
    scored = predictions.scored(aggregate)
    return score_rows(with_chosen_thresholds(scored, scored))[metric]


def _write_selection(
    folder: Path,
    fitted: Sequence[Fitted],
    scores: Sequence[float | Undefined],
    chosen: Selection,
    luck: Mapping[str, Any] | None,
) -> None:
    """``grid.csv``, every member with its val score, and ``selection.json``, what was chosen and how clearly.

    Args:
        luck: of :func:`vitreous.study.grid_choice.measure_luck`, where there is more than one setting.
    """
    table = pd.DataFrame(
        [
            {
                **{name: str(value) if isinstance(value, tuple) else value for name, value in one.settings.items()},
                "seed": one.seed,
                "best_epoch": one.best_epoch,
                "diverged_epoch": one.diverged_epoch,
                "val_score": None if isinstance(score, Undefined) else score,
                "chosen": index in chosen.member_idx,
            }
            for index, (one, score) in enumerate(zip(fitted, scores, strict=True))
        ]
    )
    with replacing(folder / "grid.csv") as aside:
        table.to_csv(aside, index=False)
    findings = [*chosen.findings, *_find_unconverged([fitted[index] for index in chosen.member_idx])]
    write_json(
        folder / "selection.json",
        {
            "setting": chosen.settings,
            "mean_val_score": chosen.mean_score,
            "num_settings": len(chosen.ranking),
            "margin": None if isinstance(chosen.margin, Undefined) else chosen.margin,
            "runner_up": chosen.runner_up,
            "num_diverged": chosen.num_diverged,
            "findings": [vars(finding) for finding in findings],
            "best_seed": fitted[chosen.best_member_idx].seed,
            **({} if luck is None else {"optimism": dict(luck)}),
        },
    )


def _find_unconverged(chosen: Sequence[Fitted]) -> list[Finding]:
    stopped = [one for one in chosen if isinstance(one, FittedReference) and not one.converged]
    if not stopped:
        return []
    return [
        Finding(
            "not_converged",
            "warning",
            "The solver of the chosen reference stopped at its last iteration, before it converged.",
            ", ".join(f"{name}={value}" for name, value in stopped[0].settings.items()),
            "Choose smaller values of C.",
        )
    ]


def _number(score: float | Undefined) -> float:
    if isinstance(score, Undefined):
        raise RunError(f"the chosen member has no val score: {score.reason}.")
    return score
