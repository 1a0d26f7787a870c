"""Several runs beside each other, on the cases that all of them tested; the others are set against the first."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medtransfer.errors import MetricError, RunError
from medtransfer.metrics import classification, comparison, panel
from medtransfer.metrics.intervals import ClusterBootstrap, Estimate, interval, plain
from medtransfer.metrics.names import LABELS
from medtransfer.metrics.permutation import between_models, holm
from medtransfer.metrics.threshold import Threshold
from medtransfer.predictions import Predictions
from medtransfer.run import write, write_json

if TYPE_CHECKING:
    import jinja2

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Rival:
    """One run of a comparison.

    Parameters
    ----------
    name : str
    values : dict of str to Estimate
        On the cases that all runs tested.
    differences : dict of str to Estimate
        This run minus the first, paired by patient; empty for the first.
    p, p_adjusted : float or None
        Two-sided permutation test of equal AUROCs, and after Holm's adjustment.
    rule : str
        Of the operating point behind sensitivity and specificity, ``''`` without one.
    left_out : int
        Cases of this run that another did not test.
    """

    name: str
    values: dict[str, Estimate]
    differences: dict[str, Estimate]
    p: float | None
    p_adjusted: float | None
    rule: str
    left_out: int


@dataclass(frozen=True)
class Rivals:
    """What :func:`compare_runs` found; ``primary`` names the statistic that the test is about."""

    rivals: tuple[Rival, ...]
    primary: str
    classes: tuple[str, ...]
    cases: int
    patients: int
    bootstrap: int
    permutations: int
    seed: int

    def to_json(self) -> dict[str, object]:
        """Plain JSON types."""
        found: dict[str, Any] = {
            "schema": "medtransfer.compare/1", "primary": self.primary, "classes": list(self.classes),
            "cases": self.cases, "patients": self.patients, "baseline": self.rivals[0].name,
            "bootstrap": {"resamples": self.bootstrap, "seed": self.seed, "unit": "patient"},
            "test": {"kind": "paired permutation by patient", "permutations": self.permutations, "adjusted": "Holm"},
            "runs": [
                {
                    "name": r.name, "rule": r.rule, "left_out": r.left_out, "p": r.p, "p_adjusted": r.p_adjusted,
                    "values": {k: e.to_json() for k, e in r.values.items()},
                    "differences": {k: e.to_json() for k, e in r.differences.items()},
                }
                for r in self.rivals
            ],
        }  # fmt: skip
        return {key: plain(value) for key, value in found.items()}

    def __str__(self) -> str:
        first, width = self.rivals[0], max(len(r.name) for r in self.rivals)
        label = LABELS[self.primary]
        lines = [f"{self.cases} cases of {self.patients} patients that all runs tested; {label}, 95 % intervals"]
        lines.append(f"  {first.name:<{width}}  {first.values[self.primary]}")
        for r in self.rivals[1:]:
            said = f"minus {first.name} {r.differences[self.primary]}, p (Holm) {say_p(r.p_adjusted)}"
            lines.append(f"  {r.name:<{width}}  {r.values[self.primary]}  {said}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from html import escape

        return f"<pre>{escape(str(self))}</pre>"


def say_p(p: float | None) -> str:
    """A p value as text.

    Examples
    --------
    >>> say_p(0.0004), say_p(0.0312), say_p(None)
    ('< 0.001', '0.031', 'not defined')
    """
    return "not defined" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def compare_runs(
    runs: Mapping[str, Predictions],
    *,
    thresholds: Mapping[str, Threshold] | None = None,
    bootstrap: int = 2000,
    permutations: int = 2000,
    seed: int = 0,
) -> Rivals:
    """Compare test predictions of several runs on the cases that all of them have.

    Parameters
    ----------
    runs : mapping of str to Predictions
        The first is the baseline. A case that several folds tested is matched within its fold.
    thresholds : mapping of str to Threshold, optional
        Operating points; with those of all runs sensitivity and specificity are compared too.
    bootstrap, permutations, seed : int

    Raises
    ------
    MetricError
        Where fewer than two runs are given, no case is common, or classes or references differ.
    """
    if len(runs) < 2:
        raise MetricError("a comparison needs two runs", got=str(len(runs)))
    repeated = any(len(set(p.case.tolist())) < len(p) for p in runs.values())
    keys = {name: _keys(p, repeated) for name, p in runs.items()}
    common = set.intersection(*(set(k) for k in keys.values()))
    first = next(iter(runs))
    wanted = np.array([key in common for key in keys[first]]) & runs[first].known
    base = runs[first].take(wanted)
    if not len(base):
        raise MetricError(
            "the runs have no tested case in common", got=", ".join(f"{n}: {len(p)} cases" for n, p in runs.items()),
            fix="compare runs on one cohort, made with one private key",
        )  # fmt: skip
    same = {name: comparison.align(p, base, f"the run '{name}'") for name, p in runs.items()}
    resamples = ClusterBootstrap.draw(base.patient, resamples=bootstrap, seed=seed)
    points = thresholds if thresholds and len(base.classes) == 2 and set(thresholds) == set(runs) else {}
    units = panel.rarer(base.reference == 1, resamples.patient) if len(base.classes) == 2 else 0
    measured = {n: panel.measure(_statistics(p, points.get(n)), resamples, units=units) for n, p in same.items()}
    primary = next(iter(measured[first].estimates))
    patients = len(np.unique(base.patient))
    others = [name for name in runs if name != first]
    classes = [1] if len(base.classes) == 2 else list(range(len(base.classes)))
    truth = base.reference[:, None] == np.array(classes)
    shown = truth.any(axis=0) & ~truth.all(axis=0)
    scores = {name: p.probability[:, classes][:, shown] for name, p in same.items()}
    tests = [
        between_models(truth[:, shown], scores[name], scores[first], base.patient, permutations=permutations, seed=seed)
        for name in others
    ]
    ps = [float("nan") if test.p is None else test.p for test in tests]
    tested = {name: (p, q) for name, p, q in zip(others, ps, holm(ps), strict=True) if not np.isnan(p)}
    found = []
    for name, predicted in runs.items():
        gains = {} if name == first else _gains(measured[name], measured[first], patients)
        p_value, adjusted = tested.get(name, (None, None))
        rule = points[name].rule if name in points else ""
        gone = len(predicted) - len(base)
        found.append(Rival(name, measured[name].estimates, gains, p_value, adjusted, rule, gone))
    return Rivals(tuple(found), primary, base.classes, len(base), patients, bootstrap, permutations, seed)


def _gains(run: panel.Panel, baseline: panel.Panel, patients: int) -> dict[str, Estimate]:
    """Paired differences by resamples that both share."""
    found = {}
    for name, e in run.estimates.items():
        other = baseline.estimates[name]
        value = math.nan if e.value is None or other.value is None else e.value - other.value
        found[name] = interval(value, run.draws[name] - baseline.draws[name], patients=patients)
    return found


def _keys(p: Predictions, repeated: bool) -> list[tuple[int, str]]:
    return [(int(f) if repeated else 0, str(c)) for f, c in zip(p.fold, p.case, strict=True)]


def _statistics(p: Predictions, point: Threshold | None) -> Any:
    main = comparison.headline(p)
    if point is None:
        return main
    y, called = p.reference == 1, point.called(p)

    def statistic(w: Floats) -> dict[str, Floats]:
        table = classification.rates(**classification.count_table(y, called, w))
        return {**main(w), "sensitivity": table["sensitivity"], "specificity": table["specificity"]}

    return statistic


def read_runs(folders: Sequence[str | Path]) -> tuple[dict[str, Predictions], dict[str, Threshold]]:
    """Predictions and operating points that runs have left in their folders, by the folders' names.

    Raises
    ------
    RunError
        Where a folder holds no evaluated run.
    """
    paths = [Path(f) for f in folders]
    names = [p.name if [q.name for q in paths].count(p.name) == 1 else f"{i + 1} {p.name}" for i, p in enumerate(paths)]
    runs: dict[str, Predictions] = {}
    points: dict[str, Threshold] = {}
    for name, path in zip(names, paths, strict=True):
        file, metrics = path / "predictions.csv", path / "metrics.json"
        if not file.is_file():
            raise RunError("there is no evaluated run in this folder", where=path.name, fix="medtransfer evaluate RUN")
        runs[name] = Predictions.from_csv(file)
        stored = json.loads(metrics.read_text(encoding="utf-8")).get("threshold") if metrics.is_file() else None
        if isinstance(stored, dict):
            points[name] = Threshold(str(stored["rule"]), {int(k): float(v) for k, v in stored["by_fold"].items()})
    return runs, points


def write_comparison(found: Rivals, folder: str | Path) -> Path:
    """Write ``compare.html``, one file that no request leaves, and ``compare.json`` beside it; the page's path."""
    folder = Path(folder)
    write_json(folder / "compare.json", found.to_json())
    write(folder / "compare.html", page(found))
    return folder / "compare.html"


