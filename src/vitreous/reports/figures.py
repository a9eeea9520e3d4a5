"""Figures as accessible SVG text, byte for byte the same for the same numbers.

Axes: C class, the true class first.
"""

import io
import re
import textwrap
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from vitreous.core.fingerprints import fingerprint
from vitreous.core.undefined import Undefined
from vitreous.reports.leaderboard import Leaderboard, LeaderboardRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, QUIET, GRID = "#1b2733", "#52606d", "#d9dee3"  # contrast on white 15:1, 6.4:1; grid lines carry no meaning
ACCENT, SECOND, FLOOR = "#0b5c8a", "#b4560f", "#8793a0"
_DARKEST = 1.15  # share at the end of the colour scale: 100 % stays a little lighter than it
_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none", "font.family": "DejaVu Sans", "font.size": 9.0, "text.color": INK, "axes.edgecolor": QUIET,
    "axes.labelcolor": INK, "axes.titlesize": 9.5, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.linewidth": 0.8, "axes.spines.top": False, "axes.spines.right": False, "xtick.color": QUIET,
    "ytick.color": QUIET, "xtick.labelcolor": INK, "ytick.labelcolor": INK, "grid.color": GRID, "grid.linewidth": 0.7,
    "legend.frameon": False, "legend.fontsize": 8.5, "axes.grid": False,
    "text.parse_math": False,  # a class name may hold a dollar sign
}  # fmt: skip


