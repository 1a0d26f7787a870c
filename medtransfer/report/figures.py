"""Figures of the report as inline SVG: matplotlib without global state, deterministic, colours left to the page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medtransfer.metrics.calibration import reliability_bins
from medtransfer.metrics.intervals import Estimate, wilson
from medtransfer.report.words import Words

if TYPE_CHECKING:
    from medtransfer.evaluate import Evaluation

Floats = NDArray[np.float64]

# Okabe & Ito's colours, told apart by colour-blind readers; the page's style sheet owns the real values
INK, MUTED, LINE = "#1c2733", "#5c6b7a", "#dfe5eb"
MODEL, EVENT, THIRD = "#0072b2", "#d55e00", "#009e73"
VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line", MODEL: "--model", EVENT: "--event", THIRD: "--third"}
CYCLE = [MODEL, EVENT, THIRD, "#cc79a7", "#e69f00", "#56b4e9", "#f0e442", MUTED]
STYLE = {
    "font.size": 10,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "text.parse_math": False,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 2,
    "svg.fonttype": "none",
    "path.simplify": True,
}


def draw(
    name: str, alt: str, plot: Callable[[Any], None], *, width: float = 5.0, height: float = 4.0, columns: int = 1
) -> str:
    """An SVG element drawn by ``plot(axes)``; ``axes`` is a list where there are several columns.

    Parameters
    ----------
    name : str
        Prefix of the identifiers inside, unique in the page.
    alt : str
        What the figure shows, for those who do not see it.
    width, height : float
        Inches.
    """
    import matplotlib
    from markupsafe import escape
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots(1, columns)
        plot(axes)
        figure.patch.set_alpha(0)
        for one in np.atleast_1d(axes):
            one.patch.set_alpha(0)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg, kind = text.getvalue(), "plot wide" if width > 6 else "plot"
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.S)  # the page styles it
    svg = re.sub(r'\b(id=")', rf"\1{name}-", svg)
    svg = re.sub(r'(url\(#|xlink:href="#)', rf"\1{name}-", svg)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--sans)", svg)
    told = f'role="img" aria-label="{escape(alt)}" xmlns:xlink="http://www.w3.org/1999/xlink"'
    head = re.compile(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>')
    svg = head.sub(lambda m: f'<svg class="{kind}" viewBox="{m[1]}" {told}>', svg, count=1)  # alt may hold backslashes
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg.replace('xmlns:xlink="http://www.w3.org/1999/xlink"', "").replace("xlink:href", "href")


def short(text: str, width: int = 28) -> str:
    """A text in one line, cut to its width."""
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"


def band(ax: Any, curve: dict[str, Floats], colour: str, label: str, **line: Any) -> None:
    """A curve of an evaluation with its 95 % band."""
    ax.plot(curve["x"], curve["y"], color=colour, label=label, **line)
    if "low" in curve:
        ax.fill_between(curve["x"], curve["low"], curve["high"], color=colour, alpha=0.16, linewidth=0)


def roc(result: Evaluation, w: Words) -> str:
    """ROC curve with its band and the operating point."""

    def plot(ax: Any) -> None:
        ax.plot([0, 1], [0, 1], color=MUTED, linestyle=(0, (4, 3)), linewidth=1, label=w.plain("figure.chance"))
        band(
            ax,
            result.curves["roc"],
            MODEL,
            f"{w.plain('figure.model')}, {w.label('auroc')} {w.estimate(result.estimates['auroc'])}",
        )
        se, sp = result.estimates["sensitivity"].value, result.estimates["specificity"].value
        if se is not None and sp is not None:
            ax.plot([1 - sp], [se], "o", color=EVENT, markersize=9, label=w.plain("figure.point"), zorder=5)
        ax.set(xlabel=w.plain("figure.fpr"), ylabel=w.label("sensitivity"), xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
        ax.legend(loc="lower right")

    return draw("roc", w.plain("alt.roc", value=w.estimate(result.estimates["auroc"])), plot)


def precision_recall(result: Evaluation, w: Words) -> str:
    """Precision–recall curve with its band."""
    share = float((result.predictions.reference == 1).mean())

    def plot(ax: Any) -> None:
        ax.axhline(
            share,
            color=MUTED,
            linestyle=(0, (4, 3)),
            linewidth=1,
            label=w.plain("figure.chance_at", share=f"{share:.2f}"),
        )
        curve = {k: v[1:] for k, v in result.curves["pr"].items()}
        band(
            ax,
            curve,
            MODEL,
            f"{w.plain('figure.model')}, {w.plain('figure.ap')} {w.estimate(result.estimates['average_precision'])}",
        )
        se, ppv = result.estimates["sensitivity"].value, result.estimates["ppv"].value
        if se is not None and ppv is not None:
            ax.plot([se], [ppv], "o", color=EVENT, markersize=9, label=w.plain("figure.point"), zorder=5)
        ax.set(
            xlabel=w.plain("figure.recall"), ylabel=w.plain("figure.precision"), xlim=(-0.01, 1.01), ylim=(-0.01, 1.02)
        )
        ax.legend(loc="lower left")

    return draw("pr", w.plain("alt.pr", value=w.estimate(result.estimates["average_precision"])), plot)


def risks(result: Evaluation, w: Words) -> str:
    """Histograms of the predicted risk, one row an outcome."""
    y, p = result.predictions.reference == 1, result.predictions.positive
    bins = np.linspace(0, 1, 31)

    def plot(ax: Any) -> None:
        no, yes = np.histogram(p[~y], bins)[0], np.histogram(p[y], bins)[0]
        middle, width = (bins[:-1] + bins[1:]) / 2, bins[1] - bins[0]
        ax.bar(
            middle, yes, width * 0.9, color=EVENT, label=w.plain("figure.up", name=short(result.predictions.classes[1]))
        )
        ax.bar(
            middle,
            -no,
            width * 0.9,
            color=MODEL,
            label=w.plain("figure.down", name=short(result.predictions.classes[0])),
        )
        ax.axhline(0, color=INK, linewidth=0.8)
        cuts = sorted(set(result.threshold.by_fold.values())) if result.threshold else []
        for i, cut in enumerate(cuts):
            ax.axvline(
                cut, color=INK, linewidth=1.2, linestyle=(0, (2, 2)), label="" if i else w.plain("figure.threshold")
            )
        ax.yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
        ax.set(xlabel=w.plain("figure.probability"), ylabel=w.plain("word.cases"), xlim=(0, 1))
        ax.legend(loc="best")

    return draw("risks", w.plain("alt.risks"), plot)


def reliability(result: Evaluation, w: Words) -> str:
    """Calibration curve with its band, grouped observations with Wilson intervals, and after recalibration."""
    y, p = result.predictions.reference == 1, result.predictions.positive

    def plot(ax: Any) -> None:
        ax.plot([0, 1], [0, 1], color=MUTED, linestyle=(0, (4, 3)), linewidth=1, label=w.plain("figure.perfect"))
        band(ax, result.curves["reliability"], MODEL, w.plain("calibration.before"))
        if "reliability_recalibrated" in result.curves:
            band(ax, result.curves["reliability_recalibrated"], THIRD, w.plain("calibration.after"), linestyle="--")
        groups = reliability_bins(y, p)
        centre, share = [float(p[g].mean()) for g in groups], [float(y[g].mean()) for g in groups]
        ends = [wilson(float(y[g].sum()), len(g)) for g in groups]
        ax.vlines(centre, [e[0] for e in ends], [e[1] for e in ends], color=MUTED, linewidth=1)
        ax.plot(centre, share, "o", color=MODEL, markersize=5, label=w.plain("figure.groups"))
        ax.set(xlabel=w.plain("figure.probability"), ylabel=w.plain("figure.observed"), xlim=(0, 1), ylim=(-0.01, 1.01))
        ax.legend(loc="upper left")

    return draw("reliability", w.plain("alt.reliability"), plot)


def decision_curve(result: Evaluation, w: Words) -> str:
    """Net benefit of the model, of treating all and of treating none."""
    share = float((result.predictions.reference == 1).mean())
    curve = result.curves["net_benefit"]

    def plot(ax: Any) -> None:
        x = curve["x"]
        ax.axhline(0, color=INK, linewidth=1, label=w.plain("figure.none"))
        ax.plot(
            x,
            share - (1 - share) * x / (1 - x),
            color=EVENT,
            linewidth=1.5,
            linestyle="-.",
            label=w.plain("figure.all"),
        )
        band(ax, curve, MODEL, w.plain("figure.model"))
        if "net_benefit_recalibrated" in result.curves:
            after = result.curves["net_benefit_recalibrated"]
            ax.plot(x, after["y"], color=THIRD, linestyle="--", label=w.plain("figure.recalibrated"))
        ax.set(
            xlabel=w.plain("decision.threshold"),
            ylabel=w.plain("figure.benefit"),
            xlim=(0, 1),
            ylim=(-0.3 * share - 0.01, share * 1.1 + 0.01),
        )
        ax.legend(loc="upper right")

    return draw("decision", w.plain("alt.decision"), plot, width=8.0, height=3.8)


def forest(
    name: str, alt: str, rows: Sequence[tuple[str, Estimate]], label: str, w: Words, *, zero: float | None = None
) -> str:
    """Estimates with intervals, one a row; ``zero`` draws the line of no effect."""

    def plot(ax: Any) -> None:
        for i, (_, e) in enumerate(reversed(rows)):
            if e.value is None:
                ax.text(
                    0.02,
                    i,
                    w.plain("word.not_defined"),
                    transform=ax.get_yaxis_transform(),
                    va="center",
                    color=MUTED,
                    fontsize=9,
                )
                continue
            colour = MODEL if i == len(rows) - 1 and zero != 0 else INK
            if e.low is not None:
                ax.plot([e.low, e.high], [i, i], color=colour, linewidth=2, solid_capstyle="butt")
            ax.plot([e.value], [i], "s", color=colour, markersize=7)
            ax.annotate(w.estimate(e), (1.02, i), xycoords=("axes fraction", "data"), va="center", fontsize=9)
        if zero is not None:
            ax.axvline(zero, color=MUTED, linestyle=(0, (4, 3)), linewidth=1)
        ax.set_yticks(range(len(rows)), [short(text, 44) for text, _ in reversed(rows)])
        ax.set(xlabel=label, ylim=(-0.6, len(rows) - 0.4))
        ax.grid(axis="y", visible=False)
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)

    return draw(name, alt, plot, width=8.0, height=0.9 + 0.36 * len(rows))


def class_curves(result: Evaluation, w: Words) -> str:
    """One-versus-rest ROC curve of each class."""
    from medtransfer.metrics.classification import roc_curve

    p, grid = result.predictions, np.linspace(0, 1, 101)

    def plot(ax: Any) -> None:
        ax.plot([0, 1], [0, 1], color=MUTED, linestyle=(0, (4, 3)), linewidth=1)
        for k, name in enumerate(p.classes):
            if result.per_class[name]["auroc"].value is not None:
                sens = roc_curve(p.reference == k, p.probability[:, k], grid)
                style = ("-", "--", "-.", ":")[k // len(CYCLE) % 4]
                ax.plot(grid, sens, color=CYCLE[k % len(CYCLE)], linestyle=style, label=short(name))
        ax.set(xlabel=w.plain("figure.fpr"), ylabel=w.label("sensitivity"), xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
        ax.legend(loc="lower right", ncols=1 + len(p.classes) // 8)

    return draw("classes", w.plain("alt.classes"), plot)


def confusion(result: Evaluation, w: Words) -> str:
    """Confusion matrix: counts, shaded by the share of the row."""
    table, names = result.table, [short(c, 18) for c in result.predictions.classes]
    share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)

    def plot(ax: Any) -> None:
        from matplotlib.patches import Rectangle

        for (row, column), count in np.ndenumerate(table):
            fill, alpha = MODEL if row == column else EVENT, 0.06 + 0.5 * share[row, column]
            ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=fill, alpha=alpha, edgecolor=LINE))
            ax.text(column, row, f"{count}", ha="center", va="center", fontsize=10 if len(names) < 8 else 8)
        tilt = {"rotation": 30, "ha": "right"} if len(names) > 3 else {}
        ax.set_xticks(range(len(names)), names, **tilt)
        ax.set_yticks(range(len(names)), names)
        ax.set(xlabel=w.plain("figure.called"), ylabel=w.plain("author.reference_standard"))
        ax.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(names) - 0.5, -0.5))
        ax.grid(visible=False)

    return draw("confusion", w.plain("alt.confusion"), plot)


def learning(history: Sequence[dict[str, Any]], w: Words) -> str:
    """Loss and validation AUROC by epoch, one line a fold; epochs of all phases follow each other."""

    judged = any(row.get("val_auroc") is not None for row in history)

    def plot(axes: Any) -> None:
        axes = np.atleast_1d(axes)
        lines = [
            (axes[0], "train_loss", MODEL, "-", w.plain("figure.training")),
            (axes[0], "val_loss", EVENT, "--", w.plain("figure.validation")),
        ]
        lines += [(axes[1], "val_auroc", THIRD, "-", w.plain("figure.validation"))] if judged else []
        for k, fold in enumerate(sorted({int(row.get("fold") or 0) for row in history})):
            rows = [row for row in history if int(row.get("fold") or 0) == fold]
            x, mark = np.arange(1, len(rows) + 1), "o" if len(rows) < 15 else None
            for ax, key, colour, style, label in lines:
                values = np.array([np.nan if row.get(key) is None else float(row[key]) for row in rows])
                said = "" if k or not np.isfinite(values).any() else label
                ax.plot(x, values, color=colour, linestyle=style, marker=mark, markersize=3, linewidth=1.6, label=said)
            changes = [i for i in range(1, len(rows)) if rows[i].get("phase") != rows[i - 1].get("phase")]
            for ax in axes:
                for i in changes if not k else []:
                    ax.axvline(i + 0.5, color=MUTED, linewidth=1, linestyle=":")
        axes[0].set(ylabel=w.plain("figure.loss"))
        if judged:
            axes[1].set(ylabel=w.plain("figure.val_auroc"))
        for ax in axes:
            ax.set(xlabel=w.plain("figure.epoch"))
            ax.xaxis.get_major_locator().set_params(integer=True)
            if ax.get_legend_handles_labels()[1]:
                ax.legend(loc="best")

    alt = w.plain("alt.learning")
    return draw("learning", alt, plot, width=8.0, height=3.0, columns=2 if judged else 1)
