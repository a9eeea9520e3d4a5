"""Which samples `vitreous explain` looks at, and what the encoder is given of each."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from vitreous.core.errors import InputError, StorageError, UserError
from vitreous.core.input_spec import AnySpec
from vitreous.core.label_sets import name_label_set
from vitreous.core.predictions import Predictions
from vitreous.features.encode import Request
from vitreous.inputs.prepare import Decoded, finish_input, prepare_input
from vitreous.inputs.volume import Volume
from vitreous.study.data import OpenedData, open_data
from vitreous.study.model_folder import ModelFolder
from vitreous.study.predict import find_for_model
from vitreous.study.predict_inputs import InputOptions

_SHOWN = 3  # suggestions


@dataclass(frozen=True)
class ChosenSample:
    """One sample to explain.

    Args:
        split: of the run, empty for new files.
        file_id: content identity of its file.
        request: what `OpenedData` takes.
    """

    sample_id: str
    split: str
    file_id: str
    request: Request


@dataclass(frozen=True)
class LoadedSample:
    """What the encoder is given, and what a figure shows of it.

    Args:
        x_BCDHW: one input, prepared and normalised.
        prepared_CDHW: before normalisation, where that is a step of its own (images), else the same.
        shape_DHW: of what was decoded.
        spacing_mm: of a volume, where it is known.
        is_oriented: whether the file is a NIfTI that says where it lies.
        path: of the staged file.
    """

    x_BCDHW: torch.Tensor
    prepared_CDHW: torch.Tensor
    shape_DHW: tuple[int, int, int]
    spacing_mm: tuple[float, float, float] | None
    is_oriented: bool
    path: Path


def open_explained_data(model: ModelFolder, inputs: Sequence[str]) -> OpenedData:
    """The run's data, or new files.

    Raises:
        UserError: a copy outside its run, and no files given.
    """
    if inputs:
        return find_for_model(model, inputs, InputOptions()).data
    if model.run is None:
        raise UserError(
            f"{model.path}: is a copy outside its run, which alone knows the samples; give files with --input PATH."
        )
    return open_data(model.config)


def choose_samples(
    model: ModelFolder, data: OpenedData, ids: Sequence[str], top: int | None, *, are_new: bool = False
) -> list[ChosenSample]:
    """The samples asked for, in the order of the cohort.

    Args:
        ids: as in the run's tables; of new files the paths below their common folder.
        top: this many of the most and of the least confident predictions on val.
        are_new: the data are new files, all of which are meant where no id is given.

    Raises:
        UserError: an id is unknown, or nothing is asked for.
    """
    samples = data.cohort.samples
    wanted = {*ids, *(() if top is None else _by_confidence(model, top))}
    if not wanted and not are_new:
        raise UserError("nothing to explain: give --samples ID …, or --top N for val samples by confidence.")
    known = samples["sample_id"].astype(str).tolist()
    if unknown := sorted(wanted - set(known)):
        near = difflib.get_close_matches(unknown[0], known, n=_SHOWN, cutoff=0.4)
        hint = f" Near are {', '.join(near)}." if near else ""
        verb = "is" if len(unknown) == 1 else "are"
        raise UserError(
            f"--samples: {', '.join(unknown)} {verb} not among the {len(known)} samples of {model.name}.{hint} Ids "
            "stand in manifest.parquet of the run."
        )
    has_split = model.config.folds is None and not are_new
    return [
        ChosenSample(
            sample_id,
            str(split) if has_split else "",
            str(data.file_ids[sample_id]),
            Request(str(data.file_ids[sample_id]), relative, int(item)),
        )
        for sample_id, split, relative, item in zip(
            known, samples["split"], samples["relative"], samples["item"], strict=True
        )
        if not wanted or sample_id in wanted
    ]


def _by_confidence(model: ModelFolder, top: int) -> list[str]:
    """Most and least confident val samples.

    By the probability of the predicted class; of labels by their mean distance from their thresholds.
    """
    path = model.path / "val_preds.parquet"
    if not path.is_file():
        raise UserError(f"--top: {path} does not exist, so that val samples cannot be ordered; give --samples.")
    val = Predictions.read(path, model.classes)
    if model.thresholds is None:
        confidence_N = val.probs_NC.max(axis=1)
    else:
        confidence_N = np.abs(val.probs_NC - np.array(model.thresholds)).mean(axis=1)
    order = np.argsort(-confidence_N, kind="stable")
    rows = dict.fromkeys([*order[:top].tolist(), *order[::-1][:top].tolist()])
    return [str(val.sample_id_N[row]) for row in rows]


def load_samples(
    data: OpenedData, chosen: Sequence[ChosenSample], spec: AnySpec
) -> Iterator[tuple[ChosenSample, LoadedSample | InputError | StorageError]]:
    """Each sample through decoding and preparing, one at a time, or why it cannot be used."""
    for sample, (_, path) in zip(chosen, data.stage([one.request for one in chosen]), strict=True):
        if isinstance(path, StorageError):
            yield sample, path
            continue
        try:
            decoded = data.load_input(sample.request, path)
            prepared_CDHW = prepare_input(decoded, spec)
            x_CDHW = finish_input(prepared_CDHW, spec)
        except InputError as error:
            yield sample, error
            continue
        yield sample, _loaded(decoded, x_CDHW[None], prepared_CDHW, path)


def _loaded(decoded: Decoded, x_BCDHW: torch.Tensor, prepared_CDHW: torch.Tensor, path: Path) -> LoadedSample:
    if not isinstance(decoded, Volume):
        _, depth, rows, columns = prepared_CDHW.shape
        return LoadedSample(x_BCDHW, prepared_CDHW, (depth, rows, columns), None, False, path)
    is_oriented = str(decoded.facts.get("format", "")).startswith("NIfTI") and decoded.facts["axes_source"] == "affine"
    depth, rows, columns = decoded.voxels_DHW.shape
    return LoadedSample(x_BCDHW, prepared_CDHW, (depth, rows, columns), decoded.spacing_mm, is_oriented, path)


def known_labels(model: ModelFolder) -> Mapping[str, str]:
    """Class, or set of labels, of each val sample; labels of test are not read here."""
    path = model.path / "val_preds.parquet"
    if not path.is_file():
        return {}
    val = Predictions.read(path, model.classes)
    return {
        str(sample_id): name_label_set(int(y), model.classes, val.task)
        for sample_id, y in zip(val.sample_id_N, val.y_true_N, strict=True)
    }
