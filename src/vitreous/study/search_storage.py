"""Where a search keeps its trials: one journal that several processes append to, and who works on which trial.

A trial has a position, 0 to N - 1, which decides its random stream. A trial whose process died is marked as failed and
its position is given out again, so that a search continues as if nothing had happened.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, Trial, TrialState

from vitreous.config.search import label
from vitreous.config.search_space import Search
from vitreous.core.streams import stream_seed
from vitreous.storage.locks import Note, exclusive, remove_unless_pinned

NUM_STARTUP_TRIALS = 10  # drawn at random, before the estimator has anything to go by
_STARTUP_TRIALS_OF_PRUNER = 5
_POSITION, _OWNER, _OUTCOME, _REASON, _SCORES = "position", "owner", "outcome", "reason", "scores"

Outcome = Literal["complete", "pruned", "failed"]


@dataclass(frozen=True)
class FinishedTrial:
    """A trial that came to an end.

    Args:
        values: key → what was tried.
        scores: on val, one per fold and seed; empty where it did not get that far.
        score: their mean.
        curve: epochs → val metric, of the first fold and seed; recipes on pixels alone.
        reason: why it failed.
    """

    position: int
    outcome: Outcome
    values: Mapping[str, Any]
    scores: tuple[float, ...]
    score: float | None
    curve: Mapping[int, float]
    reason: str = ""


@dataclass(frozen=True)
class ClaimedTrial:
    """A trial that this process works on."""

    trial: Trial
    position: int
    values: Mapping[str, Any]


class TrialStore:
    """The trials of one search, shared by all its processes.

    Args:
        folder: of the search.
    """

    def __init__(self, folder: Path, search: Search) -> None:
        self._folder = folder
        self._search = search
        self._lock = folder / ".claim.lock"
        self._owners = folder / ".workers"
        self._note = Note(self._owners)
        journal = folder / "trials.journal"
        folder.mkdir(parents=True, exist_ok=True)
        with quiet_optuna(), exclusive(self._lock):
            backend = JournalFileBackend(str(journal), lock_obj=_SystemLock(journal))
            self.study = optuna.create_study(
                storage=optuna.storages.JournalStorage(backend),
                study_name="search",
                direction="maximize",
                load_if_exists=True,
            )

    def close(self) -> None:
        """Give up the trial under way, if there is one."""
        self._note.close()

    def claim(self, num_trials: int) -> ClaimedTrial | Literal["wait", "done"]:
        """The next trial to work on.

        Returns:
            ``wait`` where all that are left are with other processes; ``done`` where none is left.
        """
        with quiet_optuna(), exclusive(self._lock):
            finished, busy = self._positions()
            free = [position for position in range(num_trials) if position not in finished | busy]
            if not free:
                return "wait" if any(position < num_trials for position in busy) else "done"
            self.study.sampler = _sampler(self._search.settings.seed, free[0])
            trial = self.study.ask(self._distributions())
            trial.set_user_attr(_POSITION, free[0])
            trial.set_user_attr(_OWNER, self._note.path.name)
        return ClaimedTrial(trial, free[0], self._values(trial.params))

    def complete(self, claimed: ClaimedTrial, scores: list[float]) -> None:
        """The trial has its score."""
        claimed.trial.set_user_attr(_SCORES, scores)
        self._end(claimed, "complete", sum(scores) / len(scores))

    def prune(self, claimed: ClaimedTrial) -> None:
        """The trial was ended early."""
        self._end(claimed, "pruned", None)

    def fail(self, claimed: ClaimedTrial, reason: str) -> None:
        """The trial can have no score, and would have none again. The sampler takes it for worse than any score."""
        claimed.trial.set_user_attr(_REASON, reason)
        self._end(claimed, "failed", None)

    def should_prune(self, claimed: ClaimedTrial, epoch: int, score: float, *, num_epochs: int) -> bool:
        """Note a point of the val curve; whether the trial lies below the median of those before."""
        with quiet_optuna():
            claimed.trial.report(score, epoch)
            self.study.pruner = optuna.pruners.MedianPruner(
                n_startup_trials=_STARTUP_TRIALS_OF_PRUNER, n_warmup_steps=max(1, num_epochs // 4)
            )
            return claimed.trial.should_prune()

    def finished(self) -> list[FinishedTrial]:
        """All that came to an end, by position."""
        trials = [trial for trial in self.study.get_trials(deepcopy=False) if _is_finished(trial)]
        return sorted(map(self._describe, trials), key=lambda trial: trial.position)

    def _positions(self) -> tuple[set[int], set[int]]:
        """Finished ones, and those that a living process works on; what a dead one left is marked as failed."""
        finished, busy = set(), set()
        for trial in self.study.get_trials(deepcopy=False):
            if _is_finished(trial):
                finished.add(trial.user_attrs[_POSITION])
            elif trial.state == TrialState.RUNNING:
                owner = trial.user_attrs.get(_OWNER)  # none: its process died while it claimed the trial
                if owner is None or remove_unless_pinned(self._owners / owner):
                    self.study.tell(trial.number, state=TrialState.FAIL)
                else:
                    busy.add(trial.user_attrs[_POSITION])
        return finished, busy

    def _end(self, claimed: ClaimedTrial, outcome: Outcome, score: float | None) -> None:
        with quiet_optuna():
            claimed.trial.set_user_attr(_OUTCOME, outcome)
            state = TrialState.COMPLETE if outcome == "complete" else TrialState.PRUNED
            self.study.tell(claimed.trial, score, state=state)

    def _distributions(self) -> dict[str, BaseDistribution]:
        return {key: _distribution(self._search, key) for key in self._search.space}

    def _values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Choices as the study gives them, in the order of the space."""
        values = {}
        for key, axis in self._search.space.items():
            choices = {label(choice): choice for choice in axis.choices or ()}
            values[key] = params[key] if axis.choices is None else choices[params[key]]
        return values

    def _describe(self, trial: FrozenTrial) -> FinishedTrial:
        return FinishedTrial(
            trial.user_attrs[_POSITION],
            trial.user_attrs[_OUTCOME],
            self._values(trial.params),
            tuple(trial.user_attrs.get(_SCORES, ())),
            trial.value if trial.state == TrialState.COMPLETE else None,
            dict(trial.intermediate_values),
            trial.user_attrs.get(_REASON, ""),
        )


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Without Optuna's news of each trial."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)


