"""Which parts of an image speak for an answer: class activation maps, and whether they depend on what was learned.

A map shows where the evidence for an answer lies in the features, not whether the answer is right nor why. Two
things decide whether it shows anything. Heads on general features add up large terms that every image has, anatomy
above all, and take them off again by their bias: against average images (:func:`average_maps`) these terms are
gone. And maps that stay as they are when weights are drawn anew show the image, not the model:
:func:`randomisation` looks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from medtransfer.backbones import architecture
from medtransfer.backbones.tokens import laid_out
from medtransfer.errors import WeightsError
from medtransfer.model import Model, restart
from medtransfer.predictions import Task

_SLICES_AT_ONCE = 32
ALIKE = 0.5  # mean rank correlation from which maps show much the same

Array = NDArray[np.float32]


def gradcam(
    model: Model,
    image: Array | Tensor,
    *,
    target: int,
    stage: str | None = None,
    plus_plus: bool = False,
    average: dict[str, Tensor] | None = None,
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
    average : dict of Tensor or None
        From :func:`average_maps` with the same ``stage``: then shown is what speaks for the answer more than the
        same place of the average image does.

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
    x = torch.as_tensor(image, device=_device(model))[None]
    found = evidence(model, x, target=target, stage=stage, plus_plus=plus_plus, average=average).clamp(min=0)
    by_slice = model.description.by_slice
    found = _resized(found, x.shape[3:])[:, 0] if by_slice else _resized(found, x.shape[2:])[0, 0]
    top = float(found.max())
    return (found / top if top > 0 else torch.zeros_like(found)).cpu().numpy()


def average_maps(model: Model, images: Iterable[Array], *, stage: str | None = None) -> dict[str, Tensor]:
    """What the stages behind :func:`gradcam` give on average for images ``[channels, ...]`` of one size, by place.

    A few dozen images, such as training cases, will do; they are asked for one after the other.
    """
    total: dict[str, Tensor] = {}
    model, count = model.eval(), 0
    for image in images:
        maps = _maps(model, _seen(model, torch.as_tensor(image, device=_device(model))[None]), _stage(model, stage))
        total = {name: m + total.get(name, 0) for name, m in maps.items()}
        count += 1
    return {name: m / count for name, m in total.items()}


def evidence(
    model: Model,
    x: Tensor,
    *,
    target: int,
    stage: str | None = None,
    plus_plus: bool = False,
    average: dict[str, Tensor] | None = None,
) -> Tensor:
    """The map of ``x [1, channels, ...]`` before it is cut at 0, enlarged and scaled: ``[1, 1, ...]``.

    Slice by slice: ``[slices, 1, ...]``. Of pooled maps and a linear head, without Grad-CAM++, its mean over all
    places (and slices that are averaged) is what was explained less its bias. With the average images of a network
    that pools means alone it is how far the image's log odds lie above those of the average maps.
    """
    model, d = model.eval(), model.description
    chosen = stage if stage is not None or d.pool != "token" else _stage(model, None)
    leaves, logits = _answer(model, x, chosen)
    with torch.enable_grad():
        score = _score(logits, d.task, target)
    gradients = torch.autograd.grad(score, list(leaves.values()), allow_unused=True)
    shape = x.shape[3:] if d.by_slice else x.shape[2:]
    total: Tensor | None = None
    for (name, maps), gradient in zip(leaves.items(), gradients, strict=True):
        if gradient is None:
            raise WeightsError(
                f"the answer does not come through the stage '{stage}'", got=f"pooled from {', '.join(d.pool_from)}"
            )
        there = maps.detach()
        beyond = there if average is None else there - average[name]
        if architecture(d.arch).has_token:
            there, beyond, gradient = (laid_out(m, shape) for m in (there, beyond, gradient))
        weights = _plus_plus(there, gradient) if plus_plus else _weights(gradient, placewise=d.pool == "mean_std")
        one = len(there) * (weights * beyond).sum(1, keepdim=True)
        total = one if total is None else total + _resized(one, total.shape[2:])
    assert total is not None
    return total


def _answer(model: Model, x: Tensor, stage: str | None) -> tuple[dict[str, Tensor], Tensor]:
    """Maps ``[images, width, ...]`` that are explained, by stage and ready for gradients, and the logits made of them.

    Without a stage these are all pooled maps, each for itself; with one, all that follows it depends on it.
    """
    d, last = model.description, _stage(model, stage)
    maps = _maps(model, _seen(model, x), last)
    leaves = {name: m.requires_grad_() for name, m in maps.items() if stage in (None, name)}
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
        return leaves, model.head(features)


def _seen(model: Model, x: Tensor) -> Tensor:
    """What the stages see: images, or all slices of volumes."""
    return model.slices(x).flatten(0, 1) if model.description.by_slice else x


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


def _stage(model: Model, stage: str | None) -> str:
    """The last stage whose maps are needed."""
    if stage is not None:
        return stage
    names = list(model.stages)
    last = max(names.index(name) for name in model.description.pool_from)
    return names[max(0, last - 1) if model.description.pool == "token" else last]


def _device(model: Model) -> torch.device:
    return next(model.parameters()).device


def _score(logits: Tensor, task: Task, target: int) -> Tensor:
    row = logits[0]
    if task == "classification":
        others = torch.cat([row[:target], row[target + 1 :]])
        return row[target] - torch.logsumexp(others, 0)
    if task == "ordinal":
        return row[target - 1] if target else -row[0]
    return row[target]


def _weights(gradient: Tensor, *, placewise: bool) -> Tensor:
    """Of channels, or of channels and places: so that the weighed maps' mean is what they add to the score."""
    places = gradient[0, 0].numel()
    return places * (gradient if placewise else gradient.mean(tuple(range(2, gradient.ndim)), keepdim=True))


