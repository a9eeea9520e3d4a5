"""Logits from a probe's tensors alone: what `predict` needs is in the safetensors file.

Which kind of probe it is follows from the names: ``layers.0.weight`` a linear or MLP head, ``knn.features``
nearest neighbours, ``prior.logits`` the majority floor. All arithmetic is in float64.

Axes: N row, D feature, H unit, C class, M training row.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from vitreous.recipes.standardiser import Standardiser

FloatArray = npt.NDArray[np.float64]
Tensors = Mapping[str, npt.NDArray[Any]]

BATCH_NORM_EPSILON = 1e-5
NORM_PARTS = ("weight", "bias", "running_mean", "running_var")
_QUERY_ROWS = 512


def probe_logits(tensors: Tensors, features_ND: npt.NDArray[Any]) -> FloatArray:
    """Logits of shape (N, C); equal input gives equal bytes on one machine.

    Args:
        tensors: as a fitted probe holds them, or as read back from its safetensors file.
        features_ND: not standardised; the tensors hold the standardiser.
    Raises:
        ValueError: unknown tensors, a wrong number of features, or features that are not finite.
    """
    if "prior.logits" in tensors:
        return np.tile(np.asarray(tensors["prior.logits"], dtype=np.float64), (len(features_ND), 1))
    if "standardiser.mean" not in tensors or not {"layers.0.weight", "knn.features"} & set(tensors):
        raise ValueError(f"these tensors are no probe: {sorted(tensors)}.")
    if not np.isfinite(features_ND).all():
        raise ValueError("features have NaN or infinite values; a probe cannot judge them.")
    x_ND = Standardiser(tensors["standardiser.mean"], tensors["standardiser.std"], 0).apply(features_ND)
    return _knn_logits(tensors, x_ND) if "knn.features" in tensors else head_logits(tensors, x_ND)


def head_logits(tensors: Tensors, x_NH: FloatArray) -> FloatArray:
    """Logits of a linear or MLP head for features that are standardised already, shape (N, C)."""
    num_layers = sum(name.startswith("layers.") and name.endswith(".weight") for name in tensors)
    for layer in range(num_layers):
        weight_OH = np.asarray(tensors[f"layers.{layer}.weight"], dtype=np.float64)
        x_NH = x_NH @ weight_OH.T + np.asarray(tensors[f"layers.{layer}.bias"], dtype=np.float64)
        if f"norms.{layer}.weight" in tensors:
            x_NH = _batch_norm({part: tensors[f"norms.{layer}.{part}"] for part in NORM_PARTS}, x_NH)
        if layer < num_layers - 1:
            x_NH = np.maximum(x_NH, 0.0)
    return x_NH


def _batch_norm(parts: Tensors, x_NH: FloatArray) -> FloatArray:
    weight_H, bias_H, mean_H, var_H = (np.asarray(parts[name], dtype=np.float64) for name in NORM_PARTS)
    return (x_NH - mean_H) / np.sqrt(var_H + BATCH_NORM_EPSILON) * weight_H + bias_H


def _knn_logits(tensors: Tensors, x_ND: FloatArray) -> FloatArray:
    k, is_cosine = int(tensors["knn.k"][0]), bool(tensors["knn.is_cosine"][0])
    train_MD = np.asarray(tensors["knn.features"], dtype=np.float64)
    vote_MC = np.asarray(tensors["knn.votes"], dtype=np.float64)
    near_Nk = nearest_rows(x_ND, train_MD, k, is_cosine=is_cosine)
    if "knn.votes_without" in tensors:
        return vote_logits(vote_MC[near_Nk], np.asarray(tensors["knn.votes_without"], dtype=np.float64)[near_Nk])
    return vote_logits(vote_MC[near_Nk])


def vote_logits(votes_NkC: FloatArray, without_NkC: FloatArray | None = None) -> FloatArray:
    """log((k·share + 1/C) / (k + 1)), shape (N, C): one neighbour more, split evenly between the classes.

    Args:
        votes_NkC: of each neighbour; `share` is the weighted share of a class among them.
        without_NkC: of labels, the votes against each; the result is then log((k·share + ½) / (k·(1 - share) + ½)).
    """
    _, k, num_classes = votes_NkC.shape
    votes_NC = votes_NkC.sum(axis=1)
    if without_NkC is not None:
        share_NC = votes_NC / (votes_NC + without_NkC.sum(axis=1))
        label_logits_NC: FloatArray = np.log((k * share_NC + 0.5) / (k * (1.0 - share_NC) + 0.5))
        return label_logits_NC
    share_NC = votes_NC / votes_NC.sum(axis=1, keepdims=True)
    logits_NC: FloatArray = np.log((k * share_NC + 1.0 / num_classes) / (k + 1.0))
    return logits_NC


def nearest_rows(x_ND: FloatArray, train_MD: FloatArray, k: int, *, is_cosine: bool) -> npt.NDArray[np.int64]:
    """Indices of the k nearest training rows, nearest first, shape (N, k); on a tie the earlier row.

    Cosine distance is one minus the cosine; a row of zeros is at distance 1 from all.
    """
    near_Nk = np.empty((len(x_ND), k), dtype=np.int64)
    if is_cosine:
        x_ND, train_MD = _unit_rows(x_ND), _unit_rows(train_MD)
    length_M = (train_MD**2).sum(axis=1)
    for start in range(0, len(x_ND), _QUERY_ROWS):
        # squared distance less |x|², which is the same for all of a row; for unit rows it orders as the
        # cosine does
        distance_NM = length_M - 2.0 * (x_ND[start : start + _QUERY_ROWS] @ train_MD.T)
        near_Nk[start : start + _QUERY_ROWS] = np.argsort(distance_NM, axis=1, kind="stable")[:, :k]
    return near_Nk


def _unit_rows(x_ND: FloatArray) -> FloatArray:
    length_N1 = np.linalg.norm(x_ND, axis=1, keepdims=True)
    result: FloatArray = x_ND / np.where(length_N1 == 0.0, 1.0, length_N1)
    return result
