"""All statistics of one set of predictions at once, each with its bootstrap interval."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from medtransfer.metrics import calibration, classification, decision, partial
from medtransfer.metrics.intervals import (
    ClusterBootstrap,
    Estimate,
    Scale,
    boundary_auroc,
    interval,
    limits_of_agreement,
    proportion,
    with_note,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Statistic = Callable[[Floats], dict[str, Floats]]

SHARES = {
    "auroc",
    "average_precision",
    "fold_auroc",
    "macro_auroc",
    "cumulative_auroc",
    "micro_auroc",
    "micro_average_precision",
    "accuracy",
    "balanced_accuracy",
    "f1",
    "partial_auroc",
    "partial_auroc_sensitive",
    "sensitivity_at_specificity_90",
    "sensitivity_at_specificity_95",
    "specificity_at_sensitivity_90",
    "specificity_at_sensitivity_95",
    "error",
    "dice",
    "iou",
    "nsd",
    "pooled_dice",
    "lesion_sensitivity",
    "sensitivity",
    "specificity",
}
SCALES: dict[str, Scale] = {
    "mae": "log",
    "rmse": "log",
    "bias": "plain",
    "volume_bias": "plain",
    "ccc": "Fisher",
    "pearson": "Fisher",
    "spearman": "Fisher",
}
RATE_GRID = np.linspace(0, 1, 101)
THRESHOLDS = np.arange(1, 100) / 100
BOTH = (("sensitivity", "specificity"), ("specificity", "sensitivity"))
WHY = {
    "auroc": "needs cases with and without the condition",
    "fold_auroc": "no fold has cases of both kinds",
    "average_precision": "no case has the condition",
    "sensitivity": "no case has the condition",
    "specificity": "every case has the condition",
    "lr_positive": "no false alarm, so it is infinite; or a kind of case is missing",
    "diagnostic_odds_ratio": "a kind of error did not occur, so it is infinite; or a kind of case is missing",
    "lr_negative": "no case without the condition was cleared",
    "balanced_accuracy": "needs cases of every class",
    "mcc": "a row or column of the table is empty",
    "f1": "no case has the condition or is called positive",
    "scaled_brier": "needs cases of every class",
    "calibration_slope": "needs cases of both kinds whose risks overlap",
    "calibration_intercept": "needs cases of both kinds",
    "macro_auroc": "no class has cases both in it and outside it",
    **dict.fromkeys(
        [
            "partial_auroc",
            "partial_auroc_sensitive",
            *(f"{a}_at_{b}_{level}" for a, b in BOTH for level in (90, 95)),
        ],
        "needs cases with and without the condition",
    ),
    **dict.fromkeys(["dice", "iou", "nsd", "hd95", "assd"], "neither mask of any case has the structure"),
    "pooled_dice": "neither mask of any case has the structure",
    "volume_bias_relative": "no case has the structure",
    "lesion_sensitivity": "no case has a lesion",
    "cumulative_auroc": "needs cases of two or more classes",
    "micro_auroc": "needs labels of both kinds",
    "micro_average_precision": "no label is positive",
    "kappa_quadratic": "reference and call are all of one class",
    "kappa_linear": "reference and call are all of one class",
    "kendall_tau": "reference or call is all of one class",
    "scaled_rps": "needs cases of two or more classes",
    "r2": "the reference is the same in every case",
    "pearson": "reference or prediction is the same in every case",
    "spearman": "reference or prediction is the same in every case",
    "ccc": "reference and prediction are the same in every case",
    "linear_slope": "the prediction is the same in every case",
    "linear_intercept": "the prediction is the same in every case",
    "loa_lower": "needs two or more cases",
    "loa_upper": "needs two or more cases",
}


@dataclass
class Panel:
    """Estimates by name, curves with bands, and the bootstrap values kept for later use."""

    estimates: dict[str, Estimate] = field(default_factory=dict)
    curves: dict[str, dict[str, Floats]] = field(default_factory=dict)
    draws: dict[str, Floats] = field(default_factory=dict)


def ranking(y: Bools, p: Floats, fold: Ints) -> Statistic:
    """AUROC, average precision, both curves, their ends and, with several folds, the mean of the folds' AUROCs."""
    folds = [fold == k for k in np.unique(fold)]

    def statistic(w: Floats) -> dict[str, Floats]:
        values = {
            "auroc": classification.auroc(y, p, w),
            "average_precision": classification.average_precision(y, p, w),
            "roc": classification.roc_curve(y, p, RATE_GRID, w),
            "pr": classification.precision_recall_curve(y, p, RATE_GRID, w),
            **partial.ends_of_the_curve(y, p, w),
        }
        if len(folds) > 1:
            each = np.stack([classification.auroc(y[f], p[f], w[:, f]) for f in folds])
            there = np.isfinite(each).sum(axis=0)
            values["fold_auroc"] = np.where(there > 0, np.nansum(each, axis=0) / np.maximum(there, 1), np.nan)
        return values

    return statistic


