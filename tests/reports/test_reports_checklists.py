"""Checklists and methods: every item stands once, what is filled in comes from the run; oracle: the guidelines."""

import csv
from collections import Counter
from dataclasses import replace

import pytest

from vitreous.reports.checklist_answers import checklist_answers
from vitreous.reports.checklists import FOR_THE_AUTHOR, fill_checklists, write_checklists
from vitreous.reports.report import report_html

COUNTS = {"TRIPOD+AI": 52, "CLAIM 2024": 44, "STARD-AI": 48}


def test_every_item_of_the_guidelines_stands_once(full_report_data):
    items = full_report_data.checklists
    assert Counter(one.guideline for one in items) == COUNTS
    assert len({(one.guideline, one.item) for one in items}) == sum(COUNTS.values())
    assert {one.item for one in items if one.guideline == "CLAIM 2024"} == {str(n) for n in range(1, 45)}
    numbers = {int("".join(filter(str.isdigit, one.item))) for one in items if one.guideline == "TRIPOD+AI"}
    assert numbers == set(range(1, 28))


def test_what_no_run_can_know_is_left_to_the_author(full_report_data):
    by_item = {(one.guideline, one.item): one.answer for one in full_report_data.checklists}
    for key in (("TRIPOD+AI", "17"), ("TRIPOD+AI", "18a"), ("STARD-AI", "6"), ("CLAIM 2024", "11")):
        assert by_item[key] is None, key
    assert "48 excluded" in by_item["STARD-AI", "24"].text
    assert "bootstrap resamples" in by_item["CLAIM 2024", "29"].text
    assert "linear: class weights" in by_item["TRIPOD+AI", "13"].text


def test_a_run_without_evidence_fills_in_less(full_report_data):
    bare = replace(full_report_data, evidence=(), facts=None, methods=(), counts=(), encoders=(), provenance=None)
    fewer = fill_checklists(checklist_answers(bare))
    filled = [sum(one.answer is not None for one in items) for items in (full_report_data.checklists, fewer)]
    assert filled[1] < filled[0]
    with pytest.raises(KeyError):
        fill_checklists({})


def test_files_say_which_items_are_for_the_author(full_report_data, tmp_path):
    write_checklists(full_report_data.checklists, tmp_path)
    with (tmp_path / "checklist.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == sum(COUNTS.values())
    assert {line["status"] for line in lines} == {"from the run", FOR_THE_AUTHOR}
    assert all(bool(line["evidence"]) == (line["status"] == "from the run") for line in lines)
    html = report_html(full_report_data)
    assert all(f'id="{line["where"].partition("#")[2]}"' in html for line in lines if line["where"])
    text = (tmp_path / "checklist.md").read_text()
    assert text.count(f"**{FOR_THE_AUTHOR}**") == sum(line["status"] == FOR_THE_AUTHOR for line in lines)


def test_methods_say_what_was_done_and_nothing_else(full_report_data):
    data, models, statistics, further, software = full_report_data.methods
    assert "Of 1,000 volumes, 950 were used; 2 could not be read, 48 left out by rule." in data
    assert "(patients: 24 in train, 90 in val, 90 in test)" in data
    assert "2 pretrained encoders (multi and single)" in models
    assert "Test labels were opened once" in models
    assert "Intervals (95%) come from 2,000 bootstrap resamples of 90 test patients" in statistics
    assert "All 10 pairs of rows" in statistics
    assert "DeLong's test and McNemar's test" in statistics
    assert "Subgroups by clinical_site" in further
    assert "With folds" not in further
    assert "commit abc123, Python 3.11" in software


def test_the_whole_report_holds_every_part_and_no_patient(full_report_data):
    html = report_html(full_report_data)
    for section in ("curves", "calibration", "operating", "decision", "subgroups", "generalisation", "methods",
                    "checklists", "provenance"):  # fmt: skip
        assert html.count(f'<section id="{section}">') == 1, section
    assert "tests-0" not in html
    assert 'href="multi/linear/seed0/test_preds.parquet"' in html
    assert html == report_html(full_report_data)
    assert len(html.encode()) < 1_000_000
