"""How sure a number is: patient-cluster bootstrap, Wilson and DeLong intervals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Z95 = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval, or the reason why there is none.

    Parameters
    ----------
    value : float or None
        The point estimate; None where it is not defined, never nan.
    low, high : float or None
        Ends of the 95 % interval; None where there is none.
    method : str
        How the interval was made.
    note : str
        Why the value or its interval is missing, or what to keep in mind.

    Examples
    --------
    >>> print(Estimate(0.9123, 0.871, 0.944, "bootstrap"))
    0.912 (0.871–0.944)
    >>> print(Estimate(None, note="no case with disease"))
    not defined (no case with disease)
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    method: str = ""
    note: str = ""

    def __str__(self) -> str:
        if self.value is None:
            return f"not defined ({self.note})" if self.note else "not defined"
        text = _three(self.value)
        if self.low is None or self.high is None:
            return text
        return f"{text} ({_three(self.low)}{' to ' if self.low < 0 else '–'}{_three(self.high)})"

    def __bool__(self) -> bool:
        return self.value is not None

    def to_json(self) -> dict[str, float | str | None]:
        """The fields as plain JSON types."""
        return {"value": self.value, "low": self.low, "high": self.high, "method": self.method, "note": self.note}


def _three(value: float) -> str:
    text = f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
    return text.replace("-", "−") if float(text) else text.lstrip("-")


@dataclass(frozen=True, eq=False)
class ClusterBootstrap:
    """Resamples of patients, kept as how often each patient was drawn.

    All images of a patient come and go together, so that the interval knows that they are alike
    (Davison & Hinkley 1997, section 3.8). A statistic takes weights instead of copied rows, which lets
    one call handle many resamples.

    Parameters
    ----------
    patient : ndarray (n,) of int
        Number of the patient of each case, counted from 0.
    counts : ndarray (resamples, patients) of int
        How often each patient was drawn.
    """

    patient: NDArray[np.int64]
    counts: NDArray[np.uint16]

    @classmethod
    def draw(
        cls, patient: ArrayLike, *, resamples: int = 2000, seed: int = 0, stratum: ArrayLike | None = None
    ) -> ClusterBootstrap:
        """Draw patients with replacement.

        Parameters
        ----------
        patient : array (n,)
            Patient of each case. Patients are numbered as they first appear, so that renaming them changes nothing.
        resamples, seed : int
            How many resamples, and the seed of the generator.
        stratum : array (n,), optional
            Patients are drawn within strata (that of their first case), e.g. with and without disease.

        Examples
        --------
        >>> b = ClusterBootstrap.draw(["x", "x", "y"], resamples=4, seed=0)
        >>> b.counts.sum(axis=1)
        array([2, 2, 2, 2], dtype=uint64)
        """
        _, first, inverse = np.unique(np.asarray(patient), return_index=True, return_inverse=True)
        rank = np.empty(len(first), dtype=np.int64)
        rank[np.argsort(first, kind="stable")] = np.arange(len(first))
        number = rank[inverse]
        group = np.zeros(len(first), dtype=np.int64)
        if stratum is not None:
            group[rank] = np.unique(np.asarray(stratum), return_inverse=True)[1][first]
        rng = np.random.default_rng(seed)
        counts = np.zeros((resamples, len(first)), dtype=np.uint16)
        for level in range(int(group.max(initial=-1)) + 1):
            members = np.flatnonzero(group == level)
            size, step = len(members), max(1, 2_000_000 // max(1, len(members)))
            for start in range(0, resamples, step):
                rows = min(step, resamples - start)
                drawn = rng.integers(0, size, size=(rows, size)) + size * np.arange(rows)[:, None]
                times = np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size)
                counts[start : start + rows, members] = times
        return cls(number, counts)

    def apply(self, statistic: Callable[[Floats], dict[str, Floats]]) -> dict[str, Floats]:
        """Values of statistics in every resample.

        Parameters
        ----------
        statistic : function
            Takes weights ``(b, n)`` and gives, by name, values whose first axis is b.
        """
        step = max(1, 1_000_000 // max(1, len(self.patient)))
        parts = []
        for start in range(0, len(self.counts), step):
            rows = self.counts[start : start + step]
            parts.append(statistic(np.take(rows, self.patient, axis=1).astype(np.float64)))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}


Scale = Literal["log odds", "log", "Fisher", "plain"]
# to the scale, back from it, and its slope at a value; values outside of the first two numbers have no place on it
_SCALES: dict[Scale, tuple[float, float, Callable[[float], float], Callable[[float], float], Callable[[float], float]]]
_SCALES = {
    "log odds": (0, 1, lambda v: math.log(v / (1 - v)), lambda z: 1 / (1 + math.exp(-max(-500.0, min(500.0, z)))),
                 lambda v: 1 / (v * (1 - v))),
    "log": (0, math.inf, math.log, lambda z: math.exp(min(500.0, z)), lambda v: 1 / v),
    "Fisher": (-1, 1, math.atanh, math.tanh, lambda v: 1 / (1 - v * v)),
    "plain": (-math.inf, math.inf, float, float, lambda v: 1.0),
}  # fmt: skip


def interval(
    value: float, draws: Floats, *, why: str = "", scale: Scale | None = None, units: int = 0, patients: int = 0
) -> Estimate:
    """Bootstrap interval of a scalar.

    Where the statistic is undefined in more than 1 of 20 resamples no interval is given.

    Parameters
    ----------
    value : float
        Point estimate; nan means not defined.
    draws : ndarray (resamples,)
        Its bootstrap values, nan where undefined.
    why : str
        What to say where the value is not defined.
    scale : {'log odds', 'log', 'Fisher', 'plain'} or None
        Student's t bootstrap standard errors to each side on this scale, which covers well near the ends of what is
        possible and in small samples, where percentiles do not: log odds for a quantity between 0 and 1 such as
        AUROC, log for a size such as an error, Fisher's z for a correlation, plain for a mean. None, or a value that
        lies at an end: percentiles.
    units : int
        With log odds, independent units (patients) of the rarer kind; Student's t has one degree of freedom fewer.
        0: normal.
    patients : int
        Patients that were drawn. Percentiles are taken as far out as makes the interval of a mean as wide as
        Student's (expanded percentile, Hesterberg 2015); with 0 they are the plain ones, too narrow in small samples.
        Standard errors are as wide as Student's likewise.

    Examples
    --------
    >>> print(interval(0.5, np.linspace(0, 1, 1001)))
    0.500 (0.025–0.975)
    """
    if not math.isfinite(value):
        return Estimate(None, note=why or "the data do not define it")
    good = draws[np.isfinite(draws)]
    missing = len(draws) - len(good)
    if not len(draws):
        return Estimate(float(value), note="no interval: no resamples were asked for")
    if missing > 0.05 * len(draws):
        return Estimate(float(value), note=f"no interval: not defined in {missing} of {len(draws)} resamples")
    note = f"not defined in {missing} of {len(draws)} resamples, which were left out" if missing else ""
    if np.ptp(good) == 0:
        note = "; ".join(filter(None, [note, "the same in every resample, which says nothing about its uncertainty"]))
    bottom, top, to, back, slope = _SCALES[scale or "plain"]
    if scale and bottom < value < top:
        count, reach = patients, _reach(patients) if patients > 1 else Z95
        if scale == "log odds":
            count, reach = units, _student(units - 1) if units else Z95
        centre, half = to(value), reach * float(good.std()) * slope(value)
        low, high = back(centre - half), back(centre + half)
        on = {"log odds": " on the log-odds scale", "log": " on the log scale", "Fisher": " on Fisher's scale"}
        how = f"standard error{on.get(scale, '')}{f', t with {max(count - 1, 2)} df' if count else ''}"
    else:
        tail = NormalDist().cdf(-_reach(patients)) if patients > 1 else 0.025
        low, high = (float(end) for end in np.quantile(good, [tail, 1 - tail]))
        how = f"{'expanded ' if patients > 1 else ''}percentile"
    return Estimate(float(value), low, high, f"patient-cluster bootstrap, {how}, {len(draws)} resamples", note)


def limits_of_agreement(bias: Estimate, deviation: Estimate, *, resamples: int) -> tuple[Estimate, Estimate] | None:
    """Limits of agreement, bias ∓ 1.96 standard deviations of the differences, with intervals.

    The intervals of the mean and of the deviation (on the log scale) are joined by the method of variance estimates
    recovery (Zou 2013, Stat Methods Med Res 22, 630). Percentiles of the limits themselves are too narrow: the
    deviation of a resample is skewed and a little small. None where either has no interval.

    Examples
    --------
    >>> lower, upper = limits_of_agreement(Estimate(0.0, -0.3, 0.3), Estimate(1.0, 0.8, 1.25), resamples=9)
    >>> print(upper)  # 1.96 - hypot(0.3, 0.2 * 1.96), 1.96 + hypot(0.3, 0.25 * 1.96)
    1.960 (1.466–2.535)
    """
    numbers = (bias.value, bias.low, bias.high, deviation.value, deviation.low, deviation.high)
    if any(v is None for v in numbers):
        return None
    middle, low, high, spread, narrow, wide = (float(v) for v in numbers if v is not None)
    less, more, down, up = 1.96 * (spread - narrow), 1.96 * (wide - spread), middle - low, high - middle
    how = f"patient-cluster bootstrap, standard errors of mean and deviation joined, {resamples} resamples"

    def limit(value: float, below: float, above: float) -> Estimate:
        ends = value - math.hypot(down, below), value + math.hypot(up, above)
        return Estimate(value, *ends, how, bias.note)

    return limit(middle - 1.96 * spread, more, less), limit(middle + 1.96 * spread, less, more)


def _reach(patients: int) -> float:
    """Standard errors of a resampled mean to each side that make its interval Student's."""
    return math.sqrt(patients / (patients - 1)) * _student(patients - 1)


