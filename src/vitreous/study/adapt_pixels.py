"""Recipes on pixels: train, keep what training changed, and predict val and test with what was kept.

Test inputs are predicted here without labels; those are opened once, after every choice.

Axes: N row, C class.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from rich.console import Console

from vitreous.config.losses import Asymmetric, CrossEntropy, Focal, Ordinal
from vitreous.config.pixel_recipes import FromScratch, Lora, Partial, PixelRecipe, Staged
from vitreous.config.study import StudyConfig
from vitreous.core.errors import ConfigError, RunError, UserError
from vitreous.core.files import replacing, write_json
from vitreous.core.finding import Finding
from vitreous.core.fingerprints import fingerprint
from vitreous.core.input_spec import ClipSpec, Modality
from vitreous.core.predictions import Predictions
from vitreous.core.streams import stream_seed
from vitreous.encoders.catalog import build_random_encoder
from vitreous.encoders.encoder import Encoder
from vitreous.evidence.task_scores import with_chosen_thresholds
from vitreous.features.pixel_store import PixelStore
from vitreous.inputs.augmentation import AugmentSettings, check_augment
from vitreous.inputs.masks import IGNORE_INDEX
from vitreous.recipes.lora import add_adapters
from vitreous.recipes.pixel_artefacts import (
    build_pixel_model,
    pixel_model_config,
    restore_pixel_model,
    save_pixel_model,
)
from vitreous.recipes.pixel_model import PixelModel
from vitreous.recipes.pixel_prediction import predict_pixels
from vitreous.recipes.pixel_settings import FitSettings, FittedPixels, PixelSet, StageSettings
from vitreous.recipes.pixel_training import fit_pixels
from vitreous.recipes.segmentation import SegmentationSettings
from vitreous.recipes.trainable import count_parameters, set_trainable
from vitreous.recipes.training_masks import predicted_classes
from vitreous.study.data import open_cache, s3_options
from vitreous.study.encode import StudyFeatures
from vitreous.study.encoders import OpenedEncoder, load_source
from vitreous.study.heads import Head, is_finished, read_history, read_model, write_head
from vitreous.study.partitions import Partition
from vitreous.study.row import Row
from vitreous.study.run_directory import RunDirectory
from vitreous.study.runtime import Runtime
from vitreous.study.segmentation import write_test_maps

# what decides a trained model besides its settings; raised when training on pixels changes its numbers
PIXEL_TRAINING_VERSION = 1
_TRAINING_STATE = "training"


LoadMask = Callable[[str, ClipSpec, tuple[int, int]], torch.Tensor | None]


@dataclass(frozen=True)
class PixelRun:
    """What every training of a run needs besides its row.

    Args:
        load_mask: the class map of a sample, by its relative path, as the encoder of a spec sees it; None where the
            study has no masks.
    """

    config: StudyConfig
    runtime: Runtime
    directory: RunDirectory
    encoders: Mapping[str, OpenedEncoder]
    features: StudyFeatures
    console: Console
    load_mask: LoadMask | None = None

    def read_mask(self, encoder: str, relative: str, size: tuple[int, int]) -> npt.NDArray[np.uint8] | None:
        """The class map of a sample over the picture that this encoder sees; None where it has none."""
        spec = self.encoders[encoder].encoder.spec
        if self.load_mask is None or not isinstance(spec, ClipSpec):
            raise RunError("a recipe with segmentation has no masks; please report this with the study file.")
        mask_HW = self.load_mask(relative, spec, size)
        return None if mask_HW is None else mask_HW.numpy().astype(np.uint8)


def adapt_on_pixels(
    run: PixelRun, row: Row, recipe: PixelRecipe, partition: Partition, about: Mapping[str, Any]
) -> None:
    """Train one row for each of its seeds, as far as that is not done.

    Args:
        about: what ``model.json`` says of the encoder.
    """
    folders = {seed: run.directory.unit(row.encoder, row.recipe_name, seed, partition.fold) for seed in row.seeds}
    units = {seed: _unit(run, row, recipe, partition, about, seed) for seed in row.seeds}
    for seed, folder in folders.items():
        if not is_finished(folder, units[seed]):
            _train(run, row, recipe, partition, seed, folder, unit=units[seed], about=about)
    _write_selection(folders, recipe)


def _unit(
    run: PixelRun, row: Row, recipe: PixelRecipe, partition: Partition, about: Mapping[str, Any], seed: int
) -> str:
    """Fingerprint of all that decides the trained model."""
    seen = partition.split_N != "test"
    return fingerprint(
        {
            "version": PIXEL_TRAINING_VERSION,
            "model": dict(about),
            "recipe": recipe.model_dump(mode="json"),
            "seed": seed,
            "metric": recipe.monitor or run.config.metric,
            "precision": run.runtime.precision,
            "files": list(run.features.file_ids),
            "split": partition.split_N.tolist(),
            "y": partition.y_N[seen].tolist(),
        }
    )


def _train(
    run: PixelRun,
    row: Row,
    recipe: PixelRecipe,
    partition: Partition,
    seed: int,
    folder: Path,
    *,
    unit: str,
    about: Mapping[str, Any],
) -> None:
    opened, config, runtime = run.encoders[row.encoder], run.config, run.runtime
    model = make_model(config, opened, recipe, seed)
    stages = stages_of(recipe)
    for stage in stages:  # the last stage decides what is printed: it trains most
        if isinstance(stage.unfreeze, int) or stage.unfreeze == "all":
            set_trainable(model, stage.unfreeze)
    counted = count_parameters(model)
    fold = "" if partition.fold is None else f", fold {partition.fold}"
    run.console.print(
        f"{row.encoder} / {row.recipe_name}, seed {seed}{fold}: {counted.trainable:,} of {counted.total:,} parameters "
        f"train ({counted.trainable / counted.total:.2%})."
    )
    segmentation = segmentation_settings(config, recipe)
    train, val = (pixel_set(run, opened, partition, split, segmentation) for split in ("train", "val"))
    test = pixel_set(run, opened, partition, "test", None)  # its masks are labels, and stay unread
    state_dir = folder / _TRAINING_STATE
    fitted = fit_pixels(
        model,
        train,
        val,
        stages,
        fit_settings(recipe, segmentation),
        seed=seed,
        num_classes=len(config.data.classes),
        metric=recipe.monitor or config.metric,
        state_dir=state_dir,
        device=runtime.device,
        precision=runtime.precision,
        workers=runtime.pixel_workers,
        console=run.console,
    )
    save_pixel_model(model, folder)
    # what is scored is what was kept, read back
    kept = build_pixel_model(pixel_model_config(model), _trainable_encoder(config, opened, recipe, seed))
    restore_pixel_model(kept, folder)
    predict = partial(
        predict_pixels,
        kept,
        batch_size=recipe.batch_size,
        device=runtime.device,
        precision=runtime.precision,
        workers=runtime.pixel_workers,
    )
    ids = run.features.samples["sample_id"].to_numpy(np.str_)
    val_preds = Predictions(
        ids[partition.rows("val")],
        val.patient_id_N,
        val.y_N,
        predict(val),
        tuple(config.data.classes),
        task=config.data.task,
    )
    val_preds = with_chosen_thresholds(val_preds, val_preds.scored(config.data.aggregate))
    maps: list[npt.NDArray[np.uint8]] = []
    on_maps = None if segmentation is None else lambda maps_BKHW: maps.append(predicted_classes(maps_BKHW))
    test_logits_NC = predict(test, on_maps=on_maps)
    if maps:
        write_test_maps(folder, np.concatenate(maps))
    head = Head(
        seed=seed,
        setting={},
        write_weights=lambda _: None,  # written above: what is scored was read from there
        history=fitted.history,
        best_epoch=fitted.best_epoch,
        val_score=fitted.best_score,
        val=val_preds,
        test_logits=(ids[partition.rows("test")], test_logits_NC),
    )
    model_facts = {
        **about,
        "pixel_model": pixel_model_config(model),
        "from_scratch": isinstance(recipe, FromScratch),
        "parameters": {"trainable": _count_trained(model, stages[fitted.stage - 1]), "total": counted.total},
        "stage": fitted.stage,
        "num_epochs": fitted.num_epochs,
        "findings": [vars(finding) for finding in [*fitted.findings, *_find_unfinished(fitted, stages)]],
    }
    write_head(folder, head, unit=unit, model=model_facts, recipe=recipe.model_dump(mode="json"))
    shutil.rmtree(state_dir, ignore_errors=True)


def predict_row(
    config: StudyConfig,
    runtime: Runtime,
    opened: OpenedEncoder,
    recipe: PixelRecipe,
    seed: int,
    folder: Path,
    features: StudyFeatures,
) -> npt.NDArray[np.float64]:
    """Logits (N, C) of all samples of `features` by a trained model, read back from its folder.

    Args:
        config: of the run that trained it.
        features: with the prepared inputs of this encoder; of the run's cohort or of another.
    """
    return predict_samples(read_pixel_model(config, opened, recipe, seed, folder), runtime, opened, recipe, features)


def read_pixel_model(
    config: StudyConfig, opened: OpenedEncoder, recipe: PixelRecipe, seed: int, folder: Path
) -> PixelModel:
    """A trained model, read back from its folder.

    Args:
        config: says where remote checkpoints are kept.
    """
    model = build_pixel_model(read_model(folder)["pixel_model"], _trainable_encoder(config, opened, recipe, seed))
    restore_pixel_model(model, folder)
    return model


def predict_samples(
    model: PixelModel, runtime: Runtime, opened: OpenedEncoder, recipe: PixelRecipe, features: StudyFeatures
) -> npt.NDArray[np.float64]:
    """Logits (N, C) of all samples of `features`, which holds the prepared inputs of this encoder."""
    samples = features.samples
    data = PixelSet(
        partial(_read, features.pixels[opened.name], features.file_ids),
        np.zeros(len(samples), np.int64),  # labels take no part
        samples["patient_id"].to_numpy(np.str_),
        samples["weight"].to_numpy(np.float64),
        opened.encoder.spec,
    )
    return predict_pixels(
        model,
        data,
        batch_size=recipe.batch_size,
        device=runtime.device,
        precision=runtime.precision,
        workers=runtime.pixel_workers,
    )


def make_model(config: StudyConfig, opened: OpenedEncoder, recipe: PixelRecipe, seed: int) -> PixelModel:
    """Encoder, pooling and head as training begins; adapters included.

    Raises:
        UserError: the recipe does not fit the encoder: a target that does not exist, more blocks than there are.
    """
    model = PixelModel(
        _trainable_encoder(config, opened, recipe, seed),
        pooling=config.features.vector_pooling,
        coarse_grid=config.features.grid,
        num_classes=len(config.data.classes),
        head=recipe.head,
        head_width=recipe.head_width,
        dropout=recipe.dropout,
        seed=seed,
        gradient_checkpointing=recipe.gradient_checkpointing,
        segmentation=segmentation_settings(config, recipe),
    )
    if isinstance(recipe, Lora):
        add_adapters(
            model,
            rank=recipe.rank,
            alpha=recipe.alpha,
            dropout=recipe.adapter_dropout,
            targets=recipe.targets,
            layers=recipe.layers,
            rslora=recipe.rslora,
            dora=recipe.dora,
            seed=seed,
        )
    return model


def _trainable_encoder(config: StudyConfig, opened: OpenedEncoder, recipe: PixelRecipe, seed: int) -> Encoder:
    if isinstance(recipe, FromScratch):
        return build_random_encoder(
            opened.encoder.family,
            architecture=opened.encoder.architecture,
            seed=stream_seed(seed, "from scratch"),
            spec=opened.encoder.spec,
            modality=opened.encoder.modality,
            trainable=True,
        )
    return load_source(opened.source, s3_options(config), open_cache(config), trainable=True)


def pixel_set(
    run: PixelRun, opened: OpenedEncoder, partition: Partition, split: str, segmentation: SegmentationSettings | None
) -> PixelSet:
    """The rows of one split with their kept inputs, and with masks where the recipe segments."""
    rows = partition.rows(split)
    samples = run.features.samples
    return PixelSet(
        partial(_read, run.features.pixels[opened.name], [run.features.file_ids[row] for row in rows]),
        partition.y_N[rows],
        samples["patient_id"].to_numpy(np.str_)[rows],
        samples["weight"].to_numpy(np.float64)[rows],
        opened.encoder.spec,
        run.config.data.aggregate,
        run.config.data.task,
        None
        if segmentation is None
        else partial(_read_mask, run, opened.name, samples["relative"].tolist(), rows, segmentation.size),
    )


def _read_mask(
    run: PixelRun,
    encoder: str,
    relatives: Sequence[str],
    rows: npt.NDArray[np.int64],
    size: tuple[int, int],
    row: int,
) -> npt.NDArray[np.uint8] | None:
    return run.read_mask(encoder, relatives[rows[row]], size)


def _read(store: PixelStore, file_ids: Sequence[str], row: int) -> Any:
    return store.read(file_ids[row])


def fit_settings(recipe: PixelRecipe, segmentation: SegmentationSettings | None = None) -> FitSettings:
    """The recipe's settings of every stage, as training takes them.

    Args:
        segmentation: of :func:`segmentation_settings`.
    """
    loss: dict[str, Any]
    match recipe.loss:
        case CrossEntropy(label_smoothing=smoothing):
            loss = {"loss": "cross_entropy", "label_smoothing": smoothing}
        case Focal(gamma=gamma):
            loss = {"loss": "focal", "focal_gamma": gamma}
        case Ordinal(weight=weight):
            loss = {"loss": "ordinal", "ordinal_weight": weight}
        case Asymmetric(gamma_positive=positive, gamma_negative=negative, clip=clip):
            loss = {"loss": "asymmetric", "gamma_positive": positive, "gamma_negative": negative, "negative_clip": clip}
    return FitSettings(
        **loss,
        class_weights=recipe.class_weights,
        sampler=recipe.sampler,
        layer_decay=recipe.layer_decay,
        weight_decay=recipe.weight_decay,
        warmup_epochs=recipe.warmup_epochs,
        schedule=recipe.schedule,
        accumulate=recipe.accumulate,
        clip_norm=recipe.clip_norm,
        min_delta=recipe.min_delta,
        ema=recipe.ema,
        augment=augment_settings(recipe),
        mixup=recipe.mixup,
        cutmix=recipe.cutmix,
        prefix_views=recipe.prefix_views,
        segmentation=segmentation,
    )


def segmentation_settings(config: StudyConfig, recipe: PixelRecipe) -> SegmentationSettings | None:
    """What the recipe segments: the classes of the study's masks."""
    masks = getattr(config.data, "masks", None)
    if recipe.segmentation is None or masks is None:
        return None
    return SegmentationSettings(
        num_classes=len(masks.classes),
        size=recipe.segmentation.size,
        weight=recipe.segmentation.weight,
        class_weights=recipe.segmentation.class_weights,
        ignore_index=IGNORE_INDEX,
    )


