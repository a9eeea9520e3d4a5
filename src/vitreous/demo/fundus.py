"""A synthetic colour fundus photograph: one eye, seen by one of two cameras.

Coordinates in mm on the retina with the fovea at the origin: x towards the nose, y upwards.
Axes: H row, W column, C channel (red, green, blue).
"""

from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from vitreous.core.streams import numpy_stream
from vitreous.demo.fundus_lesions import Lesions, Spots, draw_lesions
from vitreous.demo.vessels import POINT_DISTANCE_MM, VesselTree, grow_vessels

FloatArray = npt.NDArray[np.float32]
CameraName = Literal["a", "b"]
EyeSide = Literal["left", "right"]

FIELD_RADIUS_MM = 6.2
"""Half of the 45 degrees that a fundus camera sees."""

_FINER = 2  # marks are drawn on a canvas so many times finer
_SUBPIXEL_BITS = 4


@dataclass(frozen=True)
class Camera:
    """How a camera renders a retina.

    Args:
        resolution: pixels relative to the size asked for.
        aspect: width of the frame over its height.
        field: radius of the round field of view over half the height of the frame; above 1 the frame cuts it.
        notch: whether the field has the small triangle that marks the side.
        gains: on red, green and blue.
        gamma: exponent of the brightness curve.
        blur: standard deviation of the optics' blur in pixels at a height of 256.
        noise: standard deviation of the sensor's noise, of 1.
        vignette: share of light lost at the rim.
        extension, jpeg_quality: file format; a PNG has no quality.
        grade_shares: of grades 0 to 4 among the patients whom it sees.
    """

    resolution: float
    aspect: float
    field: float
    notch: bool
    gains: tuple[float, float, float]
    gamma: float
    blur: float
    noise: float
    vignette: float
    extension: Literal["png", "jpg"]
    jpeg_quality: int | None
    grade_shares: tuple[float, ...]


CAMERAS: dict[CameraName, Camera] = {
    "a": Camera(
        resolution=1.0,
        aspect=1.0,
        field=0.96,
        notch=False,
        gains=(1.0, 1.0, 1.0),
        gamma=1.0,
        blur=0.5,
        noise=0.010,
        vignette=0.30,
        extension="png",
        jpeg_quality=None,
        grade_shares=(0.40, 0.15, 0.25, 0.10, 0.10),
    ),
    "b": Camera(
        resolution=0.8,
        aspect=1.25,
        field=1.12,
        notch=True,
        gains=(0.88, 0.96, 1.10),
        gamma=0.85,
        blur=1.0,
        noise=0.016,
        vignette=0.50,
        extension="jpg",
        jpeg_quality=75,
        grade_shares=(0.24, 0.14, 0.30, 0.16, 0.16),
    ),
}


@dataclass(frozen=True)
class FundusEye:
    """One retina, before any camera.

    Args:
        disc_xy: centre of the optic disc, mm.
        disc_radius_mm: of the disc, half-axes across and upwards.
        cup_share: radius of the cup over that of the disc.
        pigment: brightness of the background, about 1.
    """

    side: EyeSide
    severity: float
    disc_xy: tuple[float, float]
    disc_radius_mm: tuple[float, float]
    cup_share: float
    pigment: float
    vessels: VesselTree
    lesions: Lesions


def draw_fundus_eye(severity: float, side: EyeSide, seed: int, *names: str | int) -> FundusEye:
    """Draw a retina; severity acts on its lesions alone.

    Args:
        severity: in grades, 0 or more (see `expected_counts`).
        names: of the random stream, those of the eye.
    """
    rng = numpy_stream(seed, *names, "anatomy")
    disc_xy = (float(rng.normal(4.1, 0.2)), float(rng.normal(0.3, 0.15)))
    radius = float(rng.normal(0.85, 0.06))
    return FundusEye(
        side=side,
        severity=severity,
        disc_xy=disc_xy,
        disc_radius_mm=(radius * 0.92, radius * 1.05),
        cup_share=float(rng.uniform(0.3, 0.6)),
        pigment=float(np.exp(rng.normal(0, 0.12))),
        vessels=grow_vessels(
            disc_xy, calibre=float(np.exp(rng.normal(0, 0.08))), tortuosity=float(np.exp(rng.normal(0, 0.25))), rng=rng
        ),
        lesions=draw_lesions(severity, disc_xy, numpy_stream(seed, *names, "lesions")),
    )


