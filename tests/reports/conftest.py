"""One leaderboard and one report, from predictions and histories that are computed, not made up."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from vitreous.core.predictions import Predictions
from vitreous.reports.checklist_answers import checklist_answers
from vitreous.reports.checklists import fill_checklists
from vitreous.reports.evidence_figures import draw_evidence
from vitreous.reports.evidence_tables import evidence_tables
from vitreous.reports.leaderboard import Leaderboard, RowPredictions, build_leaderboard
from vitreous.reports.methods import RunFacts, methods_paragraphs
from vitreous.reports.quarantine import keyed_rows
from vitreous.reports.report import DataFlow, EncoderReport, ReportData, RowSource, Table, TrainingCurves
from vitreous.reports.row_evidence import gather_evidence
from vitreous.reports.transfer_figures import heat_map_svg

CLASSES = ("healthy", "early <b>", "on | insulin")
NUM_TEST = 90


def make_predictions(skill: float, seed: int, split: str, patients: int = NUM_TEST) -> Predictions:
    """Two volumes a patient; logits that know the label to some degree; `skill` < 0 predicts class 0 always."""
    y_P = np.random.default_rng(len(split)).integers(0, 3, patients)
    ids_P = np.array([f"{split}-{n:04d}" for n in range(patients)])
    y_N, ids_N = np.repeat(y_P, 2), np.repeat(ids_P, 2)
    logits_NC = np.random.default_rng([seed, int(100 * abs(skill)), len(split)]).normal(size=(2 * patients, 3))
    logits_NC += skill * np.eye(3)[y_N]
    if skill < 0:
        logits_NC = np.tile([2.0, 1.0, 0.0], (2 * patients, 1))
    samples_N = np.array([f"{owner}/{n % 2}" for n, owner in enumerate(ids_N)])
    return Predictions(samples_N, ids_N, y_N, logits_NC, CLASSES)


def make_row(
    encoder: str, recipe: str, skill: float, seeds: tuple[int, ...] = (0, 1), **more: object
) -> RowPredictions:
    """A row of the same test patients as every other."""
    val = {seed: make_predictions(skill, seed, "val") for seed in seeds}
    test = {seed: make_predictions(skill, seed, "tests") for seed in seeds}
    return RowPredictions(encoder, recipe, val, test, **more)  # type: ignore[arg-type]


def make_rows() -> list[RowPredictions]:
    """Two sound rows, a collapsed one and two floors."""
    return [
        make_row("multi", "linear", 2.0, trainable_parameters=771),
        make_row("multi", "mlp", 1.9),
        make_row("single", "linear", -1.0, notes=("input override: size [32, 192, 192]",)),
        make_row("untrained", "linear", 0.15, is_floor=True),
        make_row("floor", "majority", -2.0, (0,), is_floor=True, is_constant=True),
    ]


@pytest.fixture
def rows() -> Callable[[], list[RowPredictions]]:
    return make_rows


@pytest.fixture(scope="session")
def leaderboard() -> Leaderboard:
    return build_leaderboard(make_rows())


@pytest.fixture(scope="session")
def row() -> Callable[..., RowPredictions]:
    return make_row


def make_curves(name: str) -> TrainingCurves:
    """Histories of gradient descent on a least-squares problem, one per seed."""
    histories = {}
    for seed in range(2):
        rng = np.random.default_rng(seed)
        x_ND, w_D = rng.normal(size=(60, 4)), np.zeros(4)
        y_N = x_ND @ np.array([1.0, -2.0, 0.5, 0.0]) + rng.normal(size=60)
        rows = []
        for epoch in range(1, 11):
            w_D -= 0.1 * x_ND[:40].T @ (x_ND[:40] @ w_D - y_N[:40]) / 40
            right = ((x_ND[40:] @ w_D > 0) == (y_N[40:] > 0)).mean()
            error_N = (x_ND @ w_D - y_N) ** 2
            rows.append({
                "epoch": epoch, "learning_rate": 0.1, "train_loss": float(error_N[:40].mean()),
                "val_loss": float(error_N[40:].mean()), "val_balanced_accuracy": float(right),
            })  # fmt: skip
        histories[f"seed {seed}"] = rows
    return TrainingCurves(name, "learning_rate 0.1", histories, {"seed 0": 4, "seed 1": 10})


@pytest.fixture(scope="session")
def curves() -> tuple[TrainingCurves, ...]:
    return make_curves("multi / linear"), make_curves("single / linear")


@pytest.fixture(scope="session")
def report_data(leaderboard: Leaderboard, curves: tuple[TrainingCurves, ...]) -> ReportData:
    errors = pd.DataFrame({
        "patient_id": ["tests-0001", "tests-0002"], "sample_id": ["tests-0001/0", "tests-0002/1"],
        "relative": ["/scan/maestro/tests-0001/tests-0001_l.dcm", "scan/cirrus/tests-0002/oct.nii.gz"],
        "exception": ["InputError", "StorageError"],
        "message": ["/home/lab/scan/maestro/tests-0001/tests-0001_l.dcm: truncated, patient tests-0001.",
                    "s3://eye/scan/cirrus/tests-0002/oct.nii.gz: size 12, expected 900."],
    })  # fmt: skip
    receipt = {
        "file_sha256": "0f" * 32,
        "tensors_matched": 152,
        "tensors_total": 152,
        "missing": [],
        "inferred": {"depth": 12, "grid": [16, 24, 24]},
        "distance_from_random": {"blocks.0": 1.2345678},
    }
    spec = {"size": [64, 384, 384], "normalisation": {"kind": "zscore"}}
    counts = pd.DataFrame({"class": CLASSES, "train": [9, 8, 7], "test": [30, 31, 29]})
    return ReportData(
        study="oct <diabetes>",
        leaderboard=leaderboard,
        flow=DataFlow(1000, 950, 2, {"no file": 30, "retinal_oct is FALSE": 18}),
        encoders=(
            EncoderReport("multi", False, receipt, spec, ("size",)),
            EncoderReport("untrained", True, receipt, spec),
        ),
        counts=(Table.from_frame("Patients by class", counts),),
        curves=curves,
        quarantined=keyed_rows(errors, b"k" * 32),
        looks=({"number": 1, "purpose": "final scores", "num_patients": 90},),
        settings_yaml="name: oct\nclasses: ['<script>']\n",
        provenance={"git_sha": "abc123", "environment": {"python": "3.11"}},
        rebuild="vitreous report runs/oct",
    )


@pytest.fixture(scope="session")
def full_report_data(report_data: ReportData) -> ReportData:
    """The same with everything a finished run adds: evidence, methods, checklists, provenance."""
    rows = make_rows()
    site_of = {name: f"site {int(name[6:10]) % 2}" for name in rows[0].test[0].sample_id_N.tolist()}
    evidence = gather_evidence(rows, report_data.leaderboard, {"clinical_site": site_of})
    facts = RunFacts(
        "csv", "splits came from the column split", "grade", {"multi": False, "single": False},
        {"linear": "linear_probe", "mlp": "mlp_probe"}, eligibility="oct is True", balancing=("linear: class weights",),
        split_patients={"train": 24, "val": 90, "test": 90}, domains=("clinical_site",), gate=True,
    )  # fmt: skip
    provenance = {
        "starts": [{"code": {"git_sha": "abc123", "uncommitted_changes": False},
                    "environment": {"python": "3.11", "device": "cpu", "precision": "fp32",
                                    "packages": {"vitreous": "0.1.0", "torch": "2", "numpy": "2"}}}],
    }  # fmt: skip
    methods = methods_paragraphs(
        facts, report_data.leaderboard, rows_in=1000, encoded=950, quarantined=2, excluded=48, num_looks=1,
        evidence=evidence, provenance=provenance,
    )  # fmt: skip
    matrix = heat_map_svg([[evidence[0].targets[0].average_precision]], ["a"], ["b"], title="by site",
                          row_label="trained on", column_label="tested on")  # fmt: skip
    data = replace(
        report_data, evidence=evidence, figures=draw_evidence(evidence, report_data.leaderboard), facts=facts,
        tables={table.name: table for table in evidence_tables(evidence, report_data.leaderboard)}, methods=methods,
        matrices=(("by site", matrix),), provenance=provenance,
        sources=tuple(
            RowSource(row.name, tuple((f"seed {k}", f"{row.encoder}/{row.recipe}/seed{k}", "0f0f") for k in row.test),
                      f"receipts/{row.encoder}.json")
            for row in rows
        ),
    )  # fmt: skip
    return replace(data, checklists=fill_checklists(checklist_answers(data)))
