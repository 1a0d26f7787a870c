"""Sections that show themselves only where they were computed: uncertainty, enough cases, segmentation.

Each is a plain dict, so that whoever computes it needs to know nothing of the report. Where an interval
belongs, an :class:`~medtransfer.metrics.intervals.Estimate` or its ``to_json()`` stands; shares are 0 to 1.

``result.uncertainty`` or ``result.record["uncertainty"]``, as
:meth:`medtransfer.metrics.uncertainty.Uncertainty.to_json` gives it::

    {"risk_coverage": {"x": [g], "y": [g], "low": [g], "high": [g]},     # share kept, error; low, high may be absent
     "deferral": [{"coverage": .9, "error": Estimate, "sensitivity": Estimate, ...}, ...],
     "coverage": .9,                                                     # what the sets or intervals promise
     "rows": {"": {"set_coverage": Estimate, "set_size": Estimate, "set_single": ..., "set_empty": ...},
              "a class": {"set_coverage": Estimate}, ...}}               # or interval_coverage, interval_width

``result.record["learning_curve"]``::

    {"measure": "auroc",
     "points": [{"cases": 50, "value": Estimate}, ...],                              # measured, nested subsets
     "curve": {"cases": [g], "value": [g], "low": [g], "high": [g]},                 # fitted and extrapolated
     "predicted": {"cases": 400, "value": Estimate},                                 # optional
     "held_back": {"cases": 200, "value": Estimate},                                 # optional check of the fit
     "target": .9, "needed": 620,                                                    # optional; None: out of reach
     "note": "..."}                                                                  # optional

``result.segmentation`` or ``result.record["segmentation"]``::

    {"tolerance_mm": 2.0,
     "structures": [{"name": "liver", "cases": 40, "missed": 1, "false_positive": 0, "dice": Estimate,
                     "dice_pooled": Estimate, "nsd": Estimate, "hd95_mm": Estimate, "volume_bias_ml": Estimate}],
     "cases": [{"case": "a1", "structure": "liver", "dice": .9, "nsd": .95, "hd95_mm": 3.1,
                "reference_ml": 1500.0, "predicted_ml": 1480.0}, ...]}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from medtransfer.metrics.intervals import Estimate
from medtransfer.report.figures import CYCLE, EVENT, INK, MODEL, MUTED, THIRD, draw, short
from medtransfer.report.words import Words

if TYPE_CHECKING:
    from medtransfer.evaluate import Evaluation

SETS = ("set_coverage", "set_size", "set_single", "set_empty", "interval_coverage", "interval_width")


def estimate(value: object) -> Estimate | None:
    """An estimate from itself, from its JSON form, or from a bare number."""
    if value is None or isinstance(value, Estimate):
        return value
    if isinstance(value, Mapping):
        names = {k: value.get(k) for k in ("value", "low", "high")}
        return Estimate(**names, method=str(value.get("method") or ""), note=str(value.get("note") or ""))
    return Estimate(float(str(value)))


def found(result: Evaluation, name: str) -> dict[str, Any]:
    """What was computed under a name: on the evaluation, or in its record."""
    value = getattr(result, name, None) or result.record.get(name)
    return dict(value) if isinstance(value, Mapping) else {}


def uncertainty(result: Evaluation) -> dict[str, Any] | None:
    """Risk–coverage curve, conformal sets and deferral, with estimates as such."""
    raw = found(result, "uncertainty")
    sets = [(name, {k: estimate(v) for k, v in row.items()}) for name, row in (raw.get("rows") or {}).items()]
    deferral = [
        (r["coverage"], {k: estimate(v) for k, v in r.items() if k != "coverage"}) for r in raw.get("deferral") or []
    ]
    curve = raw.get("risk_coverage") or None
    if not (sets or deferral or curve):
        return None
    return {
        "curve": curve,
        "sets": sets,
        "set_measures": [k for k in SETS if any(k in row for _, row in sets)],
        "level": raw.get("coverage"),
        "deferral": deferral,
        "measures": list(deferral[0][1]) if deferral else [],
    }


def enough(result: Evaluation) -> dict[str, Any] | None:
    """The learning curve: measured points, the fitted curve, and what was extrapolated."""
    raw = found(result, "learning_curve")
    points = [{"kind": "measured", **p} for p in raw.get("points") or []]
    if not points:
        return None
    points += [{"kind": kind, **raw[kind]} for kind in ("held_back", "predicted") if raw.get(kind)]
    rows = [{"kind": p["kind"], "cases": int(p["cases"]), "value": estimate(p["value"])} for p in points]
    asked = {k: raw.get(k) for k in ("curve", "target", "needed")}
    return {"rows": rows, "measure": str(raw.get("measure") or "auroc"), "note": str(raw.get("note") or ""), **asked}


def segmentation(result: Evaluation) -> dict[str, Any] | None:
    """Overlap and distance of each structure, and the ten worst cases."""
    raw = found(result, "segmentation")
    structures = [dict(r) for r in raw.get("structures") or []]
    if not structures:
        return None
    measures = [k for k in structures[0] if k not in ("name", "cases", "missed", "false_positive")]
    for row in structures:
        row |= {k: estimate(row.get(k)) for k in measures}
    cases = [dict(c) for c in raw.get("cases") or []]
    worst = sorted(cases, key=lambda c: -1.0 if c.get("dice") is None else float(c["dice"]))[:10]
    return {
        "tolerance_mm": raw.get("tolerance_mm"),
        "structures": structures,
        "measures": measures,
        "cases": cases,
        "worst": worst,
    }


def coverage_figure(curve: Mapping[str, Any], w: Words) -> str:
    """Error among the cases that are kept, as the least certain are left to a reader."""

    def plot(ax: Any) -> None:
        x, y = np.asarray(curve["x"], float), np.asarray(curve["y"], float)
        ax.plot(x, y, color=MODEL)
        if curve.get("low") is not None:
            low, high = (np.asarray(curve[k], float) for k in ("low", "high"))
            ax.fill_between(x, low, high, color=MODEL, alpha=0.16, linewidth=0)
        ax.set(xlabel=w.plain("figure.kept"), ylabel=w.plain("figure.risk"), xlim=(0, 1.01), ylim=(0, None))

    return draw("coverage", w.plain("alt.coverage"), plot, width=8.0, height=3.4)


def enough_figure(view: Mapping[str, Any], w: Words) -> str:
    """Measured points with intervals, the fitted curve with its band, and the target."""
    marks = {"measured": ("o", MODEL), "held_back": ("s", THIRD), "predicted": ("D", EVENT)}

    def plot(ax: Any) -> None:
        curve = view["curve"]
        if curve:
            x, y = (np.array(curve[k], dtype=np.float64) for k in ("cases", "value"))  # None becomes nan
            ax.plot(x, y, color=MUTED, linestyle="--", label=w.plain("enough.fitted"))
            if curve.get("low") is not None:
                low, high = (np.array(curve[k], dtype=np.float64) for k in ("low", "high"))
                ax.fill_between(x, low, high, color=MUTED, alpha=0.2, linewidth=0)
        for kind, (mark, colour) in marks.items():
            rows = [r for r in view["rows"] if r["kind"] == kind and r["value"]]
            for r in rows:
                if r["value"].low is not None:
                    ax.plot([r["cases"]] * 2, [r["value"].low, r["value"].high], color=colour, linewidth=1.4)
            if rows:
                at, of = [r["cases"] for r in rows], [r["value"].value for r in rows]
                ax.plot(at, of, mark, color=colour, markersize=6, label=w.plain(f"enough.{kind}"))
        if view["target"] is not None:
            ax.axhline(view["target"], color=INK, linewidth=1, linestyle=":", label=w.plain("enough.target"))
        ax.set(xlabel=w.plain("enough.cases"), ylabel=w.label(view["measure"]), xlim=(0, None))
        ax.legend(loc="lower right")

    return draw("enough", w.plain("alt.enough"), plot, width=8.0, height=3.8)


def strips_figure(view: Mapping[str, Any], w: Words) -> str | None:
    """Dice of every case, one strip a structure."""
    names = [str(s["name"]) for s in view["structures"]]
    values = [
        [float(c["dice"]) for c in view["cases"] if c["structure"] == n and c.get("dice") is not None] for n in names
    ]
    if not any(values):
        return None

    def plot(ax: Any) -> None:
        for k, of in enumerate(values):
            shift = ((np.arange(len(of)) * 0.618) % 1 - 0.5) * 0.5  # evenly spread, the same every time
            ax.plot(k + shift, of, "o", color=CYCLE[k % 3], markersize=4, alpha=0.6, markeredgewidth=0)
            if of:
                ax.plot([k - 0.3, k + 0.3], [np.median(of)] * 2, color=INK, linewidth=1.6)
        ax.set_xticks(range(len(names)), [short(n, 16) for n in names])
        ax.set(ylabel=w.label("dice"), ylim=(-0.02, 1.02), xlim=(-0.6, len(names) - 0.4))
        ax.grid(axis="x", visible=False)

    return draw("strips", w.plain("alt.strips"), plot)


def volumes_figure(view: Mapping[str, Any], w: Words) -> str | None:
    """Predicted minus reference volume against their mean."""
    rows = [c for c in view["cases"] if c.get("reference_ml") is not None and c.get("predicted_ml") is not None]
    if not rows:
        return None
    reference, predicted = (np.array([float(c[k]) for c in rows]) for k in ("reference_ml", "predicted_ml"))

    def plot(ax: Any) -> None:
        off = predicted - reference
        ax.plot((reference + predicted) / 2, off, "o", color=MODEL, markersize=4, alpha=0.7, markeredgewidth=0)
        ax.axhline(0, color=INK, linewidth=0.8)
        ax.axhline(off.mean(), color=THIRD, linewidth=1.6)
        for side in (-1.96, 1.96) if len(off) > 2 else ():
            ax.axhline(off.mean() + side * off.std(ddof=1), color=EVENT, linestyle="--", linewidth=1.6)
        ax.set(xlabel=w.plain("figure.mean") + " (ml)", ylabel=w.plain("figure.difference") + " (ml)")

    return draw("volumes", w.plain("alt.bland"), plot)
