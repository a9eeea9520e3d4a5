"""Figures of explanations as PNG, byte for byte the same for the same numbers.

The input is shown as the encoder saw it, in grey under the map; a map that failed a check says so on the figure.

Axes: T slice or frame, H row, W column, C colour channel, S step of a curve.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.ndimage import zoom

from vitreous.reports.figures import ACCENT, INK, QUIET, SECOND, drawing_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FloatArray = npt.NDArray[np.float64]
Picture = npt.NDArray[np.float32]
Map = npt.NDArray[np.float32]
Kind = Literal["image", "volume", "clip"]

_DPI = 110
_MOST_OPAQUE = 0.7
_MOST_SLICES, _COLUMNS = 24, 6
_MOST_UNEQUAL = 2.0  # sides of a picture
_GREY_LEVEL = 0.85  # a little darker than the input, so that the map stands out


@dataclass(frozen=True)
class ShownInput:
    """What the encoder saw.

    Args:
        picture_THWC: in [0, 1]; one channel or three.
        extent: of T, H, W in any one unit, for the shape of projections; None where it is not known.
        title: says which sample (by its keyed id), target and probability.
    """

    picture_THWC: Picture
    kind: Kind
    extent: tuple[float, float, float] | None
    title: str


@dataclass(frozen=True)
class ShownMap:
    """A map with what its checks found, as :class:`~vitreous.diagnosis.faithfulness.Faithfulness` has it."""

    method: str
    map_THW: Map
    failures: tuple[str, ...]
    deletion: float
    insertion: float
    random: tuple[float, float, float]
    share_S: FloatArray
    deletion_curve: FloatArray
    insertion_curve: FloatArray
    random_curve: FloatArray

    @property
    def verdict(self) -> str:
        """What the figure says under the method's name."""
        return "passes its checks" if not self.failures else f"NOT FAITHFUL: {', '.join(self.failures)}"


def grey(picture_THWC: Picture) -> Picture:
    """(T, H, W): luminance of three channels."""
    if picture_THWC.shape[-1] == 1:
        return picture_THWC[..., 0]
    weights = np.array([0.299, 0.587, 0.114], np.float32)
    luminance: Picture = picture_THWC @ weights
    return luminance


def enlarged(map_THW: Map, shape: tuple[int, int, int]) -> Map:
    """The map at the size of the picture, linear between cell centres; 0 at its lowest value, 1 at its highest."""
    factors = [size / cells for size, cells in zip(shape, map_THW.shape, strict=True)]
    low, high = float(map_THW.min()), float(map_THW.max())
    if high == low:
        return np.zeros(shape, np.float32)
    large: Map = zoom((map_THW - low) / (high - low), factors, order=1, mode="nearest", grid_mode=True)
    return np.clip(large, 0, 1)


def overview_png(shown: ShownInput, maps: Sequence[ShownMap]) -> bytes:
    """All maps of one sample with their curves: on the image; of a volume as three projections; of a clip on frames."""
    from matplotlib.figure import Figure

    with drawing_style():
        if shown.kind == "image":
            figure = Figure(figsize=(2.5 * (len(maps) + 1), 5.0), layout="constrained")
            _draw_image(figure, shown, maps)
        else:
            figure = Figure(figsize=(10.4, 0.5 + 2.45 * (len(maps) + 1)), layout="constrained")
            _draw_rows(figure, shown, maps)
        figure.suptitle(shown.title, x=0.01, ha="left", fontsize=10, fontweight="bold")
        return _png(figure)


def slices_png(shown: ShownInput, one: ShownMap) -> bytes:
    """The map on slices of a volume or frames of a clip, evenly chosen where there are more than 24."""
    from matplotlib.figure import Figure

    picture_THW = grey(shown.picture_THWC)
    large_THW = enlarged(one.map_THW, picture_THW.shape)
    count = len(picture_THW)
    chosen = np.unique(np.linspace(0, count - 1, min(_MOST_SLICES, count)).round().astype(int))
    columns = min(_COLUMNS, len(chosen))
    rows = math.ceil(len(chosen) / columns)
    name = "slice" if shown.kind == "volume" else "frame"
    with drawing_style():
        figure = Figure(figsize=(1.75 * columns, 0.75 + (1.7 * _ratio(shown, 0) + 0.25) * rows), layout="constrained")
        for place, axes in enumerate(figure.subplots(rows, columns, squeeze=False).ravel()):
            axes.set_axis_off()
            if place < len(chosen):
                index = int(chosen[place])
                _overlay(axes, picture_THW[index], large_THW[index], aspect=_aspect(shown, 0))
                axes.set_title(f"{name} {index}", fontsize=7.5, fontweight="normal", color=QUIET)
        colour = SECOND if one.failures else INK
        figure.suptitle(f"{shown.title}\n{one.method}: {one.verdict}", x=0.01, ha="left", fontsize=9, color=colour)
        return _png(figure)


