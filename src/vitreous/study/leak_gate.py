"""The leak gate of a study: table, pixels and features, each able to refuse before the next begins."""

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitreous.config.study import StudyConfig
from vitreous.core.files import write_json
from vitreous.core.finding import Finding
from vitreous.core.input_spec import FixedMeanStd, PictureSpec, item_noun
from vitreous.core.label_sets import name_label_set
from vitreous.core.leak import Leak, refuse_leaks
from vitreous.core.progress import Advance, no_progress, progress_bar
from vitreous.features.encode import Request, files_in_use
from vitreous.features.leaks import find_near_features
from vitreous.features.sightings import SightingStore, look_at_missing
from vitreous.inputs.duplicates import find_duplicate_pairs
from vitreous.inputs.image_files import IMAGE_DECODER_VERSION
from vitreous.inputs.leaks import StatedScaler, find_scaler_of_test, find_shared_pixels
from vitreous.inputs.near_duplicates import MAX_DISTANCE
from vitreous.inputs.prepare import Decoded
from vitreous.inputs.sighting import Sighting, sight
from vitreous.inputs.video import VIDEO_DECODER_VERSION
from vitreous.inputs.volume import DECODER_VERSION
from vitreous.samples.leaks import find_table_leaks
from vitreous.storage.locks import exclusive
from vitreous.study.data import OpenedData
from vitreous.study.encoders import FLOOR, OpenedEncoder
from vitreous.study.partitions import make_partitions
from vitreous.study.run_directory import RunDirectory

if TYPE_CHECKING:
    from vitreous.study.encode import StudyFeatures

LEAKS = "leaks.json"


@dataclass
class LeakGate:
    """What has been found so far; a stage that refuses raises.

    Args:
        leaks: all, accepted ones and warnings.
        told: pairs of samples that the pixel stage has named.
        sightings: by content, as far as files were looked at.
    """

    config: StudyConfig
    data: OpenedData
    leaks: list[Leak] = field(default_factory=list)
    told: list[tuple[str, str]] = field(default_factory=list)
    sightings: dict[str, Sighting] = field(default_factory=dict)

    @property
    def accepted(self) -> frozenset[str]:
        """Codes that the study lets pass."""
        return frozenset(self.config.leaks.accept)

    def loader(self) -> AbstractContextManager[Callable[[Request, Path], Decoded]]:
        """How the encode pass decodes: as the data do, and with `leaks.pixels: during` looking at the same time."""
        if self.config.leaks.pixels == "before":
            return nullcontext(self.data.load_input)
        return LookingLoader(self.data.load_input, sighting_store(self.config, self.data))

    def check_table(self) -> None:
        """Raises LeakError before a file is opened."""
        self._judge(table_leaks(self.config, self.data), "table")

    def check_pixels(self, encoders: Sequence[OpenedEncoder]) -> None:
        """Raises LeakError for what the files that have been looked at show."""
        leaks, pairs = pixel_leaks(self.config, self.data, self.sightings, encoders)
        self.told += list(zip(pairs["first"], pairs["second"], strict=True))
        self._judge(leaks, "pixels")

    def check_features(self, features: "StudyFeatures", encoders: Sequence[OpenedEncoder]) -> None:
        """Raises LeakError before anything is adapted."""
        trained = {one.name for one in encoders if not one.is_floor and one.name != FLOOR}
        matrices = {name: matrix_ND for name, matrix_ND in features.features.items() if name in trained}
        self._judge(list(find_near_features(matrices, features.samples, self.told)), "features")

    def findings(self, *, with_ids: bool) -> list[Finding]:
        """All of them, for the terminal or for files that name nobody."""
        return [leak.as_finding(accepted=self._is_accepted(leak), with_ids=with_ids) for leak in self.leaks]

    def write(self, directory: RunDirectory) -> None:
        """``leaks.json``: what was accepted by name, and all findings, without ids."""
        accepted = [leak.title for leak in self.leaks if self._is_accepted(leak)]
        write_json(
            directory.root / LEAKS,
            {
                "schema_version": 1,
                "accepted": accepted,
                "findings": [vars(finding) for finding in self.findings(with_ids=False)],
            },
        )

    def _is_accepted(self, leak: Leak) -> bool:
        return leak.refuses and leak.code in self.accepted

    def _judge(self, leaks: Sequence[Leak], stage: str) -> None:
        self.leaks += leaks
        refuse_leaks(leaks, self.accepted, stage=stage)


