"""Figures of a transfer: heat map, gap against source score, F1 per class. Accessible SVG text, as in `figures`."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from vitreous.core.undefined import Undefined
from vitreous.evidence.intervals import Interval
from vitreous.reports.figures import (
    ACCENT,
    FLOOR,
    GRID,
    QUIET,
    SECOND,
    drawing_style,
    readable_on,
    svg_text,
    wrapped_name,
)
from vitreous.reports.transfer import TransferTarget

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DARKEST = 1.15  # a score of 1 stays a little lighter than the end of the colour scale
_COLOURS = (ACCENT, SECOND, "#3d7a4a", "#7a4a8c", "#8a7a1f", FLOOR)  # each 3:1 or more on white
_MARKERS = "osD^vP"


def heat_map_svg(
    values: Sequence[Sequence[Interval | Undefined]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
    row_label: str,
    column_label: str,
    outlined: Sequence[tuple[int, int]] = (),
) -> str:
    """A matrix of scores in [0, 1], each cell with its value and bounds, shaded by the value.

    Args:
        outlined: cells (row, column) with a frame, such as those of a model on its own domain.
    Raises:
        ValueError: the values are not a matrix of rows and columns.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    if not rows or not columns or [len(line) for line in values] != [len(columns)] * len(rows):
        raise ValueError(
            f"the values must be {len(rows)} rows of {len(columns)}, one or more; got rows of "
            f"{[len(line) for line in values]}"
        )
    shading = colormaps["Blues"]
    told = []
    with drawing_style():
        figure = Figure(figsize=(1.05 * len(columns) + 2.6, 0.55 * len(rows) + 1.5), layout="constrained")
        axes = figure.add_subplot()
        shares = np.array([[0.0 if (number := _value(cell)) is None else number for cell in line] for line in values])
        axes.pcolormesh(
            np.arange(len(columns) + 1) - 0.5, np.arange(len(rows) + 1) - 0.5, np.clip(shares, 0, 1), cmap=shading,
            vmin=0, vmax=_DARKEST, edgecolors="white", linewidth=1,
        )  # fmt: skip
        axes.invert_yaxis()
        axes.set_xticks(range(len(columns)), [wrapped_name(name) for name in columns], fontsize=8)
        axes.set_yticks(range(len(rows)), [textwrap.shorten(name, 40, placeholder=" …") for name in rows], fontsize=8)
        axes.set_xlabel(column_label)
        axes.set_ylabel(row_label)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        for y, x in np.ndindex(len(rows), len(columns)):
            text = _cell_text(values[y][x])
            colour = readable_on(shading(float(np.clip(shares[y, x], 0, 1)) / _DARKEST))
            axes.text(x, y, text, ha="center", va="center", fontsize=7.5, color=colour)
            told.append(f"{rows[y]}, {columns[x]}: {text.replace(chr(10), ' ')}")
        for y, x in outlined:
            axes.add_patch(Rectangle((x - 0.47, y - 0.45), 0.94, 0.9, fill=False, edgecolor=SECOND, linewidth=1.6))
        return svg_text(figure, title, "; ".join(told))


def gap_against_source_svg(targets: Sequence[TransferTarget]) -> str:
    """The gap over the source score, one mark a row and cohort, with both intervals; below 0 nothing is lost.

    Raises:
        ValueError: no target.
    """
    from matplotlib.figure import Figure

    if not targets:
        raise ValueError("there is no target to draw")
    metric, title = targets[0].metric, targets[0].metric_title
    told = []
    with drawing_style():
        figure = Figure(figsize=(6.6, 3.6), layout="constrained")
        axes = figure.add_subplot()
        axes.axhline(0, color=QUIET, lw=0.8)
        for number, target in enumerate(targets):
            colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
            axes.plot([], [], marker, color=colour, label=target.name)
            for row in target.rows:
                gap, source = row.gaps[metric].gap, row.gaps[metric].source
                if isinstance(gap.value, Undefined) or isinstance(source.value, Undefined):
                    reason = gap.value if isinstance(gap.value, Undefined) else source.value
                    told.append(f"{row.name} on {target.name}: undefined, {reason.reason}")  # type: ignore[union-attr]
                    continue
                _whiskers(axes, source, gap, colour)
                axes.plot(
                    source.value, gap.value, marker, color=colour, ms=6, mfc="white" if row.is_floor else colour,
                    zorder=4,
                )  # fmt: skip
                axes.annotate(
                    textwrap.shorten(row.name, 30, placeholder=" …"), (source.value, gap.value), xytext=(5, 4),
                    textcoords="offset points", fontsize=7, color=QUIET,
                )  # fmt: skip
                told.append(f"{row.name} on {target.name}: source {_told(source)}, gap {_told(gap)}")
        axes.grid()
        axes.set_axisbelow(True)
        axes.set_xlabel(f"{title} on the source's test patients, {targets[0].level:.0%} interval")
        axes.set_ylabel("gap (source − target)")
        axes.legend(loc="best")
        return svg_text(figure, f"Gap in {title} against the source score", "; ".join(told))


