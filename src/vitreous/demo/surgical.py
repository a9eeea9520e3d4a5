"""A synthetic laparoscopic scene over time: the hepatocystic triangle on the way to its critical view of safety.

Coordinates in radii of the endoscope's round field, origin in its middle: x to the right, y downwards. Time runs from 0
to 1 over a video.

Axes: H row, W column, C channel (red, green, blue), L label, P point.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from vitreous.core.streams import numpy_stream

FloatArray = npt.NDArray[np.float32]

LABELS = ("C1", "C2", "C3")
"""Hepatocystic triangle cleared; cystic plate exposed; two structures, and only two, lead to the gallbladder."""

MASK_CLASSES = ("background", "liver", "gallbladder", "duct_and_artery", "instrument")
IGNORE_INDEX = 255
"""Of a mask: outside the endoscope's field."""

_FINER = 2  # shapes are drawn on a canvas so many times finer
_FIELD = 0.96  # radius of the round field over half the frame
_SHARPNESS = 0.06  # time that a criterion takes from hardly begun to nearly met
_NECK = (-0.08, 0.02)
_FAT = (214, 178, 92)
_TISSUE = (150, 74, 62)
_LIVER = (112, 38, 34)
_GALLBLADDER = (128, 140, 92)
_PLATE = (206, 176, 160)
_TUBE = (206, 150, 122)
_STEEL = (186, 190, 196)


@dataclass(frozen=True)
class PlantedBlindness:
    """How C2 is made hard to see.

    Args:
        looks_like_c1: share of the clearing of the triangle that C2 alone brings, as if it were C1; 0 to 1.
        plate_contrast: opacity of the cystic plate, C2's own sign, where it is fully met; 0 to 1.
    """

    looks_like_c1: float = 0.9
    plate_contrast: float = 0.12


@dataclass(frozen=True)
class SurgicalVideo:
    """One operation, before it is filmed.

    Args:
        onset_L: time at which each criterion is half met; above 1 it is not met in this video.
        neck_xy, body_xy, foot_xy, hilum_xy: gallbladder's neck and body, lower ends of duct and artery.
        fat_P4: x, y, radius and brightness of the fat in the triangle; the last third lies over the two structures.
        drift_rad: phases of the camera's slow movement.
        tint: of the light, on red, green and blue.
    """

    onset_L: tuple[float, float, float]
    neck_xy: tuple[float, float]
    body_xy: tuple[float, float]
    foot_xy: tuple[float, float]
    hilum_xy: tuple[float, float]
    fat_P4: npt.NDArray[np.float64]
    drift_rad: tuple[float, float, float]
    tint: tuple[float, float, float]

    def achieved(self, time: float) -> tuple[float, float, float]:
        """How far each criterion is met, 0 to 1."""
        c1, c2, c3 = (float(1 / (1 + np.exp(-(time - onset) / _SHARPNESS))) for onset in self.onset_L)
        return c1, c2, c3


def draw_surgical_video(seed: int, *names: str | int) -> SurgicalVideo:
    """Draw one operation; its labels and its anatomy do not depend on each other.

    Args:
        names: of the random stream, those of the video.
    """
    rng = numpy_stream(seed, *names, "operation")

    def near(x: float, y: float) -> tuple[float, float]:
        return x + float(rng.normal(0, 0.05)), y + float(rng.normal(0, 0.05))

    # half of the videos meet a criterion, each at a time of its own, so that a label often stands alone
    onsets = [float(rng.uniform(0.15, 0.85)) if rng.uniform() < 0.5 else 2.0 for _ in LABELS]
    places = rng.uniform((-0.55, 0.12), (0.05, 0.55), size=(24, 2))
    sizes = np.stack([rng.uniform(0.07, 0.14, 24), rng.uniform(0.85, 1.1, 24)], axis=1)
    return SurgicalVideo(
        onset_L=(onsets[0], onsets[1], onsets[2]),
        neck_xy=near(*_NECK),
        body_xy=near(0.36, -0.26),
        foot_xy=near(-0.34, 0.72),
        hilum_xy=near(-0.72, 0.34),
        fat_P4=np.concatenate([places, sizes], axis=1),
        drift_rad=(float(rng.uniform(0, 6.28)), float(rng.uniform(0, 6.28)), float(rng.uniform(0, 6.28))),
        tint=(float(rng.normal(1, 0.05)), float(rng.normal(1, 0.04)), float(rng.normal(1, 0.04))),
    )


