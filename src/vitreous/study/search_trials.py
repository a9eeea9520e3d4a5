"""What a search trains and chooses on, and one trial of it. The test split is left out before anything is read.

Axes: N usable sample, P participant.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, assert_never

import numpy as np
import pandas as pd
from rich.console import Console

from vitreous.config.attentive_probe import AttentiveProbe
from vitreous.config.pixel_recipes import PixelRecipe
from vitreous.config.probe_recipes import Knn, LinearProbe, LogisticRegression, MlpProbe
from vitreous.config.recipes import FeatureRecipe
from vitreous.config.search_space import Search, put_values
from vitreous.config.study import StudyConfig
from vitreous.core.errors import ConfigError, RunError, SampleError, UserError
from vitreous.core.fingerprints import fingerprint
from vitreous.core.predictions import Predictions
from vitreous.core.streams import stream_seed
from vitreous.core.undefined import Undefined
from vitreous.recipes.attentive_probe import fit_attentive_grid
from vitreous.recipes.feature_set import FeatureSet, check_feature_sets
from vitreous.recipes.pixel_prediction import predict_pixels
from vitreous.recipes.pixel_stage import OnEpoch
from vitreous.recipes.pixel_training import fit_pixels
from vitreous.recipes.probe_grid import fit_probe_grid
from vitreous.recipes.references import fit_knn_sweep, fit_logistic_sweep
from vitreous.recipes.trainable import set_trainable
from vitreous.samples.cohort import Cohort, SealedLabels
from vitreous.study.adapt import Fitted, attention_shape, grid_members, logits_of, probe_settings, score_on_val
from vitreous.study.adapt_pixels import (
    PixelRun,
    check_pixel_recipes,
    fit_settings,
    make_model,
    pixel_set,
    stages_of,
)
from vitreous.study.data import OpenedData, open_data
from vitreous.study.encode import StudyFeatures, check_usable, encode_study, write_data_errors
from vitreous.study.encoders import OpenedEncoder, open_encoders
from vitreous.study.leak_gate import finish_gate, pass_gate_before_encoding
from vitreous.study.partitions import Partition, feature_set
from vitreous.study.row import is_on_tokens
from vitreous.study.run_directory import RunDirectory
from vitreous.study.runtime import Runtime, resolve_runtime

# keys that decide what can be built from the encoder; every choice of them is built once before the first trial
_BUILT = ("targets", "layers", "blocks")


class TrialFailedError(Exception):
    """These values can have no score: training diverged, or memory does not suffice."""


@dataclass(frozen=True)
class SearchProblem:
    """What every trial has in common.

    Args:
        config: the study, with the one encoder and recipe that are searched.
        data: without the test split.
        rounds: the study's own train and val, or one per fold of both.
    """

    config: StudyConfig
    search: Search
    runtime: Runtime
    folder: Path
    data: OpenedData
    opened: OpenedEncoder
    features: StudyFeatures
    rounds: tuple[Partition, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Those of each trial."""
        return self.config.seeds[: self.search.settings.seeds_per_trial]


def open_problem(config: StudyConfig, search: Search, folder: Path) -> SearchProblem:
    """Read tables and encoder, and encode what is missing of train and val.

    Raises:
        UserError: the data, the encoder or the space do not allow a search.
        TooManyQuarantinedError: too much of train and val cannot be used.
    """
    config = config.model_copy(
        update={
            "encoders": {search.encoder: config.encoders[search.encoder]},
            "recipes": {search.recipe_name: search.recipe},
            "ensembles": {},
            "baseline": None,
            "floors": (),
        }
    )
    runtime = resolve_runtime(config)
    data = without_test(open_data(config))
    _check_modality(config, search, data)
    [opened] = open_encoders(config, runtime, data.cache, data.modality)
    if search.is_on_pixels:
        _check_models(config, search, opened)
    names = {search.encoder}
    gate = pass_gate_before_encoding(config, data, [opened], runtime.workers)
    with gate.loader() as load_input:
        features = encode_study(
            config,
            runtime,
            data,
            [opened],
            frozen=set() if search.is_on_pixels or is_on_tokens(search.recipe) else names,
            on_tokens=names if is_on_tokens(search.recipe) else (),
            on_pixels=names if search.is_on_pixels else (),
            load_input=load_input,
        )
    write_data_errors(folder / "data_errors.csv", features.quarantined)
    check_usable(config, features, len(data.cohort.samples))
    finish_gate(gate, features, [opened], runtime.workers)
    problem = SearchProblem(config, search, runtime, folder, data, opened, features, _rounds(search, data, features))
    _check_rounds(problem)
    return problem


def without_test(data: OpenedData) -> OpenedData:
    """The same data without the samples of the test split, whose files are then never opened."""
    samples = data.cohort.samples
    kept = samples[samples["split"] != "test"].reset_index(drop=True)
    cohort: Cohort = replace(data.cohort, samples=kept, sealed=SealedLabels({}))
    return replace(data, cohort=cohort)


