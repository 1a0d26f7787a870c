"""Deferral: how right is a model on the cases it is sure of, when the others go to a reader?"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medtransfer.metrics.intervals import ClusterBootstrap, Estimate
from medtransfer.metrics.panel import Panel, measure

Floats = NDArray[np.float64]
COVERAGES = (1.0, 0.9, 0.8, 0.7, 0.5)
GRID = np.arange(5, 101) / 100


def confidence(probability: ArrayLike, threshold: ArrayLike | None = None) -> Floats:
    """How sure each call is, 0 to 1.

    Parameters
    ----------
    probability : array (n, C) of float
    threshold : float or array (n,), optional
        Of the positive class, for two classes: confidence is then how far beyond it a case lies, as a share of what
        is there on its side. Without it the highest probability.

    Examples
    --------
    >>> confidence([[0.9, 0.1], [0.4, 0.6]], 0.2)
    array([0.5, 0.5])
    >>> confidence([[0.9, 0.1, 0.0]])
    array([0.9])
    """
    p = np.asarray(probability, dtype=np.float64)
    if threshold is None or p.shape[1] != 2:
        return np.asarray(p.max(axis=1))
    risk, t = p[:, 1], np.clip(np.asarray(threshold, dtype=np.float64), 1e-9, 1 - 1e-9)
    return np.asarray(np.where(risk >= t, (risk - t) / (1 - t), (t - risk) / t))


def selective(
    wrong: ArrayLike, sure: ArrayLike, resamples: ClusterBootstrap, positive: ArrayLike | None = None
) -> tuple[Panel, list[tuple[float, dict[str, Estimate]]]]:
    """Risk–coverage curve, the area under it, and what is left when the least sure cases are deferred.

    Cases of equal confidence are deferred in random order; all values are the expectation over it.

    Parameters
    ----------
    wrong : array (n,) of bool
        Whether the call differs from the reference standard.
    sure : array (n,) of float
        From :func:`confidence`; the surest cases are kept.
    resamples : ClusterBootstrap
    positive : array (n,) of bool, optional
        Two classes: whether the reference is positive; adds sensitivity and specificity among those kept.

    Returns
    -------
    Panel
        ``aurc``: mean error rate over all coverages (Geifman & El-Yaniv 2017), lower is better; ``excess_aurc``:
        what it lies above that of deferring every wrong call first (Geifman, Uziel & El-Yaniv 2019), 0 is best;
        curve ``risk_coverage``: error rate by the share of cases kept.
    list of (coverage, dict of str to Estimate)
        ``error`` and, for two classes, ``sensitivity`` and ``specificity`` at 100, 90, 80, 70 and 50 % kept.

    Examples
    --------
    >>> found, table = selective([0, 0, 0, 1], [0.9, 0.8, 0.7, 0.6], ClusterBootstrap.draw(range(4), resamples=20))
    >>> found.estimates["aurc"].value, found.estimates["excess_aurc"].value  # 0, 0, 0, ¼; none could do better
    (0.0625, 0.0)
    >>> [round(e["error"].value, 4) for _, e in table]
    [0.25, 0.1667, 0.0625, 0.0, 0.0]
    """
    loss, sure = np.asarray(wrong, dtype=np.float64), np.asarray(sure, dtype=np.float64)
    order = np.argsort(-sure, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(sure[order]) != 0)[: len(order)])
    kinds = {"": np.ones_like(loss)}
    if positive is not None:
        y = np.asarray(positive, dtype=bool)
        kinds |= {"sensitivity": y.astype(np.float64), "specificity": (~y).astype(np.float64)}

    def statistic(w: Floats) -> dict[str, Floats]:
        def upto(values: Floats) -> Floats:
            sums = np.add.reduceat((w * values)[:, order], starts, axis=1)
            return np.concatenate([np.zeros((len(w), 1)), np.cumsum(sums, axis=1)], axis=1)

        kept = upto(np.ones_like(loss))
        values: dict[str, Floats] = {}
        for name, kind in kinds.items():
            there, bad = upto(kind), upto(kind * loss)
            grid = GRID if not name else np.array(COVERAGES)
            at_there, at_bad = _at(grid, kept, there), _at(grid, kept, bad)
            share = np.divide(at_bad, at_there, out=np.full_like(at_bad, np.nan), where=at_there > 0)
            if not name:
                values |= _areas(kept, bad) | {"risk_coverage": share}
                share = share[:, [int(np.argmin(np.abs(GRID - c))) for c in COVERAGES]]
            for i, c in enumerate(COVERAGES):
                values[f"coverage:{c:g}:{name or 'error'}"] = 1 - share[:, i] if name else share[:, i]
        return values

    panel = measure(statistic, resamples, {"risk_coverage": GRID})
    table = [
        (c, {n.split(":")[-1]: e for n, e in panel.estimates.items() if n.startswith(f"coverage:{c:g}:")})
        for c in COVERAGES
    ]
    panel.estimates = {name: e for name, e in panel.estimates.items() if ":" not in name}
    return panel, table


def _at(coverage: Floats, kept: Floats, total: Floats) -> Floats:
    """Running totals (b, levels + 1) read where the share of ``coverage`` (c,) is kept."""
    return np.stack([np.interp(coverage * k[-1], k, t) for k, t in zip(kept, total, strict=True)])


def _areas(kept: Floats, bad: Floats) -> dict[str, Floats]:
    """Mean of the error rates after 1, 2, ... n cases, and its excess over the best order.

    Among m cases that tie after N cases with B errors, the j-th brings the expected rate (B + jl) / (N + j), where l
    is their own error rate; the sum over j is ml + (B − Nl) (ψ(N + m + 1) − ψ(N + 1)).
    """
    from scipy.special import psi

    n, wrong = kept[:, -1], bad[:, -1]
    m, digamma = np.diff(kept, axis=1), psi(kept + 1)
    rate = np.divide(np.diff(bad, axis=1), m, out=np.zeros_like(m), where=m > 0)
    sums = m * rate + (bad[:, :-1] - kept[:, :-1] * rate) * np.diff(digamma, axis=1)
    right = n - wrong
    best = wrong - right * (psi(n + 1) - psi(right + 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        area = sums.sum(axis=1) / n
        return {"aurc": area, "excess_aurc": np.maximum(area - best / n, 0)}
