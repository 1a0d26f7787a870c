"""Weight surgery with a receipt: other input channels, other dimensions, and what became of every tensor."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from medtransfer.backbones import Architecture, architecture, recognise
from medtransfer.errors import WeightsError
from medtransfer.weights import Weights, read_tensors, register

Depth = Literal["centre", "mean"]


@dataclass(frozen=True)
class Receipt:
    """What became of every tensor of a checkpoint and of a backbone.

    Parameters
    ----------
    loaded : tuple of str
        Taken over as they are.
    reshaped : tuple of (name, how)
        Changed for other channels or dimensions.
    new : tuple of str
        Of the backbone, but not in the file: they start untrained.
    unused : tuple of str
        In the file, but not of the backbone: its classifier, or stages that were cut off.
    """

    loaded: tuple[str, ...] = ()
    reshaped: tuple[tuple[str, str], ...] = ()
    new: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"loaded   {len(self.loaded):5d} tensors"]
        lines += [
            f"reshaped {len(self.reshaped):5d} tensors" + "".join(f"\n  {n}: {how}" for n, how in self.reshaped[:4])
        ]
        for word, names in (("new", self.new), ("unused", self.unused)):
            lines.append(f"{word:<8} {len(names):5d} tensors{_grouped(names)}")
        return "\n".join(lines)

    def to_record(self) -> dict[str, object]:
        """Plain types for the run's record."""
        return {
            "loaded": len(self.loaded),
            "reshaped": [f"{n}: {how}" for n, how in self.reshaped],
            "new": list(self.new),
            "unused": list(self.unused),
        }


def _grouped(names: tuple[str, ...]) -> str:
    groups: dict[str, int] = {}
    for name in names:
        groups[name.split(".")[0]] = groups.get(name.split(".")[0], 0) + 1
    return "".join(f"\n  {group}.*: {count}" for group, count in groups.items())


def check(
    network: nn.Module,
    tensors: dict[str, Tensor],
    arch: Architecture,
    *,
    until: str | None = None,
    allow_new: tuple[str, ...] = (),
    where: str = "",
) -> Receipt:
    """Compare a checkpoint with a network, tensor by tensor, before anything is loaded.

    Parameters
    ----------
    until : str or None
        Last stage that is kept; tensors of later stages are expected nowhere.
    allow_new : tuple of str
        Stages, or prefixes of tensors, that may start untrained.

    Raises
    ------
    WeightsError
        Where shapes differ, a tensor fits nowhere, or under 99 % of the backbone's tensors are in the file.
    """
    stages = stage_of_tensor(network, arch)
    kept = kept_stages(arch, until)
    wanted = {k: v for k, v in network.state_dict().items() if stages.get(k) in kept}
    counters = {k for k in wanted if k.endswith("num_batches_tracked")}
    shapes = [k for k in wanted if k in tensors and tensors[k].shape != wanted[k].shape]
    if shapes:
        first = shapes[0]
        raise WeightsError(
            f"{len(shapes)} tensors have another shape than {arch.name} wants",
            where=where,
            got=f"{first} {tuple(tensors[first].shape)} instead of {tuple(wanted[first].shape)}",
            fix="name the architecture that these weights belong to",
        )
    strange = [k for k in tensors if k not in wanted and stages.get(k) is None and not k.startswith(arch.top)]
    if strange:
        raise WeightsError(
            f"{len(strange)} tensors of the file fit nowhere in {arch.name}",
            where=where,
            got=", ".join(strange[:3]),
            fix="name the architecture that these weights belong to",
        )
    new = [k for k in wanted if k not in tensors and k not in counters]
    refused = [k for k in new if not any(stages[k] == a or k.startswith(a) for a in allow_new)]
    if len(refused) > 0.01 * (len(wanted) - len(counters)):
        missing = sorted({stages[k] for k in refused})
        before = [s for s, _ in arch.stages if s not in missing]
        raise WeightsError(
            f"the file holds {len(wanted) - len(counters) - len(new)} of the {len(wanted) - len(counters)} tensors of "
            f"{arch.name}; these stages lack tensors: {', '.join(missing)}",
            where=where,
            got=f"{len(refused)} missing",
            fix=f"cut the network there (until: {before[-1] if before else '...'}), or accept that they start "
            f"untrained (allow_new: [{', '.join(missing)}])",
        )
    return Receipt(
        loaded=tuple(k for k in wanted if k in tensors),
        new=tuple(new),
        unused=tuple(k for k in tensors if k not in wanted),
    )


