"""Rounds by domain: which domain each round left out or trained on, and the train × test matrix of a finished run."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from vitreous.config.study import EachDomain, LeaveOut, StudyConfig
from vitreous.core.files import replacing, write_json, write_text
from vitreous.core.predictions import Predictions
from vitreous.core.streams import numpy_stream
from vitreous.core.undefined import Undefined
from vitreous.evidence.domain_matrix import DomainMatrix, measure_domains
from vitreous.evidence.intervals import Interval
from vitreous.evidence.task_scores import TASK_SCORES
from vitreous.reports.transfer_figures import heat_map_svg
from vitreous.samples.cohort import Cohort
from vitreous.samples.folds import patient_domains
from vitreous.study.run_directory import RunDirectory

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Rounds:
    """What the rounds of a run by domain are.

    Args:
        kind: ``leave_out``: round k is tested on domains[k]; ``each``: it trains on domains[k] alone.
        domain_of: patient → domain.
    """

    kind: Literal["leave_out", "each"]
    column: str
    domains: tuple[str, ...]
    domain_of: Mapping[str, str]

    def own_patients(self, fold: int) -> list[str]:
        """Patients of the domain of a round."""
        return [patient for patient, domain in self.domain_of.items() if domain == self.domains[fold]]


def write_rounds(directory: RunDirectory, config: StudyConfig, cohort: Cohort) -> None:
    """Write ``domains/rounds.json`` and ``domains/patients.csv``; nothing for other studies."""
    folds = config.folds
    if not isinstance(folds, LeaveOut | EachDomain):
        return
    domain_of = patient_domains(cohort, folds.column)
    folder = directory.root / "domains"
    with replacing(folder / "patients.csv") as aside:
        domain_of.rename("domain").rename_axis("patient_id").to_csv(aside)
    write_json(
        folder / "rounds.json",
        {
            "schema_version": SCHEMA_VERSION,
            "kind": "leave_out" if isinstance(folds, LeaveOut) else "each",
            "column": folds.column,
            "domains": sorted(set(domain_of)),
        },
    )


def read_rounds(directory: RunDirectory) -> Rounds | None:
    """What :func:`write_rounds` wrote; None for a run without rounds by domain."""
    path = directory.root / "domains" / "rounds.json"
    if not path.exists():
        return None
    kept = json.loads(path.read_text())
    table = pd.read_csv(path.parent / "patients.csv", dtype=str, keep_default_na=False)
    domain_of = dict(zip(table["patient_id"], table["domain"], strict=True))
    return Rounds(kept["kind"], kept["column"], tuple(kept["domains"]), domain_of)


def write_domain_matrices(
    directory: RunDirectory,
    config: StudyConfig,
    rounds: Rounds,
    tests: Mapping[str, Mapping[int, Sequence[Predictions]]],
) -> list[tuple[str, DomainMatrix]]:
    """Write ``domains/matrix.csv`` and heat maps.

    Args:
        tests: row → round → test predictions of that round, by seed.
    Returns:
        row and its matrix; with one domain left out, its one line is every model on the domain it did not see.
    """
    folder = directory.root / "domains"
    matrices = [(row, _measure(config, rounds, by_round)) for row, by_round in tests.items()]
    write_text(folder / "matrix.csv", _matrix_csv(matrices))
    title = TASK_SCORES[config.data.task].metrics[config.metric].title
    if rounds.kind == "leave_out":
        lines = [[matrix.cells[k][k].score for k in range(len(rounds.domains))] for _, matrix in matrices]
        svg = heat_map_svg(
            lines,
            [row for row, _ in matrices],
            list(rounds.domains),
            title=f"{title} on each {rounds.column} left out of training",
            row_label="model, trained on the others",
            column_label=f"{rounds.column} left out",
        )
        write_text(folder / "matrix.svg", svg)
        return matrices
    for row, matrix in matrices:
        svg = heat_map_svg(
            [[cell.score for cell in line] for line in matrix.cells],
            list(matrix.train),
            list(matrix.test),
            title=f"{title} of {row}, trained on one {rounds.column} and tested on each",
            row_label=f"trained on {rounds.column}",
            column_label=f"tested on {rounds.column}",
            outlined=[(k, k) for k in range(len(matrix.train))],
        )
        write_text(folder / f"matrix.{row.replace(' / ', '.')}.svg", svg)
    return matrices


def _measure(config: StudyConfig, rounds: Rounds, by_round: Mapping[int, Sequence[Predictions]]) -> DomainMatrix:
    before = "all but " if rounds.kind == "leave_out" else ""
    by_train = {
        f"{before}{rounds.domains[fold]}": [one.scored(config.data.aggregate) for one in by_seed]
        for fold, by_seed in sorted(by_round.items())
    }
    return measure_domains(
        by_train,
        rounds.domain_of,
        config.metric,
        stream_of=lambda domain: numpy_stream(config.intervals.seed, "domain", domain),
        num_resamples=config.intervals.resamples,
        level=config.intervals.level,
    )


def _matrix_csv(matrices: Sequence[tuple[str, DomainMatrix]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    parts = [f"{name}{bound}" for name in ("score", "loss") for bound in ("", "_low", "_high")]
    writer.writerow(
        ["encoder", "recipe", "train", "test", "metric", "n_patients", *parts, "undefined", "schema_version"]
    )
    for row, matrix in matrices:
        encoder, _, recipe = row.partition(" / ")
        for train, line in zip(matrix.train, matrix.cells, strict=True):
            for test, cell in zip(matrix.test, line, strict=True):
                numbers = [*_numbers(cell.score), *_numbers(cell.loss)]
                told = {
                    name: number.reason
                    for name, number in zip(parts, numbers, strict=True)
                    if isinstance(number, Undefined)
                }
                writer.writerow([
                    encoder, recipe, train, test, matrix.metric, cell.num_patients,
                    *("" if isinstance(number, Undefined) else f"{number:.6f}" for number in numbers),
                    "; ".join(f"{name}: {reason}" for name, reason in told.items() if "_" not in name),
                    SCHEMA_VERSION,
                ])  # fmt: skip
    return text.getvalue()


def _numbers(found: Interval) -> tuple[float | Undefined, ...]:
    return found.value, found.low, found.high
