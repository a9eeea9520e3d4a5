"""Who runs the trials of a search: this process, or several of their own on the one journal."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from vitreous.config.search_space import Search
from vitreous.config.study import StudyConfig
from vitreous.core.errors import RunError, UserError, VitreousError
from vitreous.study.search_storage import ClaimedTrial, TrialStore
from vitreous.study.search_trials import (
    SearchProblem,
    TrialFailedError,
    open_problem,
    remove_training_states,
    run_trial,
)

_POLL_S = 0.2
_PATIENCE_S = 60.0  # for a worker that was told to stop to write its state


class _Pruned(Exception):
    """The val curve lies below the median."""


class _Stopped(BaseException):
    """SIGTERM in a worker."""


def work(problem: SearchProblem, store: TrialStore, num_trials: int, on_trial: Callable[[], None]) -> None:
    """Take trials until `num_trials` of them have come to an end, by this or another process."""
    while (claimed := store.claim(num_trials)) != "done":
        if claimed == "wait":
            time.sleep(_POLL_S)
            continue
        _run(problem, store, claimed)
        on_trial()


def _run(problem: SearchProblem, store: TrialStore, claimed: ClaimedTrial) -> None:
    def on_epoch(epoch: int, score: float, num_epochs: int) -> None:
        below = store.should_prune(claimed, epoch, score, num_epochs=num_epochs)
        if below and problem.search.is_pruned and epoch < num_epochs:
            raise _Pruned

    try:
        scores = run_trial(problem, claimed.values, claimed.position, on_epoch)
    except _Pruned:
        store.prune(claimed)
    except TrialFailedError as error:
        store.fail(claimed, str(error))
    else:
        store.complete(claimed, scores)
    remove_training_states(problem.folder, claimed.position)


def work_together(
    config: StudyConfig,
    search: Search,
    folder: Path,
    *,
    num_trials: int,
    num_workers: int,
    count: Callable[[], int],
    advance: Callable[[int], None],
) -> None:
    """Let `num_workers` processes take the trials, the threads divided between them.

    What they write to the terminal goes to ``worker<k>.log``. Stopped by an exception, such as Ctrl-C, they write the
    state of their trainings first.

    Args:
        count: trials that have come to an end.
        advance: told how many more have.

    Raises:
        VitreousError: a worker failed; the trials that ended are kept.
    """
    import torch

    context = multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // num_workers)
    workers: list[BaseProcess] = []
    pipes: list[Connection] = []
    try:
        for number in range(num_workers):
            receiver, sender = context.Pipe(duplex=False)
            worker = context.Process(
                target=_work_alone, args=(config, search, folder, num_trials, threads, number, sender)
            )
            worker.start()
            sender.close()
            workers.append(worker)
            pipes.append(receiver)
        told = count()
        while any(worker.is_alive() for worker in workers):
            time.sleep(_POLL_S)
            _raise_failure(workers, pipes)
            now = count()
            advance(now - told)
            told = now
        _raise_failure(workers, pipes)
        if count() < num_trials:
            codes = sorted({worker.exitcode for worker in workers if worker.exitcode})
            raise RunError(
                f"every worker of the search was ended from outside (exit codes {', '.join(map(str, codes))}), perhaps "
                "for want of memory: take fewer --workers. What is finished is kept; the same command continues."
            )
        advance(count() - told)
    finally:
        _stop(workers)


def _raise_failure(workers: list[BaseProcess], pipes: list[Connection]) -> None:
    for number, (worker, pipe) in enumerate(zip(workers, pipes, strict=True)):
        try:
            is_users, message = pipe.recv() if pipe.poll() else (None, "")
        except EOFError:  # it ended without a word
            is_users, message = None, ""
        if is_users is not None:
            raise UserError(message) if is_users else RunError(message)
        if worker.exitcode == 1:
            raise RunError(f"worker {number} of the search broke down; worker{number}.log beside its trials has why.")


def _stop(workers: list[BaseProcess]) -> None:
    for worker in workers:
        if worker.is_alive():
            worker.terminate()
    for worker in workers:
        worker.join(_PATIENCE_S)
        if worker.is_alive():
            worker.kill()
            worker.join()


def _work_alone(
    config: StudyConfig,
    search: Search,
    folder: Path,
    num_trials: int,
    threads: int,
    number: int,
    sender: Connection,
) -> None:
    """The life of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent passes it on once
    signal.signal(signal.SIGTERM, _stop_here)
    _end_with_parent()
    with (folder / f"worker{number}.log").open("a", encoding="utf-8") as log, redirect_stderr(log):
        try:
            with _few_threads(threads):
                problem = open_problem(config, search, folder)
                store = TrialStore(folder, search)
                try:
                    work(problem, store, num_trials, lambda: None)
                finally:
                    store.close()
        except VitreousError as error:
            sender.send((isinstance(error, UserError), str(error)))
        except _Stopped:
            sys.exit(128 + signal.SIGTERM)


def _stop_here(signum: int, frame: object) -> None:
    raise _Stopped


def _end_with_parent() -> None:
    """Stop when the parent is gone without having said so."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def _few_threads(threads: int) -> Iterator[None]:
    import torch
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    torch.set_num_threads(threads)
    with threadpool_limits(threads):
        yield
