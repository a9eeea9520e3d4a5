"""A study's frames, opened: the cohort of clips, every frame's file, and their masks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from vitreous.config.clip_data import FramesData, MaskData
from vitreous.config.data import FractionsSplit
from vitreous.core.errors import LocationError, SampleError
from vitreous.samples.cohort import Cohort
from vitreous.samples.frame_labels import FrameLabels
from vitreous.samples.frames import load_frames
from vitreous.samples.splits import FractionSplit
from vitreous.storage.files import fetch_file
from vitreous.storage.listing import load_key_manifest
from vitreous.storage.location import Location, ObjectInfo, S3Options
from vitreous.storage.objects import ObjectStore
from vitreous.storage.staging import StagingCache
from vitreous.study.clips import ClipMasks, FrameClips, fetch_from, match_masks

_MB = 10**6


@dataclass(frozen=True)
class OpenedFrames:
    """What the table, the listing and the masks' folders say.

    Args:
        agreement: see :func:`~vitreous.samples.frame_labels.count_agreement`.
    """

    cohort: Cohort
    listing: Sequence[ObjectInfo]
    store: ObjectStore
    clips: FrameClips
    masks: ClipMasks | None
    agreement: pd.DataFrame


def open_frames(
    data: FramesData,
    s3: S3Options,
    cache: StagingCache,
    *,
    has_folds: bool,
    accepts_spelling: bool,
    keep_listing: bool,
) -> OpenedFrames:
    """Read table and listings, check everything; no frame is read.

    Raises:
        SampleError: with every problem of table, labels, splits and files; or no frame has a mask.
        LocationError: a place is not there or may not be read.
    """
    store = ObjectStore(Location.parse(data.files), s3)
    listing = load_key_manifest(store, cache_dir=cache.dir, refresh=data.refresh_listing, write=keep_listing)
    split: str | FractionSplit | dict[str, Path] | None
    if has_folds or data.split is None:
        split = None
    elif isinstance(data.split, FractionsSplit):
        split = FractionSplit(data.split.fractions, data.split.seed)
    elif isinstance(data.split, str):
        split = data.split
    else:
        split = {str(name): fetch_file(location, s3, cache) for name, location in data.split.items()}
    found = load_frames(
        fetch_file(data.table, s3, cache),
        listing,
        pattern=data.pattern,
        video=data.video,
        frame=data.frame,
        label=data.label,
        classes=data.classes,
        split=split,
        has_folds=has_folds,
        agreement=data.agreement,
        label_map=data.label_map,
        labels=FrameLabels(data.label_rule.rule, data.label_rule.frames or 1),
        patient=data.patient,
        where=data.where,
        every=data.every,
        stride=data.stride,
        domains=data.domains,
        columns=data.columns,
        table_name=data.table,
        one_label=data.aggregate != "none",
        accepts_spelling=accepts_spelling,
    )
    samples = found.cohort.samples
    centres = {
        relative: (video, int(frame))
        for relative, video, frame in zip(samples["relative"], samples["video"], samples["frame"], strict=True)
    }
    needed = {one for video in found.videos.values() for one in video.relatives if one is not None}
    clips = FrameClips(
        found.videos,
        {info.relative: info for info in listing if info.relative in needed},
        centres,
        data.window,
        None if data.fps is None else data.fps / found.every,
        fetch_from(store, cache),
        int(data.max_image_mb * _MB),
        int(data.max_clip_mb * _MB),
    )
    masks = None if data.masks is None else _open_masks(data.masks, samples["relative"], s3, cache)
    return OpenedFrames(found.cohort, listing, store, clips, masks, found.agreement)


def _open_masks(masks: MaskData, relatives: pd.Series, s3: S3Options, cache: StagingCache) -> ClipMasks:
    """Masks below one or two folders.

    Raises:
        SampleError: not one frame of the cohort has a mask.
    """
    stores = [ObjectStore(Location.parse(place), s3) for place in (masks.files, masks.second) if place]
    matched = [match_masks(relatives, store.list()) for store in stores]
    if not any(matched):
        raise SampleError(
            f"data.masks: no frame has a mask below {' or '.join(str(store.root) for store in stores)}; a mask lies at "
            f"its frame's path with the ending .png, such as {relatives.iloc[0].rpartition('.')[0]}.png."
        )
    fetch = fetch_from(one_store(stores), cache)
    return ClipMasks(matched[0], matched[1] if len(matched) > 1 else {}, masks.classes, masks.ignore, fetch)


def one_store(stores: Sequence[ObjectStore]) -> ObjectStore:
    """The store that fetches from all folders: a bucket answers for every folder in it, and local files need none.

    Raises:
        LocationError: the folders lie in several buckets.
    """
    remote = {(store.root.scheme, store.root.bucket): store for store in stores if not store.root.is_local}
    if len(remote) > 1:
        named = ", ".join(str(store.root) for store in remote.values())
        raise LocationError(f"data.files: the folders of one study lie in one bucket; got {named}. Copy them into one.")
    return next(iter(remote.values()), stores[0])
