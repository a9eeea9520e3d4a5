"""Training on pixels or voxels in stages, each from the best weights of the one before, with Lightning's Trainer.

The same call continues an interrupted training from what it finds in `state_dir`, and ends with the same weights, bit
by bit, as an undisturbed one on the same machine.

Axes: N row, C class.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console

from vitreous.core.errors import RunError
from vitreous.core.files import remove_partial_files
from vitreous.core.finding import Finding
from vitreous.core.fingerprints import fingerprint, hash_bytes
from vitreous.core.progress import progress_bar
from vitreous.recipes.feature_set import check_feature_sets, class_weights_of
from vitreous.recipes.interrupts import deferred_interrupts
from vitreous.recipes.pixel_checkpoints import (
    Snapshot,
    TrainingState,
    copy_to_cpu,
    load_tensors,
    model_tensors,
    read_state,
)
from vitreous.recipes.pixel_model import PixelModel
from vitreous.recipes.pixel_prediction import predict_pixels
from vitreous.recipes.pixel_sampling import row_weights
from vitreous.recipes.pixel_settings import FitSettings, FittedPixels, PixelSet, Precision, StageSettings
from vitreous.recipes.pixel_stage import Fit, OnEpoch, PixelStage
from vitreous.recipes.prefix_cache import has_room, kept_dtype, prefix_bytes
from vitreous.recipes.trainable import set_trainable
from vitreous.recipes.training_masks import TrainingMasks

__all__ = ["FitSettings", "FittedPixels", "PixelSet", "StageSettings", "fit_pixels", "predict_pixels"]

_TRAINING_VERSION = 1  # raised when a change of this code changes its numbers
_MEMORY_MESSAGES = ("out of memory", "not enough memory", "can't allocate memory", "killed by signal: killed")


def fit_pixels(
    model: PixelModel,
    train: PixelSet,
    val: PixelSet,
    stages: Sequence[StageSettings],
    settings: FitSettings,
    *,
    seed: int,
    num_classes: int,
    metric: str,
    state_dir: Path,
    device: str,
    precision: Precision,
    workers: int,
    on_epoch: OnEpoch | None = None,
    console: Console | None = None,
) -> FittedPixels:
    """Train, choose the best epoch on val, and leave its weights in the model, on the CPU and in eval mode.

    Args:
        model: with its first weights (an interrupted training is given the same again); adapters, if any, added.
        train, val: no participant in both; every class in each, or of each label rows with it and without it.
        stages: at least one. The best epoch of all stages is kept, the earlier one on a tie.
        metric: of `evidence.scores`, per participant.
        state_dir: of this training alone; what it holds afterwards is needed only to answer the same call again.
        device: cpu, cuda, cuda:<n> or mps.
        precision: fp32 is the model's own; bf16 computes matrix products in it.
        workers: processes that read and augment; their number changes nothing.
        on_epoch: called after each validated epoch, those before an interruption included, with the number of epochs so
            far (of all stages) and the val metric. What it raises ends the training, whose state is written.
        console: for progress; share it with bars that are shown around this one. None is the error stream.

    Raises:
        SampleError: labels, classes or participants that do not allow training.
        ConfigError: settings that cannot go together.
        StudyMismatchError: `state_dir` holds another training.
        RunError: the loss or a logit is not finite, or memory does not suffice.
        KeyboardInterrupt: SIGINT or SIGTERM arrived, unless its handler raises something else. The state is written.
    """
    if not stages:
        raise ValueError("a training needs at least one stage.")
    labels = train.labels
    check_feature_sets(labels, val.labels, num_classes)
    weights_C = class_weights_of(labels, settings.class_weights, num_classes)
    is_of_labels = train.task == "multi_label"
    # of labels the weights stand in the loss itself: a row may have one label and lack another
    class_weight_C = None if is_of_labels else weights_C
    state_dir.mkdir(parents=True, exist_ok=True)
    remove_partial_files(state_dir)
    made_by = _fingerprint(model, train, val, stages, settings, seed, num_classes, metric, precision)
    state = read_state(state_dir, made_by) or TrainingState()
    with deferred_interrupts() as interrupts, _own_chance(device), _memory_advice(model, stages, settings, precision):
        fit = Fit(
            model=model,
            train=train,
            val=val,
            settings=settings,
            labels=labels,
            weight_N=row_weights(settings.sampler, train.weight_N, class_weight_C, train.y_N),
            val_weight_N=row_weights("natural", val.weight_N, class_weight_C, val.y_N),
            positive_C=torch.from_numpy(weights_C) if is_of_labels else None,
            masks=None if settings.segmentation is None else TrainingMasks(train, val, settings.segmentation),
            num_classes=num_classes,
            metric=metric,
            seed=seed,
            device=device,
            precision=precision,
            workers=workers,
            state_dir=state_dir,
            fingerprint=made_by,
            interrupts=interrupts,
            on_epoch=on_epoch,
        )
        return _run_stages(fit, stages, state, console)


def _run_stages(
    fit: Fit, stages: Sequence[StageSettings], state: TrainingState, console: Console | None
) -> FittedPixels:
    model = fit.model
    trained = _trained_by_stage(model, stages)
    # an earlier stage may win, and later ones then have changed what it had not trained yet
    trained_later = set(trained[-1]) - set(trained[0])
    first_weights = copy_to_cpu(model_tensors(model, trained_later)) if len(stages) > 1 else {}
    if state.weights is not None:
        load_tensors(model, state.weights)
    if fit.on_epoch is not None:
        for number, row in enumerate(state.history, start=1):
            fit.on_epoch(number, row[f"val_{fit.metric}"])
    while True:
        _unfreeze(model, stages[state.stage])
        if len(state.is_cached) == state.stage:
            state.is_cached.append(_keeps_prefix(fit))
        stage = PixelStage(fit, stages[state.stage], state, trained[state.stage])
        _run_stage(stage, len(stages), console)
        if state.stage == len(stages) - 1:
            break
        _begin_next_stage(model, state)
    best, champion = _best(state), state.champion
    winner = champion if champion is not None and champion.score >= best.score else best
    model.to("cpu")
    load_tensors(model, first_weights | winner.weights)
    model.eval()
    return FittedPixels(
        history=state.history,
        best_epoch=winner.epoch,
        best_score=winner.score,
        num_epochs=len(state.history),
        stage=winner.stage + 1,
        findings=tuple(_find_uncached(fit, stages, state)),
    )


def _run_stage(stage: PixelStage, num_stages: int, console: Console | None) -> None:
    from vitreous.recipes.pixel_module import run_stage

    if not stage.is_over:
        number = f", stage {stage.state.stage + 1} of {num_stages}" if num_stages > 1 else ""
        try:
            if stage.inputs.num_prefix_batches:
                title = f"Computing the frozen blocks{number}"
                with progress_bar(title, stage.inputs.num_prefix_batches, console) as advance:
                    stage.fit.model.to(stage.fit.device)
                    stage.inputs.keep_prefixes(advance)
            left = (stage.stage.epochs - stage.state.epoch) * stage.num_batches - len(stage.state.losses)
            with progress_bar(f"Training{number}", left, console) as advance:
                run_stage(stage, advance)
        finally:
            stage.inputs.close()
    stage.inputs.remove_prefixes()


def _begin_next_stage(model: PixelModel, state: TrainingState) -> None:
    """From the best weights of the stage that is over."""
    best = _best(state)
    if state.champion is None or best.score > state.champion.score:
        state.champion = best
    model.to("cpu")
    load_tensors(model, best.weights)
    state.stage, state.epoch, state.best = state.stage + 1, 0, None
    state.weights = state.ema = state.optimizer = None


def _best(state: TrainingState) -> Snapshot:
    if state.best is None:
        raise RunError("a stage ended without a validated epoch; please report this.")
    return state.best


def _unfreeze(model: PixelModel, stage: StageSettings) -> None:
    if stage.unfreeze is not None and stage.unfreeze != "adapters":
        set_trainable(model, stage.unfreeze)


def _trained_by_stage(model: PixelModel, stages: Sequence[StageSettings]) -> list[list[str]]:
    """Per stage, the names of the parameters that train in it or before it."""
    so_far: dict[str, None] = {}
    by_stage = []
    for stage in stages:
        _unfreeze(model, stage)
        so_far |= {name: None for name, parameter in model.named_parameters() if parameter.requires_grad}
        by_stage.append(list(so_far))
    return by_stage


def _keeps_prefix(fit: Fit) -> bool:
    views = fit.settings.num_views
    if not views or not fit.model.first_trainable_block:
        return False
    fit.model.to(fit.device)
    rows = len(fit.train) * views + len(fit.val)
    return has_room(fit.state_dir, prefix_bytes(fit.model, rows, 1, kept_dtype(fit.model, fit.precision)))


def _find_uncached(fit: Fit, stages: Sequence[StageSettings], state: TrainingState) -> Iterator[Finding]:
    if not fit.settings.num_views:
        return
    for number, (stage, is_cached) in enumerate(zip(stages, state.is_cached, strict=True), start=1):
        _unfreeze(fit.model, stage)
        if fit.model.first_trainable_block and not is_cached:
            yield Finding(
                "prefix_not_kept",
                "info",
                f"The frozen blocks of stage {number} were run again in every epoch: the disk has no room for their "
                "outcome. The result is the same.",
                f"state directory {fit.state_dir}",
                "Make room, or set prefix_views: 0.",
            )


def _fingerprint(
    model: PixelModel,
    train: PixelSet,
    val: PixelSet,
    stages: Sequence[StageSettings],
    settings: FitSettings,
    seed: int,
    num_classes: int,
    metric: str,
    precision: Precision,
) -> str:
    """Of what decides the result; of the inputs themselves only the encoder's spec."""
    rows = [
        [
            data.y_N.tolist(),
            data.patient_id_N.tolist(),
            data.weight_N.tolist(),
            data.aggregate,
            data.task,
            data.spec.model_dump(mode="json"),
        ]
        for data in (train, val)
    ]
    head = [hash_bytes(tensor.detach().cpu().double().numpy().tobytes()) for tensor in model.head.state_dict().values()]
    return fingerprint(
        {
            "version": _TRAINING_VERSION,
            "encoder": model.encoder.weights_hash,
            "pooling": [model.pooling, model.coarse_grid],
            "head": head,
            "parameters": [[name, list(p.shape), str(p.dtype)] for name, p in model.named_parameters()],
            "rows": rows,
            "stages": [asdict(stage) for stage in stages],
            "settings": asdict(settings),
            "seed": seed,
            "num_classes": num_classes,
            "metric": metric,
            "precision": precision,
        }
    )


@contextmanager
def _own_chance(device: str) -> Iterator[None]:
    """The global generators are as before when the training has ended."""
    place = torch.device(device)
    devices = [place.index if place.index is not None else torch.cuda.current_device()] if place.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield


@contextmanager
def _memory_advice(
    model: PixelModel, stages: Sequence[StageSettings], settings: FitSettings, precision: Precision
) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(part in str(error).lower() for part in _MEMORY_MESSAGES):
            raise
        sizes = sorted({stage.batch_size for stage in stages})
        advice = [
            f"lower batch_size (now {', '.join(map(str, sizes))}) and raise accumulate (now {settings.accumulate}) by "
            "the same factor, which trains the same"
        ]
        if not model.gradient_checkpointing:
            advice.append("set gradient_checkpointing: true (now false)")
        if precision == "fp32":
            advice.append("set precision: bf16 (now fp32)")
        size = "x".join(str(side) for side in model.encoder.spec.size_DHW)
        advice.append(f"take a smaller input (now {size}) where the encoder allows it")
        raise RunError(f"memory does not suffice for this training; {'; '.join(advice)}. ({error})") from error
