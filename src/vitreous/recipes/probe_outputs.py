"""Logits of any kept head on features: of one vector a row, or of all tokens."""

import numpy as np
import numpy.typing as npt

from vitreous.core.errors import RunError
from vitreous.features.token_store import TokenRows
from vitreous.recipes.attentive_probe import token_logits
from vitreous.recipes.probe_logits import Tensors, probe_logits

Inputs = npt.NDArray[np.float32] | TokenRows


def head_reads_tokens(tensors: Tensors) -> bool:
    """Whether the head attends to tokens."""
    return "attentive.query" in tensors


def kept_logits(tensors: Tensors, inputs: Inputs) -> npt.NDArray[np.float64]:
    """Logits (N, C).

    Raises:
        RunError: a head on tokens is given vectors, or the other way round.
    """
    if isinstance(inputs, TokenRows) != head_reads_tokens(tensors):
        raise RunError("a head was given the wrong kind of features; please report this with the study file.")
    return token_logits(tensors, inputs) if isinstance(inputs, TokenRows) else probe_logits(tensors, inputs)
