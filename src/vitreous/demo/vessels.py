"""Retinal vessels: arcades from the optic disc, their branches, and where they cross a scan.

Coordinates in mm on the retina with the fovea at the origin: x towards the nose, y upwards.
Axes: P point on a vessel, D frame, W column.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

FloatArray = npt.NDArray[np.float32]

TRUNK_RADIUS_MM = 0.075
MEANDER_MM = 0.045
POINT_DISTANCE_MM = 0.025
AVASCULAR_RADIUS_MM = 0.45


@dataclass(frozen=True)
class VesselTree:
    """All vessels of one eye as densely placed discs.

    Args:
        points_P2: x and y, mm.
        radius_P: mm.
    """

    points_P2: FloatArray
    radius_P: FloatArray

    def half_chord(self, x_DW: FloatArray, y_DW: FloatArray) -> FloatArray:
        """Half the depth (mm) that each A-scan runs inside a vessel; 0 outside."""
        tree = cKDTree(self.points_P2)
        reach = float(self.radius_P.max())
        distance, nearest = tree.query(
            np.stack([x_DW.ravel(), y_DW.ravel()], axis=1), distance_upper_bound=reach, workers=1
        )
        radius = np.append(self.radius_P, 0)[nearest]  # the tree says index P where nothing is in reach
        distance = np.where(np.isfinite(distance), distance, reach)
        chord: FloatArray = np.sqrt(np.maximum(radius**2 - distance**2, 0)).astype(np.float32)
        return chord.reshape(x_DW.shape)


def _meander(path_P2: npt.NDArray[np.float64], amplitude: float, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Bend a path sideways by two sines of its arc length."""
    step = np.gradient(path_P2, axis=0)
    length = np.cumsum(np.hypot(step[:, 0], step[:, 1]))
    normal = np.stack([-step[:, 1], step[:, 0]], axis=1) / np.hypot(step[:, 0], step[:, 1])[:, None]
    waves = np.zeros(len(path_P2))
    for wavelength in (0.9, 1.7):
        waves += np.sin(2 * np.pi * (length / (wavelength * rng.uniform(0.8, 1.2)) + rng.uniform()))
    return path_P2 + normal * (amplitude * waves * np.minimum(length / 0.5, 1))[:, None]


def _trunk(
    disc_xy: tuple[float, float], up: float, temporal: bool, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """From the disc: an arcade round the fovea, or a straight course to the nose."""
    if not temporal:
        t = np.arange(0, 3.5, POINT_DISTANCE_MM)
        angle = up * rng.uniform(0.4, 0.9)
        return np.stack([disc_xy[0] + t * np.cos(angle), disc_xy[1] + t * np.sin(angle)], axis=1)
    centre = rng.uniform(-0.6, 0.1)
    half_width, half_height = disc_xy[0] - centre, up * rng.uniform(2.1, 3.0)
    phi = np.linspace(0, rng.uniform(2.3, 2.7), int(9 / POINT_DISTANCE_MM))
    x = centre + half_width * np.cos(phi)
    # the power flattens the start: arcades leave the disc almost vertically
    y = disc_xy[1] * np.cos(phi / 2) + half_height * np.sin(phi) ** 0.8
    return np.stack([x, y], axis=1)


def _branch(origin: npt.NDArray[np.float64], inward: bool, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """From a point on a trunk towards the fovea, or away from it."""
    to_fovea = -origin / np.hypot(*origin)
    heading = to_fovea if inward else -to_fovea
    turn = rng.uniform(-0.6, 0.6)
    length = rng.uniform(0.8, 1.6) * (1.2 if inward else 1.6)
    t = np.arange(0, length, POINT_DISTANCE_MM)
    angle = np.arctan2(heading[1], heading[0]) + turn * (1 - t / length)
    steps = POINT_DISTANCE_MM * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    path: npt.NDArray[np.float64] = origin + np.cumsum(steps, axis=0)
    return path[np.hypot(path[:, 0], path[:, 1]) > AVASCULAR_RADIUS_MM]


def grow_vessels(
    disc_xy: tuple[float, float], *, calibre: float, tortuosity: float, rng: np.random.Generator
) -> VesselTree:
    """Grow one eye's tree: three trunks upwards, three downwards, branches, and branches of branches.

    Args:
        disc_xy: centre of the optic disc, mm.
        calibre: multiplies every radius.
        tortuosity: multiplies the amplitude of every meander.
    """
    paths, radii = [], []

    def add(path: npt.NDArray[np.float64], start: float, end: float, bend: float) -> npt.NDArray[np.float64]:
        bent = _meander(path, MEANDER_MM * bend * tortuosity, rng)
        paths.append(bent)
        radii.append(TRUNK_RADIUS_MM * calibre * np.linspace(start, end, len(path)))
        return bent

    for up in (1.0, -1.0):
        for temporal in (True, True, False):
            trunk = add(_trunk(disc_xy, up, temporal, rng), rng.uniform(0.85, 1.1), 0.55, 1.0)
            for origin_idx in rng.integers(len(trunk) // 8, len(trunk) - 10, size=6 if temporal else 2):
                branch = _branch(trunk[origin_idx], bool(rng.uniform() < 0.65), rng)
                if len(branch) < 20:
                    continue
                branch = add(branch, 0.6, 0.35, 0.6)
                twig = _branch(branch[len(branch) // 2], True, rng)
                if len(twig) >= 20:
                    add(twig, 0.4, 0.28, 0.5)
    return VesselTree(np.concatenate(paths).astype(np.float32), np.concatenate(radii).astype(np.float32))
