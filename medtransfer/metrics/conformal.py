"""Split-conformal prediction: sets of classes, or intervals, that hold the reference as often as asked."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medtransfer.errors import ConfigError, MetricError
from medtransfer.metrics.intervals import ClusterBootstrap, Estimate, proportion
from medtransfer.metrics.panel import Statistic, measure
from medtransfer.metrics.threshold import Members, members, refuse_overlap
from medtransfer.predictions import Predictions

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
METHODS = ("auto", "mondrian", "lac", "aps", "residual")


@dataclass(frozen=True)
class Conformal:
    """How strange a class, or a number, may look before it is ruled out; from validation predictions.

    Parameters
    ----------
    method : {'mondrian', 'lac', 'aps', 'residual'}
    coverage : float
        Share of cases whose set should hold the reference.
    quantile : dict of int to tuple of float
        By fold: one number, one a class (``mondrian``) or one a target (``residual``). inf where there were too few
        validation cases for this coverage, so that nothing is ruled out.
    cases, patients : frozenset of (fold, pseudonym)
        What it was fitted on.
    """

    method: str
    coverage: float
    quantile: dict[int, tuple[float, ...]]
    cases: Members = field(default=frozenset(), repr=False)
    patients: Members = field(default=frozenset(), repr=False)

    def __repr__(self) -> str:
        return f"Conformal({self.method}, coverage {self.coverage:g}; {len(self.cases)} validation cases)"

    def sets(self, predictions: Predictions) -> Bools:
        """Which classes are in the set of each case, shape (n, C)."""
        if self.method == "residual":
            raise MetricError("sets are of classes", got="a conformal predictor of numbers", fix="use bounds()")
        refuse_overlap("conformal predictor", self.cases, self.patients, predictions)
        strange = _strangeness(predictions.probability, "aps" if self.method == "aps" else "lac")
        inside = strange <= self._limits(predictions) + 1e-12
        if self.method == "aps":
            inside[np.arange(len(inside)), predictions.probability.argmax(axis=1)] = True
        return np.asarray(inside)

    def bounds(self, predictions: Predictions) -> tuple[Floats, Floats]:
        """Lower and upper end of the interval of each case and target, each of shape (n, T)."""
        if self.method != "residual":
            raise MetricError("intervals are of numbers", got="a conformal predictor of classes", fix="use sets()")
        refuse_overlap("conformal predictor", self.cases, self.patients, predictions)
        limit = self._limits(predictions)
        return predictions.probability - limit, predictions.probability + limit

    def _limits(self, predictions: Predictions) -> Floats:
        missing = sorted(set(predictions.fold.tolist()) - set(self.quantile))
        if missing:
            raise MetricError(
                "there is no conformal quantile for every fold",
                got=f"none for fold {', '.join(map(str, missing))}",
                fix="fit it on validation predictions of the same folds",
            )
        return np.array([self.quantile[int(f)] for f in predictions.fold], dtype=np.float64)

    def to_json(self) -> dict[str, object]:
        """Plain JSON types, read back by :meth:`from_json`; an infinite quantile is None."""
        return {
            "method": self.method,
            "coverage": self.coverage,
            "quantile": {
                str(k): [None if math.isinf(v) else v for v in each] for k, each in sorted(self.quantile.items())
            },
            "cases": [list(m) for m in sorted(self.cases)],
            "patients": [list(m) for m in sorted(self.patients)],
        }

    @classmethod
    def from_json(cls, stored: dict[str, object]) -> Conformal:
        """What :meth:`to_json` wrote.

        Examples
        --------
        >>> c = Conformal("lac", 0.9, {0: (0.4,)}, frozenset({(0, "case-a")}))
        >>> Conformal.from_json(c.to_json()) == c
        True
        """
        quantile, cases, patients = stored["quantile"], stored["cases"], stored["patients"]
        if not (isinstance(quantile, dict) and isinstance(cases, list) and isinstance(patients, list)):
            raise MetricError("a stored conformal predictor cannot be read", got=f"keys {', '.join(stored)}")
        return cls(
            str(stored["method"]),
            float(str(stored["coverage"])),
            {int(k): tuple(math.inf if v is None else float(v) for v in each) for k, each in quantile.items()},
            frozenset((int(f), str(c)) for f, c in cases),
            frozenset((int(f), str(c)) for f, c in patients),
        )


def conformal(val: Predictions, coverage: float = 0.9, method: str = "auto") -> Conformal:
    """Fit a split-conformal predictor on validation predictions, one a fold.

    The promise, that a share ``coverage`` of new cases has the reference in its set, holds for new cases that are like
    the validation cases (exchangeable), on average; several images of a patient make it approximate.

    Parameters
    ----------
    val : Predictions
        Validation predictions; of several labels those of one, ``val.label(name)``.
    coverage : float
        Between 0 and 1.
    method : {'auto', 'mondrian', 'lac', 'aps', 'residual'}
        ``auto`` is ``residual`` for a regression, else ``mondrian``.
        ``mondrian``: the promise holds within each class (Vovk 2012), which a rare disease needs.
        ``lac``: over all cases, with the smallest sets on average (Sadinle, Lei & Wasserman 2019).
        ``aps``: over all cases, classes from the most probable down, without randomisation and never none (Romano,
        Sesia & Candès 2020).
        ``residual``: intervals of one width around predicted numbers (Lei et al. 2018).

    Raises
    ------
    ConfigError
        Where the method or the coverage makes no sense.
    MetricError
        Where there are no validation cases, or the method is not of their task.

    Examples
    --------
    >>> p, ids = np.linspace(0.05, 0.95, 40), np.arange(40).astype(str)
    >>> val = Predictions(ids, ids, (p > 0.5).astype(int), np.c_[1 - p, p], ("no", "yes"), np.zeros(40, int), "val")
    >>> round(conformal(val, 0.9, "lac").quantile[0][0], 3)  # the 37th of 40 ordered scores
    0.465
    """
    if method not in METHODS:
        raise ConfigError(
            "there is no such conformal method", where="conformal", got=method, fix=f"use {', '.join(METHODS)}"
        )
    if not 0 < coverage < 1:
        raise ConfigError("a coverage lies between 0 and 1", where="conformal", got=coverage)
    if method == "auto":
        method = "residual" if val.task == "regression" else "mondrian"
    if val.task == "multilabel" or (method == "residual") != (val.task == "regression"):
        raise MetricError(
            f"the conformal method '{method}' is not of this task",
            got=val.task,
            fix="use 'residual' for a regression, else 'mondrian', 'lac' or 'aps', and of several labels one at a time",
        )
    part = val.take(val.known)
    if not len(part):
        raise MetricError(
            "there are no validation cases to fit a conformal predictor on", fix="use a split with a validation part"
        )
    reference = np.asarray(part.reference, dtype=np.float64).reshape(len(part), -1)
    quantile = {}
    for fold in sorted(set(part.fold.tolist())):
        at = part.fold == fold
        quantile[int(fold)] = _fit(method, part.probability[at], reference[at], coverage)
    return Conformal(method, coverage, quantile, *members(part))


def quantile_of(scores: ArrayLike, coverage: float) -> float:
    """The ⌈(n + 1) coverage⌉-th smallest score; inf where there are too few (Vovk, Gammerman & Shafer 2005).

    Examples
    --------
    >>> quantile_of([0.1, 0.2, 0.3, 0.4], 0.8), quantile_of([0.1, 0.2], 0.9)
    (0.4, inf)
    """
    s = np.sort(np.asarray(scores, dtype=np.float64))
    place = math.ceil((len(s) + 1) * coverage - 1e-9)
    return float(s[place - 1]) if place <= len(s) else math.inf


def set_estimates(sets: Bools, reference: ArrayLike, resamples: ClusterBootstrap) -> dict[str, Estimate]:
    """Coverage, mean size, share of one-class and empty sets, and each class's coverage (``class:k:set_coverage``).

    Examples
    --------
    >>> sets = np.array([[True, False], [True, True], [False, True]])
    >>> found = set_estimates(sets, [0, 1, 0], ClusterBootstrap.draw(range(3), resamples=20))
    >>> {k: round(e.value, 2) for k, e in found.items() if ":" not in k}
    {'set_coverage': 0.67, 'set_size': 1.33, 'set_single': 0.67, 'set_empty': 0.0}
    """
    y, patient = np.asarray(reference, dtype=np.int64), resamples.patient
    held, size = sets[np.arange(len(y)), y], sets.sum(axis=1).astype(np.float64)
    found = {
        "set_coverage": proportion(held, patient),
        "set_size": measure(lambda w: {"set_size": w @ size / w.sum(axis=1)}, resamples).estimates["set_size"],
        "set_single": proportion(size == 1, patient),
        "set_empty": proportion(size == 0, patient),
    }
    for k in range(sets.shape[1]):
        found[f"class:{k}:set_coverage"] = proportion(held[y == k], patient[y == k], why="no case is of this class")
    return found


def interval_estimates(
    lower: Floats, upper: Floats, reference: Floats, resamples: ClusterBootstrap
) -> list[dict[str, Estimate]]:
    """Coverage and mean width of prediction intervals, a row a target; unknown references are left out.

    Examples
    --------
    >>> ends = np.array([[1.0], [2.0]])
    >>> found = interval_estimates(ends - 1, ends + 1, ends + 0.5, ClusterBootstrap.draw(range(2), resamples=20))
    >>> found[0]["interval_coverage"].value, found[0]["interval_width"].value
    (1.0, 2.0)
    """
    rows = []
    for t in range(reference.shape[1]):
        at = np.flatnonzero(np.isfinite(reference[:, t]))
        y, low, high = reference[at, t], lower[at, t], upper[at, t]
        here = ClusterBootstrap(resamples.patient[at], resamples.counts)
        width = Estimate(None, note="too few validation cases for this coverage, so intervals have no end")
        if np.isfinite(high - low).all():
            with np.errstate(divide="ignore", invalid="ignore"):
                width = measure(_mean_of(high - low), here).estimates["interval_width"]
        rows.append({"interval_coverage": proportion((low <= y) & (y <= high), here.patient), "interval_width": width})
    return rows


def _mean_of(values: Floats) -> Statistic:
    return lambda w: {"interval_width": w @ values / w.sum(axis=1)}


def _fit(method: str, said: Floats, reference: Floats, coverage: float) -> tuple[float, ...]:
    if method == "residual":
        away = np.abs(said - reference)
        return tuple(quantile_of(away[np.isfinite(away[:, t]), t], coverage) for t in range(away.shape[1]))
    y = reference[:, 0].astype(np.int64)
    score = _strangeness(said, "aps" if method == "aps" else "lac")[np.arange(len(y)), y]
    if method == "mondrian":
        return tuple(quantile_of(score[y == k], coverage) for k in range(said.shape[1]))
    return (quantile_of(score, coverage),)


def _strangeness(probability: Floats, method: str) -> Floats:
    """Score of every class of every case, (n, C): ``lac`` 1 − p, ``aps`` the sum of p from the likeliest down to it."""
    if method == "lac":
        return 1 - probability
    order = np.argsort(-probability, axis=1, kind="stable")
    score = np.empty_like(probability)
    np.put_along_axis(score, order, np.cumsum(np.take_along_axis(probability, order, axis=1), axis=1), axis=1)
    return score
