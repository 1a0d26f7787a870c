"""What of a stage learns: everything, normalisation, biases, or low-rank additions; and what is folded while frozen.

The additions and the folding change how a layer computes, never what a checkpoint holds: weights are saved
merged, under their plain names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from medtransfer.model import Model

Convolution = (nn.Conv2d, nn.Conv3d)
Normalisation = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)

_PAIRS: WeakKeyDictionary[nn.Module, list[tuple[nn.Module, nn.Module]]] = WeakKeyDictionary()  # tracing takes a while


def learning(model: Model, stages: Sequence[str], tune: str, frozen_norms: bool) -> list[tuple[str, nn.Parameter]]:
    """Names and parameters that learn while these stages do: the head's, and what ``tune`` names of the stages."""
    found = []
    for stage in stages:
        for path, module in model.stages[stage].named_modules(prefix=f"stages.{stage}"):
            norm = isinstance(module, Normalisation)
            kept = isinstance(module, nn.modules.batchnorm._BatchNorm) and frozen_norms
            for name, parameter in module.named_parameters(recurse=False):
                asked = {
                    "all": not kept,
                    "norms": norm,
                    "biases": name.endswith("bias"),
                    "lora": False,
                }[tune]  # fmt: skip
                if asked:
                    found.append((f"{path}.{name}", parameter))
    return [*found, *((f"head.{n}", p) for n, p in model.head.named_parameters())]


def choose(model: Model, stages: Sequence[str], tune: str, frozen_norms: bool) -> None:
    """Let exactly these parameters learn and put the model into training mode; what is frozen stays in evaluation."""
    model.train_only(stages, frozen_norms=frozen_norms).train()
    chosen = {id(p) for _, p in learning(model, stages, tune, frozen_norms)}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in chosen)


class Adapters(nn.Module):
    """Low-rank additions to the weights of linear and convolution layers of some stages; zero at first.

    The addition to a weight ``[out, ...]`` is ``up [out, rank] @ down [rank, ...]``, reshaped: exact for
    grouped and 3D convolutions too.
    """

    def __init__(self, model: Model, stages: Sequence[str], rank: int, *, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.layers: dict[str, nn.Module] = {}
        self.up, self.down = nn.ParameterDict(), nn.ParameterDict()
        for stage in stages:
            for path, module in model.stages[stage].named_modules(prefix=f"stages.{stage}"):
                if isinstance(module, (*Convolution, nn.Linear)):
                    out, width = module.weight.flatten(1).shape
                    small, key = min(rank, out, width), path.replace(".", "/")
                    self.layers[key] = module
                    down = torch.randn(small, width, generator=generator) / width**0.5
                    self.down[key] = nn.Parameter(down.to(module.weight.device))
                    self.up[key] = nn.Parameter(torch.zeros(out, small, device=module.weight.device))

    def addition(self, key: str) -> Tensor:
        """What is added to the weight of a layer."""
        weight = self.layers[key].weight
        assert isinstance(weight, Tensor)
        added: Tensor = self.up[key] @ self.down[key]
        return added.view(weight.shape)

    def merge(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A model's tensors with the additions inside."""
        with torch.no_grad():
            added = {f"{k.replace('/', '.')}.weight": self.addition(k) for k in self.layers}
        return {k: v + added[k].to(v) if k in added else v for k, v in state.items()}


def pairs(stage: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """Convolutions whose output goes to one batch normalisation and nowhere else; none where tracing fails."""
    if stage not in _PAIRS:
        _PAIRS[stage] = _find_pairs(stage)
    return _PAIRS[stage]


def _find_pairs(stage: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    try:
        graph = torch.fx.Tracer().trace(stage)
    except Exception:  # tracing fails in as many ways as networks are written
        return []
    modules, found = dict(stage.named_modules()), []
    for node in graph.nodes:
        if node.op != "call_module" or not isinstance(modules[node.target], Convolution) or len(node.users) != 1:
            continue
        user = next(iter(node.users))
        if user.op == "call_module" and isinstance(modules[user.target], nn.modules.batchnorm._BatchNorm):
            found.append((modules[node.target], modules[user.target]))
    calls = [n.target for n in graph.nodes if n.op == "call_module"]
    once = {id(modules[t]) for t in calls if calls.count(t) == 1}  # a layer used twice keeps its own form
    return [(a, b) for a, b in found if id(a) in once and id(b) in once]


@contextmanager
def faster(model: Model, adapters: Adapters | None = None) -> Iterator[None]:
    """Compute with low-rank additions, and with frozen batch normalisation folded into the convolution before it.

    The convolution's own weight still learns: it is scaled on its way in, so the gradient is that of the plain form.
    """
    patched: list[nn.Module] = []
    added = {} if adapters is None else {id(layer): key for key, layer in adapters.layers.items()}
    norms = {id(conv): norm for stage in model.stages.values() for conv, norm in pairs(stage) if _foldable(conv, norm)}
    for stage in model.stages.values():
        for layer in stage.modules():
            if id(layer) not in added and id(layer) not in norms:
                continue
            addition = None
            if adapters is not None and id(layer) in added:
                addition = partial(adapters.addition, added[id(layer)])
            scale = shift = None
            if (norm := norms.get(id(layer))) is not None:
                scale, shift = _affine(norm)
                norm.forward = _same  # type: ignore[method-assign]
                patched.append(norm)
            layer.forward = partial(_forward, layer, addition, scale, shift)  # type: ignore[method-assign]
            patched.append(layer)
    try:
        yield
    finally:
        for module in patched:
            del module.forward  # type: ignore[method-assign]


def _same(x: Tensor) -> Tensor:
    return x


def _foldable(conv: nn.Module, norm: nn.Module) -> bool:
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    frozen = not norm.training and norm.running_var is not None
    return frozen and not any(p.requires_grad for p in norm.parameters()) and conv.padding_mode == "zeros"


def _affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Scale and shift that a frozen batch normalisation amounts to."""
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    assert norm.running_var is not None
    assert norm.running_mean is not None
    with torch.no_grad():
        scale = torch.rsqrt(norm.running_var + norm.eps)
        scale = scale if norm.weight is None else scale * norm.weight
        shift = -norm.running_mean * scale
        return scale, shift if norm.bias is None else shift + norm.bias


def _forward(
    layer: nn.Module,
    addition: partial[Tensor] | None,
    scale: Tensor | None,
    shift: Tensor | None,
    x: Tensor,
) -> Tensor:
    assert isinstance(layer, (*Convolution, nn.Linear))
    weight: Tensor = layer.weight
    bias: Tensor | None = layer.bias
    if addition is not None:
        weight = weight + addition()
    if scale is not None and shift is not None:
        weight = weight * scale.view(-1, *[1] * (weight.ndim - 1))
        bias = shift if bias is None else bias * scale + shift
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, bias)
    found: Tensor = layer._conv_forward(x, weight, bias)
    return found