def pass_gate_before_encoding(
    config: StudyConfig,
    data: OpenedData,
    encoders: Sequence[OpenedEncoder],
    workers: int,
    *,
    progress: Advance | None = None,
) -> LeakGate:
    """Table, then pixels: every file that no sighting is kept of is decoded once, unless `leaks.pixels: during`.

    Raises:
        LeakError: a leak that the study does not accept, with the rows.
    """
    gate = LeakGate(config, data)
    gate.check_table()
    if config.leaks.pixels == "before":
        gate.sightings = look_at_files(config, data, workers, progress=progress)
        if len(gate.sightings) == len(data.requests):  # otherwise too much is unusable, as the encode pass will say
            gate.check_pixels(encoders)
    return gate


def finish_gate(gate: LeakGate, features: "StudyFeatures", encoders: Sequence[OpenedEncoder], workers: int) -> None:
    """After encoding: the pixels where they were looked at meanwhile, then the features.

    Raises:
        LeakError: a leak that the study does not accept, with the rows.
    """
    if gate.config.leaks.pixels == "during":
        gate.sightings = look_at_files(gate.config, gate.data, workers)
        gate.check_pixels(encoders)
    gate.check_features(features, encoders)


def sighting_store(config: StudyConfig, data: OpenedData) -> SightingStore:
    """Where sightings of this study's files lie."""
    decoders = {"image": IMAGE_DECODER_VERSION, "clip": VIDEO_DECODER_VERSION, "volume": DECODER_VERSION}
    space = {"modality": data.modality, "decoder": decoders[data.modality], **data.describe_declared()}
    return SightingStore(Path(config.store).expanduser(), space)


def look_at_files(
    config: StudyConfig, data: OpenedData, workers: int, *, again: bool = False, progress: Advance | None = None
) -> dict[str, Sighting]:
    """A sighting of each file; those that are not kept are made and kept."""
    store = sighting_store(config, data)
    with exclusive(store.folder / ".lock"):
        known = set() if again else set(store.read([request.file_id for request in data.requests]))
        missing = sum(request.file_id not in known for request in data.requests)
        what = f"Looking at each {data.modality} once"
        bar = nullcontext(no_progress) if not missing else progress_bar(what, missing)
        with bar if progress is None else nullcontext(progress) as advance:
            return look_at_missing(
                data.requests,
                store,
                stage=partial(data.stage, in_use=files_in_use(workers)),
                load_input=data.load_input,
                workers=workers,
                max_bad=None if again else int(config.data.max_quarantined * len(data.requests)),
                again=again,
                progress=advance,
            )