def _plus_plus(maps: Tensor, gradient: Tensor) -> Tensor:
    """Weights of channels; the score is taken to be exponential, which makes its higher derivatives powers."""
    axes = tuple(range(2, maps.ndim))
    below = 2 * gradient**2 + (maps * gradient**3).sum(axes, keepdim=True)
    alpha = gradient**2 / (torch.where(below != 0, below, torch.ones_like(below)) + 1e-7)  # as in monai.visualize
    return (alpha * gradient.clamp(min=0)).sum(axes, keepdim=True)


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
    cases, draws : int
        How many maps were compared, each with so many draws of weights; maps in which nothing speaks for the answer
        are left out.

    Examples
    --------
    >>> Randomisation((("head", 0.7), ("stem", 0.1)), 8, 2).passes
    True
    """

    levels: tuple[tuple[str, float], ...]
    cases: int
    draws: int

    @property
    def passes(self) -> bool | None:
        """Whether the maps of a network that has learned nothing agree less than ``ALIKE``; None: none compared."""
        return self.levels[-1][1] < ALIKE if self.cases else None

    def to_record(self) -> dict[str, object]:
        """Plain JSON types."""
        levels = [[name, round(value, 4)] for name, value in self.levels]
        return {"levels": levels, "cases": self.cases, "draws": self.draws, "limit": ALIKE, "passes": self.passes}


def randomisation(
    model: Model,
    images: Sequence[Array],
    *,
    targets: Sequence[int],
    average_of: Sequence[Array] = (),
    draws: int = 2,
    seed: int = 0,
) -> Randomisation:
    """The cascading randomisation of Adebayo et al. 2018 (NeurIPS, "Sanity checks for saliency maps").

    Parameters
    ----------
    images : sequence of ndarray [channels, ...]
        Prepared images whose maps are compared.
    targets : sequence of int
        What is explained of each.
    average_of : sequence of ndarray
        Images whose average maps are taken off, those of each network by itself; none for plain maps.
    draws, seed : int
        How often weights are drawn, as an untrained network's are, and the seed.

    Examples
    --------
    >>> from medtransfer.model import load_model
    >>> model, image = load_model("random/resnet18", until="layer2"), np.random.rand(1, 64, 64).astype(np.float32)
    >>> [name for name, _ in randomisation(model, [image], targets=[1], draws=1).levels]
    ['head', 'layer2', 'layer1', 'stem']
    """

    def maps(network: Model) -> list[Array]:
        average = average_maps(network, average_of) if len(average_of) else None
        return [gradcam(network, i, target=t, average=average) for i, t in zip(images, targets, strict=True)]

    trained = maps(model)
    names, rows = ["head", *reversed(list(model.stages))], []
    for draw in range(draws):
        twin = restart(model.description, seed=seed + draw).to(_device(model))
        untrained = dict(twin.stages.items())
        for name, stage in model.stages.items():
            twin.stages[name] = stage
        for place, name in enumerate(names):
            if place:  # first the head alone
                twin.stages[name] = untrained[name]
            rows.append([alike(a, b) for a, b in zip(trained, maps(twin), strict=True) if a.any()])
    means = np.reshape(rows, (draws, len(names), -1)).mean(axis=(0, 2)) if rows and rows[0] else []
    return Randomisation(tuple(zip(names, map(float, means), strict=False)), sum(bool(m.any()) for m in trained), draws)


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