def _student(freedom: int) -> float:
    from scipy.stats import t

    return float(t.ppf(0.975, max(freedom, 2)))


def wilson(successes: float, trials: float) -> tuple[float, float]:
    """Wilson's 95 % score interval of a proportion (Wilson 1927).

    Examples
    --------
    >>> low, high = wilson(8, 10)
    >>> round(low, 4), round(high, 4)
    (0.4902, 0.9433)
    """
    p, z2 = successes / trials, Z95**2
    centre = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z95 / (1 + z2 / trials) * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def proportion(success: ArrayLike, patient: ArrayLike, *, why: str = "") -> Estimate:
    """A proportion among cases, with Wilson's interval at the effective number of cases.

    Several cases of one patient count for less than as many patients: the number of cases is divided by
    the design effect of the cluster-robust variance (Rao & Scott 1992), and never exceeds the number of
    cases. Where all outcomes agree that variance says nothing and the number of patients is used.

    Parameters
    ----------
    success : array (n,) of bool
        Outcome of each case that counts.
    patient : array (n,)
        Patient of each case.
    why : str
        What to say where there is no case.

    Examples
    --------
    >>> print(proportion([True] * 8 + [False] * 2, np.arange(10)))
    0.800 (0.490–0.943)
    """
    hit = np.asarray(success, dtype=np.float64)
    n = len(hit)
    if n == 0:
        return Estimate(None, note=why or "there is no case to count")
    p = float(hit.mean())
    number = np.unique(np.asarray(patient), return_inverse=True)[1]
    clusters = int(number.max()) + 1
    if clusters == n:
        return Estimate(p, *wilson(p * n, n), method="Wilson")
    effective = float(clusters)
    if 0 < p < 1 and clusters > 1:
        residual = np.bincount(number, weights=hit - p)
        variance = clusters / (clusters - 1) * float(np.square(residual).sum()) / n**2
        effective = n if variance == 0 else min(float(n), p * (1 - p) / variance)
    method = f"Wilson at an effective sample size of {effective:.1f} for {n} cases of {clusters} patients"
    return Estimate(p, *wilson(p * effective, effective), method=method)


