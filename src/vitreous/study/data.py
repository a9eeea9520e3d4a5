"""A study's data, opened: the cohort, where its bytes are, and how a file becomes a volume, an image or a clip."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, assert_never

import pandas as pd
import psutil
import torch

from vitreous.config.clip_data import FramesData
from vitreous.config.data import CsvData, FolderData, FractionsSplit, NpzData, ParticipantsData, ValFractionSplit
from vitreous.config.study import StudyConfig
from vitreous.core.errors import CircumstanceError, InputError, LocationError, StorageError
from vitreous.core.fingerprints import fingerprint
from vitreous.core.input_spec import ClipSpec, Modality
from vitreous.features.encode import Request, Staged
from vitreous.inputs.clip_preprocessing import clip_frames, place_picture
from vitreous.inputs.decode import decode_volume
from vitreous.inputs.image_files import decode_image
from vitreous.inputs.masks import decode_mask, place_mask
from vitreous.inputs.numpy_files import NpzArrays
from vitreous.inputs.prepare import Decoded
from vitreous.inputs.volume import DeclaredAxes, check_declared_size
from vitreous.samples.cohort import Cohort
from vitreous.samples.folders import load_image_folders
from vitreous.samples.image_table import load_image_table
from vitreous.samples.npz import load_npz_cohort
from vitreous.samples.participants import load_participants
from vitreous.samples.splits import FractionSplit, ValFraction
from vitreous.samples.stretches import StretchColumns
from vitreous.storage.files import fetch_file
from vitreous.storage.listing import load_key_manifest
from vitreous.storage.location import Location, ObjectInfo, S3Options
from vitreous.storage.objects import ObjectStore
from vitreous.storage.staging import StagingCache
from vitreous.study.clips import ClipMasks, FrameClips, VideoClips, stretches_of
from vitreous.study.frame_data import one_store, open_frames

_MB, _GB = 10**6, 10**9


@dataclass(frozen=True)
class OpenedData:
    """What the rest of a run needs to know of the data.

    Args:
        cohort: samples, checked; test labels sealed.
        infos: the file of each `relative` of the cohort (for npz, of each array).
        store: where the files lie.
        cache: local copies of remote files.
        declared: what the study says where a file does not.
        max_bytes: a volume or image that declares more is refused before it is allocated.
        modality: what a file, or an item of one, is.
        clips: what belongs to each clip, where samples are clips.
        masks: class maps of labelled frames, where the study names any.
        agreement: how well neighbouring frames agree, see :func:`~vitreous.samples.frame_labels.count_agreement`.
    """

    cohort: Cohort
    infos: Mapping[str, ObjectInfo]
    store: ObjectStore
    cache: StagingCache
    declared: DeclaredAxes
    max_bytes: int
    modality: Modality = "volume"
    clips: VideoClips | FrameClips | None = None
    masks: ClipMasks | None = None
    agreement: pd.DataFrame | None = None
    _opening: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @cached_property
    def file_ids(self) -> pd.Series:
        """Content identity of each sample's file (and item), indexed by sample id, in the order of the cohort."""
        samples = self.cohort.samples
        identities = {relative: info.identity for relative, info in self.infos.items()}

        def identify(relative: str, item: int) -> str:
            if self.clips is not None:
                return self.clips.identify(relative, item, identities)
            return identities[relative] if item < 0 else fingerprint([identities[relative], relative, item])

        ids = [
            identify(relative, int(item)) for relative, item in zip(samples["relative"], samples["item"], strict=True)
        ]
        return pd.Series(ids, index=samples["sample_id"])

    @property
    def files(self) -> dict[Location, int]:
        """Every file that may be read, and its bytes: of clips of image files all frames."""
        infos = list(self.infos.values())
        if isinstance(self.clips, FrameClips):
            infos += self.clips.infos.values()
        return {info.location: info.size for info in infos}

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

    def load_input(self, request: Request, path: Path) -> Decoded:
        """Decode one staged file or item.

        Raises:
            InputError: it cannot be used.
        """
        if self.clips is not None:
            return self.clips.open(request, path)
        is_image = self.modality == "image"
        if request.item < 0:
            if is_image:
                return decode_image(path, max_bytes=self.max_bytes)
            return decode_volume(path, declared=self.declared, max_bytes=self.max_bytes)
        arrays = self._arrays(path)
        if is_image:
            return arrays.image(request.source, request.item)
        check_declared_size(arrays.shape(request.source)[1:], bytes_per_value=1, max_bytes=self.max_bytes)
        return arrays.volume(request.source, request.item)

    def load_mask(self, relative: str, spec: ClipSpec, size: tuple[int, int]) -> torch.Tensor | None:
        """The class map of a clip's labelled frame, (h, w) int64, where the encoder's picture lies; None without one.

        Pixels that say nothing are `vitreous.inputs.masks.IGNORE_INDEX`.

        Args:
            relative: of the sample.
            spec: of the encoder.
            size: rows and columns that are asked for.

        Raises:
            InputError: the mask cannot be read, is not of the frame's size, or holds an unknown class.
        """
        info = None if self.masks is None else self.masks.of(relative)
        if self.masks is None or info is None:
            return None
        try:
            path = self.masks.fetch(info)
        except (LocationError, StorageError) as error:
            raise CircumstanceError(f"a mask could not be fetched ({error}).") from None
        mask_HW = decode_mask(
            path, num_classes=len(self.masks.classes), ignore=self.masks.ignore, max_bytes=self.max_bytes
        )
        assert isinstance(self.clips, FrameClips)
        clip = self.clips.open(Request("", relative), path)
        # a step that looks for the picture looks at the frames that the encoder gets
        indices = clip_frames(clip, spec).indices if spec.endoscope else (clip.middle,)
        frames_THWC = clip.read(indices)
        if frames_THWC.shape[1:3] != mask_HW.shape:
            raise InputError(
                f"the mask has {mask_HW.shape[0]} × {mask_HW.shape[1]} pixels, its frame {frames_THWC.shape[1]} × "
                f"{frames_THWC.shape[2]}; they must have one size."
            )
        return place_mask(mask_HW, place_picture(frames_THWC, spec), size)

    def _arrays(self, path: Path) -> NpzArrays:
        with self._opening:
            if path not in self._opened_arrays:
                # an array holds many items, so the limit of one is no measure for it
                half_of_memory = psutil.virtual_memory().total // 2
                self._opened_arrays[path] = NpzArrays(path, self.declared, max_bytes=half_of_memory)
            return self._opened_arrays[path]

    @cached_property
    def _opened_arrays(self) -> dict[Path, NpzArrays]:
        return {}

    def describe_declared(self) -> dict[str, Any]:
        """Plain values, for the feature key."""
        if self.clips is not None:
            return self.clips.describe()
        if self.modality == "image":
            return {"axes": self.declared.axes}
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
    match data:
        case ParticipantsData():
            store = ObjectStore(Location.parse(data.files), s3_options(config))
            listing = load_key_manifest(store, cache_dir=cache.dir, refresh=data.refresh_listing, write=keep_listing)
            cohort = _open_participants(config, data, listing, cache)
            declared = DeclaredAxes(axes=data.axes, spacing_mm=data.spacing_mm)
            max_bytes = int(data.max_volume_gb * _GB)
            return OpenedData(cohort, _used(cohort, {"": listing}), store, cache, declared, max_bytes)
        case NpzData():
            location = Location.parse(data.table)
            store = ObjectStore(location.parent, s3_options(config))
            info = store.head(location.name)
            cohort = load_npz_cohort(
                cache.fetch(store, info),
                data.classes,
                patients=data.patient,
                item_axes=data.axes,
                name=data.table,
                one_label=data.aggregate != "none",
                task=data.task,
            )
            # the arrays are as new as their file: another file under the same path is another cohort
            cohort.samples["etag"] = info.etag
            infos = dict.fromkeys(cohort.samples["relative"].unique(), info)
            declared = DeclaredAxes(axes=data.axes, spacing_mm=data.spacing_mm)
            max_bytes = int(data.max_volume_gb * _GB)
            return OpenedData(cohort, infos, store, cache, declared, max_bytes, data.modality)
        case CsvData() | FolderData():
            return _open_images(config, data, cache, keep_listing=keep_listing)
        case FramesData():
            return _open_frames(config, data, cache, keep_listing=keep_listing)
        case _:
            assert_never(data)


