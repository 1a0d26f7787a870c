"""Exactness certificates: an adapted network against the original it came from, in float64."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medtransfer.adapt import load, skeleton
from medtransfer.backbones import Architecture, architecture
from medtransfer.backbones.sources import find
from medtransfer.checkpoints import read_tensors
from medtransfer.errors import WeightsError
from medtransfer.stem import fold_stem
from medtransfer.volume import ACSConv3d, Inflation, inflate

LIMIT = 1e-5


@dataclass(frozen=True)
class Certificate:
    """How far an adapted network is from its original.

    Parameters
    ----------
    name : str
        The weights, or 'seeded tensors' where none are at hand: the certificate is about the arithmetic.
    claim : str
        What is equal to what.
    error : float
        Largest difference, relative to the largest value.
    limit : float
        What is allowed.
    """

    name: str
    claim: str
    error: float
    limit: float = LIMIT

    @property
    def holds(self) -> bool:
        """Whether the error is within the limit."""
        return self.error <= self.limit

    def __str__(self) -> str:
        return (
            f"{'holds' if self.holds else 'FAILS'}  {self.error:8.1e} (limit {self.limit:g})  {self.name}: {self.claim}"
        )


def certify(name: str, *, seed: int = 0, side: int | None = None) -> list[Certificate]:
    """Check that a backbone, adapted to gray images and to volumes, computes what the original does.

    Parameters
    ----------
    name : str
        Weights or an architecture; where the weights are not on this machine, seeded random tensors stand in.
    side : int or None
        Side of the test images in pixels.

    Returns
    -------
    list of Certificate
        Gray images, and where the network can be inflated: a stack constant in depth under ``centre`` and
        ``mean``; each ACS layer on the slices of its plane; and the whole ACS network on a volume against the
        3D network whose kernels are zero but for their middle plane.
    """
    arch, network, mean, std, label = _original(name, seed)
    own = 224 if arch.has_token else 2 * arch.min_side + 1 if arch.min_side == 32 else arch.min_side
    side = side or own
    generator = torch.Generator().manual_seed(seed)
    found, whole = [], copy.deepcopy(network)
    for dims in arch.dims:
        made = network if dims == arch.dims[0] else _filled(arch, dims, seed)
        extent = (side,) * 2 if dims == 2 else (96 if arch.has_token else max(arch.min_side, 33),) * 3
        gray = torch.rand(1, 1, *extent, generator=generator, dtype=torch.float64)
        found.append(_gray(arch, made, mean, std, gray, label, dims))
    if arch.inflatable:
        small = max(arch.min_side, 33)
        flat = torch.rand(1, arch.channels, small, small, generator=generator, dtype=torch.float64)
        for how in ("centre", "mean"):
            found.append(_constant_stack(arch, whole, how, flat, label))
        found.append(_acs(arch, whole, flat, label))
        volume = torch.rand(1, arch.channels, small, small + 4, small + 2, generator=generator, dtype=torch.float64)
        found.append(_acs_whole(arch, whole, volume, label))
    return found


def _original(name: str, seed: int) -> tuple[Architecture, nn.Module, tuple[float, ...], tuple[float, ...], str]:
    """The network, in 2D where it can be, in float64 with the named weights, or with seeded tensors."""
    plain = "/" not in name
    try:
        record = find(f"imagenet/{architecture(name).name}" if plain else name)
    except WeightsError:
        arch = architecture(name.partition("/")[2] if not name.startswith("timm/") and not plain else name)
        record = find(f"random/{arch.name}")
    arch = architecture(record.arch)
    if record.file is not None:
        network, native, _ = load(arch, read_tensors(record.file), allow_new=tuple(s for s, _ in arch.stages))
        if native[0] == arch.dims[0] and native[1] == arch.channels:
            return arch, network.double().eval(), record.mean, record.std, record.name
    mean, std = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) if arch.channels == 3 else ((0.4,), (0.25,))
    return arch, _filled(arch, arch.dims[0], seed), mean, std, f"{arch.name}, seeded tensors"


def _filled(arch: Architecture, dims: int, seed: int) -> nn.Module:
    network = skeleton(arch, (dims, arch.channels, 0), init=False).double().eval()
    fill(network, seed)
    return network


def fill(network: nn.Module, seed: int = 0) -> None:
    """Fill a network with seeded tensors of the size that training gives, statistics included; quick."""
    generator = torch.Generator().manual_seed(seed)
    pool = torch.randn(1 << 18, generator=generator, dtype=torch.float64)
    start = 0
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if not value.is_floating_point() or name.endswith("relative_coords_table"):
                continue
            start = (start + 7919) % len(pool)
            noise = pool.roll(-start)[: value.numel()] if value.numel() <= len(pool) else None
            if noise is None:
                noise = pool.repeat(-(-value.numel() // len(pool)))[: value.numel()]
            noise = noise.to(value.dtype).reshape(value.shape)
            if name.endswith("running_var"):
                value.copy_(1 + 0.5 * noise.tanh())
            elif value.ndim > 1:
                fan = value[0].numel()
                value.copy_(noise * (2 / fan) ** 0.5)
            else:
                value.copy_(0.1 * noise if name.endswith(("bias", "running_mean")) else 1 + 0.1 * noise)


class _Caught(Exception):
    def __init__(self, value: Tensor) -> None:
        self.value = value


def answer(arch: Architecture, network: nn.Module, x: Tensor) -> Tensor:
    """What the untouched network hands to its classifier, from its own forward pass, pooled to ``[n, width]``."""

    def catch(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        raise _Caught(inputs[0])

    with torch.no_grad():
        if not arch.tap:
            value = network(x)
        else:
            handle = network.get_submodule(arch.tap).register_forward_pre_hook(catch)
            try:
                network(x)
                raise WeightsError(f"the forward pass of {arch.name} does not reach {arch.tap}")
            except _Caught as caught:
                value = caught.value
            finally:
                handle.remove()
    assert isinstance(value, Tensor)
    return value if value.ndim == 2 else _reduced(arch, value)


def _run(arch: Architecture, network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        for stage, _ in arch.stages:
            x = arch.stage(network, stage)(x)
    return _reduced(arch, x)


def _reduced(arch: Architecture, x: Tensor) -> Tensor:
    """The class token, or the average over all positions."""
    return x[:, :, 0] if arch.has_token else x.flatten(2).mean(2)


def _relative(found: Tensor, wanted: Tensor) -> float:
    if found.shape != wanted.shape or not bool(found.isfinite().all()):
        return float("inf")
    error, scale = float((found - wanted).abs().max()), float(wanted.abs().max())
    return error / scale if scale > 0 else 0.0 if error == 0 else float("inf")


def _gray(
    arch: Architecture, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], gray: Tensor, label: str,
    dims: int,
) -> Certificate:  # fmt: skip
    m, s = (torch.tensor(v, dtype=torch.float64).reshape(1, -1, *[1] * dims) for v in (mean, std))
    wanted = answer(arch, network, (gray.expand(-1, arch.channels, *gray.shape[2:]) - m) / s)
    fold_stem(network, arch, mean, std, 1)
    found = _run(arch, network, gray)
    side = " x ".join(str(n) for n in gray.shape[2:])
    colours = "its three-channel replica" if arch.channels == 3 else "its normalised self"
    return Certificate(label, f"a gray {side} image in [0, 1] gives what {colours} gives", _relative(found, wanted))


def _deep(network: nn.Module, how: Inflation) -> nn.Module:
    deep = copy.deepcopy(network)
    inflate(deep, how)
    return deep


def _constant_stack(arch: Architecture, flat: nn.Module, how: Inflation, image: Tensor, label: str) -> Certificate:
    deep = _deep(flat, how)
    worst = 0.0
    x, y = image, image[:, :, None].expand(-1, -1, 32, -1, -1)
    with torch.no_grad():
        for stage, _ in arch.stages:
            x, y = arch.stage(flat, stage)(x), arch.stage(deep, stage)(y)
            worst = max(worst, _relative(y, x[:, :, None].expand_as(y)))
    return Certificate(
        label, f"inflated ({how}), a stack constant in depth gives the 2D maps, every stage and slice", worst
    )


def _acs(arch: Architecture, flat: nn.Module, image: Tensor, label: str) -> Certificate:
    deep = _deep(flat, "acs")
    originals = dict(flat.named_modules())
    errors: list[float] = []

    def compare(path: str) -> None:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            original = originals[path]
            assert isinstance(module, ACSConv3d)
            assert isinstance(original, nn.Conv2d)
            errors.append(max(_relative(f, w) for f, w in _planes(module, original, inputs[0], output)))

        deep.get_submodule(path).register_forward_hook(hook)

    for path, module in deep.named_modules():
        if isinstance(module, ACSConv3d):
            compare(path)
    depth = torch.linspace(0.5, 1.5, 32, dtype=torch.float64)[:, None, None]
    with torch.no_grad():
        y = image[:, :, None] * depth
        for stage, _ in arch.stages:
            y = arch.stage(deep, stage)(y)
    count = len(errors)
    return Certificate(
        label, f"each of {count} ACS layers gives, on slices of its plane, what the 2D layer gives", max(errors)
    )


def _acs_whole(arch: Architecture, flat: nn.Module, volume: Tensor, label: str) -> Certificate:
    acs, dense = _deep(flat, "acs"), _deep(flat, "centre")
    for path, original in flat.named_modules():
        if isinstance(original, nn.Conv2d):
            twin = dense.get_submodule(path)
            assert isinstance(twin, nn.Conv3d)
            twin.weight = nn.Parameter(_middle_planes(original.weight.detach(), original.groups))
    worst, x, y = 0.0, volume, volume
    with torch.no_grad():
        for stage, _ in arch.stages:
            x, y = arch.stage(dense, stage)(x), arch.stage(acs, stage)(y)
            worst = max(worst, _relative(y, x))
    return Certificate(
        label, "the whole ACS network on a volume gives what 3D kernels, zero but for one middle plane, give", worst
    )


def _middle_planes(kernels: Tensor, groups: int) -> Tensor:
    """Kernels ``[out, in, k, k]`` in cubes of zeros: a third each in the axial, coronal and sagittal middle plane."""
    out, side = len(kernels), kernels.shape[-1]
    cubes = kernels.new_zeros(*kernels.shape[:2], side, side, side)
    units = torch.arange(out).reshape(groups if groups > 1 else out, -1)
    for axis, rows in enumerate(units.tensor_split(3)):
        here = rows.flatten()
        cubes.select(2 + axis, side // 2)[here] = kernels[here]
    return cubes


def _planes(module: ACSConv3d, original: nn.Conv2d, x: Tensor, output: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """For each plane, what the ACS layer gave on some slices and what the 2D layer gives on them."""
    for axis, (outs, _, groups) in enumerate(module.parts()):
        if not groups:
            continue
        mine = output[:, outs].movedim(2 + axis, 0)
        for i in {0, len(mine) // 2, len(mine) - 1}:
            plane = x.movedim(2 + axis, 0)[module.first + i * module.stride]
            wanted = F.conv2d(
                plane, original.weight, original.bias, original.stride, original.padding, original.dilation,
                original.groups,
            )[:, outs]  # fmt: skip
            yield mine[i], wanted[..., : mine.shape[-2], : mine.shape[-1]]
