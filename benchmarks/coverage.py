"""Whether intervals and comparisons keep their promises: coverage, a leaderboard of equals, and power.

Command:   python benchmarks/coverage.py all --json build/coverage.json
Hardware:  any; one process, NumPy only
Minutes:   about 10 for each of the three on a busy core; --studies sets how many are drawn, --quick a handful
Measures:  coverage  share of studies whose 95 % interval holds the truth: 100 patients of 4 images each, intraclass
                     correlation 0.9; percentile and BCa over patients, and the percentile bootstrap over images
           null      share of leaderboards of 10 encoders of the same true quality on which any two are told apart, and
                     on which a single best row is (a letter of its own)
           power     how often a true difference of 0.05 in AUROC is found with 300 patients: by the paired bootstrap of
                     the leaderboard, by DeLong, and as theory says
Data:      drawn here; truths in closed form; in `power` the variance is DeLong's on two million patients.

Every share stands with its 95 % Wilson interval, since a simulation is a sample too. Study k draws from a stream named
by k alone, so that more studies extend fewer ones.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.stats import norm
from statsmodels.stats.proportion import proportion_confint

from vitreous.core.predictions import Predictions
from vitreous.core.streams import numpy_stream
from vitreous.core.undefined import Undefined
from vitreous.evidence.bca import bootstrap_intervals_with_bca
from vitreous.evidence.comparison import compare_with_best, resamples_needed
from vitreous.evidence.delong import delong_covariance, delong_test
from vitreous.evidence.intervals import Interval, bootstrap_intervals, resample_weights
from vitreous.evidence.power import power_of

INTRACLASS = 0.9
IMAGES = 4
ACCURACY = 0.8
AUROC = 0.8
GAIN = 0.05
NOISE_SHARE = 0.4  # of the variance of a score, not shared by the encoders: their scores correlate by 0.6


def binary_predictions(
    y_N: npt.NDArray[np.int64], score_N: npt.NDArray[np.float64], patient_N: npt.NDArray[np.int64]
) -> Predictions:
    """Rows of two classes whose second logit is the score."""
    names_N = np.char.add("s", np.arange(len(y_N)).astype(str))
    ids_N = np.char.add("P", np.char.zfill(patient_N.astype(str), 6))
    return Predictions(names_N, ids_N, y_N, np.stack([np.zeros_like(score_N), score_N], axis=1), ("no", "yes"))


def answers_of_known_accuracy(rng: np.random.Generator, patients: int) -> tuple[Predictions, float]:
    """Each patient's images are right with a chance of its own, from a Beta: intraclass correlation exactly 0.9."""
    total = 1 / INTRACLASS - 1
    chance_P = rng.beta(ACCURACY * total, (1 - ACCURACY) * total, patients)
    patient_N = np.repeat(np.arange(patients), IMAGES)
    y_N = rng.integers(0, 2, patients)[patient_N]
    right_N = rng.random(len(patient_N)) < chance_P[patient_N]
    return binary_predictions(y_N, np.where(right_N == (y_N == 1), 1.0, -1.0), patient_N), ACCURACY


def scores_of_known_auroc(rng: np.random.Generator, patients: int) -> tuple[Predictions, float]:
    """Normal scores of unit variance, 0.9 of it the patient's own."""
    patient_N = np.repeat(np.arange(patients), IMAGES)
    y_N = rng.integers(0, 2, patients)[patient_N]
    own_N = rng.normal(size=patients)[patient_N] * np.sqrt(INTRACLASS)
    score_N = y_N * separation(AUROC) + own_N + rng.normal(size=len(y_N)) * np.sqrt(1 - INTRACLASS)
    return binary_predictions(y_N, score_N, patient_N), AUROC


def separation(auroc: float) -> float:
    """The distance of two unit normal distributions with this AUROC."""
    return float(np.sqrt(2) * norm.ppf(auroc))


def equal_encoders(rng: np.random.Generator, patients: int, count: int) -> dict[str, list[Predictions]]:
    """Encoders of one true quality: a shared score and noise of their own; three classes, one row per patient."""
    y_N = rng.integers(0, 3, patients)
    y_N[:3] = np.arange(3)
    shared_NC = rng.normal(size=(patients, 3)) * np.sqrt(1 - NOISE_SHARE) + 1.2 * np.eye(3)[y_N]
    ids_N = np.char.add("P", np.char.zfill(np.arange(patients).astype(str), 6))
    return {
        f"encoder {k}": [
            Predictions(
                ids_N, ids_N, y_N, shared_NC + rng.normal(size=(patients, 3)) * np.sqrt(NOISE_SHARE), ("a", "b", "c")
            )
        ]
        for k in range(count)
    }


