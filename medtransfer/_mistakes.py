"""The cases on which a model was surely wrong."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medtransfer.predictions import Predictions


@dataclass(frozen=True)
class Mistake:
    """A case on which the model was surely wrong."""

    case: str
    patient: str
    fold: int
    reference: str
    called: str
    probability: float


def mistakes(p: Predictions, called: NDArray[np.int64] | None, n: int) -> list[Mistake]:
    """The n surest errors of each called class or label, or the n largest errors of each target.

    Parameters
    ----------
    p : Predictions
    called : ndarray (n,) or (n, labels) of int, or None
        None for a regression; there the error stands in place of a probability.
    """
    if called is None:
        return [m for k in range(len(p.classes)) for m in _farthest(p, k, n)]
    if called.ndim == 2:
        return [m for k, name in enumerate(p.classes) for m in _surest(p.label(name), called[:, k], n)]
    return _surest(p, called, n)


def _surest(p: Predictions, called: NDArray[np.int64], n: int) -> list[Mistake]:
    """Those farthest beyond the threshold first."""
    sure = p.probability[np.arange(len(p)), called]
    found: list[Mistake] = []
    for k in reversed(range(len(p.classes))):
        wrong = np.flatnonzero((called == k) & (p.reference != k) & (p.reference >= 0))
        for i in wrong[np.argsort(-sure[wrong], kind="stable")][:n]:
            shown = p.probability[i, 1] if len(p.classes) == 2 else sure[i]
            names = (p.classes[int(p.reference[i])], p.classes[k])
            found.append(Mistake(str(p.case[i]), str(p.patient[i]), int(p.fold[i]), *names, float(shown)))
    return found


def _farthest(p: Predictions, k: int, n: int) -> list[Mistake]:
    error = p.probability[:, k] - p.reference[:, k]
    order = np.argsort(-np.abs(np.nan_to_num(error)), kind="stable")[:n]
    said = [(f"{p.classes[k]} {p.reference[i, k]:.4g}", f"{p.probability[i, k]:.4g}") for i in order]
    return [
        Mistake(str(p.case[i]), str(p.patient[i]), int(p.fold[i]), *names, float(error[i]))
        for i, names in zip(order, said, strict=True)
    ]
