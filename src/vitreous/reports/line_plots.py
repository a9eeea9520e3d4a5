"""Small plots of curves as SVG text, drawn without a plotting library: a report of many rows needs dozens of them.

Each stands for itself (title, description, labelled axes, its own key), is told apart by dashes as well as by colour,
and is a few kilobytes, byte for byte the same for the same numbers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from vitreous.core.fingerprints import fingerprint

INK, QUIET, GRID = "#1b2733", "#52606d", "#d9dee3"
COLOURS = ("#0b5c8a", "#b4560f", "#3d7a4a", "#7a4a8c", "#8a6d1f", "#a61b5b")  # each 4.5:1 or more on white
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "5 5", "1 2")
_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_WIDTH, _PLOT_HEIGHT = 340, 212
_LEFT, _RIGHT, _TOP, _KEY_LINE = 44, 10, 12, 15
_KEY_LETTERS = 42
Number = float | None


@dataclass(frozen=True)
class Curve:
    """One line; a point without a number breaks it.

    Args:
        low, high: a band around it, or with `marked` whiskers.
        steps: a value reaches back to the point before.
        marked: points instead of a line through them alone.
        quiet: a reference, drawn grey.
        look: number of its colour and dashes, where several lines share them; by order if left out.
        keyed: whether it stands in the key.
    """

    label: str
    x: Sequence[float]
    y: Sequence[Number]
    low: Sequence[Number] = ()
    high: Sequence[Number] = ()
    steps: bool = False
    marked: bool = False
    quiet: bool = False
    look: int | None = None
    keyed: bool = True


@dataclass(frozen=True)
class Plot:
    """What is drawn over what.

    Args:
        title, description: for those who do not see it.
        x_range, y_range: ends of the axes.
        diagonal: a line from corner to corner, where the two axes agree.
    """

    title: str
    description: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]
    x_range: tuple[float, float] = (0.0, 1.0)
    y_range: tuple[float, float] = (0.0, 1.0)
    diagonal: bool = False


def plot_svg(plot: Plot) -> str:
    """The plot as one ``<svg>``, 340 wide.

    Raises:
        ValueError: an axis without extent.
    """
    for low, high in (plot.x_range, plot.y_range):
        if not low < high:
            raise ValueError(f"an axis of {plot.title!r} must have an extent; got {low} to {high}")
    salt = "p" + fingerprint([plot.title, plot.description])[:10]
    bottom = _TOP + _PLOT_HEIGHT
    height = bottom + 38 + _KEY_LINE * sum(curve.keyed for curve in plot.curves)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'role="img" aria-labelledby="{salt}-t {salt}-d" font-family="{_FONTS}" font-size="10.5" fill="{INK}">',
        f'<title id="{salt}-t">{escape(plot.title)}</title><desc id="{salt}-d">{escape(plot.description)}</desc>',
        f'<clipPath id="{salt}-c"><rect x="{_LEFT}" y="{_TOP - 2}" width="{_WIDTH - _LEFT - _RIGHT}" '
        f'height="{_PLOT_HEIGHT + 4}"/></clipPath>',
        *_axes(plot, bottom),
        f'<g clip-path="url(#{salt}-c)" fill="none">',
    ]
    if plot.diagonal:
        parts.append(f'<path d="M{_x(plot, plot.x_range[0])} {_y(plot, plot.y_range[0])}'
                     f'L{_x(plot, plot.x_range[1])} {_y(plot, plot.y_range[1])}" stroke="{QUIET}" '
                     'stroke-dasharray="3 3"/>')  # fmt: skip
    looks = _looks(plot.curves)
    for curve, (colour, dash) in zip(plot.curves, looks, strict=True):
        parts += _drawn(plot, curve, colour, dash)
    parts.append("</g>")
    named = [pair for pair in zip(plot.curves, looks, strict=True) if pair[0].keyed]
    for place, (curve, (colour, dash)) in enumerate(named):
        y = bottom + 46 + _KEY_LINE * place
        label = curve.label if len(curve.label) <= _KEY_LETTERS else curve.label[: _KEY_LETTERS - 2].rstrip() + " …"
        if curve.marked:
            parts.append(f'<circle cx="{_LEFT + 12}" cy="{y - 4}" r="3" fill="{colour}"/>')
        parts.append(f'<path d="M{_LEFT} {y - 4}h24" stroke="{colour}" stroke-width="2"{_dashed(dash)} fill="none"/>'
                     f'<text x="{_LEFT + 30}" y="{y}">{escape(label)}</text>')  # fmt: skip
    return "".join([*parts, "</svg>"])


def ticks(low: float, high: float) -> list[float]:
    """Four to seven round numbers within the ends.

    >>> ticks(0.0, 1.0)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    rough = (high - low) / 5
    power: float = 10.0 ** math.floor(math.log10(rough))
    step = next(size * power for size in (1, 2, 2.5, 5, 10) if size * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) + 0.0 for number in range(first, last + 1)]


