"""2D layers in 3D: inflation, ACS convolutions, and layers that leave the depth alone."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medtransfer.errors import WeightsError

Inflation = Literal["centre", "mean", "acs"]


class RepeatedDepth3d(nn.Conv3d):
    """A 3D convolution that repeats the end slices along the depth, where it would pad with zeros.

    A stack that is constant in depth stays so, ends included, whatever its thickness.
    """

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.padding, tuple)
        d, h, w = self.padding
        x = F.pad(x, (0, 0, 0, 0, d, d), mode="replicate") if d else x
        return F.conv3d(x, self.weight, self.bias, self.stride, (0, h, w), self.dilation, self.groups)


class ACSConv3d(nn.Module):
    """A 2D kernel that looks at a volume in three planes (Yang et al. 2021, arXiv 1911.10477).

    The output channels are parted in three: the first part convolves axial slices, the second coronal and
    the third sagittal ones, each with the 2D kernels as they were. Grouped convolutions part their groups
    (two groups leave the sagittal plane out). Each answer stands at the middle of what its kernel saw, so that
    it equals a 3D convolution whose kernels are zero but for their middle plane. No weight is added or lost.
    """

    def __init__(self, flat: nn.Conv2d) -> None:
        super().__init__()
        if isinstance(flat.padding, str) or len({*flat.kernel_size}) > 1:
            raise WeightsError("this convolution has no ACS form", got=str(flat), fix="depth: centre")
        self.in_channels, self.groups = flat.in_channels, flat.groups
        self.kernel, self.stride = flat.kernel_size[0], flat.stride[0]
        self.padding, self.dilation = flat.padding[0], flat.dilation[0]
        self.weight = nn.Parameter(flat.weight.detach().clone())
        self.bias = None if flat.bias is None else nn.Parameter(flat.bias.detach().clone())

    @property
    def first(self) -> int:
        """The first slice that a plane looks at: the middle of the first kernel of the other two axes."""
        return self.dilation * (self.kernel // 2) - self.padding

    def parts(self) -> list[tuple[slice, slice, int]]:
        """For each plane its output channels, its input channels, and its groups."""
        out, whole = self.weight.shape[0], self.groups == 1
        third, more = divmod(out if whole else self.groups, 3)
        ends = [third * i + min(i, more) for i in range(4)]
        if whole:
            return [(slice(a, b), slice(None), 1) for a, b in pairwise(ends)]
        o, i = out // self.groups, self.in_channels // self.groups
        return [(slice(a * o, b * o), slice(a * i, b * i), b - a) for a, b in pairwise(ends)]

    def forward(self, x: Tensor) -> Tensor:
        answers = []
        for axis, (outs, ins, groups) in enumerate(self.parts()):
            if not groups:
                continue
            weight = self.weight[outs].unsqueeze(2 + axis)
            padding = [self.padding] * 3
            padding[axis] = max(0, -self.first)
            dilation = [self.dilation] * 3
            dilation[axis] = 1
            bias = None if self.bias is None else self.bias[outs]
            seen = x[:, ins].narrow(2 + axis, max(0, self.first), x.shape[2 + axis] - max(0, self.first))
            answers.append(F.conv3d(seen, weight, bias, self.stride, padding, dilation, groups))
        sides = [min(a.shape[i] for a in answers) for i in (2, 3, 4)]
        return torch.cat([a[:, :, : sides[0], : sides[1], : sides[2]] for a in answers], 1)


def inflate(network: nn.Module, how: Inflation = "centre", *, flat: tuple[str, ...] = ()) -> list[str]:
    """Turn every 2D layer into its 3D twin in place; names of the tensors that changed.

    Parameters
    ----------
    how : {'centre', 'mean', 'acs'}
        ``centre`` puts the 2D kernel into the middle of the depth: on a stack that is constant in depth the
        network gives what the 2D network gives, ends included. ``mean`` spreads it evenly over the depth, and
        end slices are repeated instead of padded with zeros, so that the same holds. ``acs`` see
        :class:`ACSConv3d`.
    flat : tuple of str
        Paths whose layers stay 1 deep and keep the number of slices: for thick slices, until in-plane
        pixels are as large as the slices are apart.
    """
    changed: list[str] = []
    for path, module in list(network.named_modules()):
        parent, _, child = path.rpartition(".")
        inside = any(path == p or path.startswith(f"{p}.") for p in flat)
        twin = _twin(module, how, inside)
        if twin is not None:
            setattr(network.get_submodule(parent), child, twin.train(module.training))
            if isinstance(twin, nn.Conv3d | ACSConv3d):
                changed.append(f"{path}.weight")
        scale = getattr(module, "layer_scale", None)
        if isinstance(scale, nn.Parameter) and scale.ndim == 3:  # ConvNeXt: one number a channel
            module.layer_scale = nn.Parameter(scale.detach()[..., None])
            changed.append(f"{path}.layer_scale")
    return changed


def _twin(module: nn.Module, how: Inflation, flat: bool) -> nn.Module | None:
    if isinstance(module, nn.Conv2d):
        return _acs(module) if how == "acs" and not flat else _conv3d(module, how, flat)
    if isinstance(module, nn.BatchNorm2d):
        norm = nn.BatchNorm3d(
            module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats,
            device=module.running_mean.device if module.running_mean is not None else None,
        )  # fmt: skip
        norm = norm.to(module.running_mean.dtype) if module.running_mean is not None else norm
        norm.load_state_dict(module.state_dict())
        return norm
    if isinstance(module, nn.MaxPool2d):
        size, stride, dilation = (
            _three(v, 1 if flat else None) for v in (module.kernel_size, module.stride, module.dilation)
        )
        padding = _three(module.padding, 0 if flat else None)
        return nn.MaxPool3d(size, stride, padding, dilation, ceil_mode=module.ceil_mode)
    if isinstance(module, nn.AvgPool2d):
        size, stride = (_three(v, 1 if flat else None) for v in (module.kernel_size, module.stride))
        padding = _three(module.padding, 0 if flat else None)
        return nn.AvgPool3d(size, stride, padding, module.ceil_mode, module.count_include_pad)
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return nn.AdaptiveAvgPool3d(module.output_size)  # type: ignore[arg-type]
    if isinstance(module, nn.ConstantPad2d):
        left, right, top, bottom = module.padding
        depth = (0, 0) if flat else (top, bottom)
        if how == "mean":
            return _RepeatedDepthPad((left, right, top, bottom), depth, module.value)
        return nn.ConstantPad3d((left, right, top, bottom, *depth), module.value)
    return _layout(module)


def _layout(module: nn.Module) -> nn.Module | None:
    """Twins of ConvNeXt's layers that know where the channels are."""
    kind = type(module).__name__
    if kind == "LayerNorm2d" and isinstance(module, nn.LayerNorm):
        twin = _ChannelsFirstNorm(module.normalized_shape, module.eps)
        twin.weight, twin.bias = module.weight, module.bias
        return twin
    if kind == "Permute" and getattr(module, "dims", None) in ([0, 2, 3, 1], [0, 3, 1, 2]):
        return _Permuted([0, 2, 3, 4, 1] if module.dims == [0, 2, 3, 1] else [0, 4, 1, 2, 3])
    return None


