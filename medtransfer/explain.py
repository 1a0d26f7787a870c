"""Which parts of an image speak for an answer: class activation maps, and whether they depend on what was learned.

A map shows where the evidence for an answer lies in the features, not whether the answer is right nor why. Maps
that stay as they are when the weights are drawn anew show the image, not the model: :func:`randomisation` looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from medtransfer.backbones import architecture
from medtransfer.backbones.tokens import laid_out
from medtransfer.errors import WeightsError
from medtransfer.heads import Task
from medtransfer.model import Model, restart

_SLICES_AT_ONCE = 32
ALIKE = 0.5  # mean rank correlation from which maps show much the same

Array = NDArray[np.float32]
Explained = tuple[Model, Array, int]  # a model, a prepared image, the target that is explained


def gradcam(
    model: Model, image: Array | Tensor, *, target: int, stage: str | None = None, plus_plus: bool = False
) -> Array:
    """Where the evidence for one answer lies: Grad-CAM of a prepared image.

    Explained is the log odds of the class (of the label; of being at least that class of an ordinal task) or the
    value of a regression: what the answer is made of, without the shift that softmax does not see.

    Parameters
    ----------
    model : Model
        Evaluation mode is switched on; frozen stages may stay frozen.
    image : ndarray or Tensor [channels, ...]
        As prepared, in [0, 1].
    target : int
        Class, label or regression target.
    stage : str or None
        The stage whose maps are weighed, with all that follows. None takes the maps that are pooled, all of them
        where several stages are: their evidence then adds up to the answer of a linear head. Of a transformer
        that pools its class token, None is the stage before the last: the last one's places are not looked at.
    plus_plus : bool
        Grad-CAM++, which weighs positive gradients only and shows several findings of one kind more evenly.

    Returns
    -------
    ndarray of float32
        Of the image's spatial shape, 0 (no evidence for it) to 1 (most in this image). All 0 where nothing speaks
        for it. Slices of a volume that is seen slice by slice share one scale.

    Raises
    ------
    WeightsError
        Where there is no such stage, or the answer does not come through it.

    Notes
    -----
    Grad-CAM: Selvaraju et al. 2017 (ICCV). Grad-CAM++: Chattopadhay et al. 2018 (WACV), eq. 19. Where standard
    deviations are pooled (``pool='mean_std'``) the mean gradient, and with it Grad-CAM, would miss them: gradient and
    map are then multiplied place by place (HiResCAM, Draelos & Carin 2020, arXiv 2011.08891), which is the
    same thing for averages.

    Examples
    --------
    >>> from medtransfer.model import load_model
    >>> gradcam(load_model("random/resnet18"), torch.rand(1, 64, 48), target=1).shape
    (64, 48)
    """
    x = torch.as_tensor(image, device=next(model.parameters()).device)[None]
    total = evidence(model, x, target=target, stage=stage, plus_plus=plus_plus).clamp(min=0)
    by_slice = model.description.by_slice
    found = _resized(total, x.shape[3:])[:, 0] if by_slice else _resized(total, x.shape[2:])[0, 0]
    top = float(found.max())
    return (found / top if top > 0 else torch.zeros_like(found)).cpu().numpy()


def evidence(model: Model, x: Tensor, *, target: int, stage: str | None = None, plus_plus: bool = False) -> Tensor:
    """The map before it is cut at 0, enlarged and scaled: ``[1, 1, ...]``, or ``[slices, 1, ...]`` slice by slice.

    Of pooled maps and a linear head without Grad-CAM++ its mean (over the places; of slices that are averaged over
    these too) is what was explained less its bias.
    """
    model = model.eval()
    if stage is None and model.description.pool == "token":
        names = list(model.stages)
        stage = names[max(0, names.index(_last_pooled(model)) - 1)]
    leaves, logits = _answer(model, x, stage)
    score = _score(logits, model.description.task, target)
    gradients = torch.autograd.grad(score, leaves, allow_unused=True)
    placewise = model.description.pool == "mean_std"
    shape = x.shape[3:] if model.description.by_slice else x.shape[2:]
    total: Tensor | None = None
    for maps, gradient in zip(leaves, gradients, strict=True):
        if gradient is None:
            raise WeightsError(
                f"the answer does not come through the stage '{stage}'",
                got=f"pooled from {', '.join(model.description.pool_from)}",
            )
        if architecture(model.description.arch).has_token:
            maps, gradient = laid_out(maps, shape), laid_out(gradient, shape)
        one = _weighed(maps.detach(), gradient, placewise=placewise, plus_plus=plus_plus) * len(maps)
        total = one if total is None else total + _resized(one, total.shape[2:])
    assert total is not None
    return total


def _answer(model: Model, x: Tensor, stage: str | None) -> tuple[list[Tensor], Tensor]:
    """Maps ``[images, width, ...]`` that are explained, ready for gradients, and the logits made of them."""
    d = model.description
    images = model.slices(x).flatten(0, 1) if d.by_slice else x
    last = stage or _last_pooled(model)
    maps = _maps(model, images, last)
    leaves = [m.requires_grad_() for name, m in maps.items() if stage in (None, name)]
    with torch.enable_grad():
        pooled = [model.pool(m) for name, m in maps.items() if name in d.pool_from]
        found, names = maps[last], list(model.stages)
        for name in names[names.index(last) + 1 :] if stage else ():
            found = model.stages[name](found)
            pooled += [model.pool(found)] if name in d.pool_from else []
        features = torch.cat(pooled, 1)
        if d.by_slice:
            features = features.reshape(len(x), -1, features.shape[1])
            features = features if d.head.attention > 0 else features.mean(1)
        logits: Tensor = model.head(features)
    return leaves, logits


def _maps(model: Model, images: Tensor, last: str) -> dict[str, Tensor]:
    """What the pooled stages up to ``last``, and it, give for images; a few at a time, without gradients."""
    if last not in model.stages:
        raise WeightsError(f"there is no stage '{last}'", got=f"stages {', '.join(model.stages)}")
    kept: dict[str, list[Tensor]] = {}
    with torch.no_grad():
        for part in torch.split(images, _SLICES_AT_ONCE):
            for name, module in model.stages.items():
                part = module(part)
                if name == last or name in model.description.pool_from:
                    kept.setdefault(name, []).append(part)
                if name == last:
                    break
    return {name: torch.cat(parts) for name, parts in kept.items()}


def _last_pooled(model: Model) -> str:
    return [name for name in model.stages if name in model.description.pool_from][-1]


def _score(logits: Tensor, task: Task, target: int) -> Tensor:
    row = logits[0]
    if task == "classification":
        others = torch.cat([row[:target], row[target + 1 :]])
        return row[target] - torch.logsumexp(others, 0)
    if task == "ordinal":
        return row[target - 1] if target else -row[0]
    return row[target]


def _weighed(maps: Tensor, gradient: Tensor, *, placewise: bool, plus_plus: bool) -> Tensor:
    """``[n, 1, ...]``: the maps weighed by their gradients, as a density (its mean is what it adds to the score)."""
    places, axes = maps[0, 0].numel(), tuple(range(2, maps.ndim))
    if plus_plus:
        square, cube = gradient**2, gradient**3
        below = 2 * square + (maps * cube).sum(axes, keepdim=True)
        alpha = square / torch.where(below != 0, below, torch.ones_like(below))
        return ((alpha * gradient.clamp(min=0)).sum(axes, keepdim=True) * maps).sum(1, keepdim=True)
    weight = gradient if placewise else gradient.mean(axes, keepdim=True)
    return places * (weight * maps).sum(1, keepdim=True)


def _resized(maps: Tensor, shape: Sequence[int]) -> Tensor:
    return F.interpolate(maps, tuple(shape), mode="bilinear" if len(shape) == 2 else "trilinear")


def name_of(model: Model) -> str:
    """What :func:`gradcam` computes for a model, as the report calls it."""
    return "HiResCAM" if model.description.pool == "mean_std" else "Grad-CAM"


@dataclass(frozen=True)
class Randomisation:
    """How much maps keep of themselves while weights are drawn anew, from the head down to the first stage.

    Parameters
    ----------
    levels : tuple of (str, float)
        The stage down to which everything is random, and the mean rank correlation with the maps of the trained
        weights; the last entry is a network that has learned nothing.
    cases : int
        How many maps were compared; maps in which nothing speaks for the answer are left out.

    Examples
    --------
    >>> Randomisation((("head", 0.7), ("stem", 0.1)), 8).passes
    True
    """

    levels: tuple[tuple[str, float], ...]
    cases: int

    @property
    def passes(self) -> bool | None:
        """Whether the maps of a network that has learned nothing agree less than ``ALIKE``; None: none compared."""
        return self.levels[-1][1] < ALIKE if self.cases else None

    def to_record(self) -> dict[str, object]:
        """Plain JSON types."""
        levels = [[name, round(value, 4)] for name, value in self.levels]
        return {"levels": levels, "cases": self.cases, "limit": ALIKE, "passes": self.passes}


def randomisation(explained: Sequence[Explained], *, seed: int = 0) -> Randomisation:
    """The cascading randomisation of Adebayo et al. 2018 (NeurIPS, "Sanity checks for saliency maps").

    Parameters
    ----------
    explained : sequence of (Model, ndarray, int)
        Models of one architecture, with the image and the target of each map.
    seed : int
        Each map meets weights of its own, drawn as an untrained network's are.

    Examples
    --------
    >>> from medtransfer.model import load_model
    >>> model, image = load_model("random/resnet18", until="layer2"), np.random.rand(1, 64, 64).astype(np.float32)
    >>> [name for name, _ in randomisation([(model, image, 1)]).levels]
    ['head', 'layer2', 'layer1', 'stem']
    """
    rows: list[list[float]] = []
    names: list[str] = []
    for number, (model, image, target) in enumerate(explained):
        names = ["head", *reversed(list(model.stages))]
        shown = gradcam(model, image, target=target)
        if not shown.any():
            continue
        twin = restart(model.description, seed=seed + number).to(next(model.parameters()).device)
        untrained = dict(twin.stages.items())
        for name, stage in model.stages.items():
            twin.stages[name] = stage
        row = [alike(shown, gradcam(twin, image, target=target))]
        for name in names[1:]:
            twin.stages[name] = untrained[name]
            row.append(alike(shown, gradcam(twin, image, target=target)))
        rows.append(row)
    means = np.mean(rows, axis=0).tolist() if rows else []
    return Randomisation(tuple(zip(names, means, strict=False)), len(rows))


def alike(a: Array, b: Array) -> float:
    """Spearman's rank correlation of two maps; 0 where one of them is the same everywhere.

    Examples
    --------
    >>> round(alike(np.arange(4.0), np.arange(4.0) ** 2), 6)
    1.0
    """
    from scipy.stats import rankdata

    ranks = np.stack([rankdata(m, axis=None) for m in (a, b)])
    return float(np.corrcoef(ranks)[0, 1]) if ranks.std(axis=1).all() else 0.0
