"""One module from prepared images to the answer, of all folds together; what is exported in every form."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from medtransfer.heads import average, task_probabilities

if TYPE_CHECKING:
    from pathlib import Path

    from medtransfer.export.card import Card
    from medtransfer.model import Description, Model
    from medtransfer.segment.network import Segmenter


class Answering(nn.Module):
    """Probabilities, or values of a regression, ``[n, classes]`` of images ``[n, channels, ...]`` in [0, 1].

    The folds' answers are averaged. Where all folds hold the same frozen backbone it is computed once.

    Parameters
    ----------
    models : sequence of Model
        One a fold.
    bag : bool
        Whether an input is a bag, ``[n, channels, images, ...]``, absent images not a number.
    """

    def __init__(self, models: Sequence[Model], *, bag: bool = False) -> None:
        super().__init__()
        self.bag = bag
        self.say = task_probabilities(models[0].description.task)
        self.trunks = nn.ModuleList([_Trunk(m) for m in (models[:1] if _same_stages(models) else models)])
        self.heads = nn.ModuleList([m.head for m in models])

    def forward(self, image: Tensor) -> Tensor:
        found = [self._features(trunk, image) for trunk in self.trunks]
        features = found * len(self.heads) if len(found) == 1 else found
        said = [self.say(head(f)) for head, f in zip(self.heads, features, strict=True)]
        return torch.stack(said).mean(0)

    def _features(self, trunk: nn.Module, image: Tensor) -> Tensor:
        assert isinstance(trunk, _Trunk)
        if not (self.bag or trunk.by_slice):
            return trunk(image)  # type: ignore[no-any-return]
        x = trunk.model_slices(image)
        flat = x.flatten(0, 1)
        if not self.bag:
            items: Tensor = trunk(flat).reshape(x.shape[0], x.shape[1], -1)
            return items if trunk.weighed else items.mean(1)
        absent = flat.flatten(1)[:, :1].isnan()  # computed like the others and then left out: a graph has no gaps
        rows = trunk(torch.where(flat.isnan(), 0.0, flat))
        items = torch.where(absent, torch.nan, rows).reshape(x.shape[0], x.shape[1], -1)
        return items if trunk.weighed else average(items)


class _Trunk(nn.Module):
    """Stages and pooling of a model, without what only training needs."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        d = model.description
        self.stages, self.pool, self.model_slices = model.stages, model.pool, model.slices
        self.pool_from, self.by_slice, self.weighed = d.pool_from, d.by_slice, d.head.attention > 0

    def forward(self, x: Tensor) -> Tensor:
        pooled = []
        for name, stage in self.stages.items():
            x = stage(x)
            if name in self.pool_from:
                pooled.append(self.pool(x))
        return torch.cat(pooled, 1)


class Windows(nn.Module):
    """Class probabilities ``[n, classes, *window]`` of windows ``[n, channels, *window]`` in [0, 1].

    The mean over folds and mirrored views, as :func:`medtransfer.segment.infer.speaker` takes it.

    Parameters
    ----------
    models : sequence of Segmenter
    mirrored : sequence of int
        Axes of ``[n, channels, ...]`` to mirror.
    """

    def __init__(self, models: Sequence[Segmenter], mirrored: Sequence[int] = ()) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        self.flips = [axes for k in range(len(mirrored) + 1) for axes in itertools.combinations(mirrored, k)]

    def forward(self, image: Tensor) -> Tensor:
        total: Tensor | None = None
        for axes in self.flips:
            shown = image.flip(axes) if axes else image
            for model in self.models:
                found = torch.softmax(model(shown), 1)
                found = found.flip(axes) if axes else found
                total = found if total is None else total + found
        assert total is not None
        return total / (len(self.flips) * len(self.models))


def load_network(run: Path, folds: Sequence[int], *, masks: bool) -> tuple[Description, list[Model]]:
    """Models of a run's folds, in evaluation mode, and the first one's description."""
    from medtransfer.run import load_checkpoint, read_checkpoint
    from medtransfer.segment.network import Blueprint, build

    models: list[Model] = []
    for fold in folds:
        path = run / f"fold-{fold}" / "model.safetensors"
        if masks:
            tensors, facts = read_checkpoint(path)
            model: Model = build(Blueprint.from_json(facts["description"]))
            model.load_state_dict(tensors)
        else:
            model = load_checkpoint(path)
        models.append(model.eval())
    return models[0].description, models


def network_of(models: Sequence[Model], card: Card) -> nn.Module:
    """The module that answers as the card says."""
    if card.task == "segmentation":
        return Windows(models, card.planned().mirrored).eval()  # type: ignore[arg-type]
    return Answering(models, bag=card.bag).eval()


def example(card: Card, n: int = 2) -> Tensor:
    """An input that a network of this card takes."""
    channels, *sides = card.shape
    return torch.rand(n, channels, *([3] if card.bag else []), *sides, generator=torch.Generator().manual_seed(0))


def _same_stages(models: Sequence[Model]) -> bool:
    """Whether all folds hold the same backbone, bit for bit."""
    first, *rest = ({k: v for k, v in m.state_dict().items() if k.startswith("stages.")} for m in models)
    return all(first.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in first.items())
               for other in rest)  # fmt: skip
