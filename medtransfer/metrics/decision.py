"""Decision curves: is acting on the model better than treating everyone or no one? (Vickers & Elkin 2006)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def net_benefit(
    positive: ArrayLike, probability: ArrayLike, thresholds: ArrayLike, weight: ArrayLike | None = None
) -> Floats:
    """Net benefit of acting where the risk reaches a threshold: ``TP/n − FP/n × t/(1−t)``.

    Parameters
    ----------
    positive : array (n,) of bool
    probability : array (n,) of float
    thresholds : array (t,) of float
        Risks in (0, 1) from which one would act; the odds say how many false alarms one missed case is worth.
    weight : array (..., n), optional

    Returns
    -------
    ndarray (..., t)

    Examples
    --------
    >>> net_benefit([1, 0, 1, 0], [0.9, 0.6, 0.7, 0.1], [0.5])
    array([0.25])
    """
    y, p, t = np.asarray(positive, dtype=bool), np.asarray(probability), np.asarray(thresholds, dtype=np.float64)
    w = np.ones(len(y)) if weight is None else np.asarray(weight, dtype=np.float64)
    acted = p[:, None] >= t
    gain = acted & y[:, None]
    worth = gain - (acted & ~y[:, None]) * (t / (1 - t))
    total = w.sum(axis=-1, keepdims=True)
    return np.asarray(np.divide(w @ worth, total, out=np.full((*w.shape[:-1], len(t)), np.nan), where=total > 0))


def treat_all(positive: ArrayLike, thresholds: ArrayLike) -> Floats:
    """Net benefit of acting on everyone.

    Examples
    --------
    >>> treat_all([1, 0, 1, 0], [0.5]).tolist()
    [0.0]
    """
    share, t = float(np.mean(np.asarray(positive, dtype=bool))), np.asarray(thresholds, dtype=np.float64)
    return np.asarray(share - (1 - share) * t / (1 - t))


def interventions_avoided(benefit: Floats, everyone: Floats, thresholds: ArrayLike) -> Floats:
    """Fewer interventions per 100 cases than by treating everyone, at no more missed cases.

    Examples
    --------
    >>> interventions_avoided(np.array([0.25]), np.array([0.0]), [0.5]).tolist()
    [25.0]
    """
    t = np.asarray(thresholds, dtype=np.float64)
    return np.asarray(100 * (benefit - everyone) * (1 - t) / t)
