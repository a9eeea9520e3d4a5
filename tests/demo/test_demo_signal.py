"""What is planted can be measured: disease, site, age, scanners."""

import dataclasses

import numpy as np
import pytest
from scipy.stats import chi2_contingency, pearsonr

from vitreous.demo import disease
from vitreous.demo.acquisition import draw_geometry, render_reflectivity, scan_eye
from vitreous.demo.anatomy import LAYERS, Eye, draw_eye, draw_person
from vitreous.demo.participants import Participant, draw_participants
from vitreous.demo.recipe import CohortRecipe, Confounding, Flaws
from vitreous.demo.scanners import SCANNERS, SITES

AURORA = SCANNERS["aurora"]
HARBOUR = SITES["harbour"]


def _eye(severity: float, index: int = 0, age: float = 60) -> Eye:
    return draw_eye(draw_person(severity, age, 7, "test", index), "R", 7, "test", index)


def _noiseless(eye: Eye) -> tuple[np.ndarray, np.ndarray]:
    geometry = draw_geometry(eye, "R", AURORA, HARBOUR, np.random.default_rng(0))
    return render_reflectivity(eye, geometry, AURORA), geometry.boundaries_KDW


def test_inner_retina_thins_by_the_documented_share() -> None:
    """Oracle: counting voxels of the noiseless volume brighter than the vitreous and above the INL.

    The same random streams at two severities: only the planted effect differs.
    """
    healthy, ill = _eye(0.0), _eye(2.0)
    thickness = [np.diff(_noiseless(eye)[1], axis=0)[:3].sum(0).mean() for eye in (healthy, ill)]
    assert thickness[1] / thickness[0] == pytest.approx(1 + 2 * disease.INNER_RETINA.per_unit, abs=1e-3)
    retina = []
    for eye in (healthy, ill):
        bare = dataclasses.replace(eye, lesions=dataclasses.replace(
            eye.lesions, centre_L3=eye.lesions.centre_L3[:0], radius_L3=eye.lesions.radius_L3[:0],
            is_focus_L=eye.lesions.is_focus_L[:0],
        ))  # fmt: skip
        light, edges = _noiseless(bare)
        rows = (np.arange(AURORA.num_rows) + 0.5) * AURORA.spacing_mm[1]
        above_inl = rows[None, :, None] < edges[3][:, None, :]
        retina.append(((light > 0.03) & above_inl).sum(1).mean() * AURORA.spacing_mm[1])
    assert retina[1] - retina[0] == pytest.approx(thickness[1] - thickness[0], rel=0.15)


def test_disorganisation_flattens_the_inner_layers_of_the_noiseless_volume() -> None:
    """Oracle: contrast between INL and IPL over 40 eyes per severity, measured in the middle of the layers."""

    def contrast(severity: float) -> float:
        values = []
        for index in range(12):
            light, edges = _noiseless(_eye(severity, index))
            means = []
            for name in ("IPL", "INL"):
                k = LAYERS.index(name)
                middle = ((edges[k] + edges[k + 1]) / 2 / AURORA.spacing_mm[1]).astype(int)
                means.append(float(np.median(np.take_along_axis(light, middle[:, None, :], axis=1))))
            values.append(np.log(means[0] / means[1]))
        return float(np.mean(values))

    assert contrast(0.0) > 0.9
    assert contrast(2.0) < 0.65 * contrast(0.0)


def test_cysts_and_foci_appear_in_the_noiseless_volume() -> None:
    """Oracle: dark voxels inside INL and OPL, bright voxels inside the ONL, where healthy tissue has neither."""
    dark, bright = [], []
    for severity in (0.0, 3.0):
        light, edges = _noiseless(_eye(severity, 4))
        rows = ((np.arange(AURORA.num_rows) + 0.5) * AURORA.spacing_mm[1])[None, :, None]
        inl_opl = (rows > edges[3][:, None, :] + 0.01) & (rows < edges[5][:, None, :] - 0.01)
        onl = (rows > edges[5][:, None, :] + 0.015) & (rows < edges[6][:, None, :] - 0.015)
        dark.append(int((inl_opl & (light < 0.02)).sum()))
        bright.append(int((onl & (light > 0.25)).sum()))
    assert dark[1] > dark[0] + 100
    assert bright[1] > bright[0] + 20


