"""What the report's templates show: an Evaluation and its record, turned into texts, tables and figures."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from medtransfer.metrics.decision import interventions_avoided, treat_all
from medtransfer.metrics.intervals import Estimate
from medtransfer.report import drawings, explained, figures
from medtransfer.report.checklist import checklist

if TYPE_CHECKING:
    from medtransfer.evaluate import Evaluation

NONE = "not recorded"
DIRECTION = {  # what the reader should hope for
    "auroc": "1 is perfect, 0.5 chance",
    "macro_auroc": "1 is perfect, 0.5 chance",
    "fold_auroc": "each fold ranked on its own",
    "average_precision": "1 is perfect, the prevalence is chance",
    "sensitivity": "share of diseased cases found",
    "specificity": "share of healthy cases cleared",
    "ppv": "share of alarms that are right, at this prevalence",
    "npv": "share of all-clears that are right, at this prevalence",
    "lr_positive": "above 10 rules in",
    "lr_negative": "below 0.1 rules out",
    "balanced_accuracy": "mean sensitivity of the classes",
    "mcc": "1 is perfect, 0 chance",
    "brier": "0 is perfect",
    "scaled_brier": "1 is perfect, 0 no better than the prevalence",
    "log_loss": "0 is perfect",
    "calibration_slope": "1 is perfect, below 1 too extreme",
    "calibration_intercept": "0 is perfect, above 0 risks too low",
    "observed_expected": "1 is perfect, above 1 risks too low",
    "ece": "0 is perfect; depends on the binning",
    "f1": "depends on prevalence",
    "accuracy": "depends on prevalence",
}


def est(value: Estimate | None) -> str:
    """An estimate with its interval as text."""
    return "not defined" if value is None else str(value).split(" (")[0] if value.value is None else str(value)


def number(value: object) -> str:
    """A count with thin spaces, or 'not recorded'."""
    if isinstance(value, bool) or value is None or value == "":
        return NONE if value in (None, "") else str(value)
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f")
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def percent(value: float | None) -> str:
    """A share in per cent without decimals."""
    return "–" if value is None else f"{100 * value:.0f} %"


def markdown(value: object) -> str:
    """Text that stays text in Markdown: one line, no markup, no HTML."""
    text = " ".join(str(value).split())
    return re.sub(
        r"([\\`*_{}\[\]()#!|~])", r"\\\1", text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    )


def content(result: Evaluation, *, drawn: bool = True) -> dict[str, Any]:
    """All that the templates need, by name."""
    from medtransfer import __version__
    from medtransfer.metrics.names import LABELS

    record: dict[str, Any] = dict(result.record)
    binary = result.threshold is not None
    author = {k: str(v) for k, v in _mapping(record.get("author")).items() if v}
    serious = sum(c.status == "serious" for c in result.checks)
    return {
        "result": result,
        "e": result.estimates,
        "labels": LABELS,
        "direction": DIRECTION,
        "binary": binary,
        "primary": result.estimates[result.primary],
        "primary_label": LABELS[result.primary],
        "classes": result.predictions.classes,
        "title": str(record.get("title") or "Evaluation report"),
        "synthetic": bool(record.get("synthetic")),
        "record": record,
        "author": author,
        "model": _mapping(record.get("model")),
        "receipt": _receipt(_mapping(_mapping(record.get("model")).get("receipt"))),
        "recipe": _flat(_mapping(record.get("recipe"))),
        "table1": _mapping(record.get("table1")),
        "audit": _mapping(record.get("audit")),
        "environment": _mapping(record.get("environment")),
        "hashes": _mapping(record.get("hashes")),
        "version": str(record.get("version") or __version__),
        "serious": serious,
        "cautions": sum(c.status == "caution" for c in result.checks),
        "verdict": _verdict(result, serious),
        "thresholds": _thresholds(result),
        "natural": natural(result) if binary else None,
        "checklist": checklist(result, author),
        "explained": explained.content(result) if drawn else {},
        "decisions": _decisions(result) if binary else [],
        "points": _points(result) if binary and drawn else Markup("null"),
        "fig": _figures(result, record, binary) if drawn else {},
        "methods": _methods(result),
    }


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


def _verdict(result: Evaluation, serious: int) -> str:
    primary = result.estimates[result.primary]
    if primary.value is None:
        return "These data do not define how well the model discriminates."
    if serious:
        return "Read the red flags before the numbers: at least one finding puts the result in doubt."
    if any(c.status == "caution" for c in result.checks):
        return "The model separates the classes better than chance; the cautions below limit what follows from that."
    return "The model separates the classes better than chance, and no check that was made speaks against the result."


def _thresholds(result: Evaluation) -> str:
    if result.threshold is None:
        return "the most probable class"
    values = [v for _, v in sorted(result.threshold.by_fold.items())]
    return f"{values[0]:.3f}" if len(set(values)) == 1 else ", ".join(f"{v:.3f}" for v in values) + " (one a fold)"


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


def _points(result: Evaluation) -> Markup:
    """The 2×2 table at up to 200 thresholds, for the slider."""
    y, p = result.predictions.reference == 1, result.predictions.positive
    cuts = np.unique(np.quantile(p, np.linspace(0, 1, 200)).round(4))
    values = sorted(set(result.threshold.by_fold.values())) if result.threshold else []
    own = float(np.median(values)) if values else 0.5
    cuts = np.unique(np.append(cuts, own))
    rows = [[round(float(t), 4), *(int((m & (p >= t)).sum()) for m in (y, ~y))] for t in cuts]
    data = {
        "rows": rows,
        "positive": int(y.sum()),
        "negative": int((~y).sum()),
        "start": int(np.searchsorted(cuts, own)),
    }
    return Markup(json.dumps(data).replace("<", "\\u003c"))  # noqa: S704  numbers only


def _figures(result: Evaluation, record: dict[str, Any], binary: bool) -> dict[str, Markup]:
    from medtransfer.metrics.names import LABELS

    e = result.estimates
    found: dict[str, str] = {}
    if binary:
        if e["auroc"]:
            found |= {"roc": figures.roc(result), "pr": figures.precision_recall(result)}
        found["risks"] = figures.risks(result)
        if np.isfinite(result.curves["reliability"]["y"]).all():
            found["reliability"] = figures.reliability(result)
        found["decision"] = figures.decision_curve(result)
        facts = natural(result)
        if facts:
            found["hundred"] = drawings.hundred(facts["found"], facts["missed"], facts["alarms"])
    else:
        rows = [(name, row["auroc"]) for name, row in result.per_class.items()]
        rows = [("Macro average", e["macro_auroc"]), *rows]
        found["forest"] = figures.forest("forest", "AUROC of each class", rows, "AUROC, one versus rest", zero=0.5)
        found["classes"] = figures.class_curves(result)
        found["confusion"] = figures.confusion(result)
    if result.controls:
        values = [("This model", e[result.primary]), *((c.name, c.value) for c in result.controls)]
        found["controls"] = figures.forest(
            "controls", "AUROC of model and controls", values, LABELS[result.primary], zero=0.5
        )
        gains = [(f"minus {c.name}", c.difference) for c in result.controls]
        found["gains"] = figures.forest("gains", "Gain over each control", gains, "Difference in AUROC", zero=0)
    if any(s.auroc for s in result.subgroups):
        rows = [("All cases", e["auroc"])] + [
            (f"{s.grouping}: {s.level}", s.auroc) for s in result.subgroups if s.auroc
        ]
        found["subgroups"] = figures.forest("subgroups", "AUROC by subgroup", rows, "AUROC")
    history = [row for row in record.get("history") or [] if isinstance(row, dict)]
    if len({row.get("epoch") for row in history}) > 1:
        found["learning"] = figures.learning(history)
    steps = [s for s in record.get("flow") or [] if isinstance(s, list | tuple) and len(s) >= 2]
    if steps:
        found["flow"] = drawings.flow(steps)
    return {name: Markup(svg) for name, svg in found.items()}  # noqa: S704  drawn by us, texts escaped


def _receipt(receipt: dict[str, Any]) -> list[tuple[str, str, list[str]]]:
    words = {
        "loaded": "loaded as they are",
        "reshaped": "reshaped to fit",
        "new": "new, untrained at the start",
        "unused": "in the file, not used",
    }
    rows = []
    for key, text in words.items():
        value = receipt.get(key)
        if value is not None:
            names = [str(v) for v in value] if isinstance(value, list | tuple) else []
            rows.append((text, number(len(names) if isinstance(value, list | tuple) else value), names))
    return rows


def method(estimate: Estimate) -> str:
    """How an interval was made, in a word or two."""
    text = estimate.method
    if text.startswith("patient-cluster bootstrap"):
        return "bootstrap, log-odds" if "log-odds" in text else "bootstrap, percentile"
    return "Wilson, clusters" if "effective" in text else text.split("'")[0] or "none"


def _methods(result: Evaluation) -> list[str]:
    found = {method(e) for row in (result.estimates, *result.per_class.values()) for e in row.values() if e.method}
    words = {
        "bootstrap, log-odds": "bootstrap, log-odds: patients drawn anew with all their cases, Student's t standard "
        "errors to each side on the log-odds scale",
        "bootstrap, percentile": "bootstrap, percentile: patients drawn anew with all their cases, 2.5th to 97.5th "
        "percentile",
        "Wilson": "Wilson: score interval, one case a patient",
        "Wilson, clusters": "Wilson, clusters: score interval at the effective sample size, several cases a patient",
        "Newcombe": "Newcombe: method 5 on patients, where the classes separate fully",
    }
    return [words.get(name, name) for name in sorted(found)]


def _mapping(value: object) -> dict[str, Any]:
    return {str(k): v for k, v in value.items()} if isinstance(value, dict) else {}


def _flat(value: dict[str, Any]) -> dict[str, str]:
    return {k: number(v) if not isinstance(v, dict | list) else json.dumps(v) for k, v in value.items()}
