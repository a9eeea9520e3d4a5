"""The leaderboard from predictions: numbers against scikit-learn, words against the rows that were made."""

import csv
import io

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from sklearn import metrics as sk

from vitreous.core.undefined import Undefined
from vitreous.reports.answer import answer_sentences
from vitreous.reports.leaderboard import build_leaderboard
from vitreous.reports.leaderboard_tables import (
    leaderboard_csv,
    leaderboard_frame,
    leaderboard_markdown,
    render_terminal,
    write_leaderboard,
)

FIRST_COLUMNS = [
    "rank", "letters", "encoder", "recipe", "seeds", "n_test_patients", "val_balanced_accuracy",
    "test_balanced_accuracy", "test_balanced_accuracy_low", "test_balanced_accuracy_high", "seed_sd", "test_auroc",
    "test_accuracy", "test_macro_f1",
]  # fmt: skip


def rows_of(leaderboard):
    return list(csv.DictReader(io.StringIO(leaderboard_csv(leaderboard))))


def test_columns_begin_as_the_design_says(leaderboard):
    header = leaderboard_csv(leaderboard).splitlines()[0].split(",")
    assert header[: len(FIRST_COLUMNS)] == FIRST_COLUMNS
    assert len(header) == len(set(header))
    assert {"diff_to_best", "diff_to_best_low", "diff_to_best_high", "p_holm", "test_f1_healthy_low"} <= set(header)
    assert header[-1] == "schema_version"


def test_numbers_are_per_patient_and_means_over_seeds(leaderboard, row):
    """Oracle: scikit-learn on the mean probability of each patient's two volumes."""
    made = row("multi", "linear", 2.0)
    scores = []
    for one in made.test.values():
        probs_NC = np.exp(one.scores_NC) / np.exp(one.scores_NC).sum(axis=1, keepdims=True)
        predicted_P = (probs_NC[0::2] + probs_NC[1::2]).argmax(axis=1)
        scores.append(sk.balanced_accuracy_score(one.y_true_N[0::2], predicted_P))
    found = next(cells for cells in rows_of(leaderboard) if (cells["encoder"], cells["recipe"]) == ("multi", "linear"))
    assert float(found["test_balanced_accuracy"]) == pytest.approx(np.mean(scores), abs=5e-7)
    assert float(found["seed_sd"]) == pytest.approx(np.std(scores, ddof=1), abs=5e-7)
    assert float(found["test_balanced_accuracy_low"]) < np.mean(scores) < float(found["test_balanced_accuracy_high"])
    assert (found["n_test_patients"], found["seeds"], found["trainable_parameters"]) == ("90", "0 1", "771")


def test_rows_are_ordered_ranked_and_lettered(leaderboard):
    rows = rows_of(leaderboard)
    values = [float(cells["test_balanced_accuracy"]) for cells in rows]
    assert values == sorted(values, reverse=True)
    by_name = {f"{cells['encoder']}/{cells['recipe']}": cells for cells in rows}
    assert by_name["multi/linear"]["rank"] == by_name["multi/mlp"]["rank"] == "1"
    assert by_name["multi/linear"]["letters"] == by_name["multi/mlp"]["letters"] == "a"
    assert int(by_name["single/linear"]["rank"]) > 2
    assert "a" not in by_name["single/linear"]["letters"]
    assert float(by_name["single/linear"]["p_holm"]) < 0.05


def test_the_confusion_matrix_sums_the_seeds(leaderboard):
    best = leaderboard.row("multi / linear")
    assert np.sum(best.confusion_CC) == 2 * 90
    assert np.sum(leaderboard.row("floor / majority").confusion_CC) == 90


def test_what_is_undefined_is_empty_with_its_reason(leaderboard):
    floor = next(cells for cells in rows_of(leaderboard) if cells["encoder"] == "floor")
    assert floor["seed_sd"] == floor["test_precision_early <b>"] == ""
    assert "seed_sd: one seed has no spread" in floor["undefined"]
    assert "the class 'early <b>' is never predicted" in floor["undefined"]
    assert float(floor["test_macro_f1"]) > 0
    assert "undefined: one seed has no spread" in leaderboard_markdown(leaderboard)


def test_notes_say_collapsed_identical_override_and_floors_in_words(leaderboard):
    single = leaderboard.row("single / linear")
    assert single.notes == (
        "input override: size [32, 192, 192]",
        "predicts 'healthy' for all 90 test participants in all 2 seeds: a collapsed head, no finding about the "
        "checkpoint",
        "identical predictions to floor / majority",
        "does not clear the floors untrained / linear, floor / majority",
    )
    assert leaderboard.row("multi / linear").notes == ()
    assert leaderboard.row("floor / majority").notes == ("identical predictions to single / linear",)
    assert {finding.code for finding in leaderboard.findings} == {"collapsed", "identical_predictions"}


def test_equal_predictions_give_equal_bytes_and_files(leaderboard, tmp_path, rows):
    write_leaderboard(leaderboard, tmp_path / "one")
    write_leaderboard(build_leaderboard(rows()), tmp_path / "two")
    for name in ("leaderboard.csv", "leaderboard.md"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    frame = pd.read_csv(tmp_path / "one" / "leaderboard.csv")
    assert frame["test_balanced_accuracy"].dtype == np.float64
    assert len(frame) == 5


def test_markdown_keeps_its_columns_whatever_the_names(leaderboard):
    lines = leaderboard_markdown(leaderboard).splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("| rank"))
    table = lines[start : start + 7]
    columns = table[0].count("|")
    assert all(line.replace("\\|", "").count("|") == columns for line in table)
    assert any("on \\| insulin" in line for line in lines)


