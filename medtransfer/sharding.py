"""Weights spread over several processes, gathered block by block as they compute (Zhao et al. 2023, arXiv 2304.11277).

Each process holds its piece of every weight that is spread, of its gradient and of the optimizer's memory of it.
Checkpoints hold whole tensors: a run can go on, and be read, with or without spreading.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from medtransfer.backbones.tokens import Blocks
from medtransfer.tuned import Normalisation, learning, pairs

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from medtransfer.model import Model
    from medtransfer.recipe import Recipe


def shard(model: Model, stages: Sequence[str], recipe: Recipe, mesh: DeviceMesh) -> None:
    """Move these stages to the devices, a piece to each; the head and normalisation that does not learn stay whole.

    Gradients arrive summed over the processes.

    Parameters
    ----------
    model : Model
    stages : sequence of str
        Those that learn.
    mesh : DeviceMesh
        All processes, in one row.
    """
    from torch.distributed.fsdp import fully_shard

    learns = {id(p) for _, p in learning(model, stages, recipe.tune, recipe.frozen_norms)}
    for stage in (model.stages[s] for s in stages):
        pairs(stage)  # found now: a stage in pieces cannot be traced
        norms = (m for m in stage.modules() if isinstance(m, Normalisation))
        kept = {p for norm in norms for p in norm.parameters() if id(p) not in learns}
        for unit in [*_blocks(stage), stage]:  # the stage holds its blocks together and has no more of its own
            unit.to(mesh.device_type, memory_format=torch.contiguous_format)  # type: ignore[call-overload]
            if unit is stage or set(unit.parameters()) - kept:
                unit.register_forward_hook(_own)
                done = fully_shard(unit, mesh=mesh, reshard_after_forward=True, ignored_params=kept)
                done.set_gradient_divide_factor(1.0)
                done.set_force_sum_reduction_for_comms(True)


def _own(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
    """What a block says, in memory of its own: changed in place, a view would lose the call for the block's weights."""
    return output.clone() if output._is_view() else output


def _blocks(module: nn.Module) -> list[nn.Module]:
    """The parts of a stage that are called one after the other."""
    if type(module) in (nn.Sequential, nn.ModuleList, Blocks):
        return [block for child in module.children() for block in _blocks(child)]
    return [module]


def spread(tensor: Tensor) -> bool:
    """Whether this process holds a piece of the tensor only."""
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def whole(tensors: dict[str, Tensor], *, keep: bool = True) -> dict[str, Tensor]:
    """The tensors without pieces, in main memory; all processes take part, also those that do not keep them."""
    from torch.distributed.tensor import DTensor

    found = {}
    for name, tensor in tensors.items():
        full = tensor.full_tensor().detach().cpu() if isinstance(tensor, DTensor) else tensor
        if keep:
            found[name] = full
    return found


def like(value: Tensor, tensor: Tensor) -> Tensor:
    """A whole tensor, which every process holds, spread as another one is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(tensor, DTensor):
        return value
    value = value.to(tensor.device)
    return distribute_tensor(value, tensor.device_mesh, tensor.placements, src_data_rank=None)


def load(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """``load_state_dict`` of whole tensors, whether the model's are spread or not."""
    own = model.state_dict()
    model.load_state_dict({k: like(v, own[k]) if k in own else v for k, v in tensors.items()})


def clip(parameters: list[nn.Parameter], largest: float) -> None:
    """Scale the gradients so that their common norm is at most so large, the pieces of all processes counted."""
    from torch.distributed.tensor import DTensor

    learned = [p for p in parameters if p.grad is not None]
    kinds = [k for k in ([p for p in learned if spread(p) is s] for s in (False, True)) if k]
    if len(kinds) < 2 and not any(spread(p) for p in learned):
        nn.utils.clip_grad_norm_(parameters, largest)
        return
    norms = [nn.utils.get_total_norm([p.grad for p in kind if p.grad is not None]) for kind in kinds]
    total = torch.stack([n.full_tensor() if isinstance(n, DTensor) else n for n in norms]).norm()
    for kind in kinds:
        nn.utils.clip_grads_with_norm_(kind, largest, total)