class _RepeatedDepthPad(nn.Module):
    def __init__(self, plane: tuple[int, ...], depth: tuple[int, int], value: float) -> None:
        super().__init__()
        self.plane, self.depth, self.value = plane, depth, value

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(F.pad(x, (0, 0, 0, 0, *self.depth), mode="replicate"), self.plane, value=self.value)


class _ChannelsFirstNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class _Permuted(nn.Module):
    def __init__(self, dims: list[int]) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.dims)


def _three(value: int | tuple[int, ...], depth: int | None = None) -> tuple[int, int, int]:
    """A 2D setting in 3D: the depth does as the rows do, or as told."""
    rows, columns = (value, value) if isinstance(value, int) else (value[0], value[-1])
    return (rows if depth is None else depth), rows, columns


def _acs(module: nn.Conv2d) -> nn.Module:
    return _conv3d(module, "centre", False) if module.kernel_size == (1, 1) else ACSConv3d(module)


def _conv3d(module: nn.Conv2d, how: Inflation, flat: bool) -> nn.Conv3d:
    depth = 1 if flat else module.kernel_size[0]
    kind = RepeatedDepth3d if how == "mean" and depth > 1 else nn.Conv3d
    if isinstance(module.padding, str):
        raise WeightsError("padding in words has no 3D twin", got=module.padding, fix="depth: slices")
    twin = kind(
        module.in_channels,
        module.out_channels,
        (depth, module.kernel_size[0], module.kernel_size[-1]),
        _three(module.stride, 1 if flat else None),
        _three(module.padding, 0 if flat else None),
        _three(module.dilation, 1 if flat else None),
        module.groups,
        module.bias is not None,
        module.padding_mode,  # type: ignore[arg-type]
        device=module.weight.device,
        dtype=module.weight.dtype,
    )
    with torch.no_grad():
        kernel = torch.zeros_like(twin.weight)
        if how == "mean":
            kernel += module.weight[:, :, None] / depth
        else:
            kernel[:, :, depth // 2] = module.weight
        twin.weight.copy_(kernel)
        if twin.bias is not None and module.bias is not None:
            twin.bias.copy_(module.bias)
    return twin
