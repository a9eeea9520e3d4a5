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

data = typer.Typer(no_args_is_help=True, help="Data of a study: check it, make a small one, prepare a downloaded one.")
app.add_typer(data, name="data")


class CohortKind(StrEnum):
    """What a synthetic cohort consists of."""

    fundus = "fundus"
    oct = "oct"
    surgical = "surgical"


class PublishedCohort(StrEnum):
    """Published cohorts whose layout is known."""

    aptos = "aptos"
    messidor = "messidor"
    idrid = "idrid"


class TargetSplit(StrEnum):
    """Which samples of another cohort are scored."""

    all = "all"
    test = "test"


class ExplainMethod(StrEnum):
    """How a map is made."""

    attention_pooling = "attention_pooling"
    attention = "attention"
    rollout = "rollout"
    grad_attention = "grad_attention"
    token_gradients = "token_gradients"
    gradcam = "gradcam"


class Device(StrEnum):
    """Where to compute."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class Which(StrEnum):
    """Which of the two encoders that joint-embedding pretraining leaves in one file."""

    context = "context"
    target = "target"


class InputKind(StrEnum):
    """What an encoder is given."""

    volume = "volume"
    image = "image"
    clip = "clip"


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
    modality: Annotated[
        InputKind | None, typer.Option(help="What it would be given, if not the family's usual.", show_default=False)
    ] = None,
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
        modality=None if modality is None else modality.value,
        options=option or [],
        as_json=as_json,
    )


@app.command()
def doctor(
    target: Annotated[str, typer.Argument(metavar="STUDY | RUN_DIR", show_default=False)],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[key=value ... | RUN_DIR]",
            help="Of a study: overrides. Of a run: another run to compare with.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """What is wrong, the evidence, what to run next. Exits 1 if something is."""
    from vitreous.study.doctor import print_doctor

    if print_doctor(target, arguments or []):
        raise typer.Exit(1)


@app.command()
def transfer(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A finished run.", show_default=False)],
    on: Annotated[
        list[str],
        typer.Option(
            metavar="NAME:TABLE:FILES",
            help="Another cohort; or NAME:STUDY.yaml, whose data section is read. May be repeated.",
            show_default=False,
        ),
    ],
    label: Annotated[str | None, typer.Option(help="Its label column, if not the run's.", show_default=False)] = None,
    image: Annotated[str | None, typer.Option(help="Its image column, if not the run's.", show_default=False)] = None,
    patient: Annotated[str | None, typer.Option(help="Its patient column.", show_default=False)] = None,
    label_map: Annotated[
        str | None, typer.Option(metavar="VALUE=CLASS,…", help="Its labels in the run's classes.", show_default=False)
    ] = None,
    split: Annotated[TargetSplit, typer.Option(help="All its samples, or its own test split.")] = TargetSplit.all,
    rows: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ENCODER/RECIPE", help="Rows to transfer; all but floors if left out.", show_default=False
        ),
    ] = None,
    ordered: Annotated[bool, typer.Option("--ordered", help="Classes are grades: quadratic weighted kappa.")] = False,
    fit_share: Annotated[float, typer.Option(help="Share of its patients that fits a temperature.")] = 0.5,
) -> None:
    """Trained models on other cohorts: the generalisation gap. Nothing is trained; the same command resumes."""
    from vitreous.study.transfer import print_transfer
    from vitreous.study.transfer_cohort import CohortOptions, parse_label_map

    options = CohortOptions(
        label, image, patient, None if label_map is None else parse_label_map(label_map), split.value
    )
    print_transfer(run_dir, on, options=options, rows=rows or [], ordered=ordered, fit_share=fit_share)


@app.command()
def search(
    study: StudyArgument,
    overrides: OverridesArgument = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Trials in all, those of earlier starts included.", show_default=False)
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that run trials at the same time.")] = 1,
) -> None:
    """Values of a recipe's keys, chosen on val; test is not read. The same command resumes."""
    from vitreous.study.search import print_search

    print_search(study, overrides or [], trials=trials, workers=workers)


@app.command()
def predict(
    model_dir: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL_DIR", help="A folder runs/<study>/<encoder>/<recipe>/seed<k>.", show_default=False
        ),
    ],
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT ...", help="Files, folders, quoted patterns, s3:// or gs:// prefixes.", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="F.parquet", help="Where predictions go.", show_default=False)],
    table: Annotated[
        str | None, typer.Option(help="Predict the files that a table names, below INPUT.", show_default=False)
    ] = None,
    image: Annotated[str | None, typer.Option(help="Its column of file names.", show_default=False)] = None,
    array: Annotated[
        str | None, typer.Option(help="Predict the items of this array of an npz file.", show_default=False)
    ] = None,
    axes: Annotated[
        str | None, typer.Option(help="Axes of an item, or of .npy volumes, if not the model's.", show_default=False)
    ] = None,
    per_patient: Annotated[
        bool, typer.Option("--per-patient", help="Also mean probabilities by patient, in F_patient.parquet.")
    ] = False,
    patient: Annotated[str | None, typer.Option(help="Column of patients in --table.", show_default=False)] = None,
    patient_pattern: Annotated[
        str | None,
        typer.Option(help=r"Patient in a path, such as '(?P<patient>\d+)_'.", show_default=False),
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="Where the encoder's file lies now, if it moved.", show_default=False)
    ] = None,
    max_quarantined: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share that may be unusable; default: the study's.", show_default=False),
    ] = None,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.auto,
) -> None:
    """A trained model on new files, read as in training. Unusable files are listed; the same command continues."""
    from vitreous.study.predict import print_predict
    from vitreous.study.predict_inputs import InputOptions

    print_predict(
        model_dir,
        inputs,
        out,
        options=InputOptions(array, axes, table, image, patient, patient_pattern),
        per_patient=per_patient,
        checkpoint=checkpoint,
        max_quarantined=max_quarantined,
        device=device.value,
    )


