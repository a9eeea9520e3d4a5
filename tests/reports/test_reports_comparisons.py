"""comparisons.csv and power.json: what is written is what is read, in words that hold the numbers."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from vitreous.core.errors import UserError
from vitreous.core.undefined import Undefined
from vitreous.reports.comparisons import COLUMNS, read_comparisons, write_comparisons
from vitreous.reports.leaderboard import build_leaderboard
from vitreous.reports.leaderboard_tables import leaderboard_csv, leaderboard_markdown, render_terminal
from vitreous.reports.power import power_sentences, read_power, write_power


def test_comparisons_are_read_back(leaderboard, tmp_path: Path):
    write_comparisons(leaderboard.paired, tmp_path)
    read = read_comparisons(tmp_path)
    assert len(read) == len(leaderboard.paired) == 10 * (1 + 3 + 1)
    for one, kept in zip(read, leaderboard.paired, strict=True):
        for name in (field.name for field in fields(kept)):
            before, after = getattr(kept, name), getattr(one, name)
            if isinstance(before, float):
                assert after == pytest.approx(before, abs=1e-6, rel=1e-5), name
            else:
                assert after == before, name
    table = pd.read_csv(tmp_path / "comparisons.csv")
    assert tuple(table.columns) == COLUMNS
    of_best = table[(table["test"] == "bootstrap") & (table["row"] == leaderboard.best)]
    assert len(of_best) == 4
    assert (of_best["difference"] >= 0).all()
    with pytest.raises(UserError, match=r"no comparisons\.csv"):
        read_comparisons(tmp_path / "elsewhere")


def test_power_is_read_back(leaderboard, tmp_path: Path):
    write_power(leaderboard.reach, tmp_path)
    read = read_power(tmp_path)
    assert read.reach == leaderboard.reach
    assert list(read.sentences) == power_sentences(leaderboard.reach)
    with pytest.raises(UserError, match=r"no power\.json"):
        read_power(tmp_path / "elsewhere")


def test_words_on_what_can_be_shown(leaderboard, row):
    found = power_sentences(leaderboard.reach)
    pair = leaderboard.reach.pair(leaderboard.reach.runner_up)
    assert {pair.row, pair.other} == {"multi / linear", "multi / mlp"}
    assert found[0].startswith("With 90 test patients, two rows like the best two are told apart with 80% probability")
    assert f"truly differ by {pair.among_all.smallest:.2g} in balanced accuracy" in found[0]
    assert found[1].startswith(f"If {pair.row} and {pair.other} truly differ by the 0.0")
    assert power_sentences(build_leaderboard([row("alone", "linear", 1.0)]).reach) == []
    twins = build_leaderboard([row("a", "linear", 1.0), row("b", "linear", 1.0)])
    assert power_sentences(twins.reach) == [
        "What difference 90 test patients can show cannot be said: the difference is the same in every resample: its "
        "standard error is 0."
    ]
    apart = build_leaderboard([row("a", "linear", 3.0), row("b", "linear", 0.1)])
    assert len(power_sentences(apart.reach)) == 1


def test_bca_intervals_take_the_place_of_percentile_ones(rows):
    plain, moved = build_leaderboard(rows()), build_leaderboard(rows(), method="bca")
    one, other = (board.row("multi / linear").test["auroc"] for board in (plain, moved))
    assert one.value == other.value
    assert (one.low, one.high) != (other.low, other.high)
    assert "95% BCa intervals" in leaderboard_markdown(moved)
    assert ",bca," in leaderboard_csv(moved)
    flat = moved.row("floor / majority").test["balanced_accuracy"]
    assert isinstance(flat.low, Undefined), "no resample differs: BCa has no bias to correct"


def test_few_patients_stand_above_the_numbers(row):
    whole = row("few", "linear", 1.0)
    board = build_leaderboard(
        [replace(whole, test={seed: one.select(np.arange(60)) for seed, one in whole.test.items()})]
    )
    (banner,) = board.banners
    assert banner.startswith("The test split has 30 patients: below 50, intervals come out too narrow")
    assert f"**{banner}**" in leaderboard_markdown(board)
    assert banner in str(render_terminal(board).caption)
    assert build_leaderboard([row("many", "linear", 1.0)]).banners == ()
