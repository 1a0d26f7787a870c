"""What a model knows of its own errors: deferral of unsure cases, and conformal sets or intervals, in one call."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medtransfer.metrics.conformal import Conformal, conformal, interval_estimates, set_estimates
from medtransfer.metrics.intervals import ClusterBootstrap, Estimate, plain
from medtransfer.metrics.selective import confidence, selective
from medtransfer.metrics.threshold import Threshold, per_fold
from medtransfer.predictions import Predictions

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """Deferral and conformal prediction on test cases.

    Parameters
    ----------
    estimates : dict of str to Estimate
        ``aurc`` and ``excess_aurc``; empty for labels and numbers.
    curve : dict of str to ndarray
        Risk–coverage: ``x`` share of cases kept, ``y`` their error rate, ``low``, ``high``.
    deferral : list of (coverage, dict of str to Estimate)
        Error, and sensitivity and specificity of two classes, among the surest 100, 90, 80, 70 and 50 %.
    coverage : float
        What conformal sets promise.
    conformal : dict of str to Conformal
        One for all classes or targets, named ``''``, or one a label; empty without validation predictions.
    rows : dict of str to dict of str to Estimate
        Of sets: of all cases, named ``''``, and ``set_coverage`` of each class; or all of each label. Of intervals:
        of each target.
    """

    estimates: dict[str, Estimate] = field(default_factory=dict)
    curve: dict[str, Floats] = field(default_factory=dict)
    deferral: list[tuple[float, dict[str, Estimate]]] = field(default_factory=list)
    coverage: float = 0.9
    conformal: dict[str, Conformal] = field(default_factory=dict)
    rows: dict[str, dict[str, Estimate]] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """Numbers as plain JSON types, without the cases that quantiles were fitted on."""
        found = plain(
            {
                "estimates": _json(self.estimates),
                "risk_coverage": {name: values.tolist() for name, values in self.curve.items()},
                "deferral": [{"coverage": c, **_json(row)} for c, row in self.deferral],
                "coverage": self.coverage,
                "quantile": {
                    name: {"method": c.method, "by_fold": c.to_json()["quantile"]} for name, c in self.conformal.items()
                },
                "rows": {name: _json(row) for name, row in self.rows.items()},
            }
        )
        assert isinstance(found, dict)
        return found


def uncertainty(
    test: Predictions,
    resamples: ClusterBootstrap,
    *,
    called: ArrayLike | None = None,
    threshold: Threshold | None = None,
    val: Predictions | None = None,
    coverage: float = 0.9,
) -> Uncertainty:
    """Deferral of the least sure cases and, from validation predictions, conformal sets or intervals.

    Parameters
    ----------
    test : Predictions
        All with a reference.
    resamples : ClusterBootstrap
        Of its cases.
    called : array (n,) of int, optional
        Class called for each case; without it by ``threshold``, or the most probable.
    threshold : Threshold, optional
        Of two classes; confidence is measured from it.
    val : Predictions, optional
        Validation predictions, for the conformal quantiles; none of their patients may be in ``test``.
    coverage : float
        Share of cases whose set or interval should hold the reference.

    Examples
    --------
    >>> p = np.tile([0.1, 0.4, 0.35, 0.8], 20)
    >>> def of(part):
    ...     ids = np.array([f"{part}{i}" for i in range(80)])
    ...     return Predictions(ids, ids, np.tile([0, 0, 1, 1], 20), np.c_[1 - p, p], ("no", "yes"),
    ...                        np.zeros(80, int), part)
    >>> test = of("test")
    >>> found = uncertainty(test, ClusterBootstrap.draw(test.patient, resamples=50), val=of("val"))
    >>> [round(e["error"].value, 3) for _, e in found.deferral], found.rows[""]["set_coverage"].value
    ([0.25, 0.278, 0.312, 0.286, 0.0], 1.0)
    """
    estimates: dict[str, Estimate] = {}
    curve: dict[str, Floats] = {}
    deferral: list[tuple[float, dict[str, Estimate]]] = []
    if test.task in ("classification", "ordinal"):
        cut = per_fold(threshold.by_fold, test, "threshold") if threshold else None
        if called is None:
            called = test.probability.argmax(axis=1) if cut is None else test.positive >= cut
        two = len(test.classes) == 2
        found, deferral = selective(
            np.asarray(called) != test.reference,
            confidence(test.probability, cut),
            resamples,
            test.reference == 1 if two else None,
        )
        estimates, curve = found.estimates, found.curves["risk_coverage"]
    made: dict[str, Conformal] = {}
    rows: dict[str, dict[str, Estimate]] = {}
    if val is not None and val.known.any():
        if test.task == "multilabel":
            for name in test.classes:
                one, of_val = test.label(name), val.label(name)
                if one.known.any() and of_val.known.any():
                    made[name] = conformal(of_val, coverage)
                    here = ClusterBootstrap(resamples.patient[one.known], resamples.counts)
                    rows[name] = _sets(made[name], one.take(one.known), here)[""]
        else:
            made[""] = conformal(val, coverage)
            rows = (
                _intervals(made[""], test, resamples) if test.task == "regression" else _sets(made[""], test, resamples)
            )
    return Uncertainty(estimates, curve, deferral, coverage, made, rows)


def _sets(of: Conformal, test: Predictions, resamples: ClusterBootstrap) -> dict[str, dict[str, Estimate]]:
    found = set_estimates(of.sets(test), test.reference, resamples)
    rows = {"": {name: e for name, e in found.items() if ":" not in name}}
    return rows | {c: {"set_coverage": found[f"class:{k}:set_coverage"]} for k, c in enumerate(test.classes)}


def _intervals(of: Conformal, test: Predictions, resamples: ClusterBootstrap) -> dict[str, dict[str, Estimate]]:
    rows = interval_estimates(*of.bounds(test), test.reference.astype(np.float64), resamples)
    return dict(zip(test.classes, rows, strict=True))


def _json(row: dict[str, Estimate]) -> dict[str, object]:
    return {name: e.to_json() for name, e in row.items()}
