"""Figures of the tasks beside classification: several labels, ordered classes, numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medtransfer.metrics.intervals import Estimate
from medtransfer.report.figures import CYCLE, EVENT, INK, MODEL, MUTED, THIRD, draw, short
from medtransfer.report.words import Words

if TYPE_CHECKING:
    from medtransfer.evaluate import Evaluation

Floats = NDArray[np.float64]
MOST_POINTS = 4000


def label_curves(result: Evaluation, w: Words) -> str:
    """ROC curve of each label over the cases in which it is known."""
    from medtransfer.metrics.classification import roc_curve

    p, grid = result.predictions, np.linspace(0, 1, 101)

    def plot(ax: Any) -> None:
        ax.plot([0, 1], [0, 1], color=MUTED, linestyle=(0, (4, 3)), linewidth=1)
        for k, name in enumerate(p.classes):
            known = np.isfinite(p.reference[:, k])
            y = p.reference[known, k] == 1
            if y.any() and not y.all():
                style = ("-", "--", "-.", ":")[k // len(CYCLE) % 4]
                curve = roc_curve(y, p.probability[known, k], grid)
                ax.plot(grid, curve, color=CYCLE[k % len(CYCLE)], linestyle=style, label=short(name, 22))
        ax.set(xlabel=w.plain("figure.fpr"), ylabel=w.label("sensitivity"), xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
        if ax.get_legend_handles_labels()[1]:
            ax.legend(loc="lower right", ncols=1 + len(p.classes) // 8, fontsize=8)

    return draw("classes", w.plain("alt.classes"), plot)


def together(result: Evaluation, w: Words) -> str:
    """How often two labels occur in one case by the reference: share of the row's label."""
    y = np.nan_to_num(np.asarray(result.predictions.reference, dtype=np.float64))
    counts = y.T @ y
    share = counts / np.maximum(np.diag(counts)[:, None], 1)
    names = [short(c, 16) for c in result.predictions.classes]

    def plot(ax: Any) -> None:
        from matplotlib.patches import Rectangle

        for (row, column), value in np.ndenumerate(share):
            colour = MUTED if row == column else MODEL
            ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=colour, alpha=0.04 + 0.5 * value))
            if len(names) <= 12:
                ax.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=8)
        ax.set_xticks(range(len(names)), names, rotation=35, ha="right", fontsize=8)
        ax.set_yticks(range(len(names)), names, fontsize=8)
        ax.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(names) - 0.5, -0.5), xlabel=w.plain("figure.also"))
        ax.grid(visible=False)

    return draw("together", w.plain("alt.together"), plot)


def distance(result: Evaluation, w: Words) -> str:
    """How far calls lie from the reference, in classes: below it to the left, above it to the right."""
    size = len(result.predictions.classes)
    steps = np.arange(1 - size, size)
    counts = np.array([np.trace(result.table, offset=int(k)) for k in steps])

    def plot(ax: Any) -> None:
        colours = [MODEL if k == 0 else EVENT for k in steps]
        ax.bar(steps, counts, width=0.8, color=colours)
        for k, count in zip(steps, counts, strict=True):
            if count:
                ax.text(k, count, f"{count}", ha="center", va="bottom", fontsize=9)
        ax.set_xticks(steps, [f"{k:+d}".replace("-", "−") if k else "0" for k in steps])
        ax.set(xlabel=w.plain("figure.distance"), ylabel=w.plain("word.cases"), ylim=(0, max(counts.max(), 1) * 1.12))
        ax.grid(axis="x", visible=False)

    return draw("distance", w.plain("alt.distance"), plot)


