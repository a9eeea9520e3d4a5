"""McNemar's test: which of two rows is right more often on the same patients, one row each."""

from dataclasses import dataclass
from typing import Literal, assert_never

from scipy.stats import binom
from statsmodels.stats.contingency_tables import mcnemar

from vitreous.core.predictions import Predictions
from vitreous.core.undefined import Undefined
from vitreous.evidence.intervals import check_same_rows
from vitreous.evidence.one_vs_rest import check_one_row_per_patient

Method = Literal["mid_p", "exact"]


@dataclass(frozen=True)
class McnemarTest:
    """Accuracy of two rows compared on the patients they disagree about.

    Args:
        value: accuracy of the first minus that of the second.
        only_first, only_second: patients whom one of them alone gets right.
        p: two-sided; 1 where they disagree about nobody.
    """

    value: float | Undefined
    only_first: int
    only_second: int
    p: float | Undefined


def mcnemar_test(first: Predictions, second: Predictions, method: Method = "mid_p") -> McnemarTest:
    """Test whether each of two rows is as often right where the other is wrong.

    Args:
        method: ``exact`` is binomial and never rejects too often, but too seldom in small samples; ``mid_p`` counts the
            observed table half, and is recommended over it.
    Raises:
        ValueError: rows on different patients, or several rows per patient.
    Source: McNemar (1947); mid-p: Fagerland, Lydersen and Laake (2013).
    """
    check_same_rows({"the second row": second, "the first row": first})
    check_one_row_per_patient(first, "McNemar's test")
    if not len(first.y_true_N):
        missing = Undefined("there are no rows")
        return McnemarTest(missing, 0, 0, missing)
    right_N, other_right_N = first.y_pred_N == first.y_true_N, second.y_pred_N == second.y_true_N
    only_first, only_second = int((right_N & ~other_right_N).sum()), int((~right_N & other_right_N).sum())
    value = (only_first - only_second) / len(right_N)
    return McnemarTest(value, only_first, only_second, mcnemar_p(only_first, only_second, method))


def mcnemar_p(only_first: int, only_second: int, method: Method = "mid_p") -> float:
    """Two-sided p-value of two counts that are equal in expectation.

    >>> mcnemar_p(1, 9, "exact") == 2 * (1 + 10) / 2**10
    True
    """
    exact = float(mcnemar([[0, only_first], [only_second, 0]], exact=True).pvalue)
    match method:
        case "exact":
            return exact
        case "mid_p":
            if only_first == only_second:
                return 1.0
            return exact - float(binom.pmf(min(only_first, only_second), only_first + only_second, 0.5))
    assert_never(method)
