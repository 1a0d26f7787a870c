"""What training minimises: cross-entropy and its kin, per case, weighed by class."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F


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
    logits: Tensor, labels: Tensor, *, weight: Tensor | None = None, smoothing: float = 0.0, focal: float = 0.0
) -> Tensor:
    """Loss of each case ``[n]`` from logits ``[n, classes]``.

    Parameters
    ----------
    weight : Tensor (classes,) or None
        Factor of the cases of each class.
    smoothing : float
        Share of the target spread over all classes.
    focal : float
        Cross-entropy is multiplied by ``(1 - p) ** focal`` with p the probability of the reference class
        (Lin et al. 2017, arXiv 1708.02002).

    Examples
    --------
    >>> losses(torch.tensor([[0.0, 0.0]]), torch.tensor([1]), focal=2.0)  # log(2) / 4
    tensor([0.1733])
    """
    found = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
    if focal:
        chance = F.log_softmax(logits, 1).gather(1, labels[:, None])[:, 0].exp()
        found = found * (1 - chance) ** focal
    return found if weight is None else found * weight[labels]


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
