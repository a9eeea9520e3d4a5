"""report.html: whole, offline, escaped, without ids; read by an HTML parser and, where there is one, a browser."""

import base64
import hashlib
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pandas as pd
import pytest

from vitreous.core.errors import RunError
from vitreous.core.finding import Finding
from vitreous.core.privacy import keyed_id
from vitreous.reports.quarantine import keyed_rows
from vitreous.reports.report import DataFlow, Table, flatten, render_report, report_html

VOID = {"meta", "link", "br", "hr", "img", "input", "path", "use", "rect", "wbr"}
KEY = b"k" * 32


class Page(HTMLParser):
    """Tags, ids, links and text; notices tags that are not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.unbalanced: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data

    def find(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def html(report_data):
    return report_html(report_data)


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def test_it_is_one_small_file_that_loads_nothing(html, page, report_data, tmp_path):
    render_report(report_data, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text() == html
    assert len(html.encode()) < 1_000_000
    addresses = [
        value
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href", "action", "poster", "srcset")
    ]
    requests = [value for tag, given in page.tags if tag != "a" for value in map(given.get, ("src", "href")) if value]
    assert all(address.startswith("#") or address == "data:," for address in requests)
    assert not any(re.match(r"[a-z]+:|/", address) for address in addresses if address != "data:,")
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    assert not re.search(r"https?://(?!www\.w3\.org/)", html)  # the namespaces of SVG are names, not requests


def test_the_policy_forbids_requests_and_names_the_script_by_its_hash(html, page):
    (policy,) = [meta["content"] for meta in page.find("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none';")
    script = re.search(r"<script>(.*?)</script>", html, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_it_is_well_formed_and_its_anchors_lead_somewhere(page):
    assert page.unbalanced == []
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert [name for name, count in Counter(ids).items() if count > 1] == []
    anchors = {attributes["href"][1:] for attributes in page.find("a") if attributes["href"].startswith("#")}
    assert anchors <= set(ids)
    assert {"answer", "leaderboard", "confusion", "training", "data", "encoders", "settings"} <= anchors


def test_tables_have_captions_and_scoped_heads_and_headings_descend(html, page):
    assert len(page.find("table")) == len(page.find("caption")) >= 6
    assert all(attributes.get("scope") in ("row", "col") for attributes in page.find("th"))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels))
    assert page.find("html")[0]["lang"] == "en"
    assert all(svg["role"] == "img" for svg in page.find("svg"))
    scrolled = [attributes for attributes in page.find("div") if attributes.get("class") == "scroll"]
    assert all(attributes["tabindex"] == "0" and attributes["aria-label"] for attributes in scrolled)


def test_the_answer_comes_first_in_words(html, page, leaderboard):
    best = leaderboard.row(leaderboard.best)
    answer = f"{best.name} has the highest balanced accuracy, {best.test['balanced_accuracy'].value:.3f}"
    assert page.text.index(answer) < page.text.index("Leaderboard by balanced accuracy")
    for said in (
        "single / linear predicts 'healthy' for all 90 test participants in all 2 seeds: a collapsed head",
        "have identical predictions",
        "It clears the floors untrained / linear and floor / majority.",
        "input override: size [32, 192, 192]",
    ):
        assert said in page.text, said


def test_everything_behind_the_answer_is_there(page):
    for shown in (
        "1,000",
        "950",
        "retinal_oct is FALSE",
        "152",
        "0f0f0f",
        "blocks.0",
        "input set by the study: size",
        "final scores",
        "abc123",
        "vitreous report runs/oct",
        "learning_rate 0.1",
        "one seed has no spread",
    ):
        assert shown in page.text, shown
    assert len(page.find("svg")) == 1 + 2 * 2  # the forest, and loss and metric of two rows
    assert len([one for one in page.find("table") if one.get("class") == "matrix"]) == 5


def test_names_are_escaped(html, page):
    assert "<b>early" not in html
    assert "early <b>" in page.text
    assert "classes: ['<script>']" in page.text
    assert len(page.find("script")) == 1
    assert "oct &lt;diabetes&gt;" in html


def test_no_patient_id_stands_in_the_report(html, report_data):
    assert "tests-0" not in html
    assert "/home/lab" not in html
    assert keyed_id("tests-0001", KEY) in html
    named = replace(report_data, findings=(Finding("x", "info", "about tests-0001", ""),))
    assert "tests-0001" in report_html(named)  # the check above can fail


def test_the_same_data_give_the_same_bytes(html, report_data):
    assert report_html(report_data) == html


def test_a_banner_stands_over_every_number(report_data):
    text = "No patient ids: every volume was taken for a patient of its own."
    html = report_html(replace(report_data, banners=(text,)))
    for section in ("answer", "leaderboard", "classes", "confusion", "data"):
        part = html[html.index(f'<section id="{section}">') :]
        assert f'<p class="banner">{text}</p>' in part[: part.index("</section>")]


def test_little_data_still_makes_a_report(report_data):
    bare = replace(report_data, encoders=(), counts=(), curves=(), quarantined=(), looks=(), provenance=None,
                   rebuild="", flow=DataFlow(10, 10, 0, {}))  # fmt: skip
    page = Page(report_html(bare))
    assert page.unbalanced == []
    assert "None: every file could be read." in page.text
    assert "The ledger holds no look at test." in page.text
    assert not any(attributes["href"] == "#training" for attributes in page.find("a"))


def test_rows_that_do_not_add_up_stop_the_report():
    assert DataFlow(10, 7, 1, {"a": 2}).encoded == 7
    with pytest.raises(RunError, match=r"10 rows came in, but 7 encoded \+ 1 quarantined \+ 1 excluded make 9: 1 are"):
        DataFlow(10, 7, 1, {"a": 1})


def test_messages_lose_paths_and_ids():
    rows = pd.DataFrame({
        "patient_id": ["1001", "7"], "sample_id": ["abc", "1007/x"], "relative": ["a/1001/1001_x.dcm", "/b/1007.npy"],
        "exception": ["InputError"] * 2,
        "message": ["'/data/a/1001/1001_x.dcm': 1001 rows of patient 1001, 11001 bytes.", "1007.npy: 7 of 17 NaN."],
    })  # fmt: skip
    first, second = keyed_rows(rows, KEY)
    patient, sample = keyed_id("1001", KEY), keyed_id("abc", KEY)
    assert first.message == f"'file {sample}': {patient} rows of patient {patient}, 11001 bytes."
    assert (first.patient, first.file) == (patient, sample)
    assert second.message == f"file {keyed_id('1007/x', KEY)}: {keyed_id('7', KEY)} of 17 NaN."
    with pytest.raises(KeyError, match="relative"):
        keyed_rows(rows.drop(columns="relative"), KEY)


def test_long_lists_say_what_they_leave_out(report_data):
    many = report_data.quarantined * 150
    text = report_html(replace(report_data, quarantined=many))
    assert "Listed are the first 200 of 300." in text
    assert "300 files could not be used" in text


def test_a_report_that_would_be_too_large_shows_less_and_says_so(report_data, monkeypatch):
    assert "figures are left out" not in report_html(report_data)
    monkeypatch.setattr("vitreous.reports.report.MAX_BYTES", 90_000)
    monkeypatch.setattr("vitreous.reports.report._ROOM", ((300, 10**6), (3, 5_000)))
    many = replace(report_data, curves=report_data.curves * 9, settings_yaml="x" * 5)
    text = report_html(many)
    assert len(text.encode()) < 90_000
    assert "Shown are the curves of 1 of 18 rows; the run directory has history.csv of each." in text
    assert "figures are left out to keep this file small" in text
    assert "Shown are the best 3 of 5 rows; leaderboard.csv has all." in text
    monkeypatch.setattr("vitreous.reports.report.MAX_BYTES", 1_000)
    with pytest.raises(RunError, match="please report this"):
        report_html(report_data)


def test_tables_and_flattening_take_numpy_values():
    table = Table.from_frame("t", pd.DataFrame({"a": [1], "b": [0.5], "c": [None]}))
    assert table.rows == ((1, 0.5, "None"),)
    assert flatten({"a": {}, "b": [], "c": {"d": 1.23456789, "e": (1, 2), "f": [{"g": 1}]}}) == [
        ("a", "none"), ("b", "none"), ("c.d", "1.23457"), ("c.e", "1, 2"), ("c.f.0.g", "1"),
    ]  # fmt: skip
