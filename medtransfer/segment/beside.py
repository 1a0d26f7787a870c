"""Another tool's Dice, from a column of the cohort's table, beside the run's on the same cases."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medtransfer.errors import DataError, MetricError
from medtransfer.metrics.intervals import ClusterBootstrap, Estimate, Scale, interval, plain

Floats = NDArray[np.float64]
PERMUTATIONS = 10_000
_PERCENT = 10  # no column of shares has such a median


@dataclass(frozen=True, eq=False)
class Beside:
    """Paired values of this run and of another tool.

    Parameters
    ----------
    column : str
        Of the table, with the other tool's Dice.
    structure : str
    cases : tuple of str
        Pseudonyms of the cases that both have a value of.
    ours, theirs : ndarray (n,)
    mean, other, difference : Estimate
        Means over cases, and of the paired differences ours − theirs, with intervals by resampling patients.
    p : float or None
        Of a permutation test, two-sided, that changes the sign of whole patients' differences.
    left_out : int
        Tested cases without a value in the column, or without the structure.
    percent : bool
        The column was in percent.
    """

    column: str
    structure: str
    cases: tuple[str, ...]
    ours: Floats
    theirs: Floats
    mean: Estimate
    other: Estimate
    difference: Estimate
    p: float | None
    left_out: int
    percent: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        estimates = {k: plain(getattr(self, k).to_json()) for k in ("mean", "other", "difference")}
        pairs = zip(self.cases, self.ours, self.theirs, strict=True)
        return {
            "column": self.column, "structure": self.structure, "cases": len(self.cases), "left_out": self.left_out,
            "percent": self.percent,
            **estimates, "p": plain(self.p),
            "test": {"kind": "signs of patients' differences exchanged, two-sided", "permutations": PERMUTATIONS},
            "pairs": [{"case": c, "ours": plain(float(a)), "theirs": plain(float(b))} for c, a, b in pairs],
        }  # fmt: skip

    def __str__(self) -> str:
        said = "not defined" if self.p is None else f"{self.p:.4f}"
        return f"{self.structure}: Dice minus {self.column} {self.difference}, {len(self.cases)} cases, p {said}"


def beside(
    column: str,
    structure: str,
    cases: Sequence[str],
    patients: Sequence[str],
    ours: ArrayLike,
    texts: Sequence[str | None],
    *,
    bootstrap: int = 2000,
    seed: int = 0,
) -> Beside:
    """Compare the run's Dice with the cells of a column, case by case.

    Parameters
    ----------
    column, structure : str
    cases, patients : sequence of str
        Pseudonyms of the tested cases.
    ours : array (n,)
        Dice of each; nan where neither mask has the structure.
    texts : sequence of str or None
        Cells of the column: a number from 0 to 1, or nothing; percent where their median is above 10.
    bootstrap, seed : int

    Raises
    ------
    DataError
        Where a cell is no Dice.
    MetricError
        Where no case has both values.

    Examples
    --------
    >>> found = beside("tool", "liver", "abc", "abc", [0.9, 0.8, 0.7], ["0.85", "0.7", None], bootstrap=100)
    >>> round(found.difference.value, 3), found.left_out
    (0.075, 1)
    """
    own = np.asarray(ours, dtype=np.float64)
    other = np.array([_number(text, column, case) for text, case in zip(texts, cases, strict=True)])
    if percent := bool(np.nanmedian(other) > _PERCENT if np.isfinite(other).any() else False):
        other = other / 100
    if wrong := [case for case, value in zip(cases, other, strict=True) if value > 1]:
        raise DataError("a cell is no Dice", where=f"{wrong[0]}, column {column}", got="not a number from 0 to 1",
                        fix="a column in percent is known by its median above 10")  # fmt: skip
    both = np.isfinite(own) & np.isfinite(other)
    if not both.any():
        raise MetricError("no tested case has a value in the column", where=f"evaluate.beside.{column}",
                          got=f"{np.isfinite(other).sum()} values for {len(own)} tested cases",
                          fix="name a column with the other tool's Dice of the test part")  # fmt: skip
    own, other = own[both], other[both]
    who = [p for p, kept in zip(patients, both, strict=True) if kept]
    resamples = ClusterBootstrap.draw(who, resamples=bootstrap, seed=seed)
    units = len(set(who))

    def statistic(w: Floats) -> dict[str, Floats]:
        weights = w / w.sum(axis=1, keepdims=True)
        return {"mean": weights @ own, "other": weights @ other, "difference": weights @ (own - other)}

    values = {k: float(v[0]) for k, v in statistic(np.ones((1, len(own)))).items()}
    draws = resamples.apply(statistic)
    scales: dict[str, Scale] = dict.fromkeys(set(values) - {"difference"}, "log odds")
    found = {k: interval(v, draws[k], scale=scales.get(k), units=units, patients=units) for k, v in values.items()}
    kept = tuple(c for c, k in zip(cases, both, strict=True) if k)
    p = sign_test(own - other, resamples.patient, seed=seed)
    return Beside(column, structure, kept, own, other, found["mean"], found["other"], found["difference"], p,
                  int((~both).sum()), percent)  # fmt: skip


def sign_test(
    difference: ArrayLike, patient: ArrayLike, *, permutations: int = PERMUTATIONS, seed: int = 0
) -> float | None:
    """Two-sided permutation test of a mean paired difference: signs of whole patients are exchanged.

    Returns
    -------
    float or None
        (1 + exchanges that reach it) / (1 + exchanges), never 0 (Phipson & Smyth 2010). With at most 12 patients
        all exchanges are gone through instead. None with fewer than two patients.

    Examples
    --------
    >>> sign_test([0.1, 0.2, 0.3], [0, 1, 2])
    0.25
    """
    number = np.unique(np.asarray(patient), return_inverse=True)[1]
    sums = np.bincount(number, weights=np.asarray(difference, dtype=np.float64))
    n = len(sums)
    if n < 2:
        return None
    observed = abs(sums.sum()) * (1 - 1e-12)
    if n <= 12:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        return float(np.mean(np.abs(signs @ sums) >= observed))
    signs = np.random.default_rng(seed).integers(0, 2, size=(permutations, n), dtype=np.int8) * 2 - 1
    return float((1 + (np.abs(signs @ sums) >= observed).sum()) / (1 + permutations))


def _number(text: str | None, column: str, case: str) -> float:
    if text is None or not text.strip():
        return math.nan
    try:
        value = float(text)
    except ValueError:
        value = math.inf
    if not 0 <= value <= 100:
        raise DataError("a cell is no Dice", where=f"{case}, column {column}", got="not a number from 0 to 1")
    return value
