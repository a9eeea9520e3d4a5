"""Facts of training curves, on curves whose facts are known."""

import pytest

from vitreous.evidence.overfitting import describe_training, find_overfitting


def history(val: list[float], val_loss: list[float], train_loss: list[float], train: list[float] | None = None):
    rows = []
    for index, (score, loss, on_train) in enumerate(zip(val, val_loss, train_loss, strict=True)):
        row = {"epoch": index + 1, "train_loss": on_train, "val_loss": loss, "val_balanced_accuracy": score}
        rows.append(row if train is None else {**row, "train_balanced_accuracy": train[index]})
    return rows


def test_a_gap_at_the_kept_epoch_is_a_warning() -> None:
    rows = history([0.5, 0.7, 0.6], [1.0, 0.8, 1.0], [0.9, 0.5, 0.1], [0.6, 0.95, 1.0])
    facts = describe_training(rows, 2)
    assert facts is not None
    assert (facts.num_epochs, facts.kept_epoch, facts.peak_epoch, facts.lowest_loss_epoch) == (3, 2, 2, 2)
    assert facts.gap == pytest.approx(0.25)
    assert facts.loss_rise == pytest.approx(0.25)
    assert facts.is_trained_past_its_best
    (finding,) = find_overfitting({"vit / linear": [facts]})
    assert (finding.code, finding.severity) == ("overfitting", "warning")
    assert "0.950 on train, 0.700 on val at epoch 2 of 3" in finding.evidence


def test_training_past_the_best_without_a_gap_is_told_only() -> None:
    rows = history([0.6, 0.7, 0.65], [0.8, 0.7, 0.9], [0.8, 0.6, 0.3], [0.7, 0.75, 0.9])
    facts = describe_training(rows, 2)
    assert facts is not None
    (finding,) = find_overfitting({"row": [facts]})
    assert finding.severity == "info"
    assert "rose 29% from epoch 2 to 3" in finding.evidence


def test_healthy_curves_have_no_finding_and_ties_take_the_first() -> None:
    facts = describe_training(history([0.6, 0.7, 0.7], [0.8, 0.7, 0.7], [0.8, 0.7, 0.65]), 2)
    assert facts is not None
    assert (facts.peak_epoch, facts.lowest_loss_epoch, facts.gap, facts.loss_rise) == (2, 2, None, 0.0)
    assert find_overfitting({"row": [facts]}) == []


def test_stages_are_counted_through_and_losses_compared_within_one() -> None:
    rows = [
        {"stage": 1, "epoch": 1, "train_loss": 0.1, "val_loss": 0.1, "val_auroc": 0.9},
        {"stage": 2, "epoch": 1, "train_loss": 1.0, "val_loss": 1.0, "val_auroc": 0.91},
        {"stage": 2, "epoch": 2, "train_loss": 0.9, "val_loss": 1.5, "val_auroc": 0.8},
    ]
    facts = describe_training(rows, 1, stage=2)
    assert facts is not None
    assert (facts.metric, facts.kept_epoch, facts.lowest_loss_epoch) == ("auroc", 2, 2)
    assert facts.loss_rise == pytest.approx(0.5)


def test_no_epochs_no_facts_and_a_wrong_epoch_is_refused() -> None:
    assert describe_training([], 0) is None
    with pytest.raises(ValueError, match="none of which is epoch 9"):
        describe_training(history([0.5], [1.0], [1.0]), 9)
    with pytest.raises(ValueError, match="val_<metric>"):
        describe_training([{"epoch": 1, "train_loss": 1.0, "val_loss": 1.0}], 1)