@app.command()
def explain(
    model_dir: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL_DIR", help="A folder runs/<study>/<encoder>/<recipe>/seed<k>.", show_default=False
        ),
    ],
    more: Annotated[list[str] | None, typer.Argument(metavar="[ID ...]", hidden=True, show_default=False)] = None,
    samples: Annotated[
        list[str] | None,
        typer.Option(metavar="ID ...", help="Samples of the run, as its tables name them.", show_default=False),
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(min=1, help="So many of the most, and of the least, confident val samples.", show_default=False),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="PATH", help="New files instead; may be repeated.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder; default MODEL_DIR/explanations.", show_default=False)
    ] = None,
    method: Annotated[
        list[ExplainMethod] | None, typer.Option(help="May be repeated; all that fit if left out.", show_default=False)
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Class to explain; each sample's predicted one if left out.", show_default=False)
    ] = None,
    attention: Annotated[
        bool, typer.Option("--attention", help="Also the entropy of every layer and head, frozen and adapted.")
    ] = False,
    steps: Annotated[int, typer.Option(min=2, help="Points of a deletion curve.")] = 16,
    orders: Annotated[int, typer.Option(min=5, help="Random orders that a map must beat.")] = 20,
    draws: Annotated[int, typer.Option(min=1, help="Random encoders, and random heads, a map is compared with.")] = 3,
    checkpoint: Annotated[
        str | None, typer.Option(help="Where the encoder's file lies now, if it moved.", show_default=False)
    ] = None,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.auto,
) -> None:
    """Where a model looks and what speaks for a class, each map with its checks. The same command resumes."""
    from vitreous.study.explain import ExplainOptions, print_explain

    options = ExplainOptions(
        samples=[*(samples or []), *(more or [])],
        inputs=inputs or [],
        top=top,
        methods=[one.value for one in method or []],
        target=target,
        attention=attention,
        steps=steps,
        orders=orders,
        draws=draws,
    )
    print_explain(model_dir, out, options=options, checkpoint=checkpoint, device=device.value)


@app.command()
def export(
    model_dir: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL_DIR", help="A folder runs/<study>/<encoder>/<recipe>/seed<k>.", show_default=False
        ),
    ],
    to: Annotated[Path, typer.Option(metavar="DIR", help="A new or empty folder.", show_default=False)],
    onnx: Annotated[bool, typer.Option("--onnx", help="Also model.onnx, compared with torch.")] = False,
    checkpoint: Annotated[
        str | None, typer.Option(help="Where the encoder's file lies now, if it moved.", show_default=False)
    ] = None,
) -> None:
    """A trained model apart from its run: complete weights, config, model card, an example that loads it."""
    from vitreous.study.export import print_export

    print_export(model_dir, to, checkpoint=checkpoint, onnx=onnx)


@data.command()
def verify(
    study: StudyArgument,
    overrides: OverridesArgument = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the tables; default <runs>/<name>/verify.", show_default=False)
    ] = None,
) -> None:
    """Decode every file once; counts, sizes, brightness, duplicates and leaks. Exits 1 if something is wrong."""
    from vitreous.study.data_verify import print_verify

    if print_verify(study, overrides or [], out):
        raise typer.Exit(1)


@data.command()
def sample(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.", show_default=False)],
    cohort: Annotated[
        CohortKind, typer.Option(help="Photographs of two cameras, OCT volumes, or frames of videos.")
    ] = CohortKind.fundus,
    patients: Annotated[int, typer.Option(min=40, max=9000, help="Patients (of each camera), or videos.")] = 80,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, another cohort.")] = 0,
) -> None:
    """A small synthetic cohort with study files that run on it as they are. The same command continues."""
    from vitreous.study.data_sample import print_sample

    print_sample(folder, cohort.value, patients=patients, seed=seed)


@data.command()
def prepare(
    name: Annotated[PublishedCohort, typer.Argument(metavar="aptos|messidor|idrid", show_default=False)],
    archive: Annotated[
        Path,
        typer.Argument(metavar="ARCHIVE", help="The zip or tar, or a folder it was unpacked into.", show_default=False),
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.", show_default=False)],
    seed: Annotated[int, typer.Option(min=0, help="Of the part of the split that is not published.")] = 0,
    max_missing: Annotated[
        float, typer.Option(min=0, max=1, help="Share of labelled images that may be missing or unreadable.")
    ] = 0.05,
    max_gb: Annotated[float, typer.Option(min=0.001, help="The most that the archive may unpack to.")] = 50.0,
) -> None:
    """Bring a downloaded cohort into the layout of a study, and check it. The same command resumes."""
    from vitreous.study.data_prepare import print_prepare

    print_prepare(name.value, archive, folder, seed=seed, max_missing=max_missing, max_gb=max_gb)


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
