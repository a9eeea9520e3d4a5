"""Predicted prevalence: does the mean probability of a class match how often it occurs?

Class weights and balanced samplers move probabilities on purpose; whoever reads them as risks should know.

Axes: N row, C class or label, R resample.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from vitreous.core.finding import Finding
from vitreous.core.predictions import Predictions
from vitreous.core.streams import numpy_stream
from vitreous.evidence.intervals import resample_weights

LARGE = 0.1  # of the mean probability less the share of rows
NUM_RESAMPLES = 1000
FEWEST_ROWS = 5  # of a class that is never predicted


def find_prevalence_shifts(rows: Mapping[str, Sequence[Predictions]], causes: Mapping[str, str]) -> list[Finding]:
    """Rows whose mean probability of a class is off by more than 0.1, with an interval that leaves 0 out.

    Args:
        rows: name → scored predictions by seed, of the same rows.
        causes: name → what of its recipe moves probabilities (``class_weights: balanced``), if anything does.
    """
    findings = []
    for name, by_seed in rows.items():
        first = by_seed[0]
        if len(first.y_true_N) == 0:
            continue
        off_NC = np.mean([one.probs_NC for one in by_seed], axis=0) - first.targets_NC
        weights_RN = resample_weights(
            first.patient_id_N, num_resamples=NUM_RESAMPLES, rng=numpy_stream(0, "prevalence")
        ).astype(np.float64)
        shift_C = off_NC.mean(axis=0)
        low_C, high_C = np.percentile(weights_RN @ off_NC / weights_RN.sum(axis=1, keepdims=True), [2.5, 97.5], axis=0)
        shifted = [c for c in np.argsort(-np.abs(shift_C)) if abs(shift_C[c]) > LARGE and low_C[c] * high_C[c] > 0]
        if not shifted:
            continue
        share_C = first.targets_NC.mean(axis=0)
        said = ", ".join(
            f"{first.classes[c]} {share_C[c] + shift_C[c]:.0%} for {share_C[c]:.0%} "
            f"({shift_C[c]:+.2f} [{low_C[c]:+.2f}, {high_C[c]:+.2f}])"
            for c in shifted
        )
        cause = causes.get(name, "")
        findings.append(
            Finding(
                "prevalence_shift",
                "warning",
                f"{name} predicts another prevalence than there is{f', as {cause} does' if cause else ''}.",
                f"mean probability for share on test: {said}",
                "Do not read its probabilities as risks; recalibrate on val, or set class_weights: none and compare.",
            )
        )
    return findings


def find_never_predicted(rows: Mapping[str, Sequence[Predictions]]) -> list[Finding]:
    """Classes or labels that occur in five rows or more and that a row of the leaderboard never gives, in any seed."""
    findings = []
    for name, by_seed in rows.items():
        first = by_seed[0]
        given_C = np.any([one.decisions_NC.any(axis=0) for one in by_seed], axis=0)
        if given_C.sum() <= 1 and first.task == "multi_class":
            continue  # one class for everybody is collapse, and said as such
        counts_C = first.targets_NC.sum(axis=0)
        never = [c for c in range(len(first.classes)) if not given_C[c] and counts_C[c] >= FEWEST_ROWS]
        if never:
            said = ", ".join(f"{first.classes[c]} (0 of {int(counts_C[c])})" for c in never)
            what = "label" if first.task == "multi_label" else "class"
            findings.append(
                Finding(
                    "label_never_detected",
                    "warning",
                    f"{name} never detects {'a' if len(never) == 1 else str(len(never))} {what}"
                    f"{'' if len(never) == 1 else 's'} of the test split.",
                    said,
                    "More samples of it, class_weights: balanced, or leave it out of what is claimed.",
                )
            )
    return findings
