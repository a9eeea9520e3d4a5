"""A transfer's figures, tables and report, from predictions that are computed, not made up."""

import csv
import io
import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console
from sklearn.metrics import accuracy_score

from vitreous.core.predictions import Predictions
from vitreous.core.streams import numpy_stream
from vitreous.core.undefined import Undefined
from vitreous.evidence.comparison import compare_with_best
from vitreous.evidence.intervals import Interval, resample_weights
from vitreous.evidence.transfer import ModelPredictions
from vitreous.reports.leaderboard_tables import Footnotes
from vitreous.reports.quarantine import QuarantinedRow
from vitreous.reports.report import DataFlow
from vitreous.reports.transfer import TransferPredictions, build_target
from vitreous.reports.transfer_figures import (
    class_f1_svg,
    cohort_heat_map_svg,
    gap_against_source_svg,
    heat_map_svg,
)
from vitreous.reports.transfer_report import TransferCohort, TransferReport, draw_transfer, transfer_html
from vitreous.reports.transfer_tables import (
    gap_csv,
    main_table,
    metric_title,
    render_transfer,
    scores_csv,
    shifts,
    transfer_csv,
    transfer_markdown,
)

SVG = "{http://www.w3.org/2000/svg}"
CLASSES = ("healthy", "early <b>", "on | insulin")


def made(cohort: str, patients: int, skill: float, seed: int, mix: tuple[float, ...]) -> Predictions:
    """Two samples a patient; the same patients for every skill and seed."""
    y_P = np.random.default_rng([9, len(cohort)]).choice(3, patients, p=mix)
    ids_N = np.repeat([f"{cohort}-{n:04d}" for n in range(patients)], 2)
    y_N = np.repeat(y_P, 2)
    logits_NC = np.random.default_rng([seed, int(100 * abs(skill)), len(cohort)]).normal(size=(2 * patients, 3))
    logits_NC = logits_NC + skill * np.eye(3)[y_N] if skill >= 0 else np.tile([2.0, 1.0, 0.0], (2 * patients, 1))
    return Predictions(np.array([f"{one}/{n % 2}" for n, one in enumerate(ids_N)]), ids_N, y_N, logits_NC, CLASSES)


def row(encoder: str, source: float, target: float, cohort: str, mix: tuple[float, ...], seeds: int = 2, **more: bool):
    models = tuple(
        ModelPredictions(
            seed,
            made("val", 60, source, seed, (0.4, 0.3, 0.3)),
            made("source", 90, source, seed, (0.4, 0.3, 0.3)),
            made(cohort, 80, target, seed, mix),
        )
        for seed in range(seeds)
    )
    return TransferPredictions(encoder, "linear", models, **more)


def rows(cohort: str, mix: tuple[float, ...]) -> list[TransferPredictions]:
    return [
        row("robust", 2.0, 1.9, cohort, mix),
        row("brittle", 2.2, 0.4, cohort, mix),
        row("floor", -1.0, -1.0, cohort, mix, seeds=1, is_floor=True, is_constant=True),
    ]


@pytest.fixture(scope="module")
def target():
    return build_target("clinic", rows("clinic", (0.2, 0.3, 0.5)), num_resamples=400, ordered=True)


@pytest.fixture(scope="module")
def lacking():
    """A cohort without the third class."""
    return build_target("without", rows("without", (0.5, 0.5, 0.0)), num_resamples=400)


@pytest.fixture(scope="module")
def report(target, lacking):
    flow = DataFlow(170, 160, 2, {"no file": 8})
    bad = QuarantinedRow(patient="0123456789", file="abc", exception="InputError", message="cut <short>")
    return TransferReport(
        "dr <study>",
        (TransferCohort(target, flow, "classes: ['<script>']\n", (bad,)), TransferCohort(lacking, flow, "a: b\n")),
        draw_transfer([target, lacking]),
        ({"number": 2, "purpose": "transfer to clinic", "num_patients": 80},),
    )


def test_rows_are_ordered_and_compared_on_both_numbers(target):
    assert [one.encoder for one in target.rows] == ["robust", "brittle", "floor"]
    assert (target.best, target.least) == ("robust / linear", "robust / linear")
    robust, brittle, floor = target.rows
    assert robust.letters == "a"
    assert "a" not in brittle.letters
    assert robust.gap_letters == "a"
    assert "a" not in brittle.gap_letters
    assert floor.gap_letters == "", "a constant row has nothing to lose"
    assert brittle.gap_to_least.value == pytest.approx(
        brittle.gaps["balanced_accuracy"].gap.value - robust.gaps["balanced_accuracy"].gap.value
    )
    assert brittle.gap_to_least.low > 0


