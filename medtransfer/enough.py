"""How many cases would be enough: a learning curve on parts of the training cases, and where it leads.

The network stays as it was before fine-tuning; a logistic regression learns from nested, patient-grouped parts of
the training cases and is scored on cases that it never saw: the validation part where it is large enough, else
inner folds of the training cases. Test cases are not looked at. Through the means goes an inverse power law,
AUROC = a - b n^-c (Figueroa et al. 2012), by weighted least squares; its band comes from resampling the patients that
are scored together with the draws of the parts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medtransfer.features import numbered
from medtransfer.metrics.classification import auroc
from medtransfer.metrics.intervals import ClusterBootstrap, plain
from medtransfer.probes import start_features

if TYPE_CHECKING:
    from medtransfer.run import Run

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

STRENGTHS = tuple(float(10.0**e) for e in (-4, -3, -2, -1))  # inverse penalties
GAIN = 0.005  # a smaller gain by twice as many cases is called not worth it
SMALLEST = 12  # cases in the smallest part
EXPONENTS = np.linspace(0.2, 1.5, 66)
SCORED = 25  # validation patients of each class from which on validation scores the curve
INNER = 4
COMPONENTS = 256


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


def how_many(run: Run, *, sizes: int = 6, draws: int = 5, bootstrap: int = 500, seed: int = 0) -> dict[str, Any]:
    """The learning curve of a run with its extrapolation, as plain JSON types.

    Parameters
    ----------
    run : Run
        Its first fold is looked at.
    sizes : int
        Sizes of parts, in equal steps of the logarithm up to all training cases.
    draws : int
        How often the nested parts are drawn.
    bootstrap, seed : int
        Resamples behind the bands (at most 500), and the seed of these and of the draws.

    Returns
    -------
    dict
        ``points`` (cases, value, low, high, draws), ``sizes``, ``fit`` (a, b, c), ``band`` (cases, value, low, high),
        ``twice`` (value and gain at twice the cases), ``enough`` (cases from which doubling gains less than 0.005, or
        None where the curve does not tell), ``check`` (all cases predicted from at most half of them, beside what was
        found), ``held_out``, ``text``.
    """
    curve = learning_curve(run, sizes=sizes, draws=draws, bootstrap=min(bootstrap, 500), seed=seed)
    return plain(summary(curve, seed=seed))  # type: ignore[return-value]


def learning_curve(run: Run, *, sizes: int = 6, draws: int = 5, bootstrap: int = 500, seed: int = 0) -> Curve:
    """AUROCs of logistic regressions on nested parts of a run's training cases."""
    cohort, fold = run.cohort, run.split.folds[0]
    features = start_features(run)
    train = np.array([i for i in fold.train if cohort.labels[i] >= 0], dtype=np.int64)
    val = np.array([i for i in fold.val if cohort.labels[i] >= 0], dtype=np.int64)
    enough = len(val) and min(
        len(set(cohort.patients[val][cohort.labels[val] == k].tolist())) for k in range(len(cohort.classes))
    )
    if enough >= SCORED:
        parts, held_out = [(train, val)], f"the {len(val)} validation cases"
    else:
        parts = _inner(train, cohort.labels, cohort.patients, seed)
        held_out = f"{len(parts)} inner folds of the {len(train)} training cases"
    return curve_of(
        features, cohort.labels, cohort.patients, parts,
        classes=len(cohort.classes), sizes=sizes, draws=draws, bootstrap=bootstrap, seed=seed, held_out=held_out,
    )  # fmt: skip


def _inner(train: Ints, labels: Ints, patients: NDArray[np.str_], seed: int) -> list[tuple[Ints, Ints]]:
    from sklearn.model_selection import StratifiedGroupKFold

    folds = StratifiedGroupKFold(INNER, shuffle=True, random_state=seed)
    found = folds.split(train[:, None], labels[train], numbered(patients[train]))
    return [(train[fit], train[rest]) for fit, rest in found]