def probabilities(y: Bools, p: Floats, grid: Floats) -> Statistic:
    """What depends on the probabilities themselves: calibration, overall error and net benefit."""

    def statistic(w: Floats) -> dict[str, Floats]:
        score = calibration.brier(y, p, w)
        chance = calibration.null_brier(y, 2, w)
        return {
            "brier": score,
            "scaled_brier": 1 - np.divide(score, chance, out=np.full_like(score, np.nan), where=chance > 0),
            "log_loss": calibration.log_loss(y, p, w),
            "calibration_slope": calibration.recalibration_line(y, p, w)[..., 1],
            "calibration_intercept": calibration.intercept_in_the_large(y, p, w),
            "observed_expected": calibration.observed_expected(y, p, w),
            "ece": calibration.expected_calibration_error(y, p, w),
            "reliability": calibration.smooth_curve(y, p, grid, w),
            "net_benefit": decision.net_benefit(y, p, THRESHOLDS, w),
        }

    return statistic


def operating_point(y: Bools, called: Bools) -> Statistic:
    """What the 2×2 table at the threshold says."""
    return lambda w: classification.rates(**classification.count_table(y, called, w))


def many_classes(reference: Ints, probability: Floats) -> Statistic:
    """Overall and one-versus-rest statistics of three or more classes; ``class:k:name`` is of class k."""
    classes = probability.shape[1]
    called = probability.argmax(axis=1)

    def statistic(w: Floats) -> dict[str, Floats]:
        table = classification.confusion(reference, called, classes, w)
        total = table.sum(axis=(-2, -1))
        values: dict[str, Floats] = {}
        for k in range(classes):
            tp = table[:, k, k]
            fn, fp = table[:, k].sum(axis=-1) - tp, table[:, :, k].sum(axis=-1) - tp
            one = classification.rates(tp, fp, fn, total - tp - fn - fp)
            one["auroc"] = classification.auroc(reference == k, probability[:, k], w)
            one["average_precision"] = classification.average_precision(reference == k, probability[:, k], w)
            one["calibration_slope"] = calibration.recalibration_line(reference == k, probability[:, k], w)[..., 1]
            values |= {f"class:{k}:{name}": value for name, value in one.items()}
        areas = np.stack([values[f"class:{k}:auroc"] for k in range(classes)])
        there = np.isfinite(areas).sum(axis=0)
        chance = calibration.null_brier(reference, classes, w)
        score = calibration.brier(reference, probability, w)
        best = probability.max(axis=1)
        return values | {
            "macro_auroc": np.where(there > 0, np.nansum(areas, axis=0) / np.maximum(there, 1), np.nan),
            "balanced_accuracy": np.mean([values[f"class:{k}:sensitivity"] for k in range(classes)], axis=0),
            "mcc": classification.matthews(table),
            "brier": score,
            "scaled_brier": 1 - np.divide(score, chance, out=np.full_like(score, np.nan), where=chance > 0),
            "log_loss": calibration.log_loss(reference, probability, w),
            "ece": calibration.expected_calibration_error(called == reference, best, w),
            "accuracy": np.einsum("bkk->b", table) / total,
        }

    return statistic


