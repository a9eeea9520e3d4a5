"""The gap against loops, scikit-learn with sample weights, and cohorts whose shift is planted by construction."""

from itertools import combinations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, cohen_kappa_score, f1_score, roc_auc_score

from vitreous.core.predictions import Predictions
from vitreous.core.streams import numpy_stream
from vitreous.core.undefined import Undefined
from vitreous.evidence.calibration_shift import measure_calibration_shift
from vitreous.evidence.intervals import bootstrap_intervals, resample_weights
from vitreous.evidence.scores import quadratic_weighted_kappa, tally
from vitreous.evidence.transfer import (
    KAPPA,
    ModelPredictions,
    compare_gaps,
    find_absent_classes,
    measure_gaps,
    mix_weights,
    source_by_seed,
)

CLASSES = ("none", "mild", "severe")


def draw(
    name: str, patients: int, skill: float, mix: tuple[float, ...], seed: int = 0, sharpness: float = 1.0
) -> Predictions:
    """One sample a patient; logits around the label. The same patients and labels for every skill and seed."""
    y_N = np.random.default_rng([5, len(name)]).choice(3, patients, p=mix)
    ids_N = np.array([f"{name}{n:04d}" for n in range(patients)])
    noise_NC = np.random.default_rng([seed, len(name), int(100 * skill)]).normal(size=(patients, 3))
    return Predictions(ids_N, ids_N, y_N, sharpness * (noise_NC + skill * np.eye(3)[y_N]), CLASSES)


def patients(one: Predictions) -> list[Predictions]:
    return [one.per_patient()]


def weights(one: Predictions, stream: int, num_resamples: int = 400) -> np.ndarray:
    return resample_weights(one.patient_id_N, num_resamples=num_resamples, rng=np.random.default_rng(stream))


@pytest.fixture(scope="module")
def shifted():
    """The same skill under another mix: every gap is one of prevalence."""
    return draw("source", 240, 1.5, (0.6, 0.3, 0.1)), draw("targets", 300, 1.5, (0.2, 0.3, 0.5))


def test_gaps_and_their_intervals_equal_a_loop(shifted):
    source, target = shifted
    source_RN, target_RN = weights(source, 1, 200), weights(target, 2, 200)
    found = measure_gaps(patients(source), patients(target), source_RN, target_RN)
    scored = {
        "accuracy": lambda y_N, p_NC: accuracy_score(y_N, p_NC.argmax(1)),
        "balanced_accuracy": lambda y_N, p_NC: balanced_accuracy_score(y_N, p_NC.argmax(1)),
        "auroc": lambda y_N, p_NC: roc_auc_score(y_N, p_NC, multi_class="ovr"),
        "f1_mild": lambda y_N, p_NC: f1_score(y_N, p_NC.argmax(1), labels=[1], average=None)[0],
    }
    for name, score in scored.items():
        values = []
        for source_N, target_N in zip(source_RN, target_RN):
            rows, others = (np.repeat(np.arange(len(w)), w) for w in (source_N, target_N))
            values.append(
                score(source.y_true_N[rows], source.probs_NC[rows])
                - score(target.y_true_N[others], target.probs_NC[others])
            )
        gap = found[name].gap
        low, high = np.percentile(values, [2.5, 97.5])
        assert (gap.low, gap.high) == (pytest.approx(low), pytest.approx(high)), name
        assert gap.value == pytest.approx(
            score(source.y_true_N, source.probs_NC) - score(target.y_true_N, target.probs_NC)
        )
        alone = bootstrap_intervals(patients(target), target_RN, names=[name])[name]
        assert found[name].target == alone


def test_metrics_at_the_source_mix_equal_scikit_learn_with_sample_weights(shifted):
    source, target = shifted
    found = measure_gaps(patients(source), patients(target), weights(source, 1), weights(target, 2), ordered=True)
    shares_C, own_C = (np.bincount(one.y_true_N, minlength=3) / len(one.y_true_N) for one in shifted)
    w_N = (shares_C / own_C)[target.y_true_N]
    y_N, p_NC = target.y_true_N, target.probs_NC
    pred_N = p_NC.argmax(1)
    expected = {
        "accuracy": accuracy_score(y_N, pred_N, sample_weight=w_N),
        "macro_f1": f1_score(y_N, pred_N, average="macro", sample_weight=w_N),
        "auroc": np.mean([roc_auc_score(y_N == c, p_NC[:, c], sample_weight=w_N) for c in range(3)]),
        KAPPA: cohen_kappa_score(y_N, pred_N, weights="quadratic", sample_weight=w_N),
    }
    for name, value in expected.items():
        assert found[name].at_source_mix.value == pytest.approx(value), name
        whole = found[name].gap_at_source_mix.value + found[name].due_to_mix.value
        assert whole == pytest.approx(found[name].gap.value)
    for name in ("balanced_accuracy", "recall_mild"):  # means within classes do not depend on the mix
        assert found[name].at_source_mix.value == pytest.approx(found[name].target.value)
        assert found[name].at_source_mix.low == pytest.approx(found[name].target.low, abs=1e-9)


