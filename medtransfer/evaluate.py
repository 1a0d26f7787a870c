"""Predictions become an Evaluation: numbers with intervals, curves, controls, subgroups and red flags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from medtransfer._measure import measure
from medtransfer._mistakes import Mistake, mistakes
from medtransfer.errors import MetricError
from medtransfer.metrics import checks, comparison
from medtransfer.metrics.checks import Check, Control
from medtransfer.metrics.comparison import Subgroup
from medtransfer.metrics.intervals import ClusterBootstrap, Estimate, plain
from medtransfer.metrics.names import LABELS
from medtransfer.metrics.recalibration import Calibrator, calibrate
from medtransfer.metrics.threshold import (
    Threshold,
    fixed,
    least_cost,
    refuse_overlap,
    sensitivity_at_least,
    specificity_at_least,
    threshold_by_rule,
    youden,
)
from medtransfer.predictions import BY_CLASS, Predictions

__all__ = [
    "LABELS",
    "Calibrator",
    "Check",
    "Comparison",
    "Control",
    "Estimate",
    "Evaluation",
    "Mistake",
    "Subgroup",
    "Threshold",
    "calibrate",
    "compare",
    "evaluate",
    "least_cost",
    "sensitivity_at_least",
    "specificity_at_least",
    "threshold_by_rule",
    "youden",
]

Floats = NDArray[np.float64]
_RECALIBRATED = ("brier", "scaled_brier", "log_loss", "calibration_slope", "calibration_intercept",
                 "observed_expected", "ece")  # fmt: skip
SUBGROUP_KEYS = ("auroc", "gap", "gap_adjusted", "sensitivity", "specificity")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What an evaluation found.

    Parameters
    ----------
    predictions : Predictions
        The test predictions whose reference is known.
    threshold : Threshold or None
        The operating point; None for several classes, where the most probable class is called.
    thresholds : dict of str to Threshold
        Of each label of a multi-label task, else empty.
    calibrator : Calibrator or None
    primary : {'auroc', 'macro_auroc', 'kappa_quadratic', 'r2'}
        Name of the headline estimate.
    estimates, recalibrated : dict of str to Estimate
        By the names of ``LABELS``; the second after recalibration (empty without a calibrator).
    per_class : dict of str to dict of str to Estimate
        Estimates of each class against the rest, each label, each split of ordered classes, or each of several targets.
    table : ndarray (C, C) of int
        Counts: rows by the reference standard, columns by the model's call; ``(labels, 2, 2)`` of a multi-label
        task, empty of a regression.
    curves : dict of str to dict of str to ndarray
        ``roc``, ``pr``, ``reliability``, ``net_benefit`` and the last two with ``_recalibrated``: x, y, low, high.
    controls, subgroups, prevalences, checks
        Control models, subgroups, predictive values at other prevalences (each an Estimate), red flags.
    counts : dict of str to int
        cases, patients, unknown (cases without a reference, left out), folds.
    bootstrap, seed : int
    record : dict
        What the run wrote down about itself; empty where nothing is behind the predictions.
    """

    predictions: Predictions
    threshold: Threshold | None
    thresholds: dict[str, Threshold]
    calibrator: Calibrator | None
    primary: str
    estimates: dict[str, Estimate]
    recalibrated: dict[str, Estimate]
    per_class: dict[str, dict[str, Estimate]]
    table: NDArray[np.int64]
    curves: dict[str, dict[str, Floats]]
    controls: list[Control]
    subgroups: list[Subgroup]
    prevalences: list[tuple[float, Estimate, Estimate]]
    checks: list[Check]
    counts: dict[str, int]
    bootstrap: int
    seed: int
    record: dict[str, object] = field(default_factory=dict, repr=False)

    @property
    def called(self) -> NDArray[np.int64]:
        """Class called for each case, shape (n,); labels called, 0 or 1, shape (n, labels).

        Raises
        ------
        MetricError
            For a regression, which calls nothing.
        """
        p = self.predictions
        if p.task == "regression":
            raise MetricError("a regression calls no class", fix="predictions.probability holds the values")
        if p.task == "multilabel":
            return np.stack([self.thresholds[c].called(p.label(c)) for c in p.classes], axis=1).astype(np.int64)
        if self.threshold is None:
            return np.asarray(p.probability.argmax(axis=1), dtype=np.int64)
        return np.asarray(self.threshold.called(p), dtype=np.int64)

    def most_confident_errors(self, n: int = 6) -> list[Mistake]:
        """See :func:`mistakes`."""
        p = self.predictions
        return mistakes(p, None if p.task == "regression" else self.called, n)

    def to_json(self) -> dict[str, object]:
        """All numbers as plain JSON types: 10 significant digits, None where not defined, never nan."""
        content: dict[str, object] = {
            "schema": "medtransfer.metrics/1",
            "part": self.predictions.part,
            "task": self.predictions.task,
            "classes": list(self.predictions.classes),
            "primary": self.primary,
            "counts": self.counts,
            "class_counts": checks.class_counts(self.predictions),
            "bootstrap": {"resamples": self.bootstrap, "seed": self.seed, "unit": "patient"},
            "threshold": None
            if self.threshold is None
            else {
                "rule": self.threshold.rule,
                "by_fold": {str(k): v for k, v in sorted(self.threshold.by_fold.items())},
            },
            "thresholds": {
                name: {"rule": t.rule, "by_fold": {str(k): v for k, v in sorted(t.by_fold.items())}}
                for name, t in self.thresholds.items()
            },
            "table": self.table.tolist(),
            "estimates": {k: e.to_json() for k, e in self.estimates.items()},
            "recalibrated": {k: e.to_json() for k, e in self.recalibrated.items()},
            "per_class": {c: {k: e.to_json() for k, e in row.items()} for c, row in self.per_class.items()},
            "controls": [
                {"name": c.name, "value": c.value.to_json(), "difference": c.difference.to_json()}
                for c in self.controls
            ],
            "subgroups": [
                {
                    "grouping": s.grouping,
                    "level": s.level,
                    "cases": s.cases,
                    "events": s.events,
                    **{k: getattr(s, k).to_json() for k in SUBGROUP_KEYS},
                }
                for s in self.subgroups
            ],
            "prevalences": [{"prevalence": v, "ppv": a.to_json(), "npv": b.to_json()} for v, a, b in self.prevalences],
            "checks": [{"name": c.name, "status": c.status, "text": c.text} for c in self.checks],
            "curves": {name: {k: v.tolist() for k, v in curve.items()} for name, curve in self.curves.items()},
        }
        return {key: plain(value) for key, value in content.items()}

    def __str__(self) -> str:
        n = self.counts
        lines = [f"{self.predictions.part}: {n['cases']} cases of {n['patients']} patients, 95 % intervals"]
        width = max(len(LABELS[k]) for k in self.estimates)
        lines += [
            f"  {LABELS[k]:<{width}}  {e}"
            for k, e in sorted(self.estimates.items(), key=lambda i: list(LABELS).index(i[0]))
        ]
        lines += [
            f"  {'!!' if c.status == 'serious' else '! '} {c.name}: {c.text}"
            for c in self.checks
            if c.status in ("serious", "caution")
        ]
        return "\n".join(lines)

    def __repr__(self) -> str:
        main = f"{LABELS[self.primary]} {self.estimates[self.primary]}"
        return f"Evaluation({self.predictions.part}, {self.counts['cases']} cases, {main})"

    def _repr_html_(self) -> str:
        from html import escape

        rows = "".join(
            f"<tr><td>{escape(LABELS[k])}</td><td style='text-align:right'>{escape(str(e))}</td></tr>"
            for k, e in sorted(self.estimates.items(), key=lambda i: list(LABELS).index(i[0]))
        )
        n = self.counts
        head = f"{escape(self.predictions.part)}: {n['cases']} cases, {n['patients']} patients"
        return f"<table><caption>{head}</caption>{rows}</table>"


