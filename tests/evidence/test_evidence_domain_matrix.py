"""The train × test matrix against a loop over cells and resamples."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score

from vitreous.core.predictions import Predictions
from vitreous.core.streams import numpy_stream
from vitreous.core.undefined import Undefined
from vitreous.evidence.domain_matrix import measure_domains
from vitreous.evidence.intervals import resample_weights

DOMAINS = ("A", "B")


def made(train: str, seed: int, tested: tuple[str, ...] = DOMAINS, patients: int = 60) -> Predictions:
    """Better on the domain it was trained on."""
    ids_N = np.array([f"{domain}{n:03d}" for domain in tested for n in range(patients)])
    y_N = np.array([n % 2 for _ in tested for n in range(patients)])
    skill_N = np.array([2.0 if domain == train else 0.5 for domain in tested for _ in range(patients)])
    noise_NC = np.random.default_rng([seed, ord(train[-1])]).normal(size=(len(ids_N), 2))
    made = Predictions(ids_N, ids_N, y_N, noise_NC + skill_N[:, None] * np.eye(2)[y_N], ("a", "b"))
    return made.per_patient()


DOMAIN_OF = {f"{domain}{n:03d}": domain for domain in DOMAINS for n in range(60)}


def stream_of(domain: str) -> np.random.Generator:
    return numpy_stream(0, "domain", domain)


def test_cells_and_losses_equal_a_loop():
    by_train = {train: [made(train, seed) for seed in (0, 1)] for train in DOMAINS}
    found = measure_domains(by_train, DOMAIN_OF, "accuracy", stream_of=stream_of, num_resamples=300)
    assert (found.train, found.test) == (DOMAINS, DOMAINS)
    for x, test in enumerate(DOMAINS):
        ids = [patient for patient, domain in DOMAIN_OF.items() if domain == test]
        weights_RN = resample_weights(np.array(ids), num_resamples=300, rng=stream_of(test))

        def accuracy(train: str, w_N: np.ndarray, test: str = test) -> float:
            scores = []
            for one in by_train[train]:
                rows = [k for k, patient in enumerate(one.patient_id_N) if DOMAIN_OF[patient] == test]
                scores.append(accuracy_score(one.y_true_N[rows], one.y_pred_N[rows], sample_weight=w_N))
            return float(np.mean(scores))

        for y, train in enumerate(DOMAINS):
            cell = found.cells[y][x]
            assert cell.num_patients == 60
            values_R = [accuracy(train, w_N) for w_N in weights_RN]
            assert cell.score.value == pytest.approx(accuracy(train, np.ones(60)))
            assert (cell.score.low, cell.score.high) == pytest.approx(tuple(np.percentile(values_R, [2.5, 97.5])))
            if train == test:
                assert cell.loss.value == Undefined("a model is not compared with itself")
            else:
                lost_R = [accuracy(test, w_N) - accuracy(train, w_N) for w_N in weights_RN]
                assert (cell.loss.low, cell.loss.high) == pytest.approx(tuple(np.percentile(lost_R, [2.5, 97.5])))
                assert cell.loss.low > 0


def test_a_domain_that_trained_is_undefined_not_scored():
    by_train = {f"all but {domain}": [made(domain, 0, tested=(domain,))] for domain in DOMAINS}
    found = measure_domains(by_train, DOMAIN_OF, "accuracy", stream_of=stream_of, num_resamples=200)
    assert isinstance(found.cells[0][0].score.value, float)
    assert found.cells[0][1].score.value == Undefined("no patient of B is tested by this model: they trained it")
    assert found.cells[0][0].loss.value == Undefined("no model was trained on A")
    assert found.cells[0][1].num_patients == 0


def test_models_of_a_column_must_be_about_the_same_patients():
    fewer = made("B", 0, patients=50)
    with pytest.raises(ValueError, match="not about the same rows"):
        measure_domains(
            {"A": [made("A", 0)], "B": [fewer]}, DOMAIN_OF, "accuracy", stream_of=stream_of, num_resamples=200
        )
    with pytest.raises(ValueError, match="no models"):
        measure_domains({}, DOMAIN_OF, "accuracy", stream_of=stream_of)