def _open_images(
    config: StudyConfig, data: CsvData | FolderData, cache: StagingCache, *, keep_listing: bool
) -> OpenedData:
    places = data.files if isinstance(data.files, dict) else {"": data.files}
    stores = {str(part): ObjectStore(Location.parse(place), s3_options(config)) for part, place in places.items()}
    store = one_store(list(stores.values()))
    listings = {
        part: load_key_manifest(folder, cache_dir=cache.dir, refresh=data.refresh_listing, write=keep_listing)
        for part, folder in stores.items()
    }
    if isinstance(data, CsvData):
        cohort = _open_csv(config, data, listings, cache)
    else:
        cohort = load_image_folders(
            listings[""],
            classes=data.classes,
            has_split_folders=config.folds is None and not isinstance(data.split, FractionsSplit),
            split=_drawn_split(data.split),
            patient_pattern=data.patient_pattern,
            ignore=data.ignore,
            one_label=data.aggregate != "none",
            accepts_spelling=_accepts_spelling(config),
            name=data.files,
        )
    max_bytes = int(data.max_image_mb * _MB)
    clips = None
    if isinstance(data, CsvData) and data.video is not None:
        clips = VideoClips(stretches_of(cohort.samples), max_bytes, int(data.max_clip_mb * _MB))
    used = _used(cohort, listings)
    return OpenedData(cohort, used, store, cache, DeclaredAxes(), max_bytes, data.modality, clips)


