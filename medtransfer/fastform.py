"""The fast CPU form of a frozen backbone: convolutions that hold normalisation, sum and activation, channels last.

It is traced from the model, checked against it on real images, and dropped where it cannot be had.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from medtransfer.model import _pool

if TYPE_CHECKING:
    from medtransfer.model import Model

TOLERANCE = 1e-5  # of the features' scale
_LEAST_SIDE = 64  # on smaller images little is gained

Features = Callable[[Tensor], Tensor]


class _Trunk(nn.Module):
    """Stages and pooling alone, for tracing."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.stages = model.stages  # fusing makes layers anew and leaves these as they are
        self.pool_from, self.pool = model.description.pool_from, model.description.pool

    def forward(self, x: Tensor) -> Tensor:
        pooled = []
        for name, stage in self.stages.items():
            x = stage(x)
            if name in self.pool_from:
                pooled += _pool(x, self.pool, False)
        return torch.cat(pooled, 1)


class FusedConv(nn.Module):
    """A convolution with what follows it: an activation, or a sum and a ReLU; its weights are packed for the CPU.

    Parameters
    ----------
    conv : Conv2d
    activation : str
        ``'none'``, ``'relu'``, ``'hardtanh'`` (ReLU6), ``'swish'`` or ``'hardswish'``.
    in_place : bool
        Whether the other summand may be overwritten.
    """

    def __init__(self, conv: nn.Conv2d, activation: str = "none", *, in_place: bool = False) -> None:
        super().__init__()
        assert isinstance(conv.padding, tuple)
        self.conv, self.activation, self.in_place = conv, activation, in_place
        self.limits: list[float] = [0.0, 6.0] if activation == "hardtanh" else []
        self.settings = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        self.packed: dict[tuple[int, ...], Tensor] = {}

    def _weight(self, x: Tensor) -> Tensor:
        key = tuple(x.shape)
        if key not in self.packed:
            padding, stride, dilation, groups = self.settings
            weight = self.conv.weight.detach().contiguous(memory_format=torch.channels_last)
            pack = torch.ops.mkldnn._reorder_convolution_weight
            self.packed[key] = pack(weight, padding, stride, dilation, groups, list(key))
        return self.packed[key]

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        ops = torch.ops.mkldnn
        weight, bias = self._weight(x), self.conv.bias
        if other is None:
            return ops._convolution_pointwise(  # type: ignore[no-any-return]
                x, weight, bias, *self.settings, self.activation, self.limits, ""
            )
        unary = None if self.activation == "none" else self.activation
        call = ops._convolution_pointwise_.binary if self.in_place else ops._convolution_pointwise.binary
        if self.in_place:
            return call(  # type: ignore[no-any-return]
                other, x, weight, bias, *self.settings, "add", 1.0, unary, [], ""
            )
        return call(  # type: ignore[no-any-return]
            x, other, weight, bias, *self.settings, "add", 1.0, unary, [], ""
        )


_ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu", nn.ReLU6: "hardtanh", nn.SiLU: "swish", nn.Hardswish: "hardswish",
}  # fmt: skip


def fast_form(model: Model) -> Features | None:
    """The fast form of ``model.features`` for images ``[n, channels, h, w]`` on the CPU, or None.

    None is given for volumes, for networks that cannot be traced (transformers), and where this build of
    torch lacks the fused operators. The answer is not yet checked; :func:`features_of` does that.
    """
    if model.description.dims != 2:
        return None
    if not hasattr(torch.ops.mkldnn, "_reorder_convolution_weight"):
        return None
    if any(stage.training for stage in model.stages.values()):
        return None
    try:
        graph = fx.symbolic_trace(_Trunk(model))
    except (TypeError, RuntimeError, NotImplementedError, ValueError, AttributeError, fx.proxy.TraceError):
        return None  # a network whose path depends on its input
    if not _fuse(graph):
        return None
    return lambda x: graph(x.contiguous(memory_format=torch.channels_last))  # type: ignore[no-any-return]


def _fuse(graph: fx.GraphModule) -> int:
    """Fuse in place; how many convolutions were."""
    modules = dict(graph.named_modules())
    order = {node: i for i, node in enumerate(graph.graph.nodes)}
    count = 0
    for node in list(graph.graph.nodes):
        conv = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(conv, nn.Conv2d) or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            continue
        last: fx.Node = node
        norm = _only_user(last, modules)
        if isinstance(norm, nn.BatchNorm2d):
            conv, last = fuse_conv_bn_eval(conv, norm), next(iter(last.users))
        other, adder = _summand(last)
        activation = "none"
        if other is not None:
            last = adder
        follower = _only_user(last, modules)
        if follower is not None and type(follower) in _ACTIVATIONS and (other is None or isinstance(follower, nn.ReLU)):
            activation, last = _ACTIVATIONS[type(follower)], next(iter(last.users))
        in_place = (  # the summand is overwritten where nothing needs it afterwards
            other is not None
            and other.op != "placeholder"
            and other is not node.args[0]
            and max(other.users, key=lambda user: order[user]) is adder
        )
        name = f"fused_{count}"
        graph.add_submodule(name, FusedConv(conv, activation, in_place=in_place))
        with graph.graph.inserting_after(last):
            fused = graph.graph.call_module(name, (node.args[0], other) if other is not None else (node.args[0],))
        order[fused] = order[last]
        last.replace_all_uses_with(fused)
        count += 1
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return count


def _only_user(node: fx.Node, modules: dict[str, nn.Module]) -> nn.Module | None:
    """The module that alone takes what a node gives."""
    if len(node.users) != 1:
        return None
    user = next(iter(node.users))
    return modules.get(str(user.target)) if user.op == "call_module" else None


def _summand(node: fx.Node) -> tuple[fx.Node | None, fx.Node]:
    """What is added to a node that nothing else takes, and where."""
    if len(node.users) != 1:
        return None, node
    user = next(iter(node.users))
    if user.op != "call_function" and not (user.op == "call_method" and user.target == "add_"):
        return None, node
    if user.op == "call_function" and user.target not in (operator.add, operator.iadd, torch.add):
        return None, node
    if len(user.args) != 2 or user.kwargs:
        return None, node
    first, second = user.args
    other = second if first is node else first
    if not isinstance(other, fx.Node) or other is node:
        return None, node
    return other, user


def features_of(model: Model, images: Tensor) -> Features:
    """The quickest way to ``model.features`` that gives the same on these images, to 1e-5 of the features' scale.

    Parameters
    ----------
    model : Model
        In evaluation mode.
    images : Tensor (n, channels, h, w)
        A few real ones.
    """
    if images.device.type != "cpu" or images.ndim != 4 or min(images.shape[2:]) < _LEAST_SIDE:
        return model.features
    fast = fast_form(model)
    if fast is None:
        return model.features
    with torch.inference_mode():
        wanted = model.features(images[:2])
        try:
            found = fast(images[:2])
        except (RuntimeError, TypeError):  # private operators of another version
            return model.features
    scale = wanted.abs().max().clamp(min=1e-12)
    same = found.shape == wanted.shape and bool((found - wanted).abs().max() <= TOLERANCE * scale)
    return fast if same else model.features