def cumulative(result: Evaluation, w: Words) -> str | None:
    """ROC curve of each way to cut the ordered classes in two."""
    from medtransfer.metrics.classification import roc_curve

    p, grid = result.predictions, np.linspace(0, 1, 101)
    cuts = [k for k in range(1, len(p.classes)) if (p.reference >= k).any() and not (p.reference >= k).all()]
    if not cuts:
        return None

    def plot(ax: Any) -> None:
        ax.plot([0, 1], [0, 1], color=MUTED, linestyle=(0, (4, 3)), linewidth=1)
        for k in cuts:
            curve = roc_curve(p.reference >= k, p.probability[:, k:].sum(axis=1), grid)
            style = ("-", "--", "-.", ":")[(k - 1) // len(CYCLE) % 4]
            name = w.plain("figure.at_least", name=short(p.classes[k], 20))
            ax.plot(grid, curve, color=CYCLE[(k - 1) % len(CYCLE)], linestyle=style, label=name)
        ax.set(xlabel=w.plain("figure.fpr"), ylabel=w.label("sensitivity"), xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
        ax.legend(loc="lower right")

    return draw("cumulative", w.plain("alt.classes"), plot)


def scatter(name: str, observed: Floats, predicted: Floats, unit: str, w: Words) -> str:
    """Reference against prediction with the line of identity."""
    keep = _some(len(observed))
    ends = np.array([min(observed.min(), predicted.min()), max(observed.max(), predicted.max())])

    def plot(ax: Any) -> None:
        ax.plot(ends, ends, color=MUTED, linestyle=(0, (4, 3)), linewidth=1, label=w.plain("figure.identity"))
        alpha = 0.75 if len(keep) < 300 else 0.35
        ax.plot(observed[keep], predicted[keep], "o", color=MODEL, markersize=4, alpha=alpha, markeredgewidth=0)
        ax.set(xlabel=_with(w.plain("figure.reference"), unit), ylabel=_with(w.plain("figure.predicted"), unit))
        ax.set_aspect("equal", adjustable="datalim")
        ax.legend(loc="upper left")

    return draw(name, w.plain("alt.scatter"), plot)


def bland_altman(
    name: str, observed: Floats, predicted: Floats, lines: Sequence[tuple[str, Estimate]], unit: str, w: Words
) -> str:
    """Difference against mean with bias and limits of agreement, each with its interval as a band.

    Parameters
    ----------
    lines : sequence of (label, Estimate)
        Bias first, then the limits (Bland & Altman 1986; 1999 for their intervals).
    """
    keep = _some(len(observed))
    mean, off = (observed + predicted) / 2, predicted - observed

    def plot(ax: Any) -> None:
        ax.axhline(0, color=INK, linewidth=0.8)
        alpha = 0.75 if len(keep) < 300 else 0.35
        ax.plot(mean[keep], off[keep], "o", color=MODEL, markersize=4, alpha=alpha, markeredgewidth=0)
        for i, (text, e) in enumerate(lines):
            if e.value is None:
                continue
            colour, style = (THIRD, "-") if i == 0 else (EVENT, "--")
            ax.axhline(e.value, color=colour, linestyle=style, linewidth=1.6)
            if e.low is not None and e.high is not None:
                ax.axhspan(e.low, e.high, color=colour, alpha=0.14, linewidth=0)
            said = f"{text}\n{w.estimate(Estimate(e.value))}"
            ax.annotate(said, (1.01, e.value), xycoords=("axes fraction", "data"), va="center", fontsize=8)
        ax.set(xlabel=_with(w.plain("figure.mean"), unit), ylabel=_with(w.plain("figure.difference"), unit))

    return draw(name, w.plain("alt.bland"), plot)


def errors(name: str, observed: Floats, predicted: Floats, unit: str, w: Words) -> str:
    """Histogram of predicted minus reference."""

    def plot(ax: Any) -> None:
        ax.hist(predicted - observed, bins=31, color=MODEL)
        ax.axvline(0, color=INK, linewidth=1)
        ax.set(xlabel=_with(w.plain("figure.difference"), unit), ylabel=w.plain("word.cases"))

    return draw(name, w.plain("alt.errors"), plot, height=3.4)


def _some(n: int) -> NDArray[np.int64]:
    """All points, or evenly some of them where there are too many to draw."""
    return np.unique(np.linspace(0, n - 1, min(n, MOST_POINTS)).round().astype(np.int64))


def _with(text: str, unit: str) -> str:
    return f"{text} ({unit})" if unit else text
