"""`vitreous predict MODEL_DIR INPUT … --out F.parquet`: a trained model on new files. No label is read or written.

Inputs go through in pieces of bounded size; finished pieces are kept beside the output until it is whole, so that the
same command continues.

Axes: N sample, C class.
"""

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from rich.console import Console

from vitreous.config.study import StudyConfig
from vitreous.core.errors import TooManyQuarantinedError, UserError
from vitreous.core.files import remove_partial_files, replacing
from vitreous.core.fingerprints import fingerprint
from vitreous.core.input_spec import AnySpec, PictureSpec, item_noun
from vitreous.core.predictions import Predictions
from vitreous.core.progress import Advance, progress_bar
from vitreous.encoders.encoder import Encoder
from vitreous.features.token_store import BYTES_OF
from vitreous.inputs.volume import DeclaredAxes
from vitreous.recipes.probe_outputs import head_reads_tokens, kept_logits
from vitreous.study.adapt_pixels import predict_samples, read_pixel_model
from vitreous.study.data import OpenedData, open_cache, s3_options
from vitreous.study.encode import SHARD_SIZE, StudyFeatures, encode_study
from vitreous.study.encoders import OpenedEncoder
from vitreous.study.heads import hash_model, read_tensors
from vitreous.study.model_folder import Device, ModelFolder, check_feature_space, open_encoder, open_model_folder
from vitreous.study.predict_inputs import FoundInputs, InputOptions, find_inputs
from vitreous.study.runtime import Runtime, resolve_runtime

_MB, _GB = 10**6, 10**9
_MAX_PIECE = 64 * SHARD_SIZE  # files
_MAX_PREPARED_BYTES = 1 << 30  # of one piece, on disk, for models that read pixels
_DEFAULT_IMAGE_MB, _DEFAULT_VOLUME_GB, _DEFAULT_CLIP_MB = 500.0, 2.0, 2000.0  # as a study has them

Reads = Literal["vectors", "tokens", "pixels"]
Logits = Callable[[StudyFeatures], npt.NDArray[np.float64]]


@dataclass(frozen=True)
class Predicted:
    """What a command wrote.

    Args:
        out, errors: predictions, and the list of what could not be used.
        patients: means over the samples of each patient, where asked for.
        num_predicted, num_quarantined: files, or items of an array.
    """

    out: Path
    errors: Path
    patients: Path | None
    num_predicted: int
    num_quarantined: int


def predict_files(
    model_dir: Path,
    inputs: Sequence[str],
    out: Path,
    *,
    options: InputOptions | None = None,
    per_patient: bool = False,
    checkpoint: str | None = None,
    device: Device = "auto",
    max_quarantined: float | None = None,
    console: Console | None = None,
) -> Predicted:
    """Predict every input with one trained model.

    Args:
        inputs: files, folders, local patterns, or places in one bucket.
        out: ``F.parquet``; ``F.parquet.errors.csv`` stands beside it, and with `per_patient` ``F_patient.parquet``.
        options: how inputs are read, and whose they are.
        checkpoint: where the encoder's file lies now, if it moved.
        max_quarantined: share of the inputs that may be unusable; that of the study, or 0.05, if left out.
        console: where progress is told; the error stream if left out.

    Raises:
        UserError: nothing to read, another encoder than that of the model, contradicting options.
        TooManyQuarantinedError: more inputs than allowed are unusable; both files are written.
    """
    options = options or InputOptions()
    console = console or Console(stderr=True, highlight=False, markup=False)
    if out.suffix != ".parquet":
        raise UserError(f"--out {out}: predictions are written as Parquet; give a name that ends with .parquet.")
    if per_patient and not options.names_patients:
        raise UserError("--per-patient: say whose each sample is, by --patient-pattern, or --patient of a --table.")
    model = open_model_folder(model_dir, checkpoint=checkpoint, device=device)
    allowed = model.config.data.max_quarantined if max_quarantined is None else max_quarantined
    found = find_for_model(model, inputs, options)
    runtime = resolve_runtime(model.config)
    opened = open_encoder(model, runtime)
    check_feature_space(model, runtime, found.data, opened)
    rows, quarantined = _predict(model, runtime, opened, found.data, _parts_folder(out), console)
    quarantined = pd.concat([found.missing, quarantined], ignore_index=True) if len(found.missing) else quarantined
    patients = out.with_name(f"{out.stem}_patient.parquet") if per_patient else None
    done = Predicted(out, out.with_name(f"{out.name}.errors.csv"), patients, len(rows), len(quarantined))
    _write(done, rows, quarantined, model, with_patients=options.names_patients)
    shutil.rmtree(_parts_folder(out), ignore_errors=True)
    console.print(_describe(done, found, model))
    _check_share(quarantined, len(rows), allowed, done.errors)
    return done


