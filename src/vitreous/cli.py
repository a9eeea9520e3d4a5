"""argv → verb; exit codes; no logic. Exit 0 done, 1 the run failed, 2 the user must change something."""

import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from vitreous.core.errors import UserError, VitreousError

app = typer.Typer(
    name="vitreous",
    help="Which pretrained vision encoder, adapted how, should I trust for this clinical task?",
    no_args_is_help=True,
    add_completion=False,
    # a traceback that prints local variables would print patient ids
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


class Which(StrEnum):
    """Which of the two encoders that joint-embedding pretraining leaves in one file."""

    context = "context"
    target = "target"


StudyArgument = Annotated[
    str, typer.Argument(metavar="STUDY", help="A YAML file, or the name of a packaged study.", show_default=False)
]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[key=value ...]",
        help="Overrides in Hydra's grammar, e.g. seeds=[0,1] name=second.",
        show_default=False,
    ),
]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for cohort, checkpoints, features and runs.")] = Path(
        "vitreous-demo"
    ),
) -> None:
    """Offline, end to end: synthetic cohort, three checkpoints, leaderboard and report."""
    from vitreous.study.demo import run_demo

    run_demo(out)


@app.command()
def plan(study: StudyArgument, overrides: OverridesArgument = None) -> None:
    """What would be read, encoded and trained; counts, time, bytes, memory. Writes nothing."""
    from vitreous.study.plan import print_plan

    print_plan(study, overrides or [])


@app.command()
def run(
    study: StudyArgument,
    overrides: OverridesArgument = None,
    multirun: Annotated[
        bool, typer.Option("-m", "--multirun", help="Comma lists in overrides span jobs; one joint leaderboard.")
    ] = False,
) -> None:
    """Encode → adapt → evaluate → leaderboard and report. The same command resumes."""
    if multirun:
        from vitreous.study.multirun import run_multirun

        run_multirun(study, overrides or [])
    else:
        from vitreous.study.run import print_run

        print_run(study, overrides or [])


@app.command()
def encode(study: StudyArgument, overrides: OverridesArgument = None) -> None:
    """Only fill the feature store."""
    from vitreous.study.encode import print_encode

    print_encode(study, overrides or [])


@app.command()
def report(run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", show_default=False)]) -> None:
    """Rebuild tables and report from the predictions of a finished run."""
    from vitreous.study.report import print_report

    print_report(run_dir)


@app.command()
def inspect(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="A path, s3:// or gs://.", show_default=False)
    ],
    family: Annotated[str, typer.Option(help="Encoder family.")] = "vit3d",
    which: Annotated[Which, typer.Option(help="Which encoder, where a file holds both.")] = Which.context,
    key_prefix: Annotated[str | None, typer.Option(help="Prefix of the encoder's tensors, if not a known one.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="Family option as key=value; may be repeated.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole receipt as JSON.")] = False,
) -> None:
    """Load receipt of a checkpoint: family, shapes, matched share, hash. Executes nothing of the file."""
    from vitreous.study.inspect import print_receipt

    print_receipt(
        checkpoint,
        family,
        which="target" if which is Which.target else "context",
        key_prefix=key_prefix,
        options=option or [],
        as_json=as_json,
    )


@app.command()
def doctor(
    target: Annotated[str, typer.Argument(metavar="STUDY | RUN_DIR", show_default=False)],
    overrides: OverridesArgument = None,
) -> None:
    """What is wrong, the evidence, what to run next. Exits 1 if something is."""
    from vitreous.study.doctor import print_doctor

    if print_doctor(target, overrides or []):
        raise typer.Exit(1)


def _print_version(wanted: bool) -> None:
    if wanted:
        from vitreous import __version__

        typer.echo(f"vitreous {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True)] = False,
) -> None:
    pass


class InterruptedRun(BaseException):
    """Ctrl-C or SIGTERM; not a KeyboardInterrupt, which Typer would end without a word."""


def main() -> None:
    """Entry point of the command line."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _interrupt)
    try:
        app()
    except UserError as error:
        console.print(f"[bold red]error:[/] {_escape(error)}")
        sys.exit(2)
    except VitreousError as error:
        console.print(f"[bold red]failed:[/] {_escape(error)}")
        sys.exit(1)
    except OSError as error:
        where = f" {error.filename}:" if error.filename else ""
        console.print(f"[bold red]failed:[/]{_escape(where)} {_escape(error.strerror or error)}")
        sys.exit(1)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported here
            raise
        console.print(f"[bold red]failed:[/] the device is out of memory; lower batch_size. {_escape(error)}")
        sys.exit(1)
    except InterruptedRun:
        console.print("[bold yellow]interrupted:[/] what is finished is kept; the same command continues.")
        sys.exit(130)


def _interrupt(signum: int, frame: object) -> None:
    raise InterruptedRun


def _escape(error: object) -> str:
    from rich.markup import escape

    return escape(str(error))


if __name__ == "__main__":
    main()