def run_trial(
    problem: SearchProblem, values: Mapping[str, Any], position: int, on_epoch: Callable[[int, float, int], None]
) -> list[float]:
    """Train with these values; the study's metric on val for every fold and seed.

    Args:
        on_epoch: called with epochs done, the monitored val metric and the number of epochs there are, of the first
            fold and seed; may raise to end the trial.

    Raises:
        TrialFailedError: the values can have no score.
    """
    recipe = put_values(problem.search.recipe, values)
    if not isinstance(recipe, PixelRecipe):
        return [score for partition in problem.rounds for score in _score_heads(problem, recipe, partition)]
    num_epochs = sum(stage.epochs for stage in stages_of(recipe))
    states = problem.folder / "training"
    name = f"{position}-{fingerprint(recipe.model_dump(mode='json'))[:12]}"
    for other in states.glob(f"{position}-*"):
        if other.name != name:  # of a trial that died, at whose position other values are tried now
            shutil.rmtree(other)
    scores = []
    for number, partition in enumerate(problem.rounds):
        for seed in problem.seeds:
            is_first = number == 0 and seed == problem.seeds[0]
            report: OnEpoch | None = (lambda epoch, score: on_epoch(epoch, score, num_epochs)) if is_first else None
            state_dir = states / name / f"round{number}-seed{seed}"
            scores.append(_score_training(problem, recipe, partition, seed, state_dir, report))
    return scores


def remove_training_states(folder: Path, position: int) -> None:
    """What a trial that has ended needs no more."""
    for state in (folder / "training").glob(f"{position}-*"):
        shutil.rmtree(state)


def _score_heads(problem: SearchProblem, recipe: FeatureRecipe, partition: Partition) -> list[float]:
    config = problem.config
    train, val = (_features(problem, partition, split) for split in ("train", "val"))
    try:
        fitted = _fit_heads(problem, recipe, train, val)
    except UserError as error:  # all diverged: what else could be wrong was checked beforehand
        raise TrialFailedError(str(error)) from error
    ids = problem.features.samples["sample_id"].to_numpy(np.str_)[partition.rows("val")]
    scores = []
    for one in fitted:
        predicted = None
        if one.diverged_epoch is None:
            logits_NC = logits_of(one, val)
            predicted = Predictions(ids, val.patient_id_N, val.y_N, logits_NC, config.data.classes, task=val.task)
        scores.append(_number(score_on_val(predicted, config.metric, config.data.aggregate)))
    return scores


def _fit_heads(problem: SearchProblem, recipe: FeatureRecipe, train: FeatureSet, val: FeatureSet) -> Sequence[Fitted]:
    num_classes, device = len(problem.config.data.classes), problem.runtime.device
    match recipe:
        case AttentiveProbe():
            members, settings = grid_members(recipe, problem.seeds), probe_settings(recipe)
            shape = attention_shape(recipe, train, num_classes)
            return fit_attentive_grid(train, val, members, shape, settings, device=device)
        case LinearProbe() | MlpProbe():
            members, settings = grid_members(recipe, problem.seeds), probe_settings(recipe)
            return fit_probe_grid(train, val, members, settings, num_classes=num_classes, device=device)
        case LogisticRegression(C=Cs, class_weights=class_weights):
            return fit_logistic_sweep(train, val, Cs, num_classes=num_classes, class_weights=class_weights)
        case Knn(k=ks, distance=distance):
            return fit_knn_sweep(train, val, ks, num_classes=num_classes, metric=distance)
    assert_never(recipe)


def _score_training(
    problem: SearchProblem,
    recipe: PixelRecipe,
    partition: Partition,
    seed: int,
    state_dir: Path,
    on_epoch: OnEpoch | None,
) -> float:
    config, runtime = problem.config, problem.runtime
    model = make_model(config, problem.opened, recipe, seed)
    run = _pixel_run(problem)
    train, val = (pixel_set(run, problem.opened, partition, split, None) for split in ("train", "val"))
    try:
        fitted = fit_pixels(
            model,
            train,
            val,
            stages_of(recipe),
            fit_settings(recipe),
            seed=seed,
            num_classes=len(config.data.classes),
            metric=recipe.monitor or config.metric,
            state_dir=state_dir,
            device=runtime.device,
            precision=runtime.precision,
            workers=runtime.pixel_workers,
            on_epoch=on_epoch,
        )
    except RunError as error:
        raise TrialFailedError(str(error)) from error
    if recipe.monitor in (None, config.metric):
        return fitted.best_score
    logits_NC = predict_pixels(
        model,
        val,
        batch_size=recipe.batch_size,
        device=runtime.device,
        precision=runtime.precision,
        workers=runtime.pixel_workers,
    )
    ids = problem.features.samples["sample_id"].to_numpy(np.str_)[partition.rows("val")]
    predicted = Predictions(ids, val.patient_id_N, val.y_N, logits_NC, config.data.classes, task=val.task)
    return _number(score_on_val(predicted, config.metric, config.data.aggregate))


