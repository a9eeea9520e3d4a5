"""`vitreous doctor STUDY | RUN_DIR | RUN_A RUN_B`: what is wrong, the evidence, what to run next."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.markup import escape

from vitreous.config.compose import load_study, packaged_studies
from vitreous.core.errors import UserError
from vitreous.core.finding import Finding
from vitreous.core.privacy import keyed_id, load_id_key
from vitreous.diagnosis.volumes import find_volume_outliers
from vitreous.study.doctor_run import examine_run, statistics_of
from vitreous.study.doctor_runs import examine_two_runs
from vitreous.study.doctor_study import examine_study
from vitreous.study.findings import write_findings
from vitreous.study.run_directory import RunDirectory, kept_study

_MARKS = {"info": "[green]ok[/]     ", "warning": "[yellow]warning[/]", "error": "[red]error[/]  "}


def print_doctor(target: str, arguments: Sequence[str]) -> bool:
    """Print findings as they are made; True if one of them is an error.

    Args:
        target: a run directory, the path of a study or the name of a packaged one.
        arguments: overrides of a study; or, beside a run, a second run.
    Raises:
        UserError: a folder that is neither, or overrides for a run, which took its settings long ago.
    """
    directory = RunDirectory(Path(target).expanduser())
    if directory.study_yaml.is_file():
        if not arguments:
            return _print_run(directory)
        other = RunDirectory(Path(arguments[0]).expanduser())
        if len(arguments) == 1 and other.study_yaml.is_file():
            return print_findings(examine_two_runs(directory, other))
        raise UserError(
            f"{target}: a finished run takes no overrides; got {' '.join(arguments)}. Leave them out, or name one "
            "other run to compare with."
        )
    if directory.root.is_dir() and target not in packaged_studies():
        known = ", ".join(packaged_studies())
        raise UserError(f"{target}: no run directory (it has no study.yaml), and no packaged study; those are {known}.")
    return print_findings(examine_study(load_study(target, arguments)))


def _print_run(directory: RunDirectory) -> bool:
    """Print, and keep what was found for the report, without ids."""
    findings: list[Finding] = []

    def keeping() -> Iterator[Finding]:
        for finding in examine_run(directory):
            findings.append(finding)
            yield finding

    is_wrong = print_findings(keeping())
    write_findings(directory, _without_ids(directory, findings))
    title = f"{directory.root / 'findings.json'} has them without ids."
    print_findings([Finding("kept", "info", title, f"vitreous report {directory.root} puts them into the report")])
    return is_wrong


def _without_ids(directory: RunDirectory, findings: Sequence[Finding]) -> list[Finding]:
    """The same findings; those that name samples name them by keyed ids."""
    statistics: pd.DataFrame = statistics_of(directory)
    key = load_id_key()
    keyed = statistics.rename(index=lambda name: keyed_id(str(name), key))
    named = find_volume_outliers(keyed, kept_study(directory).data.modality)
    codes = {finding.code for finding in named}
    return [*(finding for finding in findings if finding.code not in codes), *named]


def print_findings(findings: Iterable[Finding]) -> bool:
    """Print each with its evidence and what to do about it; True if one of them is an error."""
    console = Console(highlight=False, soft_wrap=True)
    is_wrong = False
    for finding in findings:
        is_wrong |= finding.severity == "error"
        console.print(f"{_MARKS[finding.severity]}  {escape(finding.title)}")
        if finding.evidence:
            console.print(f"         [dim]{escape(finding.evidence)}[/]")
        if finding.remedy and finding.severity != "info":
            console.print(f"         → {escape(finding.remedy)}")
    return is_wrong
