"""Several processes that train one model: each computes its share of every step, and all end in the same weights."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from medtransfer.sharding import spread

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch.distributed.device_mesh import DeviceMesh


class Team:
    """This process among its peers; alone, everything here does nothing.

    Gradients are summed over the processes in one message a step, so that low-rank additions, folded
    normalisation and cached activations need no wrapper around the model. Weights that are spread over the
    processes (see :mod:`medtransfer.sharding`) are gathered by all of them at once, so each takes as many steps.
    """

    def __init__(self, fabric: Fabric, *, sharded: bool = False) -> None:
        self.fabric, self.rank, self.size = fabric, int(fabric.global_rank), int(fabric.world_size)
        self.mesh: DeviceMesh | None = None
        if sharded and self.size > 1:
            from torch.distributed.device_mesh import init_device_mesh

            self.mesh = init_device_mesh(self._device.type, (self.size,))

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def share(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """This process's part of some cases; with sharded weights as long as any other, a case too many at its end."""
        part = indices[self.rank :: self.size]
        short = self.mesh is not None and len(part) < math.ceil(len(indices) / self.size)
        return np.append(part, indices[:1]) if short else part

    def own(self, n: int) -> int:
        """How many of n cases this process's part counts."""
        return len(range(self.rank, n, self.size))

    def sum(self, value: float) -> float:
        """Sum of a number over the processes."""
        if self.size == 1:
            return value
        whole = torch.tensor([value], dtype=torch.float64, device=self._device)
        torch.distributed.all_reduce(whole)
        return float(whole)

    def sum_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Add up the gradients of all processes; those of sharded weights arrive so."""
        parameters = [p for p in parameters if not spread(p)]
        if self.size == 1:
            return
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([g.flatten() for g in found])
        torch.distributed.all_reduce(flat)
        for parameter, part in zip(parameters, torch.split(flat, [p.numel() for p in parameters]), strict=True):
            parameter.grad = torch.empty_like(parameter).copy_(part.view(parameter.shape))

    def gather(self, part: NDArray[np.float64], n: int) -> NDArray[np.float64]:
        """Rows that the processes computed for their shares, each exactly once and in the order of the cases."""
        if self.size == 1:
            return part
        parts: list[NDArray[np.float64]] = [part] * self.size
        torch.distributed.all_gather_object(parts, part)
        whole = np.empty((n, *part.shape[1:]), part.dtype)
        for rank, rows in enumerate(parts):
            whole[rank :: self.size] = rows[: len(range(rank, n, self.size))]
        return whole

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            torch.distributed.barrier()

    @property
    def _device(self) -> torch.device:
        return self.fabric.device  # type: ignore[no-any-return]


def concludes() -> bool:
    """Whether this process, of those that trained one run together, is the one that evaluates and reports."""
    import torch.distributed as peers

    return not (peers.is_available() and peers.is_initialized()) or peers.get_rank() == 0


@contextmanager
def threads(processes: int) -> Iterator[None]:
    """As many threads as this process may use cores, its peers on this machine counted.

    Nothing is changed where ``OMP_NUM_THREADS`` says how many. A container with a share of the machine sees all its
    cores, and more threads than the share wait for one another.
    """
    before = torch.get_num_threads()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, min(before, cores() // max(1, processes))))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores that this process may use: those it is bound to, and no more than the container's share."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        share, period = quota.read_text(encoding="ascii").split()
        return max(1, min(found, math.ceil(int(share) / int(period))))
    except (OSError, ValueError):  # no control group, or "max": no limit
        return found
