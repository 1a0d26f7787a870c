"""Recalibration: make the probabilities of a model mean what they say, from validation predictions only."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtransfer.errors import ConfigError, MetricError
from medtransfer.metrics.calibration import CLIP, logit
from medtransfer.metrics.threshold import Members, members, per_fold
from medtransfer.predictions import Predictions

Floats = NDArray[np.float64]
Knots = tuple[tuple[float, ...], tuple[float, ...]]
ENOUGH_FOR_ISOTONIC = 1000  # below, isotonic regression overfits (Niculescu-Mizil & Caruana 2005, figure 7)


@dataclass(frozen=True)
class Calibrator:
    """A map from a model's probabilities to calibrated ones, one a fold.

    Parameters
    ----------
    method : {'platt', 'temperature', 'isotonic'}
        ``platt``: log odds become ``intercept + slope × log odds`` (two classes).
        ``isotonic``: straight lines between ``knots``, which never fall (two classes).
        ``temperature``: log probabilities are multiplied by ``slope`` = 1 / T; the intercept is 0.
    intercept, slope : dict of int to float
        By fold; nothing for ``isotonic``.
    knots : dict of int to (tuple of float, tuple of float)
        By fold: probabilities, ascending, and what they become.
    cases, patients : frozenset of (fold, pseudonym)
        What it was fitted on.
    """

    method: str
    intercept: dict[int, float]
    slope: dict[int, float]
    cases: Members = field(default=frozenset(), repr=False)
    patients: Members = field(default=frozenset(), repr=False)
    knots: dict[int, Knots] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        if self.method == "isotonic":
            return f"Calibrator(isotonic; {len(self.cases)} validation cases)"
        slopes = ", ".join(f"{v:.3g}" for _, v in sorted(self.slope.items()))
        return f"Calibrator({self.method}: slope {slopes}; {len(self.cases)} validation cases)"

    def to_json(self) -> dict[str, object]:
        """Plain JSON types, read back by :meth:`from_json`."""
        return {
            "method": self.method,
            "intercept": {str(k): v for k, v in sorted(self.intercept.items())},
            "slope": {str(k): v for k, v in sorted(self.slope.items())},
            "knots": {str(k): [list(x), list(y)] for k, (x, y) in sorted(self.knots.items())},
            "cases": [list(m) for m in sorted(self.cases)],
            "patients": [list(m) for m in sorted(self.patients)],
        }

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Calibrator:
        """What :meth:`to_json` wrote.

        Examples
        --------
        >>> c = Calibrator("platt", {0: 0.1}, {0: 0.9}, frozenset({(0, "case-a")}))
        >>> Calibrator.from_json(c.to_json()) == c
        True
        """
        return cls(
            str(stored["method"]),
            {int(k): float(v) for k, v in stored["intercept"].items()},
            {int(k): float(v) for k, v in stored["slope"].items()},
            frozenset((int(f), str(c)) for f, c in stored["cases"]),
            frozenset((int(f), str(c)) for f, c in stored["patients"]),
            {
                int(k): (tuple(map(float, x)), tuple(map(float, y)))
                for k, (x, y) in dict(stored.get("knots", {})).items()
            },
        )

    def apply(self, predictions: Predictions) -> Predictions:
        """The same predictions with calibrated probabilities."""
        if self.method == "isotonic":
            return replace(predictions, probability=self._through_knots(predictions))
        slope = per_fold(self.slope, predictions, "calibrator")
        if self.method == "platt":
            shifted = per_fold(self.intercept, predictions, "calibrator") + slope * logit(predictions.positive)
            positive = 1 / (1 + np.exp(-np.clip(shifted, -500, 500)))
            return replace(predictions, probability=np.stack([1 - positive, positive], axis=1))
        return replace(predictions, probability=_tempered(predictions.probability, slope[:, None]))

    def _through_knots(self, predictions: Predictions) -> Floats:
        per_fold(dict.fromkeys(self.knots, 0.0), predictions, "calibrator")  # says which fold lacks one
        positive = predictions.positive.copy()
        for fold, (x, y) in self.knots.items():
            here = predictions.fold == fold
            positive[here] = np.interp(positive[here], x, y)
        return np.stack([1 - positive, positive], axis=1)


def calibrate(val: Predictions, method: str = "auto") -> Calibrator:
    """Fit a calibrator on validation predictions, one a fold.

    Parameters
    ----------
    val : Predictions
        Validation predictions.
    method : {'auto', 'platt', 'temperature', 'isotonic'}
        ``auto`` takes, for two classes, isotonic regression from 1,000 validation patients a fold and Platt scaling
        below (Niculescu-Mizil & Caruana 2005), and temperature scaling for more classes. Platt's smoothed targets
        (Platt 1999) keep the fit finite where validation scores separate the classes; isotonic probabilities are
        kept 1 / (n + 2) from 0 and 1 for the same reason.

    Raises
    ------
    MetricError
        Where there are no validation cases, or Platt scaling or isotonic regression is asked for more than two
        classes.

    Examples
    --------
    >>> p, ids = np.tile([0.02, 0.98], 50), np.arange(100).astype(str)
    >>> wrong = np.arange(100) < 20
    >>> val = Predictions(ids, ids, ((p > 0.5) ^ wrong).astype(int), np.c_[1 - p, p], ("no", "yes"),
    ...                   np.zeros(100, int), "val")
    >>> float(calibrate(val).apply(val).positive[1].round(2))  # 4 of 5 are right, not 98 of 100
    0.79
    """
    if method not in {"auto", "platt", "temperature", "isotonic"}:
        raise ConfigError(
            "there is no such calibrator", where="calibrate", got=method, fix="use auto, platt, isotonic or temperature"
        )
    known = val.take(val.reference >= 0)
    if not len(known):
        raise MetricError(
            "there are no validation cases to fit a calibrator on", fix="use a split with a validation part"
        )
    folds = [int(fold) for fold in sorted(set(known.fold.tolist()))]
    if method == "auto":
        patients = min(len(np.unique(known.patient[known.fold == fold])) for fold in folds)
        method = "isotonic" if patients >= ENOUGH_FOR_ISOTONIC else "platt"
        method = method if len(val.classes) == 2 else "temperature"
    if method != "temperature" and len(val.classes) != 2:
        what = "Platt scaling" if method == "platt" else "isotonic regression"
        raise MetricError(f"{what} is for two classes", got=f"{len(val.classes)} classes", fix="use temperature")
    intercept: dict[int, float] = {}
    slope: dict[int, float] = {}
    knots: dict[int, Knots] = {}
    for fold in folds:
        part = known.take(known.fold == fold)
        if method == "isotonic":
            knots[fold] = _isotonic(part.reference == 1, part.positive)
        elif method == "platt":
            intercept[fold], slope[fold] = _platt(part.reference == 1, part.positive)
        else:
            intercept[fold], slope[fold] = 0.0, _inverse_temperature(part)
    return Calibrator(method, intercept, slope, *members(known), knots)


def _isotonic(y: NDArray[np.bool_], p: Floats) -> Knots:
    from sklearn.isotonic import IsotonicRegression

    margin = 1 / (len(y) + 2)
    fitted = IsotonicRegression(y_min=margin, y_max=1 - margin).fit(p, y)
    return tuple(fitted.X_thresholds_.tolist()), tuple(fitted.y_thresholds_.tolist())


def _platt(y: NDArray[np.bool_], p: Floats) -> tuple[float, float]:
    from scipy.optimize import minimize

    yes, no = int(y.sum()), int((~y).sum())
    target = np.where(y, (yes + 1) / (yes + 2), 1 / (no + 2))
    x = logit(p)
    scale = float(x.std()) or 1.0
    z = (x - x.mean()) / scale

    def loss(ab: Floats) -> tuple[float, Floats]:
        f = ab[0] + ab[1] * z
        gap = 1 / (1 + np.exp(-np.clip(f, -500, 500))) - target
        return float((np.logaddexp(0, f) - target * f).sum()), np.array([gap.sum(), (gap * z).sum()])

    a, b = minimize(loss, np.array([0.0, 1.0]), jac=True, method="BFGS", options={"gtol": 1e-8}).x
    return float(a - b * x.mean() / scale), float(b / scale)


def _inverse_temperature(part: Predictions) -> float:
    from scipy.optimize import minimize_scalar

    rows = np.arange(len(part))

    def loss(log_slope: float) -> float:
        said = _tempered(part.probability, np.exp(log_slope))[rows, part.reference]
        return float(-np.log(np.clip(said, CLIP, 1)).mean())

    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def _tempered(probability: Floats, slope: Floats | float) -> Floats:
    logs = np.log(np.clip(probability, CLIP, 1)) * slope
    powers = np.exp(logs - logs.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))
