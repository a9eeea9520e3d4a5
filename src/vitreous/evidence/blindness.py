"""Single-label blindness: is a label seen where it stands alone?

With several labels a sample, a label that mostly comes with others can look well detected while the model never sees
it: it follows the others. Samples that carry only this label tell.

Axes: N row, L label, G group (none, only each label, several), R resample.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vitreous.core.finding import Finding
from vitreous.core.undefined import Undefined
from vitreous.evidence.intervals import MIN_PATIENTS, Interval, resample_weights

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

NONE, SEVERAL = "none", "several"
FEWEST_ALONE = 5  # samples with only the label; fewer say nothing
_CHANCE = 0.5


@dataclass(frozen=True)
class LabelAlone:
    """How one label is told where it stands alone.

    Args:
        label: its name.
        num_alone: samples with only this label.
        num_patients_alone: whose they are.
        detected: of them, those whose score reaches the label's threshold.
        ranked: AUROC of the label's score, samples with only it against ``none`` and against ``only <other>``, with
            patient-clustered intervals.
        taken_for: the label that most often alone reaches its threshold on samples with only this one, and how often.
    """

    label: str
    num_alone: int
    num_patients_alone: int
    detected: int
    ranked: Mapping[str, Interval]
    taken_for: tuple[str, int] | None

    @property
    def is_never_detected(self) -> bool:
        """Whether no sample with only this label was detected."""
        return self.num_alone >= FEWEST_ALONE and self.detected == 0

    @property
    def confused_with(self) -> tuple[str, ...]:
        """Groups from which samples with only this label cannot be told: the interval of the AUROC reaches one half."""
        if self.num_alone < FEWEST_ALONE:
            return ()
        return tuple(
            group
            for group, interval in self.ranked.items()
            if not isinstance(interval.low, Undefined) and interval.low <= _CHANCE
        )

    @property
    def is_blind(self) -> bool:
        """Whether the label is never detected alone, or cannot be told from no label."""
        return self.is_never_detected or NONE in self.confused_with


def label_groups(y_true_NL: BoolArray) -> IntArray:
    """Group of each row: 0 none, l + 1 only label l, L + 1 several.

    >>> label_groups(np.array([[False, False], [False, True], [True, True]])).tolist()
    [0, 2, 3]
    """
    counts_N = y_true_NL.sum(axis=1)
    num_labels = y_true_NL.shape[1]
    group_N = np.where(counts_N == 1, y_true_NL.argmax(axis=1) + 1, np.where(counts_N == 0, 0, num_labels + 1))
    return group_N.astype(np.int64)


def alone_confusion(y_true_NL: BoolArray, y_pred_NL: BoolArray) -> IntArray:
    """Counts (G, G): rows the true group, columns the predicted one, in the order of :func:`label_groups`."""
    num_groups = y_true_NL.shape[1] + 2
    counts_GG = np.zeros((num_groups, num_groups), np.int64)
    np.add.at(counts_GG, (label_groups(y_true_NL), label_groups(y_pred_NL)), 1)
    return counts_GG


def group_names(labels: Sequence[str]) -> tuple[str, ...]:
    """Names of the groups in their order.

    >>> group_names(["C1", "C2"])
    ('none', 'only C1', 'only C2', 'several')
    """
    return (NONE, *(f"only {label}" for label in labels), SEVERAL)


def examine_alone(
    y_true_NL: BoolArray,
    scores_NL: FloatArray,
    patient_id_N: npt.NDArray[np.str_],
    labels: Sequence[str],
    *,
    thresholds_NL: FloatArray | None = None,
    num_resamples: int = 2000,
    rng: np.random.Generator,
) -> list[LabelAlone]:
    """Each label where it stands alone.

    Args:
        scores_NL: probabilities; a higher score speaks for the label.
        thresholds_NL: from which a label counts as detected, chosen on val, for each row (or one row for all); one half
            if left out.
        num_resamples: of patients, for the intervals.

    Raises:
        ValueError: shapes do not fit each other, or scores are not finite.
    """
    shape = (len(patient_id_N), len(labels))
    if y_true_NL.shape != shape or scores_NL.shape != shape:
        raise ValueError(f"labels and scores must be {shape}; got {y_true_NL.shape} and {scores_NL.shape}")
    if not np.isfinite(scores_NL).all():
        raise ValueError("scores have NaN or infinite values")
    y_pred_NL = scores_NL >= (0.5 if thresholds_NL is None else thresholds_NL)
    group_N = label_groups(y_true_NL)
    weights_RN = resample_weights(patient_id_N, num_resamples=num_resamples, rng=rng)
    confusion_GG = alone_confusion(y_true_NL, y_pred_NL)
    names = group_names(labels)
    found = []
    for index, label in enumerate(labels):
        is_alone_N = group_N == index + 1
        others = [0, *(other + 1 for other in range(len(labels)) if other != index)]
        ranked = {
            names[other]: _auroc_interval(
                scores_NL[:, index], is_alone_N, group_N == other, patient_id_N, weights_RN, names[other], label
            )
            for other in others
        }
        found.append(
            LabelAlone(
                label,
                int(is_alone_N.sum()),
                len(np.unique(patient_id_N[is_alone_N])),
                int(y_pred_NL[is_alone_N, index].sum()),
                ranked,
                _taken_for(confusion_GG[index + 1], index, labels),
            )
        )
    return found


def _taken_for(counts_G: IntArray, index: int, labels: Sequence[str]) -> tuple[str, int] | None:
    others = [(int(counts_G[other + 1]), -other) for other in range(len(labels)) if other != index]
    count, place = max(others, default=(0, 0))
    return (labels[-place], count) if count else None


def _auroc_interval(
    scores_N: FloatArray,
    is_positive_N: BoolArray,
    is_negative_N: BoolArray,
    patient_id_N: npt.NDArray[np.str_],
    weights_RN: npt.NDArray[np.generic],
    group: str,
    label: str,
) -> Interval:
    num_resamples = len(weights_RN)
    if not is_positive_N.any() or not is_negative_N.any():
        empty = f"only {label}" if not is_positive_N.any() else group
        reason = Undefined(f"no sample of the group {empty!r}")
        return Interval(reason, reason, reason, num_resamples, num_resamples)
    values_R = _weighted_auroc(
        scores_N[is_positive_N],
        scores_N[is_negative_N],
        weights_RN[:, is_positive_N].astype(np.float64),
        weights_RN[:, is_negative_N].astype(np.float64),
    )
    one = np.ones((1, len(scores_N)))
    value = float(
        _weighted_auroc(scores_N[is_positive_N], scores_N[is_negative_N], one[:, is_positive_N], one[:, is_negative_N])[
            0
        ]
    )
    num_undefined = int(np.isnan(values_R).sum())
    if (
        min(len(np.unique(patient_id_N[is_positive_N])), len(np.unique(patient_id_N[is_negative_N])))
        < MIN_PATIENTS // 2
    ):
        few = Undefined(f"fewer than {MIN_PATIENTS // 2} participants on one side")
        return Interval(value, few, few, num_resamples, num_undefined)
    low, high = np.nanpercentile(values_R, [2.5, 97.5])
    return Interval(value, float(low), float(high), num_resamples, num_undefined)


def _weighted_auroc(
    positive_P: FloatArray, negative_Q: FloatArray, weight_RP: FloatArray, weight_RQ: FloatArray
) -> FloatArray:
    """Share of (positive, negative) pairs in the right order, ties one half, in each resample (R)."""
    won_PQ = (positive_P[:, None] > negative_Q) + 0.5 * (positive_P[:, None] == negative_Q)
    pairs_R = weight_RP.sum(1) * weight_RQ.sum(1)
    won_R = ((weight_RP @ won_PQ) * weight_RQ).sum(1)
    area_R: FloatArray = np.divide(won_R, pairs_R, out=np.full(len(pairs_R), np.nan), where=pairs_R > 0)
    return area_R


def find_blindness(alone: Sequence[LabelAlone], name: str) -> list[Finding]:
    """A warning for each label that the model `name` does not see where it stands alone."""
    findings = []
    for one in alone:
        confused = [group for group in one.confused_with if group != NONE]
        if not one.is_blind and not confused:
            continue
        said = [f"{one.detected} of {one.num_alone} samples with only {one.label} are detected"]
        said += [
            f"AUROC against {group} {_shown(one.ranked[group])}" for group in (NONE, *confused) if group in one.ranked
        ]
        if one.taken_for is not None:
            said.append(f"taken for only {one.taken_for[0]} {one.taken_for[1]} times")
        title = (
            f"{name} does not see {one.label} where it stands alone."
            if one.is_blind
            else f"{name} cannot tell {one.label} alone from {', '.join(confused)}."
        )
        findings.append(
            Finding(
                "label_blindness",
                "warning",
                title,
                "; ".join(said),
                f"Look at {one.label} by itself: more samples with only it, a pos_weight, a query of its own.",
            )
        )
    return findings


def _shown(interval: Interval) -> str:
    if isinstance(interval.value, Undefined):
        return f"undefined ({interval.value.reason})"
    if isinstance(interval.low, Undefined) or isinstance(interval.high, Undefined):
        return f"{interval.value:.2f}"
    return f"{interval.value:.2f} [{interval.low:.2f}, {interval.high:.2f}]"
