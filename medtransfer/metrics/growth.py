"""Growth of the AUROC with the number of training cases: an inverse power law and where it leads.

Through the means of several draws goes ``a - b n^-c`` (Figueroa et al. 2012, BMC Med Inform Decis Mak 12:8) by weighted
least squares; its band comes from resampling the patients that were scored together with the draws.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtransfer.metrics.intervals import Estimate

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

GAIN = 0.005  # a smaller gain by twice as many cases is called not worth it
EXPONENTS = np.linspace(0.2, 1.5, 66)
SCORED_ANEW = "patients scored drawn anew, percentile"
FITTED_ANEW = "patients scored and parts drawn anew, curve fitted to each, percentile"


@dataclass(frozen=True)
class Curve:
    """AUROCs of nested parts: what :func:`law` is fitted to.

    Parameters
    ----------
    cases : ndarray (sizes,) of int
        Training cases of each part, ascending; the last are all.
    value : ndarray (sizes, draws)
        AUROC (macro for several classes) on the cases scored, averaged over inner folds; nan where a part lacked
        a class.
    resampled : ndarray (resamples, sizes, draws)
        The same in resamples of the patients scored.
    held_out : str
        What was scored, in words.
    scored : int
        How many cases.
    """

    cases: Ints
    value: Floats
    resampled: Floats
    held_out: str
    scored: int


def mean_where_defined(parts: list[Any]) -> Any:
    """Mean over parts where it is defined, nan where none is."""
    stack = np.stack([np.asarray(p, dtype=np.float64) for p in parts])
    there = np.isfinite(stack).sum(axis=0)
    return np.where(there > 0, np.nansum(stack, axis=0) / np.maximum(there, 1), np.nan)


def law(cases: Ints | Floats, value: Floats, spread: Floats) -> Floats:
    """Weighted least squares of ``a - b n^-c`` with b at least 0 and a at most 1.

    Parameters
    ----------
    cases : ndarray (sizes,)
    value : ndarray (..., sizes)
        nan where there is none.
    spread : ndarray (sizes,)
        Standard error of each value; weights are its inverse square.

    Returns
    -------
    ndarray (..., 3)
        a, b, c. For each exponent of a grid a and b follow in closed form; the best exponent is taken.

    Examples
    --------
    >>> n = np.array([50, 100, 200, 400, 800])
    >>> law(n, 0.9 - 1.2 * n**-0.5, np.ones(5)).round(3).tolist()
    [0.9, 1.2, 0.5]
    """
    there = np.isfinite(value)
    y = np.where(there, value, 0.0)[..., None, :]
    w = np.where(there, 1 / np.square(spread), 0.0)[..., None, :]
    x = np.asarray(cases, dtype=np.float64)[None, :] ** -EXPONENTS[:, None]
    total = w.sum(axis=-1)
    with np.errstate(invalid="ignore"):  # nothing defined gives nan
        mean_x, mean_y = (w * x).sum(axis=-1) / total, (w * y).sum(axis=-1) / total
    across = (w * (x - mean_x[..., None]) ** 2).sum(axis=-1)
    slope = (w * (x - mean_x[..., None]) * (y - mean_y[..., None])).sum(axis=-1) / np.maximum(across, 1e-300)
    b = np.maximum(-slope, 0)
    a = mean_y + b * mean_x
    capped = a > 1  # then through 1, by the slope alone
    b = np.where(capped, (w * x * (1 - y)).sum(axis=-1) / np.maximum((w * x * x).sum(axis=-1), 1e-300), b)
    a = np.where(capped, 1.0, a)
    loss = (w * (y - a[..., None] + b[..., None] * x) ** 2).sum(axis=-1)
    best = np.argmin(loss, axis=-1)[..., None]
    chosen = [np.take_along_axis(v, best, axis=-1)[..., 0] for v in (a, b)]
    return np.stack([*chosen, EXPONENTS[best[..., 0]]], axis=-1)


def at(parameters: Floats, cases: float | Floats | Ints) -> Floats:
    """The law at so many cases, for parameters ``(..., 3)``."""
    a, b, c = np.moveaxis(parameters, -1, 0)
    return np.asarray(a - b * np.asarray(cases, dtype=np.float64) ** -c)


def enough_cases(parameters: Floats, gain: float = GAIN) -> float:
    """From how many cases on twice as many gain less.

    Examples
    --------
    >>> round(enough_cases(np.array([0.9, 1.2, 0.5])))  # 1.2 n^-0.5 (1 - 2^-0.5) = 0.005
    4941
    """
    _, b, c = (float(v) for v in parameters)
    return (b * (1 - 2**-c) / gain) ** (1 / c) if b > 0 else 1.0


def fits(curve: Curve, until: int, seed: int) -> tuple[Floats, Floats]:
    """Parameters (3,) of the law through the first sizes, and in resamples (resamples, 3)."""
    value, again = curve.value[:until], curve.resampled[:, :until]
    draws = value.shape[1]
    with warnings.catch_warnings():  # sizes at which nothing is defined count little, see below
        warnings.simplefilter("ignore", RuntimeWarning)
        noise = np.nanstd(np.nanmean(again, axis=2), axis=0) if len(again) else np.zeros(until)
        noise = np.sqrt(np.square(noise) + np.nanvar(value, axis=1) / draws)
    spread = np.maximum(np.where(np.isfinite(noise), noise, 1.0), 1e-3)
    picked = np.random.default_rng(seed).integers(0, draws, (len(again), 1, draws))
    drawn = np.take_along_axis(again, np.broadcast_to(picked, again.shape), axis=2)
    cases = curve.cases[:until]
    return law(cases, _row_mean(value), spread), law(cases, _row_mean(drawn), spread)


def _row_mean(value: Floats) -> Floats:
    return np.asarray(mean_where_defined(list(np.moveaxis(value, -1, 0))))


def _estimate(value: float, drawn: Floats, method: str) -> dict[str, Any]:
    good = drawn[np.isfinite(drawn)]
    low, high = (float(v) for v in np.quantile(good, [0.025, 0.975])) if len(good) else (None, None)
    return Estimate(value if math.isfinite(value) else None, low, high, method).to_json()


def summary(curve: Curve, *, seed: int = 0, measure: str = "auroc") -> dict[str, Any]:
    """What :func:`how_many` gives, from a curve."""
    cases, whole = curve.cases, int(curve.cases[-1])
    means, drawn = _row_mean(curve.value), _row_mean(curve.resampled)
    base: dict[str, Any] = {
        "measure": measure,
        "held_out": curve.held_out,
        "scored_cases": curve.scored,
        "sizes": [int(n) for n in cases],
        "points": [
            {"cases": int(n), "value": _estimate(float(means[i]), drawn[:, i], SCORED_ANEW), "draws": list(row)}
            for i, (n, row) in enumerate(zip(cases, curve.value.tolist(), strict=True))
        ],
    }
    usable = np.isfinite(means)
    if usable.sum() < 4:
        return base | {"note": "Too few cases of a class for a learning curve."}
    fitted, again = fits(curve, len(cases), seed)
    grid = np.unique(np.geomspace(cases[usable][0], 4 * whole, 40).round())
    ends = np.stack([np.quantile(at(again, n), [0.025, 0.975]) for n in grid], axis=1)
    gains = at(again, 2 * whole) - at(again, whole)
    gain = float(at(fitted, 2 * whole) - at(fitted, whole))
    needed = max(enough_cases(fitted), float(cases[usable][0]))  # below the smallest part nothing was seen
    found = base | {
        "fit": dict(zip("abc", map(float, fitted), strict=True)),
        "curve": {
            "cases": grid.tolist(),
            "value": at(fitted, grid).tolist(),
            "low": ends[0].tolist(),
            "high": ends[1].tolist(),
        },
        "predicted": {
            "cases": 2 * whole,
            "value": _estimate(float(at(fitted, 2 * whole)), at(again, 2 * whole), FITTED_ANEW),
            "gain": _estimate(gain, gains, FITTED_ANEW),
        },
        "enough": {"cases": math.ceil(needed) if needed <= 10 * whole else None, "gain": GAIN},
        "check": _check(curve, seed),
    }
    return found | {"note": _note(found, whole)}


def _check(curve: Curve, seed: int) -> dict[str, Any] | None:
    """All cases predicted from parts of at most half of them, beside what was found."""
    whole = int(curve.cases[-1])
    half = int(np.searchsorted(curve.cases, whole / 2, side="right"))
    means = _row_mean(curve.value)
    if np.isfinite(means[:half]).sum() < 3 or not math.isfinite(means[-1]):
        return None
    fitted, again = fits(curve, half, seed)
    predicted = float(at(fitted, whole))
    return {
        "from_cases": int(curve.cases[half - 1]),
        "predicted": _estimate(predicted, at(again, whole), FITTED_ANEW),
        "observed": float(means[-1]),
        "error": predicted - float(means[-1]),
    }


def _note(found: dict[str, Any], whole: int) -> str:
    last, needed = found["points"][-1]["value"]["value"], found["enough"]["cases"]
    gain = found["predicted"]["gain"]
    said = f"With {whole} training cases the AUROC on {found['held_out']} is {last:.3f}; twice as many would be "
    said += f"expected to add {gain['value']:.3f} ({gain['low']:.3f} to {gain['high']:.3f})."
    if needed is None:
        said += f" The curve still rises beyond {10 * whole} cases."
    elif needed <= whole:
        said += f" From about {needed} cases on twice as many add less than {GAIN}: more of the same add little."
    else:
        said += f" Only from about {needed} cases on would twice as many add less than {GAIN}."
    if found["check"] is not None:
        check = found["check"]
        said += (
            f" Checked: from {check['from_cases']} cases the curve predicts {check['predicted']['value']:.3f} for all."
        )
    return f"{said} This is of the network before fine-tuning with a logistic regression, and of cases like these."
