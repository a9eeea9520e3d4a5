"""Training curves of a row: loss and metric by epoch, one line per seed (and fold) and split, the kept epoch marked."""

from collections.abc import Mapping, Sequence

from vitreous.reports.line_plots import Curve, Plot, plot_svg

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
