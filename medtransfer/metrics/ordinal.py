"""Ordered classes, e.g. grades: agreement that counts how far apart two grades are, and the cumulative splits."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medtransfer.metrics import calibration, classification
from medtransfer.metrics.intervals import ClusterBootstrap, Estimate, proportion, with_note
from medtransfer.metrics.panel import Panel, at_boundary, mean_of_defined, measure, rarer, shares_of_table

Floats = NDArray[np.float64]


def ordinal(
    reference: ArrayLike, probability: ArrayLike, resamples: ClusterBootstrap, called: ArrayLike | None = None
) -> tuple[Panel, list[dict[str, Estimate]]]:
    """Everything for ordered classes: overall, and one row of estimates for each split between classes.

    Parameters
    ----------
    reference : array (n,) of int
        Class by the reference standard, 0 to C − 1, all known.
    probability : array (n, C) of float
        Of each class; rows sum to one.
    resamples : ClusterBootstrap
    called : array (n,) of int, optional
        Class that the model calls; without it the most probable.

    Returns
    -------
    Panel
    list of dict of str to Estimate
        Row k − 1 asks whether the class is k or higher, of which the probability is the sum from class k on;
        its sensitivity and kin are those of the called class being k or higher.

    Examples
    --------
    >>> p = np.eye(3)[[0, 1, 2, 1]] * 0.7 + 0.1
    >>> found, rows = ordinal([0, 1, 2, 2], p, ClusterBootstrap.draw(range(4), resamples=20))
    >>> found.estimates["class_mae"].value, round(found.estimates["kappa_quadratic"].value, 3), len(rows)
    (0.25, 0.8, 2)
    """
    y, p = np.asarray(reference, dtype=np.int64), np.asarray(probability, dtype=np.float64)
    chosen = p.argmax(axis=1) if called is None else np.asarray(called, dtype=np.int64)
    classes, patient = p.shape[1], resamples.patient
    splits = range(1, classes)
    above = {k: p[:, k:].sum(axis=1) for k in splits}

    def statistic(w: Floats) -> dict[str, Floats]:
        values: dict[str, Floats] = {}
        for k in splits:
            high, risk = y >= k, above[k]
            one = {
                "auroc": classification.auroc(high, risk, w),
                "average_precision": classification.average_precision(high, risk, w),
                "brier": calibration.brier(high, risk, w),
                "calibration_slope": calibration.recalibration_line(high, risk, w)[..., 1],
                "calibration_intercept": calibration.intercept_in_the_large(high, risk, w),
                "observed_expected": calibration.observed_expected(high, risk, w),
            }
            values |= {f"split:{k}:{name}": value for name, value in one.items()}
        table = classification.confusion(y, chosen, classes, w)
        return values | {
            "kappa_quadratic": weighted_kappa(table, 2),
            "kappa_linear": weighted_kappa(table, 1),
            "kendall_tau": kendall_tau(table),
            "class_mae": _mean_distance(table),
            "cumulative_auroc": mean_of_defined([values[f"split:{k}:auroc"] for k in splits]),
            **ranked_probability(y, p, w),
        }

    units = {k: rarer(y >= k, patient) for k in splits}
    panel = measure(statistic, resamples, units=min((v for v in units.values() if v), default=0))
    panel.estimates["exact_agreement"] = proportion(chosen == y, patient)
    panel.estimates["within_one"] = proportion(np.abs(chosen - y) <= 1, patient)
    rows = []
    for k in splits:
        row = {n.split(":")[-1]: e for n, e in panel.estimates.items() if n.startswith(f"split:{k}:")}
        row["auroc"] = at_boundary(row["auroc"], y >= k, patient)
        rows.append(row | shares_of_table(y >= k, chosen >= k, patient))
    panel.estimates = {name: e for name, e in panel.estimates.items() if ":" not in name}
    there = sum(bool(row["auroc"]) for row in rows)
    if 0 < there < len(rows):
        panel.estimates["cumulative_auroc"] = with_note(
            panel.estimates["cumulative_auroc"], f"mean over the {there} of {len(rows)} splits that have both kinds"
        )
    return panel, rows


def weighted_kappa(table: Floats, power: int) -> Floats:
    """Cohen's kappa with weights |i − j|^power: 1 linear, 2 quadratic (Cohen 1968).

    Parameters
    ----------
    table : ndarray (..., C, C)
        Counts.
    power : int

    Returns
    -------
    ndarray (...)
        nan where chance alone already agrees fully: one class is all there is.

    Examples
    --------
    >>> round(float(weighted_kappa(np.array([[4.0, 1, 0], [1, 3, 1], [0, 1, 4]]), 2)), 4)
    0.8
    """
    away = np.abs(np.subtract.outer(np.arange(table.shape[-1]), np.arange(table.shape[-1]))) ** float(power)
    expected = table.sum(axis=-1)[..., :, None] * table.sum(axis=-2)[..., None, :]
    seen, chance = ((t * away).sum(axis=(-2, -1)) for t in (table, expected))
    total = table.sum(axis=(-2, -1))
    return np.asarray(1 - np.divide(seen * total, chance, out=np.full_like(chance, np.nan), where=chance > 0))


def kendall_tau(table: Floats) -> Floats:
    """Kendall's tau-b of the rows and columns of a table (Kendall 1945); nan where a side has one class only.

    Parameters
    ----------
    table : ndarray (..., C, C)
        Counts.

    Examples
    --------
    >>> float(kendall_tau(np.eye(3) * 4))
    1.0
    """
    rows, columns, total = table.sum(axis=-1), table.sum(axis=-2), table.sum(axis=(-2, -1))
    after = np.flip(np.cumsum(np.flip(table, axis=-2), axis=-2), axis=-2)[..., 1:, :]  # rows below each row
    left = np.cumsum(after, axis=-1)[..., :-1]
    right = np.flip(np.cumsum(np.flip(after, axis=-1), axis=-1), axis=-1)[..., 1:]
    concordant = (table[..., :-1, :-1] * right).sum(axis=(-2, -1))
    discordant = (table[..., :-1, 1:] * left).sum(axis=(-2, -1))
    pairs_r, pairs_c = (total**2 - (side**2).sum(axis=-1) for side in (rows, columns))
    size = np.sqrt(pairs_r * pairs_c)
    top = 2 * (concordant - discordant)
    return np.asarray(np.divide(top, size, out=np.full_like(size, np.nan), where=size > 0))


def ranked_probability(
    reference: ArrayLike, probability: ArrayLike, weight: ArrayLike | None = None
) -> dict[str, Floats]:
    """Ranked probability score, and how much of that of the observed shares it saves.

    ``rps`` is the mean squared distance of the cumulative probabilities from the outcome's step, summed over the
    C − 1 splits and divided by C − 1 (Epstein 1969): 0 is best, 1 worst, and with two classes it is the Brier score.
    ``scaled_rps`` is 1 − rps over the rps of giving every case the observed share of each class.

    Examples
    --------
    >>> found = ranked_probability([0, 2], [[0.6, 0.3, 0.1], [0.2, 0.3, 0.5]])
    >>> round(float(found["rps"]), 4)  # ((.4² + .1²) + (.2² + .5²)) / 2 / 2
    0.115
    """
    y, p = np.asarray(reference), np.asarray(probability, dtype=np.float64)
    w = np.ones(len(y)) if weight is None else np.asarray(weight, dtype=np.float64)
    splits = p.shape[1] - 1
    low = (y[:, None] <= np.arange(splits)).astype(np.float64)
    loss = ((np.cumsum(p, axis=1)[:, :-1] - low) ** 2).sum(axis=1) / splits
    with np.errstate(divide="ignore", invalid="ignore"):
        total = w.sum(axis=-1)
        score, share = w @ loss / total, w @ low / total[..., None]
    chance = (share * (1 - share)).sum(axis=-1) / splits
    scaled = 1 - np.divide(score, chance, out=np.full_like(chance, np.nan), where=chance > 1e-12)
    return {"rps": np.asarray(score), "scaled_rps": np.asarray(scaled)}


def _mean_distance(table: Floats) -> Floats:
    away = np.abs(np.subtract.outer(np.arange(table.shape[-1]), np.arange(table.shape[-1])))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((table * away).sum(axis=(-2, -1)) / table.sum(axis=(-2, -1)))
