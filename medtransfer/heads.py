"""Heads: from features to an answer, by task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from medtransfer.errors import ConfigError
from medtransfer.predictions import BY_CLASS, Task


class AttentionPool(nn.Module):
    """One vector for a bag of items by gated attention (Ilse et al. 2018, arXiv 1802.04712).

    Items are the slices of a volume, or the images of a study or patient. An item whose features are not
    a number is absent, so that bags of different sizes share a tensor.

    Parameters
    ----------
    width : int
        Features an item has.
    hidden : int
        Width of the layer that weighs items.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.content, self.gate = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.score = nn.Linear(hidden, 1)
        nn.init.zeros_(self.score.weight)  # starts as the average
        nn.init.zeros_(self.score.bias)

    def weights(self, items: Tensor) -> Tensor:
        """How much each item of ``[n, items, width]`` counts, ``[n, items]``; rows sum to one, absent items are 0."""
        absent = items.isnan().any(2)
        x = items.masked_fill(absent[..., None], 0.0)
        scores = self.score(torch.tanh(self.content(x)) * torch.sigmoid(self.gate(x))).squeeze(2)
        return torch.softmax(scores.masked_fill(absent, -torch.inf), 1)

    def forward(self, items: Tensor) -> Tensor:
        if items.ndim != 3:
            raise ConfigError("attention pools items [n, items, width]", got=f"shape {tuple(items.shape)}")
        return (self.weights(items).unsqueeze(1) @ items.nan_to_num(0.0)).squeeze(1)


def average(items: Tensor) -> Tensor:
    """Mean over the items of ``[n, items, width]`` that are there.

    Examples
    --------
    >>> average(torch.tensor([[[1.0], [3.0], [torch.nan]]])).tolist()
    [[2.0]]
    """
    return items.nanmean(1)


class OrdinalLayer(nn.Module):
    """One score and ordered thresholds: logits of being above each class but the last (proportional odds).

    The thresholds cannot cross, so the chances of being above fall from class to class.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1, bias=False)
        self.first = nn.Parameter(torch.tensor(-1.0))
        self.gaps = nn.Parameter(torch.zeros(classes - 2))
        nn.init.normal_(self.score.weight, std=0.01)

    def thresholds(self) -> Tensor:
        """Where one class ends and the next begins on the score, ``[classes - 1]``, rising."""
        return torch.cat([self.first[None], self.first + F.softplus(self.gaps).cumsum(0)])

    def place(self, thresholds: Tensor) -> None:
        """Set the thresholds, which rise."""
        with torch.no_grad():
            self.first.copy_(thresholds[0])
            self.gaps.copy_(torch.expm1(thresholds.diff().clamp(min=1e-3)).log())

    def forward(self, x: Tensor) -> Tensor:
        return self.score(x) - self.thresholds()  # type: ignore[no-any-return]


class Units(nn.Module):
    """From the standardised scale on which a regression is learned to the units of its targets."""

    mean: Tensor
    std: Tensor

    def __init__(self, targets: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(targets))
        self.register_buffer("std", torch.ones(targets))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.std + self.mean


class Head(BaseModel):
    """The new top: dense layers, each followed by batch normalisation, ReLU and dropout as asked, then the answer.

    Parameters
    ----------
    hidden : tuple of int
        Widths of dense layers before the last one; none makes a linear head.
    dropout : float
        Share of the inputs of every dense layer that is dropped in training.
    batchnorm : bool
        Normalise after every hidden layer.
    attention : int
        Width of the attention that pools slices, or the images of a study or patient; 0 is none (slices are averaged).

    Examples
    --------
    >>> Head(hidden=(256,), dropout=0.5).hidden
    (256,)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden: tuple[Annotated[int, Field(ge=1)], ...] = ()
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    batchnorm: bool = False
    attention: Annotated[int, Field(ge=0)] = 0

    def build(self, width: int, classes: int, task: Task = "classification") -> nn.Sequential:
        """The layers from ``width`` features to the task's logits."""
        layers: list[nn.Module] = [AttentionPool(width, self.attention)] if self.attention else []
        for size in self.hidden:
            layers += [nn.Dropout(self.dropout)] if self.dropout else []
            layers += [nn.Linear(width, size)]
            layers += [nn.BatchNorm1d(size)] if self.batchnorm else []
            layers += [nn.ReLU()]
            width = size
        layers += [nn.Dropout(self.dropout)] if self.dropout else []
        if task == "ordinal":
            if classes < 2:
                raise ConfigError("ordinal classes are two or more", where="model.classes", got=classes)
            return nn.Sequential(*layers, OrdinalLayer(width, classes))
        last = nn.Linear(width, classes)
        nn.init.normal_(last.weight, std=0.01)
        nn.init.zeros_(last.bias)
        return nn.Sequential(*layers, last, *([Units(classes)] if task == "regression" else []))


