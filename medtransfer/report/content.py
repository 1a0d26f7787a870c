"""What the report's templates show: an Evaluation and its record, turned into texts, tables and figures."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from medtransfer.metrics.decision import interventions_avoided, treat_all
from medtransfer.metrics.intervals import Estimate
from medtransfer.report import drawings, explained, extras, figures, tables, task_figures
from medtransfer.report.checklist import FIELDS, FIRST, checklist
from medtransfer.report.sections import sections
from medtransfer.report.words import Words

if TYPE_CHECKING:
    from medtransfer.evaluate import Evaluation

TILES = {
    "binary": ("sensitivity", "specificity", "ppv", "npv", "calibration_slope"),
    "classification": ("balanced_accuracy", "mcc", "scaled_brier", "log_loss"),
    "multilabel": ("macro_average_precision", "micro_auroc", "exact_match", "hamming_loss"),
    "ordinal": ("kappa_linear", "exact_agreement", "within_one", "class_mae"),
    "regression": ("rmse", "r2", "ccc", "bias"),
}


def percent(value: float | None) -> str:
    """A share in per cent without decimals."""
    return "–" if value is None else f"{100 * value:.0f} %"


def content(result: Evaluation, w: Words, *, drawn: bool = True) -> dict[str, Any]:
    """All that the templates need, by name; without figures and pictures where they are not ``drawn``."""
    from medtransfer import __version__
    from medtransfer.metrics.names import LABELS

    record: dict[str, Any] = dict(result.record)
    task = tables.task_of(result)
    binary = task == "classification" and result.threshold is not None
    author = {k: str(v) for k, v in _mapping(record.get("author")).items() if v}
    by_class = task in ("classification", "ordinal")
    evidence = explained.content(result, w) if drawn and by_class else {}
    shown = tables.gallery(result, w) if drawn and not by_class else []
    pictured = [s.case for s in shown] or [x["shown"].case for x in evidence.get("errors", [])]
    view: dict[str, Any] = {
        "result": result,
        "w": w,
        "e": result.estimates,
        "labels": LABELS,
        "task": task,
        "binary": binary,
        "primary": result.estimates[result.primary],
        "tiles": [k for k in TILES["binary" if binary else task] if k in result.estimates],
        "overall": [k for k, _ in tables.ordered(result.estimates)],
        "classes": result.predictions.classes,
        "title": str(record.get("title") or w.plain("page.title")),
        "synthetic": bool(record.get("synthetic")),
        "record": record,
        "none_word": w.plain("word.not_recorded"),
        "author": author,
        "author_keys": list(FIRST),
        "author_more": [k for k in FIELDS if k not in FIRST],
        "model": _mapping(record.get("model")),
        "receipt": receipt_rows(_mapping(_mapping(record.get("model")).get("receipt")), w),
        "recipe": _flat(_mapping(record.get("recipe")), w),
        "table1": _mapping(record.get("table1")),
        "audit": _mapping(record.get("audit")),
        "environment": _mapping(record.get("environment")),
        "hashes": _mapping(record.get("hashes")),
        "version": str(record.get("version") or __version__),
        "verdict": _verdict(result, task, w),
        "thresholds": _thresholds(result, w),
        "natural": natural(result) if binary else None,
        "errors": shown,
        "explained": evidence,
        "cases": tables.cases(result, pictured, w) if drawn else None,
        "per_label": tables.per_label(result),
        "targets": tables.targets(result, w) if drawn and task == "regression" else [],
        "uncertainty": extras.uncertainty(result),
        "enough": extras.enough(result),
        "segmentation": extras.segmentation(result),
        "decisions": _decisions(result) if binary else [],
        "points": _points(result, w) if binary and drawn else Markup("null"),
        "methods": w.methods([e for row in (result.estimates, *result.per_class.values()) for e in row.values()]),
    }
    view["sections"] = sections(view)
    view["checklist"] = checklist(result, author, {s.id for s in view["sections"]})
    view["fig"] = _figures(result, view, w) if drawn else {}
    return view


def natural(result: Evaluation) -> dict[str, int] | None:
    """Of 100 cases: diseased, found, missed, healthy, false alarms, cleared; None where it is not defined."""
    (tn, fp), (fn, tp) = result.table.tolist()
    if not tp + fn or not tn + fp:
        return None
    diseased = round(100 * (tp + fn) / (tp + fn + tn + fp))
    found = round(diseased * tp / (tp + fn))
    alarms = round((100 - diseased) * fp / (tn + fp))
    return {
        "diseased": diseased,
        "found": found,
        "missed": diseased - found,
        "healthy": 100 - diseased,
        "alarms": alarms,
        "cleared": 100 - diseased - alarms,
    }


def _verdict(result: Evaluation, task: str, w: Words) -> str:
    if result.estimates[result.primary].value is None:
        return w.plain("verdict.undefined")
    if any(c.status == "serious" for c in result.checks):
        return w.plain("verdict.serious")
    kind = "agrees" if task in ("ordinal", "regression") else "ranks"
    status = "caution" if any(c.status == "caution" for c in result.checks) else "good"
    return w.plain(f"verdict.{status}_{kind}")


def _thresholds(result: Evaluation, w: Words) -> str:
    if result.threshold is None:
        return w.plain("word.most_probable")
    values = [v for _, v in sorted(result.threshold.by_fold.items())]
    if len(set(values)) == 1:
        return f"{values[0]:.3f}"
    return w.plain("word.one_a_fold", values=", ".join(f"{v:.3f}" for v in values))


def _decisions(result: Evaluation) -> list[dict[str, Any]]:
    curve = result.curves["net_benefit"]
    at = np.array([4, 9, 19, 29, 49])
    everyone = treat_all(result.predictions.reference == 1, curve["x"][at])
    avoided = interventions_avoided(curve["y"][at], everyone, curve["x"][at])
    rows = []
    for i, k in enumerate(at):
        low, high = (float(curve[end][k]) if end in curve else None for end in ("low", "high"))
        rows.append(
            {
                "threshold": float(curve["x"][k]),
                "model": Estimate(float(curve["y"][k]), low, high),
                "all": f"{everyone[i]:.3f}".replace("-", "−"),
                "avoided": f"{avoided[i]:.1f}".replace("-", "−"),
            }
        )
    return rows


def _points(result: Evaluation, w: Words) -> Markup:
    """The 2×2 table at up to 200 thresholds, for the slider, and its words."""
    y, p = result.predictions.reference == 1, result.predictions.positive
    cuts = np.unique(np.quantile(p, np.linspace(0, 1, 200)).round(4))
    values = sorted(set(result.threshold.by_fold.values())) if result.threshold else []
    own = float(np.median(values)) if values else 0.5
    cuts = np.unique(np.append(cuts, own))
    rows = [[round(float(t), 4), *(int((m & (p >= t)).sum()) for m in (y, ~y))] for t in cuts]
    names = ("diseased", "found", "missed", "alarms", "cleared")
    data = {
        "rows": rows,
        "positive": int(y.sum()),
        "negative": int((~y).sum()),
        "start": int(np.searchsorted(cuts, own)),
        "words": {
            "none": w.plain("word.not_defined"),
            "sentence": w.plain("slider.sentence", **{n: f"{{{n}}}" for n in names}),
        },
    }
    return Markup(json.dumps(data).replace("<", "\\u003c"))  # noqa: S704  numbers and our own words


def _figures(result: Evaluation, view: dict[str, Any], w: Words) -> dict[str, Markup]:
    task, record, found = view["task"], view["record"], dict[str, str | None]()
    if view["binary"]:
        found |= _two_classes(result, view["natural"], w)
    elif task == "multilabel":
        found |= {"forest": _forest(result, "auroc", "macro_auroc", w)}
        found |= {"forest_ap": _forest(result, "average_precision", "macro_average_precision", w)}
        found |= {"classes": task_figures.label_curves(result, w), "together": task_figures.together(result, w)}
    elif task == "ordinal":
        found |= {"confusion": figures.confusion(result, w), "distance": task_figures.distance(result, w)}
        found |= {"cumulative": task_figures.cumulative(result, w)}
    elif task == "classification":
        found |= {"forest": _forest(result, "auroc", "macro_auroc", w)}
        found |= {"classes": figures.class_curves(result, w), "confusion": figures.confusion(result, w)}
    found |= _comparisons(result, w)
    history = [row for row in record.get("history") or [] if isinstance(row, dict)]
    if len({row.get("epoch") for row in history}) > 1:
        found["learning"] = figures.learning(history, w)
    steps = [s for s in record.get("flow") or [] if isinstance(s, list | tuple) and len(s) >= 2]
    if steps:
        found["flow"] = drawings.flow(steps, w)
    if view["uncertainty"] and view["uncertainty"]["curve"]:
        found["coverage"] = extras.coverage_figure(view["uncertainty"]["curve"], w)
    if view["enough"]:
        found["enough"] = extras.enough_figure(view["enough"], w)
    if view["segmentation"]:
        found["strips"] = extras.strips_figure(view["segmentation"], w)
        found["volumes"] = extras.volumes_figure(view["segmentation"], w)
    return {name: Markup(svg) for name, svg in found.items() if svg}  # noqa: S704  drawn by us, texts escaped


def _two_classes(result: Evaluation, facts: dict[str, int] | None, w: Words) -> dict[str, str | None]:
    found: dict[str, str | None] = {"risks": figures.risks(result, w), "decision": figures.decision_curve(result, w)}
    if result.estimates["auroc"]:
        found |= {"roc": figures.roc(result, w), "pr": figures.precision_recall(result, w)}
    if np.isfinite(result.curves["reliability"]["y"]).all():
        found["reliability"] = figures.reliability(result, w)
    if facts:
        found["hundred"] = drawings.hundred(facts["found"], facts["missed"], facts["alarms"], w)
    return found


def _forest(result: Evaluation, each: str, mean: str, w: Words) -> str:
    rows = [(name, row[each]) for name, row in result.per_class.items() if each in row]
    if mean in result.estimates:
        rows = [(w.plain("figure.macro"), result.estimates[mean]), *rows]
    alt = w.plain("alt.forest", measure=w.label(each))
    zero = 0.5 if each == "auroc" else None
    return figures.forest("forest" if zero else "forest-ap", alt, rows, w.label(each), w, zero=zero)


def _comparisons(result: Evaluation, w: Words) -> dict[str, str | None]:
    e, found = result.estimates, dict[str, str | None]()
    label = w.label(result.primary)
    zero = 0.5 if result.primary.endswith("auroc") else None
    if result.controls:
        values = [(w.plain("figure.this"), e[result.primary]), *((c.name, c.value) for c in result.controls)]
        found["controls"] = figures.forest("controls", w.plain("alt.controls"), values, label, w, zero=zero)
        gains = [(w.plain("figure.minus", name=c.name), c.difference) for c in result.controls]
        of = w.plain("figure.difference_in", measure=label)
        found["gains"] = figures.forest("gains", w.plain("alt.gains"), gains, of, w, zero=0)
    if any(s.auroc for s in result.subgroups):
        rows = [(w.plain("figure.everyone"), e[result.primary])]
        rows += [(f"{s.grouping}: {s.level}", s.auroc) for s in result.subgroups if s.auroc]
        found["subgroups"] = figures.forest("subgroups", w.plain("alt.subgroups"), rows, label, w)
    return found


def receipt_rows(receipt: dict[str, Any], w: Words) -> list[tuple[str, str, list[str]]]:
    """What became of the tensors of a weights file: in words, how many, which."""
    rows = []
    for key in ("loaded", "reshaped", "new", "unused"):
        value = receipt.get(key)
        if value is not None:
            names = [str(v) for v in value] if isinstance(value, list | tuple) else []
            count = len(names) if isinstance(value, list | tuple) else value
            rows.append((w.plain(f"receipt.{key}"), w.number(count), names))
    return rows


def _mapping(value: object) -> dict[str, Any]:
    return {str(k): v for k, v in value.items()} if isinstance(value, dict) else {}


def _flat(value: dict[str, Any], w: Words) -> dict[str, str]:
    return {k: w.number(v) if not isinstance(v, dict | list) else json.dumps(v) for k, v in value.items()}
