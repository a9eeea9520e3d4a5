"""One eye: the thickness of its retinal layers, its vessels and its lesions, as functions of place.

Coordinates in mm on the retina with the fovea at the origin: x towards the nose, y upwards, z into the eye.
Both eyes share these coordinates; a left eye is mirrored when it is scanned.
Axes: K layer or boundary, D frame, W column, L lesion.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vitreous.core.streams import numpy_stream
from vitreous.demo import disease
from vitreous.demo.vessels import VesselTree, grow_vessels

FloatArray = npt.NDArray[np.float32]

LAYERS = ("RNFL", "GCL", "IPL", "INL", "OPL", "ONL", "EZ", "OS", "RPE", "choroid")
"""From the vitreous outwards. Boundary 0 is the ILM; boundary k lies under layer k - 1."""

REFLECTIVITY = {
    "vitreous": 0.0025, "RNFL": 0.42, "GCL": 0.13, "IPL": 0.20, "INL": 0.060, "OPL": 0.17, "ONL": 0.035,
    "EZ": 0.55, "OS": 0.12, "RPE": 0.75, "choroid": 0.24, "sclera": 0.10,
}  # fmt: skip
"""Linear backscatter, relative."""

ORGANISED = ("GCL", "IPL", "INL", "OPL")
"""Layers whose contrast fades with disorganisation, towards `FADED_REFLECTIVITY`."""

FADED_REFLECTIVITY = 0.125

DISC_RADIUS_MM = 0.80


@dataclass(frozen=True)
class Person:
    """What both eyes of a participant share.

    Args:
        severity: of the disease, >= 0 (see :mod:`vitreous.demo.disease`).
        age: years.
        inner, outer, choroid: factors on layer thickness.
        calibre, tortuosity: factors on the vessels.
        disorganisation: share in [0, 1) by which the contrast of the inner layers is lost.
        foci, cysts: factors on the mean number of lesions.
        pit_width_mm: radius of the foveal pit.
        pigment: factor on the reflectivity of RPE and choroid.
    """

    severity: float
    age: float
    inner: float
    outer: float
    choroid: float
    calibre: float
    tortuosity: float
    disorganisation: float
    foci: float
    cysts: float
    pit_width_mm: float
    pigment: float


@dataclass(frozen=True)
class Lesions:
    """Ellipsoids in one eye.

    Args:
        centre_L3: x and y in mm, and depth as the position between two boundaries (see `layer_position`).
        radius_L3: half axes along x, y and z, mm.
        is_focus_L: a bright focus; else a dark cyst.
    """

    centre_L3: FloatArray
    radius_L3: FloatArray
    is_focus_L: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Eye:
    """One eye, ready to be scanned.

    Args:
        disc_xy: centre of the optic disc, mm.
        curvature_per_mm: of the bowl that the RPE forms.
        undulation: rows of (frequency, phase along x, phase along y, amplitude in mm) on top of the bowl.
        choroid_waves: rows of (frequency along x, along y, phase, phase) that place the choroid's vessels.
    """

    person: Person
    disc_xy: tuple[float, float]
    curvature_per_mm: float
    undulation: FloatArray
    choroid_waves: FloatArray
    vessels: VesselTree
    lesions: Lesions


def draw_person(severity: float, age: float, seed: int, *names: str | int) -> Person:
    """Draw what both eyes share; the stream is named by `seed` and `names`."""
    rng = numpy_stream(seed, *names, "person")
    return Person(
        severity=severity,
        age=age,
        inner=disease.INNER_RETINA.draw(severity, age, rng),
        outer=float(np.exp(0.04 * rng.standard_normal())),
        choroid=disease.CHOROID.draw(severity, age, rng),
        calibre=disease.VESSEL_CALIBRE.draw(severity, age, rng),
        tortuosity=disease.VESSEL_TORTUOSITY.draw(severity, age, rng),
        disorganisation=disease.DISORGANISATION.draw(severity, rng),
        foci=disease.FOCI.draw_factor(rng),
        cysts=disease.CYSTS.draw_factor(rng),
        pit_width_mm=float(rng.uniform(0.42, 0.62)),
        pigment=float(np.exp(0.12 * rng.standard_normal())),
    )


def draw_eye(person: Person, laterality: str, seed: int, *names: str | int) -> Eye:
    """Draw one eye of a person; the stream is named by `seed`, `names` and `laterality`."""
    rng = numpy_stream(seed, *names, "eye", laterality)
    disc_xy = (float(rng.normal(4.3, 0.2)), float(rng.normal(0.3, 0.2)))
    phase_42 = rng.uniform(0, 2 * np.pi, (4, 2))
    undulation = np.column_stack([rng.uniform(0.5, 1.4, 4), phase_42, rng.normal(0, 0.006, 4)])
    choroid_waves = np.column_stack([rng.normal(0, 3.0, (5, 2)), rng.uniform(0, 2 * np.pi, (5, 2))])
    return Eye(
        person=person,
        disc_xy=disc_xy,
        curvature_per_mm=float(rng.normal(0.010, 0.003)),
        undulation=undulation.astype(np.float32),
        choroid_waves=choroid_waves.astype(np.float32),
        vessels=grow_vessels(
            disc_xy,
            calibre=person.calibre,
            tortuosity=person.tortuosity,
            rng=numpy_stream(seed, *names, "vessels", laterality),
        ),
        lesions=draw_lesions(person, laterality, seed, *names),
    )


def draw_lesions(person: Person, laterality: str, seed: int, *names: str | int) -> Lesions:
    """Draw the lesions of one eye, whose severity lies around the person's; part of :func:`draw_eye`."""
    rng = numpy_stream(seed, *names, "lesions", laterality)
    severity = max(0.0, person.severity + disease.SEVERITY_SD_BETWEEN_EYES * float(rng.standard_normal()))
    num_foci = int(rng.poisson(person.foci * disease.FOCI.mean(severity)))
    num_cysts = int(rng.poisson(person.cysts * disease.CYSTS.mean(severity)))
    focus_L3 = np.column_stack([*_disc(num_foci, 0.5, 4.0, rng), rng.uniform(1.2, 5.8, num_foci)])
    cyst_L3 = np.column_stack([*_disc(num_cysts, 0.3, 3.0, rng), rng.uniform(3.2, 4.6, num_cysts)])
    # lateral half axes of foci are those of the beam and of light scattered around the focus, not of the focus alone
    focus_radius_L3 = np.column_stack(
        [rng.uniform(0.06, 0.10, num_foci), rng.uniform(0.10, 0.16, num_foci), rng.uniform(0.015, 0.025, num_foci)]
    )
    cyst_radius_L3 = np.column_stack(
        [rng.uniform(0.12, 0.30, num_cysts), rng.uniform(0.15, 0.30, num_cysts), rng.uniform(0.025, 0.050, num_cysts)]
    )
    return Lesions(
        np.concatenate([focus_L3, cyst_L3]).astype(np.float32),
        np.concatenate([focus_radius_L3, cyst_radius_L3]).astype(np.float32),
        np.arange(num_foci + num_cysts) < num_foci,
    )