class _SystemLock(JournalFileSymlinkLock):
    """In place of Optuna's link, which outlives its holder: a lock that the system frees when the holder dies.

    It removes the torn last line that a dead writer left.
    """

    def __init__(self, journal: Path) -> None:
        super().__init__(str(journal))
        self._journal = journal
        self._held = ExitStack()

    def acquire(self) -> bool:
        self._held.enter_context(exclusive(self._journal.with_suffix(".lock")))
        with self._journal.open("rb+") as file:
            if file.seek(0, os.SEEK_END) and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        self._held.close()


def _is_finished(trial: FrozenTrial) -> bool:
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED)


def _sampler(seed: int, position: int) -> optuna.samplers.TPESampler:
    """One of its own for each trial: what it suggests depends on the trials before, not on who draws or how often."""
    return optuna.samplers.TPESampler(
        seed=stream_seed(seed, "search", position) % 2**32, n_startup_trials=NUM_STARTUP_TRIALS
    )


def _distribution(search: Search, key: str) -> BaseDistribution:
    axis = search.space[key]
    if axis.choices is not None:
        return CategoricalDistribution([label(choice) for choice in axis.choices])
    low, high = axis.ends
    if search.is_whole(key):
        return IntDistribution(int(low), int(high), log=axis.log)
    return FloatDistribution(float(low), float(high), log=axis.log)
