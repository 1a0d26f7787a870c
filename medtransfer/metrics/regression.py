"""Numbers predicted for cases, e.g. an age or a volume: error, agreement and calibration, target by target."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medtransfer.metrics.intervals import ClusterBootstrap, Estimate, with_note
from medtransfer.metrics.panel import Panel, Statistic, mean_of_defined, measure

Floats = NDArray[np.float64]


def regression(
    reference: ArrayLike, predicted: ArrayLike, resamples: ClusterBootstrap
) -> tuple[Panel, list[dict[str, Estimate]]]:
    """Everything for predicted numbers: overall, and one row of estimates a target.

    Parameters
    ----------
    reference : array (n, T) of float
        By the reference standard, in the unit of the target; nan where unknown, which leaves the case out
        of this target.
    predicted : array (n, T) of float
    resamples : ClusterBootstrap
        Of the n cases.

    Returns
    -------
    Panel
        The estimates of the target or, with several, their means over the targets.
    list of dict of str to Estimate
        A row of estimates a target; empty for one target.

    Examples
    --------
    >>> said = [[1.0], [2.5], [3.0], [4.5]]
    >>> found, rows = regression([[1.0], [2.0], [3.0], [4.0]], said, ClusterBootstrap.draw(range(4), resamples=20))
    >>> found.estimates["mae"].value, found.estimates["bias"].value, rows
    (0.25, 0.25, [])
    """
    y, p = np.asarray(reference, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    targets = y.shape[1]
    known = [np.flatnonzero(np.isfinite(y[:, t])) for t in range(targets)]
    each = [agreement(y[at, t], p[at, t]) for t, at in enumerate(known)]

    def statistic(w: Floats) -> dict[str, Floats]:
        values = [one(w[:, at]) for one, at in zip(each, known, strict=True)]
        if targets == 1:
            return values[0]
        named = {f"target:{t}:{name}": v for t, found in enumerate(values) for name, v in found.items()}
        return named | {name: mean_of_defined([found[name] for found in values]) for name in values[0]}

    panel = measure(statistic, resamples)
    if targets == 1:
        return panel, []
    rows = [
        {name.split(":")[-1]: e for name, e in panel.estimates.items() if name.startswith(f"target:{t}:")}
        for t in range(targets)
    ]
    panel.estimates = {
        name: with_note(e, f"mean over {sum(bool(row[name]) for row in rows)} targets") if e else e
        for name, e in panel.estimates.items()
        if ":" not in name
    }
    return panel, rows


def agreement(reference: ArrayLike, predicted: ArrayLike) -> Statistic:
    """Error, agreement and calibration of one target as a function of weights.

    ``mae``, ``rmse``, ``median_absolute_error``, ``bias`` (mean of predicted minus reference) and the limits of
    agreement ``loa_lower``, ``loa_upper`` (bias ∓ 1.96 standard deviations of the differences, Bland & Altman 1986)
    are in the target's unit; ``r2`` is 1 − residual over total sum of squares, ``pearson``, ``spearman`` (mid-ranks)
    and ``ccc`` (Lin 1989, with variances over n) have none; ``linear_slope`` and ``linear_intercept`` are of the
    least-squares line of the reference on the prediction: 1 and 0 where it is calibrated.

    Parameters
    ----------
    reference, predicted : array (n,) of float
        Finite.

    Returns
    -------
    function
        From weights (b, n) to values (b,) by name; nan where undefined.

    Examples
    --------
    >>> found = agreement([1, 2, 3, 4, 5], [1.5, 2.5, 3.5, 4.5, 5.5])(np.ones((1, 5)))
    >>> {name: round(float(found[name][0]), 4) for name in ("pearson", "ccc", "r2", "linear_intercept")}
    {'pearson': 1.0, 'ccc': 0.9412, 'r2': 0.875, 'linear_intercept': -0.5}
    """
    y, p = np.asarray(reference, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    gap = p - y
    yc, pc, gc = _centred(y), _centred(p), _centred(gap)
    middle_y, middle_p, middle_gap = (float(v.mean()) if len(v) else np.nan for v in (y, p, gap))
    columns = np.stack(
        [np.ones_like(y), yc, pc, yc * yc, pc * pc, yc * pc, gc, gc * gc, np.abs(gap), gap * gap], axis=1
    )
    order_y, order_p, order_gap = _Levels(y), _Levels(p), _Levels(np.abs(gap))

    def statistic(w: Floats) -> dict[str, Floats]:
        total, *sums = (w @ columns).T
        with np.errstate(divide="ignore", invalid="ignore"):
            ay, ap, ayy, app, ayp, ag, agg, size, square = (s / total for s in sums)
            var_y, var_p, cov = _spread(ayy, ay), _spread(app, ap), ayp - ay * ap
            bias = middle_gap + ag
            sd = np.sqrt(np.maximum(agg - ag * ag, 0) * total / np.where(total > 1, total - 1, np.nan))
            slope = cov / np.where(var_p > 0, var_p, np.nan)
            shift = (middle_p + ap) - (middle_y + ay)
            apart = var_y + var_p + shift**2
            return {
                "mae": size,
                "rmse": np.sqrt(square),
                "median_absolute_error": order_gap.median(w),
                "r2": 1 - square / np.where(var_y > 0, var_y, np.nan),
                "pearson": cov / np.sqrt(np.where((var_y > 0) & (var_p > 0), var_y * var_p, np.nan)),
                "spearman": _correlation(order_y.ranks(w), order_p.ranks(w), w),
                "ccc": 2 * cov / np.where((var_y > 0) | (var_p > 0), apart, np.nan),
                "bias": bias,
                "loa_lower": bias - 1.96 * sd,
                "loa_upper": bias + 1.96 * sd,
                "linear_slope": slope,
                "linear_intercept": (middle_y + ay) - slope * (middle_p + ap),
            }

    return statistic


class _Levels:
    """The order of values and their ties, found once for all weights."""

    def __init__(self, values: Floats) -> None:
        self.values, self.order = np.unique(values), np.argsort(values, kind="stable")
        self.level = np.searchsorted(self.values, values)
        self.start = np.searchsorted(values[self.order], self.values)

    def sums(self, w: Floats) -> Floats:
        """Weight of each distinct value, (b, levels)."""
        sorted_ = w[:, self.order]
        return sorted_ if len(self.start) == w.shape[1] else np.add.reduceat(sorted_, self.start, axis=1)

    def ranks(self, w: Floats) -> Floats:
        """Mid-rank of each case among the weighted cases, less ½."""
        each = self.sums(w)
        return np.asarray((np.cumsum(each, axis=1) - each / 2)[:, self.level])

    def median(self, w: Floats) -> Floats:
        """Weighted median; the mean of the two middle values where half the weight lies below."""
        if not len(self.values):
            return np.full(len(w), np.nan)
        below = np.cumsum(self.sums(w), axis=1)
        half = below[:, -1:] / 2
        low, high = (below >= half - 1e-9).argmax(axis=1), (below > half + 1e-9).argmax(axis=1)
        return np.where(half[:, 0] > 0, (self.values[low] + self.values[high]) / 2, np.nan)


def _centred(values: Floats) -> Floats:
    return values - values.mean() if len(values) and np.ptp(values) > 0 else np.zeros_like(values)


def _spread(square: Floats, mean: Floats) -> Floats:
    """Variance from the means of squares and of values; 0 where only rounding is left."""
    variance = square - mean * mean
    return np.where(variance > 1e-12 * square, variance, 0.0)


def _correlation(x: Floats, y: Floats, w: Floats) -> Floats:
    """Weighted Pearson correlation of rows of x and y, (b, n) each."""
    total = w.sum(axis=1, keepdims=True)
    x, y = (v - (w * v).sum(axis=1, keepdims=True) / total for v in (x, y))
    var_x, var_y = (w * x * x).sum(axis=1), (w * y * y).sum(axis=1)
    size = var_x * var_y
    return np.asarray((w * x * y).sum(axis=1) / np.sqrt(np.where(size > 1e-18 * total[:, 0] ** 6, size, np.nan)))
