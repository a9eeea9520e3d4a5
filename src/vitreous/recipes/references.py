"""Plain references on kept features: logistic regression and nearest neighbours, with the face of a fitted
probe.

Axes: N row (volume), M training row, D feature, C class.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from vitreous.core.label_sets import memberships
from vitreous.recipes.class_weights import ClassWeights
from vitreous.recipes.feature_set import FeatureSet, check_feature_sets, class_weights_of
from vitreous.recipes.patient_scores import PatientScorer
from vitreous.recipes.probe_logits import nearest_rows, probe_logits, vote_logits
from vitreous.recipes.standardiser import fit_standardiser

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class FittedReference:
    """One fitted reference; nothing about it is random.

    Args:
        member: its settings by name.
        val_score: balanced accuracy (of labels, mAP) per patient on val, in [0, 1].
        tensors: ready for safetensors. Those of nearest neighbours hold the training features: patient data.
        num_constant_features: features without spread in training.
        converged: False if the solver stopped at its last iteration.
        history: empty; it has no epochs.
    """

    member: dict[str, Any]
    val_score: float
    tensors: dict[str, npt.NDArray[Any]] = field(repr=False)
    num_constant_features: int = 0
    converged: bool = True
    history: list[dict[str, float]] = field(default_factory=list, repr=False)
    best_epoch: int = 0
    diverged_epoch: int | None = None
    seed: int = 0

    @property
    def settings(self) -> dict[str, Any]:
        """What is chosen between."""
        return self.member

    def predict_logits(self, features_ND: npt.NDArray[Any]) -> FloatArray:
        """Logits of shape (N, C) for features that are not standardised."""
        return probe_logits(self.tensors, features_ND)


def fit_logistic_sweep(
    train: FeatureSet,
    val: FeatureSet,
    Cs: Sequence[float],
    *,
    num_classes: int,
    class_weights: ClassWeights = "none",
    max_iterations: int = 1000,
    tolerance: float = 1e-4,
) -> list[FittedReference]:
    """Multinomial logistic regression with an L2 penalty, one per C, on standardised features.

    Minimises C · Σ weight · cross-entropy + ½ ‖w‖² by L-BFGS, with the weights class weight × 1 / (volumes
    of the patient) and no penalty on the intercept, so that C means the same however many volumes a patient
    has. With several labels a row, one such regression with two classes for each label.

    Args:
        Cs: inverse penalties, > 0.
    Raises:
        SampleError, ValueError: as :func:`vitreous.recipes.feature_set.check_feature_sets`, or a wrong C.
    """
    check_feature_sets(train, val, num_classes)
    if not Cs or any(not (np.isfinite(C) and C > 0) for C in Cs):
        raise ValueError(f"Cs must be positive and finite, at least one; got {list(Cs)}.")
    class_weight_C = class_weights_of(train, class_weights, num_classes)
    standardiser = fit_standardiser(train.features_ND, train.weight_N)
    x_ND = standardiser.apply(train.features_ND)
    scorer = PatientScorer(val, num_classes)
    fitted = []
    for C in Cs:
        settings = {"C": C, "solver": "lbfgs", "max_iter": max_iterations, "tol": tolerance}
        if train.task == "multi_class":
            weight_CD, bias_C, converged = _fit_classes(train, x_ND, class_weight_C, settings)
        else:
            weight_CD, bias_C, converged = _fit_labels(train, x_ND, class_weight_C, settings)
        # scikit-learn's coefficients lie column by column, which safetensors would write as they lie
        tensors = standardiser.tensors() | {
            "layers.0.weight": np.ascontiguousarray(weight_CD),
            "layers.0.bias": np.ascontiguousarray(bias_C),
        }
        fitted.append(FittedReference(
            {"C": float(C), "class_weights": class_weights},
            scorer.score_logits(probe_logits(tensors, val.features_ND)), tensors, standardiser.num_constant,
            converged=converged,
        ))  # fmt: skip
    return fitted


def _fit_classes(
    train: FeatureSet, x_ND: FloatArray, class_weight_C: FloatArray, settings: dict[str, Any]
) -> tuple[FloatArray, FloatArray, bool]:
    """Weights (C, D), biases (C,), and whether the solver converged."""
    weight_CD, bias_C, converged = _solve(x_ND, train.y_N, train.weight_N * class_weight_C[train.y_N], settings)
    if len(class_weight_C) == 2:  # one row, for class 1 against class 0
        weight_CD = np.concatenate([np.zeros_like(weight_CD), weight_CD])
        bias_C = np.concatenate([np.zeros_like(bias_C), bias_C])
    return weight_CD, bias_C, converged


def _fit_labels(
    train: FeatureSet, x_ND: FloatArray, positive_C: FloatArray, settings: dict[str, Any]
) -> tuple[FloatArray, FloatArray, bool]:
    has_NC = memberships(train.y_N, len(positive_C), train.task)
    parts = [
        _solve(x_ND, has_N.astype(np.int64), train.weight_N * np.where(has_N, positive, 1.0), settings)
        for has_N, positive in zip(has_NC.T, positive_C, strict=True)
    ]
    weights, biases, converged = zip(*parts, strict=True)
    return np.concatenate(weights), np.concatenate(biases), all(converged)


def _solve(
    x_ND: FloatArray, y_N: npt.NDArray[np.int64], weight_N: FloatArray, settings: dict[str, Any]
) -> tuple[FloatArray, FloatArray, bool]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(**settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # told by the last value returned
        model.fit(x_ND, y_N, sample_weight=weight_N)
    return model.coef_, model.intercept_, bool((model.n_iter_ < settings["max_iter"]).all())


def fit_knn_sweep(
    train: FeatureSet,
    val: FeatureSet,
    ks: Sequence[int],
    *,
    num_classes: int,
    metric: Literal["cosine", "euclidean"] = "cosine",
    class_weights: ClassWeights = "none",
) -> list[FittedReference]:
    """Vote of the k nearest training volumes on standardised features, one per k.

    A vote weighs class weight × 1 / (volumes of the patient). The logits are the logarithm of the shares of
    the vote after one neighbour more, split evenly between the classes, has voted, so that no class has
    probability zero. The tensors hold the training features in float32. With several labels a row, each label is
    voted on by itself: the vote of a row with it weighs the label's weight, and that of a row without it 1.

    Args:
        ks: neighbours, from 1 to the number of training rows.
    Raises:
        SampleError, ValueError: as :func:`vitreous.recipes.feature_set.check_feature_sets`, or a wrong k or
        metric.
    """
    check_feature_sets(train, val, num_classes)
    if not ks or any(not 1 <= k <= len(train.y_N) for k in ks):
        raise ValueError(f"ks must lie in 1…{len(train.y_N)} (training rows), at least one; got {list(ks)}.")
    if metric not in ("cosine", "euclidean"):
        raise ValueError(f"metric must be 'cosine' or 'euclidean'; got {metric!r}.")
    class_weight_C = class_weights_of(train, class_weights, num_classes)
    standardiser = fit_standardiser(train.features_ND, train.weight_N)
    train_MD = standardiser.apply(train.features_ND).astype(np.float32, order="C")
    has_MC = memberships(train.y_N, num_classes, train.task)
    vote_MC = has_MC * (train.weight_N[:, None] * class_weight_C)
    without_MC = ~has_MC * train.weight_N[:, None] if train.task == "multi_label" else None
    scorer = PatientScorer(val, num_classes)
    near_Nk = nearest_rows(
        standardiser.apply(val.features_ND),
        train_MD.astype(np.float64),
        max(ks),
        is_cosine=metric == "cosine",
    )
    return [
        FittedReference(
            {"k": int(k), "metric": metric, "class_weights": class_weights},
            scorer.score_logits(
                vote_logits(vote_MC[near_Nk[:, :k]], None if without_MC is None else without_MC[near_Nk[:, :k]])
            ),
            standardiser.tensors() | {
                "knn.features": train_MD,
                "knn.votes": vote_MC,
                **({} if without_MC is None else {"knn.votes_without": without_MC}),
                "knn.k": np.array([k], dtype=np.int64),
                "knn.is_cosine": np.array([metric == "cosine"], dtype=np.uint8),
            },
            standardiser.num_constant,
        )
        for k in ks
    ]  # fmt: skip