def kept_stages(arch: Architecture, until: str | None) -> list[str]:
    """Names of the stages up to and with ``until``."""
    names = [name for name, _ in arch.stages]
    if until is None:
        return names
    if until not in names:
        raise WeightsError(f"{arch.name} has no stage '{until}'", got=f"stages {', '.join(names)}", fix="correct until")
    return names[: names.index(until) + 1]


def stage_of_tensor(network: nn.Module, arch: Architecture) -> dict[str, str]:
    """The stage that each tensor of the network belongs to; the classifier's tensors are left out."""
    owner: dict[str, str] = {}
    for stage, paths in arch.stages:
        for path in paths:
            if not path.startswith("+"):
                owner |= {f"{path}.{name}": stage for name in network.get_submodule(path).state_dict()}
    return owner


class FoldedStem(nn.Module):
    """A first convolution that takes values in [0, 1] and has the pretraining normalisation inside.

    With kernel ``W``, mean ``m`` and deviation ``s`` of the pretraining, ``W * ((x - m) / s)`` equals
    ``(W / s) * x + (-sum W m / s) * 1`` where ``1`` is an image of ones. The second kernel is added as
    one more input channel, so that zero padding acts as in the original, borders included.

    One channel gets the sum of the colour kernels: a gray image gives what its three-channel replica
    gives the original. With n other than 1 or 3 channels each gets the n-th part of that sum.
    """

    def __init__(
        self, original: nn.Conv2d | nn.Conv3d, mean: tuple[float, ...], std: tuple[float, ...], in_channels: int
    ) -> None:
        super().__init__()
        weight = original.weight.detach().double()
        m, s = (torch.tensor(v, dtype=torch.float64).reshape(1, -1, *[1] * (weight.ndim - 2)) for v in (mean, std))
        scaled = weight / s
        constant = -(scaled * m).sum(1, keepdim=True)
        if in_channels != weight.shape[1]:
            scaled = torch.cat([scaled.sum(1, keepdim=True)] * in_channels, 1) / in_channels
        self.conv = copy.deepcopy(original)
        self.conv.in_channels = in_channels + 1
        self.conv.weight = nn.Parameter(torch.cat([scaled, constant], 1).to(original.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.cat([x, torch.ones_like(x[:, :1])], 1))  # type: ignore[no-any-return]


def fold_stem(network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], in_channels: int) -> tuple[str, str]:
    """Replace the network's first convolution by a :class:`FoldedStem`; the tensor's name and what was done."""
    path, first = next((p, m) for p, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Conv3d))
    parent, _, child = path.rpartition(".")
    setattr(network.get_submodule(parent), child, FoldedStem(first, mean, std, in_channels))
    how = (
        "colour kernels kept"
        if in_channels == first.in_channels
        else f"colour kernels summed for {in_channels} channel(s)"
    )
    return f"{path}.weight", f"{how}, normalisation folded in"


def inflate(network: nn.Module, how: Depth = "centre") -> list[str]:
    """Turn every 2D layer into its 3D twin in place; names of the tensors that changed.

    Parameters
    ----------
    how : {'centre', 'mean'}
        Put the 2D kernel into the middle of the depth, or spread it evenly over the depth. On a
        stack that is constant in depth both give, away from its ends, what the 2D network gives.
    """
    changed: list[str] = []
    for path, module in list(network.named_modules()):
        parent, _, child = path.rpartition(".")
        twin = _twin(module, how)
        if twin is not None:
            setattr(network.get_submodule(parent), child, twin.train(module.training))
            changed += [f"{path}.weight"] if isinstance(twin, nn.Conv3d) else []
    return changed


