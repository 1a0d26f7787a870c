"""The ends of the ROC curve that uses live on: high specificity to confirm, high sensitivity to rule out."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medtransfer.metrics.classification import rates_by_threshold

Floats = NDArray[np.float64]


def partial_auroc(
    positive: ArrayLike,
    score: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    specificity: tuple[float, float] | None = None,
    sensitivity: tuple[float, float] | None = None,
) -> Floats:
    """Area under a part of the ROC curve, standardised so that chance is ½ and perfection 1 (McClish 1989).

    Parameters
    ----------
    positive, score, weight
        As for :func:`~medtransfer.metrics.classification.auroc`.
    specificity, sensitivity : (float, float)
        Exactly one of them: the range, between 0 and 1, over which the curve counts.

    Returns
    -------
    ndarray (...)
        ``(1 + (area − chance) / (largest − chance)) / 2``; nan where the cases are all of one kind.

    Examples
    --------
    >>> y, s = [0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]
    >>> float(partial_auroc(y, s, specificity=(0.0, 1.0)))
    0.75
    >>> round(float(partial_auroc(y, s, specificity=(0.5, 1.0))), 4)  # area ¼ of ½, chance ⅛
    0.6667
    """
    tpr, fpr = rates_by_threshold(positive, score, weight)
    if specificity is not None:
        return _standardised(fpr, tpr, *specificity)
    assert sensitivity is not None
    # the same curve seen from the other class: 1 − sensitivity on the horizontal axis, specificity above it
    return _standardised((1 - tpr)[..., ::-1], (1 - fpr)[..., ::-1], *sensitivity)


def _standardised(x: Floats, height: Floats, least: float, most: float) -> Floats:
    """Area under straight lines between points, x ascending, from 1 − most to 1 − least."""
    low, high = 1 - most, 1 - least
    stop = max(int((x < high).any(axis=tuple(range(x.ndim - 1))).sum()) + 1, 2)  # beyond it the area adds nothing
    x, height = x[..., :stop], height[..., :stop]
    run = np.diff(x, axis=-1)
    rise = np.divide(np.diff(height, axis=-1), run, out=np.zeros_like(run), where=run > 0)
    start, end = np.clip(x[..., :-1], low, high), np.clip(x[..., 1:], low, high)
    middle = height[..., :-1] + rise * ((start + end) / 2 - x[..., :-1])
    area = ((end - start) * middle).sum(axis=-1)
    chance, largest = (high**2 - low**2) / 2, high - low
    return np.asarray((1 + (area - chance) / (largest - chance)) / 2)


def sensitivity_at_specificity(
    positive: ArrayLike, score: ArrayLike, specificity: float, weight: ArrayLike | None = None
) -> Floats:
    """The highest sensitivity of any threshold whose specificity is at least ``specificity``.

    It is read off the ROC curve of these very cases and so belongs to no threshold that was chosen beforehand.

    Examples
    --------
    >>> float(sensitivity_at_specificity([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], 0.9))
    0.5
    """
    tpr, fpr = rates_by_threshold(positive, score, weight)
    return _best(tpr, 1 - fpr, specificity)


def specificity_at_sensitivity(
    positive: ArrayLike, score: ArrayLike, sensitivity: float, weight: ArrayLike | None = None
) -> Floats:
    """The highest specificity of any threshold whose sensitivity is at least ``sensitivity``.

    Examples
    --------
    >>> float(specificity_at_sensitivity([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], 0.9))
    0.5
    """
    tpr, fpr = rates_by_threshold(positive, score, weight)
    return _best(1 - fpr, tpr, sensitivity)


def ends_of_the_curve(positive: ArrayLike, score: ArrayLike, weight: ArrayLike | None = None) -> dict[str, Floats]:
    """Partial AUROC over the upper tenth of specificity and of sensitivity, and each rate where the other is 90, 95 %.

    Examples
    --------
    >>> found = ends_of_the_curve([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    >>> float(found["sensitivity_at_specificity_90"])
    0.5
    """
    tpr, fpr = rates_by_threshold(positive, score, weight)
    found = {
        "partial_auroc": _standardised(fpr, tpr, 0.9, 1.0),
        "partial_auroc_sensitive": _standardised((1 - tpr)[..., ::-1], (1 - fpr)[..., ::-1], 0.9, 1.0),
    }
    for level in (90, 95):
        found[f"sensitivity_at_specificity_{level}"] = _best(tpr, 1 - fpr, level / 100)
        found[f"specificity_at_sensitivity_{level}"] = _best(1 - fpr, tpr, level / 100)
    return found


def _best(wanted: Floats, held: Floats, least: float) -> Floats:
    """Largest ``wanted`` where ``held`` is at least so much; nan where one of them is not defined."""
    best = np.where(held >= least - 1e-12, wanted, 0).max(axis=-1)
    return np.asarray(np.where(np.isfinite(wanted[..., 0]) & np.isfinite(held[..., 0]), best, np.nan))