def evaluate(
    test: Predictions,
    *,
    threshold: Threshold | float | Mapping[str, Threshold] | None = None,
    bootstrap: int = 2000,
    seed: int = 0,
    calibrator: Calibrator | None = None,
    controls: Mapping[str, Predictions] | None = None,
    subgroups: Mapping[str, Sequence[str] | NDArray[np.str_]] | None = None,
    prevalences: Sequence[float] = (),
) -> Evaluation:
    """Evaluate predictions against the reference standard.

    Parameters
    ----------
    test : Predictions
        Cases without a reference are counted and left out.
    threshold : Threshold, float or mapping, optional
        From :func:`youden` and its kin on validation predictions, or a number. Without it 0.5, with a caution.
        In a multi-label task a mapping by label, each from ``val.label(name)``.
    bootstrap, seed : int
        Resamples of patients behind the intervals, and their seed.
    calibrator : Calibrator, optional
        From :func:`calibrate` on validation predictions; adds calibration and net benefit after
        recalibration. Discrimination and the operating point stay those of the model's own probabilities.
    controls : dict of str to Predictions, optional
        What simpler models say about the same cases. Names with words such as ``metadata``, ``border`` or
        ``histogram`` are taken as blind to the anatomy: not beating one is a red flag.
    subgroups : dict of str to array (n,) of str, optional
        A label of each case of ``test``; groups with fewer than 10 events or non-events are suppressed.
    prevalences : sequence of float
        Where to state PPV and NPV besides the observed prevalence.

    Raises
    ------
    MetricError
        Where the threshold or calibrator has seen a test case or patient, a case is there twice in one
        fold, or a control lacks cases.

    Examples
    --------
    >>> p, ids = np.array([0.1, 0.4, 0.35, 0.8] * 10), np.arange(40).astype(str)
    >>> test = Predictions(ids, ids, np.array([0, 0, 1, 1] * 10), np.c_[1 - p, p], ("no", "yes"),
    ...                    np.zeros(40, int), "test")
    >>> evaluate(test, threshold=0.3, bootstrap=200).estimates["auroc"].value
    0.75
    """
    if test.task in BY_CLASS and len(test.classes) < 2:
        raise MetricError("an evaluation needs two or more classes", got=f"{len(test.classes)}")
    known = test.known
    scored = test.take(known)
    if not len(scored):
        raise MetricError("no case has a reference label", where=test.part, got=f"{len(test)} cases")
    _refuse_twins(scored)
    point, points = _operating_points(threshold, scored)
    if point is not None:
        refuse_overlap("threshold", point.cases, point.patients, scored)
    after = None
    if calibrator is not None:
        refuse_overlap("calibrator", calibrator.cases, calibrator.patients, scored)
        after = calibrator.apply(scored)
    resamples = ClusterBootstrap.draw(scored.patient, resamples=bootstrap, seed=seed)
    seen = measure(scored, resamples, point, points, after)
    found, second = seen.found, seen.second
    recalibrated = {k: second.estimates[k] for k in _RECALIBRATED if k in second.estimates} if second else {}
    primary = comparison.primary(scored)
    beside = [comparison.control(name, other, scored, resamples) for name, other in (controls or {}).items()]
    record = test.source.record() if test.source is not None else {}
    groups = _groups(subgroups or {}, known) if scored.task == "classification" else {}
    divided = comparison.subgroups(groups, scored, seen.called == 1, resamples)
    return Evaluation(
        predictions=scored,
        threshold=point,
        thresholds=seen.points,
        calibrator=calibrator,
        primary=primary,
        estimates=found.estimates,
        recalibrated=recalibrated,
        per_class=seen.rows,
        table=seen.table,
        curves=found.curves | ({f"{k}_recalibrated": c for k, c in second.curves.items()} if second else {}),
        controls=beside,
        subgroups=divided,
        prevalences=[comparison.at_prevalence(v, found) for v in prevalences] if point is not None else [],
        checks=checks.all_checks(
            scored, found.estimates, recalibrated, primary, point, beside, record, comparison.subgroup_checks(divided)
        ),
        counts={
            "cases": len(np.unique(scored.case)),
            "patients": len(np.unique(scored.patient)),
            "unknown": int((~known).sum()),
            "folds": len(np.unique(scored.fold)),
        },
        bootstrap=bootstrap,
        seed=seed,
        record=record,
    )


