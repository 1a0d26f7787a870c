"""Operating points: chosen on validation predictions, one a fold, and only then looked at on test."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from medtransfer.errors import ConfigError, MetricError
from medtransfer.predictions import Predictions

Floats = NDArray[np.float64]
Members = frozenset[tuple[int, str]]


@dataclass(frozen=True)
class Threshold:
    """The probability from which a case is called positive, and what it was chosen on.

    Parameters
    ----------
    rule : str
        How it was chosen, e.g. ``'youden'`` or ``'sensitivity>=0.9'``; ``'fixed'`` if it was given.
    by_fold : dict of int to float
        One threshold for each fold's model; ``{0: t}`` for a holdout split.
    cases, patients : frozenset of (fold, pseudonym)
        The validation cases it was fitted on, and their patients.
    """

    rule: str
    by_fold: dict[int, float]
    cases: Members = field(default=frozenset(), repr=False)
    patients: Members = field(default=frozenset(), repr=False)

    def __repr__(self) -> str:
        values = ", ".join(f"{v:.4g}" for _, v in sorted(self.by_fold.items()))
        return f"Threshold({self.rule}: {values}; {len(self.cases)} validation cases)"

    def called(self, predictions: Predictions) -> NDArray[np.bool_]:
        """Whether each case reaches the threshold of its fold, shape (n,).

        Raises
        ------
        MetricError
            Where a fold has no threshold.
        """
        return predictions.positive >= per_fold(self.by_fold, predictions, "threshold")

    def to_json(self) -> dict[str, object]:
        """Plain JSON types, read back by :meth:`from_json`."""
        return {
            "rule": self.rule,
            "by_fold": {str(k): v for k, v in sorted(self.by_fold.items())},
            "cases": [list(m) for m in sorted(self.cases)],
            "patients": [list(m) for m in sorted(self.patients)],
        }

    @classmethod
    def from_json(cls, stored: dict[str, object]) -> Threshold:
        """What :meth:`to_json` wrote.

        Examples
        --------
        >>> t = Threshold("youden", {0: 0.3}, frozenset({(0, "case-a")}))
        >>> Threshold.from_json(t.to_json()) == t
        True
        """
        by_fold, cases, patients = stored["by_fold"], stored["cases"], stored["patients"]
        if not (isinstance(by_fold, dict) and isinstance(cases, list) and isinstance(patients, list)):
            raise MetricError("a stored threshold cannot be read", got=f"keys {', '.join(stored)}")
        return cls(
            str(stored["rule"]),
            {int(k): float(v) for k, v in by_fold.items()},
            frozenset((int(f), str(c)) for f, c in cases),
            frozenset((int(f), str(c)) for f, c in patients),
        )


def members(predictions: Predictions) -> tuple[Members, Members]:
    """(fold, case) and (fold, patient) of the predictions."""
    folds = predictions.fold.tolist()
    return (
        frozenset(zip(folds, map(str, predictions.case), strict=True)),
        frozenset(zip(folds, map(str, predictions.patient), strict=True)),
    )


def refuse_overlap(what: str, cases: Members, patients: Members, test: Predictions) -> None:
    """Refuse a threshold or calibrator fitted on cases or patients of the same fold's test part."""
    for kind, fitted, tested in zip(("case", "patient"), (cases, patients), members(test), strict=True):
        both = fitted & tested
        if both:
            raise MetricError(
                f"the {what} was fitted on {len(both)} {kind}{'s' if len(both) > 1 else ''} it would be tested on",
                where="evaluate",
                got=f"e.g. {min(both)[1]} in fold {min(both)[0]}",
                fix=f"fit the {what} on validation predictions: run.predict(split.val)",
            )


def per_fold(by_fold: dict[int, float], predictions: Predictions, what: str) -> Floats:
    """The value of each case's fold, shape (n,)."""
    missing = sorted(set(predictions.fold.tolist()) - set(by_fold))
    if missing:
        raise MetricError(
            f"there is no {what} for every fold",
            got=f"none for fold {', '.join(map(str, missing))}",
            fix="fit it on validation predictions of the same folds",
        )
    return np.array([by_fold[int(f)] for f in predictions.fold], dtype=np.float64)


def youden(val: Predictions) -> Threshold:
    """The threshold with the largest sensitivity + specificity − 1 (Youden 1950).

    Among equals the lowest threshold, that of the highest sensitivity, is taken. All rules return the
    middle between the lowest score called positive and the highest called negative.

    Parameters
    ----------
    val : Predictions
        Validation predictions of a two-class task.

    Raises
    ------
    MetricError
        Where a fold's validation part lacks one of the two classes.

    Examples
    --------
    >>> p = np.array([0.1, 0.4, 0.35, 0.8])
    >>> ids = np.array(list("abcd"))
    >>> val = Predictions(ids, ids, np.array([0, 0, 1, 1]), np.c_[1 - p, p], ("no", "yes"), np.zeros(4, int), "val")
    >>> round(youden(val).by_fold[0], 3)
    0.225
    """
    return _fit("youden", val, lambda sensitivity, specificity, share: sensitivity + specificity)


