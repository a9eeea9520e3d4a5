"""Training curves of a row: loss and metric by epoch, one line per seed (and fold) and split, the kept epoch marked."""

from collections.abc import Mapping, Sequence

from vitreous.core.undefined import Undefined
from vitreous.reports.line_plots import COLOURS, Curve, Number, Plot, plot_svg
from vitreous.reports.result_tables import ResultCell, ResultTable

_ROOM = 0.05  # of the extent, above and below


def training_plots(
    histories: Mapping[str, Sequence[Mapping[str, float]]], best_epochs: Mapping[str, int], row: str
) -> tuple[str, str]:
    """SVG of the losses, and of the metric on val (on train too, where it was measured).

    Args:
        histories: label (such as ``seed 0``) → rows with epoch, train_loss, val_loss, val_<metric> and, if known,
            train_<metric>; of stages also `stage`.
        best_epochs: label → the epoch whose weights were kept, of the last stage where there are stages.
    Raises:
        ValueError: no history, a label without its best epoch, or no metric on val.
    """
    if not histories or set(histories) != set(best_epochs):
        raise ValueError(f"histories of {list(histories)} with best epochs of {list(best_epochs)}")
    first = next(iter(histories.values()))[0]
    metric = next((key.removeprefix("val_") for key in first if key.startswith("val_") and key != "val_loss"), None)
    if metric is None:
        raise ValueError(f"a history has val_<metric>; got {list(first)}")
    told = "; ".join(
        f"{label}: {len(history)} epochs, epoch {best_epochs[label]} kept" for label, history in histories.items()
    )
    last = max(len(history) for history in histories.values())
    drawn = []
    for kind in ("loss", metric):
        name = kind.replace("_", " ")
        curves = _curves(histories, best_epochs, kind)
        numbers = [y for curve in curves for y in curve.y if y is not None]
        low, high = min(numbers), max(numbers)
        room = _ROOM * (high - low) or 0.05
        drawn.append(plot_svg(Plot(
            f"{name[0].upper()}{name[1:]} of {row} by epoch", told, "epoch", name, tuple(curves),
            (1.0, float(max(last, 2))), (low - room, high + room),
        )))  # fmt: skip
    return drawn[0], drawn[1]


def few_shot_plot(table: ResultTable, metric_title: str) -> str:
    """The metric on test over the patients trained on, a line a row of the leaderboard, the first six of them.

    Args:
        table: of :func:`vitreous.reports.run_tables.run_tables`.
    """
    place = {column.name: n for n, column in enumerate(table.columns)}
    by_row: dict[str, list[tuple[ResultCell, ...]]] = {}
    for line in table.rows:
        by_row.setdefault(f"{line[0]} / {line[1]}", []).append(line)
    curves, told = [], []
    for name, lines in list(by_row.items())[: len(COLOURS)]:
        lines = sorted(lines, key=lambda line: _number(line[place["n_train_patients"]]) or 0.0)
        x = [_number(line[place["n_train_patients"]]) or 0.0 for line in lines]
        y, low, high = ([_number(line[place[column]]) for line in lines] for column in ("test", "low", "high"))
        alone = len(by_row) == 1  # bands of several rows would hide each other
        curves.append(Curve(name, x, y, low if alone else (), high if alone else ()))
        told.append(
            f"{name}: " + ", ".join(f"{n:g} patients {v:.3f}" for n, v in zip(x, y, strict=True) if v is not None)
        )
    xs = [x for curve in curves for x in curve.x]
    return plot_svg(
        Plot(
            f"{metric_title[0].upper()}{metric_title[1:]} by training patients", "; ".join(told), "patients trained on",
            metric_title, tuple(curves), (0.0, max(1.0, *xs)),
        )
    )  # fmt: skip


def _number(cell: ResultCell) -> Number:
    return None if cell is None or isinstance(cell, Undefined) else float(cell)  # type: ignore[arg-type]


def _curves(
    histories: Mapping[str, Sequence[Mapping[str, float]]], best_epochs: Mapping[str, int], kind: str
) -> list[Curve]:
    curves = []
    for number, (label, history) in enumerate(histories.items()):
        epochs = [float(n + 1) for n in range(len(history))]  # over all stages
        for look, split in enumerate(("val", "train")):
            if f"{split}_{kind}" in history[0]:
                ys = [row[f"{split}_{kind}"] for row in history]
                curves.append(Curve(split, epochs, ys, look=look, keyed=number == 0))
        kept = [n for n, row in enumerate(history) if row.get("epoch", n + 1) == best_epochs[label]]
        if kept:
            y = history[kept[-1]][f"val_{kind}"]
            curves.append(Curve("kept epoch", [epochs[kept[-1]]], [y], marked=True, look=0, keyed=number == 0))
    return curves
