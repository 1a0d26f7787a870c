"""Rows of the report's tables and galleries: cases, surest errors, labels, predicted numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from medtransfer.metrics.intervals import Estimate
from medtransfer.report import drawings, task_figures
from medtransfer.report.words import Words

if TYPE_CHECKING:
    from medtransfer.evaluate import Evaluation

MOST_CASES = 3000
WITH_UNIT = {"mae", "rmse", "median_absolute_error", "bias", "loa_lower", "loa_upper", "linear_intercept"}


@dataclass(frozen=True)
class Column:
    """A column of the case table; ``kind`` is ``text`` or ``number``."""

    name: str
    kind: str = "number"
    sorted: bool = False


@dataclass(frozen=True)
class CaseRow:
    """A case: its cells as texts, whether it was called wrongly, and where its picture is on the page."""

    cells: list[str]
    wrong: bool
    link: str = ""


@dataclass(frozen=True)
class Cases:
    """The case table, the farthest from the reference first; ``left`` cases did not fit."""

    columns: list[Column]
    rows: list[CaseRow]
    wrongs: bool
    left: int


@dataclass(frozen=True)
class Shown:
    """An entry of the gallery of errors."""

    case: str
    called: str
    truth: str
    sure: str
    image: str | None


def short(value: float | None) -> str:
    """A number for the eye: three decimals where it is small, fewer where it is large."""
    if value is None or not np.isfinite(value):
        return "–"
    text = f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 1000 else f"{value:.0f}"
    return text.replace("-", "−")


def task_of(result: Evaluation) -> str:
    """classification, multilabel, ordinal or regression."""
    return str(getattr(result.predictions, "task", "classification"))


def called_labels(result: Evaluation) -> NDArray[np.bool_]:
    """Which labels were called in which case, shape (n, C)."""
    p = result.predictions.probability
    called = np.asarray(result.called)
    return called.astype(bool) if called.shape == p.shape else np.asarray(p >= 0.5)


def cases(result: Evaluation, pictured: list[str], w: Words) -> Cases:
    """All test cases, the worst first, up to ``MOST_CASES``; those ``pictured`` in the gallery link to it."""
    columns, body, wrong, miss = {"regression": _numbers, "multilabel": _labels}.get(task_of(result), _classes)(
        result, w
    )
    p, several = result.predictions, result.counts["folds"] > 1
    first = [Column(w.plain("cases.case"), "text"), Column(w.plain("cases.patient"), "text")]
    first += [Column(w.plain("cases.fold"))] if several else []
    order = np.argsort(-miss, kind="stable")[:MOST_CASES]
    links = {case: f"error-{i}" for i, case in reversed(list(enumerate(pictured, start=1)))}
    rows = []
    for i in order:
        head = [str(p.case[i]), str(p.patient[i])] + ([str(int(p.fold[i]))] if several else [])
        rows.append(CaseRow(head + [column[i] for column in body], bool(wrong[i]), links.get(str(p.case[i]), "")))
    return Cases(first + columns, rows, task_of(result) != "regression", len(p) - len(rows))


Table = tuple[list[Column], list[list[str]], NDArray[np.bool_], NDArray[np.float64]]


def _classes(result: Evaluation, w: Words) -> Table:
    p, called = result.predictions, result.called
    names, n = np.array(p.classes), np.arange(len(p))
    miss = 1 - p.probability[n, p.reference]
    two = len(p.classes) == 2
    shown = p.positive if two else p.probability[n, called]
    columns = [
        Column(w.plain("cases.reference"), "text"),
        Column(w.plain("cases.called"), "text"),
        Column(f"p({p.classes[1]})" if two else w.plain("cases.p_called")),
        Column(w.plain("cases.miss"), sorted=True),
    ]
    body = [names[p.reference].tolist(), names[called].tolist(), _three(shown), _three(miss)]
    return columns, body, np.asarray(called != p.reference), np.asarray(miss)


def _labels(result: Evaluation, w: Words) -> Table:
    p, called = result.predictions, called_labels(result)
    reference = np.asarray(p.reference, dtype=np.float64)
    known = np.isfinite(reference)
    miss = np.where(known, np.abs(p.probability - np.nan_to_num(reference)), 0).max(axis=1)
    wrong = (known & (called != (reference == 1))).sum(axis=1)
    names = np.array(p.classes)
    columns = [
        Column(w.plain("cases.present"), "text"),
        Column(w.plain("cases.called"), "text"),
        Column(w.plain("cases.wrong_labels")),
        Column(w.plain("cases.miss"), sorted=True),
    ]
    body = [[", ".join(names[row]) or "–" for row in which] for which in (reference == 1, called)]
    return columns, [*body, [str(k) for k in wrong], _three(miss)], wrong > 0, miss


def _numbers(result: Evaluation, w: Words) -> Table:
    p = result.predictions
    reference, said = (np.asarray(x, dtype=np.float64).reshape(len(p), -1) for x in (p.reference, p.probability))
    off = said - reference
    scale = np.nanstd(off, axis=0)
    miss = np.nan_to_num(np.abs(off) / np.where(scale > 0, scale, 1)).max(axis=1)
    columns, body, units = [], [], units_of(result)
    for k, name in enumerate(p.classes[:4]):
        unit = f" ({units[name]})" if units.get(name) else ""
        for what, values in (("reference", reference), ("predicted", said), ("error", off)):
            columns.append(Column(f"{name}: {w.plain(f'cases.{what}')}{unit if what == 'reference' else ''}"))
            body.append([short(v) for v in values[:, k]])
    columns.append(Column(w.plain("cases.miss_sd"), sorted=True))
    return columns, [*body, [f"{v:.2f}" for v in miss]], np.zeros(len(p), bool), miss


def _three(values: NDArray[np.float64]) -> list[str]:
    return [f"{v:.3f}" for v in values]


def units_of(result: Evaluation) -> dict[str, str]:
    """Unit of each target from ``record["units"]``: one for all, or one a target."""
    units = result.record.get("units")
    if isinstance(units, str):
        return dict.fromkeys(result.predictions.classes, units)
    return {str(k): str(v) for k, v in units.items()} if isinstance(units, dict) else {}


def gallery(result: Evaluation, w: Words) -> list[Shown]:
    """The surest errors of a task without classes, with their pictures, at most 12."""
    task, p, found = task_of(result), result.predictions, []
    if task == "regression":
        reference, said = (np.asarray(x, dtype=np.float64).reshape(len(p), -1) for x in (p.reference, p.probability))
        off, unit = said[:, 0] - reference[:, 0], units_of(result).get(p.classes[0], "")
        for i in np.argsort(-np.nan_to_num(np.abs(off)), kind="stable")[:12]:
            called = w.plain("errors.predicted", value=f"{short(said[i, 0])} {unit}".strip())
            truth = ", " + w.plain("errors.measured", value=f"{short(reference[i, 0])} {unit}".strip())
            found.append((str(p.case[i]), called, truth, w.plain("errors.off", value=short(off[i]))))
    elif task == "multilabel":
        reference, called_ = np.asarray(p.reference, dtype=np.float64), called_labels(result)
        wrong = np.isfinite(reference) & (called_ != (reference == 1))
        miss = np.where(wrong, np.abs(p.probability - np.nan_to_num(reference)), -1.0)
        for i, k in zip(*np.unravel_index(np.argsort(-miss, axis=None, kind="stable")[:12], miss.shape), strict=True):
            if miss[i, k] >= 0:
                key = "errors.label_called" if called_[i, k] else "errors.label_missed"
                sure = f"p = {p.probability[i, k]:.3f}"
                found.append((str(p.case[i]), w.plain(key, name=p.classes[k]), "", sure))
    return [Shown(*entry, _picture(result, entry[0])) for entry in found]


def _picture(result: Evaluation, case: str) -> str | None:
    source = result.predictions.source
    image = source.picture(case) if source is not None else None
    return drawings.png(image) if image is not None else None


def per_label(result: Evaluation) -> list[dict[str, Any]]:
    """Of each label or class: its name, cases that have it, cases in which it is known, its estimates."""
    p = result.predictions
    reference = np.asarray(p.reference, dtype=np.float64)
    rows = []
    for k, (name, row) in enumerate(result.per_class.items()):
        column = reference[:, k] if reference.ndim == 2 else (reference == k).astype(float)
        known = np.isfinite(column)
        rows.append({"name": name, "present": int((column[known] == 1).sum()), "known": int(known.sum()), "row": row})
    return rows


def targets(result: Evaluation, w: Words) -> list[dict[str, Any]]:
    """Of each predicted number: its figures and estimates, where at least two cases are known."""
    p, units, found = result.predictions, units_of(result), []
    reference, said = (np.asarray(x, dtype=np.float64).reshape(len(p), -1) for x in (p.reference, p.probability))
    for k, name in enumerate(p.classes):
        estimates: dict[str, Estimate] = result.per_class.get(name) or result.estimates
        known, unit = np.isfinite(reference[:, k]), units.get(name, "")
        y, x = reference[known, k], said[known, k]
        lines = [(w.plain(f"figure.{n}"), estimates[n]) for n in ("bias", "loa_upper", "loa_lower") if n in estimates]
        figures = {
            "scatter": task_figures.scatter(f"scatter-{k}", y, x, unit, w),
            "bland": task_figures.bland_altman(f"bland-{k}", y, x, lines, unit, w),
            "histogram": task_figures.errors(f"errors-{k}", y, x, unit, w),
        }
        rows = [(n, e, unit if n in WITH_UNIT else "") for n, e in ordered(estimates)]
        drawn = {n: Markup(svg) for n, svg in figures.items()}  # noqa: S704  drawn by us, texts escaped
        found.append({"name": name, "rows": rows} | drawn)
    return found


def ordered(estimates: dict[str, Estimate]) -> list[tuple[str, Estimate]]:
    """Estimates in the order of the labels."""
    from medtransfer.metrics.names import LABELS

    place = {name: i for i, name in enumerate(LABELS)}
    return sorted(estimates.items(), key=lambda item: place.get(item[0], len(place)))