def test_vessels_darken_what_lies_below_them() -> None:
    eye = _eye(0.0)
    light, edges = _noiseless(eye)
    geometry = draw_geometry(eye, "R", AURORA, HARBOUR, np.random.default_rng(0))
    chord = eye.vessels.half_chord(geometry.x_DW, geometry.y_DW)
    below = ((edges[9] + 0.03) / AURORA.spacing_mm[1]).astype(int)
    choroid = np.take_along_axis(light, below[:, None, :], axis=1)[:, 0]
    assert choroid[chord > 0.05].mean() < 0.65 * choroid[chord == 0].mean()


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_markers_differ_between_classes_as_the_parameters_say(strength: float) -> None:
    """Oracle: Cohen's d of 600 drawn participants a class against the closed form."""
    grade = 1
    drawn: dict[str, list[list[float]]] = {}
    for g in (grade, grade + 1):
        values: dict[str, list[float]] = {}
        for index in range(600):
            rng = np.random.default_rng([g, index])
            severity = disease.draw_severity(g, strength, 0.35, rng)
            person = draw_person(severity, 60, g, "effects", index)
            values.setdefault("inner_retina", []).append(person.inner)
            values.setdefault("choroid", []).append(person.choroid)
            values.setdefault("calibre", []).append(person.calibre)
            values.setdefault("tortuosity", []).append(person.tortuosity)
            values.setdefault("disorganisation", []).append(-np.log(1 - person.disorganisation))
            for name, rate, factor in (("foci", disease.FOCI, person.foci), ("cysts", disease.CYSTS, person.cysts)):
                values.setdefault(name, []).append(rng.poisson(factor * rate.mean(severity)))
        for name, column in values.items():
            drawn.setdefault(name, []).append(column)
    expected = disease.expected_effects(strength, 0.35, grade)
    assert expected.keys() == drawn.keys()
    for name, (low, high) in drawn.items():
        pooled = np.sqrt((np.var(low) + np.var(high)) / 2)
        measured = (np.mean(high) - np.mean(low)) / pooled
        if strength == 0:
            assert abs(measured) < 0.2, name
        else:
            assert measured == pytest.approx(expected[name], rel=0.2, abs=0.15), name


def _cramers_v(people: list[Participant]) -> float:
    sites = list(SITES)
    table = np.zeros((4, len(sites)))
    for person in people:
        table[person.grade, sites.index(person.site)] += 1
    statistic = chi2_contingency(table).statistic
    return float(np.sqrt(statistic / len(people) / (min(table.shape) - 1)))


def test_confounding_ties_site_and_age_to_class_only_when_switched_on() -> None:
    """Oracle: Cramér's V of site and class, Pearson correlation of age and grade."""

    def draw(site: float, age: float) -> list[Participant]:
        return draw_participants(
            CohortRecipe(participants=1500, confounding=Confounding(site=site, age=age), flaws=Flaws.none())
        )

    def age_correlation(people: list[Participant]) -> float:
        return float(pearsonr([p.age for p in people], [p.grade for p in people]).statistic)

    free, tied = draw(0, 0), draw(0.8, 1.0)
    assert _cramers_v(free) < 0.08
    assert 0.6 < _cramers_v(tied) < 0.9
    assert _cramers_v(draw(1.0, 0)) == pytest.approx(1.0)
    assert abs(age_correlation(free)) < 0.08
    assert age_correlation(tied) > 0.5
    with pytest.raises(ValueError, match="less than or equal to 1"):
        Confounding(site=1.5)


def test_age_thins_the_retina_and_dims_the_image() -> None:
    young, old = _eye(0.0, 1, age=45), _eye(0.0, 1, age=80)
    assert old.person.inner < young.person.inner
    means = [scan_eye(eye, "R", AURORA, HARBOUR, 0, "age")[0].mean() for eye in (young, old)]
    assert means[1] < means[0] - 0.02


def test_scanners_differ_in_grey_noise_and_size() -> None:
    eye = _eye(1.0, 2)
    facts = {}
    for device, scanner in SCANNERS.items():
        grey, light, geometry = scan_eye(eye, "R", scanner, HARBOUR, 0, "scanners")
        assert grey.shape == light.shape == (scanner.num_frames, scanner.num_rows, scanner.num_columns)
        assert 0 <= grey.min() < grey.max() <= 1
        vitreous = grey[:, : int(geometry.boundaries_KDW[0].min() / scanner.spacing_mm[1]) - 2]
        facts[device] = (grey.shape, scanner.spacing_mm, float(grey.mean()), float(vitreous.std()))
    assert len({(shape, spacing) for shape, spacing, _, _ in facts.values()}) == 4
    by_grey = sorted(facts, key=lambda device: facts[device][2])
    assert (by_grey[0], by_grey[-1]) == ("borealis", "cirro")
    assert facts["cirro"][3] > 2 * facts["borealis"][3]
    assert sum(site.share for site in SITES.values()) == pytest.approx(1)


def test_a_left_eye_is_scanned_mirrored() -> None:
    """The disc lies at the high columns of a right eye and at the low columns of a left one."""
    delta = SCANNERS["delta"]
    person = draw_person(0.0, 60, 7, "mirror")
    nasal = {}
    for laterality in ("R", "L"):
        eye = draw_eye(person, laterality, 7, "mirror")
        geometry = draw_geometry(eye, laterality, delta, HARBOUR, np.random.default_rng(1))
        nasal[laterality] = geometry.x_DW[:, -1].mean() > geometry.x_DW[:, 0].mean()
    assert nasal == {"R": True, "L": False}