def test_a_shift_of_prevalence_alone_vanishes_at_the_source_mix():
    """The severe class is the one recognised worst, and the target is full of it."""
    source, target = draw("source", 1500, 2.0, (0.7, 0.2, 0.1)), draw("targets", 1500, 2.0, (0.1, 0.2, 0.7))
    biased = [
        Predictions(one.sample_id_N, one.patient_id_N, one.y_true_N, one.scores_NC - [0, 0, 1.5], CLASSES)
        for one in (source, target)
    ]
    found = measure_gaps(patients(biased[0]), patients(biased[1]), weights(source, 1), weights(target, 2))["accuracy"]
    assert found.gap.low > 0.1
    assert found.gap_at_source_mix.low < 0 < found.gap_at_source_mix.high
    assert found.due_to_mix.low > 0.1


def test_mix_weights_reach_the_wanted_shares_or_nothing():
    y_N = np.array([0, 0, 1, 2])
    made_RN = mix_weights(y_N, np.array([[1, 1, 1, 1], [2, 0, 2, 0]]), np.array([[2.0, 1.0, 1.0], [1.0, 1.0, 1.0]]))
    np.testing.assert_allclose(made_RN, [[0.25, 0.25, 0.25, 0.25], [0, 0, 0, 0]])
    unwanted_1N = mix_weights(y_N, np.ones((1, 4)), np.array([[3.0, 1.0, 0.0]]))
    np.testing.assert_allclose(unwanted_1N, [[0.375, 0.375, 0.25, 0.0]])


def test_a_class_that_only_one_cohort_has(shifted):
    source, target = shifted
    kept_N = target.y_true_N != 2
    lacking = Predictions(
        target.sample_id_N[kept_N], target.patient_id_N[kept_N], target.y_true_N[kept_N], target.scores_NC[kept_N],
        CLASSES,
    )  # fmt: skip
    found = measure_gaps(patients(source), patients(lacking), weights(source, 1), weights(lacking, 2), ordered=True)
    assert "'severe' does not occur in the target" in found["accuracy"].gap_at_source_mix.value.reason
    assert found["balanced_accuracy"].gap.value == Undefined(
        "means over different classes: 'severe' only in the source"
    )
    assert "does not occur" in found["recall_severe"].gap.value.reason
    assert isinstance(found["accuracy"].gap.value, float)
    assert isinstance(found["recall_mild"].gap.value, float)
    assert isinstance(found["balanced_accuracy"].target.value, float)
    assert [one.code for one in find_absent_classes(lacking, "B")] == ["class_absent"]
    assert find_absent_classes(target, "B") == []
    # the other way round the surplus class weighs nothing at the source's mix
    turned = measure_gaps(patients(lacking), patients(source), weights(lacking, 2), weights(source, 1))
    shared_N = source.y_true_N != 2
    shares_C = np.bincount(lacking.y_true_N, minlength=3) / len(lacking.y_true_N)
    own_C = np.bincount(source.y_true_N[shared_N], minlength=3) / shared_N.sum()
    y_N, pred_N = source.y_true_N[shared_N], source.y_pred_N[shared_N]
    expected = accuracy_score(y_N, pred_N, sample_weight=(shares_C[:2] / own_C[:2])[y_N])
    assert turned["accuracy"].at_source_mix.value == pytest.approx(expected)


def test_cohorts_and_weights_that_do_not_fit_are_refused(shifted):
    source, target = shifted
    renamed = Predictions(
        target.sample_id_N, target.patient_id_N, target.y_true_N, target.scores_NC, ("none", "mild", "grave")
    )
    with pytest.raises(ValueError, match="differ in their classes"):
        measure_gaps(patients(source), patients(renamed), weights(source, 1), weights(target, 2))
    with pytest.raises(ValueError, match="equally many resamples; got 400 and 300"):
        measure_gaps(patients(source), patients(target), weights(source, 1), weights(target, 2, 300))
    with pytest.raises(ValueError, match="no predictions"):
        measure_gaps([], patients(target), weights(source, 1), weights(target, 2))


