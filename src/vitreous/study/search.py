"""`vitreous search STUDY`: values of one recipe's keys, chosen on val. The test split is not read.

The same command continues an interrupted search; a larger number of trials prolongs it.
"""

import shutil
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from vitreous.config.compose import load_study
from vitreous.config.search import SearchConfig
from vitreous.config.study import PLACES, StudyConfig
from vitreous.core.errors import ConfigError, StudyMismatchError
from vitreous.core.files import remove_partial_files, write_text
from vitreous.core.progress import progress_bar
from vitreous.storage.locks import exclusive
from vitreous.study.encode import describe_encoding
from vitreous.study.provenance import cohort_fingerprint
from vitreous.study.run_directory import differing_keys, flatten_keys
from vitreous.study.search_outputs import SearchResult, render_search, write_search
from vitreous.study.search_storage import TrialStore
from vitreous.study.search_trials import SearchProblem, open_problem
from vitreous.study.search_workers import work, work_together


def run_search(config: StudyConfig, *, workers: int = 1, console: Console | None = None) -> SearchResult:
    """Search until the study's number of trials have come to an end, and write what was found.

    Args:
        workers: processes that run trials at the same time; with one, this process runs them.
        console: where progress is told; the error stream if left out.

    Raises:
        VitreousError: the search failed; trials that ended are kept.
    """
    if workers < 1:
        raise ConfigError(f"--workers: at least 1; got {workers}.")
    console = console or Console(stderr=True, highlight=False, markup=False)
    search = config.resolved_search()
    folder = Path(config.runs).expanduser() / config.name / "search"
    problem = open_problem(config, search, folder)
    _claim_folder(problem)
    console.print(describe_encoding(problem.data, problem.features))
    store = TrialStore(folder, search)
    try:
        _run_trials(config, problem, store, workers)
        with exclusive(folder / ".write.lock"):
            remove_partial_files(folder)
            return write_search(config, search, folder, store)
    finally:
        store.close()


def _run_trials(config: StudyConfig, problem: SearchProblem, store: TrialStore, workers: int) -> None:
    search, folder = problem.search, problem.folder
    num_trials = search.settings.trials

    def count() -> int:
        return sum(trial.position < num_trials for trial in store.finished())

    if (left := num_trials - count()) <= 0:
        return
    terminal = Console(file=sys.stderr)
    with progress_bar(f"Searching {search.encoder} / {search.recipe_name}", left, terminal) as advance:
        if workers == 1:
            with (folder / "worker0.log").open("a", encoding="utf-8") as log, redirect_stderr(log):
                work(problem, store, num_trials, advance)
        else:
            work_together(
                config,
                search,
                folder,
                num_trials=num_trials,
                num_workers=min(workers, left),
                count=count,
                advance=advance,
            )
    if not any((folder / "training").glob("*")):
        shutil.rmtree(folder / "training", ignore_errors=True)


def _claim_folder(problem: SearchProblem) -> None:
    """Make the folder this search's, or check that it already is.

    Raises:
        StudyMismatchError: other settings or data made it; names the keys that differ.
    """
    path = problem.folder / "search.yaml"
    settings = _settings(problem)
    with exclusive(problem.folder / ".claim.lock"):
        if not path.exists():
            write_text(path, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
            return
        kept = flatten_keys(yaml.safe_load(path.read_text(encoding="utf-8")))
    if different := differing_keys(kept, flatten_keys(settings)):
        raise StudyMismatchError(
            f"{problem.folder}: this search was begun with other settings; different: {', '.join(different)}. "
            "Give the study another name (name=…), or remove the folder to start over."
        )


def _settings(problem: SearchProblem) -> dict[str, Any]:
    """All that decides a trial's score, as plain values; the number of trials does not."""
    search = problem.search
    study = problem.config.model_dump(mode="json", exclude=set(PLACES) | {"name", "floors", "intervals", "search"})
    study["data"].pop("refresh_listing", None)
    settings = search.settings.model_dump(mode="json", exclude={"trials", "space", "encoder", "recipe"})
    space = {key.replace(".", "/"): axis.model_dump(mode="json") for key, axis in search.space.items()}
    return {
        **study,
        "search": {**settings, "space": space},
        "content": {
            "cohort": cohort_fingerprint(problem.data.cohort),
            "weights": problem.opened.encoder.weights_hash,
            "device": problem.runtime.device,
            "precision": problem.runtime.precision,
        },
    }


def print_search(study: str, overrides: Sequence[str], *, trials: int | None, workers: int) -> None:
    """Search, and print what was found and what to run next."""
    console = Console()
    config = load_study(study, overrides)
    if trials is not None:
        settings = config.search or SearchConfig()
        config = config.model_copy(update={"search": settings.model_copy(update={"trials": trials})})
    result = run_search(config, workers=workers)
    console.print(render_search(result))
    for finding in result.findings:
        console.print(
            f"{finding.severity}: {finding.title} {finding.evidence}. {finding.remedy}", highlight=False, markup=False
        )
    console.print(f"\ntrials  {result.folder / 'trials.csv'}", highlight=False, soft_wrap=True)
    console.print(f"next    vitreous run {result.folder / 'best_study.yaml'}", highlight=False, soft_wrap=True)