def _twin(module: nn.Module, how: Depth) -> nn.Module | None:
    if isinstance(module, nn.Conv2d):
        return _conv3d(module, how)
    if isinstance(module, nn.BatchNorm2d):
        norm = nn.BatchNorm3d(
            module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats
        )
        norm.load_state_dict(module.state_dict())
        return norm
    if isinstance(module, nn.MaxPool2d):
        size, stride, padding = (_plain(v) for v in (module.kernel_size, module.stride, module.padding))
        return nn.MaxPool3d(size, stride, padding, _plain(module.dilation), ceil_mode=module.ceil_mode)
    if isinstance(module, nn.AvgPool2d):
        size, stride, padding = (_plain(v) for v in (module.kernel_size, module.stride, module.padding))
        return nn.AvgPool3d(size, stride, padding, module.ceil_mode, module.count_include_pad)
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return nn.AdaptiveAvgPool3d(module.output_size)  # type: ignore[arg-type]
    return None


def _plain(value: int | tuple[int, ...]) -> int | tuple[int, int, int]:
    """A pooling's size in 3D: the depth does as the rows do."""
    return value if isinstance(value, int) else (value[0], value[0], value[-1])


def _conv3d(module: nn.Conv2d, how: Depth) -> nn.Conv3d:
    depth = module.kernel_size[0]

    def three(value: tuple[int, ...]) -> tuple[int, int, int]:
        return value[0], value[0], value[1]

    twin = nn.Conv3d(
        module.in_channels,
        module.out_channels,
        (depth, depth, module.kernel_size[-1]),
        three(module.stride),
        three(module.padding) if isinstance(module.padding, tuple) else module.padding,
        three(module.dilation),
        module.groups,
        module.bias is not None,
        module.padding_mode,  # type: ignore[arg-type]
    )
    with torch.no_grad():
        kernel = torch.zeros_like(twin.weight)
        if how == "centre":
            kernel[:, :, depth // 2] = module.weight
        else:
            kernel += module.weight[:, :, None] / depth
        twin.weight.copy_(kernel)
        if twin.bias is not None and module.bias is not None:
            twin.bias.copy_(module.bias)
    return twin


def import_file(
    file: Path,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    name: str | None = None,
    arch: str | None = None,
    licence: str = "not stated",
    origin: str = "",
) -> tuple[Weights, Receipt]:
    """Register a local checkpoint in the offline store, every tensor checked first.

    A checkpoint that ends before the network does (its last stages lack every tensor) is taken; the receipt
    names what would start untrained, and :func:`medtransfer.load_model` asks for ``until`` or ``allow_new``.

    Parameters
    ----------
    file : Path
        safetensors, or a .pth that holds tensors only.
    mean, std : tuple of float
        The pretraining's normalisation of the three colour channels in [0, 1].
    name : str or None
        Name to load it by; ``local/<architecture>`` if None.
    arch : str or None
        Its architecture; recognised from names and shapes if None.

    Raises
    ------
    WeightsError
        Where the file is damaged or its tensors do not fit.
    """
    tensors = read_tensors(file)
    wanted = architecture(arch or recognise({k: tuple(v.shape) for k, v in tensors.items()}))
    network = wanted.build()
    stages = stage_of_tensor(network, wanted)
    filled = {stages[k] for k in tensors if k in stages}
    order = [stage for stage, _ in wanted.stages]
    ends = max((order.index(s) for s in filled), default=-1)
    absent = tuple(order[ends + 1 :]) if filled else ()
    receipt = check(network, tensors, wanted, allow_new=absent, where=file.name)
    weights = Weights(name or f"local/{wanted.name}", wanted.name, mean, std, file, licence=licence, origin=origin)
    return register(weights), receipt
