"""A scan of an eye: noiseless reflectivity, then light, speckle, noise and the scanner's grey curve.

Axes: K boundary, D frame (slow scan, from the bottom of the retina upwards), H row (depth), W column (fast scan;
in a right eye towards the nose, in a left eye away from it).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vitreous.core.streams import numpy_stream
from vitreous.demo.anatomy import (
    FADED_REFLECTIVITY,
    LAYERS,
    ORGANISED,
    REFLECTIVITY,
    Eye,
    layer_boundaries,
    layer_position,
)
from vitreous.demo.scanners import Scanner, Site

FloatArray = npt.NDArray[np.float32]

RPE_DEPTH_SHARE = 0.56
"""Where in the depth range the operator puts the RPE."""

VESSEL_REFLECTIVITY = 0.50
SHADOW_PER_MM = 11.0
FOCUS_REFLECTIVITY = 0.85
CYST_REFLECTIVITY = 0.006
CHOROID_DECAY_MM = 0.30


@dataclass(frozen=True)
class ScanGeometry:
    """Where the beam went.

    Args:
        x_DW, y_DW: place of each A-scan on the retina, mm.
        boundaries_KDW: depth of the layer boundaries below the top of the volume, mm.
    """

    x_DW: FloatArray
    y_DW: FloatArray
    boundaries_KDW: FloatArray


def draw_geometry(eye: Eye, laterality: str, scanner: Scanner, site: Site, rng: np.random.Generator) -> ScanGeometry:
    """Draw fixation, rotation, tilt and motion of one scan."""
    spacing_d, _, spacing_w = scanner.spacing_mm
    across = (np.arange(scanner.num_columns) - (scanner.num_columns - 1) / 2) * spacing_w
    up = (np.arange(scanner.num_frames) - (scanner.num_frames - 1) / 2) * spacing_d
    turn = rng.normal(0, 0.03)
    centre_x, centre_y = rng.normal([1.0 if scanner.region == "wide_field" else 0.0, 0.0], 0.15)
    slow, fast = np.meshgrid(up, across if laterality == "R" else -across, indexing="ij")
    x_DW = (centre_x + np.cos(turn) * fast - np.sin(turn) * slow).astype(np.float32)
    y_DW = (centre_y + np.sin(turn) * fast + np.cos(turn) * slow).astype(np.float32)
    tilt_x, tilt_y = rng.normal(0, 0.008, 2)
    motion_D = rng.normal(0, scanner.jitter_mm * site.jitter_factor, scanner.num_frames)
    top = scanner.depth_mm * RPE_DEPTH_SHARE + rng.normal(0, 0.015)
    offset_DW = top + tilt_x * x_DW + tilt_y * y_DW + motion_D[:, None]
    boundaries_KDW = layer_boundaries(eye, x_DW, y_DW) + offset_DW.astype(np.float32)
    return ScanGeometry(x_DW, y_DW, boundaries_KDW)


def _rise(depth_1H1: FloatArray, edge_DW: FloatArray, pixel_mm: float, out: FloatArray) -> FloatArray:
    """Share of each voxel that lies below an edge, 0 to 1."""
    np.subtract(depth_1H1, edge_DW[:, None, :], out=out)
    out *= np.float32(1 / pixel_mm)
    out += np.float32(0.5)
    return np.clip(out, 0, 1, out=out)


def render_reflectivity(eye: Eye, geometry: ScanGeometry, scanner: Scanner) -> FloatArray:
    """The noiseless volume (D, H, W): layers, choroidal vessels, lesions, retinal vessels and their shadows."""
    pixel = scanner.spacing_mm[1]
    depth_1H1 = ((np.arange(scanner.num_rows, dtype=np.float32) + 0.5) * np.float32(pixel))[None, :, None]
    edges = geometry.boundaries_KDW
    shape = (scanner.num_frames, scanner.num_rows, scanner.num_columns)
    light = np.full(shape, REFLECTIVITY["vitreous"], np.float32)
    share = np.empty(shape, np.float32)
    below_DW = np.full_like(geometry.x_DW, REFLECTIVITY["vitreous"])
    for edge_DW, name in zip(edges, (*LAYERS, "sclera")):
        value_DW = _layer_reflectivity(name, eye, geometry)
        light += _rise(depth_1H1, edge_DW, pixel, share) * (value_DW - below_DW)[:, None, :]
        below_DW = value_DW
    _add_choroid(light, eye, depth_1H1, geometry)
    _add_lesions(light, eye, geometry, scanner)
    half_DW = _vessel_half_chord(eye, geometry, scanner)
    half_DW *= geometry.boundaries_KDW[9] - geometry.boundaries_KDW[0] > 0.12  # none over the cup of the disc
    centre_DW = edges[0] + np.minimum(0.055, 0.5 * (edges[3] - edges[0])) + 0.2 * half_DW
    inside = _rise(depth_1H1, centre_DW - half_DW, pixel, share).copy()
    under = _rise(depth_1H1, centre_DW + half_DW, pixel, share)
    inside -= under
    light += inside * (np.float32(VESSEL_REFLECTIVITY) - light)
    under *= (1 - np.exp(-SHADOW_PER_MM * 2 * half_DW)).astype(np.float32)[:, None, :]
    light *= 1 - under
    return light


def _layer_reflectivity(name: str, eye: Eye, geometry: ScanGeometry) -> FloatArray:
    """Backscatter of one layer at each A-scan (D, W)."""
    value_DW = np.full_like(geometry.x_DW, REFLECTIVITY[name])
    if name in ("RPE", "choroid"):
        value_DW *= np.float32(eye.person.pigment)
    if name in ORGANISED:
        patchy_DW = np.ones_like(geometry.x_DW)
        for along_x, along_y, phase, _ in eye.choroid_waves[:2]:
            patchy_DW += 0.25 * np.sin(0.4 * along_x * geometry.x_DW + 0.4 * along_y * geometry.y_DW + phase)
        blend_DW = np.minimum(eye.person.disorganisation * patchy_DW, 0.95)
        value_DW += blend_DW * (FADED_REFLECTIVITY - value_DW)
    return value_DW


def _vessel_half_chord(eye: Eye, geometry: ScanGeometry, scanner: Scanner) -> FloatArray:
    """Half the depth (mm) inside a vessel, averaged over the thickness of a frame."""
    half_DW = np.zeros_like(geometry.x_DW)
    for share in (-1 / 3, 0.0, 1 / 3):
        half_DW += eye.vessels.half_chord(geometry.x_DW, geometry.y_DW + np.float32(share * scanner.spacing_mm[0]))
    return half_DW / np.float32(3)


def _add_choroid(light: FloatArray, eye: Eye, depth_1H1: FloatArray, geometry: ScanGeometry) -> None:
    """Dark lumina between bright stroma, and the decay of light under the RPE."""
    x_DW, y_DW, base_DW = geometry.x_DW, geometry.y_DW, geometry.boundaries_KDW[9]
    wander_DW, patch_DW = np.zeros_like(x_DW), np.zeros_like(x_DW)
    for along_x, along_y, phase, other_phase in eye.choroid_waves:
        wander_DW += 1.6 * np.sin(along_x * x_DW + along_y * y_DW + phase)
        patch_DW += np.sin(1.7 * along_y * x_DW - 1.7 * along_x * y_DW + other_phase)
    under = np.maximum(depth_1H1 - base_DW[:, None, :], 0)
    lumina = np.cos(under * np.float32(2 * np.pi / 0.17) + wander_DW[:, None, :])
    lumina *= np.tanh(patch_DW)[:, None, :]
    lumina *= np.float32(0.40)
    lumina *= np.minimum(under * np.float32(1 / 0.04), 1)  # none in the RPE and the choriocapillaris
    light *= 1 + lumina
    light *= np.exp(under * np.float32(-1 / CHOROID_DECAY_MM))


def _add_lesions(light: FloatArray, eye: Eye, geometry: ScanGeometry, scanner: Scanner) -> None:
    """Blend each lesion into the box of voxels around it."""
    spacing_d, pixel, spacing_w = scanner.spacing_mm
    lesions = eye.lesions
    for centre, radius, is_focus in zip(lesions.centre_L3, lesions.radius_L3, lesions.is_focus_L):
        away_DW = ((geometry.x_DW - centre[0]) / radius[0]) ** 2 + ((geometry.y_DW - centre[1]) / radius[1]) ** 2
        frame, column = np.unravel_index(int(np.argmin(away_DW)), away_DW.shape)
        if away_DW[frame, column] > 1:
            continue
        reach_d, reach_w = int(np.ceil(radius[1] / spacing_d)) + 1, int(np.ceil(radius[0] / spacing_w)) + 1
        frames = slice(max(frame - reach_d, 0), frame + reach_d + 1)
        columns = slice(max(column - reach_w, 0), column + reach_w + 1)
        edges = geometry.boundaries_KDW[:, frame, column]
        depth = layer_position(edges, float(centre[2]))
        first = max(int((depth - radius[2]) / pixel) - 2, 0)
        rows = slice(first, int((depth + radius[2]) / pixel) + 3)
        row_mm = (np.arange(scanner.num_rows)[rows] + 0.5) * pixel
        # follow the tilt of the layers across the lesion
        shift_DW = geometry.boundaries_KDW[4][frames, columns] - edges[4]
        away = (
            away_DW[frames, columns][:, None, :]
            + ((row_mm[None, :, None] - depth - shift_DW[:, None, :]) / radius[2]) ** 2
        )
        cover = np.clip((1.0 - np.sqrt(away)) * 3.0 + 0.5, 0, 1).astype(np.float32)
        value = np.float32(FOCUS_REFLECTIVITY if is_focus else CYST_REFLECTIVITY)
        box = light[frames, rows, columns]
        box += cover * (value - box)


def _blur(volume: FloatArray, share: float, axis: int) -> FloatArray:
    """Each voxel gives `share` of its light to either neighbour along `axis`; the ends keep theirs."""
    moved = np.moveaxis(volume, axis, -1)
    blurred = moved * np.float32(1 - 2 * share)
    blurred[..., 1:] += np.float32(share) * moved[..., :-1]
    blurred[..., :-1] += np.float32(share) * moved[..., 1:]
    blurred[..., 0] += np.float32(share) * moved[..., 0]
    blurred[..., -1] += np.float32(share) * moved[..., -1]
    return np.moveaxis(blurred, -1, axis)


def detect(light: FloatArray, scanner: Scanner, site: Site, age: float, rng: np.random.Generator) -> FloatArray:
    """From reflectivity to the grey value in [0, 1] that the scanner would store.

    grey = clip((10 log10(signal) - floor_db) / range_db, 0, 1) ** gamma, where
    signal = blur(light * gain * illumination * roll-off * gamma speckle) + exponential noise.
    """
    frames, rows, columns = light.shape
    frame_db: FloatArray = rng.normal(0, 0.3, (frames,)).astype(np.float32)
    clarity_db = rng.normal(0, 0.8) - 0.08 * max(age - 50, 0)  # media grow cloudy with age
    x = np.linspace(-1, 1, columns)
    lateral_db = -1.0 * x**2 + rng.normal(0, 0.6) * x
    depth_db = -scanner.roll_off_db_per_mm * np.linspace(0, scanner.depth_mm, rows)
    gain_db = site.gain_db + clarity_db + frame_db[:, None] + lateral_db[None, :]
    signal = light * (10 ** (gain_db / 10)).astype(np.float32)[:, None, :]
    signal *= (10 ** (depth_db / 10)).astype(np.float32)[None, :, None]
    signal *= rng.standard_gamma(scanner.looks, light.shape, dtype=np.float32)
    signal *= np.float32(1 / scanner.looks)
    signal = _blur(_blur(signal, scanner.lateral_blur, 2), scanner.axial_blur, 1)
    noise = rng.standard_gamma(max(scanner.looks / 2, 1), light.shape, dtype=np.float32)
    signal += noise * np.float32(scanner.noise_floor / max(scanner.looks / 2, 1))
    decibel = 10 * np.log10(signal)
    grey = np.clip((decibel - np.float32(scanner.floor_db)) * np.float32(1 / scanner.range_db), 0, 1)
    shown: FloatArray = np.power(grey, np.float32(scanner.gamma))
    return shown


def scan_eye(
    eye: Eye, laterality: str, scanner: Scanner, site: Site, seed: int, *names: str | int
) -> tuple[FloatArray, FloatArray, ScanGeometry]:
    """Scan an eye once: grey values in [0, 1], the noiseless reflectivity (both D, H, W) and the geometry.

    The streams are named by `seed` and `names`; equal names give an equal scan.
    """
    geometry = draw_geometry(eye, laterality, scanner, site, numpy_stream(seed, *names, "geometry"))
    light = render_reflectivity(eye, geometry, scanner)
    grey = detect(light, scanner, site, eye.person.age, numpy_stream(seed, *names, "detection"))
    return grey, light, geometry
