"""Where the frames of a DICOM file lie and what their values mean: order, spacing, rescale.

Per-frame values come from the per-frame functional groups, else from the shared ones, else from the top
level. Lengths in mm. Source: DICOM PS3.3, C.7.6.16 (multi-frame functional groups) and C.8.17.10 (ophthalmic
frame location).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from vitreous.core.errors import InputError
from vitreous.inputs.volume import Spacing, is_length

#: Positions nearer than this count as one (mm, or pixels of the reference image).
_SAME_PLACE = 1e-5
#: Slice distances that differ by more than this share of their mean are no spacing.
_UNEVEN = 0.05
#: Directions are parallel below this sine (about 1°).
_PARALLEL = 0.02

#: Position and orientation of a frame: (position group, keyword), (orientation group, keyword).
_PLANES = (
    (
        ("PlanePositionSequence", "ImagePositionPatient"),
        ("PlaneOrientationSequence", "ImageOrientationPatient"),
    ),
    (
        ("PlanePositionVolumeSequence", "ImagePositionVolume"),
        ("PlaneOrientationVolumeSequence", "ImageOrientationVolume"),
    ),
)


class FrameGroups:
    """Functional groups of a multi-frame file, frame by frame.

    Raises:
        InputError: there are per-frame groups, but not one for each frame.
    """

    def __init__(self, elements: Dataset, num_frames: int) -> None:
        shared = elements.get("SharedFunctionalGroupsSequence") or []
        per_frame = elements.get("PerFrameFunctionalGroupsSequence") or []
        if len(per_frame) not in (0, num_frames):
            raise InputError(
                f"the DICOM header declares {num_frames} frames and describes {len(per_frame)} in its per-frame groups."
            )
        self.num_frames = num_frames
        self._top = elements
        self._shared = shared[0] if len(shared) else Dataset()
        self._per_frame: Sequence[Dataset] = per_frame or [Dataset()] * num_frames

    def own(self, sequence: str, keyword: str) -> list[Any]:
        """The value of each frame's own group; None where it has none."""
        return [_in_group(group, sequence, keyword) for group in self._per_frame]

    def values(self, sequence: str, keyword: str) -> list[Any]:
        """The value for each frame: its own, else the shared one, else that of the top level, else None."""
        fallback = _in_group(self._shared, sequence, keyword)
        if fallback is None:
            fallback = _stated(self._top.get(keyword))
        return [fallback if value is None else value for value in self.own(sequence, keyword)]

    def common_length(self, sequence: str, keyword: str) -> tuple[float, ...] | None:
        """Lengths that all frames share; None if a frame states none or none that can be one.

        Raises:
            InputError: frames differ.
        """
        values = self.values(sequence, keyword)
        if any(value is None for value in values):
            return None
        lengths = np.abs(np.array([np.atleast_1d(np.asarray(value, dtype=np.float64)) for value in values]))
        if not np.allclose(lengths, lengths[0], rtol=1e-3, atol=0.0):
            raise InputError(f"the frames differ in {keyword}: from {lengths.min():g} to {lengths.max():g} mm.")
        return tuple(float(length) for length in lengths[0]) if all(map(is_length, lengths[0])) else None


@dataclass(frozen=True)
class FrameGeometry:
    """Order and spacing of the frames.

    Args:
        rank: slice index of each stored frame.
        order_source: what the order rests on; "stored" where the file does not say more.
        spacing_mm: along D, H, W; None unless the file states all three.
        spacing_source: what the slice distance rests on.
        notes: what does not fit together, without being a reason to refuse the file.
    """

    rank: tuple[int, ...]
    order_source: str
    spacing_mm: Spacing | None
    spacing_source: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Rescale:
    """`value = slope * stored + intercept`, for each stored frame."""

    slopes: tuple[float, ...]
    intercepts: tuple[float, ...]


def frame_rescale(groups: FrameGroups) -> Rescale:
    """Slope and intercept of each frame; 1 and 0 where the file states neither.

    Raises:
        InputError: only some frames state them, or a value cannot be one.
    """
    name = "PixelValueTransformationSequence"
    slopes, intercepts = groups.values(name, "RescaleSlope"), groups.values(name, "RescaleIntercept")
    if any((slope is None) != (slopes[0] is None) for slope in slopes):
        raise InputError("only some frames of the DICOM file state a rescale slope.")
    rescale = Rescale(
        tuple(1.0 if slope is None else float(slope) for slope in slopes),
        tuple(0.0 if intercept is None else float(intercept) for intercept in intercepts),
    )
    if not np.all(np.isfinite([*rescale.slopes, *rescale.intercepts])) or 0.0 in rescale.slopes:
        raise InputError("the rescale slope or intercept of the DICOM file is zero or not finite.")
    return rescale