def augment_settings(recipe: PixelRecipe) -> AugmentSettings:
    """The recipe's augmentation, as it is applied."""
    return AugmentSettings(**dict(recipe.augment))


def stages_of(recipe: PixelRecipe) -> list[StageSettings]:
    """One stage, or those of a staged recipe; what a stage leaves out is the recipe's."""
    whole = StageSettings(
        epochs=recipe.epochs,
        unfreeze="adapters" if isinstance(recipe, Lora) else recipe.blocks if isinstance(recipe, Partial) else "all",
        lr_head=recipe.lr_head,
        lr_encoder=recipe.lr_encoder,
        batch_size=recipe.batch_size,
        patience=recipe.patience,
    )
    if not isinstance(recipe, Staged):
        return [whole]
    return [
        StageSettings(
            epochs=stage.epochs,
            unfreeze=stage.unfreeze,
            lr_head=stage.lr_head or recipe.lr_head,
            lr_encoder=stage.lr_encoder or recipe.lr_encoder,
            batch_size=stage.batch_size or recipe.batch_size,
            patience=stage.patience or recipe.patience,
        )
        for stage in recipe.plan
    ]


def check_pixel_rows(config: StudyConfig, rows: Sequence[Row], encoders: Sequence[OpenedEncoder]) -> None:
    """Before anything is encoded: each recipe on pixels fits each encoder, adapters and all.

    Raises:
        ConfigError: with the problems of all rows: targets that do not exist, more blocks than there are.
    """
    by_name = {opened.name: opened for opened in encoders}
    problems = []
    for row in rows:
        if isinstance(row.recipe, PixelRecipe):
            try:
                model = make_model(config, by_name[row.encoder], row.recipe, row.seeds[0])
                for stage in stages_of(row.recipe):
                    if isinstance(stage.unfreeze, int):
                        set_trainable(model, stage.unfreeze)
            except UserError as error:
                problems.append(f"recipes.{row.recipe_name} with encoders.{row.encoder}: {error}")
    if problems:
        raise ConfigError(problems)