def test_the_comparison_of_gaps_equals_a_loop():
    mix = (0.4, 0.3, 0.3)
    source = {"robust": 2.0, "brittle": 2.1, "poor": 0.7}
    target = {"robust": 1.9, "brittle": 0.6, "poor": 0.65}
    on_source = {name: patients(draw("source", 200, skill, mix)) for name, skill in source.items()}
    on_target = {name: patients(draw("targets", 220, skill, mix)) for name, skill in target.items()}
    source_RN, target_RN = (weights(one["poor"][0], k, 400) for k, one in enumerate((on_source, on_target)))
    found = compare_gaps(on_source, on_target, "accuracy", source_RN, target_RN)

    def right(one: list[Predictions]) -> np.ndarray:
        return one[0].y_pred_N == one[0].y_true_N

    change = {}
    for name in source:
        change[name] = [
            np.average(right(on_target[name]), weights=t_N) - np.average(right(on_source[name]), weights=s_N)
            for s_N, t_N in zip(source_RN, target_RN)
        ]
    for a, b in combinations(source, 2):
        low, high = np.percentile(np.subtract(change[a], change[b]), [2.5, 97.5])
        got = found.difference(a, b)
        assert (got.low, got.high) == (pytest.approx(low), pytest.approx(high))
    assert found.is_better("robust", "brittle")
    assert not set(found.letters["robust"]) & set(found.letters["brittle"])
    assert set(found.letters["robust"]) & set(found.letters["poor"]), "both keep what they have"
    with pytest.raises(ValueError, match="the source has the rows"):
        compare_gaps(on_source, {"robust": on_target["robust"]}, "accuracy", source_RN, target_RN)
    with pytest.raises(ValueError, match="100 resamples cannot tell 3 rows apart"):
        compare_gaps(on_source, on_target, "accuracy", source_RN[:100], target_RN[:100])


def test_kappa_equals_scikit_learn(shifted):
    source, _ = shifted
    weights_RN = weights(source, 3, 20)
    found_R = quadratic_weighted_kappa(tally(source.y_true_N, source.probs_NC, weights_RN).confusion_CCR)
    expected_R = [
        cohen_kappa_score(source.y_true_N, source.y_pred_N, weights="quadratic", sample_weight=w_N)
        for w_N in weights_RN
    ]
    np.testing.assert_allclose(found_R, expected_R, atol=1e-12)
    all_one = tally(np.zeros(4, dtype=np.int64), np.tile([0.8, 0.1, 0.1], (4, 1)))
    assert np.isnan(quadratic_weighted_kappa(all_one.confusion_CCR)).all()


def made_models(sharpness: float = 4.0) -> list[ModelPredictions]:
    """Two seeds, overconfident on the target by `sharpness`, honest on the source."""
    mix = (0.4, 0.3, 0.3)
    return [
        ModelPredictions(
            seed,
            draw("val", 300, 1.0, mix, seed),
            draw("source", 200, 1.0, mix, seed),
            draw("targets", 400, 1.0, mix, seed, sharpness),
        )
        for seed in (0, 1)
    ]


def shift_of(models: list[ModelPredictions], **settings: float):
    rngs = {"part_rng": numpy_stream(0, "part"), "bootstrap_rng": numpy_stream(0, "calibration")}
    return measure_calibration_shift(models, num_resamples=200, **rngs, **settings)


def test_a_shift_of_calibration_alone_is_mended_by_the_target_temperature():
    models = made_models()
    found = shift_of(models)
    half = sum(int(count) // 2 for count in np.bincount(models[0].target.y_true_N))
    assert (found.num_fit_patients, found.num_scored_patients) == (half, 400 - half)
    # draw() gives logits whose softmax is the posterior up to a factor of the signal: the same one in both cohorts
    for source, target in zip(found.source_temperatures, found.target_temperatures):
        assert target == pytest.approx(4.0 * source, rel=0.25)
    assert found.target["ece"].value > 0.15
    assert found.target_scaled["ece"].value < found.target["ece"].value / 2
    assert found.target_source_scaled["nll"].value > found.target_scaled["nll"].value
    assert found.target_scaled["brier"].value < found.target["brier"].value - 0.05
    assert 0 < found.target_by_chance < found.target["ece"].value


def test_a_temperature_that_cannot_be_fitted_leaves_its_measures_undefined():
    models = made_models()
    y_N = models[0].val.y_true_N
    flawless = Predictions(models[0].val.sample_id_N, models[0].val.patient_id_N, y_N, 5.0 * np.eye(3)[y_N], CLASSES)
    models[0] = ModelPredictions(0, flawless, models[0].source, models[0].target)
    found = shift_of(models)
    assert "is right" in found.source_temperatures[0].reason
    assert found.target_source_scaled["nll"].value == found.source_temperatures[0]
    assert found.source_scaled["ece"].value == found.source_temperatures[0]
    assert isinstance(found.target_scaled["nll"].value, float)
    with pytest.raises(ValueError, match="share to fit on"):
        shift_of(models, fit_share=0.0)


def test_folds_of_a_seed_stand_together_on_the_source():
    mix = (0.4, 0.3, 0.3)
    target, val = draw("targets", 60, 1.0, mix), draw("val", 40, 1.0, mix)
    models = [
        ModelPredictions(seed, val, draw(f"fold{'x' * fold}", 30, 1.0, mix, seed), target)
        for fold in range(3)
        for seed in (0, 1)
    ]
    joined = source_by_seed(models)
    assert [len(one.patient_id_N) for one in joined] == [90, 90]
    assert np.array_equal(joined[0].y_true_N, joined[1].y_true_N)
