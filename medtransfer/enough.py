"""How many cases would be enough: a learning curve on parts of the training cases, and where it leads.

The network stays as it was before fine-tuning; a logistic regression learns from nested, patient-grouped parts of
the training cases and is scored on cases that it never saw: the validation part where it is large enough, else
inner folds of the training cases. Test cases are not looked at. :mod:`medtransfer.metrics.growth` draws the curve.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medtransfer.features import numbered
from medtransfer.metrics.classification import auroc
from medtransfer.metrics.growth import Curve, mean_where_defined, summary
from medtransfer.metrics.intervals import ClusterBootstrap, plain
from medtransfer.probes import start_features

if TYPE_CHECKING:
    from medtransfer.run import Run

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

STRENGTHS = tuple(float(10.0**e) for e in (-4, -3, -2, -1))  # inverse penalties
SMALLEST = 12  # cases in the smallest part
SCORED = 25  # validation patients of each class from which on validation scores the curve
INNER = 4
COMPONENTS = 256


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
        ``measure``; ``points`` (cases, value, draws); ``sizes``; ``fit`` (a, b, c); ``curve`` (cases, value, low,
        high); ``predicted`` (value and gain at twice the cases); ``enough`` (cases from which doubling gains less
        than 0.005, None beyond ten times as many as there are); ``check`` (all cases predicted from at most half of
        them, beside what was found); ``held_out``; ``note``, all of it in words. Values are estimates as JSON.
    """
    curve = learning_curve(run, sizes=sizes, draws=draws, bootstrap=min(bootstrap, 500), seed=seed)
    measure = "auroc" if len(run.cohort.classes) == 2 else "macro_auroc"
    return plain(summary(curve, seed=seed, measure=measure))  # type: ignore[return-value]


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
                values[p, s, d] = mean_where_defined([float(auroc(y, x)) for y, x in areas])
                again[p, :, s, d] = mean_where_defined([auroc(y, x, weight) for y, x in areas])
    with np.errstate(invalid="ignore"):
        value, resampled = mean_where_defined(list(values)), mean_where_defined(list(again))
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
    """Probabilities ``[scored, classes]`` of an L2 logistic regression, the penalty chosen over three inner folds.

    As :func:`medtransfer.features.fit_logistic` on standardised features, but quicker: on as many principal
    components as there are cases, which gives the same model, and on 256 at most.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold

    whole = learned.astype(np.float64)

    def learn(rows: Ints, onto: NDArray[np.floating[Any]], strengths: tuple[float, ...]) -> list[Floats]:
        x, rest = _components(whole[rows], onto.astype(np.float64))
        model = LogisticRegression(warm_start=True, max_iter=500, tol=1e-4)
        found = []
        for strength in strengths:
            model.set_params(C=strength).fit(x, labels[rows])
            said = np.full((len(onto), classes), 1e-12)
            said[:, model.classes_] = model.predict_proba(rest)
            found.append(said)
        return found

    fewest = min(len(set(patients[labels == k].tolist())) for k in range(classes))
    folds = StratifiedGroupKFold(max(2, min(3, fewest)), shuffle=True, random_state=seed)
    loss = np.zeros(len(STRENGTHS))
    for fit, held in folds.split(whole, labels, numbered(patients)):
        if len(np.unique(labels[fit])) == classes:
            said = learn(fit, whole[held], STRENGTHS)
            loss += [-np.log(np.clip(p[np.arange(len(held)), labels[held]], 1e-12, 1)).sum() for p in said]
    return learn(np.arange(len(whole)), scored, STRENGTHS[: int(np.argmin(loss)) + 1])[-1]


def _components(x: Floats, rest: Floats) -> tuple[Floats, Floats]:
    """Both standardised by the first and turned onto its principal components."""
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    deviation[deviation < 1e-6 * max(1e-12, float(deviation.max(initial=0)))] = np.inf
    x, rest = (x - mean) / deviation, (rest - mean) / deviation
    if x.shape[1] <= min(len(x), COMPONENTS):
        return x, rest
    wide = x.shape[1] > len(x)
    values, vectors = np.linalg.eigh(x @ x.T if wide else x.T @ x)
    vectors = vectors[:, ::-1][:, :COMPONENTS][:, values[::-1][:COMPONENTS] > 1e-9 * values[-1]]
    axes = x.T @ vectors if wide else vectors
    axes = axes / np.linalg.norm(axes, axis=0)
    return x @ axes, rest @ axes


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