def confusion_matrix_svg(confusion_CC: Sequence[Sequence[int]], classes: Sequence[str], title: str = "") -> str:
    """Counts and the share of each true class, shaded by that share.

    Raises:
        ValueError: the matrix is not square over the classes.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    counts_CC = np.asarray(confusion_CC, dtype=np.int64)
    num_classes = len(classes)
    if counts_CC.shape != (num_classes, num_classes):
        raise ValueError(f"the confusion matrix must be {(num_classes, num_classes)}; got {counts_CC.shape}")
    totals_C = counts_CC.sum(axis=1)
    shares_CC = counts_CC / np.maximum(totals_C, 1)[:, None]  # an empty row has counts of 0 whatever the divisor
    side = 0.62 * num_classes + 1.7
    labels = [wrapped_name(name) for name in classes]
    shading = colormaps["Blues"]
    with drawing_style():
        figure = Figure(figsize=(side + 0.3, side), layout="constrained")
        axes = figure.add_subplot()
        edges = np.arange(num_classes + 1) - 0.5
        axes.pcolormesh(edges, edges, shares_CC, cmap=shading, vmin=0, vmax=_DARKEST, edgecolors="white", linewidth=1)
        axes.invert_yaxis()
        axes.set_aspect("equal")
        axes.set_xticks(range(num_classes), labels, rotation=40, ha="right", rotation_mode="anchor", fontsize=7.5)
        axes.set_yticks(range(num_classes), labels, fontsize=7.5)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        for true, predicted in np.ndindex(num_classes, num_classes):
            share = shares_CC[true, predicted]
            axes.text(predicted, true, f"{counts_CC[true, predicted]}\n{share:.0%}", ha="center", va="center",
                      fontsize=8, color=readable_on(shading(share / _DARKEST)))  # fmt: skip
        right, total = int(np.trace(counts_CC)), int(counts_CC.sum())
        told = f"{right} of {total} on the diagonal. " + " ".join(
            f"{name}: {', '.join(f'{count} as {other}' for other, count in zip(classes, row) if count)}."
            for name, row in zip(classes, counts_CC.tolist(), strict=True) if sum(row)
        )  # fmt: skip
        return svg_text(figure, title or "Confusion matrix", told)


def forest_plot_svg(leaderboard: Leaderboard) -> str:
    """The primary metric on test with its interval, one line per row; floors grey, the highest floor shaded."""
    from matplotlib.figure import Figure

    rows = list(leaderboard.rows)
    metric, title = leaderboard.metric, leaderboard.metric_title
    with drawing_style():
        figure = Figure(figsize=(6.8, 0.34 * len(rows) + 0.95), layout="constrained")
        axes = figure.add_subplot()
        _shade_floor(axes, [row for row in rows if row.is_floor], metric)
        told = []
        for place, row in enumerate(rows):
            colour = FLOOR if row.is_floor else ACCENT
            found = row.test[metric]
            if isinstance(found.value, Undefined):
                axes.text(0.5, place, found.value.reason, transform=axes.get_yaxis_transform(), ha="center",
                          va="center", fontsize=8, color=QUIET)  # fmt: skip
                told.append(f"{row.name}: undefined, {found.value.reason}")
                continue
            if not isinstance(found.low, Undefined) and not isinstance(found.high, Undefined):
                axes.plot([found.low, found.high], [place, place], color=colour, lw=2, solid_capstyle="butt")
                told.append(f"{row.name}: {found.value:.3f}, {found.low:.3f} to {found.high:.3f}")
            else:
                told.append(f"{row.name}: {found.value:.3f}, no interval")
            axes.plot(found.value, place, "s" if row.is_floor else "o", color=colour, ms=6)
            axes.text(1.01, place, f"{found.value:.3f}  {row.letters}", transform=axes.get_yaxis_transform(),
                      va="center", fontsize=8.5)  # fmt: skip
        axes.set_yticks(range(len(rows)), [textwrap.shorten(row.name, 46, placeholder=" …") for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        axes.set_xlabel(f"{title} on test, {leaderboard.level:.0%} interval")
        return svg_text(figure, f"{title} of every row with its interval", "; ".join(told))


def _shade_floor(axes: "Axes", floors: Sequence[LeaderboardRow], metric: str) -> None:
    """Up to the upper bound of the highest floor (its value, where it has no bound)."""
    found = [floor.test[metric] for floor in floors]
    edges = [high if not isinstance(high := one.high, Undefined) else one.value for one in found]
    numbers = [edge for edge in edges if not isinstance(edge, Undefined)]
    if numbers:
        axes.axvspan(min(0.0, *numbers, 0.0), max(numbers), color="#eef1f4", zorder=0, lw=0)
        axes.autoscale(enable=True, axis="x")


def readable_on(rgba: Sequence[float]) -> str:
    """White or black, whichever stands out more: at least 4.5 to 1 (relative luminance, WCAG 2.2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgba[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "white" if luminance < 0.179 else "black"


def wrapped_name(name: str) -> str:
    """A class name on at most three short lines, broken at spaces and underscores."""
    lines = textwrap.wrap(name.replace("_", " "), 18)
    return "\n".join(lines if len(lines) <= 3 else [*lines[:2], lines[2].rstrip()[:16] + " …"])


def drawing_style() -> Any:
    """A context in which every figure is drawn."""
    import matplotlib as mpl

    return mpl.rc_context(cast("Any", _STYLE))


def svg_text(figure: "Figure", title: str, description: str) -> str:
    """SVG text without date, fonts or ids of its own that could clash with another figure's on one page."""
    import matplotlib as mpl

    salt = "f" + fingerprint([title, description])[:10]
    text = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": salt}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None,
                                                                       "Type": None})  # fmt: skip
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"\s*<style.*?</style>", "", svg, flags=re.DOTALL)  # it would rule the whole page
    svg = re.sub(r"<[^>]*>", lambda tag: _own_names(tag[0], salt), svg)
    named = f'<title id="{salt}-title">{escape(title)}</title><desc id="{salt}-desc">{escape(description)}</desc>'
    opening = svg[: svg.index(">") + 1]
    labelled = opening[:-1] + f' role="img" aria-labelledby="{salt}-title {salt}-desc">'
    return labelled + named + svg[len(opening) :]


def _own_names(tag: str, salt: str) -> str:
    """One tag with ids, references to them and the font made its own, and hundredths of a point at the finest."""
    tag = re.sub(r"(\d\.\d\d)\d+", r"\1", tag)
    tag = re.sub(r'\bid="([^"]+)"', rf'id="{salt}-\1"', tag)
    tag = re.sub(r'(href="#|url\(#)', rf"\1{salt}-", tag)
    return re.sub(r"font: ([^;\"]*?)'DejaVu Sans'[^;\"]*", lambda found: f"font: {found[1]}{_FONTS}", tag)
