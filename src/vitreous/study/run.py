"""`vitreous run STUDY`: encode → adapt → evaluate → leaderboard and report. The same command resumes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from vitreous.config.compose import load_study
from vitreous.config.study import StudyConfig
from vitreous.core.files import remove_partial_files, write_json
from vitreous.features.store import FeatureStore
from vitreous.reports.leaderboard import Leaderboard
from vitreous.reports.leaderboard_tables import leaderboard_frame, render_terminal
from vitreous.reports.trackers import check_tracker
from vitreous.storage.locks import exclusive
from vitreous.study.account import write_account
from vitreous.study.adapt import TOKENS, adapt_all
from vitreous.study.adapt_pixels import PixelRun, check_pixel_recipes, check_pixel_rows
from vitreous.study.data import OpenedData, open_data
from vitreous.study.domains import write_rounds
from vitreous.study.encode import (
    check_usable,
    describe_encoding,
    encode_study,
    feature_store,
    feature_width,
    token_stores,
    write_data_errors,
)
from vitreous.study.encoders import OpenedEncoder, open_encoders
from vitreous.study.evaluate import evaluate_all
from vitreous.study.few_shot import adapt_few_shot, check_few_shot
from vitreous.study.floors import plan_floors
from vitreous.study.leak_gate import describe_gate, finish_gate, pass_gate_before_encoding
from vitreous.study.partitions import check_partitions, make_partitions
from vitreous.study.provenance import cohort_fingerprint, describe_run
from vitreous.study.report import write_outputs
from vitreous.study.row import encoders_on_pixels, encoders_on_tokens, frozen_encoders, rows_of
from vitreous.study.rows import write_rows
from vitreous.study.run_directory import RunDirectory, claim
from vitreous.study.runtime import Runtime, resolve_runtime


@dataclass(frozen=True)
class Result:
    """A finished run.

    Args:
        run_dir: where everything is.
        standing: all rows with intervals and comparisons.
        report: ``report.html``.
    """

    run_dir: Path
    standing: Leaderboard
    report: Path

    @property
    def leaderboard(self) -> pd.DataFrame:
        """The columns of ``leaderboard.csv``; what is undefined is missing."""
        return leaderboard_frame(self.standing)


def run_study(config: StudyConfig, *, run_dir: Path | None = None, console: Console | None = None) -> Result:
    """Run a whole study, or what is left of it.

    Args:
        run_dir: ``<runs>/<name>`` if left out.
        console: where progress is told; the error stream if left out.

    Raises:
        VitreousError: the run failed; what is finished is kept.
    """
    console = console or Console(stderr=True, highlight=False, markup=False)
    directory = RunDirectory(run_dir or Path(config.runs).expanduser() / config.name)
    if config.search is not None:
        console.print("The section search is read by `vitreous search` alone; recipes run with their own values.")
    if config.tracker is not None:
        check_tracker(config.tracker)
    runtime = resolve_runtime(config)
    data = open_data(config)
    check_pixel_recipes(config, data.modality)
    encoders = open_encoders(config, runtime, data.cache, data.modality)
    floors = plan_floors(config, data.cohort, data.modality)
    rows = rows_of(config, encoders, floors.columns)
    check_pixel_rows(config, rows, encoders)
    hashes = {"cohort": cohort_fingerprint(data.cohort)}
    hashes |= {f"encoders.{opened.name}.weights": opened.encoder.weights_hash for opened in encoders}
    provenance = describe_run(config, runtime, data.cohort, hashes)
    check_few_shot(config, make_partitions(data.cohort, config.folds))
    gate = pass_gate_before_encoding(config, data, encoders, runtime.workers)
    with exclusive(directory.root / ".lock"):  # a second process on the same run waits, then finds it done
        for sentence in claim(directory, config, provenance):
            console.print(sentence)
        for folder in [directory.root, *directory.root.glob("**/")]:
            remove_partial_files(folder)
        for opened in encoders:
            write_json(directory.receipt(opened.name), opened.describe())
        with gate.loader() as load_input:
            features = encode_study(
                config,
                runtime,
                data,
                encoders,
                frozen=frozen_encoders(rows),
                on_tokens=encoders_on_tokens(rows),
                on_pixels=encoders_on_pixels(rows),
                load_input=load_input,
            )
        write_data_errors(directory.data_errors, features.quarantined)
        check_usable(config, features, len(data.cohort.samples))
        console.print(describe_encoding(data, features))
        finish_gate(gate, features, encoders, runtime.workers)
        gate.write(directory)
        console.print(describe_gate(gate))
        for finding in floors.findings:
            console.print(f"{finding.title} {finding.remedy}".strip())
        write_account(directory, data, features, floors.findings)
        partitions = make_partitions(data.cohort, config.folds, features.samples["sample_id"])
        check_partitions(partitions, config.data.classes)
        check_few_shot(config, partitions, features.samples["sample_id"].tolist())
        by_name = {opened.name: opened for opened in encoders}
        load_mask = None if data.masks is None else data.load_mask
        run = PixelRun(config, runtime, directory, by_name, features, console, load_mask)
        on_tokens = encoders_on_tokens(rows)
        models = {
            one.name: _describe_model(config, runtime, data, one, with_tokens=one.name in on_tokens) for one in encoders
        }
        adapt_all(run, rows, partitions, models, floors.columns)
        adapt_few_shot(run, rows, partitions, models, floors.columns)
        evaluate_all(config, directory, rows, partitions, features, floors.columns, run.read_mask)
        write_rounds(directory, config, data.cohort)
        write_rows(directory, rows, encoders, len(partitions) if config.folds else None)
        leaderboard = write_outputs(directory, config.tracker)
    return Result(directory.root, leaderboard, directory.report)


def _describe_model(
    config: StudyConfig, runtime: Runtime, data: OpenedData, opened: OpenedEncoder, *, with_tokens: bool
) -> dict[str, Any]:
    """What ``model.json`` says of the encoder: all that is needed to make the same features again."""
    store: FeatureStore = feature_store(config, runtime, data, opened)
    tokens = token_stores(config, runtime, data, opened, with_views=False)[0].space
    return {
        "encoder": {"name": opened.name, **opened.source},
        "modality": data.modality,
        "feature_space": store.space.describe(),
        "feature_key": store.space.key,
        "width": feature_width(config, opened.encoder),
        **({TOKENS: {"feature_space": tokens.describe(), "feature_key": tokens.key}} if with_tokens else {}),
    }


def print_run(study: str, overrides: Sequence[str]) -> None:
    """Run a study and print its leaderboard and where the report is."""
    console = Console()
    result = run_study(load_study(study, overrides))
    console.print(render_terminal(result.standing))
    console.print(f"\nreport       {result.report}", highlight=False, soft_wrap=True)
    console.print(f"leaderboard  {result.run_dir / 'leaderboard.md'}", highlight=False, soft_wrap=True)