def find_for_model(model: ModelFolder, inputs: Sequence[str], options: InputOptions) -> FoundInputs:
    """Inputs as the model's own data were read."""
    declared = model.facts["feature_space"]["declared"]
    spacing = declared.get("spacing_mm")
    data = model.config.data
    max_bytes = (
        getattr(data, "max_image_mb", _DEFAULT_IMAGE_MB) * _MB
        if model.modality != "volume"
        else getattr(data, "max_volume_gb", _DEFAULT_VOLUME_GB) * _GB
    )
    return find_inputs(
        inputs,
        options,
        classes=model.classes,
        modality=model.modality,
        declared=DeclaredAxes(declared.get("axes"), None if spacing is None else tuple(spacing)),
        max_bytes=int(max_bytes),
        max_clip_bytes=int(getattr(data, "max_clip_mb", _DEFAULT_CLIP_MB) * _MB),
        s3=s3_options(model.config),
        cache=open_cache(model.config),
    )


def _parts_folder(out: Path) -> Path:
    return out.with_name(f".{out.name}.parts")


def _predict(
    model: ModelFolder, runtime: Runtime, opened: OpenedEncoder, data: OpenedData, parts: Path, console: Console
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows (sample_id, patient_id, logits) of what could be used, and what could not."""
    config = model.config.model_copy(
        # the share is judged at the end, when both lists are written
        update={"data": model.config.data.model_copy(update={"max_quarantined": 1.0})}
    )
    logits: Logits
    on_tokens = False
    if model.recipe is None:
        tensors = read_tensors(model.path)
        on_tokens = head_reads_tokens(tensors)

        def logits(features: StudyFeatures) -> npt.NDArray[np.float64]:
            return kept_logits(tensors, (features.tokens if on_tokens else features.features)[opened.name])

        size = _MAX_PIECE
        if on_tokens:  # too many bytes to be kept for later
            size = _token_piece_size(config, opened.encoder)
            config = config.model_copy(update={"store": str(parts / "inputs")})
    else:
        recipe = model.recipe
        pixel_model = read_pixel_model(config, opened, recipe, int(model.facts["seed"]), model.path)

        def logits(features: StudyFeatures) -> npt.NDArray[np.float64]:
            return predict_samples(pixel_model, runtime, opened, recipe, features)

        size = _piece_size(opened.encoder.spec, recipe.batch_size)
        config = config.model_copy(update={"store": str(parts / "inputs")})
    key = fingerprint(
        [hash_model(model.path), model.facts["feature_space"], data.describe_declared(), runtime.device, model.classes]
    )
    for folder in (parts, *parts.glob("inputs/**/")):
        remove_partial_files(folder)
    samples = data.cohort.samples
    pieces = [samples[start : start + size].reset_index(drop=True) for start in range(0, len(samples), size)]
    found = []
    with progress_bar("Predicting", len(samples), console) as advance:
        for rows in pieces or [samples]:
            piece = replace(data, cohort=replace(data.cohort, samples=rows))
            reads: Reads = "pixels" if model.recipe is not None else "tokens" if on_tokens else "vectors"
            found.append(_predict_piece(config, runtime, opened, piece, logits, parts, key, advance, reads))
    predicted, quarantined = ([one[kind] for one in found] for kind in (0, 1))
    return pd.concat(predicted, ignore_index=True), pd.concat(quarantined, ignore_index=True)


def _piece_size(spec: AnySpec, batch_size: int) -> int:
    """Whole batches, and no more prepared inputs than the disk should hold at a time."""
    bytes_each = spec.channels * math.prod(spec.size_DHW) * (1 if isinstance(spec, PictureSpec) else 4)
    most = min(_MAX_PIECE, _MAX_PREPARED_BYTES // bytes_each)
    return max(1, most // batch_size) * batch_size


def _token_piece_size(config: StudyConfig, encoder: Encoder) -> int:
    """No more tokens than the disk should hold at a time."""
    tokens = math.prod(config.features.grid or encoder.grid)
    return max(1, min(_MAX_PIECE, _MAX_PREPARED_BYTES // (tokens * encoder.width * BYTES_OF[config.features.dtype])))


def _predict_piece(
    config: StudyConfig,
    runtime: Runtime,
    opened: OpenedEncoder,
    data: OpenedData,
    logits: Logits,
    parts: Path,
    key: str,
    advance: Advance,
    reads: Reads,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    samples = data.cohort.samples
    name = fingerprint([key, data.file_ids.tolist(), samples["sample_id"].tolist()])
    kept = [parts / f"{name}.{kind}.parquet" for kind in ("rows", "errors")]
    if all(path.exists() for path in kept):
        advance(len(samples))
        return pd.read_parquet(kept[0]), pd.read_parquet(kept[1])
    seen = 0

    def count(done: int = 1) -> None:
        nonlocal seen
        seen += done
        advance(done)

    names = [opened.name]
    features = encode_study(
        config,
        runtime,
        data,
        [opened],
        frozen=names if reads == "vectors" else (),
        on_tokens=names if reads == "tokens" else (),
        with_views=False,
        on_pixels=names if reads == "pixels" else (),
        progress=count,
    )
    rows = features.samples[["sample_id", "patient_id"]].copy()
    logits_NC = logits(features) if len(rows) else np.zeros((0, len(data.cohort.classes)))
    for index, label in enumerate(data.cohort.classes):
        rows[f"logit_{label}"] = logits_NC[:, index]
    errors = features.quarantined[["sample_id", "patient_id", "exception", "message"]].reset_index(drop=True)
    if not features.summary.unusable:  # else the same command tries those again
        for path, frame in zip(kept, (rows, errors), strict=True):
            with replacing(path) as aside:
                frame.to_parquet(aside, index=False)
    shutil.rmtree(parts / "inputs", ignore_errors=True)
    advance(len(samples) - seen)
    return rows, errors


def _write(
    done: Predicted, rows: pd.DataFrame, quarantined: pd.DataFrame, model: ModelFolder, *, with_patients: bool
) -> None:
    classes = model.classes
    logits_NC = rows[[f"logit_{name}" for name in classes]].to_numpy(np.float64)
    nothing_N = np.zeros(len(rows), np.int64)  # labels take no part
    ids, patients = (rows[column].to_numpy(np.str_) for column in ("sample_id", "patient_id"))
    predictions = Predictions(ids, patients, nothing_N, logits_NC, classes, task=model.task)
    if model.thresholds is not None:
        predictions = predictions.with_thresholds(model.thresholds)
    columns = {"sample_id": ids, **({"patient_id": patients} if with_patients else {})}
    columns |= {f"logit_{name}": logits_NC[:, index] for index, name in enumerate(classes)}
    _write_parquet(done.out, columns, predictions)
    if done.patients is not None:
        means = predictions.per_patient()
        _, counts = np.unique(patients, return_counts=True)  # sorted, as the means are
        _write_parquet(done.patients, {"patient_id": means.patient_id_N, "num_samples": counts}, means)
    shown = quarantined if with_patients else quarantined.drop(columns="patient_id")
    with replacing(done.errors) as aside:
        shown.sort_values("sample_id").to_csv(aside, index=False)


def _write_parquet(path: Path, columns: dict[str, npt.NDArray[np.generic]], predictions: Predictions) -> None:
    classes = predictions.classes
    columns |= {f"prob_{name}": predictions.probs_NC[:, index] for index, name in enumerate(classes)}
    if predictions.task == "multi_label":
        decisions_NC = predictions.decisions_NC.astype(np.int64)
        columns |= {f"y_pred_{name}": decisions_NC[:, index] for index, name in enumerate(classes)}
    else:
        y_pred_N = predictions.y_pred_N
        columns |= {"y_pred": y_pred_N, "class_pred": np.array(classes, np.str_)[y_pred_N]}
    with replacing(path) as aside:
        pd.DataFrame(columns).to_parquet(aside, index=False)


def _describe(done: Predicted, found: FoundInputs, model: ModelFolder) -> str:
    total = done.num_predicted + done.num_quarantined
    text = (
        f"{model.name}: {total} {item_noun(model.modality, total)} = {done.num_predicted} predicted + "
        f"{done.num_quarantined} quarantined."
    )
    if found.left_out:
        text += " Left out by their names: " + ", ".join(f"{n} {suffix}" for suffix, n in found.left_out.items()) + "."
    return text


def _check_share(quarantined: pd.DataFrame, num_predicted: int, allowed: float, path: Path) -> None:
    bad, total = len(quarantined), len(quarantined) + num_predicted
    if num_predicted and bad <= allowed * total:
        return
    reasons = quarantined["message"].value_counts().head(3)
    shown = "; ".join(f"{count}× {str(message).rstrip('.')}" for message, count in reasons.items())
    raise TooManyQuarantinedError(
        f"{bad} of {total} inputs ({bad / total:.1%}) cannot be used; --max-quarantined allows {allowed:.1%}. Most "
        f"frequent: {shown}. {path} lists them; mend them, or raise the share by name."
    )


def print_predict(model_dir: Path, inputs: Sequence[str], out: Path, **settings: object) -> None:
    """Predict, and say what was written where."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    done = predict_files(model_dir, inputs, out, **settings)  # type: ignore[arg-type]
    console.print(f"predictions  {done.out}")
    if done.patients is not None:
        console.print(f"per patient  {done.patients}")
    console.print(f"errors       {done.errors}")
