"""The state of a training on disk: one file, whole or not at all, that holds no code."""

import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitreous.core.errors import RunError, StudyMismatchError
from vitreous.core.files import replacing

SCHEMA_VERSION = 1
_NAME = "training.pt"

Tensors = dict[str, torch.Tensor]


@dataclass
class Snapshot:
    """Weights that were validated.

    Args:
        stage: from 0.
        epoch: of the stage, from 1.
        weights: on the CPU.
    """

    stage: int
    epoch: int
    score: float
    weights: Tensors


@dataclass
class TrainingState:
    """Where a training stands, between two optimiser steps.

    Args:
        stage: from 0.
        epoch: finished epochs of the stage.
        losses: of each batch done of the epoch that is under way: summed weighted losses of its rows.
        history: a row per finished epoch of all stages.
        weights: see :func:`model_tensors`; None before the first epoch of a stage.
        ema: running means of the weights.
        optimizer: the optimiser's state.
        best: of the stage.
        champion: the best of the stages before, where one of them is better than all after it.
        is_cached: per stage begun, whether the frozen prefix is kept.
    """

    stage: int = 0
    epoch: int = 0
    losses: list[float] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    weights: Tensors | None = None
    ema: Tensors | None = None
    optimizer: dict[str, Any] | None = None
    best: Snapshot | None = None
    champion: Snapshot | None = None
    is_cached: list[bool] = field(default_factory=list)


def model_tensors(model: nn.Module, names: Iterable[str]) -> Tensors:
    """The named parameters and every buffer that belongs to the model's state; not copied."""
    wanted, parameters = set(names), {name for name, _ in model.named_parameters()}
    return {
        name: tensor.detach() for name, tensor in model.state_dict().items() if name in wanted or name not in parameters
    }


def copy_to_cpu(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Copies that later training does not change."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


@torch.no_grad()
def load_tensors(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write `tensors` into the model, wherever it lies.

    Raises:
        KeyError: the model has no tensor of a name.
    """
    own = model.state_dict()
    for name, tensor in tensors.items():
        own[name].copy_(tensor)


def write_state(folder: Path, state: TrainingState, fingerprint: str) -> None:
    """Replace the state in `folder`; weights that are also the best ones are written once."""
    best = state.best
    is_best = best is not None and best.epoch == state.epoch and not state.losses and state.ema is None
    values = vars(state) | {
        "schema_version": SCHEMA_VERSION,
        "fingerprint": fingerprint,
        "weights": None if is_best else state.weights,
        "best": None if best is None else vars(best),
        "champion": None if state.champion is None else vars(state.champion),
    }
    with replacing(folder / _NAME) as aside:
        torch.save(values, aside)


def read_state(folder: Path, fingerprint: str) -> TrainingState | None:
    """The state in `folder`, tensors on the CPU; None where there is none.

    Raises:
        StudyMismatchError: it is of another training.
        RunError: the file cannot be read.
    """
    path = folder / _NAME
    if not path.exists():
        return None
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:  # a damaged archive, or one that holds code
        raise RunError(
            f"{path}: the interrupted training cannot be read ({type(error).__name__}); remove {folder} to start anew."
        ) from error
    if values.pop("schema_version") != SCHEMA_VERSION or values.pop("fingerprint") != fingerprint:
        raise StudyMismatchError(
            f"{path}: this is an interrupted training with other data, settings or code; remove {folder} to start anew."
        )
    for name in ("best", "champion"):
        values[name] = None if values[name] is None else Snapshot(**values[name])
    state = TrainingState(**values)
    if state.weights is None and state.best is not None:
        state.weights = state.best.weights
    return state
