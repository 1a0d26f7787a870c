"""Batch normalisation as a witness: does each convolution stand where it was trained?

Two kernels of one shape can be exchanged in a file without any name or shape showing it. The statistics that batch
normalisation stored in training still show it: on images with the spectrum of natural ones, what a convolution
gives must resemble them, channel by channel, more than what an exchanged one gives. Where a convolution changed
places together with its normalisation, the two agree with each other, but no longer with what they are fed, nor do
all layers after them: putting them back makes the whole chain resemble its statistics more.
"""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medtransfer.backbones import Architecture

_ENOUGH, _CLEARLY, _LEAST_CHANNELS, _MOST_PAIRS = 0.7, 0.4, 32, 400
_GAIN, _MEAN, _HOPELESS, _MOST_EXCHANGES = 1.0, 1.1, 0.7, 60
Place = tuple[nn.Conv2d, nn.BatchNorm2d, Tensor]


def exchanged(arch: Architecture, network: nn.Module, stages: list[str]) -> list[tuple[str, str]]:
    """Pairs of convolutions of a 2D network whose kernels seem to have changed places.

    A pair is named only where both fit clearly better in each other's place. Networks without batch
    normalisation, and those whose statistics resemble nothing, give none. Convolutions that changed places
    together with their normalisation: :func:`misplaced`.
    """
    places = _places(arch, network, stages, _probe(arch, network, 97))
    found = []
    for a, b in _alike(places)[:_MOST_PAIRS]:
        (conv_a, norm_a, x_a), (conv_b, norm_b, x_b) = places[a], places[b]
        own = _likeness(conv_a, norm_a, x_a), _likeness(conv_b, norm_b, x_b)
        if min(own) > _ENOUGH:
            continue
        kernels = _likeness(conv_b, norm_a, x_a), _likeness(conv_a, norm_b, x_b)
        if min(kernels) > _ENOUGH and all(k > m + _CLEARLY for k, m in zip(kernels, own, strict=True)):
            found.append((a, b))
    return found


def misplaced(arch: Architecture, network: nn.Module, stages: list[str]) -> tuple[str, str] | None:
    """The pair of layers or blocks of a 2D network, normalisation included, that seem to have changed places.

    Pairs of one shape are exchanged in turn, the ones first that fit each other's place best. The best one is
    named where it makes the likeness of all layers, summed, greater by 1, and their mean at least 1.1 (2 would be
    perfect): elsewhere the images of the pretraining were too unlike natural ones to tell.
    """
    x = _probe(arch, network, 65)[:2]
    places = _places(arch, network, stages, x)
    own = {path: _likeness(*place) for path, place in places.items()}

    def fits(pair: tuple[str, str]) -> float:
        (conv_a, norm_a, x_a), (conv_b, norm_b, x_b) = (places[p] for p in pair)
        crossed = _likeness(conv_b, norm_b, x_a) + _likeness(conv_a, norm_a, x_b)
        return crossed - own[pair[0]] - own[pair[1]]

    layers = sorted(_alike(places), key=fits, reverse=True)
    units: dict[str, tuple[nn.Module, ...]] = {p: place[:2] for p, place in places.items()}
    twins = _twins(network)[:_MOST_EXCHANGES]
    before, count = _chain(arch, network, stages, x)
    if before < _HOPELESS * count:  # no single exchange lowers the mean that far
        return None
    best, named = before, None
    for pair in [*twins, *layers[:_MOST_EXCHANGES]]:
        one, other = ((network.get_submodule(p),) if pair in twins else units[p] for p in pair)
        _exchange(one, other)
        after, _ = _chain(arch, network, stages, x)
        _exchange(one, other)
        if after > best:
            best, named = after, pair
    return named if best > before + _GAIN and best > _MEAN * count else None


def _twins(network: nn.Module) -> list[tuple[str, str]]:
    """Pairs of blocks, of two convolutions with normalisation or more, that hold the same layers; nearest first."""
    groups: dict[tuple[object, ...], list[str]] = {}
    seen: set[tuple[int, ...]] = set()
    for path, block in network.named_modules():
        held = tuple(id(p) for p in block.parameters())
        convs = [m for m in block.modules() if isinstance(m, nn.Conv2d)]
        norms = [m for m in block.modules() if isinstance(m, nn.BatchNorm2d)]
        if path and len(convs) > 1 and len(norms) > 1 and held not in seen:  # not again what it is all of
            seen.add(held)
            shapes = tuple((name, tuple(value.shape)) for name, value in block.state_dict().items())
            groups.setdefault((type(block), shapes, tuple(c.stride for c in convs)), []).append(path)
    pairs = [(j - i, m[i], m[j]) for m in groups.values() for i, j in combinations(range(len(m)), 2)]
    return [(a, b) for _, a, b in sorted(pairs, key=lambda pair: pair[0])]


def _exchange(a: tuple[nn.Module, ...], b: tuple[nn.Module, ...]) -> None:
    for one, other in zip(a, b, strict=True):
        tensors = ([*m.parameters(), *m.buffers()] for m in (one, other))
        for mine, theirs in zip(*tensors, strict=True):
            mine.data, theirs.data = theirs.data, mine.data


def _chain(arch: Architecture, network: nn.Module, stages: list[str], x: Tensor) -> tuple[float, int]:
    """Likeness of what every batch normalisation is fed to its statistics, summed, and how many there are."""
    found: list[float] = []

    def hook(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.BatchNorm2d)
        found.append(_resemblance(given[0], module))

    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    handles = [norm.register_forward_pre_hook(hook) for norm in norms]
    with torch.no_grad():
        for stage in stages:
            x = arch.stage(network, stage)(x)
    for handle in handles:
        handle.remove()
    return sum(found), len(found)


def _alike(places: dict[str, Place]) -> list[tuple[str, str]]:
    """Pairs of convolutions of one shape, followed by enough channels to be told apart."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for path, (conv, norm, _) in places.items():
        if norm.num_features >= _LEAST_CHANNELS:
            groups.setdefault((tuple(conv.weight.shape), conv.stride, conv.padding, conv.groups), []).append(path)
    return [pair for members in groups.values() for pair in combinations(members, 2)]


def _places(arch: Architecture, network: nn.Module, stages: list[str], x: Tensor) -> dict[str, Place]:
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


def _probe(arch: Architecture, network: nn.Module, side: int) -> Tensor:
    channels = network.get_submodule(arch.stem).weight.shape[1]  # type: ignore[union-attr, index]
    return _natural(int(channels), max(side, arch.min_side))


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
    with torch.no_grad():
        y = F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    return _resemblance(y, norm)


def _resemblance(y: Tensor, norm: nn.BatchNorm2d) -> float:
    """Correlation over channels of measured with stored variances (by rank), plus that of the means."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    y = y.transpose(0, 1).flatten(1).double()
    variances = _correlation(_ranks(y.var(1)), _ranks(norm.running_var))
    return variances + _correlation(y.mean(1), norm.running_mean.double())


def _ranks(x: Tensor) -> Tensor:
    return x.argsort().argsort().double()


def _correlation(a: Tensor, b: Tensor) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-12))
