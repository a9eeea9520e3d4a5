"""What a search leaves behind: tables, the best study, figures, findings, and what the terminal shows."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from rich import box
from rich.table import Table

from vitreous.config.compose import validate_study
from vitreous.config.search import Axis, label
from vitreous.config.search_space import Search, put_values
from vitreous.config.study import StudyConfig
from vitreous.core.errors import RunError
from vitreous.core.files import replacing, write_json, write_text
from vitreous.core.finding import Finding
from vitreous.core.undefined import Undefined
from vitreous.reports.search_figures import curves_svg, history_svg, importance_svg
from vitreous.study.search_storage import FinishedTrial, TrialStore, quiet_optuna

FEWEST_TRIALS = 10
_EDGE = 0.02  # of the range, on its scale
_LONGEST_NAME = 100
_SHOWN = 5
_NOTE = "Chosen on val, so this val score is optimistic; test was not read. Run best_study.yaml for the score on test."


@dataclass(frozen=True)
class SearchResult:
    """A finished search.

    Args:
        trials: that came to an end, by position; asked for, that is, not those beyond the number of trials.
        best: the highest score, the earliest on a tie.
        importance: key → share, fANOVA over the completed trials; or why there is none.
    """

    folder: Path
    search: Search
    metric: str
    trials: tuple[FinishedTrial, ...]
    best: FinishedTrial
    importance: Mapping[str, float] | Undefined
    findings: tuple[Finding, ...]

    @property
    def completed(self) -> list[FinishedTrial]:
        """Trials with a score."""
        return [trial for trial in self.trials if trial.outcome == "complete"]


def write_search(config: StudyConfig, search: Search, folder: Path, store: TrialStore) -> SearchResult:
    """Write everything that the trials say.

    Raises:
        RunError: no trial has a score.
    """
    trials = store.finished()
    _write_trials(folder, search, config.metric, trials)
    completed = [trial for trial in trials if trial.outcome == "complete"]
    if not completed:
        reasons = pd.Series([trial.reason for trial in trials]).value_counts().head(2)
        told = "; ".join(f"{count}× {str(reason).rstrip('.')}" for reason, count in reasons.items())
        raise RunError(f"none of {len(trials)} trials has a score: {told}. Change search.space.")
    best = max(completed, key=lambda trial: (_score(trial), -trial.position))
    importance = _importance(search, store, completed)
    findings = tuple(_findings(search, trials, completed, best))
    result = SearchResult(folder, search, config.metric, tuple(trials), best, importance, findings)
    _write_best(config, result)
    _write_figures(result)
    return result


def render_search(result: SearchResult) -> Table:
    """The best trials, one a column."""
    search = result.search
    counts = _counts(result.trials)
    told = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
    table = Table(
        title=f"{search.encoder} / {search.recipe_name}: {len(result.trials)} trials ({told})",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        caption=_NOTE,
        caption_justify="left",
    )
    ranked = sorted(result.completed, key=lambda trial: (-_score(trial), trial.position))[:_SHOWN]
    table.add_column("trial", overflow="fold")
    for trial in ranked:
        table.add_column(str(trial.position), justify="right", style="bold" if trial is ranked[0] else None)
    table.add_row(f"val {result.metric}", *(f"{_score(trial):.3f}" for trial in ranked))
    for key in search.space:
        table.add_row(key, *(_shown(trial.values[key]) for trial in ranked))
    return table


def _write_trials(folder: Path, search: Search, metric: str, trials: Sequence[FinishedTrial]) -> None:
    rows = [
        {
            "trial": trial.position,
            "outcome": trial.outcome,
            f"val_{metric}": trial.score,
            "sd": float(np.std(trial.scores, ddof=1)) if len(trial.scores) > 1 else None,
            "epochs": max(trial.curve) if trial.curve else None,
            **{key: label(value) for key, value in trial.values.items()},
            "reason": trial.reason,
        }
        for trial in trials
    ]
    columns = ["trial", "outcome", f"val_{metric}", "sd", "epochs", *search.space, "reason"]
    table = pd.DataFrame(rows, columns=columns)
    table["epochs"] = table["epochs"].astype("Int64")
    with replacing(folder / "trials.csv") as aside:
        table.to_csv(aside, index=False)
    if search.is_on_pixels:
        curves = [
            {"trial": trial.position, "epoch": epoch, "val_score": score}
            for trial in trials
            for epoch, score in sorted(trial.curve.items())
        ]
        with replacing(folder / "curves.csv") as aside:
            pd.DataFrame(curves, columns=["trial", "epoch", "val_score"]).to_csv(aside, index=False)


def _write_best(config: StudyConfig, result: SearchResult) -> None:
    search, best = result.search, result.best
    settings = search.settings
    importance = result.importance
    write_json(
        result.folder / "best_params.json",
        {
            "schema_version": 1,
            "study": config.name,
            "encoder": search.encoder,
            "recipe": search.recipe_name,
            "params": {key: list(value) if isinstance(value, tuple) else value for key, value in best.values.items()},
            f"val_{result.metric}": best.score,
            "scores": list(best.scores),
            "scored_on": f"{settings.cross_validate} folds of train and val" if settings.cross_validate else "val",
            "seeds": list(config.seeds[: settings.seeds_per_trial]),
            "trial": best.position,
            "num_trials": _counts(result.trials),
            "importance": None if isinstance(importance, Undefined) else dict(importance),
            "importance_undefined": importance.reason if isinstance(importance, Undefined) else None,
            "note": _NOTE,
            "findings": [vars(finding) for finding in result.findings],
        },
    )
    values = config.model_dump(mode="json", exclude_unset=True, exclude={"search"})
    recipe = put_values(search.recipe, best.values)
    values["recipes"][search.recipe_name] = recipe.model_dump(mode="json", exclude_unset=True)
    values["name"] = f"{config.name[: _LONGEST_NAME - len('_best')]}_best"
    validate_study(values, where="best_study.yaml")
    head = (
        f"# {config.name} with the best of {len(result.trials)} trials for {search.encoder} / {search.recipe_name}.\n"
        f"# {_NOTE}\n"
    )
    text = head + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    write_text(result.folder / "best_study.yaml", text)


def _write_figures(result: SearchResult) -> None:
    points = [(trial.position, trial.outcome, trial.score) for trial in result.trials]
    write_text(result.folder / "history.svg", history_svg(points, result.metric))
    write_text(result.folder / "importance.svg", importance_svg(result.importance))
    if result.search.is_on_pixels:
        curves = [(trial.position, trial.outcome, trial.curve) for trial in result.trials if trial.curve]
        write_text(result.folder / "curves.svg", curves_svg(curves, _monitored(result)))


def _monitored(result: SearchResult) -> str:
    monitor = getattr(result.search.recipe, "monitor", None)
    return str(monitor or result.metric)


def _importance(search: Search, store: TrialStore, completed: Sequence[FinishedTrial]) -> dict[str, float] | Undefined:
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    if len(completed) < FEWEST_TRIALS:
        return Undefined(f"{len(completed)} completed trials; importance needs {FEWEST_TRIALS}")
    if len({trial.score for trial in completed}) == 1:
        return Undefined("all completed trials have the same score")
    if len(search.space) < 2:
        return Undefined("a single key was searched")
    with quiet_optuna():
        evaluator = FanovaImportanceEvaluator(seed=search.settings.seed)
        shares = get_param_importances(store.study, evaluator=evaluator)
    return {key: float(share) for key, share in shares.items()}


def _findings(
    search: Search, trials: Sequence[FinishedTrial], completed: Sequence[FinishedTrial], best: FinishedTrial
) -> list[Finding]:
    findings = [
        found for key, axis in search.space.items() if (found := _find_edge(key, axis, best.values[key])) is not None
    ]
    if len(completed) < FEWEST_TRIALS:
        findings.append(
            Finding(
                "few_trials",
                "warning",
                "Few trials: the best of them is little better than a guess.",
                f"{len(completed)} completed trials, {FEWEST_TRIALS} are drawn at random before any is suggested",
                "Raise --trials; the same command continues.",
            )
        )
    if len(completed) > 1 and len({trial.score for trial in completed}) == 1:
        findings.append(
            Finding(
                "collapsed",
                "warning",
                "All trials have the same score: nothing that was tried makes a difference.",
                f"{len(completed)} trials at {_score(best):.3f}",
                "Look whether every trial predicts one class (vitreous run), and widen search.space.",
            )
        )
    if failed := [trial for trial in trials if trial.outcome == "failed"]:
        findings.append(
            Finding(
                "failed_trials",
                "warning",
                "Some trials have no score.",
                f"{len(failed)} of {len(trials)}; the first: {failed[0].reason.rstrip('.')}",
                "Narrow search.space where they lie; trials.csv has the reasons.",
            )
        )
    return findings


def _find_edge(key: str, axis: Axis, value: Any) -> Finding | None:
    """The best value at the end of its range: a better one may lie outside."""
    if axis.choices is None:
        low, high = (math.log(end) if axis.log else float(end) for end in axis.ends)
        place = ((math.log(value) if axis.log else float(value)) - low) / (high - low)
        shown = f"{key}={value:g} of {axis.low:g} to {axis.high:g}"
    else:
        is_number = [isinstance(choice, int | float) and not isinstance(choice, bool) for choice in axis.choices]
        if not all(is_number) or len(axis.choices) < 3:
            return None
        ordered = sorted(axis.choices)
        place = ordered.index(value) / (len(ordered) - 1)
        shown = f"{key}={value:g} of {', '.join(f'{choice:g}' for choice in ordered)}"
    if _EDGE < place < 1 - _EDGE:
        return None
    edge, direction = ("lower", "smaller") if place < 0.5 else ("upper", "larger")
    if axis.choices is None and axis.low == 0 and edge == "lower":
        return None  # nothing lies beyond 0: it is off
    return Finding(
        "edge_of_range",
        "warning",
        f"The best {key} lies at the {edge} edge of its range; a better one may lie outside.",
        shown,
        f"Try {direction} values of {key}, under another study name.",
    )


def _counts(trials: Sequence[FinishedTrial]) -> dict[str, int]:
    return {outcome: sum(t.outcome == outcome for t in trials) for outcome in ("complete", "pruned", "failed")}


def _score(trial: FinishedTrial) -> float:
    if trial.score is None:
        raise RunError(f"trial {trial.position} has no score; please report this.")
    return trial.score


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(label(value))
