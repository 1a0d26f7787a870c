"""Batch normalisation as a witness: does each convolution stand where it was trained?

Two kernels of one shape can be exchanged in a file without any name or shape showing it. The statistics that batch
normalisation stored in training still show it: on images with the spectrum of natural ones, what a convolution
gives must resemble them, channel by channel, more than what an exchanged one gives.
"""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medtransfer.backbones import Architecture

_ENOUGH, _CLEARLY, _LEAST_CHANNELS, _MOST_PAIRS = 0.7, 0.4, 32, 400


def exchanged(arch: Architecture, network: nn.Module, stages: list[str]) -> list[tuple[str, str]]:
    """Pairs of convolutions of a 2D network whose kernels seem to have changed places.

    A pair is named only where both fit clearly better in each other's place. Networks without batch
    normalisation, and those whose statistics resemble nothing, give none; layers that changed places
    together with their normalisation are not found.
    """
    places = _places(arch, network, stages)
    groups: dict[tuple[object, ...], list[str]] = {}
    for path, (conv, norm, _) in places.items():
        if norm.num_features >= _LEAST_CHANNELS:
            groups.setdefault((tuple(conv.weight.shape), conv.stride, conv.padding, conv.groups), []).append(path)
    pairs = [pair for members in groups.values() for pair in combinations(members, 2)][:_MOST_PAIRS]
    found = []
    for a, b in pairs:
        (conv_a, norm_a, x_a), (conv_b, norm_b, x_b) = places[a], places[b]
        own = _likeness(conv_a, norm_a, x_a), _likeness(conv_b, norm_b, x_b)
        if min(own) > _ENOUGH:
            continue
        kernels = _likeness(conv_b, norm_a, x_a), _likeness(conv_a, norm_b, x_b)
        if min(kernels) > _ENOUGH and all(k > m + _CLEARLY for k, m in zip(kernels, own, strict=True)):
            found.append((a, b))
    return found


def _places(
    arch: Architecture, network: nn.Module, stages: list[str]
) -> dict[str, tuple[nn.Conv2d, nn.BatchNorm2d, Tensor]]:
    """Each convolution that batch normalisation follows, with its input on synthetic images."""
    network.eval()
    modules = dict(network.named_modules())
    inputs: dict[str, Tensor] = {}
    produced: dict[int, tuple[str, Tensor]] = {}  # the tensors are held, so that no other gets their number
    pairs: dict[str, str] = {}
    handles = []

    def watch(path: str) -> None:
        def conv_hook(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            inputs[path] = given[0].clone()  # later layers may write into it
            produced[id(output)] = path, output

        def norm_hook(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            if id(given[0]) in produced:
                pairs[produced[id(given[0])][0]] = path

        module = modules[path]
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(conv_hook))
        else:
            handles.append(module.register_forward_pre_hook(norm_hook))

    for path, module in modules.items():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            watch(path)
    channels = network.get_submodule(arch.stem).weight.shape[1]  # type: ignore[union-attr, index]
    x = _natural(int(channels), max(97, arch.min_side))
    with torch.no_grad():
        for stage in stages:
            x = arch.stage(network, stage)(x)
    for handle in handles:
        handle.remove()
    found = {}
    for conv, norm in pairs.items():
        one, two = modules[conv], modules[norm]
        if isinstance(one, nn.Conv2d) and isinstance(two, nn.BatchNorm2d):
            found[conv] = (one, two, inputs[conv])
    return found


def _natural(channels: int, side: int) -> Tensor:
    """Four images whose spectrum falls as in photographs, mostly grey, standardised."""
    generator = torch.Generator().manual_seed(0)
    frequency = torch.fft.fftfreq(side)
    distance = (frequency[:, None] ** 2 + frequency[None] ** 2).sqrt()
    distance[0, 0] = 1 / side
    noise = torch.randn(4, channels, side, side, generator=generator)
    image = torch.fft.ifft2(torch.fft.fft2(noise) / distance).real
    image = image.mean(1, keepdim=True) + 0.3 * image
    found: Tensor = image / image.std((2, 3), keepdim=True)
    return found


def _likeness(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor) -> float:
    """Correlation over channels of measured with stored variances (by rank), plus that of the means."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        y = F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)
        y = y.transpose(0, 1).flatten(1).double()
        variances = _correlation(_ranks(y.var(1)), _ranks(norm.running_var))
        return variances + _correlation(y.mean(1), norm.running_mean.double())


def _ranks(x: Tensor) -> Tensor:
    return x.argsort().argsort().double()


def _correlation(a: Tensor, b: Tensor) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-12))
