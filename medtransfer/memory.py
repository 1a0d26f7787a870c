"""What memory is there, what a computation keeps for its gradient, and computing it again instead of keeping it."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

GIB = 2**30


def available(device: torch.device | str = "cpu", *, proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")
              ) -> int:  # fmt: skip
    """Bytes that a computation may still take.

    Of main memory what the machine has free, no more than the control groups of this process (a container's, a
    batch system's) and its own limits leave; of a CUDA device what nobody holds.

    Parameters
    ----------
    device : torch.device or str
    proc, groups : Path
        Where the kernel tells about memory and control groups.

    Examples
    --------
    >>> 0 < available() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    True
    """
    device = torch.device(device)
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    return max(0, min([_free(proc), *_left_by_groups(proc, groups), *_left_by_limits(proc)]))


def _free(proc: Path) -> int:
    try:
        rows = dict(line.split(":", 1) for line in (proc / "meminfo").read_text().splitlines())
        return int(rows["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # no Linux: half of what is built in
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _left_by_groups(proc: Path, groups: Path) -> Iterator[int]:
    """What each control group above this process leaves; pages of files that can be dropped do not count as used."""
    try:
        lines = [line.split(":", 2) for line in (proc / "self" / "cgroup").read_text().splitlines()]
    except OSError:
        return
    for _, kinds, path in lines:
        if kinds and "memory" not in kinds.split(","):
            continue
        base = groups / "memory" if kinds else groups
        most, now, cache = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            if kinds
            else ("memory.max", "memory.current", "inactive_file")
        )
        whole = base / path.lstrip("/")
        for folder in {base, whole, *(p for p in whole.parents if p.is_relative_to(base))}:
            try:
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                used = int((folder / now).read_text()) - int(stat.get(cache, 0))
                yield int((folder / most).read_text()) - used
            except (OSError, ValueError):  # no such group here, or no limit ("max")
                continue


def _left_by_limits(proc: Path) -> Iterator[int]:
    """What ``ulimit`` leaves: of addresses, and of memory that belongs to no file."""
    try:
        pages = [int(v) for v in (proc / "self" / "statm").read_text().split()]
    except (OSError, ValueError):
        return
    for kind, used in ((resource.RLIMIT_AS, pages[0]), (resource.RLIMIT_DATA, pages[5])):
        most = resource.getrlimit(kind)[0]
        if most != resource.RLIM_INFINITY:
            yield most - used * resource.getpagesize()


@dataclass
class Kept:
    """Bytes that autograd keeps of what is computed, counted while :func:`keeping` is open."""

    total: int = 0
    sizes: list[int] = field(default_factory=list)  # of each piece, in the order of the computation
    _seen: set[int] = field(default_factory=set, repr=False)
    _held: list[torch.UntypedStorage] = field(default_factory=list, repr=False)

    def pack(self, tensor: Tensor) -> Tensor:
        """Count a tensor's memory, once for all tensors that share it."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self._held.append(storage)  # so that no other gets its number
            self.total += storage.nbytes()
            self.sizes.append(storage.nbytes())
        return tensor


@contextmanager
def keeping(known: Iterable[Tensor] = ()) -> Iterator[Kept]:
    """Count what autograd keeps, apart from tensors that are there anyway, such as parameters.

    Examples
    --------
    >>> x = torch.ones(4, requires_grad=True)
    >>> with keeping([x]) as kept:
    ...     y = x.exp().sin()  # the exponential keeps its result, which is what the sine keeps too
    >>> kept.total
    16
    """
    kept = Kept(_seen={t.untyped_storage()._cdata for t in known})
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor):
        yield kept


def blocks(stage: nn.Module) -> list[nn.Module]:
    """The parts of a stage that are computed again one by one: its blocks, or itself where it is made of layers."""
    children = list(stage.children())
    return (
        children if type(stage) is nn.Sequential and all(any(True for _ in c.children()) for c in children) else [stage]
    )


def through(stage: nn.Module, x: Tensor, *, again: bool) -> Tensor:
    """What a stage answers; with ``again`` its blocks keep only what they are given, and compute the rest once more
    in the backward pass (Chen et al. 2016, arXiv 1604.06174).

    Values and gradients are those of the ordinary way, dropout included, and batch statistics are followed once.
    """
    if not (again and torch.is_grad_enabled()):
        return stage(x)  # type: ignore[no-any-return]
    for block in blocks(stage):
        x = checkpoint(block, x, use_reentrant=False, context_fn=partial(_contexts, block))
    return x


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """What the forward pass, and computing again, run in."""
    return nullcontext(), _following(block)


@contextmanager
def _following(module: nn.Module) -> Iterator[None]:
    """Normalisation by batch statistics that leaves its running ones alone."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    before = [(m.momentum, None if m.num_batches_tracked is None else m.num_batches_tracked.clone()) for m in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked is not None and count is not None:
                norm.num_batches_tracked.copy_(count)


def beside(x: Tensor) -> Tensor:
    """A batch to compute with: one volume on the CPU stands beside itself, the second answer is dropped.

    A 3D convolution of a single volume takes a path that is several times slower. No gradient flows through what is
    dropped.

    Examples
    --------
    >>> [len(beside(torch.zeros(n, 1, 4, 4, 4))) for n in (1, 2, 3)], len(beside(torch.zeros(1, 1, 4, 4)))
    ([2, 2, 3], 1)
    """
    return torch.cat([x, x]) if x.ndim == 5 and len(x) == 1 and x.device.type == "cpu" else x


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # of glibc's malloc.h
_MOST = 2**31 - 1
_PLENTY = 4 * GIB
_open = 0


@contextmanager
def reusing_pages() -> Iterator[None]:
    """Compute on the CPU with memory that is used again instead of given back and asked for anew.

    glibc maps every large tensor on its own and unmaps it when it goes; the kernel then fills each of its pages with
    zeros again, which takes about a quarter of the time of a 3D network. Here they stay with the process, and go when
    the outermost of these contexts ends. It changes no number. Gaps between what is in use cost some memory: where less
    than 4 GiB are there, and where the C library is another, it does nothing.
    """
    global _open
    library = ctypes.CDLL(None)
    fit = sys.platform.startswith("linux") and hasattr(library, "mallopt")
    if not fit or (not _open and available() < _PLENTY):
        yield
        return
    _open += 1
    library.mallopt(_M_MMAP_MAX, 0)
    library.mallopt(_M_TRIM_THRESHOLD, _MOST)
    try:
        yield
    finally:
        _open -= 1
        if not _open:
            library.mallopt(_M_MMAP_MAX, 65536)  # what glibc begins with; its thresholds no longer move by themselves
            library.mallopt(_M_MMAP_THRESHOLD, 4 * 2**20)
            library.mallopt(_M_TRIM_THRESHOLD, 8 * 2**20)
            library.malloc_trim(0)