def measure(
    statistic: Statistic, resamples: ClusterBootstrap, axes: dict[str, Floats] | None = None, units: int = 0
) -> Panel:
    """Point estimates and intervals of everything a statistic gives.

    Parameters
    ----------
    statistic : function
        From weights ``(b, n)`` to values ``(b,)``, or curves ``(b, g)``, by name.
    resamples : ClusterBootstrap
    axes : dict of str to ndarray (g,)
        The horizontal axis of each curve.
    units : int
        Patients of the rarer kind, for Student's t.
    """
    n, patients = len(resamples.patient), len(np.unique(resamples.patient))
    point = statistic(np.ones((1, n)))
    draws = resamples.apply(statistic) or {name: value[:0] for name, value in point.items()}
    panel = Panel(draws={name: value for name, value in draws.items() if value.ndim == 1})
    for name, value in point.items():
        if value.ndim == 1:
            short = name.split(":")[-1]
            panel.estimates[name] = interval(
                float(value[0]),
                draws[name],
                why=WHY.get(short, "the data do not define it"),
                scale="log odds" if short in SHARES else SCALES.get(short),
                units=units,
                patients=patients,
            )
        else:
            curve = {"x": (axes or {}).get(name, np.arange(value.shape[1])), "y": value[0]}
            good = draws[name][np.isfinite(draws[name]).all(axis=1)]
            if len(good) >= 20:
                curve["low"], curve["high"] = np.quantile(good, [0.025, 0.975], axis=0)
            panel.curves[name] = curve
    _limits(panel, patients)
    return panel


def _limits(panel: Panel, patients: int) -> None:
    """Limits of agreement with the intervals that belong to them."""
    for upper in [name for name in panel.estimates if name.endswith("loa_upper")]:
        bias, lower = (upper.removesuffix("loa_upper") + other for other in ("bias", "loa_lower"))
        ends = panel.estimates[upper].value, panel.estimates[bias].value
        if ends[0] is None or ends[1] is None:
            continue
        drawn = (panel.draws[upper] - panel.draws[bias]) / 1.96
        deviation = interval((ends[0] - ends[1]) / 1.96, drawn, scale="log", patients=patients)
        found = limits_of_agreement(panel.estimates[bias], deviation, resamples=len(drawn))
        if found is not None:
            panel.estimates[lower], panel.estimates[upper] = found


def mean_of_defined(values: list[Floats], weight: Floats | None = None) -> Floats:
    """Mean over a list of values (b,), of those that are defined; nan where none is.

    Parameters
    ----------
    values : list of k arrays (b,)
    weight : ndarray (b, k), optional

    Examples
    --------
    >>> mean_of_defined([np.array([0.5, np.nan]), np.array([0.7, 0.9])])
    array([0.6, 0.9])
    """
    each = np.stack(values, axis=1)
    w = np.isfinite(each) * (1.0 if weight is None else weight)
    total = w.sum(axis=1)
    top = (w * np.where(w > 0, each, 0)).sum(axis=1)
    return np.asarray(np.divide(top, total, out=np.full(len(each), np.nan), where=total > 0))


def at_boundary(estimate: Estimate, y: Bools, patient: Ints) -> Estimate:
    """The AUROC with Newcombe's interval where it is 0 or 1, since resampling then sees no spread."""
    if estimate.value not in (0.0, 1.0):
        return estimate
    yes, no = len(np.unique(patient[y])), len(np.unique(patient[~y]))
    low, high = boundary_auroc(estimate.value, yes, no)
    return Estimate(estimate.value, low, high, "Newcombe's method 5 on patients", "complete separation of the classes")


