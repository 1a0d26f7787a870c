"""The page of a segmentation: the same style sheet, sections and words as the report of a classification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from markupsafe import Markup

from medtransfer.metrics.intervals import Estimate
from medtransfer.report import beside as compared
from medtransfer.report import drawings, extras, figures
from medtransfer.report.checklist import FIELDS, FIRST, LISTS, checklist, numbers
from medtransfer.report.content import receipt_rows
from medtransfer.report.figures import CYCLE, EVENT, INK, MODEL, THIRD, draw
from medtransfer.report.masks_card import cards
from medtransfer.report.outlines import Seen, drawing
from medtransfer.report.sections import Section
from medtransfer.report.viewer import embedded
from medtransfer.report.words import Words

if TYPE_CHECKING:
    from medtransfer.segment.evaluate import Segmented

MEASURES = {"dice": "dice", "dice_pooled": "pooled_dice", "nsd": "nsd", "hd95_mm": "hd95", "assd_mm": "assd"}
SECTIONS = (
    Section("verdict", "_masks_verdict.html", "verdict"),
    Section("use", "_use.html", "use"),
    Section("population", "_flow.html", "population"),
    Section("model", "_model.html", "model"),
    Section("plan", "_masks_plan.html", "plan"),
    Section("segmentation", "_segmentation.html", "segmentation"),
    Section("volumes", "_masks_volumes.html", "volumes"),
    Section("errors", "_masks_worst.html", "worst_masks"),
    Section("reproduce", "_reproduce.html", "reproduce"),
    Section("checklists", "_checklists.html", "checklists"),
)
OF_CLASSES = {"cross_table", "output", "calibration", "updating", "by_group", "explanation"}  # not asked of masks
FEW_PATIENTS = 20


def write_masks_report(
    result: Segmented,
    seen: Sequence[Seen],
    path: str | Path,
    *,
    record: Mapping[str, Any],
    bootstrap: int = 2000,
    seed: int = 0,
    language: Literal["en", "de", "fr", "es"] = "en",
    pdf: bool = False,
) -> Path:
    """Write the page of a segmentation, one file that no request leaves, and its model cards beside it.

    Parameters
    ----------
    result : Segmented
    seen : sequence of Seen
        The cases to show, worst first.
    path : path
        Of the page, ending in ``.html``.
    record : mapping
        What the run wrote down about itself.
    bootstrap, seed : int
        Behind the intervals.
    language, pdf
        As in :func:`medtransfer.write_report`.

    Raises
    ------
    RunError
        Where the folder cannot be written.
    """
    from medtransfer.report.paper import printed
    from medtransfer.report.write import render, replace_files, words_of

    path = Path(path)
    w = words_of(language)
    found = view(result, seen, record, w, bootstrap=bootstrap, seed=seed)
    viewer = embedded([s.scene for s in seen if s.scene], result.structures, w)
    files: dict[str, str | bytes] = {path.name: render(w, found | {"viewer": viewer}), **cards(found, w)}
    if pdf:
        files[path.with_suffix(".pdf").name] = printed(render(w, found))
    replace_files(path.parent, files)
    return path


def view(
    result: Segmented, seen: Sequence[Seen], record: Mapping[str, Any], w: Words, *, bootstrap: int, seed: int
) -> dict[str, Any]:
    """All that the templates need, by name."""
    from medtransfer import __version__
    from medtransfer.metrics.names import LABELS

    author = {k: str(v) for k, v in (record.get("author") or {}).items() if v}
    shown = _structures(result)
    checks = _checks(result, record, w)
    patients = len(set(result.patients))
    facts = SimpleNamespace(
        record=record, threshold=None, estimates=result.panel.estimates, per_class={}, subgroups=[], recalibrated=None,
        predictions=SimpleNamespace(part=str(record.get("part") or "test"), classes=result.structures),
        primary="dice", controls=[], seed=seed, bootstrap=bootstrap,
        checks=[SimpleNamespace(name=name, status=status, text=text) for name, status, text in checks],
        counts={"cases": len(result.cases), "patients": patients, "folds": _folds(record)},
    )  # fmt: skip
    estimates = [e for row in (result.panel.estimates, *result.rows) for e in row.values()]
    dice = result.panel.estimates["dice"]
    found: dict[str, Any] = {
        "w": w,
        "result": facts,
        "sections": _sections(result),
        "beside": compared.content(result, w),
        "title": str(record.get("title") or w.plain("page.title")),
        "synthetic": bool(record.get("synthetic")),
        "record": {k: v for k, v in record.items() if k != "history"},
        "author": author,
        "author_keys": list(FIRST),
        "author_more": [k for k in FIELDS if k not in FIRST],
        "model": record.get("model") or {},
        "receipt": receipt_rows((record.get("model") or {}).get("receipt") or {}, w),
        "recipe": {k: _plain(v, w) for k, v in (record.get("recipe") or {}).items()},
        "plan": {k: _setting(v, w) for k, v in (record.get("segmentation_plan") or {}).items()},
        "finish": _finish(record, result.structures, w),
        "table1": record.get("table1") or {},
        "audit": record.get("audit") or {},
        "environment": record.get("environment") or {},
        "hashes": record.get("hashes") or {},
        "version": str(record.get("version") or __version__),
        "verdict": _verdict(checks, dice, w),
        "dice": dice,
        "task": "segmentation",
        "classes": result.structures,
        "e": result.panel.estimates,
        "labels": LABELS,
        "none_word": w.plain("word.not_recorded"),
        "checks": checks,
        "segmentation": shown,
        "volumes": _volumes(result),
        "rows": list(zip(result.structures, result.rows, strict=True)),
        "seen": [(s, [(w.plain(f"plane.{v.plane}"), drawing(v, w, s.case)) for v in s.views]) for s in seen],
        "scenes": [s.scene for s in seen if s.scene],
        "points": Markup("null"),
        "methods": w.methods(estimates),
        "checklist": _checklist(facts, author),
        "fig": _figures(shown, record, w),
    }
    return found


def _sections(result: Segmented) -> list[Section]:
    """With a comparison where one was asked for."""
    at = [s.id for s in SECTIONS].index("segmentation") + 1
    more = [Section("beside", "_masks_beside.html", "beside")] if result.beside else []
    return [*SECTIONS[:at], *more, *SECTIONS[at:]]


def _structures(result: Segmented) -> dict[str, Any]:
    """As :func:`medtransfer.report.extras.segmentation` gives it."""
    rows = []
    for name, row in zip(result.structures, result.rows, strict=True):
        each = [scores[name] for scores in result.scores]
        rows.append(
            {"name": name, "cases": sum(s.present for s in each)}
            | {shown: row[kind] for shown, kind in MEASURES.items()}
            | {"missed": sum(s.present and not s.predicted for s in each)}
            | {"false_positive": sum(s.predicted and not s.present for s in each)}
        )
    cases = [
        {
            "case": r["case"], "structure": r["structure"],
            **{shown: None if np.isnan(r[kind]) else float(r[kind]) for shown, kind in
               (("dice", "dice"), ("nsd", "nsd"), ("hd95_mm", "hd95"))},
            "reference_ml": r["volume_reference"] / 1000, "predicted_ml": r["volume_predicted"] / 1000,
        }
        for r in result.table()
    ]  # fmt: skip
    return {
        "tolerance_mm": result.tolerance_mm,
        "structures": rows,
        "measures": list(MEASURES),
        "cases": cases,
        "worst": [c for c in cases if c["dice"] is not None][:10],
    }


def _volumes(result: Segmented) -> list[tuple[str, dict[str, Any]]]:
    """Bias and limits of agreement of each structure in millilitres."""
    found = []
    for name, row in zip(result.structures, result.rows, strict=True):
        ends = (row["volume_loa_lower"], row["volume_bias"], row["volume_loa_upper"])
        low, bias, high = (_scaled(e, 0.001) for e in ends)
        limits = "–" if low.value is None or high.value is None else f"{low.value:+.3g} / {high.value:+.3g}"
        each = {"bias": bias, "limits": limits.replace("-", "−"), "relative": row["volume_bias_relative"]}
        found.append((name, each))
    return found


def _scaled(e: Estimate, factor: float) -> Estimate:
    ends = {k: v * factor for k in ("value", "low", "high") if (v := getattr(e, k)) is not None}
    return replace(e, **ends)


def _verdict(checks: Sequence[tuple[str, str, str]], dice: Estimate, w: Words) -> str:
    if dice.value is None:
        return w.plain("verdict.undefined")
    worst = {status for _, status, _ in checks}
    return w.plain(f"masks.{'serious' if 'serious' in worst else 'caution' if 'caution' in worst else 'good'}")


def _checks(result: Segmented, record: Mapping[str, Any], w: Words) -> list[tuple[str, str, str]]:
    """(name, status, text) of everything that was looked at."""
    patients = len(set(result.patients))
    few = "caution" if patients < FEW_PATIENTS else "ok"
    checks = [(w.plain("masks.size"), few, w.plain("masks.size_text", n=patients, wanted=FEW_PATIENTS))]
    missed = {n: (sum(s[n].present and not s[n].predicted for s in result.scores),
                  sum(s[n].present for s in result.scores)) for n in result.structures}  # fmt: skip
    said = "; ".join(w.plain("masks.missed_of", name=n, missed=m, cases=c) for n, (m, c) in missed.items())
    worst = max((m / c for m, c in missed.values() if c), default=0.0)
    checks.append((w.plain("masks.missed"), "serious" if worst > 0.2 else "caution" if worst else "ok", said))
    audit = record.get("audit")
    if not audit:
        checks.append((w.plain("masks.audit"), "unknown", w.plain("word.not_recorded")))
    else:
        accepted = audit.get("accepted") or []
        leaks = [f["name"] for f in audit.get("findings") or [] if f["severity"] in ("error", "warning")]
        text = ", ".join(leaks) + (f" ({w.plain('flow.accepted')}: {', '.join(accepted)})" if accepted else "")
        checks.append((w.plain("masks.audit"), "caution" if leaks else "ok", text or w.plain("flow.clean")))
    return checks


def _finish(record: Mapping[str, Any], structures: Sequence[str], w: Words) -> list[tuple[str, str]]:
    """What post-processing was chosen on validation: for each structure, of each fold."""
    found = []
    for i, name in enumerate(structures, start=1):
        rules = [rule.get(str(i)) for rule in record.get("finish") or []]
        said = [
            w.plain("masks.largest" if r == "largest" else "masks.above" if r else "masks.everything", mm3=r)
            for r in rules
        ]
        found.append((name, ", ".join(dict.fromkeys(said))))
    return found


def _checklist(facts: SimpleNamespace, author: dict[str, str]) -> SimpleNamespace:
    """The reporting guidelines without the items that only classes can answer; links lead to this page."""
    here = {s.id for s in SECTIONS}
    whole = checklist(cast(Any, facts), author, here | {"discrimination"})
    rows = [r for r in whole.rows if r.topic not in OF_CLASSES]
    counts = []
    for name in LISTS:
        asked = {n for r in rows for n in numbers(r, name)}
        missing = {n for r in rows if r.status == "missing" for n in numbers(r, name)}
        counts.append((name, len(asked - missing), len(asked)))
    shown = [{**r.__dict__, "where": r.where if r.where in here else "segmentation"} for r in rows]
    return SimpleNamespace(rows=shown, counts=counts)


def _plain(value: object, w: Words) -> str:
    import json

    return json.dumps(value) if isinstance(value, dict | list | tuple) else w.number(value)


def _setting(value: object, w: Words) -> str:
    """A field of the plan: sizes as ``16 × 16 × 16``, nothing as 'none'."""
    if value in (None, [], ""):
        return w.plain("word.none")
    if isinstance(value, list) and all(isinstance(v, int | float) for v in value):
        return " × ".join(f"{v:g}" for v in value)
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        return ", ".join(value)
    return _plain(value, w)


def _folds(record: Mapping[str, Any]) -> int:
    return len(record.get("finish") or [None])


def _figures(shown: Mapping[str, Any], record: Mapping[str, Any], w: Words) -> dict[str, Any]:
    found: dict[str, Any] = {"strips": extras.strips_figure(shown, w)}
    found["bias"] = [f for i, r in enumerate(shown["structures"]) if (f := _bland_altman(i, r["name"], shown, w))]
    history = [row for row in record.get("history") or [] if isinstance(row, dict)]
    if len({row.get("epoch") for row in history}) > 1:
        found["progress"] = _learning(history, [r["name"] for r in shown["structures"]], w)
    steps = [s for s in record.get("flow") or [] if isinstance(s, list | tuple) and len(s) >= 2]
    if steps:
        found["flow"] = drawings.flow(steps, w)
    return {k: [Markup(s) for s in v] if isinstance(v, list) else Markup(v) for k, v in found.items() if v}  # noqa: S704


def _bland_altman(number: int, name: str, shown: Mapping[str, Any], w: Words) -> str | None:
    """Predicted minus reference volume of one structure against their mean."""
    rows = [c for c in shown["cases"] if c["structure"] == name]
    truth, said = (np.array([c[k] for c in rows]) for k in ("reference_ml", "predicted_ml"))
    if not len(rows) or not (truth + said).any():
        return None
    off = said - truth

    def plot(ax: Any) -> None:
        ax.plot((truth + said) / 2, off, "o", color=MODEL, markersize=4, alpha=0.7, markeredgewidth=0)
        ax.axhline(0, color=INK, linewidth=0.8)
        ax.axhline(off.mean(), color=THIRD, linewidth=1.6)
        for side in (-1.96, 1.96) if len(off) > 2 else ():
            ax.axhline(off.mean() + side * off.std(ddof=1), color=EVENT, linestyle="--", linewidth=1.6)
        ax.set(xlabel=w.plain("figure.mean") + " (ml)", ylabel=w.plain("figure.difference") + " (ml)")
        ax.set_title(figures.short(name))

    return draw(f"bias{number}", f"{w.plain('alt.bland')}: {name}", plot)


def _learning(history: Sequence[Mapping[str, Any]], names: Sequence[str], w: Words) -> str:
    """Training loss, and the Dice of each structure in validation, by epoch."""
    folds = sorted({row["fold"] for row in history})

    def plot(axes: Any) -> None:
        for fold in folds:
            rows = [r for r in history if r["fold"] == fold]
            axes[0].plot([r["epoch"] + 1 for r in rows], [r["train_loss"] for r in rows], color=MODEL, linewidth=1.4)
            judged = [r for r in rows if r.get("val_dice")]
            for k, name in enumerate(names):
                label = figures.short(name, 18) if fold == folds[0] else None
                at, of = [r["epoch"] + 1 for r in judged], [r["val_dice"][k] for r in judged]
                axes[1].plot(at, of, color=CYCLE[k % len(CYCLE)], marker="o", markersize=3, linewidth=1.4, label=label)
        axes[0].set(xlabel=w.plain("figure.epoch"), ylabel=w.plain("masks.train_loss"))
        axes[1].set(xlabel=w.plain("figure.epoch"), ylabel=w.plain("masks.val_dice"), ylim=(-0.02, 1.02))
        axes[1].legend(loc="lower right")

    return draw("learning", w.plain("alt.learning"), plot, width=8.0, height=3.4, columns=2)
