"""Figures are valid, accessible, self-contained SVG, and the same bytes each time."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from vitreous.reports.figures import confusion_matrix_svg, forest_plot_svg
from vitreous.reports.leaderboard import build_leaderboard
from vitreous.reports.training_figures import training_plots

SVG = "{http://www.w3.org/2000/svg}"
NAMES = ("healthy", "a <b> & $x$", "oral_medication_and_or_non_insulin_injectable_medication_controlled")


@pytest.fixture
def drawn(leaderboard, curves):
    return {
        "confusion": lambda: confusion_matrix_svg([[5, 1, 0], [2, 3, 0], [0, 0, 0]], NAMES, "of one row"),
        "curves": lambda: training_plots(curves[0].histories, curves[0].best_epochs, "one row")[0],
        "forest": lambda: forest_plot_svg(leaderboard),
    }


@pytest.mark.parametrize("name", ["confusion", "curves", "forest"])
def test_svg_is_valid_named_and_loads_nothing(drawn, name):
    text = drawn[name]()
    root = ET.fromstring(text)
    assert root.tag == f"{SVG}svg"
    assert root.get("role") == "img"
    named = {part.get("id"): part.text for part in root if part.tag in (f"{SVG}title", f"{SVG}desc")}
    assert all(named[label] for label in root.get("aria-labelledby").split())
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    references = re.findall(r'(?:href="|url\()#([^")]+)', text)
    assert set(references) <= set(ids)
    assert not re.search(r'(?:href|src)="(?!#)', text)
    assert "<style" not in text
    assert "<image" not in text
    assert not re.search(r"\d{4}-\d\d-\d\dT", text)  # no date


@pytest.mark.parametrize("name", ["confusion", "curves", "forest"])
def test_svg_is_the_same_bytes_each_time(drawn, name):
    assert drawn[name]() == drawn[name]()


def test_two_figures_on_one_page_share_no_id(drawn):
    first = set(re.findall(r'\bid="([^"]+)"', confusion_matrix_svg([[5, 1], [2, 3]], ("a", "b"), "row one")))
    second = set(re.findall(r'\bid="([^"]+)"', confusion_matrix_svg([[5, 1], [2, 3]], ("a", "b"), "row two")))
    assert not first & second


def test_the_confusion_matrix_shows_counts_shares_and_says_them():
    root = ET.fromstring(confusion_matrix_svg([[5, 1, 0], [2, 6, 0], [0, 0, 0]], NAMES))
    texts = [part.text for part in root.iter(f"{SVG}text")]
    for shown in ("5", "83%", "17%", "2", "25%", "6", "75%", "a <b> & $x$"):
        assert shown in texts, shown
    told = root.find(f"{SVG}desc").text
    assert told.startswith("11 of 14 on the diagonal. healthy: 5 as healthy, 1 as a <b> & $x$.")
    with pytest.raises(ValueError, match=r"must be \(3, 3\); got \(2, 2\)"):
        confusion_matrix_svg([[1, 0], [0, 1]], NAMES)


def test_numbers_in_cells_can_be_read_on_their_shade():
    """Oracle: the WCAG contrast ratio of text and cell colour, at least 4.5 for every share."""
    from matplotlib import colormaps

    from vitreous.reports.figures import readable_on

    def luminance(rgb):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
        return np.dot(linear, [0.2126, 0.7152, 0.0722])

    for share in np.linspace(0, 1, 101):
        cell = colormaps["Blues"](share / 1.15)[:3]
        light, dark = sorted([luminance(cell), {"white": 1.0, "black": 0.0}[readable_on(cell)]], reverse=True)
        assert (light + 0.05) / (dark + 0.05) > 4.5, share


def test_training_curves_say_which_epoch_was_kept(curves):
    one = curves[0]
    for svg, name in zip(training_plots(one.histories, one.best_epochs, "a / b"), ("Loss", "Balanced accuracy")):
        root = ET.fromstring(svg)
        assert root.find(f"{SVG}title").text == f"{name} of a / b by epoch"
        assert root.find(f"{SVG}desc").text == "seed 0: 10 epochs, epoch 4 kept; seed 1: 10 epochs, epoch 10 kept"
        assert [node.text for node in root.iter(f"{SVG}text")].count("val") == 1, "seeds share one key"
    with pytest.raises(ValueError, match="histories of"):
        training_plots(one.histories, {"seed 0": 4}, "a")
    with pytest.raises(ValueError, match="histories of"):
        training_plots({}, {}, "a")
    with pytest.raises(ValueError, match="has val_<metric>"):
        training_plots({"s": [{"epoch": 1, "val_loss": 1.0}]}, {"s": 1}, "a")


def test_training_curves_take_the_metric_that_was_chosen_by():
    histories = {"seed 0": [{"epoch": n, "train_loss": 1.0, "val_loss": 2.0, "val_map": 0.1 * n} for n in (1, 2, 3)]}
    assert "map of r by epoch" in training_plots(histories, {"seed 0": 3}, "r")[1].lower()


def test_the_forest_plot_tells_every_row_even_undefined_ones(leaderboard, row):
    told = ET.fromstring(forest_plot_svg(leaderboard)).find(f"{SVG}desc").text
    for one in leaderboard.rows:
        found = one.test["balanced_accuracy"]
        assert f"{one.name}: {found.value:.3f}, {found.low:.3f} to {found.high:.3f}" in told
    nothing = build_leaderboard([row("a", "b", -1.0), row("c", "b", 2.0)], metric="macro_precision")
    assert "a / b: undefined, never predicted" in ET.fromstring(forest_plot_svg(nothing)).find(f"{SVG}desc").text
