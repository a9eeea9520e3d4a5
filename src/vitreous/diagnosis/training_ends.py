"""Heads that were still getting better when training ended."""

from collections.abc import Mapping, Sequence

from vitreous.core.finding import Finding
from vitreous.evidence.overfitting import TrainingFacts

AT_THE_END = 0.95  # of the epochs that ran


def find_under_trained(trainings: Mapping[str, Sequence[TrainingFacts]], allowed: Mapping[str, int]) -> list[Finding]:
    """Rows of which most trainings kept one of their last epochs, ran all they were allowed, and whose val loss was at
    its lowest there.

    Args:
        trainings: name of the row → facts of each seed and fold.
        allowed: name → epochs that its recipe allows; rows without it are not judged.
    """
    findings = []
    for name, facts in trainings.items():
        late = [
            one
            for one in facts
            if one.num_epochs >= allowed.get(name, one.num_epochs + 1)
            and min(one.kept_epoch, one.lowest_loss_epoch) >= AT_THE_END * one.num_epochs
        ]
        if facts and 2 * len(late) > len(facts):
            findings.append(
                Finding(
                    "under_trained",
                    "warning",
                    f"{name} was still getting better when training ended.",
                    f"{len(late)} of {len(facts)} trainings kept one of their last epochs (of {late[0].num_epochs}), "
                    "with the lowest val loss there",
                    f"More epochs, or a higher learning rate: recipes.{name.split(' / ')[-1]}.epochs="
                    f"{2 * allowed[name]}.",
                )
            )
    return findings
