"""Permutation test of two models on the same cases, and the adjustment for several such tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def paired_permutation(
    reference: ArrayLike,
    a: Floats,
    b: Floats,
    patient: ArrayLike,
    *,
    permutations: int = 2000,
    seed: int = 0,
) -> float:
    """Two-sided p value of equal AUROCs, by swapping the two models' scores of whole patients at random.

    Scores are ranked within each model first, so that only the order counts (Bandos, Rockette & Gur 2005).

    Parameters
    ----------
    reference : array (n,) of int
        Class index.
    a, b : ndarray (n, classes)
        Probabilities; of two classes the second column counts, else the mean over one-versus-rest AUROCs.
    patient : array (n,)
        Cases of one patient are swapped together.
    permutations, seed : int

    Returns
    -------
    float
        (1 + permutations with at least the observed difference) / (1 + permutations); nan where a class is missing.

    Examples
    --------
    >>> y = np.arange(40) % 2
    >>> good, poor = np.c_[1 - y, y] * 1.0, np.full((40, 2), 0.5)
    >>> paired_permutation(y, good, poor, np.arange(40)) < 0.01
    True
    >>> paired_permutation(y, good, good, np.arange(40))
    1.0
    """
    from scipy.stats import rankdata

    y = np.asarray(reference)
    columns = [1] if a.shape[1] == 2 else [k for k in range(a.shape[1]) if 0 < (y == k).sum() < len(y)]
    if not columns or not 0 < (y == columns[0]).sum() < len(y):
        return float("nan")
    number = np.unique(np.asarray(patient), return_inverse=True)[1]
    left, right = (rankdata(x[:, columns], axis=0) for x in (a, b))
    truth = y[:, None] == np.array(columns)

    def gap(first: Floats, second: Floats) -> Floats:
        """Difference of AUROCs for scores ``(m, n, columns)``."""
        areas = []
        for scores in (first, second):
            ranks, yes = rankdata(scores, axis=1), truth.sum(axis=0)
            won = (ranks * truth).sum(axis=1) - yes * (yes + 1) / 2
            areas.append((won / (yes * (len(y) - yes))).mean(axis=-1))
        return np.asarray(areas[0] - areas[1])

    observed = abs(float(gap(left[None], right[None])[0]))
    rng, reached = np.random.default_rng(seed), 0
    step = max(1, 1_000_000 // max(1, left.size))
    for start in range(0, permutations, step):
        swap = rng.random((min(step, permutations - start), int(number.max()) + 1)) < 0.5
        other = swap[:, number, None]
        drawn = gap(np.where(other, right, left), np.where(other, left, right))
        reached += int((np.abs(drawn) >= observed - 1e-12).sum())
    return (1 + reached) / (1 + permutations)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjustment of several p values (Holm 1979); nan stays nan and is not counted.

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
