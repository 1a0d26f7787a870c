"""A model is a backbone cut into stages, pooled, with a new head on top."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, cast

import torch
from torch import Tensor, nn

from medtransfer.adapt import Native, Receipt, load, skeleton
from medtransfer.backbones import Architecture, architecture
from medtransfer.backbones.sources import find
from medtransfer.backbones.tokens import laid_out
from medtransfer.checkpoints import read_tensors
from medtransfer.errors import WeightsError
from medtransfer.heads import Head, average
from medtransfer.memory import lonely, through
from medtransfer.predictions import Task
from medtransfer.stem import fold_stem
from medtransfer.volume import Inflation, inflate

__all__ = ["Description", "Head", "Model", "load_model", "rebuild", "restart"]

Pool = Literal["mean", "mean_std", "token"]
Depth = Literal["centre", "mean", "acs", "slices", "neighbours"]
Triple = tuple[float, float, float]
_SLICES_AT_ONCE = 32


@dataclass(frozen=True)
class Description:
    """Everything needed to build a model again, and where its weights came from; plain types when dumped."""

    arch: str
    dims: int
    in_channels: int
    classes: int
    head: Head
    until: str | None
    pool_from: tuple[str, ...]
    pool: Pool
    depth: Depth
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights: dict[str, object] = field(default_factory=dict)
    receipt: dict[str, object] = field(default_factory=dict)
    task: Task = "classification"
    flat_until: str | None = None
    native: Native = (2, 3, 0)

    @property
    def by_slice(self) -> bool:
        """Whether a volume is seen slice by slice."""
        return self.dims == 3 and self.depth in ("slices", "neighbours")

    def to_json(self) -> str:
        """As stored in a checkpoint's header."""
        return json.dumps({**self.__dict__, "head": self.head.model_dump()}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Description:
        """Read what :meth:`to_json` wrote."""
        values = json.loads(text)
        values |= {k: tuple(values[k]) for k in ("pool_from", "mean", "std", "native") if k in values}
        return cls(**{**values, "head": Head(**values["head"])})


class Model(nn.Module):
    """Stages, pooling and head; made by :func:`load_model`.

    ``trained`` names the stages that learn. All others are frozen: no gradients, and their batch
    normalisation and dropout stay in evaluation whatever ``train()`` is told.
    """

    def __init__(self, description: Description, stages: dict[str, nn.Module], width: int) -> None:
        super().__init__()
        self.description = description
        self.stages = nn.ModuleDict(stages)
        self.width = width
        self.head = description.head.build(width, description.classes, description.task)
        self.trained: frozenset[str] = frozenset()
        self.frozen_norms, self.recompute = True, False  # recompute: keep less for the gradient, compute it again
        self.train_only(())

    @property
    def linear(self) -> bool:
        """Whether the head is one linear layer on pooled features."""
        d = self.description.head
        return not d.hidden and not d.attention

    def train_only(self, stages: Iterable[str], *, frozen_norms: bool = True) -> Model:
        """Let these stages and the head learn, freeze the rest.

        Parameters
        ----------
        frozen_norms : bool
            Keep the statistics of batch normalisation as pretrained in the stages that learn too;
            batches of a small set would spoil them.
        """
        self.trained, self.frozen_norms = frozenset(stages), frozen_norms
        if unknown := self.trained - set(self.stages):
            raise WeightsError(f"there is no stage '{sorted(unknown)[0]}'", got=f"stages {', '.join(self.stages)}")
        for name, stage in self.stages.items():
            stage.requires_grad_(name in self.trained)
        return self.train(self.training)

    def train(self, mode: bool = True) -> Model:
        super().train(mode)
        for name, stage in self.stages.items():
            if name not in self.trained:
                stage.eval()
            elif self.frozen_norms:
                for module in stage.modules():
                    if isinstance(module, nn.modules.batchnorm._BatchNorm):
                        module.eval()
        return self

    def features(self, x: Tensor) -> Tensor:
        """Pooled features ``[n, width]`` of images ``[n, channels, ...]`` in [0, 1].

        Bags are ``[n, channels, images, ...]``, absent images NaN. Where the head's attention weighs slices or
        images: ``[n, slices, width]``.
        """
        if not self.in_pieces(x):
            return self._pooled(x)
        slices = self.slices(x)
        flat = slices.flatten(0, 1)
        there = ~flat.flatten(1)[:, 0].isnan()
        flat = flat[there]
        step = len(flat) if torch.is_grad_enabled() and self.trained else _SLICES_AT_ONCE
        found = torch.cat([self._pooled(flat[i : i + step]) for i in range(0, len(flat), step)])
        rows = found.new_full((len(there), found.shape[1]), torch.nan)
        found = rows.index_copy(0, there.nonzero()[:, 0], found).reshape(*slices.shape[:2], -1)
        return found if self.description.head.attention > 0 else average(found)

    def in_pieces(self, x: Tensor) -> bool:
        """Whether images are seen piece by piece: a volume by its slices, or the images of a bag."""
        return self.description.by_slice or x.ndim == self.description.dims + 3

    def slices(self, x: Tensor) -> Tensor:
        """Volumes ``[n, channels, slices, ...]`` as images ``[n, slices, channels, ...]``; the same with bags.

        Images that are not a number are absent. With ``depth='neighbours'`` the slices before and after stand
        beside each one as colours do: three times the channels. End slices are their own neighbours.
        """
        if self.description.depth == "neighbours":
            before, after = (torch.cat(p, 2) for p in ((x[:, :, :1], x[:, :, :-1]), (x[:, :, 1:], x[:, :, -1:])))
            x = torch.cat([before, x, after], 1)
        return x.transpose(1, 2)

    def _pooled(self, x: Tensor) -> Tensor:
        return self.walk(x, list(self.stages))[0]

    def walk(self, x: Tensor, names: Iterable[str]) -> tuple[Tensor, Tensor]:
        """Through some stages in a row: what is pooled on the way, ``[n, width]``, and what comes out of the last."""
        if lonely(x):
            features, x = self.walk(torch.cat([x, x]), names)
            return features[:1], x[:1]
        pooled = [x.new_zeros(x.shape[0], 0)]
        for name in names:
            with torch.set_grad_enabled(torch.is_grad_enabled() and self._learns_until(name)):
                x = through(self.stages[name], x, again=self.recompute and name in self.trained)
            if name in self.description.pool_from:
                pooled.append(self.pool(x))
        return torch.cat(pooled, 1), x

    def pool(self, maps: Tensor) -> Tensor:
        """Features ``[n, width]`` of a stage's maps ``[n, channels, ...]`` (tokens of a transformer)."""
        return torch.cat(_pool(maps, self.description.pool, architecture(self.description.arch).has_token), 1)

    def maps(self, x: Tensor, stage: str) -> Tensor:
        """Feature maps ``[n, width, ...]`` after a stage; tokens of a transformer are laid out as the image they cover.

        Volumes that are seen slice by slice give ``[n * slices, width, ...]``.
        """
        if self.in_pieces(x):
            x = self.slices(x).flatten(0, 1)
        shape = x.shape[2:]
        for name, module in self.stages.items():
            x = module(x)
            if name == stage:
                break
        else:
            raise WeightsError(f"there is no stage '{stage}'", got=f"stages {', '.join(self.stages)}")
        if architecture(self.description.arch).has_token:
            x = laid_out(x, shape)
        return x

    def _learns_until(self, name: str) -> bool:
        names = list(self.stages)
        return any(n in self.trained for n in names[: names.index(name) + 1])

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[n, classes]`` of images ``[n, channels, ...]`` in [0, 1]."""
        return self.head(self.features(x))  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        d = self.description
        count = sum(p.numel() for p in self.parameters())
        return (
            f"Model({d.weights.get('name', d.arch)}, {d.dims}D, {d.in_channels} channel(s), {d.classes} classes, "
            f"stages {' > '.join(self.stages)}, {self.width} features, {count / 1e6:.1f} M parameters)"
        )


def _pool(x: Tensor, pool: Pool, has_token: bool) -> list[Tensor]:
    flat = x.flatten(2)
    if pool == "token":
        return [flat[:, :, 0]]
    flat = flat[:, :, 1:] if has_token else flat
    return [flat.mean(2), flat.std(2, correction=0)] if pool == "mean_std" else [flat.mean(2)]


def load_model(
    weights: str,
    *,
    dims: Literal[2, 3] = 2,
    in_channels: int = 1,
    classes: int = 2,
    task: Task = "classification",
    head: Head | None = None,
    arch: str | None = None,
    mean: Triple | tuple[float] | None = None,
    std: Triple | tuple[float] | None = None,
    until: str | None = None,
    allow_new: Sequence[str] = (),
    pool_from: Sequence[str] | None = None,
    pool: Pool | None = None,
    depth: Depth = "centre",
    flat_until: str | None = None,
    seed: int = 0,
) -> Model:
    """Load pretrained weights, take the top off, adapt the stem, and add a new head.

    Parameters
    ----------
    weights : str
        ``imagenet/resnet50``, a name given at ``weights import``, ``random/resnet18``, or the path of a
        weights file, which needs ``arch``, ``mean`` and ``std`` beside it.
    dims : {2, 3}
        3 takes 2D weights into 3D (see ``depth``); 3D weights are taken as they are.
    in_channels, classes : int
        Channels of the prepared images; classes, labels or targets of the cohort.
    task : {'classification', 'multilabel', 'ordinal', 'regression'}
        One of several classes; any of several labels; classes in order; numbers. See :func:`losses.losses`.
    head : Head or None
        The new top; None is one linear layer.
    arch : str or None
        Architecture of a weights file.
    mean, std : tuple of float or None
        Normalisation of a weights file's pretraining on values in [0, 1], one value or one a channel.
    until : str or None
        Last stage to keep, for example ``'layer3'``: earlier cuts are smaller, faster and less specific.
    allow_new : sequence of str
        Stages, or prefixes of tensors, that the file may lack; they start untrained.
    pool_from : sequence of str or None
        Stages whose pooled outputs are the features; None takes the last one.
    pool : {'mean', 'mean_std', 'token'} or None
        Average over all positions, average and standard deviation, or a transformer's class token; None takes
        the token where there is one, else the average.
    depth : {'centre', 'mean', 'acs', 'slices', 'neighbours'}
        How 2D weights see a volume. ``centre`` and ``mean`` inflate every kernel, ``acs`` looks in three planes
        with the kernels as they are (:mod:`medtransfer.volume`). ``slices`` sends each slice through the 2D
        network, ``neighbours`` each with the ones beside it as colours (2.5D); their features are averaged, or
        weighed by the head's ``attention``. Both need far less memory in training.
    flat_until : str or None
        Last stage that stays flat under inflation (kernels 1 deep, no stride along the depth), for thick slices.
    seed : int
        Of everything that starts untrained.

    Raises
    ------
    WeightsError
        Where weights are not at hand, damaged, or do not fit.

    Examples
    --------
    >>> model = load_model("random/resnet18", until="layer2")
    >>> model(torch.zeros(1, 1, 64, 64)).shape
    torch.Size([1, 2])
    """
    record = find(weights, arch=arch, mean=mean, std=std)
    wanted = architecture(record.arch)
    if arch is not None and architecture(arch).name != record.arch:
        raise WeightsError(f"'{weights}' is a {record.arch}", got=f"arch: {arch}", fix="leave arch out")
    kept = wanted.kept(until)
    pool_from = tuple(pool_from) if pool_from else (kept[-1],)
    if unknown := set(pool_from) - set(kept):
        raise WeightsError(f"there is no stage '{sorted(unknown)[0]}' to pool from", got=f"stages {', '.join(kept)}")
    if pool == "token" and not wanted.has_token:
        raise WeightsError(f"{wanted.name} has no class token", where="model.pool", fix="pool: mean")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if record.file is None:
            native: Native = (dims if dims in wanted.dims and depth not in ("slices", "neighbours") else 2, 0, 0)
            native = (native[0], wanted.channels, 0)
            network = skeleton(wanted, native)
            receipt = Receipt(new=tuple(network.state_dict()))
        else:
            tensors = read_tensors(record.file)
            network, native, receipt = load(
                wanted,
                tensors,
                until=until,
                allow_new=tuple(allow_new),
                where=record.name,
                foreign=record.name.startswith("file/"),
            )
        description = Description(
            wanted.name,
            dims,
            in_channels,
            classes,
            head or Head(),
            until,
            pool_from,
            pool or ("token" if wanted.has_token else "mean"),
            depth,
            record.mean,
            record.std,
            record.to_record(),
            task=task,
            flat_until=flat_until,
            native=native,
        )
        return _assemble(description, network, receipt)


def rebuild(description: Description) -> Model:
    """The same network with untrained weights, ready to take a checkpoint's tensors."""
    return _assemble(description, skeleton(architecture(description.arch), description.native), None)


def restart(description: Description, *, seed: int) -> Model:
    """The same network without any pretraining: what every stage would be from scratch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return rebuild(description)


def _assemble(description: Description, network: nn.Module, receipt: Receipt | None) -> Model:
    d, arch = description, architecture(description.arch)
    changed = [(n, f"kernel inflated ({d.depth})") for n in _deepen(network, arch, d)]
    colours = 3 if d.by_slice and d.depth == "neighbours" else 1
    changed.append(fold_stem(network, arch, d.mean, d.std, d.in_channels * colours))
    if receipt is not None:
        names = {n for n, _ in changed} & {*receipt.loaded, *(n for n, _ in receipt.reshaped)}
        reshaped = dict(receipt.reshaped) | {n: how for n, how in changed if n in names}
        kept = tuple(n for n in receipt.loaded if n not in names)
        receipt = replace(receipt, loaded=kept, reshaped=tuple(reshaped.items()))
        description = Description(**{**d.__dict__, "receipt": receipt.to_record()})
    stages = {name: arch.stage(network, name) for name in arch.kept(d.until)}
    return Model(description, stages, _width(stages, arch, description))


def _deepen(network: nn.Module, arch: Architecture, d: Description) -> list[str]:
    """Take 2D layers into 3D where the description asks for it."""
    if d.dims == d.native[0]:
        if d.flat_until is not None:
            raise WeightsError(
                "flat stages are made by inflation", where="model.flat_until", got="weights that are not inflated",
                fix="leave flat_until out",
            )  # fmt: skip
        return []
    if d.native[0] == 3:
        raise WeightsError(
            "these weights are of a 3D network", where="model.dims", got=f"dims: {d.dims}", fix="dims: 3"
        )
    if d.by_slice:
        return []
    if not arch.inflatable:
        raise WeightsError(
            f"{arch.name} cannot be inflated to 3D",
            where="model.depth",
            got=d.depth,
            fix="depth: slices, or another network, such as resnet18",
        )
    flat: tuple[str, ...] = ()
    if d.flat_until is not None:
        arch.kept(d.flat_until)
        flat = tuple(p for stage, paths in arch.stages if stage in arch.kept(d.flat_until) for p in paths)
    return inflate(network, cast(Inflation, d.depth), flat=flat)


def _width(stages: dict[str, nn.Module], arch: Architecture, d: Description) -> int:
    """Features after pooling, found by sending one empty image through."""
    colours = 3 if d.by_slice and d.depth == "neighbours" else 1
    x = torch.zeros(1, d.in_channels * colours, *[arch.min_side] * (2 if d.by_slice else d.dims))
    width = 0
    with torch.no_grad():
        for name, stage in stages.items():
            x = stage.eval()(x)
            width += x.shape[1] * (name in d.pool_from)
    return width * (2 if d.pool == "mean_std" else 1)