def rarer(y: Bools, patient: Ints) -> int:
    """Patients of the rarer kind."""
    return min(len(np.unique(patient[y])), len(np.unique(patient[~y])))


def shares_of_table(y: Bools, called: Bools, patient: Ints) -> dict[str, Estimate]:
    """Sensitivity, specificity, PPV and NPV with Wilson intervals that allow for repeated patients."""
    parts = {
        "sensitivity": (called, y, "no case has the condition"),
        "specificity": (~called, ~y, "every case has the condition"),
        "ppv": (y, called, "no case is called positive"),
        "npv": (~y, ~called, "every case is called positive"),
    }
    return {name: proportion(hit[of], patient[of], why=why) for name, (hit, of, why) in parts.items()}


def binary(
    y: Bools, p: Floats, called: Bools, fold: Ints, resamples: ClusterBootstrap, calibrated: Floats | None = None
) -> tuple[Panel, Panel | None]:
    """Everything for two classes, and again what changes when probabilities are recalibrated."""
    panel = measure(ranking(y, p, fold), resamples, {"roc": RATE_GRID, "pr": RATE_GRID}, rarer(y, resamples.patient))
    panel.estimates["auroc"] = at_boundary(panel.estimates["auroc"], y, resamples.patient)
    table = measure(operating_point(y, called), resamples, units=rarer(y, resamples.patient))
    table.estimates |= shares_of_table(y, called, resamples.patient)
    raw = _probability_panel(y, p, resamples)
    for part in (table, raw):
        panel.estimates |= part.estimates
        panel.curves |= part.curves
        panel.draws |= part.draws
    if "fold_auroc" in panel.estimates:
        whole = [k for k in np.unique(fold) if 0 < y[fold == k].sum() < (fold == k).sum()]
        if 0 < len(whole) < len(np.unique(fold)):
            panel.estimates["fold_auroc"] = with_note(
                panel.estimates["fold_auroc"],
                f"mean of the {len(whole)} of {len(np.unique(fold))} folds that have both kinds",
            )
    return panel, None if calibrated is None else _probability_panel(y, calibrated, resamples)


def _probability_panel(y: Bools, p: Floats, resamples: ClusterBootstrap) -> Panel:
    ends = np.quantile(p, [0.01, 0.99]) if len(p) else np.array([0.0, 1.0])
    grid = np.linspace(ends[0], max(ends[1], ends[0] + 1e-6), 61)
    return measure(probabilities(y, p, grid), resamples, {"reliability": grid, "net_benefit": THRESHOLDS})


def multiclass(
    reference: Ints, probability: Floats, resamples: ClusterBootstrap
) -> tuple[Panel, list[dict[str, Estimate]]]:
    """Everything for three or more classes: overall, and one row of estimates a class."""
    counts = [len(np.unique(resamples.patient[reference == k])) for k in np.unique(reference)]
    panel = measure(many_classes(reference, probability), resamples, units=min(counts, default=0))
    called, rows = probability.argmax(axis=1), []
    for k in range(probability.shape[1]):
        prefix, y = f"class:{k}:", reference == k
        row = {name[len(prefix) :]: e for name, e in panel.estimates.items() if name.startswith(prefix)}
        row |= shares_of_table(y, called == k, resamples.patient)
        row["auroc"] = at_boundary(row["auroc"], y, resamples.patient)
        rows.append(row)
    panel.estimates = {name: e for name, e in panel.estimates.items() if not name.startswith("class:")}
    missing = [k for k in range(probability.shape[1]) if rows[k]["auroc"].value is None]
    if missing and panel.estimates["macro_auroc"]:
        panel.estimates["macro_auroc"] = with_note(
            panel.estimates["macro_auroc"],
            f"mean over the {probability.shape[1] - len(missing)} classes that are present",
        )
    return panel, rows
