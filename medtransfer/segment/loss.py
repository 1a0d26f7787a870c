"""What a segmentation is trained on: Dice and cross-entropy, at several resolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def dice_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy minus the soft Dice coefficient, which is taken over the whole batch and without the background.

    Drozdzal et al. 2016, arXiv 1608.04117; the sum as in nnU-Net (doi 10.1038/s41592-020-01008-z).

    Parameters
    ----------
    logits : Tensor [n, classes, ...]
    labels : Tensor of int64 [n, ...]

    Examples
    --------
    >>> labels = torch.tensor([[0, 1, 1, 2]])
    >>> right = 100 * F.one_hot(labels, 3).movedim(-1, 1).float()
    >>> float(dice_cross_entropy(right, labels)).__round__(4)
    -1.0
    """
    each = F.log_softmax(logits, 1)
    entropy = F.nll_loss(each, labels)
    share = each.exp()[:, 1:].transpose(0, 1).flatten(1)
    truth = torch.stack([labels == value for value in range(1, logits.shape[1])]).flatten(1).to(share)
    both, whole = (share * truth).sum(1), share.sum(1) + truth.sum(1)
    return entropy - ((2 * both + 1e-5) / (whole + 1e-5)).mean()


def supervised(pyramid: Sequence[Tensor], labels: Tensor) -> Tensor:
    """The loss at each resolution, each coarser one counting half; coarse labels are every second voxel and so on."""
    weights = [0.5**i for i in range(len(pyramid))]
    total = labels.new_zeros((), dtype=torch.float32)
    for weight, logits in zip(weights, pyramid, strict=True):
        steps = (math.ceil(n / m) for n, m in zip(labels.shape[1:], logits.shape[2:], strict=True))
        coarse = labels[(slice(None), *(slice(None, None, s) for s in steps))]
        total = total + weight / sum(weights) * dice_cross_entropy(logits.float(), coarse)
    return total
