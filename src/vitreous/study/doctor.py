"""`vitreous doctor STUDY | RUN_DIR`: what is wrong, the evidence, what to run next."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.markup import escape

from vitreous.config.compose import load_study, packaged_studies
from vitreous.config.study import StudyConfig
from vitreous.core.errors import InputError, StorageError, UserError, VitreousError
from vitreous.core.finding import Finding
from vitreous.core.input_spec import Modality, item_noun
from vitreous.diagnosis.small_probe import find_unlearnable
from vitreous.diagnosis.volumes import find_volume_outliers, summarise_volumes
from vitreous.features.encode import Request
from vitreous.features.pooling import pool_tokens
from vitreous.inputs.description import describe_volume
from vitreous.inputs.prepare import Decoded, describe_decoded, finish_input, prepare_input
from vitreous.inputs.volume import Volume
from vitreous.recipes.feature_set import FeatureSet
from vitreous.study.account import read_account
from vitreous.study.data import OpenedData, open_data
from vitreous.study.encoders import OpenedEncoder, open_encoders
from vitreous.study.looking_inside import look_inside
from vitreous.study.partitions import Partition, make_partitions
from vitreous.study.report import leaderboard_of
from vitreous.study.rows import read_kept_rows, read_rows
from vitreous.study.run_directory import RunDirectory, kept_study
from vitreous.study.runtime import Runtime, resolve_runtime

_SURVEYED = 24  # volumes or images decoded for the statistics of the cohort
_PROBED = 8
_RESOLVED = 5
_MARKS = {"info": "[green]ok[/]     ", "warning": "[yellow]warning[/]", "error": "[red]error[/]  "}


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
    try:
        data = open_data(config, keep_listing=False)
    except VitreousError as error:
        yield Finding("data", "error", "The data cannot be opened.", str(error), "Mend this, then run doctor again.")
        return
    samples = data.cohort.samples
    yield Finding("reachable", "info", f"{data.store.root} answers.", f"{len(data.infos)} files")
    yield Finding(
        "labels", "info", f"Labels of {samples['patient_id'].nunique()} participants are parsed.", _label_counts(data)
    )
    yield from data.cohort.findings
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
    probed = _eight_rows(data, partition)
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
        except InputError as error:
            failures.append(str(error))
            continue
        rows[sample_id] = describe_decoded(decoded)
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
    yield from _describe_inputs(pd.DataFrame.from_dict(rows, orient="index"), title, data.modality)


def _describe_inputs(statistics: pd.DataFrame, title: str, modality: Modality) -> Iterator[Finding]:
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
    rows = [row for row in _eight_rows(data, partition) if samples["sample_id"].iloc[row] in decoded]
    features: list[Any] = []
    for row in rows:
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


def examine_run(directory: RunDirectory) -> Iterator[Finding]:
    """Look at a finished run: collapsed and identical rows, floors, choices at the edge, files that stand out."""
    config = kept_study(directory)
    account = read_account(directory)
    yield Finding(
        "account",
        "info",
        f"{account['rows']} rows = {account['encoded']} encoded + {account['quarantined']} "
        f"quarantined + {account['excluded']} excluded by rule.",
        str(account["excluded_by_rule"]),
    )
    if account["patients_without_usable_volume"]:
        yield Finding(
            "lost_patients",
            "warning",
            f"Some participants have no usable {item_noun(config.data.modality, 1)} and are not scored.",
            str(account["patients_without_usable_volume"]),
            f"See {directory.data_errors}.",
        )
    statistics = _statistics_of(directory)
    title = f"{len(statistics)} {item_noun(config.data.modality, len(statistics))}"
    yield from _describe_inputs(statistics, title, config.data.modality)
    leaderboard = leaderboard_of(directory, config)
    yield from leaderboard.findings
    yield from look_inside(directory, config, read_rows(directory, config), read_kept_rows(directory)).findings
    for row in leaderboard.rows:
        if row.not_cleared:
            yield Finding(
                "floor",
                "warning",
                f"{row.name} does not clear {', '.join(row.not_cleared)}.",
                f"letters {row.letters}",
                "More participants, or another encoder.",
            )
    for kept in read_kept_rows(directory):
        for fold in kept.folds:
            folder = directory.unit(kept.encoder, kept.recipe, kept.seeds[0], fold).parent
            selection = json.loads((folder / "selection.json").read_text())
            for finding in selection["findings"]:
                yield Finding(
                    finding["code"],
                    finding["severity"],
                    f"{kept.encoder} / {kept.recipe}: {finding['title']}",
                    finding["evidence"],
                    finding["remedy"],
                )


def _statistics_of(directory: RunDirectory) -> pd.DataFrame:
    """Statistics of every encoded volume or image of a run, by sample id."""
    manifest = pd.read_parquet(directory.manifest)
    encoded = manifest[manifest["fate"] == "encoded"].set_index("sample_id")
    columns = [column for column in encoded.columns if column.startswith("volume_")]
    return encoded[columns].rename(columns=lambda column: column.removeprefix("volume_"))


def _examine(target: str, overrides: Sequence[str]) -> Iterator[Finding]:
    """A folder with a study.yaml is a run; everything else is the path or the packaged name of a study.

    Raises:
        UserError: a folder that is neither, or overrides for a run, which took its settings long ago.
    """
    directory = RunDirectory(Path(target).expanduser())
    if directory.study_yaml.is_file():
        if overrides:
            raise UserError(f"{target}: a finished run takes no overrides; got {' '.join(overrides)}. Leave them out.")
        return examine_run(directory)
    if directory.root.is_dir() and target not in packaged_studies():
        known = ", ".join(packaged_studies())
        raise UserError(f"{target}: no run directory (it has no study.yaml), and no packaged study; those are {known}.")
    return examine_study(load_study(target, overrides))


def print_doctor(target: str, overrides: Sequence[str]) -> bool:
    """Print findings as they are made; True if one of them is an error."""
    return print_findings(_examine(target, overrides))


def print_findings(findings: Iterable[Finding]) -> bool:
    """Print each with its evidence and what to do about it; True if one of them is an error."""
    console = Console(highlight=False, soft_wrap=True)
    is_wrong = False
    for finding in findings:
        is_wrong |= finding.severity == "error"
        console.print(f"{_MARKS[finding.severity]}  {escape(finding.title)}")
        if finding.evidence:
            console.print(f"         [dim]{escape(finding.evidence)}[/]")
        if finding.remedy and finding.severity != "info":
            console.print(f"         → {escape(finding.remedy)}")
    return is_wrong