def frame_geometry(groups: FrameGroups) -> FrameGeometry:
    """Order the frames by position and find the spacing; nothing is guessed.

    Order: along the normal of the planes; else by position in the stack; else by the scan lines of an
    ophthalmic scan on its reference image (from its top, for lines from left to right); else as stored. Slice
    distance: SpacingBetweenSlices, else the distance of the positions if even, else SliceThickness.

    Raises:
        InputError: frames share places, so that the file holds more than one volume.
    """
    notes: list[str] = []
    places_mm = _plane_positions(groups, notes)
    source, places = "plane position", places_mm
    if places is None:
        source, places = "in-stack position", _stack_positions(groups)
    if places is None:
        source, places = "ophthalmic frame location", _scan_line_positions(groups, notes)
    if places is None or np.ptp(places) < _SAME_PLACE:
        source, places, places_mm = "stored", np.arange(groups.num_frames, dtype=np.float64), None
    order = np.argsort(places, kind="stable")
    num_places = 1 + int(np.sum(np.diff(places[order]) >= _SAME_PLACE))
    if num_places != groups.num_frames:
        raise InputError(
            f"the {groups.num_frames} frames lie at {num_places} places ({source}): the file holds more "
            "than one volume."
        )
    rank = np.empty(groups.num_frames, dtype=np.int64)
    rank[order] = np.arange(groups.num_frames)
    slice_mm, slice_source = _slice_distance(groups, None if places_mm is None else np.diff(places_mm[order]), notes)
    in_plane = groups.common_length("PixelMeasuresSequence", "PixelSpacing")
    spacing = (slice_mm, *in_plane) if slice_mm is not None and in_plane is not None and len(in_plane) == 2 else None
    return FrameGeometry(tuple(rank.tolist()), source, spacing, slice_source, tuple(notes))


def _slice_distance(
    groups: FrameGroups, steps_mm: npt.NDArray[np.float64] | None, notes: list[str]
) -> tuple[float | None, str]:
    stated = groups.common_length("PixelMeasuresSequence", "SpacingBetweenSlices")
    measured = float(steps_mm.mean()) if steps_mm is not None and len(steps_mm) else None
    if stated is not None:
        if measured is not None and abs(measured - stated[0]) > _UNEVEN * stated[0]:
            notes.append(f"SpacingBetweenSlices is {stated[0]:g} mm, the frames lie {measured:g} mm apart")
        return stated[0], "SpacingBetweenSlices"
    if measured is not None and steps_mm is not None:
        if np.abs(steps_mm - measured).max() <= _UNEVEN * measured:
            return measured, "frame positions"
        notes.append(f"slice distances are uneven, {steps_mm.min():g} to {steps_mm.max():g} mm: no spacing is taken")
        return None, "none"
    thickness = groups.common_length("PixelMeasuresSequence", "SliceThickness")
    return (None, "none") if thickness is None else (thickness[0], "SliceThickness")


def _plane_positions(groups: FrameGroups, notes: list[str]) -> npt.NDArray[np.float64] | None:
    """Distance of each plane along the common normal, mm; None without positions or with tilted planes."""
    for position, orientation in _PLANES:
        origins, axes = groups.own(*position), groups.values(*orientation)
        if any(value is None for value in [*origins, *axes]):
            continue
        origins_N3 = np.asarray(origins, dtype=np.float64).reshape(groups.num_frames, 3)
        axes_N23 = np.asarray(axes, dtype=np.float64).reshape(groups.num_frames, 2, 3)
        normals_N3 = np.cross(axes_N23[:, 0], axes_N23[:, 1])
        if not np.all(np.isfinite(origins_N3)) or not np.all(np.isfinite(normals_N3)):
            raise InputError("a frame's position or orientation in the DICOM file is not finite.")
        if not np.allclose(np.linalg.norm(normals_N3, axis=1), 1.0, atol=_PARALLEL):
            raise InputError("a frame's orientation in the DICOM file is not two perpendicular directions of length 1.")
        normal = normals_N3[0] / np.linalg.norm(normals_N3[0])
        if np.linalg.norm(np.cross(normals_N3, normal), axis=1).max() > _PARALLEL:
            notes.append("the planes of the frames are not parallel: frames are kept as stored")
            return None
        places: npt.NDArray[np.float64] = origins_N3 @ normal
        return places
    return None


def _stack_positions(groups: FrameGroups) -> npt.NDArray[np.float64] | None:
    numbers = groups.own("FrameContentSequence", "InStackPositionNumber")
    if any(number is None for number in numbers):
        return None
    if len(stacks := {str(name) for name in groups.own("FrameContentSequence", "StackID")}) > 1:
        raise InputError(f"the DICOM file holds {len(stacks)} stacks of frames: more than one volume.")
    return np.asarray(numbers, dtype=np.float64)


def _scan_line_positions(groups: FrameGroups, notes: list[str]) -> npt.NDArray[np.float64] | None:
    """Distance of each scan line across the common scan direction, pixels of the reference image."""
    lines = groups.own("OphthalmicFrameLocationSequence", "ReferenceCoordinates")
    if any(line is None or len(line) != 4 for line in lines):
        return None
    ends_N22 = np.asarray(lines, dtype=np.float64).reshape(groups.num_frames, 2, 2)  # (start, end) of (row, column)
    along_N2 = ends_N22[:, 1] - ends_N22[:, 0]
    lengths_N = np.linalg.norm(along_N2, axis=1)
    if not np.all(np.isfinite(ends_N22)) or lengths_N.min() <= 0:
        return None
    along_N2 /= lengths_N[:, None]
    row, column = along_N2[0]
    is_turned = np.abs(along_N2[:, 0] * column - along_N2[:, 1] * row).max() > _PARALLEL
    if is_turned or (along_N2 @ along_N2[0]).min() < 0:
        notes.append("the scan lines are not parallel: frames are kept as stored")
        return None
    places: npt.NDArray[np.float64] = ends_N22.mean(axis=1) @ np.array([column, -row])
    return places


def _in_group(group: Dataset, sequence: str, keyword: str) -> Any:
    items = group.get(sequence)
    return _stated(items[0].get(keyword)) if items else None


def _stated(value: Any) -> Any:
    return None if value is None or (hasattr(value, "__len__") and len(value) == 0) else value
