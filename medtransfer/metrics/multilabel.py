"""Several findings that may occur together: each label as a two-class task of its own, then all of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medtransfer.metrics import classification
from medtransfer.metrics.intervals import ClusterBootstrap, Estimate, interval, proportion, with_note
from medtransfer.metrics.panel import Panel, at_boundary, binary, mean_of_defined, measure, rarer

Floats = NDArray[np.float64]
RATES = ("auroc", "average_precision", "sensitivity", "specificity", "ppv", "npv", "brier", "calibration_slope")


def multilabel(
    reference: ArrayLike, probability: ArrayLike, resamples: ClusterBootstrap, thresholds: ArrayLike = 0.5
) -> tuple[Panel, list[dict[str, Estimate]]]:
    """Everything for labels that do not exclude each other: overall, and one row of estimates a label.

    Parameters
    ----------
    reference : array (n, L) of 0, 1 or nan
        By the reference standard; nan where unknown, which leaves the case out of this label.
    probability : array (n, L) of float
        Of each label.
    resamples : ClusterBootstrap
        Of the n cases.
    thresholds : array (L,) or (n, L) of float
        Probability from which a label is called; the second form where folds differ.

    Returns
    -------
    Panel
        ``macro_*``: mean over labels; ``weighted_*``: mean with the number of positives of each label as weight;
        ``micro_*``: all pairs of case and label as one task; ``exact_match``: share of the cases, all labels
        known, of which every label is called right; ``hamming_loss``: share of known labels called wrong.
        Its curves are those of two classes, named ``label:k:roc`` and so on.
    list of dict of str to Estimate
        What :func:`~medtransfer.metrics.panel.binary` gives, a row a label.

    Examples
    --------
    >>> y = np.array([[0, 1], [1, 0], [0, np.nan], [1, 1]])
    >>> p = np.array([[0.1, 0.9], [0.8, 0.3], [0.6, 0.5], [0.7, 0.8]])
    >>> found, rows = multilabel(y, p, ClusterBootstrap.draw(range(4), resamples=20))
    >>> found.estimates["hamming_loss"].value.__round__(3), rows[1]["auroc"].value
    (0.143, 1.0)
    """
    y, p = np.asarray(reference, dtype=np.float64), np.asarray(probability, dtype=np.float64)
    called = p >= np.broadcast_to(np.asarray(thresholds, dtype=np.float64), p.shape)
    known, yes = np.isfinite(y), y == 1
    panel, rows, draws, units = Panel(), [], [], []
    for k in range(y.shape[1]):
        at = np.flatnonzero(known[:, k])
        here = ClusterBootstrap(resamples.patient[at], resamples.counts)
        one = Panel(estimates={name: Estimate(None, note="no case has this label known") for name in RATES})
        if len(at):
            one, _ = binary(yes[at, k], p[at, k], called[at, k], np.zeros(len(at), dtype=np.int64), here)
        rows.append(one.estimates)
        draws.append(one.draws)
        units.append(rarer(yes[at, k], here.patient))
        panel.curves |= {f"label:{k}:{name}": curve for name, curve in one.curves.items()}
    panel.estimates |= _means(rows, draws, yes, resamples, min((u for u in units if u), default=0))
    panel.estimates |= _pooled(yes, p, known, resamples)
    complete = known.all(axis=1)
    panel.estimates["exact_match"] = proportion(
        (called == yes).all(axis=1)[complete], resamples.patient[complete], why="no case has all labels known"
    )
    case, label = np.nonzero(known)
    panel.estimates["hamming_loss"] = proportion(
        (called != yes)[case, label], resamples.patient[case], why="no label is known"
    )
    return panel, rows


def _means(
    rows: list[dict[str, Estimate]],
    draws: list[dict[str, Floats]],
    yes: NDArray[np.bool_],
    resamples: ClusterBootstrap,
    units: int,
) -> dict[str, Estimate]:
    """Macro and prevalence-weighted means of AUROC and average precision over labels."""
    weight = resamples.apply(lambda w: {"positives": w @ yes}).get("positives", np.zeros((0, len(rows))))
    found = {}
    for name in ("auroc", "average_precision"):
        values = [np.array([np.nan if row[name].value is None else row[name].value]) for row in rows]
        each = [d.get(name, np.full(len(resamples.counts), np.nan)) for d in draws]
        there = sum(bool(row[name]) for row in rows)
        for kind, of, drawn in (("macro", None, None), ("weighted", yes.sum(axis=0)[None].astype(np.float64), weight)):
            point = float(mean_of_defined(values, of)[0])
            e = interval(
                point,
                mean_of_defined(each, drawn),
                why="no label has cases of both kinds",
                scale="log odds",
                units=units,
            )  # fmt: skip
            found[f"{kind}_{name}"] = (
                with_note(e, f"mean over the {there} of {len(rows)} labels where it is defined")
                if 0 < there < len(rows)
                else e
            )
    return found


def _pooled(
    yes: NDArray[np.bool_], p: Floats, known: NDArray[np.bool_], resamples: ClusterBootstrap
) -> dict[str, Estimate]:
    """AUROC and average precision of all pairs of case and label together."""
    case, label = np.nonzero(known)
    y, score = yes[case, label], p[case, label]
    pairs = ClusterBootstrap(resamples.patient[case], resamples.counts)

    def statistic(w: Floats) -> dict[str, Floats]:
        return {
            "micro_auroc": classification.auroc(y, score, w),
            "micro_average_precision": classification.average_precision(y, score, w),
        }

    found = measure(statistic, pairs, units=rarer(y, pairs.patient)).estimates
    found["micro_auroc"] = at_boundary(found["micro_auroc"], y, pairs.patient)
    return found
