"""The planted signal: severity, the markers that it moves, and how strongly.

Severity s >= 0 is a participant's; a grade adds `strength` to its mean. Every marker of an eye is drawn around
a value that is linear in s, with a spread of its own, so no marker alone tells the class.
"""

from dataclasses import dataclass

import numpy as np

SEVERITY_SD_BETWEEN_EYES = 0.15


@dataclass(frozen=True)
class Factor:
    """A positive quantity relative to the healthy mean: (1 + per_unit * s) * age effect * exp(spread * N(0, 1)).

    Args:
        per_unit: relative change per unit of severity.
        per_decade: relative change per ten years above the age of 60.
        spread: standard deviation of the logarithm among healthy participants of one age.
    """

    per_unit: float
    per_decade: float
    spread: float

    def mean(self, severity: float, age: float) -> float:
        """The factor without its spread."""
        return max(1 + self.per_unit * severity, 0.3) * (1 + self.per_decade * (age - 60) / 10)

    def draw(self, severity: float, age: float, rng: np.random.Generator) -> float:
        """One participant's factor."""
        return float(self.mean(severity, age) * np.exp(self.spread * rng.standard_normal()))


@dataclass(frozen=True)
class Rate:
    """A count per eye: Poisson with mean (healthy + per_unit * s) * Gamma(1 / spread**2) of mean 1.

    Args:
        healthy: mean count at severity 0.
        per_unit: added to the mean per unit of severity.
        spread: coefficient of variation of the mean among participants of one severity.
    """

    healthy: float
    per_unit: float
    spread: float

    def mean(self, severity: float) -> float:
        """Expected count per eye."""
        return self.healthy + self.per_unit * severity

    def draw_factor(self, rng: np.random.Generator) -> float:
        """A participant's own factor on the mean count; 1 on average."""
        shape = self.spread**-2
        return float(rng.gamma(shape, 1 / shape))


@dataclass(frozen=True)
class Blend:
    """A share in [0, 1): 1 - exp(-x), where x = (healthy + per_unit * s) * exp(spread * N(0, 1)).

    Args:
        healthy: mean of x at severity 0.
        per_unit: added to the mean of x per unit of severity.
        spread: standard deviation of the logarithm of x among participants of one severity.
    """

    healthy: float
    per_unit: float
    spread: float

    def draw(self, severity: float, rng: np.random.Generator) -> float:
        """One participant's share."""
        exponent = (self.healthy + self.per_unit * severity) * np.exp(self.spread * rng.standard_normal())
        return float(1 - np.exp(-exponent))


INNER_RETINA = Factor(per_unit=-0.08, per_decade=-0.025, spread=0.05)
"""Thickness of RNFL, GCL and IPL."""

VESSEL_CALIBRE = Factor(per_unit=0.10, per_decade=-0.02, spread=0.08)
"""Radius of the retinal vessels."""

VESSEL_TORTUOSITY = Factor(per_unit=0.60, per_decade=0.05, spread=0.25)
"""Amplitude of the vessels' meanders."""

CHOROID = Factor(per_unit=-0.12, per_decade=-0.03, spread=0.10)
"""Thickness of the choroid."""

DISORGANISATION = Blend(healthy=0.10, per_unit=0.35, spread=0.20)
"""Loss of contrast between GCL, IPL, INL and OPL: how far their reflectivities move to a common value."""

FOCI = Rate(healthy=10.0, per_unit=60.0, spread=0.20)
"""Hyper-reflective foci within 4 mm of the fovea."""

CYSTS = Rate(healthy=0.5, per_unit=18.0, spread=0.25)
"""Dark cystoid spaces within 3 mm of the fovea."""


def draw_severity(grade: int, strength: float, heterogeneity: float, rng: np.random.Generator) -> float:
    """Severity of one participant: ``max(0, strength * grade + heterogeneity * N(0, 1))``."""
    return float(max(0.0, strength * grade + heterogeneity * rng.standard_normal()))


def expected_effects(strength: float, heterogeneity: float, grade: int = 1) -> dict[str, float]:
    """Cohen's d of each marker between `grade` and `grade` + 1, at age 60, from the parameters alone.

    The spread is that of one class: of the marker at given severity, and of severity within the class. The
    floor of severity at 0 and the difference between two eyes are left out; at `grade` >= 1 and the demo's
    heterogeneity they change d by less than a twentieth.
    """
    s = strength * (grade + 0.5)
    effects = {}
    factors = {
        "inner_retina": INNER_RETINA,
        "choroid": CHOROID,
        "calibre": VESSEL_CALIBRE,
        "tortuosity": VESSEL_TORTUOSITY,
    }
    for name, factor in factors.items():
        variance = (factor.spread * factor.mean(s, 60)) ** 2 + (factor.per_unit * heterogeneity) ** 2
        effects[name] = factor.per_unit * strength / float(np.sqrt(variance))
    for name, rate in {"foci": FOCI, "cysts": CYSTS}.items():
        mean = rate.mean(s)
        variance = mean + (rate.spread * mean) ** 2 + (rate.per_unit * heterogeneity) ** 2
        effects[name] = rate.per_unit * strength / float(np.sqrt(variance))
    exponent = DISORGANISATION.healthy + DISORGANISATION.per_unit * s
    variance = (DISORGANISATION.spread * exponent) ** 2 + (DISORGANISATION.per_unit * heterogeneity) ** 2
    effects["disorganisation"] = DISORGANISATION.per_unit * strength / float(np.sqrt(variance))
    return effects
