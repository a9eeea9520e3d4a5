"""All pairs of rows on the same patients by three tests: paired bootstrap, DeLong and McNemar.

Axes: N row of the predictions, R resample, P patient left out.

The bootstrap on the primary metric decides letters and ranks. The other two are checks that need no resamples and are
what reviewers know: DeLong for the AUROC, McNemar for the accuracy, both for one row per patient only. Each test of
each metric is a family of its own for Holm's correction, over all pairs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import numpy as np
from statsmodels.stats.multitest import multipletests

from vitreous.core.predictions import Predictions
from vitreous.core.undefined import Undefined
from vitreous.evidence.bca import bca_interval
from vitreous.evidence.comparison import Comparison
from vitreous.evidence.delong import delong_test
from vitreous.evidence.intervals import FEW_PATIENTS_PER_CLASS, MIN_PATIENTS
from vitreous.evidence.mcnemar import mcnemar_test
from vitreous.evidence.one_vs_rest import one_vs_rest
from vitreous.evidence.scores import FloatArray

Test = Literal["bootstrap", "delong", "mcnemar"]


@dataclass(frozen=True)
class PairedTest:
    """One test of one pair; a difference is `row` minus `other`.

    Args:
        metric: of the difference: the primary one; ``auroc`` or ``auroc_<class>``; ``accuracy``, of several
            labels a row ``exact_match``.
        low, high: percentile bounds of the bootstrap, normal bounds of DeLong; McNemar's test has none.
        bca_low, bca_high: of the bootstrap.
        standard_error: over resamples, or DeLong's.
        p: two-sided, not adjusted; `p_holm` adjusted over all pairs of this test and metric.
        seed, other_seed: of the models that McNemar's test compares, which needs one decision a patient.
        only_row, only_other: patients whom one of them alone gets right.
    """

    row: str
    other: str
    test: Test
    metric: str
    difference: float | Undefined
    low: float | Undefined
    high: float | Undefined
    bca_low: float | Undefined
    bca_high: float | Undefined
    standard_error: float | Undefined
    p: float | Undefined
    p_holm: float | Undefined
    seed: int | None = None
    other_seed: int | None = None
    only_row: int | None = None
    only_other: int | None = None


@dataclass(frozen=True)
class Candidate:
    """A row as the tests need it.

    Args:
        test: predictions by seed, on the same rows as all others.
        exported: the seed whose model is handed on, best on val.
        resampled_R, jackknife_P: the primary metric, mean over seeds, in each common resample and with one patient left
            out; NaN where undefined.
    """

    test: Mapping[int, Predictions]
    exported: int
    resampled_R: FloatArray
    jackknife_P: FloatArray

    @property
    def by_seed(self) -> list[Predictions]:
        """Predictions by rising seed."""
        return [self.test[seed] for seed in sorted(self.test)]


def paired_tests(rows: Mapping[str, Candidate], comparison: Comparison, level: float = 0.95) -> tuple[PairedTest, ...]:
    """Every pair by every test, in the order of `rows`: best first makes differences that are mostly above 0.

    Raises:
        ValueError: rows on different patients, or a level that is no share.
    """
    pairs = list(combinations(rows, 2))
    found = [_bootstrap(rows, pair, comparison, level) for pair in pairs]
    if not pairs:
        return ()
    for metric, positive in _delong_metrics(next(iter(rows.values())).by_seed[0]):
        found += _with_holm([_delong(rows, pair, metric, positive, level) for pair in pairs])
    found += _with_holm([_mcnemar(rows, pair) for pair in pairs])
    return tuple(found)


def _bootstrap(
    rows: Mapping[str, Candidate], pair: tuple[str, str], comparison: Comparison, level: float
) -> PairedTest:
    row, other = pair
    told = comparison.difference(row, other)
    differences_R = rows[row].resampled_R - rows[other].resampled_R
    bca = bca_interval(told.value, differences_R, rows[row].jackknife_P - rows[other].jackknife_P, level).bca
    error: float | Undefined = told.low if isinstance(told.low, Undefined) else float(np.nanstd(differences_R, ddof=1))
    return PairedTest(
        row, other, "bootstrap", comparison.metric, told.value, told.low, told.high, bca.low, bca.high, error,
        told.p, told.p_holm,
    )  # fmt: skip


def _delong_metrics(predictions: Predictions) -> list[tuple[str, str]]:
    """Name of the metric and the class held against the rest; of two classes either gives the same."""
    classes = predictions.classes
    if len(classes) == 2 and predictions.task == "multi_class":
        return [("auroc", classes[1])]
    return [(f"auroc_{name}", name) for name in classes]


def _delong(
    rows: Mapping[str, Candidate], pair: tuple[str, str], metric: str, positive: str, level: float
) -> PairedTest:
    first, other = (rows[name].by_seed for name in pair)
    is_positive_N, _ = one_vs_rest(first[0], positive)
    events = min(int(is_positive_N.sum()), int((~is_positive_N).sum()))
    missing = _why_not(first[0], "DeLong's test")
    if missing is None and events < FEW_PATIENTS_PER_CLASS:
        missing = Undefined(
            f"{events} patients with or without {positive!r}: DeLong's test needs at least {FEW_PATIENTS_PER_CLASS} "
            "of each"
        )
    if missing is not None:
        return _untested(pair, "delong", metric, missing)
    told, none = delong_test(first, other, positive, level), Undefined("DeLong's test has no BCa interval")
    return PairedTest(
        *pair, "delong", metric, told.value, told.low, told.high, none, none, told.standard_error, told.p, told.p
    )


def _mcnemar(rows: Mapping[str, Candidate], pair: tuple[str, str]) -> PairedTest:
    first, other = (rows[name] for name in pair)
    one, two = first.test[first.exported], other.test[other.exported]
    metric = "accuracy" if one.task == "multi_class" else "exact_match"  # the share of rows that are right
    if (missing := _why_not(one, "McNemar's test")) is not None:
        return _untested(pair, "mcnemar", metric, missing)
    told, none = mcnemar_test(one, two), Undefined("McNemar's test has no interval")
    return PairedTest(
        *pair, "mcnemar", metric, told.value, none, none, none, none, none, told.p, told.p,
        seed=first.exported, other_seed=other.exported, only_row=told.only_first, only_other=told.only_second,
    )  # fmt: skip


def _untested(pair: tuple[str, str], test: Test, metric: str, missing: Undefined) -> PairedTest:
    return PairedTest(*pair, test, metric, missing, missing, missing, missing, missing, missing, missing, missing)


def _why_not(predictions: Predictions, test: str) -> Undefined | None:
    """Why rows of a patient that belong together, or so few patients, rule a test out."""
    num_rows, num_patients = len(predictions.patient_id_N), len(np.unique(predictions.patient_id_N))
    if num_rows != num_patients:
        return Undefined(f"{test} takes rows as independent; here patients have several ({num_rows} of {num_patients})")
    if num_patients < MIN_PATIENTS:
        return Undefined(f"{num_patients} patients; {test} needs at least {MIN_PATIENTS}")
    return None


def _with_holm(tests: Sequence[PairedTest]) -> list[PairedTest]:
    defined = [one.p for one in tests if not isinstance(one.p, Undefined)]
    adjusted: Callable[[], float] = iter(multipletests(defined, method="holm")[1].tolist() if defined else []).__next__
    return [one if isinstance(one.p, Undefined) else replace(one, p_holm=adjusted()) for one in tests]