def start_from_prior(head: nn.Sequential, task: Task, prior: Sequence[float] | NDArray[np.float64]) -> None:
    """Set the last layer so that an untrained head answers with what is usual in the training set.

    Without it the first steps of training are spent on learning how rare a finding is.

    Parameters
    ----------
    prior : sequence of float
        Frequency of each class (they sum to one) or label; for a regression mean and deviation of each target,
        ``[targets, 2]``.

    Examples
    --------
    >>> head = Head().build(4, 2)
    >>> start_from_prior(head, "classification", (0.9, 0.1))
    >>> [round(p, 3) for p in task_probabilities("classification")(head(torch.zeros(1, 4)))[0].tolist()]
    [0.9, 0.1]
    """
    p = torch.as_tensor(np.asarray(prior, dtype=np.float64))
    last = head[-1]
    with torch.no_grad():
        if isinstance(last, Units):
            last.mean.copy_(p[:, 0])
            last.std.copy_(p[:, 1])
        elif isinstance(last, OrdinalLayer):
            above = 1 - p.clamp(1e-4, 1 - 1e-4).cumsum(0)[:-1].clamp(1e-4, 1 - 1e-4)
            last.place(-torch.logit(above))
        elif isinstance(last, nn.Linear):
            p = p.clamp(1e-4, 1 - 1e-4)
            last.bias.copy_(torch.logit(p) if task == "multilabel" else p.log())


def prior_of(task: Task, references: NDArray[np.int64] | NDArray[np.float64], classes: int) -> NDArray[np.float64]:
    """What :func:`start_from_prior` wants, from the references of a training part.

    Examples
    --------
    >>> prior_of("regression", np.array([[1.0], [3.0], [np.nan]]), 1).tolist()
    [[2.0, 1.0]]
    """
    if task in BY_CLASS:
        counts = np.bincount(references.astype(np.int64), minlength=classes)
        return np.asarray(counts / counts.sum(), dtype=np.float64)
    if task == "multilabel":
        return np.asarray(np.nanmean(references, axis=0), dtype=np.float64)
    spread = np.nanstd(references, axis=0)
    return np.stack([np.nanmean(references, axis=0), np.where(spread > 0, spread, 1.0)], axis=1)


def task_probabilities(task: Task) -> Callable[[Tensor], Tensor]:
    """What logits say: chances of each class or label ``[n, classes]``, or a regression's values ``[n, targets]``.

    Examples
    --------
    >>> task_probabilities("ordinal")(torch.tensor([[0.0, -torch.inf]])).tolist()
    [[0.5, 0.5, 0.0]]
    """

    def ordinal(logits: Tensor) -> Tensor:
        above = logits.sigmoid()
        ends = torch.ones_like(above[:, :1])
        return torch.cat([ends, above], 1) - torch.cat([above, 0 * ends], 1)

    functions: dict[Task, Callable[[Tensor], Tensor]] = {
        "classification": lambda logits: logits.softmax(1),
        "multilabel": torch.sigmoid,
        "ordinal": ordinal,
        "regression": lambda logits: logits,
    }
    return functions[task]
