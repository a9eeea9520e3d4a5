"""`vitreous encode STUDY`: fill the feature store; and the features of a study, read back."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitreous.config.compose import load_study
from vitreous.config.study import StudyConfig
from vitreous.core.errors import RunError, TooManyQuarantinedError
from vitreous.core.files import replacing
from vitreous.core.input_spec import AnySpec, ClipSpec, ImageSpec
from vitreous.core.progress import Advance, progress_bar
from vitreous.encoders.encoder import FORWARD_VERSION, Encoder
from vitreous.features.encode import EncoderTask, PassSummary, PixelTask, Request, encode_missing, files_in_use
from vitreous.features.pixel_store import PixelSpace, PixelStore
from vitreous.features.store import EncodedFile, FeatureSpace, FeatureStore
from vitreous.features.token_store import TokenRows, TokenSpace, TokenStore, View
from vitreous.inputs.clip_preprocessing import CLIP_PREPROCESSING_VERSION
from vitreous.inputs.image_files import IMAGE_DECODER_VERSION
from vitreous.inputs.image_preprocessing import IMAGE_PREPROCESSING_VERSION
from vitreous.inputs.prepare import Decoded
from vitreous.inputs.preprocessing import PREPROCESSING_VERSION
from vitreous.inputs.video import VIDEO_DECODER_VERSION
from vitreous.inputs.volume import DECODER_VERSION
from vitreous.storage.locks import exclusive
from vitreous.study.data import OpenedData, open_data
from vitreous.study.encoders import OpenedEncoder, open_encoders
from vitreous.study.leak_gate import describe_gate, finish_gate, pass_gate_before_encoding
from vitreous.study.row import encoders_on_pixels, encoders_on_tokens, frozen_encoders, rows_of
from vitreous.study.runtime import Runtime, resolve_runtime

SHARD_SIZE = 64  # files a shard: at most this many are encoded again after a kill


@dataclass(frozen=True)
class StudyFeatures:
    """Features of the usable samples, the same ones for every encoder.

    Args:
        samples: rows of the cohort that every encoder could use; `weight` is 1 / (usable volumes of the patient).
        file_ids: content identity of each row's file.
        features: per frozen encoder (N, D) float32, rows as in `samples`.
        tokens: per encoder whose tokens are wanted, those of the rows of `samples`.
        pixels: per encoder that is trained on pixels, where its prepared inputs lie.
        quarantined: sample_id, patient_id, relative, exception, message.
        statistics: facts of each decoded volume, by sample id.
        summary: what the pass did; zero everywhere when all was known.
    """

    samples: pd.DataFrame
    file_ids: tuple[str, ...]
    features: Mapping[str, npt.NDArray[np.float32]]
    tokens: Mapping[str, TokenRows]
    pixels: Mapping[str, PixelStore]
    quarantined: pd.DataFrame
    statistics: pd.DataFrame
    summary: PassSummary


def feature_store(config: StudyConfig, runtime: Runtime, data: OpenedData, opened: OpenedEncoder) -> FeatureStore:
    """Where the features of one encoder of this study lie."""
    encoder = opened.encoder
    space = FeatureSpace(
        weights_hash=encoder.weights_hash,
        encoder_options={"family": encoder.family, **opened.options, **_layer_of(encoder)},
        spec=encoder.spec,
        pooling="mean" if encoder.family == "pixels" else config.features.vector_pooling,
        grid=None if encoder.family == "pixels" else config.features.grid,
        precision=runtime.precision,
        dtype=config.features.dtype,
        versions={**_input_versions(encoder.spec), "encoder": FORWARD_VERSION},
        declared=data.describe_declared(),
    )
    return FeatureStore(Path(config.store).expanduser(), space)


def _layer_of(encoder: Encoder) -> dict[str, int]:
    """Part of the feature key where the tokens are those of an earlier block."""
    return {} if encoder.layer is None else {"layer": encoder.layer}


def token_stores(
    config: StudyConfig, runtime: Runtime, data: OpenedData, opened: OpenedEncoder, *, with_views: bool = True
) -> list[TokenStore]:
    """Where the tokens of one encoder of this study lie: of the files as they are, then of each view."""
    vectors = feature_store(config, runtime, data, opened).space
    strengths = config.features.augment.model_dump(mode="json")
    augment = {name: tuple(value) if isinstance(value, list) else value for name, value in strengths.items() if value}
    views = [View(number, augment) for number in range(1, config.features.views + 1 if with_views else 1)]
    return [
        TokenStore(Path(config.store).expanduser(), TokenSpace(vectors, config.features.grid, view))
        for view in [None, *views]
    ]


def feature_width(config: StudyConfig, encoder: Encoder) -> int:
    """Numbers that are kept of each file."""
    is_on_grid = config.features.grid is not None and encoder.family != "pixels"
    return encoder.width * (math.prod(config.features.grid or ()) if is_on_grid else 1)


def pixel_store(config: StudyConfig, data: OpenedData, opened: OpenedEncoder) -> PixelStore:
    """Where the prepared inputs of one encoder of this study lie."""
    versions = _input_versions(opened.encoder.spec)
    space = PixelSpace(opened.encoder.spec, versions, data.describe_declared())
    return PixelStore(Path(config.store).expanduser(), space)


def _input_versions(spec: AnySpec) -> dict[str, int]:
    if isinstance(spec, ImageSpec):
        return {"decoder": IMAGE_DECODER_VERSION, "preprocessing": IMAGE_PREPROCESSING_VERSION}
    if isinstance(spec, ClipSpec):
        return {
            "decoder": VIDEO_DECODER_VERSION,
            "frame decoder": IMAGE_DECODER_VERSION,
            "preprocessing": CLIP_PREPROCESSING_VERSION,
        }
    return {"decoder": DECODER_VERSION, "preprocessing": PREPROCESSING_VERSION}


def encode_study(
    config: StudyConfig,
    runtime: Runtime,
    data: OpenedData,
    encoders: Sequence[OpenedEncoder],
    *,
    frozen: Collection[str] | None = None,
    on_tokens: Collection[str] = (),
    with_views: bool = True,
    on_pixels: Collection[str] = (),
    load_input: Callable[[Request, Path], Decoded] | None = None,
    progress: Advance | None = None,
) -> StudyFeatures:
    """Encode what is missing, in one pass for all encoders, and read everything back.

    Args:
        frozen: names of the encoders whose features are wanted; all if left out.
        on_tokens: names of the encoders whose tokens are wanted.
        with_views: of training samples keep the augmented views too, which prediction does not need.
        on_pixels: names of the encoders whose prepared inputs are wanted, for recipes that train on them.
        load_input: in place of the data's own.
        progress: called once per file that is read; a bar of its own is shown if left out.

    Raises:
        RunError: the feature store was changed by something else meanwhile.
    """
    is_frozen = {opened.name: frozen is None or opened.name in frozen for opened in encoders}
    stores = {one.name: feature_store(config, runtime, data, one) for one in encoders if is_frozen[one.name]}
    tokens = {
        one.name: token_stores(config, runtime, data, one, with_views=with_views)
        for one in encoders
        if one.name in on_tokens
    }
    pixels = {one.name: pixel_store(config, data, one) for one in encoders if one.name in on_pixels}
    asked = [request.file_id for request in data.requests]
    with ExitStack() as locks:
        # one job encodes a feature space at a time; who waits finds the work done. Sorted, so that no ring of waiting
        folders = {*(store.folder for store in stores.values()), *(store.folder for store in pixels.values())}
        folders |= {store.folder for views in tokens.values() for store in views}
        for folder in sorted(folders):
            locks.enter_context(exclusive(folder / ".lock"))
        tasks: list[EncoderTask | PixelTask] = [
            *_encoder_tasks(runtime, encoders, stores, tokens, frozenset(asked)),
            *_view_tasks(runtime, encoders, tokens, training_files(data)),
            *_pixel_tasks(encoders, pixels, frozenset(asked)),
        ]
        summary = _encode_missing(config, runtime, data, tasks, load_input or data.load_input, progress)
        rows = {name: dict(zip(asked, store.read(asked), strict=True)) for name, store in stores.items()}
        facts = {name: dict(zip(asked, store.read_facts(asked), strict=True)) for name, store in pixels.items()}
        for name, views in tokens.items():
            facts[f"tokens of {name}"] = dict(zip(asked, views[0].read_facts(asked), strict=True))
            for number, store in enumerate(views[1:], start=1):
                of_view = zip(asked, store.read_facts(asked), strict=True)
                trained = training_files(data)
                facts[f"view {number} of {name}"] = {file: fact for file, fact in of_view if file in trained}
    return _gather(data, rows, facts, tokens, pixels, summary)


def _encoder_tasks(
    runtime: Runtime,
    encoders: Sequence[OpenedEncoder],
    stores: Mapping[str, FeatureStore],
    tokens: Mapping[str, Sequence[TokenStore]],
    asked: frozenset[str],
) -> list[EncoderTask]:
    """Vectors and tokens of one encoder come out of one forward pass."""
    tasks = []
    for opened in encoders:
        store, kept = stores.get(opened.name), next(iter(tokens.get(opened.name, ())), None)
        missing, missing_tokens = frozenset[str](), frozenset[str]()
        if store is not None:
            store.remove_partial()
            missing = asked - store.known_files()
        if kept is not None:
            kept.remove_partial()
            missing_tokens = asked - kept.known_files()
        if missing or missing_tokens:
            batch_size = runtime.batch_size_for(opened.encoder.spec)
            tasks.append(
                EncoderTask(opened.name, opened.encoder, store, missing, batch_size, kept, missing_tokens)
                if missing_tokens
                else EncoderTask(opened.name, opened.encoder, store, missing, batch_size)
            )
    return tasks


def _view_tasks(
    runtime: Runtime,
    encoders: Sequence[OpenedEncoder],
    tokens: Mapping[str, Sequence[TokenStore]],
    trained: frozenset[str],
) -> list[EncoderTask]:
    tasks = []
    for opened in encoders:
        for number, store in enumerate(tokens.get(opened.name, ())[1:], start=1):
            store.remove_partial()
            if missing := trained - store.known_files():
                name, batch_size = f"{opened.name} view {number}", runtime.batch_size_for(opened.encoder.spec)
                tasks.append(EncoderTask(name, opened.encoder, None, frozenset(), batch_size, store, missing))
    return tasks


def training_files(data: OpenedData) -> frozenset[str]:
    """Contents of samples that train; with folds all of them do, in some round."""
    is_trained = data.cohort.samples["split"].isin(["train", ""]).to_numpy()
    return frozenset(data.file_ids.to_numpy()[is_trained].tolist())


def _pixel_tasks(
    encoders: Sequence[OpenedEncoder], pixels: Mapping[str, PixelStore], asked: frozenset[str]
) -> list[PixelTask]:
    """One task per space: encoders of one input share their prepared inputs."""
    tasks: dict[Path, PixelTask] = {}
    for opened in encoders:
        if opened.name not in pixels or pixels[opened.name].folder in tasks:
            continue
        store = pixels[opened.name]
        store.remove_partial()
        if missing := asked - store.known_files():
            tasks[store.folder] = PixelTask(f"pixels of {opened.name}", opened.encoder.spec, store, missing)
    return list(tasks.values())


def _encode_missing(
    config: StudyConfig,
    runtime: Runtime,
    data: OpenedData,
    tasks: Sequence[EncoderTask | PixelTask],
    load_input: Callable[[Request, Path], Decoded],
    progress: Advance | None,
) -> PassSummary:
    if not tasks:
        return PassSummary()
    num_encoders = sum(isinstance(task, EncoderTask) for task in tasks)
    what = f"Encoding for {num_encoders} encoders" if num_encoders else "Preparing inputs"
    files = len(frozenset().union(*(task.missing for task in tasks)))
    with progress_bar(what, files) if progress is None else nullcontext(progress) as advance:
        return encode_missing(
            data.requests,
            tasks,
            stage=partial(data.stage, in_use=files_in_use(runtime.workers)),
            load_input=load_input,
            shard_size=SHARD_SIZE,
            workers=runtime.workers,
            max_bad=int(config.data.max_quarantined * len(data.requests)),
            device=runtime.torch_device,
            progress=advance,
        )


def _gather(
    data: OpenedData,
    rows: Mapping[str, Mapping[str, EncodedFile | None]],
    facts: Mapping[str, Mapping[str, EncodedFile | None]],
    tokens: Mapping[str, Sequence[TokenStore]],
    pixels: Mapping[str, PixelStore],
    summary: PassSummary,
) -> StudyFeatures:
    samples = data.cohort.samples
    problems = {file_id: (type(error).__name__, str(error)) for file_id, error in summary.unusable.items()}
    not_reached = set()
    for by_id in [*rows.values(), *facts.values()]:
        for file_id, row in by_id.items():
            if row is not None and row.exception:
                problems.setdefault(file_id, (row.exception, row.message))
            elif row is None and file_id not in problems:
                not_reached.add(file_id)
    if not_reached and not summary.is_stopped:
        raise RunError(
            f"{len(not_reached)} files have neither features nor an error; the feature store was changed by "
            "another process during the run. Run the same command again."
        )
    file_ids = data.file_ids.to_numpy()
    is_bad = np.array([file_id in problems for file_id in file_ids], dtype=bool)
    quarantined = samples.loc[is_bad, ["sample_id", "patient_id", "relative"]].copy()
    quarantined["exception"] = [problems[file_id][0] for file_id in file_ids[is_bad]]
    quarantined["message"] = [problems[file_id][1] for file_id in file_ids[is_bad]]
    is_usable = np.array([file_id not in problems and file_id not in not_reached for file_id in file_ids], dtype=bool)
    usable = samples.loc[is_usable].reset_index(drop=True)
    usable["weight"] = 1.0 / usable.groupby("patient_id")["sample_id"].transform("count")
    ids = file_ids[is_usable]
    features = {
        name: np.stack([_features_of(by_id[file_id]) for file_id in ids]) if len(ids) else np.zeros((0, 0), np.float32)
        for name, by_id in rows.items()
    }
    first = next(iter([*rows.values(), *facts.values()]))
    statistics = pd.DataFrame([dict(_row(first[file_id]).statistics) for file_id in ids], index=usable["sample_id"])
    kept_tokens = {name: TokenRows(views, ids.tolist()) for name, views in tokens.items()}
    return StudyFeatures(usable, tuple(ids), features, kept_tokens, pixels, quarantined, statistics, summary)


def check_usable(config: StudyConfig, features: StudyFeatures, num_samples: int) -> None:
    """Stop where too much is unreadable for the rest to stand for the cohort.

    Raises:
        TooManyQuarantinedError: with the most frequent reasons.
    """
    bad, allowed = len(features.quarantined), config.data.max_quarantined
    if not features.summary.is_stopped and bad <= allowed * num_samples and len(features.samples):
        return
    reasons = features.quarantined["message"].value_counts().head(3)
    shown = "; ".join(f"{count}× {str(message).rstrip('.')}" for message, count in reasons.items())
    early = ", and the pass was stopped early" if features.summary.is_stopped else ""
    raise TooManyQuarantinedError(
        f"{bad} of {num_samples} samples ({bad / num_samples:.1%}) cannot be used{early}; data.max_quarantined allows "
        f"{allowed:.1%}. Most frequent: {shown}. data_errors.csv lists them; mend them, or raise the share by name."
    )


def write_data_errors(path: Path, quarantined: pd.DataFrame) -> None:
    """``data_errors.csv``: participant_id, key, exception, message; a header alone when all could be read."""
    table = quarantined.rename(columns={"patient_id": "participant_id", "relative": "key"})
    with replacing(path) as aside:
        table[["participant_id", "key", "sample_id", "exception", "message"]].to_csv(aside, index=False)


def _row(row: EncodedFile | None) -> EncodedFile:
    if row is None:
        raise RunError("a file without features was taken for usable; please report this with the study file.")
    return row


def _features_of(row: EncodedFile | None) -> npt.NDArray[np.float32]:
    features_D = _row(row).features_D
    if features_D is None:
        raise RunError("a quarantined file was taken for usable; please report this with the study file.")
    return features_D


def print_encode(study: str, overrides: Sequence[str]) -> None:
    """Only fill the feature store, and say what was done and what could not be used."""
    from rich.console import Console

    config = load_study(study, overrides)
    runtime = resolve_runtime(config)
    data = open_data(config)
    encoders = open_encoders(config, runtime, data.cache, data.modality)
    rows = rows_of(config, encoders, ())  # the floor of columns needs nothing encoded
    gate = pass_gate_before_encoding(config, data, encoders, runtime.workers)
    with gate.loader() as load_input:
        features = encode_study(
            config,
            runtime,
            data,
            encoders,
            frozen=frozen_encoders(rows),
            on_tokens=encoders_on_tokens(rows),
            on_pixels=encoders_on_pixels(rows),
            load_input=load_input,
        )
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(describe_encoding(data, features))
    for message, count in features.quarantined["message"].value_counts().items():
        console.print(f"quarantined {count}: {message}")
    check_usable(config, features, len(data.cohort.samples))
    finish_gate(gate, features, encoders, runtime.workers)
    console.print(describe_gate(gate))


def describe_encoding(data: OpenedData, features: StudyFeatures) -> str:
    """`rows = encoded + quarantined + excluded by rule`, and what this pass did."""
    excluded = len(data.cohort.excluded) + len(data.cohort.patients_without_files)
    rows = len(data.cohort.samples) + excluded
    done = ", ".join(f"{name} {count}" for name, count in features.summary.num_encoded.items())
    fresh = f"{done} in {features.summary.seconds:.1f} s" if done else "nothing, all was known"
    return (
        f"{rows} rows = {len(features.samples)} encoded + {len(features.quarantined)} quarantined + "
        f"{excluded} excluded by rule. Encoded now: {fresh}.{_describe_padding(features.statistics)}"
    )


def _describe_padding(statistics: pd.DataFrame) -> str:
    """How many clips repeat frames, as the first encoder takes them; nothing where none do."""
    if "padded_frames" not in statistics.columns:
        return ""
    num_padded, num_short = int((statistics["padded_frames"] > 0).sum()), int(statistics["is_short"].sum())
    if not num_padded:
        return ""
    return f" {num_padded} clips repeat frames at an end of their video, {num_short} of them since they are short."
