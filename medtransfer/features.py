"""Frozen features: what a network that does not learn says about each case is computed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medtransfer.dataset import Prepared

if TYPE_CHECKING:
    import torch

    from medtransfer.model import Model

Floats = NDArray[np.float64]

STRENGTHS = tuple(float(10.0**e) for e in np.arange(-5, 1.01, 0.5))


def frozen_features(
    model: Model,
    prepared: Prepared,
    indices: Sequence[int],
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 32,
    progress: bool = True,
) -> NDArray[np.float32]:
    """Pooled features ``[n, width]`` of these cases, each seen once and unvaried.

    On the CPU the backbone runs in its fast form where that gives the same (:mod:`medtransfer.fastform`).
    """
    import torch
    from tqdm import tqdm

    from medtransfer.capacity import at_once
    from medtransfer.fastform import features_of

    prepared.load(indices)
    model = model.to(device).eval()
    indices = list(indices)
    batch_size = at_once(model, prepared.one(indices[0]).shape, device, most=batch_size)
    parts: list[NDArray[np.float32]] = []
    compute: Callable[[torch.Tensor], torch.Tensor] = model.features
    bar = tqdm(total=len(indices), desc="features", unit="case", disable=None if progress else True)
    with torch.inference_mode(), bar:
        for start in range(0, len(indices), batch_size):
            batch = prepared.batch(indices[start : start + batch_size]).to(device)
            if start == 0:
                compute = features_of(model, batch)
            if batch.ndim == 4:
                batch = batch.contiguous(memory_format=torch.channels_last)
            parts.append(compute(batch).float().cpu().numpy())
            bar.update(len(batch))
    return np.concatenate(parts)


@dataclass(frozen=True)
class Logistic:
    """An L2 logistic regression on raw features: logits are ``features @ weight.T + bias``.

    Parameters
    ----------
    weight, bias : ndarray (classes, width), (classes,)
        The features' standardisation is folded in.
    strength : float
        The chosen inverse penalty C.
    held_out : ndarray (n, classes)
        Probabilities of the training cases, each by a model that did not see its patient.
    """

    weight: Floats
    bias: Floats
    strength: float
    held_out: Floats

    def probability(self, features: NDArray[np.floating]) -> Floats:
        """Probabilities ``[n, classes]``."""
        return softmax(features.astype(np.float64) @ self.weight.T + self.bias)


def numbered(names: Sequence[str] | NDArray[np.str_]) -> NDArray[np.int64]:
    """Numbers for names by first appearance: pseudonyms, which differ from user to user, must not order anything.

    Examples
    --------
    >>> numbered(["z", "a", "z"]).tolist()
    [0, 1, 0]
    """
    seen: dict[str, int] = {}
    return np.array([seen.setdefault(str(name), len(seen)) for name in names], dtype=np.int64)


def softmax(logits: Floats) -> Floats:
    """Probabilities of logits, rows sum to one."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]


def fit_logistic(
    features: NDArray[np.floating],
    labels: NDArray[np.int64],
    patients: NDArray[np.str_],
    classes: int,
    *,
    varied: NDArray[np.floating] | None = None,
    balanced: bool = False,
    seed: int = 0,
    inner: int = 5,
    strengths: Sequence[float] = STRENGTHS,
) -> Logistic:
    """L2 logistic regression whose strength has the best log loss over patient-grouped inner folds.

    Parameters
    ----------
    features : ndarray (n, width)
    labels : ndarray (n,) of int
    patients : ndarray (n,) of str
        Who each case is of; a patient stays in one inner fold.
    varied : ndarray (views, n, width) or None
        Features of augmented views of the same cases; they are learned from, and never held out.
    balanced : bool
        Weigh classes inversely to their frequency.
    inner : int
        Inner folds; fewer where a class has fewer patients.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    raw: Floats = features.astype(np.float64)
    fewest = min(len(set(patients[labels == c])) for c in range(classes))
    folds = StratifiedGroupKFold(max(2, min(inner, fewest)), shuffle=True, random_state=seed)
    held_out = np.zeros((len(strengths), len(labels), classes))
    views = [raw, *([] if varied is None else varied.astype(np.float64))]

    def learned(part: NDArray[np.int64], strengths: Sequence[float]) -> list[tuple[Floats, Floats]]:
        rows = np.concatenate([view[part] for view in views])
        scale = tuple(s / len(views) for s in strengths)  # views make no more of the evidence
        return _path(rows, np.tile(labels[part], len(views)), classes, balanced, scale)

    for fit, rest in folds.split(raw, labels, numbered(patients)):
        for i, (weight, bias) in enumerate(learned(fit, strengths)):
            held_out[i, rest] = softmax(raw[rest] @ weight.T + bias)
    chosen = np.take_along_axis(held_out, labels[None, :, None], axis=2)[..., 0]
    losses = -np.log(np.clip(chosen, 1e-12, None)).mean(axis=1)
    best = int(np.argmin(losses))
    weight, bias = learned(np.arange(len(labels)), strengths[: best + 1])[-1]
    return Logistic(weight, bias, float(strengths[best]), held_out[best])


def _path(
    features: Floats, labels: NDArray[np.int64], classes: int, balanced: bool, strengths: Sequence[float]
) -> list[tuple[Floats, Floats]]:
    """Weights and biases on raw features for growing strengths, each started from the one before."""
    from sklearn.linear_model import LogisticRegression

    mean, deviation = features.mean(axis=0), features.std(axis=0)
    deviation[deviation < 1e-6 * max(1e-12, float(deviation.max(initial=0)))] = np.inf  # constant features say nothing
    scaled = (features - mean) / deviation
    model = LogisticRegression(max_iter=1000, tol=1e-5, warm_start=True, class_weight="balanced" if balanced else None)
    found = []
    for strength in strengths:
        model.set_params(C=strength)
        model.fit(scaled, labels)
        weight = np.zeros((classes, features.shape[1]))
        bias = np.zeros(classes)
        if len(model.classes_) == 2:
            for sign, c in zip((-0.5, 0.5), model.classes_, strict=True):
                weight[c], bias[c] = sign * model.coef_[0], sign * model.intercept_[0]
        else:
            weight[model.classes_], bias[model.classes_] = model.coef_, model.intercept_
        absent = np.setdiff1d(np.arange(classes), model.classes_)
        bias[absent] = -30.0  # a class that no training case has
        found.append((weight / deviation, bias - (weight / deviation) @ mean))
    return found
