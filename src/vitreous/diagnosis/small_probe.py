"""Can the probe learn at all? Eight samples driven to a loss near zero, with the training code of the real probe.

Axes: N sample, D feature.
"""

from dataclasses import replace

import numpy as np

from vitreous.core.errors import UserError
from vitreous.core.finding import Finding
from vitreous.recipes.feature_set import FeatureSet
from vitreous.recipes.probe_grid import ProbeMember, ProbeSettings, fit_probe_grid

NEAR_ZERO = 0.05  # nats; a guess among four classes has 1.39


def find_unlearnable(rows: FeatureSet, num_classes: int) -> Finding:
    """Fit the rows by heart and say how far the loss fell.

    Args:
        rows: a few samples of different participants, every class among them.
    """
    # the same rows under other ids stand for val, which is not looked at: only the training loss counts
    mirror = replace(rows, patient_id_N=np.char.add(rows.patient_id_N, " again"))
    settings = ProbeSettings(epochs=300, batch_size=None, warmup_epochs=5, patience=None)
    remedy = "Features that are (nearly) the same for all samples do this: look at value range and receipt."
    try:
        probe = fit_probe_grid(rows, mirror, [ProbeMember(3e-2)], settings, num_classes=num_classes)[0]
    except UserError as error:  # its only member diverged
        return Finding("probe_cannot_learn", "error", "The probe diverges on eight samples.", str(error), remedy)
    losses = [row["train_loss"] for row in probe.history]
    evidence = (
        f"{len(rows.y_N)} samples, {rows.features_ND.shape[1]} features, {num_classes} classes: "
        f"loss {losses[0]:.3f} → {losses[-1]:.4f}"
    )
    if losses[-1] <= NEAR_ZERO:
        return Finding("probe_learns", "info", "The probe learns eight samples by heart.", evidence)
    return Finding(
        "probe_cannot_learn",
        "error",
        "The probe cannot even learn eight samples by heart.",
        evidence,
        remedy,
    )
