"""A study's data, opened: the cohort, where its bytes are, and how a file becomes a volume."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, assert_never

import pandas as pd
import psutil

from vitreous.config.data import FractionsSplit, NpzData, ParticipantsData
from vitreous.config.study import StudyConfig
from vitreous.core.fingerprints import fingerprint
from vitreous.features.encode import Request, Staged
from vitreous.inputs.decode import decode_volume
from vitreous.inputs.numpy_files import NpzArrays
from vitreous.inputs.volume import DeclaredAxes, Volume
from vitreous.samples.cohort import Cohort
from vitreous.samples.npz import load_npz_cohort
from vitreous.samples.participants import load_participants
from vitreous.samples.splits import FractionSplit
from vitreous.storage.files import fetch_file
from vitreous.storage.listing import load_key_manifest
from vitreous.storage.location import Location, ObjectInfo, S3Options
from vitreous.storage.objects import ObjectStore
from vitreous.storage.staging import StagingCache

_GB = 10**9


@dataclass(frozen=True)
class OpenedData:
    """What the rest of a run needs to know of the data.

    Args:
        cohort: samples, checked; test labels sealed.
        infos: the file of each `relative` of the cohort (for npz, of each array).
        store: where the files lie.
        cache: local copies of remote files.
        declared: what the study says where a file does not.
        max_bytes: a volume that declares more is refused before it is allocated.
    """

    cohort: Cohort
    infos: Mapping[str, ObjectInfo]
    store: ObjectStore
    cache: StagingCache
    declared: DeclaredAxes
    max_bytes: int
    _opening: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @cached_property
    def file_ids(self) -> pd.Series:
        """Content identity of each sample's file (and item), indexed by sample id, in the order of the cohort."""
        samples = self.cohort.samples
        identities = {relative: info.identity for relative, info in self.infos.items()}
        ids = [
            identities[relative] if item < 0 else fingerprint([identities[relative], relative, int(item)])
            for relative, item in zip(samples["relative"], samples["item"], strict=True)
        ]
        return pd.Series(ids, index=samples["sample_id"])

    @cached_property
    def requests(self) -> list[Request]:
        """Each content once, in the order of the cohort."""
        samples = self.cohort.samples
        once: dict[str, Request] = {}
        for file_id, relative, item in zip(self.file_ids, samples["relative"], samples["item"], strict=True):
            once.setdefault(file_id, Request(file_id, relative, int(item)))
        return list(once.values())

    def stage(self, requests: Sequence[Request], *, in_use: int = 1) -> Iterator[Staged]:
        """Bring the files of these requests to disk, ahead of use, in the order asked for.

        Args:
            in_use: of the files given last, how many may still be read.
        """
        # neighbouring items of one file (npz) share one staged copy
        runs = [list(run) for _, run in groupby(requests, key=lambda request: self.infos[request.source].location)]
        staged = self.cache.stream(self.store, [self.infos[run[0].source] for run in runs], in_use=in_use)
        for run, (_, path) in zip(runs, staged, strict=True):
            for request in run:
                yield request, path

    def load_volume(self, request: Request, path: Path) -> Volume:
        """Decode one staged file or item.

        Raises:
            InputError: it cannot be used.
        """
        if request.item < 0:
            return decode_volume(path, declared=self.declared, max_bytes=self.max_bytes)
        return self._arrays(path).volume(request.source, request.item)

    def _arrays(self, path: Path) -> NpzArrays:
        with self._opening:
            if path not in self._opened_arrays:
                # an array holds many volumes, so the limit of one volume is no measure for it
                half_of_memory = psutil.virtual_memory().total // 2
                self._opened_arrays[path] = NpzArrays(path, self.declared, max_bytes=half_of_memory)
            return self._opened_arrays[path]

    @cached_property
    def _opened_arrays(self) -> dict[Path, NpzArrays]:
        return {}

    def describe_declared(self) -> dict[str, Any]:
        """Plain values, for the feature key."""
        return {"axes": self.declared.axes, "spacing_mm": self.declared.spacing_mm}


def open_cache(config: StudyConfig) -> StagingCache:
    """The study's local cache of remote files."""
    return StagingCache(Path(config.cache.dir).expanduser(), config.cache.max_gb)


def s3_options(config: StudyConfig) -> S3Options:
    """Endpoint and region; keys come from the environment."""
    return S3Options(config.s3.endpoint, config.s3.region, config.s3.etags_are_md5)


def open_data(config: StudyConfig, *, keep_listing: bool = True) -> OpenedData:
    """Read tables and listing, check everything, keep nothing but the listing.

    Args:
        keep_listing: False for `plan`, which writes nothing.

    Raises:
        SampleError: with every problem of table, labels, splits and files.
        LocationError: table, files or bucket are not there or may not be read.
    """
    cache = open_cache(config)
    data = config.data
    declared = DeclaredAxes(axes=data.axes, spacing_mm=data.spacing_mm)
    max_bytes = int(data.max_volume_gb * _GB)
    match data:
        case ParticipantsData():
            store = ObjectStore(Location.parse(data.files), s3_options(config))
            listing = load_key_manifest(store, cache_dir=cache.dir, refresh=data.refresh_listing, write=keep_listing)
            cohort = _open_participants(config, data, listing, cache)
            used = set(cohort.samples["relative"])
            infos = {info.relative: info for info in listing if info.relative in used}
        case NpzData():
            location = Location.parse(data.table)
            store = ObjectStore(location.parent, s3_options(config))
            info = store.head(location.name)
            cohort = load_npz_cohort(cache.fetch(store, info), data.classes, patients=data.patient, name=data.table)
            # the arrays are as new as their file: another file under the same path is another cohort
            cohort.samples["etag"] = info.etag
            infos = dict.fromkeys(cohort.samples["relative"].unique(), info)
        case _:
            assert_never(data)
    return OpenedData(cohort, infos, store, cache, declared, max_bytes)


def _open_participants(
    config: StudyConfig, data: ParticipantsData, listing: Sequence[ObjectInfo], cache: StagingCache
) -> Cohort:
    def fetch(location: str) -> Path:
        return fetch_file(location, s3_options(config), cache)

    split: str | FractionSplit | dict[str, Path] | None
    if config.folds is not None:
        split = None
    elif isinstance(data.split, FractionsSplit):
        split = FractionSplit(data.split.fractions, data.split.seed)
    elif isinstance(data.split, str):
        split = data.split
    else:
        split = {str(name): fetch(location) for name, location in data.split.items()}
    return load_participants(
        fetch(data.table),
        label=data.label,
        classes=data.classes,
        split=split,
        manifest=None if data.manifest is None else fetch(data.manifest),
        listing=listing,
        pattern=data.pattern,
        patient=data.patient,
        where=data.where,
        volumes=data.volumes,
        domains=data.domains,
        table_name=data.table,
        manifest_name=data.manifest,
    )