def entropy_png(states: Sequence[tuple[str, Sequence[Sequence[float]]]], num_samples: int, title: str) -> bytes:
    """Mean entropy of every layer and head, before and after adaptation, and the difference.

    Args:
        states: name (such as ``frozen``) → one list a layer of its heads' entropies, as shares of log N.
    """
    from matplotlib.figure import Figure

    grids = [(name, np.array(values, np.float64)) for name, values in states]
    has_difference = len(grids) == 2
    layers, heads = grids[0][1].shape
    widths = [max(1.6, 0.2 * heads + 0.9)] * (len(grids) + has_difference)
    size = (sum(widths) + 4.2, max(2.8, 0.2 * layers + 1.3))
    with drawing_style():
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(1, len(widths) + 1, squeeze=False, width_ratios=[*widths, 2.8])[0]
        for axes, (name, values) in zip(panels, grids):
            drawn = _heat(axes, values, name, cmap="viridis", low=0.0, high=1.0)
        figure.colorbar(drawn, ax=panels[len(grids) - 1], label="entropy / log N")
        if has_difference:
            change = grids[1][1] - grids[0][1]
            most = max(0.01, float(np.abs(change).max()))
            drawn = _heat(panels[2], change, "change", cmap="RdBu_r", low=-most, high=most)
            figure.colorbar(drawn, ax=panels[2], label=f"{grids[1][0]} − {grids[0][0]}")
        lines = panels[-1]
        for (name, values), colour in zip(grids, (SECOND, ACCENT)):
            lines.plot(np.arange(layers), values.mean(1), "o-", ms=3, color=colour, lw=1.4, label=name)
            lines.fill_between(np.arange(layers), values.min(1), values.max(1), color=colour, alpha=0.15, lw=0)
        lines.set_ylim(0, 1.02)
        lines.set_xticks(_few(layers))
        lines.set_xlabel("layer")
        lines.set_title("mean, range over heads")
        lines.grid(axis="y")
        lines.legend(loc="lower left")
        heading = f"{title}, mean of {num_samples} sample{'s' * (num_samples != 1)}"
        figure.suptitle(heading, x=0.01, ha="left", fontsize=10, fontweight="bold")
        return _png(figure)


