"""What recipes on pixels cost: counted operations of each stage, and what the frozen-prefix cache saves and needs."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from vitreous.config.pixel_recipes import PixelRecipe
from vitreous.config.study import StudyConfig
from vitreous.recipes.pixel_model import PixelModel
from vitreous.recipes.prefix_cache import kept_dtype, prefix_bytes
from vitreous.recipes.trainable import count_parameters, set_trainable
from vitreous.study.adapt_pixels import fit_settings, make_model, stages_of
from vitreous.study.cost import REACHED
from vitreous.study.encoders import OpenedEncoder
from vitreous.study.row import Row
from vitreous.study.runtime import Runtime

_BACKWARD = 2  # a backward pass costs two forward passes of what it goes through


@dataclass(frozen=True)
class PixelPlan:
    """One row of the study that trains on pixels.

    Args:
        num_runs: seeds times folds.
        trainable, total: parameters of the last stage.
        plain_flops: of one run without the frozen-prefix cache.
        flops: of one run as it would be done.
        prefix_bytes: that the cache needs on disk at most, 0 where nothing is kept.
        seconds: of all runs; estimated as for encoding.
    """

    encoder: str
    recipe: str
    kind: str
    num_runs: int
    epochs: int
    trainable: int
    total: int
    plain_flops: int
    flops: int
    prefix_bytes: int
    seconds: float


def plan_pixel_rows(
    config: StudyConfig,
    runtime: Runtime,
    rows: Sequence[Row],
    encoders: Sequence[OpenedEncoder],
    *,
    num_train: int,
    num_val: int,
    num_folds: int,
    matmul_flops: float,
) -> list[PixelPlan]:
    """Every row on pixels; early stopping is not foreseen."""
    by_name = {opened.name: opened for opened in encoders}
    plans = []
    for row in rows:
        if not isinstance(row.recipe, PixelRecipe):
            continue
        model = make_model(config, by_name[row.encoder], row.recipe, row.seeds[0])
        plain, cached, needed = _count_stages(model, row.recipe, runtime, num_train, num_val)
        num_runs = len(row.seeds) * num_folds
        counted = count_parameters(model)
        plans.append(
            PixelPlan(
                encoder=row.encoder,
                recipe=row.recipe_name,
                kind=str(row.recipe.model_dump()["kind"]),
                num_runs=num_runs,
                epochs=sum(stage.epochs for stage in stages_of(row.recipe)),
                trainable=counted.trainable,
                total=counted.total,
                plain_flops=plain,
                flops=cached,
                prefix_bytes=needed,
                seconds=num_runs * cached / (matmul_flops * REACHED[runtime.precision]),
            )
        )
    return plans


def _count_stages(
    model: PixelModel, recipe: PixelRecipe, runtime: Runtime, num_train: int, num_val: int
) -> tuple[int, int, int]:
    """Operations without and with the cache, and the bytes it needs at most."""
    views = fit_settings(recipe).num_views
    dtype = kept_dtype(model, runtime.precision)
    shadow = copy.deepcopy(model).to("meta")
    plain = cached = most = 0
    for stage in stages_of(recipe):
        if isinstance(stage.unfreeze, int) or stage.unfreeze == "all":
            set_trainable(model, stage.unfreeze)
            set_trainable(shadow, stage.unfreeze)
        first = shadow.first_trainable_block
        prefix, whole = _count_forward(shadow, first)
        trained = whole - prefix
        an_epoch = num_train * (1 + _BACKWARD) * trained + num_val * trained
        plain += stage.epochs * (an_epoch + (num_train + num_val) * prefix)
        if first == 0 or views == 0:
            cached += stage.epochs * (an_epoch + (num_train + num_val) * prefix)
            continue
        cached += stage.epochs * an_epoch + (views * num_train + num_val) * prefix
        needed = prefix_bytes(shadow, num_train, views, dtype) + prefix_bytes(shadow, num_val, 1, dtype)
        most = max(most, needed)
    return plain, cached, most


def _count_forward(shadow: PixelModel, block: int) -> tuple[int, int]:
    """Operations of one row up to `block`, and of the whole forward pass."""
    spec = shadow.encoder.spec
    x = torch.empty(1, spec.channels, *spec.size_DHW, device="meta")
    return (_count(lambda: shadow.run_prefix(x, block)) if block else 0), _count(lambda: shadow(x))


def _count(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return int(counter.get_total_flops())
