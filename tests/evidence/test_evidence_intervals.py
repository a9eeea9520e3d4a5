"""Intervals against a slow loop that really draws patients, and by simulated coverage."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn import metrics as sk

from vitreous.core.predictions import Predictions
from vitreous.core.streams import numpy_stream
from vitreous.core.undefined import Undefined
from vitreous.evidence.intervals import (
    bootstrap_intervals,
    find_few_patients,
    mean_over_seeds,
    percentile_interval,
    resample_weights,
)

CLASSES = ("a", "b", "c")


def made_predictions(patients: int, seed: int, *, skill: float = 1.0, rows_each: int = 1) -> Predictions:
    """Patients with random labels (all classes occur) and logits that know the label to some degree."""
    rng = np.random.default_rng(seed)
    label_P = np.concatenate([np.arange(3), np.random.default_rng(99).integers(0, 3, patients - 3)])
    y_N = np.repeat(label_P, rows_each)
    ids_N = np.repeat([f"P{p:04d}" for p in range(patients)], rows_each)
    logits_NC = rng.normal(size=(len(y_N), 3)) + skill * np.eye(3)[y_N]
    return Predictions(np.array([f"{i}/{k}" for k, i in enumerate(ids_N)]), ids_N, y_N, logits_NC, CLASSES)


def test_each_resample_draws_as_many_patients_as_there_are_and_keeps_them_whole():
    ids_N = np.array(["b", "a", "b", "c", "a", "b"])
    weights_RN = resample_weights(ids_N, num_resamples=500, rng=np.random.default_rng(0))
    assert weights_RN.shape == (500, 6)
    by_patient = {name: weights_RN[:, ids_N == name] for name in "abc"}
    for counts_RK in by_patient.values():
        assert (counts_RK == counts_RK[:, :1]).all()
    assert (sum(counts[:, 0] for counts in by_patient.values()) == 3).all()
    # closed form: each count is binomial(3, 1/3), mean 1, variance 2/3
    assert by_patient["a"][:, 0].mean() == pytest.approx(1, abs=0.1)
    assert by_patient["a"][:, 0].var() == pytest.approx(2 / 3, abs=0.1)


def test_weights_follow_the_patient_not_the_row_and_not_the_block(monkeypatch):
    ids_N = np.array(["b", "a", "d", "c"])
    weights_RN = resample_weights(ids_N, num_resamples=40, rng=np.random.default_rng(7))
    turned = resample_weights(ids_N[::-1], num_resamples=40, rng=np.random.default_rng(7))
    np.testing.assert_array_equal(turned, weights_RN[:, ::-1])
    with pytest.raises(ValueError, match="got 0 and 40"):
        resample_weights(ids_N[:0], num_resamples=40, rng=np.random.default_rng(7))


def test_intervals_equal_a_loop_over_drawn_patients():
    """Oracle: rows of the drawn patients written out one by one, scored by scikit-learn."""
    by_seed = [made_predictions(30, seed, rows_each=2) for seed in range(2)]
    weights_RN = resample_weights(by_seed[0].patient_id_N, num_resamples=300, rng=np.random.default_rng(1))
    slow = {"accuracy": [], "balanced_accuracy": [], "auroc": [], "macro_f1": [], "precision_b": []}
    for weights_N in weights_RN:
        rows = np.repeat(np.arange(60), weights_N)
        y_N = by_seed[0].y_true_N[rows]
        values = {name: [] for name in slow}
        for one in by_seed:
            probs_NC, y_pred_N = one.probs_NC[rows], one.y_pred_N[rows]
            values["accuracy"].append(sk.accuracy_score(y_N, y_pred_N))
            values["balanced_accuracy"].append(sk.balanced_accuracy_score(y_N, y_pred_N))
            values["auroc"].append(sk.roc_auc_score(y_N, probs_NC, multi_class="ovr"))
            values["macro_f1"].append(sk.f1_score(y_N, y_pred_N, average="macro"))
            values["precision_b"].append(sk.precision_score(y_N, y_pred_N, labels=[1], average="macro"))
        for name, seeds in values.items():
            slow[name].append(np.mean(seeds))
    fast = mean_over_seeds(by_seed, weights_RN)
    intervals = bootstrap_intervals(by_seed, weights_RN)
    for name, expected_R in slow.items():
        np.testing.assert_allclose(fast[name], expected_R, rtol=0, atol=1e-12, err_msg=name)
        low, high = np.percentile(expected_R, [2.5, 97.5])
        assert intervals[name].low == pytest.approx(low, abs=1e-12)
        assert intervals[name].high == pytest.approx(high, abs=1e-12)
        assert intervals[name].num_undefined == 0
    point = np.mean([sk.balanced_accuracy_score(one.y_true_N, one.y_pred_N) for one in by_seed])
    assert intervals["balanced_accuracy"].value == pytest.approx(point, abs=1e-12)


def test_rows_of_one_patient_widen_the_interval():
    """Ten copies of each patient carry no more than one: a row-wise bootstrap would be √10 too narrow."""
    once = made_predictions(60, 4)
    tenfold = Predictions(
        *(
            np.repeat(getattr(once, name), 10, axis=0)
            for name in ("sample_id_N", "patient_id_N", "y_true_N", "scores_NC")
        ),
        once.classes,
    )

    def width(one: Predictions, groups_N: np.ndarray) -> float:
        weights_RN = resample_weights(groups_N, num_resamples=2000, rng=np.random.default_rng(2))
        found = bootstrap_intervals([one], weights_RN, names=["accuracy"])["accuracy"]
        return found.high - found.low

    by_patient = width(tenfold, tenfold.patient_id_N)
    assert by_patient == width(once, once.patient_id_N)
    by_row = width(tenfold, np.arange(600).astype(str))
    assert by_row < 0.4 * by_patient


def test_an_interval_with_many_undefined_resamples_is_undefined():
    few = made_predictions(40, 0)
    y_N = np.where(np.arange(40) < 2, 2, np.arange(40) % 2)  # two patients of class c: absent from about e^-2
    few = replace(few, y_true_N=y_N)
    weights_RN = resample_weights(few.patient_id_N, rng=np.random.default_rng(0))
    found = bootstrap_intervals([few], weights_RN)
    share = found["balanced_accuracy"].num_undefined / 2000
    assert share == pytest.approx((1 - 2 / 40) ** 40, abs=0.03)
    assert isinstance(found["balanced_accuracy"].value, float)
    assert found["balanced_accuracy"].low == found["balanced_accuracy"].high
    assert found["balanced_accuracy"].low.reason.startswith("undefined in ")
    assert isinstance(found["accuracy"].low, float)


def test_a_few_undefined_resamples_are_counted_and_left_out():
    values_R = np.r_[np.full(4, np.nan), np.linspace(0, 1, 96)]
    found = percentile_interval(0.5, values_R, 0.9, num_patients=40)
    assert found.num_undefined == 4
    assert (found.low, found.high) == (pytest.approx(0.05), pytest.approx(0.95))


def test_nine_patients_have_no_interval_and_an_undefined_seed_no_value():
    tiny = made_predictions(9, 0)
    weights_RN = resample_weights(tiny.patient_id_N, num_resamples=100, rng=np.random.default_rng(0))
    assert bootstrap_intervals([tiny], weights_RN)["accuracy"].low == Undefined(
        "9 patients; an interval needs at least 10"
    )
    good = made_predictions(40, 0, skill=3)
    collapsed = replace(good, scores_NC=np.tile([1.0, 0.0, 0.0], (40, 1)))
    weights_RN = resample_weights(good.patient_id_N, num_resamples=100, rng=np.random.default_rng(0))
    found = bootstrap_intervals([good, collapsed], weights_RN)["precision_b"]
    assert found.value == found.low == Undefined("the class 'b' is never predicted")


def test_seeds_must_be_about_the_same_rows():
    one, weights_RN = made_predictions(40, 0), np.ones((5, 40))
    assert mean_over_seeds([one, one], weights_RN)["accuracy"].shape == (5,)
    renamed = replace(one, patient_id_N=one.patient_id_N[::-1])
    with pytest.raises(ValueError, match="seed 1 and seed 0 are not about the same rows: patient_id_N differs"):
        mean_over_seeds([one, renamed], weights_RN)
    with pytest.raises(ValueError, match="differ in their classes"):
        mean_over_seeds([one, replace(one, classes=("a", "b", "x"))], weights_RN)
    with pytest.raises(ValueError, match="no predictions to score"):
        mean_over_seeds([], weights_RN)
    with pytest.raises(ValueError, match=r"level must lie between 0 and 1; got 95"):
        bootstrap_intervals([one], weights_RN, level=95)


def test_small_cohorts_are_called_small():
    assert find_few_patients(made_predictions(200, 0)) == []
    (finding,) = find_few_patients(made_predictions(40, 0, rows_each=3))
    assert finding.title == "The test split has 40 patients: below 50, intervals come out too narrow."
    assert "40 patients: a " in finding.evidence
    (finding,) = find_few_patients(made_predictions(8, 0))
    assert finding.title == "The test split has 8 patients: too few for any interval (at least 10)."
    large = made_predictions(200, 0)
    rare = replace(large, y_true_N=np.where(np.arange(200) < 4, 2, np.arange(200) % 2))
    (finding,) = find_few_patients(rare)
    assert "fewer than 10 test patients (c 4)" in finding.title


def simulated_coverage(patients: int, studies: int, num_resamples: int) -> float:
    """Share of simulated studies whose 95 % interval holds the true balanced accuracy.

    The truth is known: a class is recognised with its own fixed chance, labels are drawn afresh in each study.
    """
    hit_C = np.array([0.8, 0.55, 0.4])
    covered = 0
    for study in range(studies):
        rng = numpy_stream(0, "coverage", patients, study)
        y_N = rng.choice(3, size=patients, p=[0.4, 0.35, 0.25])
        is_hit_N = rng.random(patients) < hit_C[y_N]
        predicted_N = np.where(is_hit_N, y_N, (y_N + rng.integers(1, 3, patients)) % 3)
        ids_N = np.arange(patients).astype(str)
        one = Predictions(ids_N, ids_N, y_N, np.eye(3)[predicted_N], CLASSES, is_per_patient=True)
        weights_RN = resample_weights(ids_N, num_resamples=num_resamples, rng=rng)
        found = bootstrap_intervals([one], weights_RN, names=["balanced_accuracy"])["balanced_accuracy"]
        covered += found.low <= hit_C.mean() <= found.high
    return covered / studies


def test_coverage_on_200_patients_is_near_95_percent():
    """300 studies: three standard errors are 3.8 points."""
    assert simulated_coverage(200, 300, 500) == pytest.approx(0.95, abs=0.038)


@pytest.mark.slow
@pytest.mark.parametrize(("patients", "tolerance"), [(50, 0.035), (100, 0.02), (400, 0.015)])
def test_coverage_in_3000_studies(patients, tolerance):
    assert simulated_coverage(patients, 3000, 1000) == pytest.approx(0.95, abs=tolerance)


@pytest.mark.slow
def test_2000_resamples_of_2000_patients_take_about_a_second():
    import time

    one = made_predictions(2000, 0)
    start = time.perf_counter()
    weights_RN = resample_weights(one.patient_id_N, rng=np.random.default_rng(0))
    found = bootstrap_intervals([one], weights_RN)
    assert len(found) == 18
    assert time.perf_counter() - start < 2.0
