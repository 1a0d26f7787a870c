"""Discrimination and classification: AUROC, average precision, curves and what a 2×2 table says.

Every function takes weights whose last axis runs over cases, so that all resamples of a bootstrap are one call.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def auroc(positive: ArrayLike, score: ArrayLike, weight: ArrayLike | None = None) -> Floats:
    """Area under the ROC curve: the chance that a positive case scores above a negative one, ties counting half.

    Parameters
    ----------
    positive : array (n,) of bool
        Whether the reference standard says positive.
    score : array (n,) of float
        The larger, the more positive.
    weight : array (..., n), optional
        Non-negative weights of the cases; without them each counts once.

    Returns
    -------
    ndarray (...)
        nan where the weighted cases are all of one kind.

    Examples
    --------
    >>> float(auroc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]))
    0.75
    """
    y, s, w = _arrays(positive, score, weight)
    down, up = np.flatnonzero(~y), np.flatnonzero(y)
    down = down[np.argsort(s[down], kind="stable")]
    up = up[np.argsort(s[up], kind="stable")]  # near indices make gathering quick
    below = np.searchsorted(s[down], s[up], side="left")
    until = np.searchsorted(s[down], s[up], side="right")
    total = np.zeros((*w.shape[:-1], len(down) + 1))
    np.cumsum(w[..., down], axis=-1, out=total[..., 1:])
    lifted = w[..., up]
    won = np.einsum("...i,...i->...", lifted, np.take(total, below, axis=-1))
    if not np.array_equal(below, until):
        won = (won + np.einsum("...i,...i->...", lifted, np.take(total, until, axis=-1))) / 2
    return _ratio(won, lifted.sum(axis=-1) * total[..., -1])


def average_precision(positive: ArrayLike, score: ArrayLike, weight: ArrayLike | None = None) -> Floats:
    """Average precision: precision at each threshold, weighted by the recall gained there.

    Parameters and result as for :func:`auroc`; the definition is scikit-learn's, without interpolation.

    Examples
    --------
    >>> round(float(average_precision([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])), 4)
    0.8333
    """
    y, s, w = _arrays(positive, score, weight)
    true, all_ = _accumulate(y, s, w)
    gained = np.diff(true, axis=-1, prepend=0.0)
    precision = np.divide(true, all_, out=np.zeros_like(true), where=all_ > 0)
    return _ratio((gained * precision).sum(axis=-1), true[..., -1])


def rates_by_threshold(positive: ArrayLike, score: ArrayLike, weight: ArrayLike | None = None) -> tuple[Floats, Floats]:
    """Sensitivity and false-positive rate at every distinct score, from calling no case to calling all.

    Parameters as for :func:`auroc`.

    Returns
    -------
    sensitivity, false_positive_rate : ndarray (..., m + 1)
        From 0 to 1 for m distinct scores; nan where there is no case of that kind.

    Examples
    --------
    >>> [v.tolist() for v in rates_by_threshold([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])]
    [[0.0, 0.5, 0.5, 1.0, 1.0], [0.0, 0.0, 0.5, 0.5, 1.0]]
    """
    y, s, w = _arrays(positive, score, weight)
    true, all_ = _accumulate(y, s, w)
    start = np.zeros((*w.shape[:-1], 1))
    true, all_ = np.concatenate([start, true], axis=-1), np.concatenate([start, all_], axis=-1)
    false = all_ - true
    return _ratio(true, true[..., -1:]), _ratio(false, false[..., -1:])


def roc_curve(positive: ArrayLike, score: ArrayLike, grid: Floats, weight: ArrayLike | None = None) -> Floats:
    """Sensitivity at given false-positive rates, by straight lines between the points of the ROC curve.

    Parameters
    ----------
    grid : ndarray (g,)
        False-positive rates, ascending.

    Returns
    -------
    ndarray (..., g)

    Examples
    --------
    >>> roc_curve([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], np.array([0.0, 0.5, 1.0]))
    array([0.5, 1. , 1. ])
    """
    tpr, fpr = rates_by_threshold(positive, score, weight)
    rows_t, rows_f = tpr.reshape(-1, tpr.shape[-1]), fpr.reshape(-1, fpr.shape[-1])
    out = np.empty((len(rows_t), len(grid)))
    for i, (t, f) in enumerate(zip(rows_t, rows_f, strict=True)):
        # at a vertical step the upper end is meant: the last point not beyond the wanted rate
        at = np.searchsorted(f, grid + 1e-12, side="right") - 1
        nxt = np.minimum(at + 1, len(f) - 1)
        run = f[nxt] - f[at]
        share = np.divide(grid - f[at], run, out=np.zeros_like(grid), where=run > 0)
        out[i] = t[at] + np.clip(share, 0, 1) * (t[nxt] - t[at])
    return out.reshape(*tpr.shape[:-1], len(grid))


def precision_recall_curve(
    positive: ArrayLike, score: ArrayLike, grid: Floats, weight: ArrayLike | None = None
) -> Floats:
    """Precision at given recalls: that of the first threshold which reaches the recall.

    Parameters
    ----------
    grid : ndarray (g,)
        Recalls (sensitivities), ascending.

    Returns
    -------
    ndarray (..., g)

    Examples
    --------
    >>> precision_recall_curve([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], np.array([0.5, 1.0])).round(3)
    array([1.   , 0.667])
    """
    y, s, w = _arrays(positive, score, weight)
    true, all_ = _accumulate(y, s, w)
    recall, precision = _ratio(true, true[..., -1:]), _ratio(true, all_)
    rows_r, rows_p = recall.reshape(-1, recall.shape[-1]), precision.reshape(-1, precision.shape[-1])
    out = np.empty((len(rows_r), len(grid)))
    for i, (r, p) in enumerate(zip(rows_r, rows_p, strict=True)):
        out[i] = p[np.minimum(np.searchsorted(r, np.maximum(grid, 1e-9) - 1e-12), len(r) - 1)]
    return out.reshape(*w.shape[:-1], len(grid))


def count_table(positive: ArrayLike, called: ArrayLike, weight: ArrayLike | None = None) -> dict[str, Floats]:
    """The 2×2 table: tp, fp, fn, tn.

    Parameters
    ----------
    positive, called : array (n,) of bool
        By the reference standard, and by the model at its threshold.

    Examples
    --------
    >>> {k: int(v) for k, v in count_table([0, 0, 1, 1], [0, 1, 1, 1]).items()}
    {'tp': 2, 'fp': 1, 'fn': 0, 'tn': 1}
    """
    y, c = np.asarray(positive, dtype=bool), np.asarray(called, dtype=bool)
    w = np.ones(len(y)) if weight is None else np.asarray(weight, dtype=np.float64)
    cells = np.stack([y & c, ~y & c, y & ~c, ~y & ~c], axis=1).astype(np.float64)
    sums = w @ cells
    return {name: sums[..., i] for i, name in enumerate(("tp", "fp", "fn", "tn"))}


def rates(tp: Floats, fp: Floats, fn: Floats, tn: Floats) -> dict[str, Floats]:
    """What follows from a 2×2 table; nan where a denominator is 0.

    Examples
    --------
    >>> r = rates(*(np.array(float(v)) for v in (40, 10, 5, 45)))
    >>> round(float(r["lr_positive"]), 3), round(float(r["mcc"]), 3)
    (4.889, 0.704)
    """
    sensitivity, specificity = _ratio(tp, tp + fn), _ratio(tn, tn + fp)
    margins = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return {
        "sensitivity": sensitivity,
        "specificity": specificity,
        "ppv": _ratio(tp, tp + fp),
        "npv": _ratio(tn, tn + fn),
        "lr_positive": _ratio(sensitivity, 1 - specificity),
        "lr_negative": _ratio(1 - sensitivity, specificity),
        "diagnostic_odds_ratio": _ratio(tp * tn, fp * fn),
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "mcc": _ratio(tp * tn - fp * fn, np.sqrt(margins)),
        "f1": _ratio(2 * tp, 2 * tp + fp + fn),
    }


def predictive_values(sensitivity: float, specificity: float, prevalence: float) -> tuple[float, float]:
    """PPV and NPV by Bayes' theorem at another prevalence; nan where the call never happens.

    Examples
    --------
    >>> tuple(round(v, 4) for v in predictive_values(0.9, 0.8, 0.1))
    (0.3333, 0.9863)
    """
    called = sensitivity * prevalence + (1 - specificity) * (1 - prevalence)
    cleared = specificity * (1 - prevalence) + (1 - sensitivity) * prevalence
    ppv = sensitivity * prevalence / called if called else float("nan")
    return ppv, (specificity * (1 - prevalence) / cleared if cleared else float("nan"))


def confusion(reference: ArrayLike, called: ArrayLike, classes: int, weight: ArrayLike | None = None) -> Floats:
    """Confusion matrix ``(..., reference, called)``.

    Examples
    --------
    >>> confusion([0, 1, 2, 2], [0, 1, 1, 2], 3).astype(int).tolist()
    [[1, 0, 0], [0, 1, 0], [0, 1, 1]]
    """
    cell = np.asarray(reference) * classes + np.asarray(called)
    w = np.ones(len(cell)) if weight is None else np.asarray(weight, dtype=np.float64)
    member = (cell[:, None] == np.arange(classes * classes)).astype(np.float64)
    return np.asarray((w @ member).reshape(*w.shape[:-1], classes, classes))


def matthews(table: Floats) -> Floats:
    """Matthews correlation of a confusion matrix ``(..., C, C)`` (Gorodkin 2004); nan where undefined.

    Examples
    --------
    >>> float(matthews(np.eye(3) * 5))
    1.0
    """
    total, right = table.sum(axis=(-2, -1)), np.trace(table, axis1=-2, axis2=-1)
    rows, columns = table.sum(axis=-1), table.sum(axis=-2)
    cross = (rows * columns).sum(axis=-1)
    spread = (total**2 - (rows**2).sum(axis=-1)) * (total**2 - (columns**2).sum(axis=-1))
    return _ratio(right * total - cross, np.sqrt(spread))


def _arrays(positive: ArrayLike, score: ArrayLike, weight: ArrayLike | None) -> tuple[Bools, Floats, Floats]:
    y, s = np.asarray(positive, dtype=bool), np.asarray(score, dtype=np.float64)
    return y, s, np.ones(len(y)) if weight is None else np.asarray(weight, dtype=np.float64)


def _accumulate(y: Bools, s: Floats, w: Floats) -> tuple[Floats, Floats]:
    """Weighted positives and cases at or above each distinct score, from the highest score down."""
    order = np.argsort(-s, kind="stable")
    last = np.append(np.flatnonzero(np.diff(s[order])), len(s) - 1) if len(s) else np.zeros(0, dtype=np.int64)
    w = w[..., order]
    true, all_ = np.cumsum(w * y[order], axis=-1), np.cumsum(w, axis=-1)
    return (true, all_) if len(last) == len(s) else (true[..., last], all_[..., last])


def _ratio(top: Floats, bottom: Floats) -> Floats:
    top, bottom = np.broadcast_arrays(np.asarray(top, dtype=np.float64), np.asarray(bottom, dtype=np.float64))
    return np.asarray(np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom != 0))