def agreement(video: SurgicalVideo, time: float, *, seed: int, names: tuple[str | int, ...]) -> tuple[float, ...]:
    """What share of three annotators calls each criterion met: 0, 1/3, 2/3 or 1.

    Each annotator has a threshold of his own, the same in all frames of a video.
    """
    thresholds_A = np.clip(numpy_stream(seed, *names, "annotators").normal(0.5, 0.12, size=3), 0.05, 0.95)
    return tuple(float(np.mean(level >= thresholds_A)) for level in video.achieved(time))


@dataclass(frozen=True)
class _View:
    """Where the scene falls on the canvas of one frame."""

    size: int
    shift_xy: tuple[float, float]
    turn_rad: float

    def place(self, points_P2: Any) -> npt.NDArray[np.int32]:
        points_P2 = np.asarray(points_P2, np.float64) + np.array(self.shift_xy)
        cos, sin = np.cos(self.turn_rad), np.sin(self.turn_rad)
        turned_P2 = np.stack([cos * points_P2[:, 0] - sin * points_P2[:, 1],
                              sin * points_P2[:, 0] + cos * points_P2[:, 1]], axis=1)  # fmt: skip
        return np.rint((turned_P2 * _FIELD + 1) * self.size / 2).astype(np.int32)

    def length(self, share: float) -> int:
        return max(1, round(share * _FIELD * self.size / 2))


