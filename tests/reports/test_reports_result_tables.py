"""Tables as CSV and LaTeX, and small plots; oracles: csv and XML parsers, and positions worked out by hand."""

import csv
import io
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest

from vitreous.core.undefined import Undefined
from vitreous.evidence.intervals import Interval
from vitreous.reports.line_plots import COLOURS, Curve, Plot, plot_svg, ticks
from vitreous.reports.result_tables import Column, ResultTable, latex_escaped, table_csv, table_latex, write_tables

FEW = Undefined("5 patients; 10 are needed")
TABLE = ResultTable(
    "some_table", "Shares of 50 % & more",
    (Column("row", "encoder_1"), Column("n", "patients", "count"), Column("auroc", "AUROC", "interval"),
     Column("t", "threshold", "number")),
    (("a_b", 1200, Interval(0.5, 0.25, 0.75, 100, 0), 0.125), ("<c>", FEW, Interval(0.5, FEW, FEW, 100, 0), None)),
)  # fmt: skip


def test_a_csv_has_bounds_as_columns_and_says_why_cells_are_empty():
    first, second = csv.DictReader(io.StringIO(table_csv(TABLE)))
    assert first == {"row": "a_b", "n": "1200", "auroc": "0.500000", "auroc_low": "0.250000", "auroc_high": "0.750000",
                     "t": "0.125000", "undefined": "", "schema_version": "1"}  # fmt: skip
    assert (second["n"], second["auroc"], second["auroc_low"], second["t"]) == ("", "0.500000", "", "")
    assert second["undefined"] == "n, auroc_low, auroc_high: 5 patients; 10 are needed"


def test_latex_has_booktabs_notes_and_no_bare_specials():
    text = table_latex(TABLE)
    assert re.findall(r"\\(\w+rule)", text) == ["toprule", "midrule", "bottomrule"]
    assert r"a\_b & 1,200 & 0.500 [0.250, 0.750] & 0.125 \\" in text
    assert r"\textless{}c\textgreater{} & \textsuperscript{1} & 0.500\textsuperscript{1} &  \\" in text
    assert r"\textsuperscript{1}\,5 patients; 10 are needed." in text
    assert r"\caption{Shares of 50 \% \& more}" in text
    assert latex_escaped(r"a\b~{x}^2 #1 $ | ≥") == (
        r"a\textbackslash{}b\textasciitilde{}\{x\}\textasciicircum{}2 \#1 \$ \textbar{} $\geq$"
    )


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex on PATH")
def test_latex_compiles(tmp_path):
    body = table_latex(TABLE)
    text = rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{body}\end{{document}}"
    (tmp_path / "t.tex").write_text(text)
    subprocess.run(["pdflatex", "-halt-on-error", "t.tex"], cwd=tmp_path, check=True, capture_output=True)


def test_points_of_curves_are_not_printed(tmp_path):
    write_tables([TABLE, ResultTable("points", "", (Column("x", "x"),), (), in_latex=False)], tmp_path)
    names = sorted(path.name for path in (tmp_path / "tables").iterdir())
    assert names == ["points.csv", "some_table.csv", "some_table.tex"]


def test_rows_and_columns_must_fit():
    with pytest.raises(ValueError, match=r"'t' has 1 columns, but rows of \[2\]"):
        ResultTable("t", "", (Column("a", "a"),), (("x", "y"),))
    with pytest.raises(ValueError, match="holds an interval, but is of numbers"):
        table_csv(ResultTable("t", "", (Column("a", "a", "number"),), ((Interval(0.5, 0, 1, 1, 0),),)))


def test_a_plot_is_wellformed_named_and_in_its_place():
    curve = Curve("a <b>", [0.0, 0.5, 1.0], [0.0, None, 1.0], [0.0, 0.1, 0.9], [0.1, 0.2, 1.0])
    plot = Plot("ROC & more", "two points", "x", "y", (curve, Curve("all", [0, 1], [1, 1], quiet=True)))
    svg = plot_svg(plot)
    root = ET.fromstring(svg)
    names = {node.get("id"): node.text for node in root.iter() if node.get("id")}
    assert [names[name] for name in root.get("aria-labelledby").split()] == ["ROC & more", "two points"]
    texts = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a <b>", "all", "x", "y", "0.6"} <= set(texts)
    assert 'd="M44.0 224.0' in svg or 'd="M44 224' in svg
    assert svg == plot_svg(
        Plot("ROC & more", "two points", "x", "y", (curve, Curve("all", [0, 1], [1, 1], quiet=True)))
    )
    with pytest.raises(ValueError, match="must have an extent"):
        plot_svg(Plot("t", "", "x", "y", (), x_range=(1.0, 1.0)))


def test_steps_reach_back_and_marks_have_whiskers():
    steps = plot_svg(Plot("t", "", "x", "y", (Curve("s", [0.0, 1.0], [0.0, 1.0], steps=True),)))
    assert "M44 224L44 12L330 12" in steps
    marked = plot_svg(Plot("t", "", "x", "y", (Curve("m", [0.5], [0.5], [0.25], [0.75], marked=True),)))
    assert marked.count("<circle") == 2, "one of the point, one in the key"
    assert "M187.0 171.0V65.0" in marked


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-0.1, 0.35), (0, 7), (1e-3, 2e-3), (0, 12345)])
def test_ticks_are_few_even_and_inside(low, high):
    found = ticks(low, high)
    steps = {round((b - a) / (high - low), 9) for a, b in pairwise(found)}
    assert 3 <= len(found) <= 7
    assert len(steps) == 1
    assert low - 1e-9 <= found[0]
    assert found[-1] <= high + 1e-9


def test_colours_stand_out_on_white():
    def luminance(colour):
        parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    assert all(1.05 / (luminance(colour) + 0.05) >= 4.5 for colour in COLOURS)
