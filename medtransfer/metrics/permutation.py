"""Permutation tests of the AUROC that exchange whole patients: against chance, and between two models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medtransfer.metrics.classification import auroc

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class PermutationTest:
    """A statistic and how often chance alone reaches it.

    Parameters
    ----------
    value : float or None
        The AUROC, or the difference of two; None where it is not defined.
    p : float or None
        (1 + permutations that reach it) / (1 + permutations), never 0 (Phipson & Smyth 2010).
    permutations : int
    method, note : str
        What was exchanged; why there is no value.
    """

    value: float | None
    p: float | None
    permutations: int
    method: str
    note: str = ""

    def __str__(self) -> str:
        if self.value is None or self.p is None:
            return f"not defined ({self.note})"
        return f"{self.value:.3f}, p {'<' if self.p * (self.permutations + 1) <= 1 else '='} {self.p:.4f}"

    def to_json(self) -> dict[str, float | str | None]:
        """The fields as plain JSON types."""
        return {
            "value": self.value,
            "p": self.p,
            "permutations": self.permutations,
            "method": self.method,
            "note": self.note,
        }


def against_chance(
    positive: ArrayLike, score: ArrayLike, patient: ArrayLike, *, permutations: int = 2000, seed: int = 0
) -> PermutationTest:
    """Is the AUROC higher than with labels dealt out to patients at random? One-sided.

    Where all cases of a patient have the same label, labels are exchanged among all patients; else the labels of
    all cases of a patient go, together, to another with as many cases.

    Parameters
    ----------
    positive : array (n,) of bool
    score : array (n,) of float
    patient : array (n,)
    permutations, seed : int

    Examples
    --------
    >>> y = np.arange(40) % 2 == 0
    >>> print(against_chance(y, y + 0.0, np.arange(40), permutations=999))
    1.000, p < 0.0010
    """
    from scipy.stats import rankdata

    y, number = np.asarray(positive, dtype=bool), np.unique(np.asarray(patient), return_inverse=True)[1]
    score = np.asarray(score, dtype=np.float64)
    if y.all() or not y.any():
        return PermutationTest(None, None, 0, "", "needs cases with and without the condition")
    cases = np.argsort(number, kind="stable")  # patient after patient
    start = np.searchsorted(number[cases], np.arange(number.max() + 1))
    size = np.diff(np.append(start, len(y)))
    yes = np.add.reduceat(y[cases], start)
    whole = bool(((yes == 0) | (yes == size)).all())
    stratum = np.zeros_like(size) if whole else size
    rank, rng, areas = rankdata(score)[cases], np.random.default_rng(seed), np.empty(permutations)
    place = np.arange(len(y)) - np.repeat(start, size)  # of a case within its patient
    for i in range(permutations):
        giver = np.empty_like(size)
        for level in np.unique(stratum):
            members = np.flatnonzero(stratum == level)
            giver[members] = rng.permutation(members)
        dealt = np.repeat(yes[giver] > 0, size) if whole else y[cases][np.repeat(start[giver], size) + place]
        areas[i] = _area(dealt, rank)
    value = float(auroc(y, score))
    reached = int((areas >= value - 1e-12).sum())
    how = "all patients" if whole else "patients with equally many cases"
    return PermutationTest(
        value, (1 + reached) / (1 + permutations), permutations, f"labels exchanged among {how}, one-sided"
    )


def between_models(
    positive: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    patient: ArrayLike,
    *,
    permutations: int = 2000,
    seed: int = 0,
) -> PermutationTest:
    """Do two models on the same cases differ in AUROC? Two-sided.

    Scores become mid-ranks among all cases, so that models with other scales can be exchanged (Venkatraman & Begg
    1996; Bandos, Rockette & Gur 2005), and the two models' ranks are swapped, or not, for a patient as a whole.

    Parameters
    ----------
    positive : array (n,) or (n, columns) of bool
        With several columns, such as one for each of several classes, the mean of their AUROCs is compared.
    first, second : array of float, of the same shape
        Scores of the two models.
    patient : array (n,)
    permutations, seed : int

    Examples
    --------
    >>> y, s = np.arange(20) % 2 == 0, np.arange(20.0)
    >>> between_models(y, s, 5 * s, np.arange(20), permutations=99).p  # the same order is the same model
    1.0
    """
    from scipy.stats import rankdata

    y, number = np.asarray(positive, dtype=bool), np.unique(np.asarray(patient), return_inverse=True)[1]
    y = y.reshape(len(number), -1)
    if y.all(axis=0).any() or not y.any(axis=0).all():
        return PermutationTest(None, None, 0, "", "needs cases with and without the condition")
    a, b = (rankdata(np.asarray(s, dtype=np.float64).reshape(y.shape), axis=0) for s in (first, second))
    value = float((_areas(y, a[None]) - _areas(y, b[None]))[0])
    rng, reached, step = np.random.default_rng(seed), 0, max(1, 1_000_000 // y.size)
    for begin in range(0, permutations, step):
        swap = rng.random((min(step, permutations - begin), int(number.max()) + 1)) < 0.5
        each = swap[:, number, None]
        gaps = _areas(y, np.where(each, b, a)) - _areas(y, np.where(each, a, b))
        reached += int((np.abs(gaps) >= abs(value) - 1e-12).sum())
    return PermutationTest(
        value,
        (1 + reached) / (1 + permutations),
        permutations,
        "the two models' ranks exchanged patient by patient, two-sided",
    )


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjustment of several p values (Holm 1979, Scand J Stat 6); nan stays nan and is not counted.

    Examples
    --------
    >>> [round(v, 3) for v in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    found, highest = [float("nan")] * len(p), 0.0
    ranked = sorted((value, i) for i, value in enumerate(p) if value == value)
    for rank, (value, i) in enumerate(ranked):
        highest = max(highest, min(1.0, value * (len(ranked) - rank)))
        found[i] = highest
    return found


def _area(y: NDArray[np.bool_], rank: Floats) -> float:
    """AUROC from mid-ranks among all cases."""
    m = int(y.sum())
    return float((rank[y].sum() - m * (m + 1) / 2) / (m * (len(y) - m))) if 0 < m < len(y) else float("nan")


def _areas(y: NDArray[np.bool_], score: Floats) -> Floats:
    """Mean AUROC over the columns of scores ``(m, n, columns)``, for each of m."""
    from scipy.stats import rankdata

    m = y.sum(axis=0)
    won = (rankdata(score, axis=1) * y).sum(axis=1) - m * (m + 1) / 2
    return np.asarray((won / (m * (len(y) - m))).mean(axis=-1))
