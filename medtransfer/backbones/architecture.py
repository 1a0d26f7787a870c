"""What the package knows of a network: how it is built, where it is cut, where it begins and ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from medtransfer.errors import WeightsError

if TYPE_CHECKING:
    from torch import nn

Stages = tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class Architecture:
    """A network without its top.

    Parameters
    ----------
    name : str
        As in ``imagenet/<name>`` and ``random/<name>``.
    make : callable
        ``make(dims, channels)`` builds the whole network with random weights.
    stages : tuple of (name, paths)
        In the order data walk. A path names a module or a parameter; every tensor of the network lies
        under one of them or belongs to the top.
    top : tuple of str
        Prefixes of the tensors of the classifier or decoder, which are left behind.
    stem : str
        Path of the first convolution.
    tap : str
        Module whose input is what the last stage gives in the whole network; '' is the network's own answer.
    join : callable or None
        ``join(network, stage)`` makes a stage's module; None calls the modules one after the other.
    min_side : int
        Smallest image side the stages can take.
    dims : tuple of int
        Dimensions that ``make`` can build.
    channels : int
        Channels of the images it was thought for.
    inflatable : bool
        Whether every layer has a 3D twin that keeps the 2D answer.
    pad : str
        Path of a padding layer before the stem.
    positions : str
        The tensor of position embeddings, whose length may differ.
    source, licence : str
        Who publishes weights for it.

    Examples
    --------
    >>> from medtransfer.backbones import architecture
    >>> [stage for stage, _ in architecture("resnet18").stages]
    ['stem', 'layer1', 'layer2', 'layer3', 'layer4']
    """

    name: str
    make: Callable[[int, int], nn.Module]
    stages: Stages
    top: tuple[str, ...]
    stem: str
    tap: str
    join: Callable[[nn.Module, str], nn.Module] | None = None
    min_side: int = 32
    dims: tuple[int, ...] = (2,)
    channels: int = 3
    inflatable: bool = True
    pad: str = ""
    positions: str = ""
    source: str = "torchvision, ImageNet-1k"
    licence: str = "BSD-3-Clause"

    @property
    def has_token(self) -> bool:
        """Whether the first position of each stage's output is a class token, not a place in the image."""
        return bool(self.positions)

    def build(self, *, dims: int = 2, channels: int | None = None, init: bool = True) -> nn.Module:
        """The whole network.

        Parameters
        ----------
        dims : int
            One of ``self.dims``.
        channels : int or None
            Channels of the images; None is the architecture's own number.
        init : bool
            False leaves out the random initialisation, which takes most of the time, for a network
            that is filled from a file.
        """
        with _without_initialisation() if not init else _nothing():
            return self.make(dims, channels or self.channels)

    def owner(self, tensor: str) -> str | None:
        """The stage a tensor belongs to; None for the top's."""
        for stage, paths in self.stages:
            if any(tensor == path or tensor.startswith(f"{path}.") for path in paths):
                return stage
        return None

    def stage(self, network: nn.Module, name: str) -> nn.Module:
        """The module of one stage: takes and gives ``[n, channels, ...]``."""
        from torch import nn

        if self.join is not None:
            return self.join(network, name)
        paths = dict(self.stages)[name]
        return nn.Sequential(*(nn.ReLU() if p == "+relu" else network.get_submodule(p) for p in paths))

    def kept(self, until: str | None) -> list[str]:
        """Names of the stages up to and with ``until``.

        Raises
        ------
        WeightsError
            Where there is no such stage.
        """
        names = [name for name, _ in self.stages]
        if until is None:
            return names
        if until not in names:
            raise WeightsError(
                f"{self.name} has no stage '{until}'", got=f"stages {', '.join(names)}", fix="name one of these"
            )
        return names[: names.index(until) + 1]


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _without_initialisation() -> Iterator[None]:
    """Random draws become zeros: a network that is filled later need not be drawn first."""
    import torch
    from torch.overrides import TorchFunctionMode

    draws = (torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.erfinv_)

    class Zeros(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            return args[0].zero_() if func in draws else func(*args, **(kwargs or {}))

    with Zeros():
        yield