def test_the_frame_holds_numbers(leaderboard):
    frame = leaderboard_frame(leaderboard)
    assert list(frame.columns)[: len(FIRST_COLUMNS)] == FIRST_COLUMNS
    assert str(frame["rank"].dtype) == "Int64"
    assert frame.loc[frame["encoder"] == "floor", "seed_sd"].isna().all()


def test_the_terminal_table_fits_80_columns(leaderboard):
    console = Console(width=80, file=io.StringIO(), force_terminal=False)
    console.print(render_terminal(leaderboard))
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for cells in rows_of(leaderboard):
        assert f"{float(cells['test_balanced_accuracy']):.3f} [" in text
        assert f"{cells['encoder']} / {cells['recipe']}" in text
    assert "Rows that share a letter cannot be told apart." in text


def test_long_names_fold_instead_of_being_cut(row):
    made = build_leaderboard([row("an_encoder_with_a_rather_long_name_indeed", "logistic_regression", 1.0)])
    console = Console(width=80, file=io.StringIO())
    console.print(render_terminal(made))
    assert "…" not in console.file.getvalue()
    joined = "".join(line.strip() for line in console.file.getvalue().splitlines())
    assert "indeed" in joined


def test_the_answer_names_best_ties_and_floors(leaderboard, row):
    said = answer_sentences(leaderboard)
    best = leaderboard.row(leaderboard.best)
    other = "multi / mlp" if best.name == "multi / linear" else "multi / linear"
    found = best.test["balanced_accuracy"]
    assert said == [
        f"{best.name} has the highest balanced accuracy, {found.value:.3f} [{found.low:.3f}, {found.high:.3f}] "
        "on 90 test patients.",
        f"It cannot be told apart from {other}: the difference may be chance.",
        "It clears the floors untrained / linear and floor / majority.",
        "Not every floor is cleared by single / linear.",
    ]
    alone = answer_sentences(build_leaderboard([row("good", "linear", 2.2), row("poor", "linear", 0.3)]))
    assert alone[0].startswith("good / linear is best: balanced accuracy 0.")
    assert alone[1] == "It is told apart from the other row (Holm-adjusted p < 0.05)."
    assert alone[2].startswith("No floor was run")


def test_the_answer_when_a_floor_wins_or_nothing_is_defined(row):
    floor = row("floor", "pixels", 2.5, is_floor=True)
    said = answer_sentences(build_leaderboard([row("a", "linear", 0.2), floor]))
    assert said[0].startswith("No encoder beats the floors: floor / pixels has the highest balanced accuracy, 0.")
    assert said[1].endswith("nothing can be concluded about which checkpoint is better.")
    missed = build_leaderboard([row("a", "linear", 0.6), row("untrained", "linear", 0.5, is_floor=True)])
    assert answer_sentences(missed)[1] == (
        "It does not clear the floor untrained / linear: it is not shown to know more than that."
    )
    nothing = build_leaderboard([row("a", "linear", -1.0)], metric="macro_precision")
    assert answer_sentences(nothing) == [
        "No row has a defined macro precision: never predicted: 'early <b>', 'on | insulin'."
    ]
    assert isinstance(nothing.rows[0].to_best.value, Undefined)


def test_many_rows_draw_as_many_resamples_as_their_comparison_needs(row):
    made = build_leaderboard([row(f"e{k}", "linear", k / 10) for k in range(8)])
    assert made.num_resamples == 2000
    assert made.num_compared == 4 * 28 / 0.05
    fewer = build_leaderboard([row(f"e{k}", "linear", k / 10) for k in range(2)])
    assert fewer.num_compared == 2000
    name = "e1 / linear"
    assert made.row(name).test["auroc"] == fewer.row(name).test["auroc"]  # the same resamples


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: [], "at least one row"),
        (lambda row: [row("a", "b", 1.0), row("a", "b", 1.1)], r"the same name: \['a / b'\]"),
        (
            lambda row: [row("a", "b", 1.0, val={0: row("a", "b", 1.0).val[0]})],
            r"val has the seeds \[0\], test \[0, 1\]",
        ),
        (
            lambda row: [row("a", "b", 1.0), row("c", "b", 1.0, test=row("c", "b", 1.0).val)],
            "are not about the same rows",
        ),
    ],
)
def test_rows_that_cannot_stand_together_are_refused(change, message, row):
    def changed(encoder, recipe, skill, **fields):
        from dataclasses import replace

        return replace(row(encoder, recipe, skill), **fields)

    with pytest.raises(ValueError, match=message):
        build_leaderboard(change(changed))


def test_an_unknown_metric_is_refused(row):
    with pytest.raises(ValueError, match=r"no such metric: 'accurracy'; known are \['balanced_accuracy'"):
        build_leaderboard([row("a", "b", 1.0)], metric="accurracy")


def test_a_baseline_is_compared_with_every_other_row(rows):
    made = build_leaderboard(rows(), baseline="multi / linear")
    frame = leaderboard_frame(made).set_index(["encoder", "recipe"])
    for row in made.rows:
        found = made.comparison.difference(row.name, "multi / linear")
        if not isinstance(found.value, Undefined):
            assert frame.loc[(row.encoder, row.recipe), "diff_to_baseline"] == found.value
    assert frame.loc[("multi", "linear"), "diff_to_baseline"] == 0
    assert set(made.to_baseline) == {row.name for row in made.rows} - {"multi / linear"}
    assert "## Against the baseline multi / linear" in leaderboard_markdown(made)
    assert "diff_to_baseline" not in leaderboard_frame(build_leaderboard(rows()))
    with pytest.raises(ValueError, match="baseline 'absent / linear' is no row"):
        build_leaderboard(rows(), baseline="absent / linear")
