"""What the kept features of a run say: their spread, shortcuts, standardisers, labels that held-out probes doubt."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitreous.config.study import StudyConfig
from vitreous.core.errors import VitreousError
from vitreous.core.files import replacing
from vitreous.core.finding import Finding
from vitreous.diagnosis.feature_health import find_foreign_standardiser, find_poor_features
from vitreous.diagnosis.label_errors import find_label_errors, suspect_labels
from vitreous.diagnosis.shortcuts import Shortcut, examine_shortcut, find_shortcuts
from vitreous.features.store import read_kept
from vitreous.study.data import OpenedData, open_data
from vitreous.study.encoders import FLOOR, UNTRAINED
from vitreous.study.heads import read_model, read_tensors
from vitreous.study.partitions import Partition, make_partitions
from vitreous.study.provenance import cohort_fingerprint
from vitreous.study.row import is_on_tokens
from vitreous.study.rows import KeptRow
from vitreous.study.run_directory import RunDirectory

LABEL_REVIEW = "label_review.csv"
_EXTRA_COLUMNS = ("laterality", "device", "region")


@dataclass(frozen=True)
class RunFeatures:
    """Features of a run, found again.

    Args:
        samples: rows of the cohort that every encoder could use.
        partition: of these rows; with folds the first round.
        features: encoder → (N, D), rows as in `samples`.
    """

    data: OpenedData
    samples: pd.DataFrame
    partition: Partition
    features: Mapping[str, npt.NDArray[np.float32]]


def examine_features(
    directory: RunDirectory, config: StudyConfig, kept: Sequence[KeptRow], scores: Mapping[str, float | None]
) -> Iterator[Finding]:
    """Everything that needs features, if they and the data are still where the run left them.

    Args:
        scores: row → the study's metric on test, to be set beside what a column alone gives.
    """
    try:
        found = find_features(directory, config, kept)
    except VitreousError as error:
        yield _skipped(str(error))
        return
    if isinstance(found, str):
        yield _skipped(found)
        return
    own = [one for one in kept if reads_features(config, one) and one.features_of in found.features]
    for name in dict.fromkeys(str(one.features_of) for one in own):
        yield from find_poor_features(found.features[name], name)
    yield from _examine_standardisers(directory, own, found)
    yield from _examine_shortcuts(config, own, found, scores)
    yield from _examine_labels(directory, own, found, scores)


def reads_features(config: StudyConfig, kept: KeptRow) -> bool:
    """Whether a row is of an encoder that the study names, and reads one vector a sample: no pixels, no tokens."""
    is_floor = kept.encoder == FLOOR or (kept.is_floor and kept.encoder.startswith(UNTRAINED))
    return not is_floor and not kept.on_pixels and not is_on_tokens(config.recipes.get(kept.recipe))


def find_features(directory: RunDirectory, config: StudyConfig, kept: Sequence[KeptRow]) -> RunFeatures | str:
    """The features of every encoder with a row on features; or why they are not there.

    Raises:
        VitreousError: the data cannot be opened any more.
    """
    keys: dict[str, str] = {}
    for one in kept:
        if one.features_of is not None and reads_features(config, one):
            model = read_model(directory.unit(one.encoder, one.recipe, one.seeds[0], one.folds[0]))
            if "feature_key" in model:
                keys.setdefault(one.features_of, model["feature_key"])
    if not keys:
        return "no row of this run reads features"
    data = open_data(config, keep_listing=False)
    hashes = _kept_hashes(directory)
    if cohort_fingerprint(data.cohort) != hashes["cohort"]:
        return "table or files have changed since the run"
    manifest = pd.read_parquet(directory.manifest)
    encoded = set(manifest.loc[manifest["fate"] == "encoded", "sample_id"])
    samples = data.cohort.samples[data.cohort.samples["sample_id"].isin(encoded)].reset_index(drop=True)
    samples = samples.assign(weight=1.0 / samples.groupby("patient_id")["sample_id"].transform("count"))
    file_ids = data.file_ids.loc[samples["sample_id"]].tolist()
    features = {}
    for name, key in keys.items():
        rows = read_kept(Path(config.store).expanduser() / key[:2] / key, file_ids)
        matrix = [row.features_D for row in rows if row is not None and row.features_D is not None]
        if len(matrix) != len(samples):
            return f"the feature store lacks {len(samples) - len(matrix)} files of {name}"
        features[name] = np.stack(matrix)
    partition = make_partitions(data.cohort, config.folds, samples["sample_id"])[0]
    return RunFeatures(data, samples, partition, features)


def _kept_hashes(directory: RunDirectory) -> dict[str, str]:
    hashes: dict[str, str] = json.loads(directory.provenance.read_text())["hashes"]
    return hashes


def _skipped(why: str) -> Finding:
    return Finding(
        "features_not_there",
        "info",
        "Features are not looked at: health, shortcuts and label errors are left out.",
        why,
        "vitreous run STUDY brings them back, where data and store are reachable.",
    )


def _examine_standardisers(directory: RunDirectory, own: Sequence[KeptRow], found: RunFeatures) -> Iterator[Finding]:
    train = found.partition.rows("train")
    others = np.concatenate([found.partition.rows("val"), found.partition.rows("test")])
    for one in own:
        tensors = read_tensors(directory.unit(one.encoder, one.recipe, one.seeds[0], one.folds[0]))
        matrix_ND = found.features[str(one.features_of)]
        if "standardiser.mean" in tensors and tensors["standardiser.mean"].shape == matrix_ND.shape[1:]:
            yield from find_foreign_standardiser(
                tensors["standardiser.mean"].astype(np.float64),
                matrix_ND[train],
                found.samples["weight"].to_numpy(np.float64)[train],
                matrix_ND[others],
                f"{one.encoder} / {one.recipe}",
            )


def _examine_shortcuts(
    config: StudyConfig, own: Sequence[KeptRow], found: RunFeatures, scores: Mapping[str, float | None]
) -> Iterator[Finding]:
    cohort, samples = found.data.cohort, found.samples
    labels = _labels_of(found)
    num_classes = len(cohort.classes) if cohort.task == "multi_class" else 2
    named = [*cohort.domains, *getattr(config.data, "columns", ()), *_EXTRA_COLUMNS]
    columns = [column for column in dict.fromkeys(named) if column in samples.columns]
    best: dict[str, float] = {}
    shortcuts: list[Shortcut] = []
    for name in dict.fromkeys(str(one.features_of) for one in own):
        values = [scores.get(f"{one.encoder} / {one.recipe}") for one in own if one.features_of == name]
        if config.metric == "balanced_accuracy" and (known := [value for value in values if value is not None]):
            best[name] = max(known)
        for column in columns:
            one_column = examine_shortcut(
                found.features[name],
                samples[column],
                samples["patient_id"].to_numpy(np.str_),
                {label: y_N for label, (y_N, _) in labels.items()},
                num_classes,
                column=column,
                encoder=name,
            )
            shortcuts += [] if one_column is None else [one_column]
    yield from find_shortcuts(shortcuts, num_classes, best)


def _examine_labels(
    directory: RunDirectory, own: Sequence[KeptRow], found: RunFeatures, scores: Mapping[str, float | None]
) -> Iterator[Finding]:
    """By the encoder of the row that is highest on the leaderboard."""
    known = np.flatnonzero(found.partition.y_N >= 0)
    if not own or not len(known):
        return
    best = max(own, key=lambda one: scores.get(f"{one.encoder} / {one.recipe}") or 0.0)
    suspects = [
        suspected
        for y_N, classes in _labels_of(found).values()
        if (
            suspected := suspect_labels(
                found.features[str(best.features_of)][known],
                y_N[known],
                found.samples["sample_id"].to_numpy(np.str_)[known],
                found.samples["patient_id"].to_numpy(np.str_)[known],
                classes,
            )
        )
        is not None
    ]
    if not suspects:
        return
    table = pd.concat(suspects, ignore_index=True)
    with replacing(directory.root / LABEL_REVIEW) as aside:
        table.to_csv(aside, index=False)
    yield from find_label_errors(table, len(known), str(best.features_of), LABEL_REVIEW)


def _labels_of(found: RunFeatures) -> dict[str, tuple[npt.NDArray[np.int64], tuple[str, ...]]]:
    """What may be seen of the labels: class indices and names, or of several labels 0 or 1 for each; -1 elsewhere."""
    cohort, y_N = found.data.cohort, found.partition.y_N
    if cohort.task == "multi_class":
        return {"": (y_N, cohort.classes)}
    return {
        label: (np.where(y_N < 0, -1, (y_N >> position) & 1), (f"no {label}", label))
        for position, label in enumerate(cohort.classes)
    }