def sensitivity_at_least(val: Predictions, sensitivity: float) -> Threshold:
    """The highest threshold whose validation sensitivity is at least ``sensitivity``."""
    _check_share("sensitivity", sensitivity)
    return _fit(
        f"sensitivity>={sensitivity:g}",
        val,
        lambda sens, spec, share: np.where(sens >= sensitivity - 1e-12, spec, -1.0),
    )


def specificity_at_least(val: Predictions, specificity: float) -> Threshold:
    """The lowest threshold whose validation specificity is at least ``specificity``."""
    _check_share("specificity", specificity)
    return _fit(
        f"specificity>={specificity:g}",
        val,
        lambda sens, spec, share: np.where(spec >= specificity - 1e-12, sens, -1.0),
    )


def least_cost(val: Predictions, missed_per_false_alarm: float) -> Threshold:
    """The threshold of least cost, when one missed case costs as much as so many false alarms."""
    if not missed_per_false_alarm > 0:
        raise ConfigError("a cost must be above 0", where="threshold", got=missed_per_false_alarm)
    return _fit(
        f"cost={missed_per_false_alarm:g}",
        val,
        lambda sens, spec, share: -(missed_per_false_alarm * (1 - sens) * share + (1 - spec) * (1 - share)),
    )


def fixed(value: float, folds: NDArray[np.int64] | list[int]) -> Threshold:
    """A threshold that was given, not fitted."""
    return Threshold("fixed", {int(f): float(value) for f in sorted(set(np.asarray(folds).tolist()))})


def threshold_by_rule(rule: str, val: Predictions) -> Threshold:
    """The threshold that a rule from a config file names.

    Parameters
    ----------
    rule : str
        ``'youden'``, ``'sensitivity>=0.9'``, ``'specificity>=0.95'``, ``'cost=5'`` (a missed case costs as
        much as 5 false alarms) or a number such as ``'0.3'``, which is taken as it is.

    Raises
    ------
    ConfigError
        Where the rule is none of these.
    """
    text = str(rule).strip().lower().replace(" ", "")
    if text == "youden":
        return youden(val)
    match = re.fullmatch(r"(sensitivity|specificity)(?:>=|≥)([0-9.]+)|cost=([0-9.]+)|([0-9.]+)", text)
    try:
        if match and match[1]:
            chosen = sensitivity_at_least if match[1] == "sensitivity" else specificity_at_least
            return chosen(val, float(match[2]))
        if match and match[3]:
            return least_cost(val, float(match[3]))
        if match and 0 <= float(match[4]) <= 1:
            return fixed(float(match[4]), val.fold)
    except ValueError:  # "0.9.1" is no number
        pass
    raise ConfigError(
        "there is no such threshold rule",
        where="evaluate.threshold",
        got=repr(rule),
        fix="use youden, sensitivity>=0.9, specificity>=0.9, cost=5 or a number from 0 to 1",
    )


def _check_share(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise ConfigError(f"a {name} lies above 0 and up to 1", where="threshold", got=value)


def _fit(rule: str, val: Predictions, worth: Callable[[Floats, Floats, float], Floats]) -> Threshold:
    known = val.take(val.reference >= 0)
    chosen = {}
    for fold in sorted(set(known.fold.tolist())):
        part = known.take(known.fold == fold)
        chosen[int(fold)] = _best(part.reference == 1, part.positive, worth, f"validation part of fold {fold}")
    if not chosen:
        raise MetricError(
            "there are no validation cases to choose a threshold on", fix="use a split with a validation part"
        )
    return Threshold(rule, chosen, *members(known))


def _best(y: NDArray[np.bool_], score: Floats, worth: Callable[[Floats, Floats, float], Floats], where: str) -> float:
    events, n = int(y.sum()), len(y)
    if events in (0, n):
        raise MetricError(
            "a threshold needs positive and negative cases",
            where=where,
            got=f"{events} positive of {n}",
            fix="use a larger validation part or fewer folds",
        )
    levels, inverse = np.unique(score, return_inverse=True)
    yes, all_ = np.bincount(inverse, weights=y), np.bincount(inverse)
    above_yes = np.append(np.cumsum(yes[::-1])[::-1], 0)  # positives at or above each level; last: called none
    above_no = np.append(np.cumsum((all_ - yes)[::-1])[::-1], 0)
    value = worth(above_yes / events, 1 - above_no / (n - events), events / n)
    tied = np.flatnonzero(value >= value.max() - 1e-12)
    # among equals: the highest sensitivity, then the highest specificity, which is the highest threshold that has it
    tied = tied[above_yes[tied] == above_yes[tied].max()]
    at = int(tied[np.argmin(above_no[tied])])
    upper = levels[at] if at < len(levels) else max(1.0, float(np.nextafter(levels[-1], np.inf)))
    lower = levels[at - 1] if at else min(0.0, float(levels[0]))
    middle = float((upper + lower) / 2)
    return middle if middle > lower or at == 0 else float(upper)