def page(found: Rivals) -> str:
    """The page as text: every text in it is escaped, there is no script in it."""
    from medtransfer.report.write import TEMPLATES

    first, others = found.rivals[0], found.rivals[1:]
    names = [k for k in LABELS if k in first.values]
    return (
        environment()
        .get_template("compare.html")
        .render(
            found=found, first=first.name, resamples=found.bootstrap, others=others,
            labels=LABELS, names=names, p=say_p,
            values=forest([(r.name, r.values[found.primary]) for r in found.rivals], None),
            gains=forest([(r.name, r.differences[found.primary]) for r in others], 0.0),
            style=(TEMPLATES / "style.css").read_text(encoding="utf-8"),
        )
    )  # fmt: skip


def environment() -> jinja2.Environment:
    """Templates of comparisons: every text is escaped."""
    import jinja2

    from medtransfer.report.write import TEMPLATES

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )


def forest(rows: Sequence[tuple[str, Estimate]], zero: float | None) -> dict[str, Any]:
    """Places in a drawing 100 wide for estimates with intervals, and for the line of no effect."""
    ends = [v for _, e in rows for v in (e.low, e.high, e.value) if v is not None]
    ends += [] if zero is None else [zero]
    low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
    margin = 0.06 * ((high - low) or 1)
    low, high = low - margin, high + margin

    def at(value: float | None) -> float | None:
        return None if value is None else round(100 * (value - low) / (high - low), 2)

    marks = [{"name": n, "text": str(e), "low": at(e.low), "value": at(e.value), "high": at(e.high)} for n, e in rows]
    return {"rows": marks, "zero": at(zero), "ends": [f"{low + margin:.3f}", f"{high - margin:.3f}"]}