class LookingLoader:
    """`load_input` that keeps a sighting of everything it decodes, for `leaks.pixels: during`.

    Args:
        load_input: of the data.
        store: where sightings go at the end.
    """

    def __init__(self, load_input: Callable[[Request, Path], Decoded], store: SightingStore) -> None:
        self._load_input, self._store = load_input, store
        self._seen: dict[str, Sighting] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Keep what was seen, also of a pass that was cut short."""
        self._store.write(dict(sorted(self._seen.items())))

    def __call__(self, request: Request, path: Path) -> Decoded:
        decoded = self._load_input(request, path)
        self._seen[request.file_id] = sight(decoded)  # threads write different keys
        return decoded


def table_leaks(config: StudyConfig, data: OpenedData) -> list[Leak]:
    """What table, names and listing give away."""
    return find_table_leaks(
        data.cohort,
        labels_that_may_be_seen(config, data),
        columns=tuple(getattr(config.data, "columns", ())),
        names_are_labels=config.data.kind == "folder",
    )


def labels_that_may_be_seen(config: StudyConfig, data: OpenedData) -> npt.NDArray[np.int64]:
    """Class index of each sample of train and val, with folds of the first round; -1 for all others."""
    if config.folds is None:
        return data.cohort.samples["y"].to_numpy(np.int64)
    return make_partitions(data.cohort, config.folds)[0].y_N


def pixel_leaks(
    config: StudyConfig,
    data: OpenedData,
    sightings: dict[str, Sighting],
    encoders: Sequence[OpenedEncoder] = (),
    max_distance: int = MAX_DISTANCE,
) -> tuple[list[Leak], pd.DataFrame]:
    """What decoded files have in common, and the pairs; files that cannot be used take no part."""
    samples = data.cohort.samples
    by_sample = [sightings.get(file_id) for file_id in data.file_ids]
    is_usable = np.array([one is not None and one.is_usable for one in by_sample], dtype=bool)
    seen = [one for one in by_sample if one is not None and one.is_usable]
    usable = samples[is_usable].reset_index(drop=True)
    known = labels_that_may_be_seen(config, data)[is_usable]
    cohort = data.cohort
    classes = ["" if y < 0 else name_label_set(int(y), cohort.classes, cohort.task) for y in known]
    pairs = find_duplicate_pairs(usable, seen, classes, max_distance)
    pairs = pairs[~_is_one_file(pairs, usable)].reset_index(drop=True)  # the table stage has judged these
    shared = find_shared_pixels(
        pairs,
        has_splits=bool((samples["split"] != "").any()),
        knows_patients=bool((samples["patient_id"] != samples["sample_id"]).any()),
        max_distance=max_distance,
    )
    scalers = find_scaler_of_test(_stated_scalers(encoders), usable, seen)
    return [*shared, *scalers], pairs


def _is_one_file(pairs: pd.DataFrame, samples: pd.DataFrame) -> npt.NDArray[np.bool_]:
    own = samples[(samples["item"] < 0) & (samples["etag"] != "")]
    tags = {name: (etag, size) for name, etag, size in zip(own["sample_id"], own["etag"], own["size"], strict=True)}
    return np.array(
        [
            first in tags and tags[first] == tags.get(second)
            for first, second in zip(pairs["first"], pairs["second"], strict=True)
        ],
        dtype=bool,
    )


def _stated_scalers(encoders: Sequence[OpenedEncoder]) -> list[StatedScaler]:
    """Means and standard deviations that the study sets itself."""
    scalers = []
    for opened in encoders:
        spec = opened.encoder.spec
        if isinstance(spec, PictureSpec):
            if "mean" in opened.overridden:
                scalers.append(StatedScaler(opened.name, spec.mean, spec.std))
        elif isinstance(spec.normalisation, FixedMeanStd) and "normalisation" in opened.overridden:
            fixed = spec.normalisation
            scalers.append(StatedScaler(opened.name, fixed.mean, fixed.std, fixed.value_range))
    return scalers


def read_leaks(directory: RunDirectory) -> list[Finding]:
    """What the gate found before a run; nothing where the run was made before there was a gate."""
    path = directory.root / LEAKS
    if not path.exists():
        return []
    return [Finding(**finding) for finding in json.loads(path.read_text())["findings"]]


def describe_gate(gate: LeakGate) -> str:
    """One line for the terminal: how many items passed, and what was accepted."""
    accepted = sorted({leak.code for leak in gate.leaks if leak.refuses})
    what = f"{len(gate.data.cohort.samples)} {item_noun(gate.data.modality)}"
    return f"Leak gate: {what} passed" + (f", accepted by name: {', '.join(accepted)}." if accepted else ".")