def curve_of(
    features: NDArray[np.floating[Any]],
    labels: Ints,
    patients: NDArray[np.str_],
    parts: list[tuple[Ints, Ints]],
    *,
    classes: int,
    sizes: int = 6,
    draws: int = 5,
    bootstrap: int = 500,
    seed: int = 0,
    held_out: str = "held-out cases",
) -> Curve:
    """As :func:`learning_curve`, from features ``[cases, width]`` and pairs of cases to learn from and to score."""
    whole = min(len(train) for train, _ in parts)
    smallest = min(max(SMALLEST, 4 * classes, whole // 2 ** (sizes - 1)), whole)
    counts = np.unique(np.geomspace(smallest, whole, sizes).round().astype(np.int64))
    columns = [1] if classes == 2 else list(range(classes))
    values = np.full((len(parts), len(counts), draws), np.nan)
    again = np.full((len(parts), bootstrap, len(counts), draws), np.nan)
    for p, (train, scored) in enumerate(parts):
        resamples = ClusterBootstrap.draw(patients[scored], resamples=bootstrap, seed=seed)
        weight = np.take(resamples.counts, resamples.patient, axis=1).astype(np.float64)
        for d in range(draws):
            order = _order(train, labels, patients, np.random.default_rng([seed, p, d]))
            for s, count in enumerate(counts):
                if s == len(counts) - 1 and d:  # all cases are the same cases in every draw
                    values[p, s, d], again[p, :, s, d] = values[p, s, 0], again[p, :, s, 0]
                    continue
                chosen = np.sort(order[:count]) if s < len(counts) - 1 else train
                if min(len(set(patients[chosen][labels[chosen] == k].tolist())) for k in range(classes)) < 2:
                    continue
                chance = chances(
                    features[chosen], labels[chosen], patients[chosen], features[scored], classes, seed=seed
                )
                areas = [(labels[scored] == k, chance[:, k]) for k in columns]
                values[p, s, d] = _mean([float(auroc(y, x)) for y, x in areas])
                again[p, :, s, d] = _mean([auroc(y, x, weight) for y, x in areas])
    with np.errstate(invalid="ignore"):
        value, resampled = _mean(list(values)), _mean(list(again))
    return Curve(counts, value, resampled, held_out, len({int(i) for _, scored in parts for i in scored}))


def chances(
    learned: NDArray[np.floating[Any]],
    labels: Ints,
    patients: NDArray[np.str_],
    scored: NDArray[np.floating[Any]],
    classes: int,
    *,
    seed: int = 0,
) -> Floats:
    """Probabilities ``[scored, classes]`` of an L2 logistic regression, the penalty chosen over two inner folds.

    As :func:`medtransfer.features.fit_logistic` on standardised features, but quicker: on as many principal
    components as there are cases, which gives the same model, and on 256 at most.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold

    x = learned.astype(np.float64)
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    deviation[deviation < 1e-6 * max(1e-12, float(deviation.max(initial=0)))] = np.inf
    x, rest = (x - mean) / deviation, (scored.astype(np.float64) - mean) / deviation
    if x.shape[1] > min(len(x), COMPONENTS):
        wide = x.shape[1] > len(x)
        values, vectors = np.linalg.eigh(x @ x.T if wide else x.T @ x)
        vectors = vectors[:, ::-1][:, :COMPONENTS][:, values[::-1][:COMPONENTS] > 1e-9 * values[-1]]
        axes = x.T @ vectors if wide else vectors
        axes /= np.linalg.norm(axes, axis=0)
        x, rest = x @ axes, rest @ axes

    def learn(rows: Ints, onto: Floats, strengths: tuple[float, ...]) -> list[Floats]:
        model = LogisticRegression(warm_start=True, max_iter=200, tol=1e-3)
        found = []
        for strength in strengths:
            model.set_params(C=strength).fit(x[rows], labels[rows])
            said = np.full((len(onto), classes), 1e-12)
            said[:, model.classes_] = model.predict_proba(onto)
            found.append(said)
        return found

    loss = np.zeros(len(STRENGTHS))
    for fit, held in StratifiedGroupKFold(2, shuffle=True, random_state=seed).split(x, labels, numbered(patients)):
        if len(np.unique(labels[fit])) == classes:
            said = learn(fit, x[held], STRENGTHS)
            loss += [-np.log(np.clip(p[np.arange(len(held)), labels[held]], 1e-12, 1)).sum() for p in said]
    return learn(np.arange(len(x)), rest, STRENGTHS[: int(np.argmin(loss)) + 1])[-1]


def _mean(parts: list[Any]) -> Any:
    """Mean over parts where it is defined, nan where none is."""
    stack = np.stack([np.asarray(p, dtype=np.float64) for p in parts])
    there = np.isfinite(stack).sum(axis=0)
    return np.where(there > 0, np.nansum(stack, axis=0) / np.maximum(there, 1), np.nan)


def _order(train: Ints, labels: Ints, patients: NDArray[np.str_], rng: np.random.Generator) -> Ints:
    """Training cases in an order whose every beginning has whole patients (but the last) and all classes in proportion.

    Patients of each class are shuffled and then merged by how far through their class they stand.
    """
    number = numbered(patients[train])
    first = np.unique(number, return_index=True)[1]
    kind = labels[train][first]
    place = np.empty(len(first))
    for k in np.unique(kind):
        members = np.flatnonzero(kind == k)
        place[members] = (rng.permutation(len(members)) + rng.uniform()) / len(members)
    return np.asarray(train[np.argsort(place[number], kind="stable")])


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


def _fits(curve: Curve, until: int, seed: int) -> tuple[Floats, Floats]:
    """Parameters (3,) of the law through the first sizes, and in resamples (resamples, 3)."""
    value, again = curve.value[:until], curve.resampled[:, :until]
    draws = value.shape[1]
    noise = np.nanstd(np.nanmean(again, axis=2), axis=0) if len(again) else np.zeros(until)
    noise = np.sqrt(np.square(noise) + np.nanvar(value, axis=1) / draws)
    spread = np.maximum(np.where(np.isfinite(noise), noise, 1.0), 1e-3)
    picked = np.random.default_rng(seed).integers(0, draws, (len(again), 1, draws))
    drawn = np.take_along_axis(again, np.broadcast_to(picked, again.shape), axis=2)
    cases = curve.cases[:until]
    return law(cases, _row_mean(value), spread), law(cases, _row_mean(drawn), spread)


def _row_mean(value: Floats) -> Floats:
    return np.asarray(_mean(list(np.moveaxis(value, -1, 0))))


def _ends(values: Floats) -> dict[str, float]:
    good = values[np.isfinite(values)]
    return {"low": float(np.quantile(good, 0.025)), "high": float(np.quantile(good, 0.975))} if len(good) else {}


def summary(curve: Curve, *, seed: int = 0) -> dict[str, Any]:
    """What :func:`how_many` gives, from a curve."""
    cases, whole = curve.cases, int(curve.cases[-1])
    means, drawn = _row_mean(curve.value), _row_mean(curve.resampled)
    base: dict[str, Any] = {
        "metric": "AUROC",
        "held_out": curve.held_out,
        "scored_cases": curve.scored,
        "sizes": [int(n) for n in cases],
        "points": [
            {"cases": int(n), "value": float(means[i]), "draws": curve.value[i].tolist(), **_ends(drawn[:, i])}
            for i, n in enumerate(cases)
        ],
    }
    usable = np.isfinite(means)
    if usable.sum() < 4:
        return base | {"text": "Too few cases of a class for a learning curve."}
    fitted, again = _fits(curve, len(cases), seed)
    grid = np.unique(np.geomspace(cases[usable][0], 4 * whole, 40).round())
    band = {"cases": grid.tolist(), "value": at(fitted, grid).tolist()}
    ends = [_ends(at(again, n)) for n in grid]
    band |= {end: [e.get(end, math.nan) for e in ends] for end in ("low", "high")}
    twice = {"cases": 2 * whole, "value": float(at(fitted, 2 * whole)), **_ends(at(again, 2 * whole))}
    gains = at(again, 2 * whole) - at(again, whole)
    gain = {"value": float(at(fitted, 2 * whole) - at(fitted, whole)), **_ends(gains)}
    needed = enough_cases(fitted)
    found = base | {
        "fit": dict(zip("abc", map(float, fitted), strict=True)),
        "band": band,
        "twice": twice | {"gain": gain},
        "enough": {"cases": max(1, math.ceil(needed)) if needed <= 10 * whole else None, "gain": GAIN},
        "check": _check(curve, seed),
    }
    return found | {"text": _text(found, whole)}


def _check(curve: Curve, seed: int) -> dict[str, Any] | None:
    """All cases predicted from parts of at most half of them, beside what was found."""
    half = int(np.searchsorted(curve.cases, curve.cases[-1] / 2, side="right"))
    means = _row_mean(curve.value)
    if np.isfinite(means[:half]).sum() < 3 or not math.isfinite(means[-1]):
        return None
    fitted, again = _fits(curve, half, seed)
    predicted = float(at(fitted, float(curve.cases[-1])))
    return {
        "from_cases": int(curve.cases[half - 1]),
        "predicted": predicted,
        **_ends(at(again, float(curve.cases[-1]))),
        "observed": float(means[-1]),
        "error": predicted - float(means[-1]),
    }


def _text(found: dict[str, Any], whole: int) -> str:
    last, twice, needed = found["points"][-1]["value"], found["twice"], found["enough"]["cases"]
    gain = twice["gain"]
    said = f"With {whole} training cases the AUROC on {found['held_out']} is {last:.3f}"
    if "low" in gain:
        said += (
            f"; twice as many would be expected to add {gain['value']:.3f} ({gain['low']:.3f} to {gain['high']:.3f})"
        )
    if needed is None:
        said += f". The curve still rises beyond {10 * whole} cases."
    elif needed <= whole:
        said += f". From about {needed} cases on twice as many add less than {GAIN}: more of the same add little."
    else:
        said += f". Only from about {needed} cases on would twice as many add less than {GAIN}."
    check = found["check"]
    if check is not None:
        said += f" Checked: from {check['from_cases']} cases the curve predicts {check['predicted']:.3f} for all."
    return f"{said} This is of the network before fine-tuning with a logistic regression, and of cases like these."
