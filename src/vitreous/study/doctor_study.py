"""A study looked at before it is run: machine, data, leak gate, inputs through every step, a probe on eight samples."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
import psutil

from vitreous.config.study import StudyConfig
from vitreous.core.errors import InputError, StorageError, VitreousError
from vitreous.core.finding import Finding
from vitreous.core.input_spec import FixedMeanStd, InputSpec, Modality, ZScore, item_noun
from vitreous.diagnosis.input_statistics import find_off_spec
from vitreous.diagnosis.small_probe import find_unlearnable
from vitreous.diagnosis.volumes import find_volume_outliers, summarise_volumes
from vitreous.features.encode import Request
from vitreous.features.pooling import pool_tokens
from vitreous.inputs.description import describe_volume
from vitreous.inputs.prepare import Decoded, describe_decoded, finish_input, prepare_input
from vitreous.inputs.volume import Volume
from vitreous.recipes.feature_set import FeatureSet
from vitreous.storage.credentials import describe_source
from vitreous.storage.location import Location
from vitreous.study.data import OpenedData, open_data, s3_options
from vitreous.study.encoders import OpenedEncoder, open_encoders
from vitreous.study.leak_gate import pixel_leaks, sighting_store, table_leaks
from vitreous.study.partitions import Partition, make_partitions
from vitreous.study.runtime import Runtime, resolve_runtime

_SURVEYED = 24  # volumes or images decoded for the statistics of the cohort
_PROBED = 8
_KINDS = 6
_RESOLVED = 5
_LITTLE_GB = 5  # of free disk
_LITTLE_MEMORY_GB = 2


def examine_study(config: StudyConfig) -> Iterator[Finding]:
    """Look at a study before it is run, step by step; an error ends the examination where later steps need it."""
    import torch

    runtime = resolve_runtime(config)
    yield Finding(
        "device",
        "info",
        f"Computing on {runtime.device} in {runtime.precision}.",
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {runtime.workers} decoding threads",
    )
    yield _describe_credentials(config)
    try:
        data = open_data(config, keep_listing=False)
    except VitreousError as error:
        yield Finding("data", "error", "The data cannot be opened.", str(error), "Mend this, then run doctor again.")
        return
    samples = data.cohort.samples
    yield Finding("reachable", "info", f"{data.store.root} answers.", f"{len(data.infos)} files")
    yield from _look_at_disk(config, data)
    yield Finding(
        "labels", "info", f"Labels of {samples['patient_id'].nunique()} participants are parsed.", _label_counts(data)
    )
    yield from data.cohort.findings
    yield from _pass_gate(config, data)
    yield _resolve_some(data)
    try:
        encoders = open_encoders(config, runtime, data.cache, data.modality)
    except VitreousError as error:
        yield Finding("encoders", "error", "An encoder cannot be opened.", str(error), "vitreous inspect CHECKPOINT")
        return
    for opened in encoders:
        receipt = opened.encoder.receipt
        yield Finding(
            "receipt",
            "info",
            f"{opened.name}: {receipt.tensors_matched} of {receipt.tensors_total} tensors.",
            f"weights {opened.encoder.weights_hash[:12]}",
        )
    yield _look_at_memory(encoders)
    decoded: dict[str, Decoded] = {}
    try:
        partition = make_partitions(data.cohort, config.folds)[0]
        yield from _survey(data, partition, decoded)
    except VitreousError as error:
        title = f"The {item_noun(data.modality)} cannot be surveyed."
        yield Finding("survey", "error", title, str(error), "Mend this, then run again.")
        return
    if not decoded:
        title = f"No {item_noun(data.modality, 1)} of the training split can be used."
        yield Finding("small_probe", "error", title, "", "Mend these files.")
        return
    for opened in encoders:
        try:
            yield from _try_encoder(config, runtime, data, opened, partition, decoded)
        except VitreousError as error:
            yield Finding("encoder", "error", f"{opened.name} cannot be tried.", str(error), "Mend this first.")


def _describe_credentials(config: StudyConfig) -> Finding:
    """Where keys come from; never what they are."""
    places = getattr(config.data, "files", None) or getattr(config.data, "table", "")
    first = next(iter(places.values())) if isinstance(places, dict) else str(places)
    location = Location.parse(str(first))
    if location.is_local:
        return Finding("credentials", "info", "The files are local: no bucket, no credentials.", str(location))
    if location.scheme != "s3":
        return Finding("credentials", "info", f"{location} is asked with the default credentials of its provider.", "")
    try:
        source = describe_source(s3_options(config))
    except VitreousError as error:
        return Finding("credentials", "error", "Credentials of the bucket are wrong.", str(error), "Mend them first.")
    return Finding("credentials", "info", f"Keys of the bucket {location.bucket} come from {source}.", "")


def _look_at_disk(config: StudyConfig, data: OpenedData) -> Iterator[Finding]:
    """Free space of the places that a run fills, beside what it would bring."""
    size = sum(max(info.size, 0) for info in {info.location: info for info in data.infos.values()}.values())
    fetched = 0.0 if data.store.root.is_local else min(size, config.cache.max_gb * 1e9)
    for name, place, wanted in (
        ("cache.dir", config.cache.dir, fetched),
        ("store", config.store, 0.0),
        ("runs", config.runs, 0.0),
    ):
        folder = Path(place).expanduser().absolute()
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free
        evidence = f"{free / 1e9:.1f} GB free at {folder}"
        evidence += f"; up to {wanted / 1e9:.1f} GB are fetched" if wanted else ""
        if free < wanted:
            remedy = f"Free some, set {name} to another disk, or lower cache.max_gb."
            yield Finding("disk", "error", f"{name}: the disk is too small.", evidence, remedy)
        elif free < wanted + _LITTLE_GB * 1e9:
            yield Finding("disk", "warning", f"{name}: the disk is almost full.", evidence, "Free some first.")
        else:
            yield Finding("disk", "info", f"{name} has room.", evidence)


def _look_at_memory(encoders: Sequence[OpenedEncoder]) -> Finding:
    """What is left beside the loaded encoders."""
    memory = psutil.virtual_memory()
    weights = sum(tensor.numel() * tensor.element_size() for one in encoders for tensor in one.encoder.parameters())
    free, total = memory.available / 1e9, memory.total / 1e9
    evidence = f"{free:.1f} of {total:.1f} GB free, with {weights / 1e9:.2f} GB of encoders loaded"
    if memory.available < _LITTLE_MEMORY_GB * 1e9:
        remedy = "Close other programs, or set workers=1 and batch_size=1."
        return Finding("memory", "warning", "Little memory is left for decoding and encoding.", evidence, remedy)
    return Finding("memory", "info", "There is memory for decoding and encoding.", evidence)


def _pass_gate(config: StudyConfig, data: OpenedData) -> Iterator[Finding]:
    """What the leak gate says of the table, and of the pixels where all files have been looked at before."""
    leaks = table_leaks(config, data)
    seen = sighting_store(config, data).read([request.file_id for request in data.requests])
    is_complete = len(seen) == len(data.requests)
    if is_complete:
        leaks += pixel_leaks(config, data, seen)[0]
    for leak in leaks:
        yield leak.as_finding(accepted=leak.refuses and leak.code in config.leaks.accept, with_ids=True)
    if not any(leak.refuses for leak in leaks):
        what = "table and pixels" if is_complete else "table"
        yield Finding("leak_gate", "info", f"The leak gate finds nothing to refuse on the {what}.", "")
    if not is_complete:
        yield Finding(
            "pixels_not_looked_at",
            "info",
            f"{len(data.requests) - len(seen)} of {len(data.requests)} files were not looked at for duplicates yet.",
            "vitreous data verify STUDY does so now; run does so before it encodes",
        )


def _label_counts(data: OpenedData) -> str:
    counts = data.cohort.count_by(["split", "class"])
    return ", ".join(
        f"{split} {name} {patients}"
        for split, name, patients in zip(counts["split"], counts["class"], counts["patients"], strict=True)
    )


def _resolve_some(data: OpenedData) -> Finding:
    """Do the keys of five participants exist, one request each?"""
    firsts = data.cohort.samples.groupby("patient_id").first().head(_RESOLVED)
    missing = []
    for relative in firsts["relative"]:
        info = data.infos[relative]
        try:
            data.cache.fetch(data.store, info)
        except VitreousError as error:
            missing.append(str(error))
    if missing:
        return Finding(
            "keys",
            "error",
            f"{len(missing)} of {len(firsts)} participants' files cannot be fetched.",
            missing[0],
            "Check `files`, `pattern` or the manifest; refresh with data.refresh_listing=true.",
        )
    return Finding(
        "keys", "info", f"Files of {len(firsts)} participants are there.", f"e.g. {firsts['relative'].iloc[0]}"
    )


def _survey(data: OpenedData, partition: Partition, kept_inputs: dict[str, Decoded]) -> Iterator[Finding]:
    """Decode some inputs, spread over the cohort, and the few that the small probe needs."""
    samples = data.cohort.samples
    spread = np.unique(np.linspace(0, len(samples) - 1, _SURVEYED).astype(int))
    probed = [*_eight_rows(data, partition), *_rows_of_each_kind(data)]
    kept = set(samples["sample_id"].iloc[probed])  # a whole survey of decoded inputs may not fit into memory
    wanted = sorted({*spread.tolist(), *probed})
    chosen = samples.iloc[wanted]
    requests = [
        Request(data.file_ids[sample_id], relative, int(item))
        for sample_id, relative, item in zip(chosen["sample_id"], chosen["relative"], chosen["item"], strict=True)
    ]
    failures, rows = [], {}
    for sample_id, (request, path) in zip(chosen["sample_id"], data.stage(requests), strict=True):
        if isinstance(path, StorageError):
            failures.append(str(path))
            continue
        try:
            decoded = data.load_input(request, path)
            rows[sample_id] = describe_decoded(decoded)
        except InputError as error:
            failures.append(str(error))
            continue
        if sample_id in kept:
            kept_inputs[sample_id] = decoded
    if failures:
        yield Finding(
            "decode",
            "warning" if rows else "error",
            f"{len(failures)} of {len(requests)} files cannot be used.",
            failures[0],
            "Such files are quarantined; more than data.max_quarantined stops a run.",
        )
    if not rows:
        return
    title = f"{len(rows)} of {len(samples)} {item_noun(data.modality)} decoded"
    yield from describe_inputs(pd.DataFrame.from_dict(rows, orient="index"), title, data.modality)


def describe_inputs(statistics: pd.DataFrame, title: str, modality: Modality) -> Iterator[Finding]:
    table = summarise_volumes(statistics)
    shown = "; ".join(f"{name} {row['min']:.4g}…{row['median']:.4g}…{row['max']:.4g}" for name, row in table.iterrows())
    yield Finding(item_noun(modality), "info", f"{title} (minimum…median…maximum).", shown)
    yield from find_volume_outliers(statistics, modality)


def _describe(decoded: Decoded, tensor_CDHW: Any) -> dict[str, Any]:
    if isinstance(decoded, Volume):
        return describe_volume(decoded, tensor_CDHW)
    return {
        "file": {**describe_decoded(decoded), "facts": dict(decoded.facts)},
        "encoder": {"shape": tuple(tensor_CDHW.shape)},
    }


def _eight_rows(data: OpenedData, partition: Partition) -> list[int]:
    """Positions of training samples of different participants, classes in turn."""
    train = pd.DataFrame({"row": partition.rows("train"), "y": partition.y_N[partition.rows("train")]})
    train["patient_id"] = data.cohort.samples["patient_id"].to_numpy()[train["row"]]
    train = train.drop_duplicates("patient_id")
    train["turn"] = train.groupby("y").cumcount()
    wanted = max(_PROBED, 2 * len(data.cohort.classes))
    return [int(row) for row in train.sort_values(["turn", "y"])["row"].head(wanted)]


def _rows_of_each_kind(data: OpenedData) -> list[int]:
    """Positions of the first sample of each ending of a file name and, where it is known, each device."""
    samples = data.cohort.samples
    kinds = samples["relative"].map(lambda relative: "".join(PurePosixPath(relative).suffixes[-2:]))
    if "device" in samples.columns:
        kinds = kinds + " of " + samples["device"]
    return [int(row) for row in np.flatnonzero(~kinds.duplicated())[:_KINDS]]


def _try_encoder(
    config: StudyConfig,
    runtime: Runtime,
    data: OpenedData,
    opened: OpenedEncoder,
    partition: Partition,
    decoded: dict[str, Decoded],
) -> Iterator[Finding]:
    """One input through preprocessing and encoder, then the small probe."""
    import torch

    samples = data.cohort.samples
    is_there = [name in decoded for name in samples["sample_id"]]
    rows = [row for row in _eight_rows(data, partition) if is_there[row]]
    others = [row for row in _rows_of_each_kind(data) if is_there[row] and row not in rows]
    features: list[Any] = []
    inputs = []
    for row in [*rows, *others]:
        one = decoded[samples["sample_id"].iloc[row]]
        try:
            tensor_CDHW = finish_input(prepare_input(one, opened.encoder.spec), opened.encoder.spec)
        except InputError as error:
            yield Finding(
                "preprocess",
                "error",
                f"{opened.name} cannot use this cohort's {item_noun(data.modality)}.",
                str(error),
                f"Set {'data.spacing_mm, or ' if data.modality == 'volume' else ''}encoders.{opened.name}.input.",
            )
            return
        inputs.append(tensor_CDHW.float())
        with torch.inference_mode():
            tokens = opened.encoder(tensor_CDHW[None].to(runtime.torch_device))
            pooled_1D = pool_tokens(tokens, config.features.vector_pooling, config.features.grid)
        if not features:
            facts = _describe(one, tensor_CDHW)
            yield Finding(
                f"one_{data.modality}",
                "info",
                f"{opened.name}: one {item_noun(data.modality, 1)} through decode, preprocessing and encoder.",
                f"{facts} → tokens {tuple(tokens.tokens_BND.shape)} → features {tuple(pooled_1D.shape)}",
            )
        if not bool(torch.isfinite(pooled_1D).all()):
            yield Finding(
                "nan",
                "error",
                f"{opened.name} gives NaN or infinite features.",
                f"sample {samples['sample_id'].iloc[row]}",
                "precision=fp32, or look at the input spec.",
            )
            return
        features.append(pooled_1D[0].cpu().numpy())
    spec = opened.encoder.spec
    is_normalised = not isinstance(spec, InputSpec) or isinstance(spec.normalisation, FixedMeanStd | ZScore)
    yield from find_off_spec(inputs, opened.name, is_normalised=is_normalised and opened.encoder.family != "pixels")
    features = features[: len(rows)]
    labels = partition.y_N[rows]
    classes = np.unique(labels)
    if len(classes) < 2:
        yield Finding("small_probe", "warning", "Too few decodable classes for the eight-sample probe.", f"{classes}")
        return
    small = FeatureSet(
        np.stack(features).astype(np.float32),
        np.searchsorted(classes, labels),
        samples["patient_id"].to_numpy(np.str_)[rows],
        np.ones(len(rows)),
    )
    found = find_unlearnable(small, len(classes))
    yield Finding(found.code, found.severity, f"{opened.name}: {found.title}", found.evidence, found.remedy)
