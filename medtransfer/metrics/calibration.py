"""Calibration of probabilities: do 20 of 100 cases with a risk of 20 % have the disease?"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
CLIP = 1e-7  # probabilities are kept this far from 0 and 1 before a logarithm


def logit(probability: ArrayLike) -> Floats:
    """Log odds, with probabilities kept ``1e-7`` from 0 and 1.

    Examples
    --------
    >>> float(logit(0.5))
    0.0
    """
    p = np.clip(np.asarray(probability, dtype=np.float64), CLIP, 1 - CLIP)
    return np.asarray(np.log(p) - np.log1p(-p))


def brier(reference: ArrayLike, probability: ArrayLike, weight: ArrayLike | None = None) -> Floats:
    """Brier score: mean squared distance of probability and outcome (0 is best).

    Parameters
    ----------
    reference : array (n,) of int
        Class of each case; 0 or 1 where ``probability`` is ``(n,)``.
    probability : array (n,) or (n, C)
        Of the positive class, or of every class; with C classes the squared distances are summed over classes.
    weight : array (..., n), optional

    Examples
    --------
    >>> round(float(brier([0, 1], [0.1, 0.8])), 3)
    0.025
    """
    y, p = np.asarray(reference), np.asarray(probability, dtype=np.float64)
    target = y.astype(np.float64) if p.ndim == 1 else (y[:, None] == np.arange(p.shape[1])).astype(np.float64)
    loss = (p - target) ** 2
    return _mean(loss if p.ndim == 1 else loss.sum(axis=1), weight)


def log_loss(reference: ArrayLike, probability: ArrayLike, weight: ArrayLike | None = None) -> Floats:
    """Mean negative log-likelihood; arguments as for :func:`brier`.

    Examples
    --------
    >>> round(float(log_loss([0, 1], [0.1, 0.8])), 4)
    0.1643
    """
    y, p = np.asarray(reference), np.asarray(probability, dtype=np.float64)
    said = np.where(y == 1, p, 1 - p) if p.ndim == 1 else p[np.arange(len(y)), y]
    return _mean(-np.log(np.clip(said, CLIP, 1)), weight)


def null_brier(reference: ArrayLike, classes: int, weight: ArrayLike | None = None) -> Floats:
    """Brier score of giving every case the observed share of each class.

    Two classes are scored on the positive class alone, as :func:`brier` does with ``(n,)`` probabilities.

    Examples
    --------
    >>> float(null_brier([0, 1, 1, 0], 2))
    0.25
    """
    member = (np.asarray(reference)[:, None] == np.arange(classes)).astype(np.float64)
    w = np.ones(len(member)) if weight is None else np.asarray(weight, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        share = (w @ member) / w.sum(axis=-1, keepdims=True)
    return np.asarray(share[..., 1] * (1 - share[..., 1]) if classes == 2 else 1 - (share**2).sum(axis=-1))


def observed_expected(positive: ArrayLike, probability: ArrayLike, weight: ArrayLike | None = None) -> Floats:
    """Observed over expected number of events; above 1 the model underestimates risk.

    Examples
    --------
    >>> float(observed_expected([0, 1], [0.25, 0.25]))
    2.0
    """
    y, p = np.asarray(positive, dtype=np.float64), np.asarray(probability, dtype=np.float64)
    w = np.ones(len(y)) if weight is None else np.asarray(weight, dtype=np.float64)
    expected = w @ p
    return np.asarray(np.divide(w @ y, expected, out=np.full(np.shape(expected), np.nan), where=expected > 0))


def recalibration_line(positive: ArrayLike, probability: ArrayLike, weight: ArrayLike | None = None) -> Floats:
    """Intercept and slope of a logistic regression of the outcome on the log odds (Cox 1958).

    A slope below 1 means that probabilities are too extreme. Fitted by Newton's method for all weights at once.

    Returns
    -------
    ndarray (..., 2)
        nan where there is no such line: outcomes of one kind only, or risks that separate them fully.

    Examples
    --------
    >>> p = np.array([0.2] * 5 + [0.8] * 5)
    >>> recalibration_line([1, 0, 0, 0, 0, 1, 1, 1, 1, 0], p).round(6) + 0.0
    array([0., 1.])
    """
    y = np.asarray(positive, dtype=bool)
    x = logit(probability)
    w = np.ones((1, len(y))) if weight is None else np.asarray(weight, dtype=np.float64).reshape(-1, len(y))
    centre, scale = (float(x.mean()), float(x.std()) or 1.0) if len(x) else (0.0, 1.0)
    z = (x - centre) / scale
    there = w > 0
    high_no = np.where(there & ~y, z, -np.inf).max(axis=1, initial=-np.inf)
    low_no = np.where(there & ~y, z, np.inf).min(axis=1, initial=np.inf)
    high_yes = np.where(there & y, z, -np.inf).max(axis=1, initial=-np.inf)
    low_yes = np.where(there & y, z, np.inf).min(axis=1, initial=np.inf)
    solvable = np.isfinite(high_no) & np.isfinite(high_yes) & (high_no > low_yes) & (high_yes > low_no)
    line = np.full((len(w), 2), np.nan)
    if solvable.any():
        line[solvable] = _newton(y.astype(np.float64), z, w[solvable])
        line[:, 1] /= scale
        line[:, 0] -= line[:, 1] * centre
    return line[0] if weight is None else line.reshape(*np.shape(weight)[:-1], 2)


def _newton(y: Floats, z: Floats, w: Floats) -> Floats:
    a, b = np.zeros(len(w)), np.zeros(len(w))
    n1, n1z = w @ y, w @ (y * z)
    powers = np.stack([np.ones_like(z), z, z * z], axis=1)
    for _ in range(60):
        p = np.multiply.outer(b, z)
        p += a[:, None]
        np.negative(p, out=p)
        np.exp(np.minimum(p, 500, out=p), out=p)
        p += 1
        np.reciprocal(p, out=p)
        wp = w * p
        ga, gb = n1 - wp.sum(axis=1), n1z - wp @ z
        h0, h1, h2 = (np.subtract(wp, wp * p) @ powers).T
        det = h0 * h2 - h1 * h1
        with np.errstate(divide="ignore", invalid="ignore"):
            da, db = (h2 * ga - h1 * gb) / det, (h0 * gb - h1 * ga) / det
        size = np.maximum(np.abs(da), np.abs(db))
        damp = np.where(size > 2, 2 / np.where(size > 0, size, 1), 1)
        a, b = a + damp * da, b + damp * db
        if np.nanmax(size, initial=0) < 1e-9:
            break
    done = size < 1e-6
    return np.where(done[:, None], np.stack([a, b], axis=1), np.nan)


def intercept_in_the_large(positive: ArrayLike, probability: ArrayLike, weight: ArrayLike | None = None) -> Floats:
    """Calibration in the large: by how many log odds the risks are too low on average (slope held at 1).

    Examples
    --------
    >>> round(float(intercept_in_the_large([1, 1, 0, 0], [0.2] * 4)), 4)
    1.3863
    """
    y, x = np.asarray(positive, dtype=np.float64), logit(probability)
    w = np.ones((1, len(y))) if weight is None else np.asarray(weight, dtype=np.float64).reshape(-1, len(y))
    events, total = w @ y, w.sum(axis=1)
    solvable = (events > 0) & (events < total)
    shift = np.zeros(len(w))
    for _ in range(60):
        p = 1 / (1 + np.exp(-np.clip(x + shift[:, None], -500, 500)))
        wp = w * p
        spread = (wp * (1 - p)).sum(axis=1)
        gap = events - wp.sum(axis=1)
        step = np.where(solvable, np.clip(gap / np.where(spread > 0, spread, 1), -2, 2), 0)
        shift = shift + step
        if np.abs(step).max(initial=0) < 1e-9:
            break
    shift = np.where(solvable, shift, np.nan)
    return np.asarray(shift[0]) if weight is None else shift.reshape(np.shape(weight)[:-1])


def expected_calibration_error(
    hit: ArrayLike, confidence: ArrayLike, weight: ArrayLike | None = None, *, bins: int = 10
) -> Floats:
    """Mean distance of confidence and hit rate over ``bins`` bins of equal width; depends on the binning.

    Examples
    --------
    >>> round(float(expected_calibration_error([0, 1, 1, 1], [0.1, 0.6, 0.6, 0.9])), 4)
    0.25
    """
    h, c = np.asarray(hit, dtype=np.float64), np.asarray(confidence, dtype=np.float64)
    w = np.ones(len(h)) if weight is None else np.asarray(weight, dtype=np.float64)
    number = np.minimum((c * bins).astype(int), bins - 1)
    member = (number[:, None] == np.arange(bins)).astype(np.float64)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.abs(w @ (member * (h - c)[:, None])).sum(axis=-1) / w.sum(axis=-1))


def reliability_bins(positive: ArrayLike, probability: ArrayLike, *, bins: int = 10) -> list[NDArray[np.int64]]:
    """Indices of the cases in up to ``bins`` groups of equal size, by ascending probability; ties stay together.

    Examples
    --------
    >>> [b.tolist() for b in reliability_bins([0, 1, 1, 0], [0.1, 0.9, 0.8, 0.2], bins=2)]
    [[0, 3], [2, 1]]
    """
    p = np.asarray(probability, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    edges = np.searchsorted(p[order], p[order][(np.arange(1, bins) * len(p)) // bins]) if len(p) else np.zeros(0, int)
    return [group.astype(np.int64) for group in np.split(order, np.unique(edges)) if len(group)]


def smooth_curve(positive: ArrayLike, probability: ArrayLike, grid: Floats, weight: ArrayLike | None = None) -> Floats:
    """Observed share of events as a smooth function of the predicted risk.

    A local straight line with Gaussian weights on the log-odds axis; the bandwidth is Silverman's rule,
    1.06 sd n^(-1/5), so that it does not change between resamples. Clipped to 0 and 1.

    Parameters
    ----------
    grid : ndarray (g,)
        Predicted risks at which to read the curve.

    Returns
    -------
    ndarray (..., g)

    Examples
    --------
    >>> p = np.linspace(0.1, 0.9, 200)
    >>> y = np.arange(200) % 2 == 0
    >>> smooth_curve(y, p, np.array([0.3, 0.5])).round(2)
    array([0.5, 0.5])
    """
    y, x, at = np.asarray(positive, dtype=np.float64), logit(probability), logit(grid)
    w = np.ones(len(y)) if weight is None else np.asarray(weight, dtype=np.float64)
    width = max(1.06 * float(x.std()) * max(len(x), 1) ** -0.2, 0.05)
    away = (x[:, None] - at) / width
    kernel = np.exp(-0.5 * away**2)
    s0, s1, s2 = w @ kernel, w @ (kernel * away), w @ (kernel * away**2)
    t0, t1 = (w * y) @ kernel, (w * y) @ (kernel * away)
    bottom = s0 * s2 - s1 * s1
    line = np.divide(
        s2 * t0 - s1 * t1, bottom, out=np.full(np.shape(bottom), np.nan), where=bottom > 1e-9 * s0**2 + 1e-300
    )
    flat = np.divide(t0, s0, out=np.full(np.shape(s0), np.nan), where=s0 > 1e-12)
    return np.asarray(np.clip(np.where(np.isfinite(line), line, flat), 0, 1))


def _mean(loss: Floats, weight: ArrayLike | None) -> Floats:
    if weight is None:
        return np.asarray(loss.mean() if len(loss) else np.nan)
    w = np.asarray(weight, dtype=np.float64)
    total = w.sum(axis=-1)
    return np.asarray(np.divide(w @ loss, total, out=np.full(np.shape(total), np.nan), where=total > 0))
