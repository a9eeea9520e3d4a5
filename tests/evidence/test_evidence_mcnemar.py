"""McNemar against sums over the binomial written out, and the definition of mid-p."""

from dataclasses import replace
from math import comb

import numpy as np
import pytest
from scipy.stats import binomtest

from vitreous.core.predictions import Predictions
from vitreous.core.undefined import Undefined
from vitreous.evidence.mcnemar import mcnemar_p, mcnemar_test


def made_predictions(correct_N: np.ndarray) -> Predictions:
    ids_N = np.array([f"P{n:04d}" for n in range(len(correct_N))])
    y_N = (np.arange(len(correct_N)) % 2).astype(np.int64)
    predicted_N = np.where(correct_N, y_N, 1 - y_N).astype(int)
    return Predictions(ids_N, ids_N, y_N, np.eye(2)[predicted_N].reshape(-1, 2), ("a", "b"), is_per_patient=True)


@pytest.mark.parametrize("first", range(0, 13, 2))
@pytest.mark.parametrize("second", range(0, 13, 3))
def test_p_values_equal_sums_over_the_binomial(first, second):
    n, least = first + second, min(first, second)
    below = sum(comb(n, k) for k in range(least + 1)) / 2**n
    assert mcnemar_p(first, second, "exact") == pytest.approx(min(1.0, 2 * below), abs=1e-12)
    if n:
        assert mcnemar_p(first, second, "exact") == pytest.approx(binomtest(first, n).pvalue, abs=1e-12)
    # mid-p: tables more extreme than the observed one count whole, equally extreme ones half
    mid = sum(comb(n, k) * (1.0 if abs(k - n / 2) > abs(first - n / 2) else 0.5) for k in range(n + 1)
              if abs(k - n / 2) >= abs(first - n / 2)) / 2**n  # fmt: skip
    expected = 1.0 if first == second else mid
    assert mcnemar_p(first, second) == pytest.approx(expected, abs=1e-12)
    assert mcnemar_p(first, second) == mcnemar_p(second, first)


def test_the_test_counts_patients_only_one_row_gets_right():
    first = made_predictions(np.array([1, 1, 1, 0, 1, 0, 1, 1], dtype=bool))
    second = made_predictions(np.array([1, 0, 0, 1, 0, 0, 0, 1], dtype=bool))
    found = mcnemar_test(first, second, "exact")
    assert (found.only_first, found.only_second, found.value) == (4, 1, 3 / 8)
    assert found.p == pytest.approx(2 * (1 + 5) / 2**5)
    assert mcnemar_test(first, second).p == pytest.approx(2 * (1 + 5) / 2**5 - 5 / 2**5)
    assert mcnemar_test(first, first) == replace(found, value=0.0, only_first=0, only_second=0, p=1.0)


def test_bad_rows_are_refused_and_none_are_undefined():
    one = made_predictions(np.ones(6, dtype=bool))
    several = replace(one, patient_id_N=np.repeat(one.patient_id_N[:2], 3))
    with pytest.raises(ValueError, match=r"McNemar's test needs one row per patient.* got 6 rows of 2 patients"):
        mcnemar_test(several, several)
    with pytest.raises(ValueError, match="not about the same rows: y_true_N differs"):
        mcnemar_test(one, replace(one, y_true_N=1 - one.y_true_N))
    nobody = made_predictions(np.ones(0, dtype=bool))
    assert mcnemar_test(nobody, nobody).p == Undefined("there are no rows")
