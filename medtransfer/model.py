"""A model is a backbone cut into stages, pooled, with a new head on top."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from medtransfer.adapt import Depth, Receipt, check, fold_stem, inflate, kept_stages
from medtransfer.backbones import Architecture, architecture, find
from medtransfer.errors import WeightsError
from medtransfer.weights import read_tensors

Pool = Literal["mean", "mean_std"]
Triple = tuple[float, float, float]


class Head(BaseModel):
    """The new top: dense layers, each followed by batch normalisation, ReLU and dropout as asked, then the classes.

    Parameters
    ----------
    hidden : tuple of int
        Widths of dense layers before the last one; none makes a linear head.
    dropout : float
        Share of the inputs of every dense layer that is dropped in training.
    batchnorm : bool
        Normalise after every hidden layer.

    Examples
    --------
    >>> Head(hidden=(256,), dropout=0.5).hidden
    (256,)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden: tuple[Annotated[int, Field(ge=1)], ...] = ()
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    batchnorm: bool = False

    def build(self, width: int, classes: int) -> nn.Sequential:
        """The layers from ``width`` features to ``classes`` logits."""
        layers: list[nn.Module] = []
        for size in self.hidden:
            layers += [nn.Dropout(self.dropout)] if self.dropout else []
            layers += [nn.Linear(width, size)]
            layers += [nn.BatchNorm1d(size)] if self.batchnorm else []
            layers += [nn.ReLU()]
            width = size
        layers += [nn.Dropout(self.dropout)] if self.dropout else []
        last = nn.Linear(width, classes)
        nn.init.normal_(last.weight, std=0.01)
        nn.init.zeros_(last.bias)
        return nn.Sequential(*layers, last)


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

    def to_json(self) -> str:
        """As stored in a checkpoint's header."""
        return json.dumps({**self.__dict__, "head": self.head.model_dump()}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Description:
        """Read what :meth:`to_json` wrote."""
        values = json.loads(text)
        values |= {k: tuple(values[k]) for k in ("pool_from", "mean", "std")}
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
        self.head = description.head.build(width, description.classes)
        self.trained: frozenset[str] = frozenset()
        self.frozen_norms = True
        self.train_only(())

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
        """Pooled features ``[n, width]`` of images ``[n, channels, ...]`` in [0, 1]."""
        return self.walk(x, list(self.stages))[0]

    def walk(self, x: Tensor, names: Iterable[str]) -> tuple[Tensor, Tensor]:
        """Through some stages in a row: what is pooled on the way, ``[n, width]``, and what comes out of the last."""
        pooled = [x.new_zeros(len(x), 0)]
        for name in names:
            with torch.set_grad_enabled(torch.is_grad_enabled() and self._learns_until(name)):
                x = self.stages[name](x)
            if name in self.description.pool_from:
                flat = x.flatten(2)
                pooled.append(flat.mean(2))
                if self.description.pool == "mean_std":
                    pooled.append(flat.std(2, correction=0))
        return torch.cat(pooled, 1), x

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


def load_model(
    weights: str,
    *,
    dims: Literal[2, 3] = 2,
    in_channels: int = 1,
    classes: int = 2,
    head: Head | None = None,
    arch: str | None = None,
    mean: Triple | None = None,
    std: Triple | None = None,
    until: str | None = None,
    allow_new: Sequence[str] = (),
    pool_from: Sequence[str] | None = None,
    pool: Pool = "mean",
    depth: Depth = "centre",
    seed: int = 0,
) -> Model:
    """Load pretrained weights, take the top off, adapt the stem, and add a new head.

    Parameters
    ----------
    weights : str
        ``imagenet/resnet50``, a name given at ``weights import``, ``random/resnet18``, or the path of a
        weights file, which needs ``arch``, ``mean`` and ``std`` beside it.
    dims : {2, 3}
        3 inflates every layer (see ``depth``).
    in_channels, classes : int
        Channels of the prepared images, classes of the cohort.
    head : Head or None
        The new top; None is one linear layer.
    until : str or None
        Last stage to keep, for example ``'layer3'``: earlier cuts are smaller, faster and less specific.
    allow_new : sequence of str
        Stages, or prefixes of tensors, that the file may lack; they start untrained.
    pool_from : sequence of str or None
        Stages whose pooled outputs are the features; None takes the last one.
    pool : {'mean', 'mean_std'}
        Average over all positions, or average and standard deviation.
    depth : {'centre', 'mean'}
        Where inflation puts a 2D kernel along the depth.
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
    kept = kept_stages(wanted, until)
    pool_from = tuple(pool_from) if pool_from else (kept[-1],)
    if unknown := set(pool_from) - set(kept):
        raise WeightsError(f"there is no stage '{sorted(unknown)[0]}' to pool from", got=f"stages {', '.join(kept)}")
    if dims == 3 and not wanted.inflatable:
        raise WeightsError(f"{wanted.name} cannot be inflated to 3D", fix="choose another network, such as resnet18")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = wanted.build()
        receipt = Receipt(new=tuple(network.state_dict()))
        if record.file is not None:
            tensors = read_tensors(record.file)
            receipt = check(network, tensors, wanted, until=until, allow_new=tuple(allow_new), where=record.name)
            network.load_state_dict(network.state_dict() | {k: tensors[k] for k in receipt.loaded})
        description = Description(
            wanted.name,
            dims,
            in_channels,
            classes,
            head or Head(),
            until,
            pool_from,
            pool,
            depth,
            record.mean,
            record.std,
            record.to_record(),
        )
        return _assemble(description, network, receipt)


def rebuild(description: Description) -> Model:
    """The same network with untrained weights, ready to take a checkpoint's tensors."""
    return _assemble(description, architecture(description.arch).build(), None)


def restart(description: Description, *, seed: int) -> Model:
    """The same network without any pretraining: what every stage would be from scratch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return rebuild(description)


def _assemble(description: Description, network: nn.Module, receipt: Receipt | None) -> Model:
    arch = architecture(description.arch)
    changed = (
        [(n, f"kernel inflated ({description.depth})") for n in inflate(network, description.depth)]
        if (description.dims == 3)
        else []
    )
    changed.append(fold_stem(network, description.mean, description.std, description.in_channels))
    if receipt is not None:
        names = {n for n, _ in changed} & set(receipt.loaded)
        reshaped = tuple(dict((n, how) for n, how in changed if n in names).items())
        receipt = Receipt(tuple(n for n in receipt.loaded if n not in names), reshaped, receipt.new, receipt.unused)
        description = Description(**{**description.__dict__, "receipt": receipt.to_record()})
    stages = {
        name: _stage(network, paths) for name, paths in arch.stages if name in kept_stages(arch, description.until)
    }
    return Model(description, stages, _width(stages, arch, description))


def _stage(network: nn.Module, paths: tuple[str, ...]) -> nn.Module:
    return nn.Sequential(*(nn.ReLU() if p == "+relu" else network.get_submodule(p) for p in paths))


def _width(stages: dict[str, nn.Module], arch: Architecture, description: Description) -> int:
    """Features after pooling, found by sending one empty image through."""
    x, width = torch.zeros(1, description.in_channels, *[arch.min_side] * description.dims), 0
    with torch.no_grad():
        for name, stage in stages.items():
            x = stage.eval()(x)
            width += x.shape[1] * (name in description.pool_from)
    return width * (2 if description.pool == "mean_std" else 1)
