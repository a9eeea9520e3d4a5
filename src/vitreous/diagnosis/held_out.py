"""What features say of samples whose patients were not trained on: out-of-fold probabilities of a plain probe.

Axes: N sample, D feature, C class, R resample.
"""

import warnings

import numpy as np
import numpy.typing as npt
import pandas as pd

from vitreous.core.streams import numpy_stream
from vitreous.evidence.intervals import resample_weights

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
StrArray = npt.NDArray[np.str_]
NUM_FOLDS = 5
FEWEST_PATIENTS = 10  # of a class; with fewer there is no probe worth the name
MOST_SAMPLES = 2000  # more add cost, and little to a probe of this kind
NUM_RESAMPLES = 1000
_C = 0.05  # strong penalty: features are many, patients few
_MAX_ITERATIONS = 300


def patient_folds(y_N: IntArray, patient_id_N: StrArray, num_folds: int = NUM_FOLDS) -> IntArray:
    """Fold of each sample; whole patients, and the classes (of a patient the highest) spread evenly.

    >>> patient_folds(np.array([0, 0, 1, 1]), np.array(["a", "b", "c", "c"]), 2).tolist()
    [0, 1, 0, 0]
    """
    of_patient = pd.Series(y_N).groupby(patient_id_N).max()
    ordered = of_patient.rename_axis("patient").reset_index(name="y").sort_values(["y", "patient"], ignore_index=True)
    fold_of = dict(zip(ordered["patient"], ordered.groupby("y").cumcount() % num_folds, strict=True))
    return np.array([fold_of[patient] for patient in patient_id_N], dtype=np.int64)


def can_be_probed(y_N: IntArray, patient_id_N: StrArray, num_classes: int) -> bool:
    """Whether every class has ten patients or more."""
    patients = pd.Series(patient_id_N).groupby(y_N).nunique().reindex(range(num_classes), fill_value=0)
    return num_classes > 1 and bool(patients.min() >= FEWEST_PATIENTS)


def some_samples(patient_id_N: StrArray, most: int = MOST_SAMPLES) -> IntArray:
    """Positions of at most `most` samples, evenly spaced in the order of patients."""
    order_N = np.argsort(patient_id_N, kind="stable")
    return np.sort(order_N[np.unique(np.linspace(0, len(order_N) - 1, most).astype(int))])


def out_of_fold_probs(
    features_ND: npt.NDArray[np.floating], y_N: IntArray, patient_id_N: StrArray, num_classes: int, *, balanced: bool
) -> FloatArray:
    """Probabilities (N, C) of logistic regression on standardised features, each patient predicted by a probe that
    never saw him.

    Args:
        balanced: weigh the classes alike, for balanced accuracy; otherwise they weigh as they occur.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    fold_N = patient_folds(y_N, patient_id_N)
    weight_N = 1 / pd.Series(patient_id_N).groupby(patient_id_N).transform("size").to_numpy()
    probs_NC = np.zeros((len(y_N), num_classes))
    for fold in range(NUM_FOLDS):
        train_N = fold_N != fold
        mean_D, std_D = features_ND[train_N].mean(axis=0), features_ND[train_N].std(axis=0)
        scaled_ND = (features_ND - mean_D) / np.where(std_D > 0, std_D, 1)
        probe = LogisticRegression(
            C=_C, class_weight="balanced" if balanced else None, max_iter=_MAX_ITERATIONS, random_state=0
        )
        with warnings.catch_warnings():
            # a probe that stops early is still one that never saw the patients it is asked about
            warnings.simplefilter("ignore", ConvergenceWarning)
            probe.fit(scaled_ND[train_N], y_N[train_N], sample_weight=weight_N[train_N])
        probs_NC[np.ix_(~train_N, probe.classes_)] = probe.predict_proba(scaled_ND[~train_N])
    return probs_NC


def balanced_accuracy_interval(
    y_N: IntArray, predicted_N: IntArray, patient_id_N: StrArray, num_classes: int
) -> tuple[float, float, float]:
    """Balanced accuracy with its 95 % interval over resampled patients."""
    weights_RN = resample_weights(patient_id_N, num_resamples=NUM_RESAMPLES, rng=numpy_stream(0, "held-out probe"))
    right_N = predicted_N == y_N

    def score(weights: npt.NDArray[np.generic]) -> FloatArray:
        recalls = []
        for c in range(num_classes):
            is_c = (y_N == c).astype(np.float64)
            total = weights.astype(np.float64) @ is_c
            recalls.append(
                np.divide(weights @ (is_c * right_N), total, out=np.full(len(weights), np.nan), where=total > 0)
            )
        result: FloatArray = np.nanmean(np.stack(recalls), axis=0)
        return result

    low, high = np.nanpercentile(score(weights_RN), [2.5, 97.5])
    return float(score(np.ones((1, len(y_N))))[0]), float(low), float(high)