def boundary_auroc(value: float, positives: int, negatives: int) -> tuple[float, float]:
    """Newcombe's interval of an AUROC, which has a width even at 0 and 1 (Newcombe 2006, method 5).

    Parameters
    ----------
    value : float
        The AUROC.
    positives, negatives : int
        Number of independent units (patients) of each kind.

    Examples
    --------
    >>> low, high = boundary_auroc(1.0, 20, 20)
    >>> round(low, 3), high
    (0.899, 1.0)
    """
    n, m = positives, negatives
    half = (n + m) / 2 - 1

    def excess(theta: float) -> float:
        spread = 1 + half * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return (theta - value) ** 2 - Z95**2 * theta * (1 - theta) * spread / (m * n)

    def root(inside: float, outside: float) -> float:
        for _ in range(80):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if excess(middle) <= 0 else (inside, middle)
        return inside

    low = 0.0 if value <= 0 else root(value, 0.0)
    return low, (1.0 if value >= 1 else root(value, 1.0))


def delong(positive: ArrayLike, score: ArrayLike) -> Estimate:
    """AUROC with DeLong's interval, for one case a patient only; a cross-check of the bootstrap.

    DeLong, DeLong & Clarke-Pearson 1988, in the fast form by mid-ranks of Sun & Xu 2014.

    Examples
    --------
    >>> print(delong([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]))
    0.750 (0.057–1.000)
    """
    from scipy.stats import rankdata

    y, s = np.asarray(positive, dtype=bool), np.asarray(score, dtype=np.float64)
    m, n = int(y.sum()), int((~y).sum())
    if min(m, n) < 2:
        return Estimate(None, note="DeLong's variance needs two cases of each kind")
    ranks = rankdata(s)
    v10 = (ranks[y] - rankdata(s[y])) / n
    v01 = 1 - (ranks[~y] - rankdata(s[~y])) / m
    area = float(v10.mean())
    spread = Z95 * math.sqrt(float(v10.var(ddof=1)) / m + float(v01.var(ddof=1)) / n)
    return Estimate(area, max(0.0, area - spread), min(1.0, area + spread), "DeLong")


def with_note(estimate: Estimate, note: str) -> Estimate:
    """The same estimate with a further note."""
    return replace(estimate, note="; ".join(filter(None, [estimate.note, note])))


def plain(value: object) -> object:
    """Plain JSON types: floats with 10 significant digits, None for what is not finite."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.10g}") if math.isfinite(value) else None
    return value