def check_pixel_recipes(config: StudyConfig, modality: Modality) -> None:
    """Before any encoder is read: options that could have no effect on such data.

    Raises:
        ConfigError: with all of them.
    """
    problems = [
        f"recipes.{name}.augment: {problem}"
        for name, recipe in config.recipes.items()
        if isinstance(recipe, PixelRecipe)
        for problem in check_augment(augment_settings(recipe), modality)
    ]
    if problems:
        raise ConfigError(problems)


def _count_trained(model: PixelModel, stage: StageSettings) -> int:
    """Parameters that trained in the stage whose weights were kept."""
    if isinstance(stage.unfreeze, int) or stage.unfreeze == "all":
        set_trainable(model, stage.unfreeze)
    return count_parameters(model).trainable


def _find_unfinished(fitted: FittedPixels, stages: Sequence[StageSettings]) -> list[Finding]:
    if fitted.stage != len(stages) or fitted.best_epoch < stages[-1].epochs or stages[-1].epochs < 2:
        return []
    return [
        Finding(
            "undertrained",
            "warning",
            "The last epoch is the best on val: more epochs may be better.",
            f"epoch {fitted.best_epoch} of {stages[-1].epochs}",
            "Raise epochs.",
        )
    ]


def _write_selection(folders: Mapping[int, Path], recipe: PixelRecipe) -> None:
    """``grid.csv`` and ``selection.json`` as for probes: one member per seed, nothing to choose but the epoch."""
    models = {seed: read_model(folder) for seed, folder in folders.items()}
    parent = next(iter(folders.values())).parent
    table = pd.DataFrame(
        [
            {
                "seed": seed,
                "best_epoch": model["best_epoch"],
                "num_epochs": len(read_history(folders[seed])),
                "val_score": model["val_score"],
                "chosen": True,
            }
            for seed, model in models.items()
        ]
    )
    with replacing(parent / "grid.csv") as aside:
        table.to_csv(aside, index=False)
    findings = {finding["code"]: finding for model in models.values() for finding in model["findings"]}
    write_json(
        parent / "selection.json",
        {
            "setting": {"kind": recipe.kind},  # type: ignore[attr-defined]
            "mean_val_score": float(np.mean([model["val_score"] for model in models.values()])),
            "num_settings": 1,
            "margin": None,
            "runner_up": None,
            "num_diverged": 0,
            "findings": list(findings.values()),
            "best_seed": max(models, key=lambda seed: (models[seed]["val_score"], -seed)),
        },
    )