def _pixel_run(problem: SearchProblem) -> PixelRun:
    encoders = {problem.opened.name: problem.opened}
    directory = RunDirectory(problem.folder)
    return PixelRun(problem.config, problem.runtime, directory, encoders, problem.features, Console(quiet=True))


def _number(score: float | Undefined) -> float:
    if isinstance(score, Undefined):
        raise TrialFailedError(score.reason)
    return score


def _features(problem: SearchProblem, partition: Partition, split: str) -> FeatureSet:
    samples, aggregate = problem.features.samples, problem.config.data.aggregate
    if problem.search.is_on_pixels:  # labels and owners alone
        return feature_set(partition, split, samples, np.zeros((len(samples), 1), np.float32), aggregate)
    kept = problem.features.tokens if is_on_tokens(problem.search.recipe) else problem.features.features
    return feature_set(partition, split, samples, kept[problem.opened.name], aggregate)


def _rounds(search: Search, data: OpenedData, features: StudyFeatures) -> tuple[Partition, ...]:
    usable = features.samples
    y_N = usable["y"].to_numpy(np.int64)
    num_folds = search.settings.cross_validate
    if num_folds is None:
        return (Partition(fold=None, cohort=data.cohort, split_N=usable["split"].to_numpy(np.str_), y_N=y_N),)
    # drawn over all of train and val, so that a quarantined file moves nobody
    fold_of = assign_val_folds(data.cohort.samples, data.cohort.classes, num_folds, search.settings.seed)
    fold_N = usable["patient_id"].map(fold_of).to_numpy()
    return tuple(
        Partition(fold=fold, cohort=data.cohort, split_N=np.where(fold_N == fold, "val", "train"), y_N=y_N)
        for fold in range(num_folds)
    )


def assign_val_folds(samples: pd.DataFrame, classes: Sequence[str], num_folds: int, seed: int) -> dict[str, int]:
    """Patient → the fold in which he is val, with the classes' shares kept.

    Raises:
        SampleError: a class has fewer patients than there are folds.
    """
    from sklearn.model_selection import StratifiedKFold

    y_P = samples.groupby("patient_id")["y"].max()
    counts = y_P.value_counts()
    small = [name for index, name in enumerate(classes) if counts.get(index, 0) < num_folds]
    if small:
        raise SampleError(
            f"search.cross_validate: {num_folds} folds need as many patients of every class in train and val; too few "
            f"of {', '.join(map(repr, small))}."
        )
    splitter = StratifiedKFold(num_folds, shuffle=True, random_state=stream_seed(seed, "search folds") % 2**32)
    fold_of: dict[str, int] = {}
    for fold, (_, chosen) in enumerate(splitter.split(np.zeros(len(y_P)), y_P.to_numpy())):
        fold_of |= dict.fromkeys(y_P.index[chosen].tolist(), fold)
    return fold_of


def _check_rounds(problem: SearchProblem) -> None:
    """After quarantine, what the first trial would stumble over.

    Raises:
        SampleError, ConfigError: a class is gone from a fold, or k is more than there are samples.
    """
    search = problem.search
    num_classes = len(problem.config.data.classes)
    for partition in problem.rounds:
        where = "" if partition.fold is None else f"fold {partition.fold}: "
        train, val = (_features(problem, partition, split) for split in ("train", "val"))
        try:
            check_feature_sets(train, val, num_classes)
        except SampleError as error:
            raise SampleError(f"{where}{error}") from error
        if isinstance(search.recipe, Knn):
            ends = search.space["k"].ends if "k" in search.space else search.recipe.k
            if max(ends) > len(train.y_N):
                raise ConfigError(
                    f"search.space.k: {where}{len(train.y_N)} training samples have no {max(ends)} neighbours; "
                    "lower its end."
                )


def _check_modality(config: StudyConfig, search: Search, data: OpenedData) -> None:
    """Augmentation that could have no effect on such data, whatever its value."""
    for recipe in [search.recipe, *_ends(search)]:
        check_pixel_recipes(config.model_copy(update={"recipes": {search.recipe_name: recipe}}), data.modality)


def _check_models(config: StudyConfig, search: Search, opened: OpenedEncoder) -> None:
    """Targets that do not exist, more blocks than there are: for the recipe and every choice of such keys."""
    problems = []
    for recipe in _ends(search, *_BUILT) or [search.recipe]:
        assert isinstance(recipe, PixelRecipe)
        try:
            model = make_model(config, opened, recipe, config.seeds[0])
            for stage in stages_of(recipe):
                if isinstance(stage.unfreeze, int):
                    set_trainable(model, stage.unfreeze)
        except UserError as error:
            problems.append(f"recipes.{search.recipe_name} with encoders.{opened.name}: {error}")
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))


def _ends(search: Search, *keys: str) -> list[Any]:
    """The recipe with each end of each axis (of these keys)."""
    return [
        put_values(search.recipe, {key: end})
        for key, axis in search.space.items()
        if not keys or key in keys
        for end in axis.ends
    ]
