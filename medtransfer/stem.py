"""The first convolution for other channels than three, with the pretraining normalisation inside."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from medtransfer.backbones import Architecture
from medtransfer.errors import WeightsError
from medtransfer.volume import ACSConv3d


class FoldedStem(nn.Module):
    """A first convolution that takes values in [0, 1] and has the pretraining normalisation inside.

    With kernel ``W``, mean ``m`` and deviation ``s`` of the pretraining, ``W * ((x - m) / s)`` equals
    ``(W / s) * x + (-sum W m / s) * 1`` where ``1`` is an image of ones. The second kernel is added as
    one more input channel, so that zero padding acts as in the original, borders included.

    One channel gets the sum of the colour kernels: a gray image gives what its three-channel replica
    gives the original. With n channels, where the original has another number, each gets the n-th part
    of that sum, so that n equal channels give what the gray image gives.

    Parameters
    ----------
    original : Conv2d, Conv3d or ACSConv3d
    mean, std : tuple of float
        One value for each of its channels.
    in_channels : int
        Channels of the images to come.
    pad : Module or None
        A padding layer that the original network has before it.
    """

    def __init__(
        self,
        original: nn.Module,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        in_channels: int,
        pad: nn.Module | None = None,
    ) -> None:
        super().__init__()
        assert isinstance(original, nn.Conv2d | nn.Conv3d | ACSConv3d)
        weight = original.weight.detach().double()
        m, s = (torch.tensor(v, dtype=torch.float64).reshape(1, -1, *[1] * (weight.ndim - 2)) for v in (mean, std))
        scaled = weight / s
        constant = -(scaled * m).sum(1, keepdim=True)
        if in_channels != weight.shape[1]:
            scaled = torch.cat([scaled.sum(1, keepdim=True)] * in_channels, 1) / in_channels
        self.conv = copy.deepcopy(original)
        self.conv.in_channels = in_channels + 1
        self.conv.weight = nn.Parameter(torch.cat([scaled, constant], 1).to(original.weight.dtype))
        self.pad = nn.Identity() if pad is None else pad

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.pad(torch.cat([x, torch.ones_like(x[:, :1])], 1)))  # type: ignore[no-any-return]


def fold_stem(
    network: nn.Module, arch: Architecture, mean: tuple[float, ...], std: tuple[float, ...], in_channels: int
) -> tuple[str, str]:
    """Replace the network's first convolution by a :class:`FoldedStem`; the tensor's name and what was done."""
    first = network.get_submodule(arch.stem)
    assert isinstance(first, nn.Conv2d | nn.Conv3d | ACSConv3d)
    pad = None
    if arch.pad:
        pad = network.get_submodule(arch.pad)
        _put(network, arch.pad, nn.Identity())
    channels = first.weight.shape[1]
    _put(network, arch.stem, FoldedStem(first, _each(mean, channels), _each(std, channels), in_channels, pad))
    how = "kernels kept" if in_channels == channels else f"{channels} kernels summed for {in_channels} channel(s)"
    return f"{arch.stem}.weight", f"{how}, normalisation folded in"


def _put(network: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, child = path.rpartition(".")
    setattr(network.get_submodule(parent), child, module)


def _each(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """A normalisation with one value a channel, where all are equal or their number is right."""
    if len(values) == channels:
        return values
    if len(set(values)) == 1:
        return values[:1] * channels
    raise WeightsError(
        f"the pretraining had {channels} channel(s)",
        where="mean, std",
        got=f"{len(values)} values",
        fix="one a channel",
    )
