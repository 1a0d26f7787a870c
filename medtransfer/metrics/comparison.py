"""Beside the main numbers: paired differences, control models, subgroups, other prevalences."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from medtransfer.errors import MetricError
from medtransfer.metrics import calibration, classification, panel
from medtransfer.metrics.checks import Check, Control
from medtransfer.metrics.intervals import ClusterBootstrap, Estimate, interval
from medtransfer.metrics.ordinal import ranked_probability, weighted_kappa
from medtransfer.metrics.regression import agreement
from medtransfer.predictions import Predictions

Floats = NDArray[np.float64]
SUPPRESSED_BELOW = 10  # events, and non-events, of a subgroup


@dataclass(frozen=True)
class Subgroup:
    """One level of one grouping; its estimates are suppressed where it is small.

    Parameters
    ----------
    grouping, level : str
    cases, events : int
        Of several classes, events are the cases outside the largest class.
    auroc, gap : Estimate
        AUROC inside (macro for several classes), and inside minus all other cases.
    sensitivity, specificity : Estimate
        At the operating point; not defined for several classes.
    gap_adjusted : Estimate
        The gap with an interval widened for the number of gaps looked at (Bonferroni).
    """

    grouping: str
    level: str
    cases: int
    events: int
    auroc: Estimate
    gap: Estimate
    sensitivity: Estimate
    specificity: Estimate
    gap_adjusted: Estimate = field(default_factory=lambda: Estimate(None))


def align(other: Predictions, to: Predictions, name: str) -> Predictions:
    """The predictions of ``other`` in the order of ``to``.

    Raises
    ------
    MetricError
        Where classes or reference labels differ, or a case is missing.
    """
    if other.classes != to.classes or other.task != to.task:
        raise MetricError(f"{name} speaks of other classes", got=", ".join(other.classes))
    by_fold = len(set(to.case.tolist())) < len(to)
    keys = [(int(f) if by_fold else 0, str(c)) for f, c in zip(other.fold, other.case, strict=True)]
    place = {key: i for i, key in enumerate(keys)}
    wanted = [(int(f) if by_fold else 0, str(c)) for f, c in zip(to.fold, to.case, strict=True)]
    missing = [key for key in wanted if key not in place]
    if missing:
        raise MetricError(
            f"{name} lacks {len(missing)} of {len(wanted)} cases",
            got=f"e.g. no {missing[0][1]}",
            fix="predict the same cases with both models",
        )
    same = other.take(np.array([place[key] for key in wanted], dtype=np.int64))
    differ = ~np.isclose(same.reference, to.reference, equal_nan=True)
    if differ.any():
        raise MetricError(f"{name} has other reference labels", got=f"{differ.sum()} of {differ.size} differ")
    return same


def primary(predictions: Predictions) -> str:
    """Name of the headline: of all statistics the one that says most about a task; more is better."""
    if predictions.task == "classification":
        return "auroc" if len(predictions.classes) == 2 else "macro_auroc"
    return {"multilabel": "macro_auroc", "ordinal": "kappa_quadratic", "regression": "r2"}[predictions.task]


def headline(predictions: Predictions) -> panel.Statistic:
    """The statistics by which models are compared; the first is the headline of :func:`primary`.

    AUROC (macro for several classes or labels), average precision, Brier score and log loss; weighted kappa and
    ranked probability score for ordered classes; R² and mean absolute error for numbers.
    """
    reference, probability = predictions.reference, predictions.probability
    if predictions.task == "regression":
        known = ~np.isnan(reference)
        each = [agreement(reference[k, t], probability[k, t]) for t, k in enumerate(known.T)]

        def numbers(w: Floats) -> dict[str, Floats]:
            found = [one(w[:, k]) for one, k in zip(each, known.T, strict=True)]
            return {name: panel.mean_of_defined([f[name] for f in found]) for name in ("r2", "mae")}

        return numbers
    if predictions.task == "ordinal":
        y, called = reference.astype(np.int64), probability.argmax(axis=1)
        return lambda w: {
            "kappa_quadratic": weighted_kappa(classification.confusion(y, called, probability.shape[1], w), 2),
            "rps": ranked_probability(y, probability, w)["rps"],
        }
    if predictions.task == "multilabel":
        known = ~np.isnan(reference)

        def labels(w: Floats) -> dict[str, Floats]:
            parts = [(reference[k, t] == 1, probability[k, t], w[:, k]) for t, k in enumerate(known.T)]
            return {
                "macro_auroc": panel.mean_of_defined([classification.auroc(*p) for p in parts]),
                "macro_average_precision": panel.mean_of_defined([classification.average_precision(*p) for p in parts]),
                "brier": panel.mean_of_defined([calibration.brier(*p) for p in parts]),
            }

        return labels
    if len(predictions.classes) == 2:
        y, p = reference == 1, predictions.positive
        return lambda w: {
            "auroc": classification.auroc(y, p, w),
            "average_precision": classification.average_precision(y, p, w),
            "brier": calibration.brier(y, p, w),
            "log_loss": calibration.log_loss(y, p, w),
        }
    areas = range(probability.shape[1])
    return lambda w: {
        "macro_auroc": panel.mean_of_defined(
            [classification.auroc(reference == k, probability[:, k], w) for k in areas]
        ),
        "brier": calibration.brier(reference, probability, w),
        "log_loss": calibration.log_loss(reference, probability, w),
    }


def difference(a: Predictions, b: Predictions, resamples: ClusterBootstrap) -> dict[str, Estimate]:
    """Paired differences a − b of the headline statistics; a and b are aligned."""
    of_a, of_b = headline(a), headline(b)

    def statistic(w: Floats) -> dict[str, Floats]:
        left, right = of_a(w), of_b(w)
        return {name: left[name] - right[name] for name in left}

    point, draws = statistic(np.ones((1, len(a)))), resamples.apply(statistic)
    patients = len(np.unique(resamples.patient))
    return {
        name: interval(float(v[0]), draws.get(name, v[:0]), why=panel.WHY.get(name, ""), patients=patients)
        for name, v in point.items()
    }


def control(name: str, other: Predictions, model: Predictions, resamples: ClusterBootstrap) -> Control:
    """A control model on the same cases."""
    other = align(other, model, f"the control '{name}'")
    main = primary(model)
    gain = difference(model, other, resamples)[main]
    of_control = headline(other)
    units = panel.rarer(model.reference == 1, resamples.patient) if main == "auroc" else 0
    value = panel.measure(lambda w: {main: of_control(w)[main]}, resamples, units=units).estimates[main]
    return Control(name, value, gain)


def subgroups(
    groups: dict[str, NDArray[np.str_]], test: Predictions, called: NDArray[np.bool_], resamples: ClusterBootstrap
) -> list[Subgroup]:
    """AUROC and gap of every level of every grouping, sensitivity and specificity too where there are two classes.

    Levels with fewer than 10 cases of a kind are suppressed. The adjusted interval of a gap is its bootstrap standard
    error times the normal quantile for 0.05 / m, m being the number of gaps looked at; the two gaps of a grouping of
    two levels mirror each other and count as one.
    """
    two, patient = len(test.classes) == 2, resamples.patient
    found: list[Subgroup] = []
    spread: dict[int, float] = {}
    mirrored = 0
    for grouping, labels in groups.items():
        levels = sorted(set(labels.tolist()))
        before = len(spread)
        for level in levels:
            inside = labels == level
            kinds = np.bincount(test.reference[inside].astype(np.int64), minlength=len(test.classes))
            cases, most = len(set(test.case[inside].tolist())), test.reference == (1 if two else kinds.argmax())
            events = len(set(test.case[inside & (most if two else ~most)].tolist()))
            if min(events, cases - events) < SUPPRESSED_BELOW:
                hidden = Estimate(None, note=f"suppressed: fewer than {SUPPRESSED_BELOW} cases of a kind")
                found.append(Subgroup(grouping, level, cases, events, *[hidden] * 5))
                continue
            rare = panel.rarer(test.reference[inside] == test.reference.dtype.type(kinds.argmax()), patient[inside])
            both = panel.measure(_gap(test, inside), resamples, units=rare)
            shares = {name: Estimate(None, note="for two classes") for name in ("sensitivity", "specificity")}
            if two:
                y = test.reference[inside] == 1
                shares = panel.shares_of_table(y, called[inside], patient[inside])
            if both.estimates["gap"]:
                draws = both.draws["gap"]
                spread[len(found)] = float(np.nanstd(draws)) if np.isfinite(draws).any() else math.nan
            e = both.estimates
            found.append(
                Subgroup(
                    grouping, level, cases, events, e["auroc"], e["gap"], shares["sensitivity"], shares["specificity"]
                )
            )
        mirrored += len(levels) == 2 and len(spread) - before == 2
    looked = len(spread) - mirrored
    for i, deviation in spread.items():
        found[i] = replace(found[i], gap_adjusted=_widened(found[i].gap, deviation, looked))
    return found


def _gap(test: Predictions, inside: NDArray[np.bool_]) -> panel.Statistic:
    """AUROC inside and its difference to that outside, over the classes that both can be scored on."""
    reference, probability = test.reference, test.probability
    columns = [1] if len(test.classes) == 2 else range(len(test.classes))
    sides = [(reference[part], probability[part], part) for part in (inside, ~inside)]
    shared = [k for k in columns if all(0 < (y == k).sum() < len(y) for y, _, _ in sides)]
    use = shared or [k for k in columns if 0 < (sides[0][0] == k).sum() < len(sides[0][0])]

    def statistic(w: Floats) -> dict[str, Floats]:
        here, there = (
            np.mean([classification.auroc(y == k, p[:, k], w[:, part]) for k in use], axis=0) for y, p, part in sides
        )
        return {"auroc": here, "gap": here - there}

    return statistic


def _widened(gap: Estimate, deviation: float, looked: int) -> Estimate:
    if gap.value is None or not math.isfinite(deviation):
        return gap
    half = NormalDist().inv_cdf(1 - 0.025 / max(1, looked)) * deviation
    method = f"patient-cluster bootstrap, standard error, Bonferroni for {looked} gaps"
    return Estimate(gap.value, gap.value - half, gap.value + half, method)


def subgroup_checks(found: list[Subgroup]) -> list[Check]:
    """Whether the model is surely better or worse for somebody, the number of comparisons allowed for."""
    looked = [s for s in found if s.gap_adjusted.low is not None and s.gap_adjusted.high is not None]
    if not looked:
        return []
    apart = [s for s in looked if not (s.gap_adjusted.low or 0) <= 0 <= (s.gap_adjusted.high or 0)]
    several = len(looked) > 1
    said = f"{len(looked)} subgroup{'s were' if several else ' was'} set against the other cases"
    if not apart:
        text = f"{said}; none surely differs in AUROC (Bonferroni). That is no proof of fairness."
        return [Check("Subgroups", "ok", text)]
    named = "; ".join(f"{s.grouping} {s.level}: gap {s.gap_adjusted}" for s in apart[:4])
    return [
        Check(
            "Subgroups",
            "caution",
            f"{said}; {len(apart)} differ{'' if len(apart) > 1 else 's'} in AUROC (Bonferroni): {named}.",
        )
    ]


def at_prevalence(prevalence: float, found: panel.Panel) -> tuple[float, Estimate, Estimate]:
    """PPV and NPV at another prevalence, sensitivity and specificity held as they are."""
    if not 0 < prevalence < 1:
        raise MetricError("a prevalence lies between 0 and 1", where="evaluate.prevalences", got=prevalence)

    def both(sensitivity: Floats, specificity: Floats) -> tuple[Floats, Floats]:
        right, false = sensitivity * prevalence, (1 - specificity) * (1 - prevalence)
        clear, missed = specificity * (1 - prevalence), (1 - sensitivity) * prevalence
        with np.errstate(invalid="ignore"):
            return right / (right + false), clear / (clear + missed)

    se, sp = found.estimates["sensitivity"].value, found.estimates["specificity"].value
    if se is None or sp is None:
        none = Estimate(None, note="sensitivity or specificity is not defined")
        return prevalence, none, none
    value = both(np.array(se), np.array(sp))
    draws = both(found.draws["sensitivity"], found.draws["specificity"])
    ppv, npv = (interval(float(v), d, why="the model never calls it") for v, d in zip(value, draws, strict=True))
    return prevalence, ppv, npv