class Comparison(dict[str, Estimate]):
    """Paired differences by the name of the statistic."""

    def to_json(self) -> dict[str, object]:
        """Plain JSON types."""
        return {name: plain(e.to_json()) for name, e in self.items()}

    def __str__(self) -> str:
        return "\n".join(f"{LABELS[name]:<30} first − second  {e}" for name, e in self.items())


def compare(a: Predictions, b: Predictions, *, bootstrap: int = 2000, seed: int = 0) -> Comparison:
    """Paired differences a − b on the same cases, by patient-cluster bootstrap.

    Returns
    -------
    Comparison
        A dict: ``auroc`` and ``average_precision`` (``macro_auroc`` for several classes), ``brier``, ``log_loss``.

    Raises
    ------
    MetricError
        Where a case of a is missing in b, or labels or classes differ.
    """
    a = a.take(a.reference >= 0)
    b = comparison.align(b, a, "the second model")
    resamples = ClusterBootstrap.draw(a.patient, resamples=bootstrap, seed=seed)
    return Comparison(comparison.difference(a, b, resamples))


def _operating_points(
    threshold: Threshold | float | Mapping[str, Threshold] | None, test: Predictions
) -> tuple[Threshold | None, Mapping[str, Threshold]]:
    """The threshold of two classes, or those of labels."""
    if test.task == "multilabel":
        if threshold is None or isinstance(threshold, Mapping):
            return None, threshold or {}
        if isinstance(threshold, Threshold):
            raise MetricError("every label has a threshold of its own", where="threshold", fix="a mapping by label")
        point = Threshold("fixed", fixed(float(threshold), test.fold).by_fold)
        return None, dict.fromkeys(test.classes, point)
    if test.task != "classification" or len(test.classes) != 2:
        if threshold is not None:
            raise MetricError(
                "a threshold is for two classes, or for labels",
                got=f"{test.task}, {len(test.classes)} columns",
                fix="leave it out: the most probable class is called",
            )
        return None, {}
    if threshold is None:
        return Threshold("default 0.5", fixed(0.5, test.fold).by_fold), {}
    if isinstance(threshold, Mapping):
        raise MetricError("thresholds by label are for a multi-label task", where="threshold", got=test.task)
    return threshold if isinstance(threshold, Threshold) else fixed(float(threshold), test.fold), {}


def _refuse_twins(test: Predictions) -> None:
    names, times = np.unique(
        np.char.add(np.char.add(test.fold.astype(str), " "), test.case.astype(str)), return_counts=True
    )
    if (times > 1).any():
        raise MetricError(
            f"{(times > 1).sum()} cases are there more than once in one fold",
            where=test.part,
            got=f"e.g. {str(names[times > 1][0]).split(' ', 1)[1]}",
            fix="predict every case once a fold",
        )


def _groups(
    groups: Mapping[str, Sequence[str] | NDArray[np.str_]], known: NDArray[np.bool_]
) -> dict[str, NDArray[np.str_]]:
    for name, labels in groups.items():
        if len(labels) != len(known):
            raise MetricError(
                f"the subgroup '{name}' does not fit the cases", got=f"{len(labels)} labels for {len(known)} cases"
            )
    return {name: np.asarray(labels).astype(np.str_)[known] for name, labels in groups.items()}