def _open_frames(config: StudyConfig, data: FramesData, cache: StagingCache, *, keep_listing: bool) -> OpenedData:
    found = open_frames(
        data,
        s3_options(config),
        cache,
        has_folds=config.folds is not None,
        accepts_spelling=_accepts_spelling(config),
        keep_listing=keep_listing,
    )
    return OpenedData(
        found.cohort,
        _used(found.cohort, {"": found.listing}),
        found.store,
        cache,
        DeclaredAxes(),
        int(data.max_image_mb * _MB),
        data.modality,
        found.clips,
        found.masks,
        found.agreement,
    )


def _used(cohort: Cohort, listings: Mapping[str, Sequence[ObjectInfo]]) -> dict[str, ObjectInfo]:
    """The file of each `relative` of the cohort; with a folder for each split, its name stands before the path."""
    used = set(cohort.samples["relative"])
    named = (
        (f"{part}/{info.relative}" if part else info.relative, info)
        for part, listing in listings.items()
        for info in listing
    )
    return {relative: info for relative, info in named if relative in used}


def _drawn_split(split: FractionsSplit | ValFractionSplit | None) -> FractionSplit | ValFraction | None:
    match split:
        case FractionsSplit():
            return FractionSplit(split.fractions, split.seed)
        case ValFractionSplit():
            return ValFraction(split.val_fraction, split.seed)
        case None:
            return None


def _accepts_spelling(config: StudyConfig) -> bool:
    return "spelling_variants" in config.leaks.accept


def _open_csv(
    config: StudyConfig, data: CsvData, listings: Mapping[str, Sequence[ObjectInfo]], cache: StagingCache
) -> Cohort:
    def fetch(location: str) -> Path:
        return fetch_file(location, s3_options(config), cache)

    split: str | FractionSplit | ValFraction | dict[str, Path] | None
    if config.folds is not None:
        split = None
    elif isinstance(data.split, dict):
        split = {str(name): fetch(location) for name, location in data.split.items()}
    else:
        split = data.split if isinstance(data.split, str) else _drawn_split(data.split)
    is_each = isinstance(data.table, dict)
    tables = data.table if isinstance(data.table, dict) else {"": data.table}
    paths = {str(part): fetch(place) for part, place in tables.items()}
    names = {str(part): place for part, place in tables.items()}
    return load_image_table(
        paths if is_each else paths[""],
        listings if isinstance(data.files, dict) else listings[""],
        image=data.file_column,
        stretch=None
        if data.video is None
        else StretchColumns(start=data.start, end=data.end, centre=data.centre, clips=data.clips),
        label=data.label,
        agreement=data.agreement,
        classes=data.classes,
        split=split,
        label_map=data.label_map,
        patient=data.patient,
        where=data.where,
        domains=data.domains,
        columns=data.columns,
        table_names=names if is_each else names[""],
        one_label=data.aggregate != "none",
        accepts_spelling=_accepts_spelling(config),
    )


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
        agreement=data.agreement,
        classes=data.classes,
        split=split,
        manifest=None if data.manifest is None else fetch(data.manifest),
        listing=listing,
        pattern=data.pattern,
        patient=data.patient,
        where=data.where,
        volumes=data.volumes,
        domains=data.domains,
        columns=data.columns,
        table_name=data.table,
        manifest_name=data.manifest,
        accepts_spelling=_accepts_spelling(config),
    )
