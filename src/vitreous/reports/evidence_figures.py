"""Figures of a row's evidence: ROC, precision-recall, reliability, net benefit, abstention."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vitreous.core.files import write_text
from vitreous.core.undefined import Undefined
from vitreous.evidence.curves import Band
from vitreous.evidence.intervals import Interval
from vitreous.reports.leaderboard import Leaderboard
from vitreous.reports.line_plots import Curve, Number, Plot, plot_svg
from vitreous.reports.row_evidence import RowEvidence, TargetEvidence

FOLDER = "figures"
MAX_BANDS = 3  # curves of one plot that still have bands; more would hide each other
_LOWEST_BENEFIT = -0.1


def draw_evidence(evidence: Sequence[RowEvidence], leaderboard: Leaderboard) -> dict[str, dict[str, str]]:
    """Row → kind of figure → SVG text, of the rows that have curves."""
    return {
        one.name: {kind: svg for kind, draw in _DRAWN.items() if (svg := draw(one, leaderboard))}
        for one in evidence
        if any(target.roc is not None for target in one.targets)
    }


def write_figures(drawn: Mapping[str, Mapping[str, str]], run_dir: Path) -> None:
    """Write ``figures/<encoder>.<recipe>.<kind>.svg``."""
    for row, by_kind in drawn.items():
        for kind, svg in by_kind.items():
            write_text(run_dir / FOLDER / f"{row.replace(' / ', '.')}.{kind}.svg", svg)


def roc_svg(one: RowEvidence, leaderboard: Leaderboard) -> str:
    """Sensitivity over the false positive rate, a curve for each class or label."""
    curves = _band_curves(one, lambda target: target.roc, leaderboard)
    told = _told(one, lambda target: leaderboard.row(one.name).test[f"auroc_{target.positive}"], "AUROC")
    return plot_svg(
        Plot(f"ROC curves of {one.name}", told, "1 − specificity", "sensitivity", curves, diagonal=True)
    ) if curves else ""  # fmt: skip


def precision_recall_svg(one: RowEvidence, leaderboard: Leaderboard) -> str:
    """Precision over recall, a curve for each class or label."""
    curves = _band_curves(one, lambda target: target.precision_recall, leaderboard, steps=True)
    told = _told(one, lambda target: target.average_precision, "average precision")
    return plot_svg(
        Plot(f"Precision-recall curves of {one.name}", told, "recall", "precision", curves)
    ) if curves else ""  # fmt: skip


def reliability_svg(one: RowEvidence, leaderboard: Leaderboard) -> str:
    """Observed share over mean probability."""
    curves, told = [], []
    for part in one.calibration:
        if isinstance(part.bins, Undefined):
            continue
        bins = part.bins
        bounds = [(_number(each.observed.low), _number(each.observed.high)) for each in bins]
        curves.append(
            Curve(part.of, [each.mean_probability for each in bins], [_number(each.observed.value) for each in bins],
                  [low for low, _ in bounds], [high for _, high in bounds], marked=True, keyed=len(one.calibration) > 1)
        )  # fmt: skip
        told.append(f"{part.of}: expected calibration error {_said(part.measures['ece'])}")
    plot = Plot(f"Reliability of {one.name}", "; ".join(told), "mean probability", "observed share", tuple(curves),
                diagonal=True)  # fmt: skip
    return plot_svg(plot) if curves else ""


def decision_svg(one: RowEvidence, leaderboard: Leaderboard) -> str:
    """Net benefit over the threshold probability, each class beside treating all."""
    curves, told = [], []
    many = len(one.targets) > MAX_BANDS
    for target in one.targets:
        xs = [point.threshold for point in target.decision]
        lows = [] if many else [_number(point.model.low) for point in target.decision]
        highs = [] if many else [_number(point.model.high) for point in target.decision]
        curves.append(
            Curve(target.positive, xs, [_number(point.model.value) for point in target.decision], lows, highs)
        )
        if len(one.targets) == 1:
            curves.append(Curve("treat all", xs, [_number(point.treat_all.value) for point in target.decision],
                                quiet=True))  # fmt: skip
        useful = [p.threshold for p in target.decision if (_number(p.gain.value) or 0.0) > 0]
        told.append(f"{target.positive}: above treating all and none at {len(useful)} of {len(xs)} thresholds")
    top = max([y for curve in curves for y in curve.y if y is not None], default=0.1)
    plot = Plot(f"Net benefit of {one.name}", "; ".join(told), "threshold probability", "net benefit", tuple(curves),
                y_range=(_LOWEST_BENEFIT, max(0.1, 1.1 * top)))  # fmt: skip
    return plot_svg(plot)


def abstention_svg(one: RowEvidence, leaderboard: Leaderboard) -> str:
    """The metric over the share answered."""
    curves, told = [], []
    many = len(one.abstention) > MAX_BANDS
    for part in one.abstention:
        points = part.points
        curves.append(
            Curve(part.of, [point.coverage for point in points], [_number(point.metric.value) for point in points],
                  [] if many else [_number(point.metric.low) for point in points],
                  [] if many else [_number(point.metric.high) for point in points], keyed=len(one.abstention) > 1)
        )  # fmt: skip
        told.append(f"{part.of}: " + ", ".join(f"{p.coverage:.0%} {_said(p.metric)}" for p in points))
    title = leaderboard.scores.metrics[one.abstention[0].metric].title if one.abstention[0].metric in (
        leaderboard.scores.metrics) else "share right"  # fmt: skip
    plot = Plot(f"Abstention of {one.name}", "; ".join(told), "share answered", title, tuple(curves))
    return plot_svg(plot)


_DRAWN: dict[str, Callable[[RowEvidence, Leaderboard], str]] = {
    "roc": roc_svg,
    "precision_recall": precision_recall_svg,
    "reliability": reliability_svg,
    "decision_curve": decision_svg,
    "abstention": abstention_svg,
}


def _band_curves(
    one: RowEvidence,
    band_of: Callable[[TargetEvidence], Band | Undefined | None],
    leaderboard: Leaderboard,
    *,
    steps: bool = False,
) -> tuple[Curve, ...]:
    many = len(one.targets) > MAX_BANDS
    curves = []
    for target in one.targets:
        band = band_of(target)
        if band is None or isinstance(band, Undefined):
            continue
        lows = [] if many else [_number(bound.low) for bound in band.bounds]
        highs = [] if many else [_number(bound.high) for bound in band.bounds]
        curves.append(Curve(target.positive, band.x_T.tolist(), band.y_T.tolist(), lows, highs, steps=steps))
    return tuple(curves)


def _told(one: RowEvidence, number_of: Callable[[TargetEvidence], Interval], name: str) -> str:
    return "; ".join(f"{target.positive}: {name} {_said(number_of(target))}" for target in one.targets)


def _said(found: Interval) -> str:
    if isinstance(found.value, Undefined):
        return f"undefined ({found.value.reason})"
    if isinstance(found.low, Undefined) or isinstance(found.high, Undefined):
        return f"{found.value:.3f}"
    return f"{found.value:.3f}, {found.low:.3f} to {found.high:.3f}"


def _number(value: float | Undefined) -> Number:
    return None if isinstance(value, Undefined) else value