def test_numbers_are_those_of_the_evidence(target):
    made_rows = rows("clinic", (0.2, 0.3, 0.5))
    by_name = {one.name: [model.target.per_patient() for model in one.models] for one in made_rows}
    ids_N = next(iter(by_name.values()))[0].patient_id_N
    weights_RN = resample_weights(ids_N, num_resamples=400, rng=numpy_stream(0, "transfer", "clinic"))
    expected = compare_with_best(by_name, "balanced_accuracy", weights_RN)
    for one in target.rows:
        assert one.letters == expected.letters[one.name]
        assert one.to_best == expected.difference_to_best(one.name)


def test_wrong_rows_are_refused():
    with pytest.raises(ValueError, match="at least one row"):
        build_target("x", [])
    two = rows("clinic", (0.2, 0.3, 0.5))[:1] * 2
    with pytest.raises(ValueError, match="the same name"):
        build_target("x", two)
    other = [*rows("clinic", (0.2, 0.3, 0.5))[:1], row("b", 1.0, 1.0, "elsewhere", (0.4, 0.3, 0.3))]
    with pytest.raises(ValueError, match="not about the same rows"):
        build_target("x", other)


def test_csvs_hold_every_metric_and_say_what_is_undefined(target, lacking):
    scores = list(csv.DictReader(scores_csv(target).splitlines()))
    assert len(scores) == 3 * (6 + 4 * 3 + 1)
    found = next(one for one in scores if one["encoder"] == "robust" and one["metric"] == "auroc")
    expected = target.rows[0].gaps["auroc"]
    assert float(found["target"]) == pytest.approx(expected.target.value, abs=1e-6)
    assert float(found["source_low"]) == pytest.approx(expected.source.low, abs=1e-6)
    gaps = list(csv.DictReader(gap_csv(lacking).splitlines()))
    undefined = next(one for one in gaps if one["encoder"] == "robust" and one["metric"] == "balanced_accuracy")
    assert undefined["gap"] == ""
    assert "means over different classes: 'on | insulin' only in the source" in undefined["undefined"]
    both = list(csv.DictReader(transfer_csv([target, lacking]).splitlines()))
    assert [one["cohort"] for one in both] == ["clinic"] * 3 + ["without"] * 3
    assert both[0]["quadratic_weighted_kappa_gap"] != ""
    assert both[3]["quadratic_weighted_kappa_gap"] == "", "the second was not asked for grades"
    assert {one["schema_version"] for one in both} == {"1"}


def test_shifts_are_plain_json_with_parts_that_add_up(target, lacking):
    told = json.loads(json.dumps(shifts(target), allow_nan=False))
    parts = told["rows"]["robust / linear"]["prevalence"]["accuracy"]
    assert parts["gap"]["value"] == pytest.approx(parts["due_to_mix"]["value"] + parts["gap_at_source_mix"]["value"])
    calibration = told["rows"]["robust / linear"]["calibration"]
    assert calibration["num_fit_patients"] + calibration["num_scored_patients"] == 80
    assert len(calibration["target_temperatures"]) == 2
    assert sum(one["target"] for one in told["prevalence"].values()) == 80
    missing = json.loads(json.dumps(shifts(lacking), allow_nan=False))
    value = missing["rows"]["robust / linear"]["prevalence"]["accuracy"]["gap_at_source_mix"]["value"]
    assert "does not occur in the target" in value["undefined"]


def test_markdown_and_terminal_show_rows_classes_and_findings(target, lacking):
    text = transfer_markdown([target, lacking])
    assert "| robust / linear |" in text
    assert "on \\| insulin" in text
    assert "The cohort without has no patient of 1 class(es)." in text
    head, body = main_table(target, Footnotes())
    assert all(len(line) == len(head) for line in body)
    console = Console(width=110, record=True, file=io.StringIO())
    console.print(render_transfer(lacking))
    shown = console.export_text()
    assert "robust / linear" in shown
    assert "warning: The cohort without" in shown


