"""`vitreous explain MODEL_DIR --samples ID …`: where a trained model looks, and whether that may be believed.

Axes: B batch (1), C class, T·H·W token grid.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from rich.console import Console

from vitreous.core.errors import RunError, StudyMismatchError, UserError
from vitreous.core.files import remove_partial_files, replacing, write_json
from vitreous.core.input_spec import item_noun
from vitreous.core.label_sets import encode_label_sets, name_label_set
from vitreous.core.privacy import keyed_id, load_id_key
from vitreous.core.progress import progress_bar
from vitreous.diagnosis.attention_statistics import SampleAttention, attention_of, no_attention
from vitreous.diagnosis.attentive_read_out import AttentiveReadOut, pooling_attention
from vitreous.diagnosis.explain_maps import METHODS, Method, check_methods, fitting_methods
from vitreous.diagnosis.explain_randomisation import RandomisedModels
from vitreous.diagnosis.explained_model import ExplainedModel, explain_exported
from vitreous.diagnosis.faithfulness import CheckSettings, explain_and_check
from vitreous.encoders.encoder import Encoder
from vitreous.recipes.probe_outputs import head_reads_tokens
from vitreous.reports.explain_figures import Kind
from vitreous.study.data import open_cache, s3_options
from vitreous.study.encoders import OpenedEncoder, load_source
from vitreous.study.explain_outputs import RESULT, write_array, write_sample, write_tables
from vitreous.study.explain_samples import (
    ChosenSample,
    LoadedSample,
    choose_samples,
    known_labels,
    load_samples,
    open_explained_data,
)
from vitreous.study.heads import hash_model, read_tensors
from vitreous.study.model_folder import Device, ModelFolder, check_feature_space, open_encoder, open_model_folder
from vitreous.study.plain_model import plain_model
from vitreous.study.run_directory import differing_keys
from vitreous.study.runtime import resolve_runtime

SCHEMA_VERSION = 1
SETTINGS = "explain.json"


@dataclass(frozen=True)
class ExplainOptions:
    """What is explained, and how thoroughly it is checked.

    Args:
        samples: ids as in the run's tables.
        inputs: new files instead of the run's samples.
        top: so many of the most and of the least confident predictions on val.
        methods: all that fit the model, if left out.
        target: class or label to explain; of each sample the predicted one, if left out.
        attention: also the entropy of every layer and head, frozen and adapted.
        steps, orders, draws: see :class:`~vitreous.diagnosis.faithfulness.CheckSettings`.
    """

    samples: Sequence[str] = ()
    inputs: Sequence[str] = ()
    top: int | None = None
    methods: Sequence[Method] = ()
    target: str | None = None
    attention: bool = False
    steps: int = 16
    orders: int = 20
    draws: int = 3


@dataclass(frozen=True)
class Explained:
    """What a command wrote.

    Args:
        keys: sample id → its keyed id, which names its folder.
        errors: keyed ids of samples that could not be used.
    """

    out: Path
    keys: Mapping[str, str]
    errors: Sequence[str]


def explain_model(
    model_dir: Path,
    out: Path | None = None,
    *,
    options: ExplainOptions,
    checkpoint: str | None = None,
    device: Device = "auto",
    console: Console | None = None,
) -> Explained:
    """Explain predictions of one trained model.

    Args:
        out: ``explanations`` in the model's folder if left out; a folder of the same settings is added to.
        checkpoint: where the encoder's file lies now, if it moved.

    Raises:
        UserError: no such model or sample, a method that does not fit, nothing asked for.
        StudyMismatchError: the folder was made by other settings, or the encoder is another.
        RunError: none of the samples can be used.
    """
    console = console or Console(stderr=True, highlight=False, markup=False)
    model = open_model_folder(model_dir, checkpoint=checkpoint, device=device)
    _check_kind(model)
    if options.target is not None and options.target not in model.classes:
        raise UserError(f"--target {options.target}: no class of this model; those are {', '.join(model.classes)}.")
    if options.top is not None and options.inputs:
        raise UserError("--top orders the val samples of the run; it does not go with --input. Leave one out.")
    data = open_explained_data(model, options.inputs)
    chosen = choose_samples(model, data, options.samples, options.top, are_new=bool(options.inputs))
    runtime = resolve_runtime(model.config)
    opened = open_encoder(model, replace(runtime, precision="fp32"))
    check_feature_space(model, runtime, data, opened)
    explained = _explained_model(model, opened).to(runtime.torch_device)
    fitting = fitting_methods(explained, _blank(explained))
    check_methods(options.methods, fitting, explained.encoder.family)
    methods = tuple(method for method in METHODS if method in (options.methods or fitting))
    if options.attention and not {"attention", "attention_pooling"} & set(fitting):
        raise UserError(no_attention(explained.encoder))
    out = out or model.path / "explanations"
    _claim(out, _settings(model, options, methods, runtime.device))
    key = load_id_key()
    keys = {sample.sample_id: keyed_id(sample.sample_id, key) for sample in chosen}
    missing = [sample for sample in chosen if not _is_done(out / keys[sample.sample_id], sample)]
    job = _Job(
        model,
        explained,
        RandomisedModels(explained),
        _attentive_encoders(model, opened, explained) if options.attention and "attention" in fitting else {},
        methods,
        options,
        CheckSettings(options.steps, options.orders, options.draws, runtime.batch_size_for(opened.encoder.spec)),
        known_labels(model) if not options.inputs else {},
        runtime.torch_device,
    )
    errors: dict[str, dict[str, str]] = {}
    with progress_bar("Explaining", len(missing), console) as advance:
        for sample, loaded in load_samples(data, missing, opened.encoder.spec):
            name = keys[sample.sample_id]
            if isinstance(loaded, LoadedSample):
                job.explain(sample, loaded, out / name, name)
            else:
                errors[name] = {"sample": name, "exception": type(loaded).__name__, "message": str(loaded)}
            advance(1)
    with replacing(out / "explain_errors.csv") as aside:
        pd.DataFrame(list(errors.values()), columns=["sample", "exception", "message"]).to_csv(aside, index=False)
    write_tables(out, model.name)
    if len(errors) == len(chosen):
        raise RunError(f"none of the {len(chosen)} samples can be used; {out / 'explain_errors.csv'} says why.")
    console.print(
        f"{model.name}: {len(chosen)} {item_noun(model.modality, len(chosen))} = {len(chosen) - len(errors)} explained "
        f"+ {len(errors)} not usable."
    )
    return Explained(out, keys, tuple(errors))


@dataclass(frozen=True)
class _Job:
    """What every sample is explained with."""

    model: ModelFolder
    explained: ExplainedModel
    randomised: RandomisedModels
    encoders: Mapping[str, Encoder]
    methods: tuple[Method, ...]
    options: ExplainOptions
    checks: CheckSettings
    labels: Mapping[str, str]
    device: torch.device

    def explain(self, sample: ChosenSample, loaded: LoadedSample, folder: Path, name: str) -> None:
        """Everything of one sample, its ``result.json`` last."""
        x_BCDHW = loaded.x_BCDHW.to(self.device)
        with torch.no_grad():
            probs_C = self.explained.probs(self.explained(x_BCDHW))[0].double().cpu()
        decided = _decide(self.model, probs_C.numpy())
        classes = self.model.classes
        target = decided.target if self.options.target is None else classes.index(self.options.target)
        maps = explain_and_check(self.explained, self.randomised, x_BCDHW, target, self.methods, self.checks)
        facts = {
            "sample": name,
            "file_id": sample.file_id,
            "split": sample.split,
            "label": self.labels.get(sample.sample_id, ""),
            "predicted": decided.predicted,
            "predicted_probability": decided.probability,
            "target": classes[target],
            "probability": float(probs_C[target]),
        }
        folder.mkdir(parents=True, exist_ok=True)
        remove_partial_files(folder)
        kind: Kind = self.model.modality
        by_name = {str(method): one for method, one in maps.items()}
        if (maps_QHT := self._pooling_maps(x_BCDHW)) is not None:
            grid = self.model.config.features.grid or self.explained.encoder.grid
            write_array(folder / "attention_pooling_heads.npy", maps_QHT.unflatten(-1, grid).float().cpu().numpy())  # type: ignore[no-untyped-call]
        write_sample(folder, loaded, self.explained.encoder.spec, kind, by_name, facts, self._attention(x_BCDHW))

    def _attention(self, x_BCDHW: torch.Tensor) -> dict[str, SampleAttention]:
        """State → attention, of the encoder's and, with `--attention`, of an attentive probe's."""
        found = {state: attention_of(encoder, x_BCDHW) for state, encoder in self.encoders.items()}
        maps_QHT = self._pooling_maps(x_BCDHW)
        if self.options.attention and maps_QHT is not None:
            found["pooling"] = pooling_attention(maps_QHT)
        return found

    def _pooling_maps(self, x_BCDHW: torch.Tensor) -> torch.Tensor | None:
        if not isinstance(self.explained.read_out, AttentiveReadOut):
            return None
        with torch.no_grad():
            return self.explained.read_out.maps_QHT(self.explained.encoder(x_BCDHW))


@dataclass(frozen=True)
class _Decided:
    """What is predicted of a sample, with what probability, and what is explained where nothing else is asked for."""

    predicted: str
    probability: float
    target: int


def _decide(model: ModelFolder, probs_C: npt.NDArray[np.float64]) -> _Decided:
    """The class of the highest probability; of labels all at their threshold or above, and the one most above."""
    if model.thresholds is None:
        best = int(probs_C.argmax())
        return _Decided(model.classes[best], float(probs_C[best]), best)
    above_C = probs_C - np.array(model.thresholds)
    best = int(above_C.argmax())
    number = int(encode_label_sets((above_C >= 0)[None])[0])
    return _Decided(name_label_set(number, model.classes, model.task), float(probs_C[best]), best)


def _check_kind(model: ModelFolder) -> None:
    if model.recipe is None and "knn.features" in read_tensors(model.path):
        raise UserError(
            f"{model.path}: nearest neighbours have no gradient, and nothing in them says why; explain another recipe."
        )
    if model.source["family"] == "pixels":
        raise UserError(f"{model.path}: the floor of pixel values has no encoder to look into; explain another row.")


def _explained_model(model: ModelFolder, opened: OpenedEncoder) -> ExplainedModel:
    """The whole network in float32; an attentive probe reads the tokens that the encoder gives, unrounded."""
    if model.recipe is None and head_reads_tokens(tensors := read_tensors(model.path)):
        encoder = load_source(model.source, s3_options(model.config), open_cache(model.config), trainable=True)
        read_out = AttentiveReadOut(tensors, model.config.features.grid)
        explained = ExplainedModel(encoder, read_out, model.classes, model.task)
        return explained.eval().requires_grad_(False)
    return explain_exported(plain_model(model, opened), model.classes, model.task)


def _blank(model: ExplainedModel) -> torch.Tensor:
    spec = model.encoder.spec
    return torch.zeros(1, spec.channels, *spec.size_DHW, device=next(model.parameters()).device)


def _attentive_encoders(model: ModelFolder, opened: OpenedEncoder, explained: ExplainedModel) -> dict[str, Encoder]:
    """The encoder before adaptation, which a model from scratch has not, and after it, which a probe has not."""
    if model.recipe is None:
        return {"frozen": explained.encoder}
    before = {} if model.facts.get("from_scratch") else {"frozen": opened.encoder}
    return {**before, "adapted": explained.encoder}


def _settings(model: ModelFolder, options: ExplainOptions, methods: Sequence[Method], device: str) -> dict[str, Any]:
    """All that decides a sample's files, apart from the sample."""
    return {
        "schema_version": SCHEMA_VERSION,
        "model": hash_model(model.path),
        "encoder": model.facts["feature_space"]["weights_hash"],
        "methods": list(methods),
        "target": options.target,
        "attention": options.attention,
        "steps": options.steps,
        "orders": options.orders,
        "draws": options.draws,
        "device": device,
    }


def _claim(out: Path, settings: Mapping[str, Any]) -> None:
    """Make the folder these settings', or check that it already is."""
    path = out / SETTINGS
    if path.exists():
        if different := differing_keys(json.loads(path.read_text()), settings):
            raise StudyMismatchError(
                f"{out}: holds explanations by other settings; different: {', '.join(different)}. Give another --out, "
                "or remove the folder."
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: holds something else than explanations; give a new or empty folder.")
    out.mkdir(mode=0o700, parents=True, exist_ok=True)  # pictures of patients: its owner's alone
    write_json(path, settings)


def _is_done(folder: Path, sample: ChosenSample) -> bool:
    path = folder / RESULT
    return path.exists() and json.loads(path.read_text())["file_id"] == sample.file_id


def print_explain(model_dir: Path, out: Path | None = None, **settings: Any) -> None:
    """Explain, and say what was written where; the terminal may name samples."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    done = explain_model(model_dir, out, **settings)
    for sample_id, key in done.keys.items():
        state = "not usable" if key in done.errors else done.out / key / "overview.png"
        console.print(f"{sample_id}  {state}")
    console.print(f"table  {done.out / 'explanations.csv'}")
    console.print(f"page   {done.out / 'index.html'}")
