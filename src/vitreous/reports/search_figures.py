"""Figures of a hyper-parameter search: history, importance, val curves."""

from collections.abc import Mapping, Sequence

from vitreous.core.undefined import Undefined
from vitreous.reports.figures import ACCENT, FLOOR, QUIET, SECOND, drawing_style, svg_text


def history_svg(trials: Sequence[tuple[int, str, float | None]], metric: str) -> str:
    """The score of every trial and the best so far; pruned and failed trials as marks below.

    Args:
        trials: number, outcome (complete, pruned, failed) and score, which a complete one has.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    scored = [(number, score) for number, outcome, score in trials if outcome == "complete" and score is not None]
    with drawing_style():
        figure = Figure(figsize=(6.4, 2.8), layout="constrained")
        axes = figure.add_subplot()
        best: list[float] = []
        for _, score in scored:
            best.append(max(score, best[-1]) if best else score)
        numbers = [number for number, _ in scored]
        axes.plot(numbers, [score for _, score in scored], "o", color=ACCENT, ms=4, label="trial")
        axes.plot(numbers, best, color=ACCENT, lw=1.2, drawstyle="steps-post", label="best so far")
        for outcome, marker in (("pruned", "|"), ("failed", "x")):
            ended = [number for number, other, _ in trials if other == outcome]
            if ended:
                axes.plot(ended, [0.02] * len(ended), marker, color=SECOND, ms=6, label=outcome, clip_on=False,
                          transform=axes.get_xaxis_transform())  # fmt: skip
        axes.set_xlabel("trial")
        axes.set_ylabel(f"val {metric}")
        axes.grid(axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(loc="outside upper center", ncols=4)
        told = f"{len(trials)} trials, {len(scored)} with a score; " + (
            f"best {best[-1]:.3f}, reached in trial {numbers[best.index(best[-1])]}" if best else "none has one"
        )
        return svg_text(figure, f"Search history: val {metric}", told)


def importance_svg(importance: Mapping[str, float] | Undefined) -> str:
    """The share of the scores' variance that each key explains; where there is none, why."""
    from matplotlib.figure import Figure

    title = "Importance of each key (fANOVA)"
    with drawing_style():
        if isinstance(importance, Undefined):
            figure = Figure(figsize=(6.4, 0.9), layout="constrained")
            axes = figure.add_subplot()
            axes.set_axis_off()
            axes.text(0.5, 0.5, f"undefined: {importance.reason}", ha="center", va="center", color=QUIET)
            return svg_text(figure, title, f"undefined: {importance.reason}")
        ranked = sorted(importance.items(), key=lambda item: (-item[1], item[0]))
        figure = Figure(figsize=(6.4, 0.3 * len(ranked) + 0.8), layout="constrained")
        axes = figure.add_subplot()
        axes.barh(range(len(ranked)), [share for _, share in ranked], color=ACCENT, height=0.6)
        axes.set_yticks(range(len(ranked)), [key for key, _ in ranked])
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        for place, (_, share) in enumerate(ranked):
            axes.text(share, place, f" {share:.2f}", va="center", fontsize=8)
        axes.set_xlim(0, 1)
        axes.set_xlabel("share of the variance of val scores that it explains")
        return svg_text(figure, title, "; ".join(f"{key} {share:.2f}" for key, share in ranked))


def curves_svg(trials: Sequence[tuple[int, str, Mapping[int, float]]], metric: str) -> str:
    """Val curves of all trials, those that were pruned in another colour, to where they ended.

    Args:
        trials: number, outcome, and epoch → val metric.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    drawing = {"complete": (ACCENT, "-"), "pruned": (SECOND, "--"), "failed": (FLOOR, ":")}
    with drawing_style():
        figure = Figure(figsize=(6.4, 2.8), layout="constrained")
        axes = figure.add_subplot()
        named = set()
        for _, outcome, curve in trials:
            colour, line = drawing[outcome]
            epochs = sorted(curve)
            axes.plot(epochs, [curve[epoch] for epoch in epochs], line, color=colour, lw=1.1, alpha=0.8,
                      marker="o", ms=2.5, label=None if outcome in named else outcome)  # fmt: skip
            named.add(outcome)
        axes.set_xlabel("epoch")
        axes.set_ylabel(f"val {metric}")
        axes.grid(axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if named:
            figure.legend(loc="outside upper center", ncols=3)
        told = "; ".join(
            f"trial {number} {outcome} after epoch {max(curve)} at {curve[max(curve)]:.3f}"
            for number, outcome, curve in trials
        )
        return svg_text(figure, f"Val {metric} by epoch", told)