def class_f1_svg(row: str, targets: Sequence[TransferTarget]) -> str:
    """F1 of each class for one row: a bar for the source, and one for every target that has the row.

    Raises:
        ValueError: no target has the row.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    having = [target for target in targets if any(one.name == row for one in target.rows)]
    if not having:
        raise ValueError(f"no target has the row {row!r}")
    classes = having[0].classes
    of_row = {target.name: next(one for one in target.rows if one.name == row) for target in having}
    first = next(iter(of_row.values()))
    bars: Mapping[str, Mapping[str, Interval]] = {
        "source": {name: first.gaps[f"f1_{name}"].source for name in classes}
    } | {cohort: {name: one.gaps[f"f1_{name}"].target for name in classes} for cohort, one in of_row.items()}
    width = 0.8 / len(bars)
    told = []
    with drawing_style():
        figure = Figure(figsize=(max(3.6, 0.95 * len(classes) + 1.2), 2.7), layout="constrained")
        axes = figure.add_subplot()
        handles = []
        for number, (cohort, by_class) in enumerate(bars.items()):
            colour = FLOOR if number == 0 else _COLOURS[(number - 1) % (len(_COLOURS) - 1)]
            handles.append(Patch(color=colour, label=cohort))
            for place, name in enumerate(classes):
                x, found = place + (number - (len(bars) - 1) / 2) * width, by_class[name]
                told.append(f"{name} on {cohort}: {_told(found)}")
                if isinstance(found.value, Undefined):
                    axes.text(x, 0.02, "none", rotation=90, ha="center", va="bottom", fontsize=7, color=QUIET)
                    continue
                axes.bar(x, found.value, width * 0.92, color=colour)
                if not isinstance(found.low, Undefined) and not isinstance(found.high, Undefined):
                    axes.plot([x, x], [found.low, found.high], color="#1b2733", lw=1)
        axes.set_xticks(range(len(classes)), [wrapped_name(name) for name in classes], fontsize=8)
        axes.tick_params(axis="x", length=0)
        axes.set_ylim(0, 1.02)
        axes.set_ylabel("F1")
        axes.grid(axis="y", color=GRID)
        axes.set_axisbelow(True)
        axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 1.2), ncols=min(4, len(bars)))
        return svg_text(figure, f"F1 per class of {row}", "; ".join(told))


def cohort_heat_map_svg(targets: Sequence[TransferTarget]) -> str:
    """The primary metric of every row on the source and on every target.

    Raises:
        ValueError: no target.
    """
    if not targets:
        raise ValueError("there is no target to draw")
    metric = targets[0].metric
    names = list(dict.fromkeys(row.name for target in targets for row in target.rows))
    absent = Undefined("not transferred")
    lines: list[list[Interval | Undefined]] = []
    for name in names:
        having = {target.name: row for target in targets for row in target.rows if row.name == name}
        some = next(iter(having.values()))
        on_targets = [
            having[target.name].gaps[metric].target if target.name in having else absent for target in targets
        ]
        lines.append([some.gaps[metric].source, *on_targets])
    return heat_map_svg(
        lines,
        names,
        ["source test", *(target.name for target in targets)],
        title=f"{targets[0].scores.metrics[metric].title} of every model on every cohort",
        row_label="model",
        column_label="cohort",
        outlined=[(line, 0) for line in range(len(names))],
    )


def _value(cell: Interval | Undefined) -> float | None:
    found = cell if isinstance(cell, Undefined) else cell.value
    return None if isinstance(found, Undefined) else found


def _cell_text(cell: Interval | Undefined) -> str:
    number = _value(cell)
    if number is None or isinstance(cell, Undefined):
        return "–"
    if isinstance(cell.low, Undefined) or isinstance(cell.high, Undefined):
        return f"{number:.3f}"
    return f"{number:.3f}\n{cell.low:.2f}–{cell.high:.2f}"


def _told(found: Interval) -> str:
    if isinstance(found.value, Undefined):
        return f"undefined, {found.value.reason}"
    if isinstance(found.low, Undefined) or isinstance(found.high, Undefined):
        return f"{found.value:.3f}, no interval"
    return f"{found.value:.3f}, {found.low:.3f} to {found.high:.3f}"


def _whiskers(axes: "Axes", source: Interval, gap: Interval, colour: str) -> None:
    x, y = float(_value(source) or 0), float(_value(gap) or 0)  # both are defined here
    if not isinstance(source.low, Undefined) and not isinstance(source.high, Undefined):
        axes.plot([source.low, source.high], [y, y], color=colour, lw=1, alpha=0.55)
    if not isinstance(gap.low, Undefined) and not isinstance(gap.high, Undefined):
        axes.plot([x, x], [gap.low, gap.high], color=colour, lw=1, alpha=0.55)