def _few(count: int) -> list[int]:
    """At most seven numbers of 0…count − 1, for the ticks of an axis."""
    return list(range(0, count, max(1, -(-count // 7))))


def _draw_image(figure: "Figure", shown: ShownInput, maps: Sequence[ShownMap]) -> None:
    panels = figure.subplots(2, len(maps) + 1, squeeze=False, gridspec_kw={"height_ratios": [1.25, 1]})
    picture_HWC = shown.picture_THWC[0]
    first = panels[0, 0]
    first.imshow(picture_HWC if picture_HWC.shape[-1] == 3 else picture_HWC[..., 0], cmap="gray", vmin=0, vmax=1)
    first.set_title("input\nas the encoder saw it")
    first.set_axis_off()
    _draw_legend(panels[1, 0])
    grey_THW = grey(shown.picture_THWC)
    for column, one in enumerate(maps, start=1):
        _overlay(panels[0, column], grey_THW[0], enlarged(one.map_THW, grey_THW.shape)[0])
        _entitle(panels[0, column], one)
        _draw_curves(panels[1, column], one)


_PROJECTIONS = (("along slices", 0), ("along rows", 1), ("along columns", 2))


def _draw_rows(figure: "Figure", shown: ShownInput, maps: Sequence[ShownMap]) -> None:
    """One row a map: three projections of a volume, or three frames of a clip, then the curves."""
    panels = figure.subplots(len(maps) + 1, 4, squeeze=False, gridspec_kw={"width_ratios": [1, 1, 1, 1.15]})
    picture_THW = grey(shown.picture_THWC)
    frames = np.linspace(0, len(picture_THW) - 1, 5).round().astype(int)[1:4]
    for row in range(len(maps) + 1):
        one = maps[row - 1] if row else None
        large_THW = None if one is None else enlarged(one.map_THW, picture_THW.shape)
        for column, (name, axis) in enumerate(_PROJECTIONS):
            axes = panels[row, column]
            if shown.kind == "volume":
                under = picture_THW.mean(axis)
                over = None if large_THW is None else large_THW.max(axis)
                aspect, label = _aspect(shown, axis), name
            else:
                under = picture_THW[frames[column]]
                over = None if large_THW is None else large_THW[frames[column]]
                aspect, label = _aspect(shown, 0), f"frame {frames[column]}"
            _overlay(axes, under, over, aspect=aspect)
            if row == 0:
                axes.set_title(label)
        if one is not None:
            panels[row, 0].set_ylabel(one.method, fontweight="bold")
            _draw_curves(panels[row, 3], one)
            panels[row, 3].set_title(one.verdict, fontsize=8, color=SECOND if one.failures else ACCENT)
    panels[0, 0].set_ylabel("input", fontweight="bold")
    _draw_legend(panels[0, 3])


def _ratio(shown: ShownInput, axis: int) -> float:
    """Height over width of the picture that is left when `axis` is gone.

    That of the extents, but never beyond twice or half: the depth of an OCT volume would be a hair's breadth. Where the
    extent of a volume is not known, a square.
    """
    if shown.extent is None and shown.kind == "volume":
        return 1.0
    sizes = shown.picture_THWC.shape[:3] if shown.extent is None else shown.extent
    height, width = (size for index, size in enumerate(sizes) if index != axis)
    return float(np.clip(height / width, 1 / _MOST_UNEQUAL, _MOST_UNEQUAL))


def _aspect(shown: ShownInput, axis: int) -> float:
    """Height of a voxel over its width, for a picture of :func:`_ratio`."""
    rows, columns = (count for index, count in enumerate(shown.picture_THWC.shape[:3]) if index != axis)
    return float(_ratio(shown, axis) * columns / rows)


def _overlay(axes: "Axes", picture_HW: Picture, map_HW: Map | None, *, aspect: float = 1.0) -> None:
    from matplotlib import colormaps

    axes.imshow(picture_HW * (1.0 if map_HW is None else _GREY_LEVEL), cmap="gray", vmin=0, vmax=1, aspect=aspect)
    if map_HW is not None:
        coloured_HWA = colormaps["inferno"](0.25 + 0.6 * map_HW)  # neither black nor white, which the input has
        coloured_HWA[..., 3] = _MOST_OPAQUE * map_HW
        axes.imshow(coloured_HWA, aspect=aspect)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _entitle(axes: "Axes", one: ShownMap) -> None:
    axes.set_title(f"{one.method}\n", color=INK)
    text = one.verdict if not one.failures else f"NOT FAITHFUL ({', '.join(one.failures)})"
    axes.text(0, 1.01, text, transform=axes.transAxes, fontsize=7, va="bottom",
              color=SECOND if one.failures else ACCENT)  # fmt: skip


def _draw_curves(axes: "Axes", one: ShownMap) -> None:
    share_S = one.share_S
    axes.plot(share_S, one.random_curve, color=QUIET, lw=1, dashes=(3, 2))
    axes.plot(share_S, one.deletion_curve, color=SECOND, lw=1.5)
    axes.plot((1 - share_S)[::-1], one.insertion_curve, color=ACCENT, lw=1.5)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.5, 1], ["0", "half", "all"])
    axes.set_yticks([0, 0.5, 1])
    axes.tick_params(labelsize=7)
    axes.grid(axis="y")
    mean, low, high = one.random
    axes.set_xlabel(
        f"deletion {one.deletion:.2f}, insertion {one.insertion:.2f}\nrandom {mean:.2f} [{low:.2f}, {high:.2f}]",
        fontsize=7.5,
    )


def _draw_legend(axes: "Axes") -> None:
    axes.set_axis_off()
    for place, (name, colour, dashes) in enumerate(
        (
            ("deletion: marked cells go first", SECOND, ()),
            ("insertion: marked cells come first", ACCENT, ()),
            ("deletion in random orders, mean", QUIET, (3, 2)),
        )
    ):
        height = 0.78 - 0.16 * place
        axes.plot([0.0, 0.12], [height, height], color=colour, lw=1.5, dashes=dashes or (None, None))
        axes.text(0.16, height, name, fontsize=7.5, va="center")
    axes.text(0, 0.26, "Up: probability of the target. Across: share of\ncells replaced or put back. Areas in numbers.",
              fontsize=7.5, va="top", color=QUIET)  # fmt: skip
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)


def _heat(axes: "Axes", values_LH: FloatArray, name: str, *, cmap: str, low: float, high: float) -> Any:
    drawn = axes.imshow(values_LH, cmap=cmap, vmin=low, vmax=high, aspect="auto", origin="lower")
    axes.set_title(name)
    axes.set_xlabel("head")
    axes.set_ylabel("layer")
    axes.set_xticks(_few(values_LH.shape[1]))
    axes.set_yticks(_few(values_LH.shape[0]))
    return drawn


def _png(figure: "Figure") -> bytes:
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=_DPI, metadata={"Software": None})
    return written.getvalue()
