"""What can be told of a study's clips before one is decoded: padding, agreement of frames, masks."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from vitreous.core.errors import InputError
from vitreous.core.finding import Finding
from vitreous.core.input_spec import ClipSpec
from vitreous.core.threads import map_ahead
from vitreous.inputs.clip_sampling import sample_frames
from vitreous.study.clips import FrameClips
from vitreous.study.data import OpenedData
from vitreous.study.encoders import OpenedEncoder

_PLAIN = ClipSpec(size=(64, 64), frames=1, step=1)  # the frame alone, small: to see that a mask fits it
_SHOWN = 5


def describe_clips(data: OpenedData, encoders: Sequence[OpenedEncoder]) -> Iterator[Finding]:
    """For each encoder how many clips are padded or too short, where the frames are known; and the share of masks."""
    if isinstance(data.clips, FrameClips):
        for opened in encoders:
            if isinstance(opened.encoder.spec, ClipSpec):
                yield _describe_padding(data, data.clips, opened.name, opened.encoder.spec)
    if data.masks is not None:
        counts = data.masks.count(data.cohort.samples["relative"])
        total = sum(counts.values())
        yield Finding(
            "masks",
            "info" if counts["true"] + counts["second"] == total else "warning",
            f"{(total - counts['none']) / total:.0%} of {total} clips have a mask of their labelled frame.",
            f"{counts['true']} true ones, {counts['second']} of the second folder, {counts['none']} none",
        )


def _describe_padding(data: OpenedData, clips: FrameClips, name: str, spec: ClipSpec) -> Finding:
    num_edge = num_short = num_refused = 0
    for relative in data.cohort.samples["relative"]:
        video, place, start, stop = clips.stretch_of(relative)
        times_s = np.arange(len(clips.videos[video].numbers)) / (clips.fps or 1.0)
        try:
            sampled = sample_frames(spec, times_s, start, stop, place)
        except InputError:
            num_refused += 1
            continue
        num_short += sampled.is_short
        num_edge += sampled.num_padded > 0 and not sampled.is_short
    total = len(data.cohort.samples)
    shown = (
        f"{num_edge} at the edge of their video repeat a frame, {num_short} are short and padded by the rule "
        f"{spec.padding!r}, {num_refused} are too short"
    )
    if not num_refused:
        return Finding("clip_padding", "info", f"{name}: {spec.frames} frames for each of {total} clips.", shown)
    return Finding(
        "clip_padding",
        "warning",
        f"{name}: {num_refused} of {total} clips have fewer frames than it needs, and no padding rule is stated.",
        f"{shown}; they are quarantined",
        f"Set encoders.{name}.input.padding to repeat or loop, or another step, fps or data.window.",
    )


def check_masks(data: OpenedData, workers: int) -> Iterator[Finding]:
    """Read every mask with its frame; those that cannot be used are an error. Nothing where the study names none."""
    if data.masks is None:
        return
    masks = data.masks
    samples = data.cohort.samples
    masked = samples[[masks.of(relative) is not None for relative in samples["relative"]]]

    def look(relative: str) -> tuple[str, set[int]]:
        try:
            found = data.load_mask(relative, _PLAIN, _PLAIN.size)
        except InputError as error:
            return str(error), set()
        return "", set() if found is None else set(np.unique(found.numpy()).tolist())

    looked_at = list(map_ahead(look, masked["relative"], workers=workers))
    if bad := [f"{sample}: {why}" for sample, (why, _) in zip(masked["sample_id"], looked_at, strict=True) if why]:
        more = f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        yield Finding(
            "masks_unusable",
            "error",
            f"{len(bad)} of {len(masked)} masks cannot be used.",
            "; ".join(bad[:_SHOWN]) + more,
            "Mend these masks, or name their classes in data.masks.",
        )
    seen = set().union(*(values for _, values in looked_at))
    absent = [name for index, name in enumerate(masks.classes) if index not in seen]
    shown = f"{len(masked)} masks; classes that no mask shows: {', '.join(absent) or 'none'}"
    yield Finding("mask_classes", "warning" if absent else "info", "Classes of the masks.", shown)


def name_agreement(agreement: pd.DataFrame, labels: Sequence[str]) -> pd.DataFrame:
    """The table of agreement with the labels' names in its columns."""
    return agreement.rename(columns={f"share_{index}": name for index, name in enumerate(labels)})