def _disc(count: int, inner: float, outer: float, rng: np.random.Generator) -> tuple[npt.NDArray[np.float64], ...]:
    """Points uniform in a ring round the fovea, mm."""
    radius = np.sqrt(rng.uniform(inner**2, outer**2, count))
    angle = rng.uniform(0, 2 * np.pi, count)
    return radius * np.cos(angle), radius * np.sin(angle)


def layer_thickness(eye: Eye, x_DW: FloatArray, y_DW: FloatArray) -> FloatArray:
    """Thickness of each of `LAYERS` in mm, (K, D, W)."""
    person = eye.person
    squared = x_DW**2 + y_DW**2
    to_disc = np.hypot(x_DW - eye.disc_xy[0], y_DW - eye.disc_xy[1])
    outside = 1 / (1 + np.exp(-(to_disc - DISC_RADIUS_MM) / 0.08))  # 0 in the disc, 1 on the retina
    pit = 1 - np.exp(-squared / (2 * person.pit_width_mm**2))
    centre = np.exp(-squared / (2 * 0.55**2))
    ring = np.exp(-squared / (2 * 2.4**2))
    bundles = 0.045 * np.exp(-((np.abs(y_DW) - 2.3) ** 2) / (2 * 0.9**2)) * (1 / (1 + np.exp(-(x_DW + 1) / 1.2)))
    nerve = 0.006 + 0.022 * (1 - np.exp(-squared / 1.6)) + bundles + 0.085 * np.exp(-(to_disc**2) / (2 * 1.5**2))
    rim = 0.05 + 0.22 * np.exp(-((to_disc - 0.62) ** 2) / (2 * 0.18**2))
    inner, outer = person.inner, person.outer
    thickness = {
        "RNFL": (nerve * outside + rim * (1 - outside)) * inner,
        "GCL": (0.014 + 0.036 * ring) * pit * outside * inner,
        "IPL": (0.022 + 0.018 * ring) * pit * outside * inner,
        "INL": (0.024 + 0.014 * ring) * (0.12 + 0.88 * pit) * outside * outer,
        "OPL": 0.026 * (0.35 + 0.65 * pit) * outside * outer,
        "ONL": (0.055 + 0.015 * ring + 0.045 * centre) * outside * outer,
        "EZ": (0.020 + 0.004 * centre) * outside,
        "OS": (0.024 + 0.014 * centre) * outside,
        "RPE": 0.024 * outside,
        "choroid": (0.23 + 0.05 * ring) * person.choroid * outside,
    }
    return np.stack([thickness[name] for name in LAYERS]).astype(np.float32)


def layer_boundaries(eye: Eye, x_DW: FloatArray, y_DW: FloatArray) -> FloatArray:
    """Depth of the boundaries in mm, (K + 1, D, W); 0 is the base of the RPE at the fovea of a level eye."""
    thickness_KDW = layer_thickness(eye, x_DW, y_DW)
    base = 0.5 * eye.curvature_per_mm * -(x_DW**2 + y_DW**2)
    for frequency, phase_x, phase_y, amplitude in eye.undulation:
        base = base + amplitude * np.cos(frequency * x_DW + phase_x) * np.cos(frequency * y_DW + phase_y)
    to_disc = np.hypot(x_DW - eye.disc_xy[0], y_DW - eye.disc_xy[1])
    base = base + 0.22 / (1 + np.exp((to_disc - DISC_RADIUS_MM) / 0.12))  # the cup
    above = np.cumsum(thickness_KDW[:9][::-1], axis=0)[::-1]
    return np.concatenate([base - above, base[None], (base + thickness_KDW[9])[None]]).astype(np.float32)


def layer_position(boundaries: FloatArray, position: float) -> float:
    """Depth (mm) of a position between boundaries of one A-scan: 3.5 is the middle of layer 3 (INL)."""
    return float(np.interp(position, np.arange(len(boundaries)), boundaries))
