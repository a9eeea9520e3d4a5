"""Tables of a run directory, read back for the report: their own columns, chosen and named for people."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from vitreous.core.undefined import Undefined
from vitreous.evidence.intervals import Interval
from vitreous.reports.result_tables import Column, ResultCell, ResultTable

_BETWEEN = " | "
_NO_REASON = "no value"


def read_table(
    run_dir: Path,
    file: str,
    name: str,
    caption: str,
    columns: Sequence[Column],
    keep: Callable[[Mapping[str, str]], bool] = lambda cells: True,
) -> ResultTable | None:
    """Some columns of a CSV of the run directory; None where the run has no such file, or no line is kept.

    An interval is read from ``<name>``, ``<name>_low``, ``<name>_high``; why a cell is empty from `undefined`.
    """
    path = run_dir / file
    if not path.exists():
        return None
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    lines = [dict(zip(table.columns, values, strict=True)) for values in table.to_numpy().tolist()]
    rows = tuple(tuple(_cell(column, cells) for column in columns) for cells in lines if keep(cells))
    return ResultTable(name, caption, tuple(columns), rows, in_latex=False, file=file) if rows else None


def _cell(column: Column, cells: Mapping[str, str]) -> ResultCell:
    text = cells[column.name]
    match column.kind:
        case "text":
            return text
        case "count":
            return int(float(text)) if text else _missing(column.name, cells)
        case "number":
            return float(text) if text else _missing(column.name, cells)
        case "interval":
            value, low, high = (
                float(cells[part]) if cells[part] else _missing(part, cells)
                for part in (column.name, f"{column.name}_low", f"{column.name}_high")
            )
            return Interval(value, low, high, 0, 0)


def _missing(name: str, cells: Mapping[str, str]) -> Undefined:
    said = cells.get("undefined", "")
    for part in said.split(_BETWEEN):
        names, _, reason = part.partition(": ")
        if name in names.split(", "):
            return Undefined(reason)
    return Undefined(said or _NO_REASON)


def run_tables(run_dir: Path, metric: str, metric_title: str) -> dict[str, ResultTable]:
    """Tables that other parts of a run wrote, by name; those that the run has."""
    row = (Column("encoder", "encoder"), Column("recipe", "recipe"))
    found = (
        read_table(
            run_dir, "domains/matrix.csv", "generalisation",
            f"{metric_title[0].upper()}{metric_title[1:]} by where a model was trained and where it was tested; the "
            "loss is the score of the domain's own model minus this one, on the same patients.",
            (*row, Column("train", "trained on"), Column("test", "tested on"),
             Column("n_patients", "patients", "count"), Column("score", metric_title, "interval"),
             Column("loss", "loss", "interval")),
        ),
        read_table(
            run_dir, "transfer/transfer.csv", "transfer",
            "Other cohorts: the metric on the source's test patients, on the other cohort, and what is lost.",
            (*row, Column("cohort", "cohort"), Column("n_target_patients", "patients", "count"),
             Column("source", "source", "interval"), Column("target", "other cohort", "interval"),
             Column("gap", "gap", "interval")),
        ),
        read_table(
            run_dir, "folds.csv", "folds",
            "Scores of every round and seed: variance of training and of who was tested, no interval over patients.",
            (*row, Column("scope", "scope"), Column("seed", "seed"), Column("fold", "round"),
             Column("domain", "domain"), Column("n_test", "tested", "count"),
             Column(f"val_{metric}", f"val {metric_title}", "number"),
             Column(f"test_{metric}", f"test {metric_title}", "number")),
        ),
        read_table(
            run_dir, "few_shot.csv", "few_shot",
            f"{metric_title[0].upper()}{metric_title[1:]} by training patients of each class, mean over draws; `all` "
            "is the row itself.",
            (*row, Column("patients_per_class", "patients a class"), Column("n_train_patients", "trained on", "number"),
             Column("val", "val", "number"), Column("test", "test", "number"), Column("low", "from", "number"),
             Column("high", "to", "number"), Column("draw_sd", "sd over draws", "number")),
            lambda cells: cells["draw"] == "mean",
        ),
        read_table(
            run_dir, "overfitting.csv", "overfitting",
            "Every training at the epoch that was kept: gap is train minus val.",
            (Column("row", "encoder / recipe"), Column("seed", "seed"), Column("fold", "round"),
             Column("num_epochs", "epochs", "count"), Column("kept_epoch", "kept epoch", "count"),
             Column("peak_epoch", "peak epoch", "count"), Column("val_at_kept", "val", "number"),
             Column("train_at_kept", "train", "number"), Column("gap", "gap", "number"),
             Column("loss_rise", "rise of val loss after its lowest", "number")),
        ),
        read_table(
            run_dir, "labels_alone.csv", "labels_alone",
            "Every label where it stands alone, and what it can be told from there.",
            (Column("row", "encoder / recipe"), Column("label", "label"),
             Column("participants_alone", "patients with only it", "count"), Column("num_alone", "samples", "count"),
             Column("detected", "detected", "count"), Column("against", "against"),
             Column("auroc", "AUROC", "interval"), Column("most_taken_for", "most taken for")),
        ),
        read_table(
            run_dir, "comparisons.csv", "comparisons",
            "Every pair of rows by every test; a difference is the first row minus the second.",
            (Column("row", "row"), Column("other", "minus"), Column("test", "test"), Column("metric", "metric"),
             Column("difference", "difference", "number"), Column("low", "from", "number"),
             Column("high", "to", "number"), Column("p", "p", "number"), Column("p_holm", "p (Holm)", "number")),
        ),
    )  # fmt: skip
    return {table.name: table for table in found if table is not None}
