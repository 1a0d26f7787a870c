"""Sliding windows: batched, blended by a Gaussian that is computed once, taken in and given out slab by slab."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from medtransfer.memory import reusing_pages

Predictor = Callable[[Tensor], Tensor]
_SIGMA = 0.125  # of the Gaussian, as a share of the window
_TRIED = 2  # times that each batch is tried: the first time anything new is made ready


class Source(Protocol):
    """An image ``shape`` = ``[channels, ...]`` whose planes are computed when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def read(self, first: int, end: int) -> NDArray[np.float32]: ...


def starts(size: int, window: int, overlap: float) -> list[int]:
    """First voxels of the windows along an axis; the last window ends with the image.

    Examples
    --------
    >>> starts(10, 4, 0.5), starts(3, 4, 0.5)
    ([0, 2, 4, 6], [0])
    """
    if size <= window:
        return [0]
    step = max(1, int(window * (1 - overlap)))
    count = math.ceil((size - window) / step) + 1
    return [min(i * step, size - window) for i in range(count)]


@lru_cache(8)
def importance(window: tuple[int, ...]) -> Tensor:
    """How much each voxel of a window counts: a Gaussian, at least a thousandth."""
    result = torch.ones(())
    for n in window:
        at = torch.arange(n, dtype=torch.float32) - (n - 1) / 2
        result = result[..., None] * torch.exp(-(at**2) / (2 * (_SIGMA * n) ** 2))
    return result.clamp(min=max(float(result.min()), 1e-3))


def slide(
    predict: Predictor,
    image: Tensor | Source,
    window: Sequence[int],
    *,
    overlap: float = 0.5,
    batch: int | Sequence[int] = 4,
    device: torch.device | str | None = None,
) -> Iterator[tuple[int, int, Tensor]]:
    """Answers for a whole image, in slabs along its first axis; no more than a window's depth is held.

    Parameters
    ----------
    predict : callable
        ``[n, channels, *window]`` to ``[n, classes, *window]``.
    image : Tensor [channels, ...] or Source
        Where it is smaller than the window, zeros are put around it.
    window : sequence of int
    overlap : float
        Of neighbouring windows, as a share of the window.
    batch : int, or several
        Windows at once; of several each is tried on windows that are due, and the one that takes the least time a
        window goes on. At least 2 are sent, since a 3D convolution of a single one is slow on a CPU.
    device : torch.device, str or None
        Where the windows are sent; None is where the image is, or the CPU.

    Yields
    ------
    first, end : int
        Planes along the first axis.
    answer : Tensor [classes, end - first, ...]
    """
    with reusing_pages():
        yield from _slide(predict, image, tuple(window), overlap, [batch] if isinstance(batch, int) else batch, device)


def _slide(
    predict: Predictor,
    image: Tensor | Source,
    window: tuple[int, ...],
    overlap: float,
    batches: Sequence[int],
    device: torch.device | str | None,
) -> Iterator[tuple[int, int, Tensor]]:
    place = image.device if isinstance(image, Tensor) else torch.device("cpu")
    intake = _Intake(image, window, torch.device(device) if device is not None else place)
    layout = [starts(n, w, overlap) for n, w in zip(intake.shape, window, strict=True)]
    places = list(itertools.product(*layout))
    weight = importance(window).to(intake.device)
    plane = weight.new_zeros(window[0], *intake.shape[1:])  # weights that a voxel gets from all windows of one depth
    for at in itertools.product(*layout[1:]):
        plane[(slice(None), *_box(at, window[1:]))] += weight
    blend: _Blend | None = None
    pace = _Pace(batches)
    done = 0
    while done < len(places):
        part = places[done : done + pace.next(len(places) - done)]
        done += len(part)
        views = intake.views(part)
        began = time.perf_counter()
        answers = predict(views)
        pace.took(len(part), answers, began)
        blend = blend or _Blend(answers, plane, window, intake)
        for at, answer in zip(part, answers, strict=False):
            yield from blend.add(at, answer, weight)
    if blend is not None:
        yield from blend.rest()


def _box(at: Sequence[int], window: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(a, a + w) for a, w in zip(at, window, strict=True))


