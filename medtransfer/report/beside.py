"""Another tool's Dice beside the run's: a table, and the differences case by case as a figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from medtransfer.report import figures
from medtransfer.report.figures import EVENT, INK, MODEL, THIRD, draw
from medtransfer.report.words import Words

if TYPE_CHECKING:
    from medtransfer.segment.beside import Beside
    from medtransfer.segment.evaluate import Segmented


def content(result: Segmented, w: Words) -> list[dict[str, Any]]:
    """A row for each column that was compared, with its figure."""
    found = []
    for number, b in enumerate(result.beside):
        name = w.plain("beside.all") if b.structure == "all" else b.structure
        p = w.plain("word.not_defined") if b.p is None else "< 0.001" if b.p < 0.001 else f"{b.p:.3f}"
        found.append(
            {"name": name, "column": b.column, "cases": len(b.cases), "left_out": b.left_out, "ours": b.mean,
             "theirs": b.other, "difference": b.difference, "p": p, "reading": _reading(b, w),
             "figure": Markup(_differences(number, b, name, w))}  # noqa: S704  our own drawing
        )  # fmt: skip
    return found


def _reading(b: Beside, w: Words) -> str:
    if b.p is None or b.difference.value is None:
        return w.plain("beside.unproven")
    if b.p >= 0.05:
        return w.plain("beside.unproven")
    return w.plain("beside.better" if b.difference.value > 0 else "beside.worse", other=b.column)


def _differences(number: int, b: Beside, name: str, w: Words) -> str:
    """Differences of the cases against the mean of both values (Bland and Altman)."""
    gap, middle = b.ours - b.theirs, (b.ours + b.theirs) / 2

    def plot(ax: Any) -> None:
        ax.plot(middle, gap, "o", color=MODEL, markersize=4, alpha=0.7, markeredgewidth=0)
        ax.axhline(0, color=INK, linewidth=0.8)
        ax.axhline(gap.mean(), color=THIRD, linewidth=1.6)
        for side in (-1.96, 1.96) if len(gap) > 2 else ():
            ax.axhline(gap.mean() + side * gap.std(ddof=1), color=EVENT, linestyle="--", linewidth=1.6)
        ax.set(xlabel=w.plain("beside.mean_of_both"), ylabel=w.plain("beside.difference"))
        ax.set_title(figures.short(f"{name} – {b.column}", 40))

    return draw(f"beside{number}", f"{w.plain('beside.alt')}: {name}, {b.column}", plot)