def _looks(curves: Sequence[Curve]) -> list[tuple[str, str]]:
    looks, place = [], 0
    for curve in curves:
        if curve.quiet:
            looks.append((QUIET, "4 2"))
            continue
        number = place if curve.look is None else curve.look
        looks.append((COLOURS[number % len(COLOURS)], _DASHES[number % len(_DASHES)]))
        place += 1
    return looks


def _axes(plot: Plot, bottom: int) -> list[str]:
    parts = []
    for tick in ticks(*plot.y_range):
        y = _y(plot, tick)
        parts.append(f'<path d="M{_LEFT} {y}H{_WIDTH - _RIGHT}" stroke="{GRID}" stroke-width="0.7"/>'
                     f'<text x="{_LEFT - 5}" y="{y + 3.5:g}" text-anchor="end">{tick:g}</text>')  # fmt: skip
    for tick in ticks(*plot.x_range):
        parts.append(f'<text x="{_x(plot, tick)}" y="{bottom + 14}" text-anchor="middle">{tick:g}</text>')
    middle = _TOP + _PLOT_HEIGHT / 2
    return [
        *parts,
        f'<path d="M{_LEFT} {_TOP}V{bottom}H{_WIDTH - _RIGHT}" stroke="{QUIET}" stroke-width="0.8" fill="none"/>',
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2:g}" y="{bottom + 29}" text-anchor="middle">'
        f"{escape(plot.x_label)}</text>",
        f'<text transform="translate(11 {middle:g}) rotate(-90)" text-anchor="middle">{escape(plot.y_label)}</text>',
    ]


def _drawn(plot: Plot, curve: Curve, colour: str, dash: str) -> list[str]:
    parts = []
    if curve.low and not curve.marked:
        parts.append(_band(plot, curve, colour))
    if curve.marked:
        for n, x in enumerate(curve.x):
            y, low, high = curve.y[n], *((curve.low[n], curve.high[n]) if curve.low else (None, None))
            if low is not None and high is not None:
                parts.append(f'<path d="M{_x(plot, x)} {_y(plot, low)}V{_y(plot, high)}" stroke="{colour}"/>')
            if y is not None:
                parts.append(f'<circle cx="{_x(plot, x)}" cy="{_y(plot, y)}" r="3" fill="{colour}"/>')
    parts.append(f'<path d="{_path(plot, curve.x, curve.y, steps=curve.steps)}" stroke="{colour}" '
                 f'stroke-width="{1.1 if curve.marked or curve.quiet else 1.7}"{_dashed(dash)}/>')  # fmt: skip
    return parts


def _band(plot: Plot, curve: Curve, colour: str) -> str:
    known = [
        (x, low, high)
        for x, low, high in zip(curve.x, curve.low, curve.high, strict=True)
        if low is not None and high is not None
    ]
    if len(known) < 2:
        return ""
    upper = _path(plot, [x for x, _, _ in known], [high for _, _, high in known])
    lower = _path(plot, [x for x, _, _ in reversed(known)], [low for _, low, _ in reversed(known)])
    return f'<path d="{upper}L{lower[1:]}Z" fill="{colour}" fill-opacity="0.13"/>'


def _path(plot: Plot, xs: Sequence[float], ys: Sequence[Number], *, steps: bool = False) -> str:
    path, pen_down, before = [], False, 0.0
    for x, y in zip(xs, ys, strict=True):
        if y is None:
            pen_down = False
            continue
        if pen_down and steps:
            path.append(f"L{before:g} {_y(plot, y):g}")
        before = _x(plot, x)
        path.append(f"{'L' if pen_down else 'M'}{before:g} {_y(plot, y):g}")
        pen_down = True
    return "".join(path)


def _dashed(dash: str) -> str:
    return f' stroke-dasharray="{dash}"' if dash else ""


def _x(plot: Plot, value: float) -> float:
    low, high = plot.x_range
    return round(_LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT), 1)


def _y(plot: Plot, value: float) -> float:
    low, high = plot.y_range
    return round(_TOP + (high - value) / (high - low) * _PLOT_HEIGHT, 1)
