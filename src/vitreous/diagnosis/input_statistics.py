"""Inputs that are not what the encoder was trained on: mean and spread of what it is given.

Axes: C channel, D slice, H row, W column.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vitreous.core.finding import Finding

FAR_MEAN = 2.5  # standard deviations of the training data; a dark photograph lies at -1.5
NARROW, WIDE = 0.1, 4.0  # of the standard deviation, which is near 1 in training


def find_off_spec(inputs: Sequence[Any], encoder: str, *, is_normalised: bool) -> list[Finding]:
    """A warning where the inputs lie far from mean 0 and standard deviation 1, to which the encoder's own mean and
    standard deviation bring what it was trained on.

    Args:
        inputs: tensors (C, D, H, W) as the encoder gets them.
        is_normalised: whether the spec has a mean and standard deviation; values of others have no such scale.
    """
    means = np.array([float(one.mean()) for one in inputs])
    stds = np.array([float(one.std()) for one in inputs])
    evidence = (
        f"{len(inputs)} inputs: mean {means.mean():.2f} ({means.min():.2f}…{means.max():.2f}), standard deviation "
        f"{stds.mean():.2f} ({stds.min():.2f}…{stds.max():.2f})"
    )
    if is_normalised and (abs(means.mean()) > FAR_MEAN or not NARROW <= stds.mean() <= WIDE):
        title = f"What {encoder} is given lies far from what it was trained on (mean 0, standard deviation 1)."
        remedy = f"Look at bits, value range and encoders.{encoder}.input; vitreous inspect shows the spec."
        return [Finding("input_off_spec", "warning", title, evidence, remedy)]
    return [Finding("input_on_spec", "info", f"What {encoder} is given has the scale of its training.", evidence)]
