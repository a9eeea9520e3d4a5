"""`vitreous report RUN_DIR`: tables and report, made anew from what a finished run left on disk."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from vitreous.config.study import StudyConfig
from vitreous.core.errors import UserError
from vitreous.core.finding import Finding
from vitreous.core.input_spec import Modality, item_noun
from vitreous.core.leak import ACCEPTED
from vitreous.core.privacy import load_id_key
from vitreous.reports.checklist_answers import checklist_answers
from vitreous.reports.checklists import fill_checklists, write_checklists
from vitreous.reports.comparisons import write_comparisons
from vitreous.reports.evidence_figures import draw_evidence, write_figures
from vitreous.reports.evidence_tables import evidence_tables
from vitreous.reports.few_shot import write_few_shot
from vitreous.reports.folds import write_folds
from vitreous.reports.leaderboard import Leaderboard, RowPredictions, build_leaderboard
from vitreous.reports.leaderboard_tables import render_terminal, write_leaderboard
from vitreous.reports.methods import methods_paragraphs
from vitreous.reports.power import write_power
from vitreous.reports.quarantine import keyed_rows
from vitreous.reports.report import DataFlow, EncoderReport, ReportData, Table, TrainingCurves, render_report
from vitreous.reports.result_tables import ResultTable, write_tables
from vitreous.reports.row_evidence import RowEvidence, gather_evidence
from vitreous.reports.run_tables import run_tables
from vitreous.reports.trackers import TrackerKind, log_run
from vitreous.study.account import pivot_counts, read_account, read_domains
from vitreous.study.domains import read_rounds, write_domain_matrices
from vitreous.study.few_shot_scores import few_shot_scores
from vitreous.study.findings import read_findings
from vitreous.study.fold_scores import fold_scores
from vitreous.study.heads import read_history, read_model
from vitreous.study.leak_gate import read_leaks
from vitreous.study.ledger import Ledger
from vitreous.study.looking_inside import look_inside, write_looked_inside
from vitreous.study.report_facts import kept_matrices, row_sources, run_facts
from vitreous.study.rows import KeptRow, read_kept_rows, read_rows, read_tests_by_round
from vitreous.study.run_directory import RunDirectory, kept_study

_SAID_BY_REPORT = ("edge_of_grid", "diverged", "not_converged", "lost_patients")
_NO_PATIENTS = "patients_are_rows"


def leaderboard_of(directory: RunDirectory, config: StudyConfig) -> Leaderboard:
    """The leaderboard of a finished run, from its predictions."""
    return _leaderboard_of_rows(directory, config, read_rows(directory, config))


def _leaderboard_of_rows(directory: RunDirectory, config: StudyConfig, rows: Sequence[RowPredictions]) -> Leaderboard:
    leaderboard = leaderboard_from(rows, config)
    accepted = [finding for finding in read_leaks(directory) if finding.title.startswith(ACCEPTED)]
    return replace(leaderboard, findings=(*accepted, *leaderboard.findings))


def leaderboard_from(rows: Sequence[RowPredictions], config: StudyConfig) -> Leaderboard:
    """One leaderboard of these rows, by the metric and intervals of a study.

    The study's baseline is compared with where it is among the rows: those of several runs have other names.

    Raises:
        ValueError: the rows are not about the same patients.
    """
    baseline = None if config.baseline is None else config.baseline.replace("/", " / ")
    return build_leaderboard(
        rows,
        metric=config.metric,
        seed=config.intervals.seed,
        num_resamples=config.intervals.resamples,
        level=config.intervals.level,
        method=config.intervals.method,
        aggregate=config.data.aggregate,
        modality=config.data.modality,
        baseline=baseline if baseline in {row.name for row in rows} else None,
    )


def write_outputs(directory: RunDirectory, tracker: TrackerKind | None = None) -> Leaderboard:
    """Write leaderboard.csv, leaderboard.md, comparisons.csv, power.json, tables, figures and report.html; with folds
    also folds.csv, with few_shot few_shot.csv, with rounds by domain their train × test matrix.

    Args:
        tracker: is told too, if given.

    Raises:
        UserError: the folder is no finished run.
    """
    config = kept_study(directory)
    rows = read_rows(directory, config)
    leaderboard = _leaderboard_of_rows(directory, config, rows)
    evidence = gather_evidence(rows, leaderboard, read_domains(directory), seed=config.intervals.seed)
    tables = evidence_tables(evidence, leaderboard)
    drawn = draw_evidence(evidence, leaderboard)
    write_tables(tables, directory.root)
    write_figures(drawn, directory.root)
    write_leaderboard(leaderboard, directory.root)
    write_comparisons(leaderboard.paired, directory.root)
    write_power(leaderboard.reach, directory.root)
    if config.folds is not None:
        write_folds(fold_scores(directory, config, rows), config.metric, directory.root)
    if config.few_shot is not None:
        write_few_shot(few_shot_scores(directory, config, leaderboard), directory.root)
    if (rounds := read_rounds(directory)) is not None:
        write_domain_matrices(directory, config, rounds, read_tests_by_round(directory, config))
    looked = look_inside(directory, config, rows, read_kept_rows(directory))
    write_looked_inside(looked, directory.root)
    data = _report_data(directory, config, leaderboard, looked.findings)
    data = _with_evidence(directory, config, data, evidence, tables, drawn)
    write_checklists(data.checklists, directory.root)
    render_report(data, directory.report)
    if tracker is not None:
        log_run(tracker, directory.root, leaderboard, data.curves)
    return leaderboard


def _report_data(
    directory: RunDirectory, config: StudyConfig, leaderboard: Leaderboard, inside: Sequence[Finding]
) -> ReportData:
    account = read_account(directory)
    kept = read_kept_rows(directory)
    findings = [Finding(**finding) for finding in account["findings"]]
    leaks = read_leaks(directory)
    quarantined = pd.read_csv(directory.data_errors, dtype=str, keep_default_na=False).rename(
        columns={"participant_id": "patient_id", "key": "relative"}
    )
    receipts = {path.stem: json.loads(path.read_text()) for path in sorted(directory.root.glob("receipts/*.json"))}
    return ReportData(
        study=config.name,
        leaderboard=leaderboard,
        flow=DataFlow(account["rows"], account["encoded"], account["quarantined"], account["excluded_by_rule"]),
        encoders=tuple(
            EncoderReport(name, receipt["is_floor"], receipt, receipt["input_spec"], tuple(receipt["overridden"]))
            for name, receipt in receipts.items()
        ),
        counts=_count_tables(directory, config.data.modality),
        curves=tuple(_curves(directory, row) for row in kept if _has_curves(directory, row)),
        quarantined=keyed_rows(quarantined, load_id_key()),
        findings=(
            *(f for f in findings if f.code != _NO_PATIENTS),
            *(f for f in leaks if not f.title.startswith(ACCEPTED)),  # those are the leaderboard's
            *choice_findings(directory, kept),
            *inside,
            *_lost_patients(account, config.data.modality),
            *_doctors_findings(directory, {*leaderboard.findings, *leaks, *inside}),
        ),
        banners=(
            *(f.title for f in findings if f.code == _NO_PATIENTS),
            *(f"{f.title} ({f.code})" for f in leaks if f.title.startswith(ACCEPTED)),
        ),
        looks=tuple(vars(look) for look in Ledger(directory.ledger).looks()),
        settings_yaml=directory.study_yaml.read_text(),
        provenance=json.loads(directory.provenance.read_text()),
        rebuild=f"vitreous report {directory.root}",
    )


def _doctors_findings(directory: RunDirectory, told: Collection[Finding]) -> list[Finding]:
    """Warnings and errors of the last `vitreous doctor RUN_DIR`, but for what the report says anyway."""
    found = [finding for finding in read_findings(directory) if finding.severity != "info" and finding not in told]
    return [finding for finding in found if finding.code not in _SAID_BY_REPORT]


def _with_evidence(
    directory: RunDirectory,
    config: StudyConfig,
    data: ReportData,
    evidence: tuple[RowEvidence, ...],
    tables: Sequence[ResultTable],
    drawn: Mapping[str, Mapping[str, str]],
) -> ReportData:
    """The report with evidence, methods, checklists and where each number comes from."""
    facts, leaderboard = run_facts(directory, config), data.leaderboard
    methods = methods_paragraphs(
        facts,
        leaderboard,
        rows_in=data.flow.rows_in,
        encoded=data.flow.encoded,
        quarantined=data.flow.quarantined,
        excluded=sum(data.flow.excluded.values()),
        num_looks=len(data.looks),
        evidence=evidence,
        provenance=data.provenance,
    )
    kept_tables = run_tables(directory.root, leaderboard.metric, leaderboard.metric_title)
    data = replace(
        data,
        evidence=evidence,
        figures=drawn,
        tables={**{table.name: table for table in tables}, **kept_tables},
        matrices=kept_matrices(directory),
        facts=facts,
        methods=methods,
        sources=row_sources(directory, read_kept_rows(directory)),
    )
    return replace(data, checklists=fill_checklists(checklist_answers(data)))


def _count_tables(directory: RunDirectory, modality: Modality) -> tuple[Table, ...]:
    counts = pd.read_csv(directory.root / "counts.csv", dtype=str, keep_default_na=False)
    return tuple(
        Table(f"Participants ({item_noun(modality)}) by {heads[0]}", tuple(heads), tuple(tuple(row) for row in rows))
        for heads, rows in pivot_counts(counts)
    )


def _has_curves(directory: RunDirectory, row: KeptRow) -> bool:
    return not read_history(directory.unit(row.encoder, row.recipe, row.seeds[0], row.folds[0])).empty


def _curves(directory: RunDirectory, row: KeptRow) -> TrainingCurves:
    histories: dict[str, Sequence[Mapping[str, float]]] = {}
    best: dict[str, int] = {}
    setting: dict[str, Any] = {}
    for fold in row.folds:
        for seed in row.seeds:
            folder = directory.unit(row.encoder, row.recipe, seed, fold)
            label = f"seed {seed}" if fold is None else f"fold {fold}, seed {seed}"
            history = read_history(folder)
            histories[label] = [
                dict(zip(history.columns, values, strict=True)) for values in history.to_numpy().tolist()
            ]
            model = read_model(folder)
            best[label] = model["best_epoch"]
            setting = model["setting"]
    words = ", ".join(f"{name} {value}" for name, value in setting.items())
    return TrainingCurves(f"{row.encoder} / {row.recipe}", words, histories, best)


def choice_findings(directory: RunDirectory, kept: Sequence[KeptRow]) -> list[Finding]:
    """What selection noticed: choices at the edge of a grid, members that diverged. Each says of which rows."""
    rows_by_finding: dict[Finding, list[str]] = {}
    for row in kept:
        for fold in row.folds:
            folder = directory.unit(row.encoder, row.recipe, row.seeds[0], fold).parent
            for found in json.loads((folder / "selection.json").read_text())["findings"]:
                name = f"{row.encoder} / {row.recipe}" + ("" if fold is None else f" (fold {fold})")
                rows_by_finding.setdefault(Finding(**found), []).append(name)
    return [
        replace(finding, evidence=f"{finding.evidence}: {', '.join(names)}")
        for finding, names in rows_by_finding.items()
    ]


def _lost_patients(account: Mapping[str, Any], modality: Modality) -> list[Finding]:
    lost = account["patients_without_usable_volume"]
    if not lost:
        return []
    return [
        Finding(
            "lost_patients",
            "warning",
            f"Some participants have no usable {item_noun(modality, 1)}, so no prediction was made for them.",
            ", ".join(f"{split}: {count}" for split, count in lost.items()),
            "See data_errors.csv in the run directory.",
        )
    ]


def print_report(run_dir: Path) -> None:
    """Rebuild and show."""
    directory = RunDirectory(run_dir)
    console = Console()
    console.print(render_terminal(write_outputs(directory)))
    console.print(f"report  {directory.report}", highlight=False, markup=False, soft_wrap=True)


def _what_is_scored(config: StudyConfig) -> tuple[str, tuple[str, ...], str]:
    return config.metric, config.data.classes, config.data.aggregate


def print_joint_leaderboard(root: Path, folders: Sequence[Path], console: Console) -> None:
    """One leaderboard over several finished runs of one study; each row's name says which run it is of.

    Raises:
        UserError: the runs differ in classes, metric or test patients, so their rows cannot be compared.
    """
    rows: list[RowPredictions] = []
    configs = {folder: kept_study(RunDirectory(folder)) for folder in folders}
    if not configs:
        raise UserError(f"{root}: no job has finished; see the messages above.")
    first = next(iter(configs.values()))
    for folder, config in configs.items():
        if _what_is_scored(config) != _what_is_scored(first):
            raise UserError(
                f"{folder}: metric, classes or data.aggregate differ from those of {folders[0]}; look at each "
                "leaderboard."
            )
        for row in read_rows(RunDirectory(folder), config):
            rows.append(replace(row, recipe=f"{row.recipe} [{folder.name}]"))
    try:
        leaderboard = leaderboard_from(rows, first)
    except ValueError as error:
        raise UserError(
            f"{root}: the jobs cannot stand in one leaderboard: {error}. Each job has its own in its folder."
        ) from error
    write_leaderboard(leaderboard, root)
    write_comparisons(leaderboard.paired, root)
    write_power(leaderboard.reach, root)
    console.print(render_terminal(leaderboard))
    console.print(f"joint leaderboard  {root / 'leaderboard.md'}", highlight=False, soft_wrap=True)