def test_samples_may_be_scored_by_themselves():
    """Oracle: scikit-learn on the samples; patients stay the unit that is drawn."""
    made_rows = rows("clinic", (0.2, 0.3, 0.5))[:1]
    alone = build_target("clinic", made_rows, num_resamples=200, aggregate="none")
    assert (alone.num_source, alone.num_target, alone.counted) == (90, 80, "samples")
    assert (sum(alone.source_counts_C), sum(alone.target_counts_C)) == (180, 160)
    models = made_rows[0].models
    expected = np.mean([accuracy_score(one.target.y_true_N, one.target.y_pred_N) for one in models])
    assert alone.rows[0].gaps["accuracy"].target.value == pytest.approx(expected)
    calibration = alone.rows[0].calibration
    assert calibration.num_fit_patients + calibration.num_scored_patients == 80
    assert "each by itself" in transfer_html(
        TransferReport("x", (TransferCohort(alone, DataFlow(1, 1, 0, {}), ""),), draw_transfer([alone]))
    )


def test_metric_titles():
    assert metric_title("auroc_healthy", CLASSES) == "AUROC of healthy"
    assert metric_title("balanced_accuracy", CLASSES) == "balanced accuracy"
    with pytest.raises(ValueError, match="no such metric: 'dice'"):
        metric_title("dice", CLASSES)


def figures(target, lacking):
    return {
        "cohorts": lambda: cohort_heat_map_svg([target, lacking]),
        "scatter": lambda: gap_against_source_svg([target, lacking]),
        "bars": lambda: class_f1_svg("robust / linear", [target, lacking]),
    }


@pytest.mark.parametrize("name", ["cohorts", "scatter", "bars"])
def test_figures_are_valid_named_load_nothing_and_repeat(target, lacking, name):
    draw = figures(target, lacking)[name]
    text = draw()
    assert text == draw()
    root = ET.fromstring(text)
    assert root.get("role") == "img"
    named = {part.get("id"): part.text for part in root if part.tag in (f"{SVG}title", f"{SVG}desc")}
    assert all(named[label] for label in root.get("aria-labelledby").split())
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', text)) <= set(ids)
    assert not re.search(r'(?:href|src)="(?!#)', text)


def described(text: str) -> str:
    return ET.fromstring(text).find(f"{SVG}desc").text


def test_figures_say_their_numbers_and_what_is_missing(target, lacking):
    gap = target.rows[0].gaps["balanced_accuracy"].gap
    told = described(gap_against_source_svg([target, lacking]))
    assert f"gap {gap.value:.3f}, {gap.low:.3f} to {gap.high:.3f}" in told
    assert "robust / linear on without: undefined, means over different classes" in told
    bars = described(class_f1_svg("robust / linear", [target, lacking]))
    assert "on | insulin on without: undefined, the class 'on | insulin' does not occur" in bars
    source = target.rows[0].gaps["f1_healthy"].source
    assert f"healthy on source: {source.value:.3f}" in bars
    matrix = described(cohort_heat_map_svg([target, lacking]))
    assert f"brittle / linear, clinic: {target.rows[1].gaps['balanced_accuracy'].target.value:.3f}" in matrix


def test_a_heat_map_needs_a_full_matrix():
    cell = Interval(0.5, 0.4, 0.6, 100, 0)
    drawn = heat_map_svg([[cell, Undefined("never")]], ["a"], ["x", "y"], title="t", row_label="r", column_label="c")
    assert described(drawn) == "a, x: 0.500 0.40–0.60; a, y: –"
    with pytest.raises(ValueError, match=r"2 rows of 2, one or more; got rows of \[2, 1\]"):
        heat_map_svg([[cell, cell], [cell]], ["a", "b"], ["x", "y"], title="t", row_label="r", column_label="c")
    for draw in (cohort_heat_map_svg, gap_against_source_svg):
        with pytest.raises(ValueError, match="no target"):
            draw([])
    with pytest.raises(ValueError, match="no target has the row 'nobody'"):
        class_f1_svg("nobody", [])


class Checker(HTMLParser):
    """Tags must nest, ids must be unique, nothing may be loaded."""

    VOID = frozenset({"meta", "link", "br", "img", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if values.get("id"):
            self.ids.append(str(values["id"]))
        self.links += [str(value) for name, value in attrs if name in ("href", "src", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_is_whole_offline_and_names_nobody(report):
    text = transfer_html(report)
    assert text == transfer_html(report)
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    assert len(checker.ids) == len(set(checker.ids))
    assert all(link.startswith(("#", "data:")) for link in checker.links)
    assert {link[1:] for link in checker.links if link.startswith("#")} <= set(checker.ids)
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "clinic-0001" not in text
    assert "dr &lt;study&gt;" in text
    assert "cut &lt;short&gt;" in text
    assert "transfer to clinic" in text
    with pytest.raises(ValueError, match="needs a cohort"):
        transfer_html(TransferReport("x", (), report.figures))
