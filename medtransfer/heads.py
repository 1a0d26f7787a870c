"""Heads: from features to an answer, by task; and what each task calls a loss and a probability."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from medtransfer.errors import ConfigError

Task = Literal["classification", "multilabel", "ordinal", "regression"]
Loss = Callable[[Tensor, Tensor], Tensor]


class AttentionPool(nn.Module):
    """One vector for a bag of items by gated attention (Ilse et al. 2018, arXiv 1802.04712).

    Items are the slices of a volume, or the images of a study or patient. An item whose features are not
    a number is absent: bags of different sizes share a tensor (see :func:`bags`).

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


def bags(features: Tensor, owner: Sequence[str]) -> tuple[Tensor, list[str]]:
    """Features of images ``[images, width]`` as bags ``[owners, most images, width]``, absent items NaN.

    Parameters
    ----------
    owner : sequence of str
        The patient or study of each image.

    Returns
    -------
    items : Tensor
    owners : list of str
        Whose each bag is, in the order of first appearance.

    Examples
    --------
    >>> items, owners = bags(torch.ones(3, 2), ["a", "b", "a"])
    >>> items.shape, owners, int(items.isnan().sum())
    (torch.Size([2, 2, 2]), ['a', 'b'], 2)
    """
    owners = list(dict.fromkeys(owner))
    members = {o: [i for i, mine in enumerate(owner) if mine == o] for o in owners}
    items = features.new_full((len(owners), max(map(len, members.values())), features.shape[1]), torch.nan)
    for row, name in enumerate(owners):
        items[row, : len(members[name])] = features[members[name]]
    return items, owners


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

    def forward(self, x: Tensor) -> Tensor:
        return self.score(x) - self.thresholds()  # type: ignore[no-any-return]


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
        return nn.Sequential(*layers, last)


def start_from_prior(head: nn.Sequential, task: Task, frequency: Sequence[float]) -> None:
    """Set the last bias so that an untrained head answers with the frequencies of the training set.

    Without it the first steps of training are spent on learning how rare a finding is.

    Parameters
    ----------
    frequency : sequence of float
        Of each class (they sum to one); of each label; for regression the mean of each target.

    Examples
    --------
    >>> head = Head().build(4, 2)
    >>> start_from_prior(head, "classification", (0.9, 0.1))
    >>> [round(p, 3) for p in task_probabilities("classification")(head(torch.zeros(1, 4)))[0].tolist()]
    [0.9, 0.1]
    """
    p = torch.tensor(list(frequency), dtype=torch.float64)
    last = head[-1]
    if task != "regression":
        p = p.clamp(1e-4, 1 - 1e-4)
    with torch.no_grad():
        if isinstance(last, OrdinalLayer):
            above = 1 - p.cumsum(0)[:-1].clamp(1e-4, 1 - 1e-4)
            edges = -torch.logit(above)
            last.first.copy_(edges[0])
            last.gaps.copy_(torch.expm1(edges.diff().clamp(min=1e-3)).log())
        elif isinstance(last, nn.Linear):
            last.bias.copy_(p if task == "regression" else torch.logit(p) if task == "multilabel" else p.log())


def task_loss(task: Task, *, weight: Tensor | None = None, label_smoothing: float = 0.0) -> Loss:
    """The loss of a task, a function of logits and references, averaged over the cases.

    Parameters
    ----------
    task : {'classification', 'multilabel', 'ordinal', 'regression'}
        ``classification``: one of several, cross-entropy; references ``[n]`` of int. ``multilabel``: any of several,
        binary cross-entropy of each; references ``[n, labels]`` of 0, 1 or NaN, which is not counted.
        ``ordinal``: classes in order, binary cross-entropy of being above each; references ``[n]`` of int.
        ``regression``: smooth L1; references ``[n]`` or ``[n, targets]`` of float, NaN is not counted.
    weight : Tensor or None
        Of each class or label.
    label_smoothing : float
        Share of the target spread over all classes.
    """

    def classes(logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits, target, weight=weight, label_smoothing=label_smoothing)

    def labels(logits: Tensor, target: Tensor) -> Tensor:
        known = ~target.isnan()
        soft = target.nan_to_num(0.0) * (1 - label_smoothing) + label_smoothing / 2
        each = F.binary_cross_entropy_with_logits(logits, soft, reduction="none")
        scale = known * (1.0 if weight is None else weight)
        return (each * scale).sum() / scale.sum().clamp(min=1e-12)

    def ordinal(logits: Tensor, target: Tensor) -> Tensor:
        above = (target[:, None] > torch.arange(logits.shape[1], device=logits.device)).to(logits.dtype)
        soft = above * (1 - label_smoothing) + label_smoothing / 2
        each = F.binary_cross_entropy_with_logits(logits, soft, reduction="none").mean(1)
        return each.mean() if weight is None else (each * weight[target]).sum() / weight[target].sum()

    def regression(logits: Tensor, target: Tensor) -> Tensor:
        target = target.reshape(logits.shape)
        known = ~target.isnan()
        each = F.smooth_l1_loss(logits, target.nan_to_num(0.0), reduction="none")
        return (each * known).sum() / known.sum().clamp(min=1)

    return {"classification": classes, "multilabel": labels, "ordinal": ordinal, "regression": regression}[task]


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
