"""What diabetic retinopathy leaves on a synthetic fundus, as a function of severity.

Coordinates in mm on the retina with the fovea at the origin: x towards the nose, y upwards.
Axes: L lesion.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

GRADES = (0, 1, 2, 3, 4)
SPREAD_OF_SEVERITY = 0.35
"""Standard deviation of an eye's severity about its grade, in grades."""

_POLE_MM = 2.6  # lesions scatter about the fovea with this standard deviation
_REACH_MM = 5.6


@dataclass(frozen=True)
class Spots:
    """Round or oval marks of one kind.

    Args:
        centre_L2: x and y, mm.
        axes_L2: half-axes, mm.
        turn_L: angle of the first axis, degrees.
    """

    centre_L2: FloatArray
    axes_L2: FloatArray
    turn_L: FloatArray

    def __len__(self) -> int:
        return len(self.turn_L)


@dataclass(frozen=True)
class Lesions:
    """Everything on one retina that is not vessel, disc or fovea.

    Args:
        microaneurysms: small dark-red dots.
        haemorrhages: larger dark-red blots.
        exudates: small bright yellow deposits in clusters.
        pigment, drusen: brown and pale dots that any eye may have; they say nothing of the grade.
    """

    microaneurysms: Spots
    haemorrhages: Spots
    exudates: Spots
    pigment: Spots
    drusen: Spots


def draw_eye_severity(grade: int, strength: float, rng: np.random.Generator) -> float:
    """Severity of an eye of this grade, in grades: normal about the grade, at least 0, times `strength`."""
    return strength * max(0.0, grade + SPREAD_OF_SEVERITY * float(rng.normal()))


def expected_counts(severity: float) -> tuple[float, float, float]:
    """Means of the Poisson counts of microaneurysms, haemorrhages and clusters of exudates.

    >>> expected_counts(0.0), expected_counts(4.0)
    ((0.5, 0.0, 0.0), (16.5, 6.6, 3.36))
    """
    return (
        0.5 + 4.0 * severity,
        2.0 * max(0.0, severity - 0.7),
        1.2 * max(0.0, severity - 1.2),
    )


def draw_lesions(severity: float, disc_xy: tuple[float, float], rng: np.random.Generator) -> Lesions:
    """Lesions of one eye; haemorrhages also grow with severity.

    Args:
        disc_xy: centre of the optic disc, mm; no lesion lies on it.
    """
    dots, blots, clusters = (int(rng.poisson(mean)) for mean in expected_counts(severity))
    freckled = rng.gamma(2.0, 0.5)  # some eyes have many innocent dots, most few
    return Lesions(
        microaneurysms=_spots(dots, (0.06, 0.10), disc_xy, rng, oval=0.1),
        haemorrhages=_spots(blots, (0.11, 0.15 + 0.04 * severity), disc_xy, rng, oval=0.5),
        exudates=_clusters(clusters, disc_xy, rng),
        pigment=_spots(int(rng.poisson(3.0 * freckled)), (0.06, 0.14), disc_xy, rng, oval=0.3),
        drusen=_spots(int(rng.poisson(3.0 * freckled)), (0.05, 0.10), disc_xy, rng, oval=0.2),
    )


def _places(count: int, disc_xy: tuple[float, float], rng: np.random.Generator) -> FloatArray:
    """Points about the fovea, in the field and off the disc."""
    found = np.empty((0, 2))
    while len(found) < count:
        tried = rng.normal(scale=_POLE_MM, size=(2 * count + 4, 2))
        off_disc = np.hypot(*(tried - np.array(disc_xy)).T) > 1.2
        found = np.concatenate([found, tried[off_disc & (np.hypot(*tried.T) < _REACH_MM)]])
    return found[:count]


def _spots(
    count: int, radius_mm: tuple[float, float], disc_xy: tuple[float, float], rng: np.random.Generator, *, oval: float
) -> Spots:
    radius_L1 = rng.uniform(*radius_mm, size=(count, 1))
    stretch_L1 = np.exp(rng.uniform(-oval, oval, size=(count, 1)))
    axes_L2 = np.concatenate([radius_L1 * stretch_L1, radius_L1 / stretch_L1], axis=1)
    return Spots(_places(count, disc_xy, rng), axes_L2, rng.uniform(0, 180, size=count))


def _clusters(count: int, disc_xy: tuple[float, float], rng: np.random.Generator) -> Spots:
    """Each cluster is 3 to 10 deposits within about half a millimetre."""
    middles = _places(count, disc_xy, rng)
    sizes = rng.integers(3, 11, size=count)
    centre_L2 = np.repeat(middles, sizes, axis=0) + rng.normal(scale=0.22, size=(int(sizes.sum()), 2))
    axes_L2 = rng.uniform(0.05, 0.12, size=(len(centre_L2), 2))
    return Spots(centre_L2, axes_L2, rng.uniform(0, 180, size=len(centre_L2)))
