"""One progress bar for everything that takes time; silent where nobody looks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Advance(Protocol):
    """Called with the number of items just done."""

    def __call__(self, done: int = 1) -> None: ...


def no_progress(done: int = 1) -> None:
    """Shows nothing."""


@contextmanager
def progress_bar(title: str, total: int, console: Console | None = None) -> Iterator[Advance]:
    """Show a bar with count, elapsed and remaining time on the terminal's error stream.

    Where the stream is no terminal, only a first and a last line are written, so that a log stays readable.
    """
    console = console or Console(stderr=True)
    if not console.is_terminal:
        console.print(f"{title}: {total} to do", highlight=False)
        yield no_progress
        console.print(f"{title}: done", highlight=False)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total)

        def advance(done: int = 1) -> None:
            bar.advance(task, done)

        yield advance
