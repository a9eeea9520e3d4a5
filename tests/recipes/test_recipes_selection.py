"""The choice on val. Oracle: grids small enough to choose by hand."""

import itertools
from dataclasses import dataclass, field
from typing import Any

import pytest

from vitreous.core.errors import UserError
from vitreous.core.undefined import Undefined
from vitreous.recipes.probe_grid import ProbeMember, ProbeSettings, fit_probe_grid
from vitreous.recipes.references import fit_logistic_sweep
from vitreous.recipes.selection import select_member


@dataclass
class Candidate:
    settings: dict[str, Any]
    seed: int = 0
    diverged_epoch: int | None = field(default=None)


def candidates(rates, decays=(0.0,), seeds=(0,)) -> list[Candidate]:
    return [
        Candidate({"learning_rate": rate, "weight_decay": decay}, seed)
        for rate, decay, seed in itertools.product(rates, decays, seeds)
    ]


def test_the_mean_over_seeds_decides_and_the_best_seed_is_exported():
    fitted = candidates([1e-3, 1e-2, 1e-1], seeds=(1, 0))
    chosen = select_member(fitted, [0.5, 0.5, 0.6, 0.7, 0.9, 0.2])  # one lucky seed does not win
    assert chosen.settings == {"learning_rate": 1e-2, "weight_decay": 0.0}
    assert chosen.seeds == (0, 1)
    assert chosen.member_idx == (3, 2)
    assert chosen.best_member_idx == 3
    assert chosen.mean_score == pytest.approx(0.65)
    assert chosen.runner_up == {"learning_rate": 1e-1, "weight_decay": 0.0}
    assert chosen.margin == pytest.approx(0.1)
    assert [setting.settings["learning_rate"] for setting in chosen.ranking] == [1e-2, 1e-1, 1e-3]
    assert chosen.findings == ()


def test_ties_go_to_the_setting_that_fits_less_whatever_the_order():
    fitted = candidates([1e-3, 1e-2], decays=[0.0, 0.1])
    for order in itertools.permutations(range(4)):
        chosen = select_member([fitted[position] for position in order], [0.7, 0.7, 0.7, 0.7 + 1e-15])
        assert chosen.settings == {"learning_rate": 1e-3, "weight_decay": 0.1}
        assert chosen.margin == pytest.approx(0.0, abs=1e-12)
    tied = [Candidate({"C": C}) for C in (1.0, 0.1)] + []
    assert select_member(tied, [0.5, 0.5]).settings == {"C": 0.1}
    assert select_member([Candidate({"k": k}) for k in (3, 9)], [0.5, 0.5]).settings == {"k": 9}
    two_seeds = select_member(candidates([1e-3], seeds=(4, 2)), [0.5, 0.5])
    assert two_seeds.best_member_idx == 1
    assert isinstance(two_seeds.margin, Undefined)


@pytest.mark.parametrize(
    ("scores", "direction"),
    [([0.9, 0.5, 0.4], "smaller"), ([0.4, 0.5, 0.9], "larger"), ([0.4, 0.9, 0.5], None)],
)
def test_a_choice_at_the_edge_of_the_grid_is_named(scores, direction):
    findings = select_member(candidates([1e-3, 1e-2, 1e-1]), scores).findings
    if direction is None:
        assert findings == ()
        return
    assert [finding.code for finding in findings] == ["edge_of_grid"]
    assert findings[0].remedy == f"Add {direction} values of learning_rate to the grid."
    assert "of 0.001, 0.01, 0.1" in findings[0].evidence


def test_settings_with_a_diverged_member_are_never_chosen():
    fitted = candidates([1e-3, 1e-2], seeds=(0, 1))
    fitted[3].diverged_epoch = 7
    chosen = select_member(fitted, [0.4, 0.4, 0.9, Undefined("training diverged in epoch 7")])
    assert chosen.settings["learning_rate"] == 1e-3
    assert chosen.num_diverged == 1
    assert chosen.ranking[-1].mean_score == Undefined("training diverged with the seeds [1]")
    assert chosen.findings[-1].code == "diverged"
    assert chosen.findings[-1].evidence == "1 of 4 members"
    fitted[0].diverged_epoch = 1
    with pytest.raises(
        UserError,
        match=r"none of 2 settings can be chosen \(2 of 4 members diverged\).*Lower the learning rate",
    ):
        select_member(fitted, [0.4, 0.4, 0.9, 0.9])


def test_wrong_calls_are_refused():
    with pytest.raises(ValueError, match="one score per member, at least one; got 1 and 2"):
        select_member(candidates([1e-3]), [0.5, 0.5])
    with pytest.raises(ValueError, match="at least one; got 0 and 0"):
        select_member([], [])
    with pytest.raises(ValueError, match=r"every setting must have the seeds \[0, 1\]"):
        select_member(candidates([1e-3, 1e-2], seeds=(0, 1))[:3], [0.1, 0.2, 0.3])
    with pytest.raises(UserError, match="AUROC needs both classes"):
        select_member(candidates([1e-3]), [Undefined("AUROC needs both classes")])


def test_real_probes_and_references_can_be_chosen_from(make_rows):
    train, val = make_rows("train", 60), make_rows("val", 30)
    members = [ProbeMember(rate, decay, seed=seed) for rate in (1e-4, 1e-2) for decay in (0.0, 0.1) for seed in (0, 1)]
    settings = ProbeSettings(epochs=6, batch_size=16, warmup_epochs=1)
    fitted = fit_probe_grid(train, val, members, settings, num_classes=3)
    chosen = select_member(fitted, [probe.val_score for probe in fitted])
    assert {members[position].seed for position in chosen.member_idx} == {0, 1}
    assert chosen.mean_score == max(setting.mean_score for setting in chosen.ranking)
    assert "seed" not in chosen.settings
    sweep = fit_logistic_sweep(train, val, [1e-4, 1e-1], num_classes=3)
    assert select_member(sweep, [reference.val_score for reference in sweep]).seeds == (0,)