def correlated_scores(rng: np.random.Generator, patients: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Labels, and two scores (2, N) of AUROC 0.8 and 0.85 on the same patients."""
    y_N = rng.integers(0, 2, patients)
    distance_2 = np.array([separation(AUROC), separation(AUROC + GAIN)])
    shared_N = rng.normal(size=patients) * np.sqrt(1 - NOISE_SHARE)
    noise_2N = rng.normal(size=(2, patients)) * np.sqrt(NOISE_SHARE)
    return y_N, distance_2[:, None] * y_N + shared_N + noise_2N


def true_standard_error(patients: int) -> float:
    """Of the difference of the two AUROCs, by DeLong on 100 draws of 20,000 patients; one draw is off by 2 %."""
    variances = []
    for k in range(100):
        y_N, scores_2N = correlated_scores(numpy_stream(0, "theory", k), 20_000)
        _, covariance = delong_covariance(y_N == 1, scores_2N)
        variances.append(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    return float(np.sqrt(np.mean(variances) * 20_000 / patients))


def share(hits: int, studies: int) -> dict[str, float | int]:
    low, high = proportion_confint(hits, studies, method="wilson")
    return {"share": round(hits / studies, 4), "low": round(low, 4), "high": round(high, 4), "of": studies}


def studies_within(most: int, seconds: float, name: str) -> Iterator[tuple[int, np.random.Generator]]:
    """Studies until there are `most` of them, or the time is up."""
    start = time.perf_counter()
    for study in range(most):
        if time.perf_counter() - start > seconds:
            return
        yield study, numpy_stream(0, name, study)


def simulate_coverage(most: int, seconds: float) -> dict[str, object]:
    """100 patients of 4 images each."""
    made = {"accuracy": answers_of_known_accuracy, "auroc_yes": scores_of_known_auroc}
    hits = {(name, how): 0 for name in made for how in ("patients", "patients_bca", "images")}
    undefined = dict.fromkeys(hits, 0)
    count = 0
    for _, rng in studies_within(most, seconds, "coverage"):
        count += 1
        for name, make in made.items():
            one, truth = make(rng, 100)
            weights_RN = resample_weights(one.patient_id_N, num_resamples=1000, rng=rng)
            both = bootstrap_intervals_with_bca([one], weights_RN, names=[name])[name]
            by_image_RN = resample_weights(one.sample_id_N, num_resamples=1000, rng=rng)
            by_image = bootstrap_intervals([one], by_image_RN, names=[name])[name]
            for how, found in (("patients", both.percentile), ("patients_bca", both.bca), ("images", by_image)):
                covered = covers(found, truth)
                undefined[name, how] += covered is None
                hits[name, how] += bool(covered)
    return {
        f"{name}, {how}": share(hit, count) | {"undefined": undefined[name, how]} for (name, how), hit in hits.items()
    }


def covers(found: Interval, truth: float) -> bool | None:
    if isinstance(found.low, Undefined) or isinstance(found.high, Undefined):
        return None
    return found.low <= truth <= found.high


def simulate_null(most: int, seconds: float) -> dict[str, object]:
    """10 encoders of one true quality on 200 patients."""
    told_apart = alone = count = 0
    for _, rng in studies_within(most, seconds, "null leaderboard"):
        count += 1
        rows = equal_encoders(rng, 200, 10)
        ids_N = next(iter(rows.values()))[0].patient_id_N
        weights_RN = resample_weights(ids_N, num_resamples=resamples_needed(10), rng=rng)
        found = compare_with_best(rows, "balanced_accuracy", weights_RN)
        assert found.best is not None
        told_apart += any(letters != "a" for letters in found.letters.values())
        alone += sum("a" in letters for letters in found.letters.values()) == 1
    return {"any two told apart": share(told_apart, count), "one best row alone": share(alone, count)}


def simulate_power(most: int, seconds: float) -> dict[str, object]:
    """AUROC 0.85 against 0.80 on 300 patients."""
    error = true_standard_error(300)
    bootstrap = delong = count = 0
    for _, rng in studies_within(most, seconds, "power"):
        count += 1
        y_N, scores_2N = correlated_scores(rng, 300)
        worse, better = (binary_predictions(y_N, score_N, np.arange(300)) for score_N in scores_2N)
        weights_RN = resample_weights(worse.patient_id_N, num_resamples=1000, rng=rng)
        found = compare_with_best({"worse": [worse], "better": [better]}, "auroc_yes", weights_RN)
        bootstrap += found.is_better("better", "worse")
        tested = delong_test([better], [worse], "yes")
        assert not isinstance(tested.p, Undefined)
        assert not isinstance(tested.z, Undefined)
        delong += tested.p < 0.05 and tested.z > 0
    return {
        "theory": round(power_of(GAIN, error), 4),
        "paired bootstrap": share(bootstrap, count),
        "DeLong": share(delong, count),
    }


SIMULATIONS: dict[str, tuple[Callable[[int, float], dict[str, object]], int]] = {
    "coverage": (simulate_coverage, 2000),
    "null": (simulate_null, 1000),
    "power": (simulate_power, 2000),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*SIMULATIONS, "all"])
    parser.add_argument("--studies", type=int, help="most studies to draw, in place of each simulation's own number")
    parser.add_argument("--minutes", type=float, default=10, help="most minutes of each simulation")
    parser.add_argument("--quick", action="store_true", help="20 studies each")
    parser.add_argument("--json", type=Path, help="write the shares here")
    given = parser.parse_args()
    results: dict[str, object] = {}
    for name, (simulate, usual) in SIMULATIONS.items():
        if given.what not in (name, "all"):
            continue
        start = time.perf_counter()
        results[name] = simulate(20 if given.quick else given.studies or usual, 60 * given.minutes)
        print(f"{name}, {time.perf_counter() - start:.0f} s", json.dumps(results[name], indent=2), flush=True)
        if given.json is not None:
            given.json.parent.mkdir(parents=True, exist_ok=True)
            given.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