def film_frame(
    video: SurgicalVideo,
    time: float,
    *,
    size_px: int,
    blindness: PlantedBlindness,
    seed: int,
    names: tuple[str | int, ...],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """One frame (H, W, C) and its class map (H, W): indices of `MASK_CLASSES`, or `IGNORE_INDEX`.

    Args:
        time: 0 to 1; neighbouring times give neighbouring pictures.
        names: of the random stream of this frame's noise.
    """
    size = size_px * _FINER
    slow = [np.sin(phase + 2 * np.pi * time * (1 + 0.3 * k)) for k, phase in enumerate(video.drift_rad)]
    view = _View(size, (0.05 * float(slow[0]), 0.04 * float(slow[1])), 0.06 * float(slow[2]))
    image_HWC = np.full((size, size, 3), _TISSUE, np.uint8)
    mask_HW = np.zeros((size, size), np.uint8)
    c1, c2, c3 = video.achieved(time)
    _draw_liver(image_HWC, mask_HW, view)
    _draw_tubes(image_HWC, mask_HW, video, view)
    _draw_gallbladder(image_HWC, mask_HW, video, view)
    _draw_plate(image_HWC, video, view, opacity=blindness.plate_contrast * c2)
    # C2 frees the triangle of fat nearly as C1 does: what tells them apart is the plate alone
    _draw_fat(image_HWC, mask_HW, video, view, cleared=max(c1, blindness.looks_like_c1 * c2), bared=c3)
    _draw_instrument(image_HWC, mask_HW, view, time, video.drift_rad[0])
    picture = cv2.resize(image_HWC, (size_px, size_px), interpolation=cv2.INTER_AREA).astype(np.float32)
    rng = numpy_stream(seed, *names, "noise")
    picture = _light(picture, video, rng)
    classes_HW = cv2.resize(mask_HW, (size_px, size_px), interpolation=cv2.INTER_NEAREST)
    outside_HW = _distance(size_px) >= _FIELD
    picture[outside_HW] = 0
    classes_HW[outside_HW] = IGNORE_INDEX
    return (np.clip(picture, 0, 255) + 0.5).astype(np.uint8), classes_HW.astype(np.uint8)


def _draw_liver(image_HWC: Any, mask_HW: Any, view: _View) -> None:
    edge = [(-1.4, -0.20), (-0.6, -0.16), (0.0, -0.12), (0.7, -0.02), (1.4, 0.16), (1.4, -1.6), (-1.4, -1.6)]
    corners = view.place(edge)
    cv2.fillPoly(image_HWC, [corners], _LIVER, cv2.LINE_AA)
    cv2.fillPoly(mask_HW, [corners], MASK_CLASSES.index("liver"))


def _draw_tubes(image_HWC: Any, mask_HW: Any, video: SurgicalVideo, view: _View) -> None:
    for end, width, bend in ((video.foot_xy, 0.10, (-0.10, 0.42)), (video.hilum_xy, 0.06, (-0.42, 0.08))):
        points = view.place([video.neck_xy, bend, end])
        for picture, colour in ((image_HWC, _TUBE), (mask_HW, MASK_CLASSES.index("duct_and_artery"))):
            cv2.polylines(picture, [points], False, colour, view.length(width), cv2.LINE_8)


def _draw_gallbladder(image_HWC: Any, mask_HW: Any, video: SurgicalVideo, view: _View) -> None:
    (neck_x, neck_y), (body_x, body_y) = video.neck_xy, video.body_xy
    angle = float(np.degrees(np.arctan2(body_y - neck_y, body_x - neck_x)))
    centre = view.place([video.body_xy])[0].tolist()
    half = (view.length(0.48), view.length(0.27))
    taper = view.place([(neck_x - 0.03, neck_y + 0.05), (neck_x - 0.02, neck_y - 0.06),
                        (body_x - 0.08, body_y - 0.26), (body_x + 0.06, body_y + 0.26)])  # fmt: skip
    turn = angle + float(np.degrees(view.turn_rad))
    for picture, colour in ((image_HWC, _GALLBLADDER), (mask_HW, MASK_CLASSES.index("gallbladder"))):
        cv2.fillPoly(picture, [taper], colour)
        cv2.ellipse(picture, centre, half, turn, 0, 360, colour, -1)


def _draw_plate(image_HWC: Any, video: SurgicalVideo, view: _View, *, opacity: float) -> None:
    """The liver's bed, laid bare along the lower third of the gallbladder."""
    (neck_x, neck_y), (body_x, body_y) = video.neck_xy, video.body_xy
    strip = view.place([(neck_x - 0.02, neck_y - 0.05), (neck_x - 0.10, neck_y - 0.22),
                        (body_x - 0.26, body_y - 0.22), (body_x - 0.20, body_y - 0.02)])  # fmt: skip
    layer_HWC = image_HWC.copy()
    cv2.fillPoly(layer_HWC, [strip], _PLATE)
    cv2.addWeighted(layer_HWC, opacity, image_HWC, 1 - opacity, 0, dst=image_HWC)


def _draw_fat(image_HWC: Any, mask_HW: Any, video: SurgicalVideo, view: _View, *, cleared: float, bared: float) -> None:
    over_tubes = len(video.fat_P4) * 2 // 3
    along = np.linspace(0.25, 0.9, len(video.fat_P4) - over_tubes)
    ends = np.array([video.foot_xy, video.hilum_xy])
    for number, (x, y, radius, brightness) in enumerate(video.fat_P4.tolist()):
        left = 1 - cleared
        if number >= over_tubes:  # these hide the two structures until C3 is met
            end = ends[number % 2]
            share = along[number - over_tubes]
            x, y = (1 - share) * np.array(video.neck_xy) + share * end
            left = 1 - bared
        size = radius * left
        if size < 0.015:
            continue
        centre = view.place([(x, y)])[0].tolist()
        colour = tuple(float(min(255, part * brightness)) for part in _FAT)
        cv2.circle(image_HWC, centre, view.length(size), colour, -1, cv2.LINE_AA)
        cv2.circle(mask_HW, centre, view.length(size), MASK_CLASSES.index("background"), -1)


def _draw_instrument(image_HWC: Any, mask_HW: Any, view: _View, time: float, phase: float) -> None:
    reach = 0.10 * np.sin(6 * np.pi * time + phase)
    shaft = view.place([(1.1, 0.95), (0.42 + reach, 0.52 - 0.5 * reach)])
    for picture, colour in ((image_HWC, _STEEL), (mask_HW, MASK_CLASSES.index("instrument"))):
        cv2.polylines(picture, [shaft], False, colour, view.length(0.09), cv2.LINE_8)
        cv2.circle(picture, shaft[1].tolist(), view.length(0.055), colour, -1)


def _light(picture: FloatArray, video: SurgicalVideo, rng: np.random.Generator) -> FloatArray:
    """Texture of tissue, falling off of the lamp, glints, the sensor's noise."""
    size = len(picture)
    coarse = rng.standard_normal((8, 8), dtype=np.float32)
    shade_HW = 1 + 0.05 * cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    shade_HW *= 1.12 - 0.45 * _distance(size) ** 2
    picture = picture * shade_HW[..., None] * np.array(video.tint, np.float32)
    for x, y in rng.integers(size // 4, 3 * size // 4, size=(4, 2)).tolist():
        cv2.circle(picture, (x, y), max(1, size // 96), (250, 245, 240), -1, cv2.LINE_AA)
    noisy: FloatArray = picture + rng.standard_normal(picture.shape, dtype=np.float32) * 4
    return noisy


def _distance(size: int) -> FloatArray:
    """Of every pixel from the middle of the frame, over half the frame."""
    steps = (np.arange(size, dtype=np.float32) - (size - 1) / 2) / (size / 2)
    distance_HW: FloatArray = np.hypot(steps[:, None], steps[None]).astype(np.float32)
    return distance_HW
