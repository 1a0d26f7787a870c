"""What training minimises, per case, by task; and what validation compares."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from medtransfer.predictions import BY_CLASS, Task


def class_weights(labels: NDArray[np.int64], classes: int, beta: float = 1.0) -> Tensor:
    """Weights of classes, 1 on average over the cases.

    Parameters
    ----------
    labels : ndarray (n,) of int
    beta : float
        Inverse to the effective number ``(1 - beta ** n) / (1 - beta)`` of each class (Cui et al. 2019,
        arXiv 1901.05555): 0 weighs all alike, 1 inversely to their frequency.

    Examples
    --------
    >>> class_weights(np.array([0, 0, 0, 1]), 2).tolist()
    [0.6666666865348816, 2.0]
    >>> class_weights(np.array([0, 0, 0, 1]), 2, beta=0.0).tolist()
    [1.0, 1.0]
    """
    counts = np.maximum(np.bincount(labels, minlength=classes), 1)
    effective = counts if beta == 1 else (1 - beta**counts) / (1 - beta)
    inverse = 1 / effective
    return torch.tensor(inverse / inverse[labels].mean(), dtype=torch.float32)


def losses(
    logits: Tensor,
    references: Tensor,
    *,
    task: Task = "classification",
    weight: Tensor | None = None,
    smoothing: float = 0.0,
    focal: float = 0.0,
    unit: Tensor | None = None,
) -> Tensor:
    """Loss of each case ``[n]`` from logits ``[n, classes]``.

    Parameters
    ----------
    references : Tensor
        Class indices ``[n]``; 0, 1 or NaN (not counted) of each label, or values of each target ``[n, targets]``.
    task : {'classification', 'multilabel', 'ordinal', 'regression'}
        Cross-entropy; binary cross-entropy, averaged over the known labels; binary cross-entropy of being above each
        class but the last, averaged over them; smooth L1, averaged over the known targets.
    weight : Tensor (classes,) or None
        Factor of the cases of each class.
    smoothing : float
        Share of the target spread over all classes, or over yes and no.
    focal : float
        Cross-entropy is multiplied by ``(1 - p) ** focal`` with p the probability of the reference
        (Lin et al. 2017, arXiv 1708.02002).
    unit : Tensor (targets,) or None
        What counts as 1 in a regression: the deviation of each target.

    Examples
    --------
    >>> losses(torch.tensor([[0.0, 0.0]]), torch.tensor([1]), focal=2.0)  # log(2) / 4
    tensor([0.1733])
    >>> losses(torch.tensor([[3.0, 9.0]]), torch.tensor([[1.0, torch.nan]]), task="regression")
    tensor([1.5000])
    """
    if task == "classification":
        found = F.cross_entropy(logits, references, label_smoothing=smoothing, reduction="none")
        if focal:
            found = found * (1 - F.log_softmax(logits, 1).gather(1, references[:, None])[:, 0].exp()) ** focal
        return found if weight is None else found * weight[references]
    if task == "ordinal":
        above = (references[:, None] > torch.arange(logits.shape[1], device=logits.device)).to(logits.dtype)
        found = _yes_or_no(logits, above, smoothing, focal).mean(1)
        return found if weight is None else found * weight[references]
    references = references.reshape(logits.shape)
    known = ~references.isnan()
    wanted = references.nan_to_num(0.0)
    if task == "multilabel":
        each = _yes_or_no(logits, wanted, smoothing, focal)
    else:
        scale = torch.ones_like(logits[0]) if unit is None else unit
        each = F.smooth_l1_loss(logits / scale, wanted / scale, reduction="none")
    return (each * known).sum(1) / known.sum(1).clamp(min=1)


def _yes_or_no(logits: Tensor, wanted: Tensor, smoothing: float, focal: float) -> Tensor:
    soft = wanted * (1 - smoothing) + smoothing / 2
    found = F.binary_cross_entropy_with_logits(logits, soft, reduction="none")
    return found * ((2 * wanted - 1) * -logits).sigmoid() ** focal if focal else found


def criterion(task: Task, references: NDArray[np.int64] | NDArray[np.float64], said: NDArray[np.float64]) -> float:
    """What validation minimises: mean log loss, or in a regression the mean absolute error in deviations.

    Parameters
    ----------
    references : ndarray (n,) or (n, C)
        NaN is not counted.
    said : ndarray (n, C)
        Probabilities, or predicted values.

    Examples
    --------
    >>> round(criterion("classification", np.array([1]), np.array([[0.5, 0.5]])), 4)
    0.6931
    >>> criterion("regression", np.array([[0.0], [2.0]]), np.array([[1.0], [2.0]]))  # deviation of the references is 1
    0.5
    """
    if task in BY_CLASS:
        chosen = said[np.arange(len(said)), references.astype(np.int64)]
        return float(-np.log(np.clip(chosen, 1e-12, None)).mean())
    known = ~np.isnan(references)
    if task == "multilabel":
        chosen = np.where(references[known] == 1, said[known], 1 - said[known])
        return float(-np.log(np.clip(chosen, 1e-12, None)).mean())
    spread = np.nanstd(references, axis=0)
    return float((np.abs(said - references) / np.where(spread > 0, spread, 1.0))[known].mean())


def mixing(n: int, alpha: float, generator: torch.Generator) -> tuple[float, Tensor]:
    """How much of itself a case keeps, and which other case of the batch it is mixed with.

    Examples
    --------
    >>> share, other = mixing(4, 0.2, torch.Generator().manual_seed(0))
    >>> 0 <= share <= 1, sorted(other.tolist())
    (True, [0, 1, 2, 3])
    """
    rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
    return float(rng.beta(alpha, alpha)), torch.randperm(n, generator=generator)