class _Intake:
    """Planes of an image as windows need them, padded where it is smaller than a window."""

    def __init__(self, image: Tensor | Source, window: tuple[int, ...], device: torch.device) -> None:
        self.image, self.window, self.device, self.channels = image, window, device, image.shape[0]
        self.sides = list(image.shape[1:])
        spare = [max(0, w - n) for w, n in zip(window, self.sides, strict=True)]
        self.before = [s // 2 for s in spare]
        self.after = [s - b for s, b in zip(spare, self.before, strict=True)]
        self.shape = [n + s for n, s in zip(self.sides, spare, strict=True)]
        self.first = -1
        self.planes = torch.zeros(0)
        self.kept: Tensor | None = None

    def views(self, places: Sequence[tuple[int, ...]]) -> Tensor:
        """Windows ``[n, channels, *window]``, at least two, in memory that is used again for the next ones."""
        n = max(2, len(places))
        if self.kept is None or len(self.kept) < n:
            self.kept = torch.empty(n, self.channels, *self.window, device=self.device)
        views = self.kept[:n]
        for row, at in enumerate(places):
            self._move(at[0])
            views[row].copy_(self.planes[(slice(None), slice(None), *_box(at[1:], self.window[1:]))])
        if len(places) == 1:
            views[1].copy_(views[0])
        return views

    def _move(self, first: int) -> None:
        """Hold the planes of the windows that begin here; those that are known are not read again."""
        if first == self.first:
            return
        depth = self.window[0]
        known = max(0, self.first + depth - first) if self.first >= 0 else 0
        low, high = (min(max(v - self.before[0], 0), self.sides[0]) for v in (first + known, first + depth))
        fresh = self._read(low, high)
        pads = [p for b, a in zip(reversed(self.before[1:]), reversed(self.after[1:]), strict=True) for p in (b, a)]
        if self.before[0] or self.after[0]:
            pads += [self.before[0], self.after[0]]
        fresh = F.pad(fresh, pads) if any(pads) else fresh
        self.planes = torch.cat([self.planes[:, -known:], fresh], 1) if known else fresh
        self.first = first

    def _read(self, low: int, high: int) -> Tensor:
        if isinstance(self.image, Tensor):
            return self.image[:, low:high].to(self.device)
        return torch.from_numpy(self.image.read(low, high)).to(self.device)


class _Blend:
    """Weighted sums of the planes that windows still reach; what no window reaches any more is given out."""

    def __init__(self, answers: Tensor, plane: Tensor, window: tuple[int, ...], intake: _Intake) -> None:
        self.plane, self.depth = plane, window[0]
        self.total = answers.new_zeros(answers.shape[1], window[0], *intake.shape[1:])
        self.count = plane.clone()
        self.inner = tuple(slice(b, b + n) for b, n in zip(intake.before[1:], intake.sides[1:], strict=True))
        self.low, self.high = intake.before[0], intake.before[0] + intake.sides[0]
        self.top = 0
        self.window = window

    def add(self, at: tuple[int, ...], answer: Tensor, weight: Tensor) -> Iterator[tuple[int, int, Tensor]]:
        """Take one window's answer; planes before its first are given out."""
        if at[0] > self.top:
            done = at[0] - self.top
            yield from self._slab(done)
            _shift(self.total, done, 1)
            _shift(self.count, done, 0)
            self.count += self.plane
            self.top = at[0]
        self.total[(slice(None), slice(None), *_box(at[1:], self.window[1:]))].addcmul_(answer, weight)

    def rest(self) -> Iterator[tuple[int, int, Tensor]]:
        """The last planes."""
        return self._slab(self.depth)

    def _slab(self, done: int) -> Iterator[tuple[int, int, Tensor]]:
        first, end = max(self.top, self.low), min(self.top + done, self.high)
        if first < end:
            rows = slice(first - self.top, end - self.top)
            yield (
                first - self.low,
                end - self.low,
                self.total[(slice(None), rows, *self.inner)] / self.count[(rows, *self.inner)],
            )


def _shift(buffer: Tensor, done: int, axis: int) -> None:
    """Move planes to the front by so many, in place; zeros follow."""
    size = buffer.shape[axis]
    for start in range(done, size, done):
        n = min(done, size - start)
        buffer.narrow(axis, start - done, n).copy_(buffer.narrow(axis, start, n))
    buffer.narrow(axis, max(0, size - done), min(done, size)).zero_()


class _Pace:
    """How many windows are sent at once."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = sorted({max(2, n) for n in sizes})
        self.due = [n for n in self.sizes for _ in range(_TRIED)] if len(self.sizes) > 1 else []
        self.times: dict[int, float] = {}

    def next(self, left: int) -> int:
        """Windows of the next batch; none is left alone at the end."""
        n = self.due[0] if self.due else min(self.times, key=lambda k: self.times[k]) if self.times else self.sizes[0]
        return n if left - n != 1 else n - 1 if n > 2 else 3

    def took(self, n: int, answers: Tensor, began: float) -> None:
        """Note the time of a batch that was tried; on a GPU, after waiting for it."""
        if not self.due:
            return
        if answers.device.type == "cuda":
            torch.cuda.synchronize(answers.device)
        if n == self.due.pop(0):
            self.times[n] = min((time.perf_counter() - began) / n, self.times.get(n, math.inf))


def fitting(shape: Sequence[int], *, memory: int, tensors: int = 60) -> list[int]:
    """Batches of 2, 4 and 8 windows that fit into memory; 2 in any case.

    Parameters
    ----------
    shape : sequence of int
        Of one window, ``[channels, ...]``.
    memory : int
        Bytes to be used.
    tensors : int
        Activations of the window's size that the network holds, roughly.
    """
    one = math.prod(shape) * 4 * tensors
    return [n for n in (2, 4, 8) if n == 2 or n * one <= memory]