@dataclass(frozen=True)
class _Frame:
    """Where the retina falls on the frame of one photograph."""

    height: int
    width: int
    radius_px: float
    mirrored: bool
    shift_mm: tuple[float, float]
    turn_rad: float

    def pixels(self, points_P2: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Columns and rows of points on the retina."""
        cos, sin = np.cos(self.turn_rad), np.sin(self.turn_rad)
        x, y = (points_P2.astype(np.float64) - np.array(self.shift_mm)).T
        x, y = cos * x - sin * y, sin * x + cos * y
        per_mm = self.radius_px / FIELD_RADIUS_MM
        columns = (self.width - 1) / 2 + (-x if self.mirrored else x) * per_mm
        return np.stack([columns, (self.height - 1) / 2 - y * per_mm], axis=1)

    def retina(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """x and y (mm) of every pixel, and its distance from the middle of the field over the field's radius."""
        rows = ((self.height - 1) / 2 - np.arange(self.height, dtype=np.float32))[:, None] / self.radius_px
        columns = (np.arange(self.width, dtype=np.float32) - (self.width - 1) / 2)[None] / self.radius_px
        cos, sin = np.cos(self.turn_rad), np.sin(self.turn_rad)
        across = -columns if self.mirrored else columns
        x_HW = (cos * across + sin * rows) * FIELD_RADIUS_MM + self.shift_mm[0]
        y_HW = (-sin * across + cos * rows) * FIELD_RADIUS_MM + self.shift_mm[1]
        return x_HW.astype(np.float32), y_HW.astype(np.float32), np.hypot(rows, columns).astype(np.float32)


def photograph(
    eye: FundusEye, camera: Camera, *, size_px: int, seed: int, names: tuple[str | int, ...]
) -> npt.NDArray[np.uint8]:
    """The photograph (H, W, C).

    Args:
        size_px: height of the frame at `resolution` 1.
        names: of the random stream of this exposure: aim, light, texture and noise.
    """
    rng = numpy_stream(seed, *names, "exposure")
    height = max(16, round(size_px * camera.resolution))
    frame = _Frame(
        height=height,
        width=round(height * camera.aspect),
        radius_px=camera.field * height / 2,
        mirrored=eye.side == "left",
        shift_mm=(float(rng.normal(0.1, 0.25)), float(rng.normal(0, 0.25))),
        turn_rad=float(rng.normal(0, 0.06)),
    )
    x_HW, y_HW, distance_HW = frame.retina()
    image_HWC = _background(eye, x_HW, y_HW, rng)
    _add_marks(image_HWC, eye, frame)
    light = float(np.exp(rng.normal(0, 0.08)))
    lamp_HW = light * (1 - camera.vignette * distance_HW**2) + 0.06 * rng.normal() * x_HW / FIELD_RADIUS_MM
    image_HWC *= lamp_HW[..., None] * np.array(camera.gains, np.float32)
    image_HWC = np.clip(image_HWC, 0, 1) ** np.float32(camera.gamma)
    image_HWC *= _field(camera, frame, distance_HW)[..., None]
    sigma = camera.blur * height / 256 * float(np.exp(rng.normal(0, 0.15)))
    image_HWC = cv2.GaussianBlur(image_HWC, (0, 0), sigma).astype(np.float32)
    image_HWC += rng.standard_normal(image_HWC.shape, dtype=np.float32) * camera.noise * (distance_HW < 1)[..., None]
    return (np.clip(image_HWC, 0, 1) * 255 + 0.5).astype(np.uint8)


def encode_photograph(image_HWC: npt.NDArray[np.uint8], camera: Camera) -> bytes:
    """The file's bytes in the camera's format."""
    options = [] if camera.jpeg_quality is None else [cv2.IMWRITE_JPEG_QUALITY, camera.jpeg_quality]
    done, encoded = cv2.imencode(f".{camera.extension}", image_HWC[..., ::-1], options)
    if not done:
        raise ValueError(f"the image library could not write {image_HWC.shape} as {camera.extension}")
    return encoded.tobytes()


def _background(eye: FundusEye, x_HW: FloatArray, y_HW: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Orange-red retina with its texture, the fovea and the optic disc."""
    height, width = x_HW.shape
    shade_HW = np.ones_like(x_HW)
    for cells, contrast in ((5, 0.05), (24, 0.035)):  # choroid
        coarse = rng.standard_normal((cells, cells), dtype=np.float32)
        shade_HW += contrast * cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    from_fovea_HW = x_HW**2 + y_HW**2
    shade_HW *= 1 - 0.22 * np.exp(-from_fovea_HW / (2 * 0.75**2)) - 0.12 * np.exp(-from_fovea_HW / (2 * 0.2**2))
    colour = np.array([0.72, 0.36, 0.16], np.float32) * np.array([1, eye.pigment, eye.pigment**1.5], np.float32)
    image_HWC = shade_HW[..., None] * colour
    across, upwards = eye.disc_radius_mm
    disc_HW = np.hypot((x_HW - eye.disc_xy[0]) / across, (y_HW - eye.disc_xy[1]) / upwards)
    for radius, rim, tint in ((1.0, 0.05, (0.95, 0.68, 0.38)), (eye.cup_share, 0.10, (1.0, 0.86, 0.62))):
        inside_HW1 = (1 / (1 + np.exp(np.clip((disc_HW - radius) / rim, -30, 30))))[..., None]
        image_HWC += inside_HW1 * (np.array(tint, np.float32) - image_HWC)
    return image_HWC.astype(np.float32)


def _add_marks(image_HWC: FloatArray, eye: FundusEye, frame: _Frame) -> None:
    """Vessels and dark lesions take light away; bright lesions lie over everything."""
    step = max(1, int(FIELD_RADIUS_MM / frame.radius_px / POINT_DISTANCE_MM))  # a disc about every pixel is enough
    radius_P = eye.vessels.radius_P[::step].astype(np.float64)
    vessels = Spots(
        eye.vessels.points_P2[::step].astype(np.float64), np.stack([radius_P] * 2, axis=1), np.zeros(len(radius_P))
    )
    lesions = eye.lesions
    for spots, absorbed in (
        (vessels, (0.30, 0.52, 0.45)),
        (lesions.pigment, (0.30, 0.28, 0.25)),
        (lesions.microaneurysms, (0.32, 0.62, 0.50)),
        (lesions.haemorrhages, (0.38, 0.66, 0.55)),
    ):
        if len(spots):
            image_HWC *= 1 - _cover(spots, frame)[..., None] * np.array(absorbed, np.float32)
    for spots, tint, opacity in (
        (lesions.drusen, (0.88, 0.62, 0.34), 0.55),
        (lesions.exudates, (0.97, 0.88, 0.52), 0.85),
    ):
        if len(spots):
            cover_HW1 = _cover(spots, frame)[..., None] * np.float32(opacity)
            image_HWC += cover_HW1 * (np.array(tint, np.float32) - image_HWC)


def _cover(spots: Spots, frame: _Frame) -> FloatArray:
    """Share of each pixel that the spots cover, 0 to 1."""
    canvas = np.zeros((frame.height * _FINER, frame.width * _FINER), np.uint8)
    unit = _FINER << _SUBPIXEL_BITS
    # pixel centres of the frame lie half a fine pixel lower and further right on the finer canvas
    centres = np.rint((frame.pixels(spots.centre_L2) + 0.5) * unit - (1 << _SUBPIXEL_BITS) / 2).astype(int)
    axes = np.maximum(np.rint(spots.axes_L2 * frame.radius_px / FIELD_RADIUS_MM * unit), 4).astype(int)
    for centre, axis, turn in zip(centres.tolist(), axes.tolist(), spots.turn_L.tolist()):
        if axis[0] == axis[1]:
            cv2.circle(canvas, centre, axis[0], 255, -1, cv2.LINE_8, _SUBPIXEL_BITS)
        else:
            cv2.ellipse(canvas, centre, axis, turn, 0, 360, 255, -1, cv2.LINE_8, _SUBPIXEL_BITS)
    area = cv2.resize(canvas, (frame.width, frame.height), interpolation=cv2.INTER_AREA)
    share: FloatArray = area.astype(np.float32) / np.float32(255)
    return share


def _field(camera: Camera, frame: _Frame, distance_HW: FloatArray) -> FloatArray:
    """1 inside the field of view, 0 outside, with an edge of about a pixel."""
    field_HW = np.clip((1 - distance_HW) * frame.radius_px + 0.5, 0, 1)
    if camera.notch:
        rows = np.abs(np.arange(frame.height) - frame.height * 0.3)[:, None] / frame.radius_px
        columns = (np.arange(frame.width) - (frame.width - 1) / 2)[None] / frame.radius_px
        notch_HW = (columns > 0.80) & (rows < (columns - 0.80) * 0.5) & (distance_HW > 0.88)
        field_HW = np.where(notch_HW, 0, field_HW)
    field_of_view: FloatArray = field_HW.astype(np.float32)
    return field_of_view
