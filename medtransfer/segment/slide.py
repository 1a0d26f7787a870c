"""Sliding windows: batched, blended by a Gaussian that is computed once, given out slab by slab."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

Predictor = Callable[[Tensor], Tensor]
_SIGMA = 0.125  # of the Gaussian, as a share of the window


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
    predict: Predictor, image: Tensor, window: Sequence[int], *, overlap: float = 0.5, batch: int = 4
) -> Iterator[tuple[int, int, Tensor]]:
    """Answers for a whole image, in slabs along its first axis; no more than a window's depth is held.

    Parameters
    ----------
    predict : callable
        ``[n, channels, *window]`` to ``[n, classes, *window]``.
    image : Tensor [channels, ...]
        Where it is smaller than the window, zeros are put around it.
    window : sequence of int
    overlap : float
        Of neighbouring windows, as a share of the window.
    batch : int
        Windows at once; at least 2 are sent, since a 3D convolution of a single one is slow on a CPU.

    Yields
    ------
    first, end : int
        Planes along the first axis.
    answer : Tensor [classes, end - first, ...]
    """
    window = tuple(window)
    spare = [max(0, w - n) for w, n in zip(window, image.shape[1:], strict=True)]
    before = [s // 2 for s in spare]
    sides = list(image.shape[1:])
    if any(spare):
        pads = [p for s, b in zip(reversed(spare), reversed(before), strict=True) for p in (b, s - b)]
        image = F.pad(image, pads)
    places = list(itertools.product(*(starts(n, w, overlap) for n, w in zip(image.shape[1:], window, strict=True))))
    weight = importance(window).to(image)
    inner = tuple(slice(b, b + n) for b, n in zip(before[1:], sides[1:], strict=True))
    total = count = image.new_zeros(0)
    top = 0
    for first in range(0, len(places), batch):
        part = places[first : first + batch]
        boxes = [tuple(slice(a, a + w) for a, w in zip(place, window, strict=True)) for place in part]
        views = torch.stack([image[(slice(None), *box)] for box in boxes])
        answers = predict(views if len(views) > 1 else views.expand(2, *views.shape[1:]))
        if not total.numel():
            total = answers.new_zeros(answers.shape[1], window[0], *image.shape[2:])
            count = answers.new_zeros(window[0], *image.shape[2:])
        for place, box, answer in zip(part, boxes, answers, strict=False):
            if place[0] > top:
                done = place[0] - top
                yield from _slab(total, count, top, done, before[0], sides[0], inner)
                total, count = _shifted(total, done, 1), _shifted(count, done, 0)
                top = place[0]
            total[(slice(None), slice(None), *box[1:])].addcmul_(answer, weight)
            count[(slice(None), *box[1:])] += weight
    yield from _slab(total, count, top, window[0], before[0], sides[0], inner)


def _slab(
    total: Tensor, count: Tensor, top: int, done: int, before: int, side: int, inner: tuple[slice, ...]
) -> Iterator[tuple[int, int, Tensor]]:
    low, high = max(top, before), min(top + done, before + side)
    if low < high:
        rows = slice(low - top, high - top)
        yield low - before, high - before, (total[:, rows] / count[rows])[(slice(None), slice(None), *inner)]


def _shifted(buffer: Tensor, done: int, axis: int) -> Tensor:
    moved = torch.zeros_like(buffer)
    kept = buffer.shape[axis] - done
    if kept > 0:
        moved.narrow(axis, 0, kept).copy_(buffer.narrow(axis, done, kept))
    return moved


def choose_batch(predict: Predictor, view: Tensor, windows: int, *, memory_gb: float, tensors: int = 60) -> int:
    """The batch that takes the least time a window, of those that fit into memory; measured on a few windows.

    Parameters
    ----------
    predict : callable
    view : Tensor [1, channels, ...]
        One window.
    windows : int
        How many there will be; few are not worth a measurement.
    memory_gb : float
        To be used.
    tensors : int
        Activations of the window's size that the network holds, roughly.
    """
    one = view.numel() * 4 * tensors / 2**30
    fitting = [n for n in (2, 4, 8) if n == 2 or n * one <= memory_gb]
    if len(fitting) < 2 or windows < 8 * len(fitting):
        return fitting[-1] if len(fitting) < 2 else min(4, fitting[-1])
    times = {}
    predict(view.expand(2, *view.shape[1:]))
    for n in fitting:
        batch = view.expand(n, *view.shape[1:]).contiguous()
        times[n] = min(_seconds(predict, batch) for _ in range(2)) / n
    return min(times, key=lambda n: times[n])


def _seconds(predict: Predictor, batch: Tensor) -> float:
    began = time.perf_counter()
    predict(batch)
    return time.perf_counter() - began
