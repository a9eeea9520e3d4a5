"""Overfitting at a glance: what the training curves of one model say, as numbers.

A run keeps the epoch that was best on val, so that training on beyond it does no harm to what is kept; a gap between
train and val at the kept epoch does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vitreous.core.finding import Finding

LARGE_GAP = 0.2  # of the metric, train over val, at the kept epoch; our own rule
LARGE_RISE = 0.1  # of val loss after its lowest, as a share of it, while train loss falls; our own rule


@dataclass(frozen=True)
class TrainingFacts:
    """Curves of one training; epochs are counted from 1 over all stages.

    Args:
        metric: that was chosen by.
        num_epochs: that ran.
        kept_epoch: whose weights were kept.
        peak_epoch: the first with the highest metric on val; before the kept one only where stages differ in choice.
        val_at_peak, val_at_kept, val_at_end: the metric on val.
        train_at_kept: the metric on train at the kept epoch; None where it is not measured.
        gap: train_at_kept − metric on val at the kept epoch; None likewise.
        train_loss_at_kept, val_loss_at_kept: losses there.
        lowest_loss_epoch: the first with the lowest loss on val.
        loss_rise: (last val loss − lowest) / lowest; 0 where it ends at its lowest.
        is_train_falling: whether train loss at the end is below that of `lowest_loss_epoch`.
    """

    metric: str
    num_epochs: int
    kept_epoch: int
    peak_epoch: int
    val_at_peak: float
    val_at_kept: float
    val_at_end: float
    train_at_kept: float | None
    gap: float | None
    train_loss_at_kept: float
    val_loss_at_kept: float
    lowest_loss_epoch: int
    loss_rise: float
    is_train_falling: bool

    @property
    def has_gap(self) -> bool:
        """Whether the kept weights fit train better than val by more than `LARGE_GAP`."""
        return self.gap is not None and self.gap > LARGE_GAP

    @property
    def is_trained_past_its_best(self) -> bool:
        """Whether val loss rose by more than `LARGE_RISE` while train loss went on falling."""
        return self.loss_rise > LARGE_RISE and self.is_train_falling


def describe_training(
    history: Sequence[Mapping[str, float]], best_epoch: int, stage: int | None = None
) -> TrainingFacts | None:
    """Facts of one ``history.csv``; None where there are no epochs.

    Args:
        history: rows with train_loss, val_loss, val_<metric> and, if known, train_<metric>; of stages also `stage` and
            `epoch`, both from 1.
        best_epoch: the epoch that was kept, of its stage where there are stages.
        stage: of the kept epoch, where there are stages.

    Raises:
        ValueError: no such epoch, or no metric on val.
    """
    if not history:
        return None
    metric = next(
        (key.removeprefix("val_") for key in history[0] if key.startswith("val_") and key != "val_loss"), None
    )
    if metric is None:
        raise ValueError(f"a history has val_<metric>; got {list(history[0])}")
    kept = next(
        (
            index
            for index, row in enumerate(history)
            if int(row.get("epoch", index + 1)) == best_epoch and (stage is None or int(row.get("stage", 1)) == stage)
        ),
        None,
    )
    if kept is None:
        raise ValueError(f"the history has {len(history)} epochs, none of which is epoch {best_epoch} of stage {stage}")
    on_val = [float(row[f"val_{metric}"]) for row in history]
    val_loss = [float(row["val_loss"]) for row in history]
    train_loss = [float(row["train_loss"]) for row in history]
    # the loss of another stage may be another loss: the rise is that of the kept stage
    same_stage = [index for index, row in enumerate(history) if row.get("stage", 1) == history[kept].get("stage", 1)]
    lowest = min(same_stage, key=lambda index: (val_loss[index], index))
    last = same_stage[-1]
    on_train = history[kept].get(f"train_{metric}")
    return TrainingFacts(
        metric=metric,
        num_epochs=len(history),
        kept_epoch=kept + 1,
        peak_epoch=max(range(len(on_val)), key=lambda index: (on_val[index], -index)) + 1,
        val_at_peak=max(on_val),
        val_at_kept=on_val[kept],
        val_at_end=on_val[-1],
        train_at_kept=None if on_train is None else float(on_train),
        gap=None if on_train is None else float(on_train) - on_val[kept],
        train_loss_at_kept=train_loss[kept],
        val_loss_at_kept=val_loss[kept],
        lowest_loss_epoch=lowest + 1,
        loss_rise=(val_loss[last] - val_loss[lowest]) / val_loss[lowest] if val_loss[lowest] > 0 else 0.0,
        is_train_falling=train_loss[last] < train_loss[lowest],
    )


def find_overfitting(trainings: Mapping[str, Sequence[TrainingFacts]]) -> list[Finding]:
    """One finding for each row whose curves show it.

    Args:
        trainings: name of the row → facts of each seed (and fold).
    """
    findings = []
    for name, facts in trainings.items():
        gaps = [one for one in facts if one.has_gap]
        past = [one for one in facts if one.is_trained_past_its_best]
        if gaps:
            worst = max(gaps, key=lambda one: one.gap or 0.0)
            findings.append(
                Finding(
                    "overfitting",
                    "warning",
                    f"{name} fits train far better than val at the epoch that was kept.",
                    f"{worst.metric} {worst.train_at_kept:.3f} on train, {worst.val_at_kept:.3f} on val at epoch "
                    f"{worst.kept_epoch} of {worst.num_epochs}; a gap over {LARGE_GAP:g} in "
                    f"{len(gaps)} of {len(facts)} trainings",
                    "More weight decay, dropout or augmentation, fewer trained weights, or more participants.",
                )
            )
        elif past:
            worst = max(past, key=lambda one: one.loss_rise)
            findings.append(
                Finding(
                    "overfitting",
                    "info",
                    f"{name} trained past its best; the best epoch is the one that was kept.",
                    f"val loss rose {worst.loss_rise:.0%} from epoch {worst.lowest_loss_epoch} to {worst.num_epochs}, "
                    f"train loss fell on; {worst.metric} on val {worst.val_at_peak:.3f} at epoch {worst.peak_epoch}, "
                    f"{worst.val_at_end:.3f} at the end; in {len(past)} of {len(facts)} trainings",
                    "Fewer epochs, or patience, save time.",
                )
            )
    return findings
