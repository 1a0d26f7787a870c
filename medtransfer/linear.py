"""Regularised linear models on frozen features for every task; their strength is chosen by patient-grouped folds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from medtransfer.features import STRENGTHS, fit_logistic, numbered
from medtransfer.features import _path as logistic_path
from medtransfer.predictions import Task

Floats = NDArray[np.float64]
References = NDArray[np.int64] | NDArray[np.float64]
Path = Callable[[Floats, NDArray[np.float64], Sequence[float]], list[tuple[Floats, Floats]]]

_FREE = 30.0  # columns this large carry thresholds that the penalty hardly touches


@dataclass(frozen=True)
class Linear:
    """A linear model on raw features: logits, or values of a regression, are ``features @ weight.T + bias``.

    Parameters
    ----------
    task : {'classification', 'multilabel', 'ordinal', 'regression'}
    weight, bias : ndarray (outputs, width), (outputs,)
        The features' standardisation is folded in. An ordinal task has one output a class but the last, whose
        weights are equal.
    strength : tuple of float
        The chosen inverse penalty; of each label or target.
    held_out : ndarray (n, classes)
        Probabilities, or values, of the training cases, each by a model that did not see its patient.
    """

    task: Task
    weight: Floats
    bias: Floats
    strength: tuple[float, ...]
    held_out: Floats = field(repr=False)

    def says(self, features: NDArray[np.floating]) -> Floats:
        """Probabilities, or values of a regression, ``[n, classes]``."""
        return meaning(self.task, features.astype(np.float64) @ self.weight.T + self.bias)


def meaning(task: Task, logits: Floats) -> Floats:
    """Probabilities, or values, of logits.

    Examples
    --------
    >>> meaning("multilabel", np.zeros((1, 2))).tolist()
    [[0.5, 0.5]]
    """
    import torch

    from medtransfer.heads import task_probabilities

    found: Floats = task_probabilities(task)(torch.from_numpy(np.ascontiguousarray(logits))).numpy()
    return found


def fit_linear(
    features: NDArray[np.floating],
    references: References,
    patients: NDArray[np.str_],
    classes: int,
    *,
    task: Task = "classification",
    varied: NDArray[np.floating] | None = None,
    balanced: bool = False,
    seed: int = 0,
    inner: int = 5,
    strengths: Sequence[float] = STRENGTHS,
) -> Linear:
    """Logistic regression for classes and for each label, ordered logistic regression, or ridge regression.

    Parameters
    ----------
    features : ndarray (n, width)
    references : ndarray (n,) of int, or (n, classes) of float
        As in :class:`medtransfer.predictions.Predictions`; what is NaN is not learned from.
    patients : ndarray (n,) of str
        Who each case is of; a patient stays in one inner fold.
    classes : int
    task : str
        ``ordinal`` learns being above each class but the last with common weights and a threshold each (the
        reduction of Li & Lin 2006; thresholds come out in order), ``regression`` each target by ridge.
    varied : ndarray (views, n, width) or None
        Features of augmented views of the same cases; they are learned from, and never held out.
    balanced : bool
        Weigh classes, or yes and no of each label, inversely to their frequency.
    inner : int
        Inner folds; fewer where a class has fewer patients.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(60, 2))
    >>> found = fit_linear(x, x[:, :1] * 3 + 5, np.arange(60).astype(str), 1, task="regression")
    >>> found.weight.round(1).tolist(), found.bias.round(1).tolist()
    ([[3.0, 0.0]], [5.0])
    """
    if task == "classification":
        logistic = fit_logistic(
            features, references.astype(np.int64), patients, classes, varied=varied, balanced=balanced, seed=seed,
            inner=inner, strengths=strengths,
        )  # fmt: skip
        return Linear(task, logistic.weight, logistic.bias, (logistic.strength,), logistic.held_out)
    views = [features.astype(np.float64), *([] if varied is None else varied.astype(np.float64))]
    columns: list[Floats] = [references.astype(np.float64)] if task == "ordinal" else list(references.T.astype(float))
    paths: dict[Task, Path] = {"multilabel": _yes_or_no(balanced), "ordinal": _ordered(classes), "regression": _ridge}
    parts = [_chosen(views, y, patients, paths[task], task, seed, inner, strengths) for y in columns]
    weight = np.concatenate([p[0] for p in parts])
    bias = np.concatenate([p[1] for p in parts])
    held_out = meaning(task, np.concatenate([p[3] for p in parts], axis=1))
    return Linear(task, weight, bias, tuple(p[2] for p in parts), held_out)


def _chosen(
    views: list[Floats], y: Floats, patients: NDArray[np.str_], path: Path, task: Task, seed: int, inner: int,
    strengths: Sequence[float],
) -> tuple[Floats, Floats, float, Floats]:  # fmt: skip
    """Weight, bias, strength and held-out logits of one problem."""
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    from medtransfer.losses import criterion

    known, groups = np.flatnonzero(~np.isnan(y)), numbered(patients)
    kinds = np.zeros(len(y)) if task == "regression" else np.nan_to_num(y)
    fewest = min(len(set(groups[kinds == k])) for k in set(kinds[known]))
    count = max(2, min(inner, fewest))
    splitter = (GroupKFold if task == "regression" else StratifiedGroupKFold)(count, shuffle=True, random_state=seed)

    def learned(part: NDArray[np.int64], strengths: Sequence[float]) -> list[tuple[Floats, Floats]]:
        part = np.intersect1d(part, known)
        scale = [s / len(views) for s in strengths]  # views make no more of the evidence
        return path(np.concatenate([v[part] for v in views]), np.tile(y[part], len(views)), scale)

    raw, held_out = views[0], None
    for fit, rest in splitter.split(raw, kinds, groups):
        for i, (weight, bias) in enumerate(learned(fit, strengths)):
            if held_out is None:
                held_out = np.zeros((len(strengths), len(y), len(bias)))
            held_out[i, rest] = raw[rest] @ weight.T + bias
    assert held_out is not None
    told = y[known].astype(np.int64) if task == "ordinal" else y[known][:, None]
    best = int(np.argmin([criterion(task, told, meaning(task, logits[known])) for logits in held_out]))
    weight, bias = learned(np.arange(len(y)), strengths[: best + 1])[-1]
    return weight, bias, float(strengths[best]), held_out[best]


def _yes_or_no(balanced: bool) -> Path:
    def path(x: Floats, y: Floats, strengths: Sequence[float]) -> list[tuple[Floats, Floats]]:
        if len(set(y)) < 2:  # a part in which no case, or every case, has the label
            share = np.clip(y.mean(), 1e-3, 1 - 1e-3)
            return [(np.zeros((1, x.shape[1])), np.log(share / (1 - share)).reshape(1))] * len(strengths)
        found = logistic_path(x, y.astype(np.int64), 2, balanced, strengths)
        return [(w[1:] - w[:1], b[1:] - b[:1]) for w, b in found]

    return path


def _ordered(classes: int) -> Path:
    def path(x: Floats, y: Floats, strengths: Sequence[float]) -> list[tuple[Floats, Floats]]:
        from sklearn.linear_model import LogisticRegression

        scaled, mean, deviation = _standardised(x)
        edges = classes - 1
        rows = np.concatenate([np.column_stack([scaled, np.tile(row, (len(x), 1))]) for row in _FREE * np.eye(edges)])
        above = np.concatenate([y > k for k in range(edges)])
        model = LogisticRegression(max_iter=2000, tol=1e-6, warm_start=True, fit_intercept=False)
        found = []
        for strength in strengths:
            model.set_params(C=strength / edges).fit(rows, above)
            score = model.coef_[:, : x.shape[1]] / deviation
            bias = _FREE * model.coef_[0, x.shape[1] :] - float((score @ mean)[0])
            found.append((np.repeat(score, edges, axis=0), np.minimum.accumulate(bias)))
        return found

    return path


def _ridge(x: Floats, y: Floats, strengths: Sequence[float]) -> list[tuple[Floats, Floats]]:
    from sklearn.linear_model import Ridge

    scaled, mean, deviation = _standardised(x)
    found = []
    for strength in strengths:
        model = Ridge(alpha=1 / strength).fit(scaled, y)
        weight = model.coef_[None] / deviation
        found.append((weight, np.array([model.intercept_ - float((weight @ mean)[0])])))
    return found


def _standardised(x: Floats) -> tuple[Floats, Floats, Floats]:
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    deviation[deviation < 1e-6 * max(1e-12, float(deviation.max(initial=0)))] = np.inf  # constant features say nothing
    return (x - mean) / deviation, mean, deviation
